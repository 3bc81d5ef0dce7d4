//! The retry budget: the engine time that further attempts may cost.

use std::time::Duration;

use tokio::time::Instant;

use crate::ablation::{Mechanism, without};

/// The budget for further attempts, in seconds of engine time (I5). A further attempt costs the duration of the failed one, and
/// at least `timeout`, because the failed one may keep a worker busy for that time. A tenth of the duration of each successful
/// scan is earned. Durations include the wait for a slot. A budget in attempts would count a scan that costs as much as ten
/// thousand others as one.
#[derive(Debug)]
pub(super) struct RetryBudget {
    pub(super) seconds: f64,
    /// Time of the last attempt that was allowed although the budget was spent.
    gift: Instant,
}

impl RetryBudget {
    /// Upper bound of the budget, and its initial value: twelve attempts at the default `timeout` of 5 s.
    pub(super) const SECONDS_MAX: f64 = 60.0;
    /// Share of a successful scan's duration that the budget earns: retries add at most a tenth to an engine's work.
    const EARNED_SHARE: f64 = 0.1;
    /// Interval after which one attempt is allowed without budget, or an engine with little mail would never get a retry.
    const GIFT_INTERVAL: Duration = Duration::from_secs(60);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            seconds: Self::SECONDS_MAX,
            gift: now,
        }
    }

    pub(super) fn earn(&mut self, service: Duration) {
        self.seconds =
            (self.seconds + Self::EARNED_SHARE * service.as_secs_f64()).min(Self::SECONDS_MAX);
    }

    pub(super) fn spend(&mut self, now: Instant, cost: Duration) -> bool {
        if without(Mechanism::RetryBudget) {
            return true;
        }
        if self.seconds >= cost.as_secs_f64() {
            self.seconds -= cost.as_secs_f64();
            return true;
        }
        let given = now >= self.gift + Self::GIFT_INTERVAL;
        if given {
            self.gift = now;
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I5: an engine that always fails soon gets only one attempt for each message.
    #[tokio::test(start_paused = true)]
    async fn retries_end_with_the_budget() {
        let mut now = Instant::now();
        let mut budget = RetryBudget::new(now);
        let mut allowed = 0;
        for _ in 0..1000 {
            allowed += u32::from(budget.spend(now, Duration::from_secs(5)));
        }
        assert_eq!(allowed, 12, "a minute's worth");
        now += RetryBudget::GIFT_INTERVAL;
        assert!(budget.spend(now, Duration::from_secs(5)), "one in a minute");
        assert!(!budget.spend(now, Duration::from_secs(5)));
    }

    /// A successful scan earns a tenth of its duration, up to a budget of one minute.
    #[tokio::test(start_paused = true)]
    async fn success_pays_for_retries() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(now);
        while budget.spend(now, Duration::from_secs(5)) {}
        budget.earn(Duration::from_secs(49));
        assert!(!budget.spend(now, Duration::from_secs(5)));
        budget.earn(Duration::from_secs(2));
        assert!(budget.spend(now, Duration::from_secs(5)));
        budget.earn(Duration::from_secs(1_000_000));
        assert!(budget.seconds <= RetryBudget::SECONDS_MAX);
    }
}
