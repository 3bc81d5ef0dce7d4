//! The schedule of recovery, without clock and store: how far a sweep has come, and when the next round of a cause begins.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::crew::Places;
use crate::store::{Lane, SweepPosition};

/// Backoff after the first round without a settled message and with one that stays: 5 s, doubled with each further such round
/// up to [`ROUND_BACKOFF_MAX`].
const ROUND_BACKOFF_INITIAL: Duration = Duration::from_secs(5);
const ROUND_BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Maximum backoff if the cause is gone and the sweep has not reached its end: further messages have not been tried yet.
const ROUND_BACKOFF_UNTRIED_MAX: Duration = Duration::from_secs(20);
/// Minimum interval between two sweeps for one cause if the first found no message, between two queries of the store for
/// causes, and between two renewals of a cause by returns of its engine: 60 s.
pub(super) const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

/// One pass through all messages that wait for a cause.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The lanes that are left, beginning with the current one.
    pub(super) lanes: &'static [Lane],
    /// The position reached in each lane, by this sweep or by the interrupted one before.
    pub(super) places: HashMap<Lane, SweepPosition>,
    /// The sweep began at these positions; messages before them are left to the next sweep.
    pub(super) interrupted: bool,
    pub(super) settled: u64,
    pub(super) stays: u64,
    /// The incident log has an entry for the start of this sweep.
    pub(super) is_announced: bool,
}

impl Sweep {
    const LANE_ORDER: &[Lane] = &[Lane::Scan, Lane::Held, Lane::Rescan];

    pub(super) fn new() -> Self {
        Self {
            lanes: Self::LANE_ORDER,
            places: HashMap::new(),
            interrupted: false,
            settled: 0,
            stays: 0,
            is_announced: false,
        }
    }

    /// A new sweep after a renewal of the cause. The new sweep begins with the messages that this one has not tried: messages
    /// at the head could otherwise end every sweep.
    pub(super) fn again(self) -> Self {
        Self {
            interrupted: !self.places.is_empty(),
            places: self.places,
            ..Self::new()
        }
    }

    pub(super) fn end_of_lane(&mut self) {
        if let Some((lane, rest)) = self.lanes.split_first() {
            self.places.remove(lane);
            self.lanes = rest;
        }
    }
}

/// Why a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoundEnd {
    /// The sweep is complete.
    Through,
    /// The time of the round is over, or the relay stops.
    Turn,
    /// A message stays and the cause is not gone, or the store fails.
    Stuck,
}

/// The result of a round.
#[derive(Debug)]
pub(super) struct Worked {
    pub(super) sweep: Sweep,
    pub(super) end: RoundEnd,
    pub(super) settled: u64,
    pub(super) stays: u64,
}

/// The schedule of the rounds for one cause.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) next: Instant,
    pub(super) failures: u32,
    pub(super) gone: bool,
    /// `None` while a round is under way.
    pub(super) sweep: Option<Sweep>,
    /// The cause was renewed while a round was under way.
    pub(super) renewed: bool,
    pub(super) places: Places,
}

impl Round {
    pub(super) fn new(sweep: Sweep, places: Places) -> Self {
        Self {
            next: Instant::now(),
            failures: 0,
            gone: true,
            sweep: Some(sweep),
            renewed: false,
            places,
        }
    }

    /// Sets the start of the next round.
    pub(super) fn schedule(&mut self, worked: &Worked) {
        let failed = worked.stays > 0 || worked.end == RoundEnd::Stuck;
        self.failures = match (worked.settled, failed) {
            (0, true) => self.failures + 1,
            (0, false) => self.failures,
            _ => 0,
        };
        let doubled = 1 << self.failures.saturating_sub(1).min(10);
        let backoff = ROUND_BACKOFF_INITIAL
            .saturating_mul(doubled)
            .min(ROUND_BACKOFF_MAX);
        let sweep = &worked.sweep;
        let wait = match worked.end {
            RoundEnd::Turn => Duration::ZERO,
            RoundEnd::Stuck if self.gone => backoff.min(ROUND_BACKOFF_UNTRIED_MAX),
            RoundEnd::Stuck => backoff,
            RoundEnd::Through if sweep.stays > 0 => backoff,
            RoundEnd::Through if sweep.settled > 0 || sweep.interrupted => Duration::ZERO,
            RoundEnd::Through => {
                self.failures = 0;
                RECHECK_INTERVAL
            }
        };
        self.next = Instant::now() + wait;
    }
}
