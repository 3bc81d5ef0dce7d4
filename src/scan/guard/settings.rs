//! Settings of the guard: the section `[guard]`, and the keys of the same names in an `[[engine]]`.
//!
//! Each default is the value that the drill and the simulation were measured with. The reasons for the values are here; what an
//! administrator trades with them is in `config/spillway.toml`.

use std::time::Duration;

/// Settings of the guard of one engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuardSettings {
    /// A replica may be stalled once it has ended no scan for this many times [`Settings::slow`](crate::scan::Settings::slow):
    /// by default half of it (250 ms where `slow` is 500 ms). A machine, or an engine that loads signatures, may well stand
    /// still for a tenth of a second.
    pub stall_factor: f64,
    /// Different parties whose scans must have lasted unusually long before a replica is stalled, as one or two parties may have
    /// sent content that takes long. A replica that may run fewer scans needs only that number of parties.
    pub stall_senders: usize,
    /// Share of failures among the outcomes in [`failure_window`](Self::failure_window) that opens the breaker.
    pub failure_share: f64,
    /// Sliding window over which outcomes are counted. Older outcomes say nothing about the engine now.
    pub failure_window: Duration,
    /// Outcomes in the window that a share of failures needs; a share of fewer outcomes is noise.
    pub failure_outcomes: u32,
    /// Consecutive failures that open the breaker if the window holds no good outcome: on little mail,
    /// [`failure_outcomes`](Self::failure_outcomes) would take too long. The gate counts at most two failures of one fingerprint
    /// in 10 s, so with 3 or more one content alone does not open the breaker.
    pub failures_in_a_row: u32,
    /// Time that the breaker stays open before the engine is tried again, and interval between the starts of two probe pairs
    /// while the breaker is open. Also the pause after the first failed trial with mail. 1 s, because mail waits one second for
    /// a slot by default, and a recovered engine must not wait longer; one pair a second is no noticeable load.
    pub open_first: Duration,
    /// Upper bound of the pause after a failed trial. The pause doubles with each failed trial, because each trial may cost two
    /// messages a second scan; a recovered engine waits no longer than this for its next trial.
    pub open_max: Duration,
    /// Copies of unproven content that may be in the engine at once: two, because one slow scan alone does not make the content
    /// suspicious.
    pub canaries: u32,
    /// Largest share of the slots that is kept free of mail of unknown senders, for known senders.
    pub reserve_known: SlotShare,
    /// Largest share of the slots that is kept free of all but proven mail. Not more than [`reserve_known`](Self::reserve_known).
    pub reserve_proven: SlotShare,
    /// Messages of one round of recovery that are scanned at once, for each slot of the engine: 2, so that a message is always
    /// at the gate when a slot becomes free.
    pub recovery_per_slot: usize,
    /// Maximum of that number, because every message of a round is in memory.
    pub recovery_max: usize,
}

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            stall_factor: 0.5,
            stall_senders: 3,
            failure_share: 0.5,
            failure_window: Duration::from_secs(10),
            failure_outcomes: 20,
            failures_in_a_row: 5,
            open_first: Duration::from_secs(1),
            open_max: Duration::from_secs(16),
            canaries: 2,
            reserve_known: SlotShare { parts: 1, of: 3 },
            reserve_proven: SlotShare { parts: 1, of: 6 },
            recovery_per_slot: 2,
            recovery_max: 32,
        }
    }
}

/// A share of an engine's slots: `parts` of `of`, such as a third. A fraction, because a third has no exact decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotShare {
    /// The numerator.
    pub parts: u32,
    /// The denominator; not 0.
    pub of: u32,
}

impl SlotShare {
    /// The slots of the share, of `slots`, rounded down: one at least.
    pub fn slots(self, slots: usize) -> usize {
        (slots * self.parts as usize / self.of as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A share is rounded down, and never nothing: better-known mail always has a slot that other mail cannot take.
    #[test]
    fn a_share_has_one_slot_at_least() {
        let third = GuardSettings::default().reserve_known;
        let shares: Vec<usize> = [1, 2, 3, 5, 6, 12, 1000].map(|n| third.slots(n)).into();
        assert_eq!(shares, [1, 1, 1, 1, 2, 4, 333]);
    }
}
