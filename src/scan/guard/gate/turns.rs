//! The order in which waiting messages start, among the levels of trust that have room.
//!
//! Five classes share the engine by weight (weighted fair queueing): each start costs its class virtual time, in inverse
//! proportion to the weight of the class, and the class with the least virtual time goes next. Within fresh mail, start tags
//! give the order (start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996) at two levels: first between the clients (an
//! authenticated user, else a client address), then between the parties (reverse-paths) of one client. A client that sends
//! more than the engine can scan is therefore served after all clients that send less, even if each message has another
//! sender. All mail that comes through one mail server has one client address; there, a sender that floods is served after
//! the other senders. Mail that is scanned again goes by age, the oldest first.

use std::collections::{BTreeMap, BTreeSet};

use super::Ticket;
use super::trust::Level;
use crate::ablation::{Mechanism, without};
use crate::message::SenderReputation;
use crate::observation::ScanReason;
use crate::scan::FairnessKey;

/// Bounds the search for a message that may start: the number of lines in which no message may start, and the number of
/// messages examined in each line. The search usually ends much earlier. A party with a slow scan may start no other scan once
/// the party holds half of the slots that unknown senders may hold. So at most two parties may not start while a slot is free,
/// and the third line has a message that may start. The bound covers engines with few slots, and messages that may not start for
/// other reasons.
const ENTRIES_EXAMINED_MAX: usize = 256;

/// Mail that shares one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Mail of known senders that is scanned for the first time.
    FreshKnown,
    /// Mail of unknown senders that is scanned for the first time.
    FreshUnknown,
    /// Deferred and held mail of known senders, and further attempts.
    AgainKnown,
    /// Deferred and held mail of unknown senders, and further attempts.
    AgainUnknown,
    /// Mail that timed out before.
    TimedOutBefore,
}

impl Class {
    const ALL: [Self; 5] = [
        Self::FreshKnown,
        Self::FreshUnknown,
        Self::AgainKnown,
        Self::AgainUnknown,
        Self::TimedOutBefore,
    ];

    pub(super) fn of(
        scan_reason: ScanReason,
        reputation: SenderReputation,
        timed_out_before: bool,
    ) -> Self {
        match (scan_reason, reputation) {
            _ if timed_out_before => Self::TimedOutBefore,
            (ScanReason::Fresh, SenderReputation::Known) => Self::FreshKnown,
            (ScanReason::Fresh, SenderReputation::Unknown) => Self::FreshUnknown,
            (ScanReason::Again | ScanReason::Redrive, SenderReputation::Known) => Self::AgainKnown,
            (ScanReason::Again | ScanReason::Redrive, SenderReputation::Unknown) => {
                Self::AgainUnknown
            }
        }
    }

    pub(super) fn is_fresh(self) -> bool {
        matches!(self, Self::FreshKnown | Self::FreshUnknown)
    }

    /// Virtual time that one start costs: 160 divided by the weights 16, 8, 1, 1/2 and 1/10. While more mail of all classes
    /// waits than the engine can scan, fresh mail of unknown senders gets about a third of the starts, and a backlog of known
    /// senders about one start in 25.
    fn cost(self) -> u64 {
        match self {
            Self::FreshKnown => 10,
            Self::FreshUnknown => 20,
            Self::AgainKnown => 160,
            Self::AgainUnknown => 320,
            Self::TimedOutBefore => 1600,
        }
    }
}

/// The messages that wait for a slot.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The lines of each class.
    lines: [Clients; 5],
    /// Virtual time of each class.
    times: [u64; 5],
}

/// The lines of the clients of one class; each has a line for each party, and that line holds the messages.
type Clients = Fair<0, Parties>;
type Parties = Fair<1, Fifo>;

/// A line of messages. A message that has left the gate may still have a place, because the gate does not report departures.
trait Line: Default {
    fn push(&mut self, level: Level, fairness_key: FairnessKey, ticket: Ticket);

    /// Whether there is a place at that level, even of a message that has left.
    fn has_places(&self, level: Level) -> bool;

    /// Number of places, including those of messages that have left. The cost is proportional to the number of lines.
    fn places(&self) -> usize;

    /// Whether the line has no places.
    fn is_empty(&self) -> bool;

    /// The first message at that level, in turn, that still waits and may start. Examines at most [`ENTRIES_EXAMINED_MAX`]
    /// waiting messages in each line.
    fn first(
        &self,
        level: Level,
        predicates: &Predicates<impl Fn(Ticket) -> bool, impl Fn(Ticket) -> bool>,
    ) -> Search;

    /// Removes the message that [`Line::first`] has found.
    fn take(&mut self, level: Level, fairness_key: FairnessKey, ticket: Ticket);

    /// Removes messages that have left, at the head of the line only.
    fn drop_gone(&mut self, level: Level, waits: &impl Fn(Ticket) -> bool);

    /// Removes all messages that have left.
    fn tidy(&mut self, waits: &impl Fn(Ticket) -> bool);
}

/// Two predicates: whether a message still waits, and whether a waiting message may start.
struct Predicates<W, S> {
    waits: W,
    may_start: S,
}

/// Result of the search in a line.
enum Search {
    /// The next message in turn.
    Next(QueuePlace),
    /// Messages wait, but none of those examined may start.
    NoneMayStart,
    /// No message waits.
    NoneWaits,
}

/// The place of a message: its ticket, and the tag that orders its line: start tag, then the ticket since which the line
/// waits.
#[derive(Debug, Clone, Copy)]
struct QueuePlace {
    tag: (u64, Ticket),
    fairness_key: FairnessKey,
    ticket: Ticket,
}

/// The messages of a party, by level, as messages of one level compete for the same slots. Tickets ascend, so the map keeps
/// the order of arrival.
#[derive(Debug, Default)]
struct Fifo([BTreeMap<Ticket, FairnessKey>; 3]);

impl Line for Fifo {
    fn push(&mut self, level: Level, fairness_key: FairnessKey, ticket: Ticket) {
        self.0[level as usize].insert(ticket, fairness_key);
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
        predicates: &Predicates<impl Fn(Ticket) -> bool, impl Fn(Ticket) -> bool>,
    ) -> Search {
        let all = self.0[level as usize].iter();
        let mut waiting = all
            .filter(|(ticket, _)| (predicates.waits)(**ticket))
            .peekable();
        if waiting.peek().is_none() {
            return Search::NoneWaits;
        }
        let mut places = waiting.take(ENTRIES_EXAMINED_MAX);
        match places.find(|(ticket, _)| (predicates.may_start)(**ticket)) {
            Some((&ticket, &fairness_key)) => Search::Next(QueuePlace {
                tag: (0, ticket),
                fairness_key,
                ticket,
            }),
            None => Search::NoneMayStart,
        }
    }

    fn take(&mut self, level: Level, _: FairnessKey, ticket: Ticket) {
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

/// Lines that take turns by start-time fair queueing. The start tag belongs to the line and not to each message, so that a
/// message that leaves has cost its line nothing. `OF` selects the owners of the lines: 0 for clients, 1 for parties.
#[derive(Debug, Default)]
struct Fair<const OF: usize, L> {
    lines: BTreeMap<u64, Flow<L>>,
    /// For each level, the lines with places at that level: start tag, ticket since which the line waits, key of the line.
    order: [BTreeSet<(u64, Ticket, u64)>; 3],
    /// Virtual time: the largest start tag of a line that has had a turn, or a later time from `forget_half`.
    now: u64,
    /// Empty lines with a start tag ahead of `now`: the other lines have not yet had as many turns.
    idle: BTreeMap<u64, Flow<L>>,
}

#[derive(Debug)]
struct Flow<L> {
    start: u64,
    since: Ticket,
    line: L,
}

impl<const OF: usize, L: Line> Fair<OF, L> {
    fn key(fairness_key: FairnessKey) -> u64 {
        [fairness_key.client, fairness_key.party][OF]
    }

    /// Updates `order` and `idle` after a change to the places of a line; `before` is the start tag before the change.
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

    /// Advances virtual time to the median start tag of the idle lines, and forgets the lines that are no longer ahead. Keys
    /// that come only once would otherwise fill `idle`: they all have their turn at the same tag, and virtual time stands
    /// still.
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
    fn push(&mut self, level: Level, fairness_key: FairnessKey, ticket: Ticket) {
        let key = Self::key(fairness_key);
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
        flow.line.push(level, fairness_key, ticket);
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
        predicates: &Predicates<impl Fn(Ticket) -> bool, impl Fn(Ticket) -> bool>,
    ) -> Search {
        let mut looked_at = 0;
        for (start, since, key) in &self.order[level as usize] {
            match self
                .lines
                .get(key)
                .map(|flow| flow.line.first(level, predicates))
            {
                Some(Search::Next(place)) => {
                    return Search::Next(QueuePlace {
                        tag: (*start, *since),
                        ..place
                    });
                }
                Some(Search::NoneMayStart) if looked_at == ENTRIES_EXAMINED_MAX => {
                    return Search::NoneMayStart;
                }
                Some(Search::NoneMayStart) => looked_at += 1,
                Some(Search::NoneWaits) | None => {}
            }
        }
        match looked_at {
            0 => Search::NoneWaits,
            _ => Search::NoneMayStart,
        }
    }

    fn take(&mut self, level: Level, fairness_key: FairnessKey, ticket: Ticket) {
        let key = Self::key(fairness_key);
        let Some(flow) = self.lines.get_mut(&key) else {
            return;
        };
        flow.line.take(level, fairness_key, ticket);
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
    /// Adds a message at the end of the line of its party.
    pub(super) fn push(
        &mut self,
        class: Class,
        level: Level,
        fairness_key: FairnessKey,
        ticket: Ticket,
    ) {
        if !self.has_waiting(class) {
            self.catch_up(class);
        }
        let fairness_key = match class.is_fresh() && !without(Mechanism::Turns) {
            true => fairness_key,
            // One line for all messages: the order is the age.
            false => FairnessKey::default(),
        };
        self.lines[class as usize].push(level, fairness_key, ticket);
    }

    /// Whether the class has places, even only of messages that have left.
    fn has_waiting(&self, class: Class) -> bool {
        let lines = &self.lines[class as usize];
        Level::ALL.iter().any(|level| lines.has_places(*level))
    }

    /// Advances the virtual time of a class without waiting messages, so that an idle class saves up no turns: to the least
    /// virtual time of the classes with waiting messages, or to the largest of all classes if no message waits.
    fn catch_up(&mut self, class: Class) {
        let waits = |other: &Class| self.has_waiting(*other);
        let time = |other: Class| self.times[other as usize];
        let waiting = Class::ALL.into_iter().filter(waits).map(time).min();
        let least = waiting.or(Class::ALL.into_iter().map(time).max());
        let own = &mut self.times[class as usize];
        *own = (*own).max(least.unwrap_or_default());
    }

    /// The next class, of those in the bit set `among` that have places.
    fn next_class(&self, among: u8) -> Option<Class> {
        let may = |class: &Class| among & 1 << *class as u8 != 0 && self.has_waiting(*class);
        let classes = Class::ALL.into_iter().filter(may);
        classes.min_by_key(|class| self.times[*class as usize])
    }

    /// Removes and returns the next message in turn that may start and whose level has room in its class.
    pub(super) fn pop(
        &mut self,
        has_room: impl Fn(Class, Level) -> bool,
        waits: impl Fn(Ticket) -> bool,
        may_start: impl Fn(Ticket) -> bool,
    ) -> Option<Ticket> {
        let predicates = Predicates { waits, may_start };
        let mut left: u8 = (1 << Class::ALL.len()) - 1;
        while let Some(class) = self.next_class(left) {
            left &= !(1 << class as u8);
            let lines = &mut self.lines[class as usize];
            let mut next: Option<(Level, QueuePlace)> = None;
            for level in Level::ALL {
                lines.drop_gone(level, &predicates.waits);
                if !lines.has_places(level) || !has_room(class, level) {
                    continue;
                }
                if let Search::Next(place) = lines.first(level, &predicates)
                    && next.is_none_or(|(_, next)| place.tag < next.tag)
                {
                    next = Some((level, place));
                }
            }
            if let Some((
                level,
                QueuePlace {
                    fairness_key,
                    ticket,
                    ..
                },
            )) = next
            {
                lines.take(level, fairness_key, ticket);
                self.times[class as usize] += class.cost();
                return Some(ticket);
            }
        }
        None
    }

    /// Removes messages that have left, once there are more than 1,024 places beyond twice the number of `waiting` messages.
    pub(super) fn tidy(&mut self, waits: impl Fn(Ticket) -> bool, waiting: usize) {
        let places: usize = self.lines.iter().map(Line::places).sum();
        if places > 2 * waiting + 1024 {
            self.lines.iter_mut().for_each(|lines| lines.tidy(&waits));
        }
    }
}

#[cfg(test)]
mod tests;
