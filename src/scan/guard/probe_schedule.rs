//! When a replica gets its next probe pair.

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::breaker::BreakerState;
use crate::chance;

/// Interval between two probe pairs while the gate doubts a replica: one pair a second is no noticeable load, and decides within
/// about two seconds whether the engine or the messages are at fault.
const DOUBT_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The probe schedule of one replica.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeSchedule {
    next: Instant,
    last: Option<Instant>,
    is_running: bool,
}

impl ProbeSchedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            last: None,
            is_running: false,
        }
    }

    /// Whether a probe pair is due now; if so, it counts as sent. `every` is the interval of routine probes (none: no routine
    /// probes); `doubt` tells that the gate doubts the replica.
    pub(super) fn is_due(
        &mut self,
        now: Instant,
        every: Option<Duration>,
        breaker: BreakerState,
        doubt: bool,
    ) -> bool {
        let rested = self
            .last
            .is_none_or(|last| now >= last + DOUBT_PROBE_INTERVAL);
        let due = match breaker {
            BreakerState::Open { .. } => false,
            BreakerState::HalfOpen { .. } => true,
            BreakerState::Closed | BreakerState::Ramp { .. } => {
                doubt && rested || every.is_some() && now >= self.next
            }
        };
        if self.is_running || !due {
            return false;
        }
        self.is_running = true;
        self.last = Some(now);
        // A jitter of 10 %, so that relays that were started together do not probe together.
        let every = every.unwrap_or(DOUBT_PROBE_INTERVAL);
        self.next = now + every.mul_f64(0.9 + 0.2 * chance::rng().random::<f64>());
        true
    }

    pub(super) fn ended(&mut self) {
        self.is_running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTINE_INTERVAL: Option<Duration> = Some(Duration::from_secs(10));

    /// Doubt makes a probe pair due at once, and at most one a second, with and without routine probes.
    #[tokio::test(start_paused = true)]
    async fn doubt_asks_at_once() {
        let mut now = Instant::now();
        for every in [ROUTINE_INTERVAL, None] {
            let mut schedule = ProbeSchedule::new(now);
            let closed = BreakerState::Closed;
            assert_eq!(schedule.is_due(now, every, closed, false), every.is_some());
            schedule.ended();
            now += DOUBT_PROBE_INTERVAL;
            assert!(!schedule.is_due(now, every, closed, false), "all is well");
            assert!(schedule.is_due(now, every, closed, true));
            assert!(
                !schedule.is_due(now + DOUBT_PROBE_INTERVAL, every, closed, true),
                "it runs"
            );
            schedule.ended();
            assert!(!schedule.is_due(now + DOUBT_PROBE_INTERVAL / 2, every, closed, true));
            assert!(schedule.is_due(now + DOUBT_PROBE_INTERVAL, every, closed, true));
        }
    }

    /// Relays that were started together do not probe together: the interval of ten seconds varies by 10 %.
    #[tokio::test(start_paused = true)]
    async fn routine_probes_come_at_random() {
        let now = Instant::now();
        let nexts: Vec<Duration> = (0..100)
            .map(|_| {
                let mut schedule = ProbeSchedule::new(now);
                assert!(schedule.is_due(now, ROUTINE_INTERVAL, BreakerState::Closed, false));
                schedule.next - now
            })
            .collect();
        let range = Duration::from_secs(9)..=Duration::from_secs(11);
        assert!(nexts.iter().all(|next| range.contains(next)), "{nexts:?}");
        let differ = nexts.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(differ > 90, "{nexts:?}");
    }
}
