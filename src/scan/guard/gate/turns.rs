//! Whose turn it is, among those whose level of trust has room.
//!
//! Five classes share the engine by weight (weighted fair queueing: each start costs its class the more virtual time the less
//! it weighs, and the class with the least goes next). Within fresh mail turns go by start tags of parties (start-time fair
//! queueing; Goyal, Vin, Cheng, SIGCOMM 1996), so that who sends more than the engine can do is behind everybody who sends
//! less. Mail that is scanned again is known by its age instead: the oldest first.

use std::collections::{BTreeSet, HashMap};

use super::Ticket;
use super::trust::Level;
use crate::ablation::{Mechanism, without};
use crate::message::Standing;
use crate::scan::Errand;

/// Turns that a party can be behind the others.
const BEHIND_TURNS: u64 = 64;
/// Places of a line that are looked at for one that may start. Two parties at most can be kept from starting at once, as each
/// of them holds half of the slots that there are for such, and each has as many places before others as it can be behind.
const PLACES_LOOKED_AT: usize = 256;

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

    pub(super) fn of(errand: Errand, standing: Standing, struck: bool) -> Self {
        match (errand, standing) {
            _ if struck => Self::Struck,
            (Errand::Fresh, Standing::Known) => Self::FreshKnown,
            (Errand::Fresh, Standing::Unknown) => Self::FreshUnknown,
            (Errand::Again | Errand::Redrive, Standing::Known) => Self::AgainKnown,
            (Errand::Again | Errand::Redrive, Standing::Unknown) => Self::AgainUnknown,
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
    /// By class and level: one line for those who may start under the same conditions.
    lines: [[BTreeSet<(u64, Ticket)>; 3]; 5],
    /// Virtual time of each class.
    times: [u64; 5],
    /// The start tag of the last fresh message that went.
    now: u64,
    /// The next start tag of each party that waits or has just waited.
    next: HashMap<u64, u64>,
}

impl Turns {
    pub(super) fn push(&mut self, class: Class, level: Level, party: u64, ticket: Ticket) {
        if self.lines[class as usize].iter().all(BTreeSet::is_empty) {
            self.catch_up(class);
        }
        let start = match class.is_fresh() {
            true => self.start_tag(party),
            // Tickets are given in order.
            false => 0,
        };
        self.lines[class as usize][level as usize].insert((start, ticket));
    }

    fn start_tag(&mut self, party: u64) -> u64 {
        let party = match without(Mechanism::Turns) {
            true => 0,
            false => party,
        };
        let next = self.next.entry(party).or_default();
        // Who sent very much is behind by so many turns, and no more.
        let start = (*next).clamp(self.now, self.now + BEHIND_TURNS);
        *next = start + 1;
        start
    }

    /// A class that nobody waited in has saved up nothing meanwhile.
    fn catch_up(&mut self, class: Class) {
        let waits = |other: &Class| self.lines[*other as usize].iter().any(|l| !l.is_empty());
        let time = |other: Class| self.times[other as usize];
        let waiting = Class::ALL.into_iter().filter(waits).map(time).min();
        let least = waiting.or(Class::ALL.into_iter().map(time).max());
        let own = &mut self.times[class as usize];
        *own = (*own).max(least.unwrap_or_default());
    }

    /// Takes the next in turn whose level has room in its class, and who may start.
    pub(super) fn pop(
        &mut self,
        has_room: impl Fn(Class, Level) -> bool,
        waits: impl Fn(Ticket) -> bool,
        may_start: impl Fn(Ticket) -> bool,
    ) -> Option<Ticket> {
        let mut next: Option<(u64, Class, Level, (u64, Ticket))> = None;
        for class in Class::ALL {
            let time = self.times[class as usize];
            if next.as_ref().is_some_and(|(least, ..)| *least <= time) {
                continue;
            }
            let mut first: Option<((u64, Ticket), Level)> = None;
            for level in Level::ALL {
                let line = &mut self.lines[class as usize][level as usize];
                while line.first().is_some_and(|(_, ticket)| !waits(*ticket)) {
                    line.pop_first();
                }
                if line.is_empty() || !has_room(class, level) {
                    continue;
                }
                let mut places = line.iter().take(PLACES_LOOKED_AT);
                let place = places.find(|(_, ticket)| waits(*ticket) && may_start(*ticket));
                let before = |place| first.is_none_or(|(first, _)| place < first);
                if let Some(place) = place.copied().filter(|place| before(*place)) {
                    first = Some((place, level));
                }
            }
            if let Some((place, level)) = first {
                next = Some((time, class, level, place));
            }
        }
        let (_, class, level, place) = next?;
        self.lines[class as usize][level as usize].remove(&place);
        self.times[class as usize] += class.cost();
        if class.is_fresh() {
            self.now = self.now.max(place.0);
        }
        Some(place.1)
    }

    /// Forgets those who have left, once they are more than those who wait.
    pub(super) fn tidy(&mut self, waits: impl Fn(Ticket) -> bool, waiting: usize) {
        let places: usize = self.lines.as_flattened().iter().map(BTreeSet::len).sum();
        if places > 2 * waiting + 1024 {
            for line in self.lines.as_flattened_mut() {
                line.retain(|(_, ticket)| waits(*ticket));
            }
        }
        if self.next.len() > 2 * waiting + 1024 {
            let now = self.now;
            self.next.retain(|_, next| *next > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            turns.push(Class::FreshKnown, Level::Proven, ticket, ticket);
            turns.push(Class::FreshUnknown, Level::Unknown, ticket, 1000 + ticket);
            turns.push(Class::AgainKnown, Level::Proven, 0, 2000 + ticket);
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
            turns.push(Class::FreshUnknown, Level::Unknown, 1, ticket);
        }
        turns.push(Class::FreshUnknown, Level::Unknown, 2, 100);
        let next = turns.pop(|_, _| true, |_| true, |ticket| ticket >= 100);
        assert_eq!(next, Some(100));
        turns.push(Class::FreshKnown, Level::Unproven, 1, 101);
        turns.push(Class::FreshKnown, Level::Proven, 3, 102);
        let next = turns.pop(|_, level| level == Level::Proven, |_| true, |_| true);
        assert_eq!(next, Some(102));
    }

    /// A class in which nobody waited for an hour has saved up no right to go first for an hour.
    #[test]
    fn nothing_is_saved_up() {
        let mut turns = Turns::default();
        for ticket in 0..1000 {
            turns.push(Class::FreshKnown, Level::Proven, ticket, ticket);
        }
        take(&mut turns, 500);
        for ticket in 1000..1100 {
            turns.push(Class::AgainKnown, Level::Proven, 0, ticket);
        }
        let again = take(&mut turns, 68)
            .into_iter()
            .filter(|ticket| *ticket >= 1000);
        assert!(again.count() <= 5);
    }
}
