//! Whose turn it is, among those whose level of trust has room.
//!
//! Five classes share the engine by weight (weighted fair queueing: each start costs its class the more virtual time the less
//! it weighs, and the class with the least goes next). Within fresh mail turns go by start tags (start-time fair queueing;
//! Goyal, Vin, Cheng, SIGCOMM 1996) at two levels: first of those who bring mail (a user, else a client), then of the senders
//! of each. So who sends more than the engine can do is behind everybody who sends less, under however many senders' names;
//! and behind one mail server, whose mail has one client address, one sender who floods is behind the others. Mail that is
//! scanned again is known by its age instead: the oldest first.

use std::collections::{BTreeMap, BTreeSet};

use super::Ticket;
use super::trust::Level;
use crate::ablation::{Mechanism, without};
use crate::message::Standing;
use crate::scan::{ScanReason, Turn};

/// Lines that are looked at for one that may start, and messages in each. Two parties at most can be kept from starting at once,
/// as each of them holds half of the slots that there are for such, so that the third line has one; this bounds the work if not.
const LOOKED_AT: usize = 256;

/// Mail that shares the engine as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Scanned for the first time, of known senders.
    FreshKnown,
    /// Scanned for the first time, of strangers.
    FreshUnknown,
    /// Deferred and held mail of known senders, and further attempts.
    AgainKnown,
    /// The same of strangers.
    AgainUnknown,
    /// Mail that ran into its timeout before.
    Struck,
}

impl Class {
    const ALL: [Self; 5] = [
        Self::FreshKnown,
        Self::FreshUnknown,
        Self::AgainKnown,
        Self::AgainUnknown,
        Self::Struck,
    ];

    pub(super) fn of(scan_reason: ScanReason, standing: Standing, struck: bool) -> Self {
        match (scan_reason, standing) {
            _ if struck => Self::Struck,
            (ScanReason::Fresh, Standing::Known) => Self::FreshKnown,
            (ScanReason::Fresh, Standing::Unknown) => Self::FreshUnknown,
            (ScanReason::Again | ScanReason::Redrive, Standing::Known) => Self::AgainKnown,
            (ScanReason::Again | ScanReason::Redrive, Standing::Unknown) => Self::AgainUnknown,
        }
    }

    pub(super) fn is_fresh(self) -> bool {
        matches!(self, Self::FreshKnown | Self::FreshUnknown)
    }

    /// Virtual time that a start costs: 160 by weights of 16, 8, 1, 1/2 and 1/10. Fresh mail of strangers has a third of the
    /// engine while there is more of everything than it can do, and a backlog one part in 25 of it.
    fn cost(self) -> u64 {
        match self {
            Self::FreshKnown => 10,
            Self::FreshUnknown => 20,
            Self::AgainKnown => 160,
            Self::AgainUnknown => 320,
            Self::Struck => 1600,
        }
    }
}

/// Those who wait for a slot.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// By class.
    lines: [Clients; 5],
    /// Virtual time of each class.
    times: [u64; 5],
}

/// The clients of a class, the parties of each, and their messages.
type Clients = Fair<0, Parties>;
type Parties = Fair<1, Fifo>;

/// A line of messages, some of which may have left without a word.
trait Line: Default {
    fn push(&mut self, level: Level, turn: Turn, ticket: Ticket);

    /// Whether somebody has a place at that level, gone or not.
    fn has_places(&self, level: Level) -> bool;

    /// Places, of those who are gone too. Looks at all of them.
    fn places(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool;

    /// Those at that level who wait still, in turn; of each line within this one as many as may be looked at.
    fn first(
        &self,
        level: Level,
        who: &Who<impl Fn(Ticket) -> bool, impl Fn(Ticket) -> bool>,
    ) -> Looked;

    /// Takes out what [`Line::first`] has found.
    fn take(&mut self, level: Level, turn: Turn, ticket: Ticket);

    /// Drops those at the head who have left.
    fn drop_gone(&mut self, level: Level, waits: &impl Fn(Ticket) -> bool);

    /// Forgets all who have left.
    fn tidy(&mut self, waits: &impl Fn(Ticket) -> bool);
}

/// Who still waits, and who of them may start.
struct Who<W, S> {
    waits: W,
    may_start: S,
}

/// What a look at a line has found.
enum Looked {
    /// Its next in turn.
    Next(Place),
    /// Somebody waits, and may not start.
    Stuck,
    Nobody,
}

/// The place of a message: the start tag of its line, since when that waits, and the message itself.
#[derive(Debug, Clone, Copy)]
struct Place {
    tag: (u64, Ticket),
    turn: Turn,
    ticket: Ticket,
}

/// The messages of a party, by level: for those that may start under the same conditions. Tickets are given in order.
#[derive(Debug, Default)]
struct Fifo([BTreeMap<Ticket, Turn>; 3]);

impl Line for Fifo {
    fn push(&mut self, level: Level, turn: Turn, ticket: Ticket) {
        self.0[level as usize].insert(ticket, turn);
    }

    fn has_places(&self, level: Level) -> bool {
        !self.0[level as usize].is_empty()
    }

    fn places(&self) -> usize {
        self.0.iter().map(BTreeMap::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(BTreeMap::is_empty)
    }

    fn first(
        &self,
        level: Level,
        who: &Who<impl Fn(Ticket) -> bool, impl Fn(Ticket) -> bool>,
    ) -> Looked {
        let all = self.0[level as usize].iter();
        let mut waiting = all.filter(|(ticket, _)| (who.waits)(**ticket)).peekable();
        if waiting.peek().is_none() {
            return Looked::Nobody;
        }
        let mut places = waiting.take(LOOKED_AT);
        match places.find(|(ticket, _)| (who.may_start)(**ticket)) {
            Some((&ticket, &turn)) => Looked::Next(Place {
                tag: (0, ticket),
                turn,
                ticket,
            }),
            None => Looked::Stuck,
        }
    }

    fn take(&mut self, level: Level, _: Turn, ticket: Ticket) {
        self.0[level as usize].remove(&ticket);
    }

    fn drop_gone(&mut self, level: Level, waits: &impl Fn(Ticket) -> bool) {
        let line = &mut self.0[level as usize];
        while line
            .first_key_value()
            .is_some_and(|(ticket, _)| !waits(*ticket))
        {
            line.pop_first();
        }
    }

    fn tidy(&mut self, waits: &impl Fn(Ticket) -> bool) {
        for line in &mut self.0 {
            line.retain(|ticket, _| waits(*ticket));
        }
    }
}

/// Lines that take turns: start-time fair queueing, with the start tag given to a line and not to each of its messages, so that
/// those who leave have cost it nothing. `OF` tells whose lines they are: 0 the clients', 1 the parties'.
#[derive(Debug, Default)]
struct Fair<const OF: usize, L> {
    lines: BTreeMap<u64, Flow<L>>,
    /// By level, those that have places at it: start tag, since when it waits, whose it is.
    order: [BTreeSet<(u64, Ticket, u64)>; 3],
    /// The start tag that was last taken.
    now: u64,
    /// Those that have nobody who waits, and whose last turn is not made up for by those of the others.
    idle: BTreeMap<u64, Flow<L>>,
}

#[derive(Debug)]
struct Flow<L> {
    start: u64,
    since: Ticket,
    line: L,
}

impl<const OF: usize, L: Line> Fair<OF, L> {
    fn key(turn: Turn) -> u64 {
        [turn.client, turn.party][OF]
    }

    /// Puts a line where it belongs after a change of its places; `before` is the start tag that it had.
    fn reorder(&mut self, key: u64, before: u64) {
        let Some(flow) = self.lines.get(&key) else {
            return;
        };
        for (order, level) in self.order.iter_mut().zip(Level::ALL) {
            order.remove(&(before, flow.since, key));
            if flow.line.has_places(level) {
                order.insert((flow.start, flow.since, key));
            }
        }
        if flow.line.is_empty()
            && let Some(flow) = self.lines.remove(&key)
            && flow.start > self.now
        {
            self.idle.insert(key, flow);
        }
        if self.idle.len() > 2 * self.lines.len() + 64 {
            self.forget_half();
        }
    }

    /// Lets the time go on until half of the idle are not ahead of it any more. Names that come once each would stop it: all of
    /// them have their turn at the same tag.
    fn forget_half(&mut self) {
        let mut starts: Vec<u64> = self.idle.values().map(|flow| flow.start).collect();
        let half = starts.len() / 2;
        let (_, median, _) = starts.select_nth_unstable(half);
        let now = self.now.max(*median);
        self.now = now;
        self.idle.retain(|_, flow| flow.start > now);
    }
}

impl<const OF: usize, L: Line> Line for Fair<OF, L>
where
    Self: Default,
{
    fn push(&mut self, level: Level, turn: Turn, ticket: Ticket) {
        let key = Self::key(turn);
        let (now, idle) = (self.now, &mut self.idle);
        let flow = self.lines.entry(key).or_insert_with(|| {
            let (start, line) = match idle.remove(&key) {
                Some(flow) => (flow.start.max(now), flow.line),
                None => (now, L::default()),
            };
            Flow {
                start,
                since: ticket,
                line,
            }
        });
        flow.line.push(level, turn, ticket);
        self.order[level as usize].insert((flow.start, flow.since, key));
    }

    fn has_places(&self, level: Level) -> bool {
        !self.order[level as usize].is_empty()
    }

    fn places(&self) -> usize {
        self.lines.values().map(|flow| flow.line.places()).sum()
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn first(
        &self,
        level: Level,
        who: &Who<impl Fn(Ticket) -> bool, impl Fn(Ticket) -> bool>,
    ) -> Looked {
        let mut looked_at = 0;
        for (start, since, key) in &self.order[level as usize] {
            match self.lines.get(key).map(|flow| flow.line.first(level, who)) {
                Some(Looked::Next(place)) => {
                    return Looked::Next(Place {
                        tag: (*start, *since),
                        ..place
                    });
                }
                Some(Looked::Stuck) if looked_at == LOOKED_AT => return Looked::Stuck,
                Some(Looked::Stuck) => looked_at += 1,
                Some(Looked::Nobody) | None => {}
            }
        }
        match looked_at {
            0 => Looked::Nobody,
            _ => Looked::Stuck,
        }
    }

    fn take(&mut self, level: Level, turn: Turn, ticket: Ticket) {
        let key = Self::key(turn);
        let Some(flow) = self.lines.get_mut(&key) else {
            return;
        };
        flow.line.take(level, turn, ticket);
        let before = flow.start;
        flow.start += 1;
        self.now = self.now.max(before);
        self.reorder(key, before);
    }

    fn drop_gone(&mut self, level: Level, waits: &impl Fn(Ticket) -> bool) {
        while let Some((start, _, key)) = self.order[level as usize].first().copied() {
            let Some(flow) = self.lines.get_mut(&key) else {
                return;
            };
            flow.line.drop_gone(level, waits);
            if flow.line.has_places(level) {
                return;
            }
            self.reorder(key, start);
        }
    }

    fn tidy(&mut self, waits: &impl Fn(Ticket) -> bool) {
        let keys: Vec<u64> = self.lines.keys().copied().collect();
        for key in keys {
            if let Some(flow) = self.lines.get_mut(&key) {
                flow.line.tidy(waits);
                let start = flow.start;
                self.reorder(key, start);
            }
        }
    }
}

impl Turns {
    pub(super) fn push(&mut self, class: Class, level: Level, turn: Turn, ticket: Ticket) {
        if !self.somebody_waits(class) {
            self.catch_up(class);
        }
        let turn = match class.is_fresh() && !without(Mechanism::Turns) {
            true => turn,
            // By age.
            false => Turn::default(),
        };
        self.lines[class as usize].push(level, turn, ticket);
    }

    fn somebody_waits(&self, class: Class) -> bool {
        let lines = &self.lines[class as usize];
        Level::ALL.iter().any(|level| lines.has_places(*level))
    }

    /// A class that nobody waited in has saved up nothing meanwhile.
    fn catch_up(&mut self, class: Class) {
        let waits = |other: &Class| self.somebody_waits(*other);
        let time = |other: Class| self.times[other as usize];
        let waiting = Class::ALL.into_iter().filter(waits).map(time).min();
        let least = waiting.or(Class::ALL.into_iter().map(time).max());
        let own = &mut self.times[class as usize];
        *own = (*own).max(least.unwrap_or_default());
    }

    /// The class that is next, of those in this set that somebody waits in.
    fn next_class(&self, among: u8) -> Option<Class> {
        let may = |class: &Class| among & 1 << *class as u8 != 0 && self.somebody_waits(*class);
        let classes = Class::ALL.into_iter().filter(may);
        classes.min_by_key(|class| self.times[*class as usize])
    }

    /// Takes the next in turn whose level has room in its class, and who may start.
    pub(super) fn pop(
        &mut self,
        has_room: impl Fn(Class, Level) -> bool,
        waits: impl Fn(Ticket) -> bool,
        may_start: impl Fn(Ticket) -> bool,
    ) -> Option<Ticket> {
        let who = Who { waits, may_start };
        let mut left: u8 = (1 << Class::ALL.len()) - 1;
        while let Some(class) = self.next_class(left) {
            left &= !(1 << class as u8);
            let lines = &mut self.lines[class as usize];
            let mut next: Option<(Level, Place)> = None;
            for level in Level::ALL {
                lines.drop_gone(level, &who.waits);
                if !lines.has_places(level) || !has_room(class, level) {
                    continue;
                }
                if let Looked::Next(place) = lines.first(level, &who)
                    && next.is_none_or(|(_, next)| place.tag < next.tag)
                {
                    next = Some((level, place));
                }
            }
            if let Some((level, Place { turn, ticket, .. })) = next {
                lines.take(level, turn, ticket);
                self.times[class as usize] += class.cost();
                return Some(ticket);
            }
        }
        None
    }

    /// Forgets those who have left, once they are more than those who wait.
    pub(super) fn tidy(&mut self, waits: impl Fn(Ticket) -> bool, waiting: usize) {
        let places: usize = self.lines.iter().map(Line::places).sum();
        if places > 2 * waiting + 1024 {
            self.lines.iter_mut().for_each(|lines| lines.tidy(&waits));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(client: u64, party: u64) -> Turn {
        Turn { client, party }
    }

    /// Takes so many, of all that wait.
    fn take(turns: &mut Turns, count: usize) -> Vec<Ticket> {
        let pop = || turns.pop(|_, _| true, |_| true, |_| true);
        std::iter::from_fn(pop).take(count).collect()
    }

    /// A backlog has a part of the engine, and fresh mail nearly all of it: of 25 starts one.
    #[test]
    fn classes_share_by_weight() {
        let mut turns = Turns::default();
        for ticket in 0..1000 {
            turns.push(
                Class::FreshKnown,
                Level::Proven,
                turn(ticket, ticket),
                ticket,
            );
            turns.push(
                Class::FreshUnknown,
                Level::Unknown,
                turn(ticket, ticket),
                1000 + ticket,
            );
            turns.push(Class::AgainKnown, Level::Proven, turn(0, 0), 2000 + ticket);
        }
        let taken = take(&mut turns, 500);
        let of = |from: u64| {
            taken
                .iter()
                .filter(|t| (from..from + 1000).contains(t))
                .count()
        };
        assert_eq!((of(0), of(1000), of(2000)), (320, 160, 20));
    }

    /// Law 4: what may not start keeps nobody behind it waiting.
    #[test]
    fn who_may_not_start_is_passed_over() {
        let mut turns = Turns::default();
        for ticket in 0..100 {
            turns.push(Class::FreshUnknown, Level::Unknown, turn(1, 1), ticket);
        }
        turns.push(Class::FreshUnknown, Level::Unknown, turn(2, 2), 100);
        let next = turns.pop(|_, _| true, |_| true, |ticket| ticket >= 100);
        assert_eq!(next, Some(100));
        turns.push(Class::FreshKnown, Level::Unproven, turn(1, 1), 101);
        turns.push(Class::FreshKnown, Level::Proven, turn(3, 3), 102);
        let next = turns.pop(|_, level| level == Level::Proven, |_| true, |_| true);
        assert_eq!(next, Some(102));
    }

    /// A client that sends very much under a name of its own each time is one among the others: with two others it has one turn in
    /// three.
    #[test]
    fn many_names_of_one_client_are_one_turn() {
        let mut turns = Turns::default();
        for ticket in 0..1000 {
            turns.push(Class::FreshUnknown, Level::Unknown, turn(1, ticket), ticket);
        }
        for ticket in 1000..1020 {
            let other = turn(2 + ticket % 2, 2 + ticket % 2);
            turns.push(Class::FreshUnknown, Level::Unknown, other, ticket);
        }
        let others = take(&mut turns, 30).into_iter().filter(|t| *t >= 1000);
        assert_eq!(others.count(), 20);
    }

    /// Law 9: behind one mail server, whose mail has one client address, one sender who floods is behind the others.
    #[test]
    fn one_sender_of_a_client_is_behind_its_others() {
        let mut turns = Turns::default();
        for ticket in 0..1000 {
            turns.push(Class::FreshUnknown, Level::Unknown, turn(1, 1), ticket);
        }
        take(&mut turns, 100);
        for ticket in 1000..1010 {
            turns.push(Class::FreshUnknown, Level::Unknown, turn(1, ticket), ticket);
        }
        let others = take(&mut turns, 11).into_iter().filter(|t| *t >= 1000);
        assert_eq!(others.count(), 10);
    }

    /// Those who have left hide nobody, and what is remembered of them is forgotten.
    #[test]
    fn who_has_left_hides_nobody() {
        let mut turns = Turns::default();
        let stuck = 5000;
        turns.push(Class::FreshUnknown, Level::Unknown, turn(0, 0), stuck);
        for ticket in 0..2000 {
            let of = turn(1 + ticket % 1000, ticket);
            turns.push(Class::FreshUnknown, Level::Unknown, of, ticket);
        }
        turns.push(Class::FreshUnknown, Level::Unknown, turn(3000, 0), 6000);
        let waits = |ticket| ticket >= stuck;
        let next = turns.pop(|_, _| true, waits, |ticket| ticket != stuck);
        assert_eq!(next, Some(6000));
        turns.tidy(waits, 1);
        assert_eq!(turns.lines[Class::FreshUnknown as usize].places(), 1);
        assert!(turns.lines.iter().all(|lines| lines.lines.len() <= 1));
    }

    /// What is remembered of those who had their turn is bounded by those who wait, however many names come that each come once:
    /// behind one client or of as many clients, and while somebody waits who may not start.
    #[test]
    fn who_had_a_turn_is_forgotten() {
        for of in [|name| turn(1, name), |name| turn(name, name)] {
            for stuck in [false, true] {
                let mut turns = Turns::default();
                if stuck {
                    turns.push(Class::FreshUnknown, Level::Unknown, of(0), 0);
                }
                for ticket in 1..1000 {
                    turns.push(Class::FreshUnknown, Level::Unknown, of(ticket), ticket);
                    let next = turns.pop(|_, _| true, |_| true, |ticket| ticket > 0);
                    assert_eq!(next, Some(ticket));
                    let clients = &turns.lines[Class::FreshUnknown as usize];
                    let all = clients.lines.values().chain(clients.idle.values());
                    let parties: usize = all.map(|client| client.line.idle.len()).sum();
                    let all = clients.idle.len() + parties;
                    assert!(all <= 140, "{all} at {ticket}, {stuck}");
                }
            }
        }
    }

    /// A class in which nobody waited for an hour has saved up no right to go first for an hour.
    #[test]
    fn nothing_is_saved_up() {
        let mut turns = Turns::default();
        for ticket in 0..1000 {
            turns.push(
                Class::FreshKnown,
                Level::Proven,
                turn(ticket, ticket),
                ticket,
            );
        }
        take(&mut turns, 500);
        for ticket in 1000..1100 {
            turns.push(Class::AgainKnown, Level::Proven, turn(0, 0), ticket);
        }
        let again = take(&mut turns, 68)
            .into_iter()
            .filter(|ticket| *ticket >= 1000);
        assert!(again.count() <= 5);
    }
}
