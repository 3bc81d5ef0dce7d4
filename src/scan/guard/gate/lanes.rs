//! Lanes: how many slots mail may take, by what speaks for it, and whose turn it is within a lane.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Ticket;
use crate::ablation::{Mechanism, without};
use crate::message::Standing;
use crate::scan::Errand;

/// Fast scans of mail from unknown senders earn room for more of it, for so long.
const EARNED: Duration = Duration::from_secs(2);
/// So many of them are remembered: more room than that nobody has.
const REMEMBERED: usize = 20_000;

/// What speaks for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// All, the first served first.
    pub(super) const ALL: [Self; 4] = [Self::Proven, Self::Unproven, Self::Unknown, Self::Again];

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

/// Slots taken by each lane.
#[derive(Debug, Default)]
pub(super) struct Taken([usize; 4]);

impl Taken {
    pub(super) fn add(&mut self, lane: Lane) {
        self.0[lane as usize] += 1;
    }

    fn of(&self, lane: Lane) -> usize {
        self.0[lane as usize]
    }
}

/// Slots that only the first lane may take.
pub(super) fn reserve(total: usize) -> usize {
    total / 3
}

/// Those who wait, and what unknown senders have earned.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: [Turns; 4],
    fast: VecDeque<Instant>,
}

impl Queue {
    pub(super) fn push(&mut self, lane: Lane, party: u64, ticket: Ticket) {
        self.lanes[lane as usize].push(party, ticket);
    }

    /// The next in turn that still waits.
    pub(super) fn pop(&mut self, lane: Lane, waits: impl Fn(Ticket) -> bool) -> Option<Ticket> {
        let lane = &mut self.lanes[lane as usize];
        std::iter::from_fn(|| lane.pop()).find(|ticket| waits(*ticket))
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
        let places: usize = self.lanes.iter().map(Turns::len).sum();
        if places > 2 * waiting + 1024 {
            for lane in &mut self.lanes {
                lane.retain(&waits);
            }
        }
    }

    /// Whether nobody is in that lane.
    pub(super) fn is_empty(&self, lane: Lane) -> bool {
        self.lanes[lane as usize].order.is_empty()
    }

    /// Whether a free slot may go to that lane (RESILIENCE M3); `slow` tells that scans of what
    /// nothing speaks for are.
    pub(super) fn has_room(
        &self,
        now: Instant,
        lane: Lane,
        total: usize,
        taken: &Taken,
        slow: bool,
    ) -> bool {
        if without(Mechanism::Lanes) {
            return true;
        }
        let third = reserve(total);
        let doubtful = taken.of(Lane::Unknown) + taken.of(Lane::Again);
        let others = doubtful + taken.of(Lane::Unproven);
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
                within_reserve && within_half && taken.of(Lane::Unknown) < third.max(1) + earned
            }
            Lane::Again => {
                let few = taken.of(Lane::Again) < (total / 6).max(1);
                within_reserve && within_half && few
            }
        }
    }
}

/// First come, first served within a party; in turn among the parties, so that one who sends much does not delay one who
/// sends little.
#[derive(Debug, Default)]
struct Turns {
    order: VecDeque<u64>,
    parties: HashMap<u64, VecDeque<Ticket>>,
}

impl Turns {
    fn push(&mut self, party: u64, ticket: Ticket) {
        let party = match without(Mechanism::Turns) {
            true => 0,
            false => party,
        };
        let waiting = self.parties.entry(party).or_default();
        if waiting.is_empty() {
            self.order.push_back(party);
        }
        waiting.push_back(ticket);
    }

    fn pop(&mut self) -> Option<Ticket> {
        let party = self.order.pop_front()?;
        let waiting = self.parties.get_mut(&party)?;
        let ticket = waiting.pop_front();
        match waiting.is_empty() {
            true => {
                self.parties.remove(&party);
            }
            false => self.order.push_back(party),
        }
        ticket
    }

    fn len(&self) -> usize {
        self.parties.values().map(VecDeque::len).sum()
    }

    fn retain(&mut self, waits: impl Fn(Ticket) -> bool) {
        for waiting in self.parties.values_mut() {
            waiting.retain(|ticket| waits(*ticket));
        }
        self.parties.retain(|_, waiting| !waiting.is_empty());
        self.order.retain(|party| self.parties.contains_key(party));
    }
}
