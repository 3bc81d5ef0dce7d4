//! The probes of a dead hop, and the waits between them. A probe is a stored message, sent alone.

use std::time::Duration;

use rand::{Rng, RngExt as _};
use tokio::time::Instant;

/// Wait before the first probe of a dead hop. Each failed probe doubles the wait.
pub(super) const PROBE_WAIT_INITIAL: Duration = Duration::from_secs(1);
/// Longest wait between two probes. There are few next hops, each with one probe at a time, so a longer wait would save
/// little and would delay mail.
pub(super) const PROBE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Number of consecutive probes that reach the content and follow each other without a wait. Mail behind this many bad
/// messages in the queue has to wait for one session each; a hop that fails for every message does not receive a whole
/// queue.
const IMMEDIATE_PROBES_MAX: u32 = 50;

/// The probes of one hop that does not work.
#[derive(Debug)]
pub(super) struct Probing {
    /// Time from which the hop is dead.
    pub(super) since: Instant,
    /// Wait before the next probe, without jitter.
    wait: Duration,
    /// Time from which the next probe may start.
    pub(super) probe_at: Instant,
    /// Whether a probe is under way.
    pub(super) probing: bool,
    /// Consecutive probes since the last wait that reached the content.
    immediate_probes: u32,
    /// The rate before the hop went dead, still the best estimate.
    pub(super) rate: Option<f64>,
}

impl Probing {
    /// For a hop that is dead from `now` on.
    pub(super) fn new(rate: Option<f64>, now: Instant, rng: &mut impl Rng) -> Self {
        Self {
            since: now,
            wait: PROBE_WAIT_INITIAL,
            probe_at: now + jittered(PROBE_WAIT_INITIAL, rng),
            probing: false,
            immediate_probes: 0,
            rate,
        }
    }

    /// Allows a probe at once, and begins anew with short waits.
    pub(super) fn nudge(&mut self, now: Instant) {
        self.probe_at = self.probe_at.min(now);
        self.wait = PROBE_WAIT_INITIAL;
        self.immediate_probes = 0;
    }

    /// Processes a failed probe. If the probe reached the content, the message may be the cause: that message waits for
    /// its own next attempt, and the next probe may start immediately.
    pub(super) fn probe_failed(&mut self, offered: bool, now: Instant, rng: &mut impl Rng) {
        self.probing = false;
        if offered && self.immediate_probes < IMMEDIATE_PROBES_MAX {
            self.immediate_probes += 1;
            self.probe_at = now;
            return;
        }
        self.immediate_probes = 0;
        self.wait = (self.wait * 2).min(PROBE_WAIT_MAX);
        self.probe_at = now + jittered(self.wait, rng);
    }

    /// Processes a probe without a result (no connection was free, or the relay gave it up): the next probe may start after
    /// the same wait, not a longer one, because the hop has not failed.
    pub(super) fn repeat_probe(&mut self, now: Instant) {
        self.probing = false;
        self.probe_at = now + self.wait;
    }
}

/// Adds jitter, so that relays that lost the same server do not return to it at the same time.
fn jittered(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(0.75..=1.0))
}
