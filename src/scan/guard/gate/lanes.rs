//! Lanes: how many slots mail may take, by what speaks for it, and whose turn it is within a lane.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{Entrant, Gate, Ticket};
use crate::ablation::{Mechanism, without};
use crate::message::Standing;
use crate::scan::Errand;

/// Fast scans of mail from unknown senders earn room for more of it, for so long.
const EARNED: Duration = Duration::from_secs(2);
/// Turns that a party can be behind the others.
const BEHIND: u64 = 64;
/// So many of them are remembered: more room than that nobody has.
const REMEMBERED: usize = 20_000;

/// What speaks for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// A known sender, and text or attachments that were scanned well before.
    Proven,
    /// A known sender with an attachment that nobody has seen.
    Unproven,
    /// An unknown sender.
    Unknown,
    /// Deferred and held mail that is scanned again, retries, probes: fresh mail goes first.
    Again,
}

impl Lane {
    /// Those of mail that is scanned for the first time.
    const FRESH: [Self; 3] = [Self::Proven, Self::Unproven, Self::Unknown];

    /// The lane of a message.
    pub(super) fn of(errand: Errand, standing: Standing, proven: bool) -> Self {
        match (errand, standing, proven) {
            (Errand::Again | Errand::Redrive, ..) => Self::Again,
            (Errand::Fresh, Standing::Unknown, _) => Self::Unknown,
            (Errand::Fresh, Standing::Known, true) => Self::Proven,
            (Errand::Fresh, Standing::Known, false) => Self::Unproven,
        }
    }
}

/// Slots in all, and those taken by each lane.
#[derive(Debug)]
pub(super) struct Taken {
    total: usize,
    /// Scans of what nothing speaks for are slow.
    slow: bool,
    by: [usize; 4],
}

impl Taken {
    /// None of so many is taken yet.
    pub(super) fn of(total: usize, slow: bool) -> Self {
        Self {
            total,
            slow,
            by: [0; 4],
        }
    }

    pub(super) fn add(&mut self, lane: Lane) {
        self.by[lane as usize] += 1;
    }

    fn by(&self, lane: Lane) -> usize {
        self.by[lane as usize]
    }
}

/// Slots that only the first lane may take.
pub(super) fn reserve(total: usize) -> usize {
    total / 3
}

/// Those who wait, and what unknown senders have earned.
///
/// Whose turn it is goes by start tags (start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996), over the three lanes of
/// fresh mail together: a lane limits how many slots its mail may take, and is no right to go before others. With one lane
/// before the other, a client that sends more short letters than the engine can do keeps everybody's attachments waiting.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: [BTreeSet<(u64, Ticket)>; 4],
    /// The start tag of the last that went.
    now: u64,
    /// The next start tag of each party that waits or has just waited.
    next: HashMap<u64, u64>,
    fast: VecDeque<Instant>,
}

impl Queue {
    pub(super) fn push(&mut self, lane: Lane, party: u64, ticket: Ticket) {
        let party = match without(Mechanism::Turns) {
            true => 0,
            false => party,
        };
        let next = self.next.entry(party).or_default();
        // Who sent very much is behind by so many turns, and no more.
        let start = (*next).clamp(self.now, self.now + BEHIND);
        *next = start + 1;
        self.lanes[lane as usize].insert((start, ticket));
    }

    /// The next in turn, of the lanes for which there is room, that still waits. What is scanned again goes last.
    pub(super) fn pop(
        &mut self,
        room: impl Fn(&Self, Lane) -> bool,
        waits: impl Fn(Ticket) -> bool,
    ) -> Option<Ticket> {
        for lane in &mut self.lanes {
            while lane.first().is_some_and(|(_, ticket)| !waits(*ticket)) {
                lane.pop_first();
            }
        }
        let head = |lane: &Lane| Some((*self.lanes[*lane as usize].first()?, *lane));
        let open = |lane: &&Lane| !self.is_empty(**lane) && room(self, **lane);
        let fresh = Lane::FRESH.iter().filter(open).filter_map(head).min();
        let ((start, ticket), lane) = fresh.or_else(|| {
            let again = [Lane::Again];
            again.iter().filter(open).find_map(head)
        })?;
        self.lanes[lane as usize].remove(&(start, ticket));
        self.now = self.now.max(start);
        Some(ticket)
    }

    /// A scan of that lane ended.
    pub(super) fn ended(&mut self, now: Instant, lane: Lane, slow: bool) {
        if lane == Lane::Unknown && !slow {
            while self.fast.len() >= REMEMBERED
                || self.fast.front().is_some_and(|at| now >= *at + EARNED)
            {
                self.fast.pop_front();
            }
            self.fast.push_back(now);
        }
    }

    /// Forgets those who have left, once they are more than those who wait.
    pub(super) fn tidy(&mut self, waits: impl Fn(Ticket) -> bool, waiting: usize) {
        let places: usize = self.lanes.iter().map(BTreeSet::len).sum();
        if places > 2 * waiting + 1024 {
            for lane in &mut self.lanes {
                lane.retain(|(_, ticket)| waits(*ticket));
            }
        }
        if self.next.len() > 2 * waiting + 1024 {
            let now = self.now;
            self.next.retain(|_, next| *next > now);
        }
    }

    /// Whether nobody is in that lane.
    pub(super) fn is_empty(&self, lane: Lane) -> bool {
        self.lanes[lane as usize].is_empty()
    }

    /// Whether a free slot may go to that lane (RESILIENCE M3).
    pub(super) fn has_room(&self, now: Instant, lane: Lane, taken: &Taken) -> bool {
        if without(Mechanism::Lanes) {
            return true;
        }
        let (total, slow) = (taken.total, taken.slow);
        let third = reserve(total);
        let doubtful = taken.by(Lane::Unknown) + taken.by(Lane::Again);
        let others = doubtful + taken.by(Lane::Unproven);
        let within_reserve = others < (total - third).max(1);
        // Half of the slots at most for what nothing speaks for once it is slow, so that known senders keep some for what is
        // new: without this a flood that imitates good mail left them none (the drill's "mimic").
        let within_half = !slow || doubtful < (total / 2).max(1);
        match lane {
            Lane::Proven => true,
            Lane::Unproven => within_reserve,
            Lane::Unknown => {
                let recent = self.fast.iter().rev();
                let recent = recent.take_while(|at| now < **at + EARNED);
                // What was earned is lost as soon as such mail is slow.
                let earned = match slow {
                    true => 0,
                    false => recent.take(2 * total).count() / 2,
                };
                within_reserve && within_half && taken.by(Lane::Unknown) < third.max(1) + earned
            }
            Lane::Again => {
                let few = taken.by(Lane::Again) < (total / 6).max(1);
                within_reserve && within_half && few
            }
        }
    }
}

impl Gate {
    /// Whether the engine is short of slots for such a message: it takes mail, but this one would have to wait now, for a slot
    /// of its lane or behind copies of itself. An engine that is out is not short of slots: it has none.
    pub(in crate::scan::guard) fn is_short(&self, now: Instant, entrant: &Entrant) -> bool {
        if self.refuses().is_some() {
            return false;
        }
        let free = self.free();
        let has_room = || {
            let (lane, taken) = (self.lane(entrant), self.taken(free));
            self.queue.has_room(now, lane, &taken)
        };
        free == 0 || self.canaries.blocking(entrant).is_some() || !has_room()
    }
}
