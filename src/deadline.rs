//! Deadlines and budgets: the only place in the crate that calls a timeout.
//!
//! Time is an argument here. One absolute [`Deadline`] is made at the edge (end of data, a scheduled attempt) and handed
//! down; nothing below the edge invents an allowance of its own, it can only make the one it got shorter
//! ([`Deadline::within`]). That is what keeps the sum of all waits of a message bounded (promise P1), however many
//! engines, attempts and next hops it meets.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// The allowances of `[budget]`, per message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// From end of data to our reply. When it runs out the message is made durable and answered 250, and the work goes
    /// on in the background. Keep it below what sending servers wait for the reply to end of data (RFC 5321 4.5.3.2.6
    /// asks them for ten minutes; some wait only one).
    pub session: Duration,
    /// From end of data to a verdict, or to the hold that replaces it, over all scans and waits in one pass.
    pub total: Duration,
    /// From end of data: how long a message that could not be judged is scanned again before a reviewer decides.
    pub deferral: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            session: Duration::from_secs(30),
            total: Duration::from_secs(150),
            deferral: Duration::from_secs(4 * 3600),
        }
    }
}

/// The wall clock: for what people read and for what must be understood after a restart. It may jump; what must not,
/// is a [`Deadline`].
#[cfg(not(test))]
pub fn wall_clock() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
pub use simulated::{set_wall_clock, wall_clock};

/// In tests a thread can have a wall clock of its own, so that it goes on with paused time.
#[cfg(test)]
mod simulated {
    use std::cell::Cell;

    use super::{Instant, Timestamp};

    thread_local! {
        static CLOCK: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
    }

    /// It is `now` on this thread, and goes on with tokio's time; `None` gives the real one back.
    pub fn set_wall_clock(now: Option<Timestamp>) {
        CLOCK.set(now.map(|now| (now, Instant::now())));
    }

    /// As the one for production, or this thread's own.
    pub fn wall_clock() -> Timestamp {
        match CLOCK.get() {
            Some((at, since)) => at + since.elapsed(),
            None => Timestamp::now(),
        }
    }
}

/// An absolute instant after which work is not worth doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline passed before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

impl Deadline {
    /// The instant `allowance` from now.
    pub fn after(allowance: Duration) -> Self {
        let now = Instant::now();
        // An allowance too large for the clock means "never" in practice; thirty years from now is that.
        Self(
            now.checked_add(allowance)
                .unwrap_or_else(|| now + Duration::from_secs(86_400 * 365 * 30)),
        )
    }

    /// The earlier of this deadline and `allowance` from now: how a part gets less time than the whole, never more.
    pub fn within(self, allowance: Duration) -> Self {
        self.min(Self::after(allowance))
    }

    /// Time left; zero when passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the instant has passed.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// The instant itself, for `select!` against a timer.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Resolves when the deadline passes.
    ///
    /// Cancel safety: safe, it only waits.
    pub async fn wait(self) {
        tokio::time::sleep_until(self.0).await;
    }

    /// Runs `work` until the deadline; work whose deadline has already passed is not started.
    ///
    /// Cancel safety: `work` is dropped at the deadline, so it must be safe to drop at every await point.
    pub async fn run<T>(self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        if self.passed() {
            return Err(Elapsed);
        }
        tokio::time::timeout_at(self.0, work)
            .await
            .map_err(|_| Elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part never gets more time than the whole.
    #[tokio::test(start_paused = true)]
    async fn within_only_shortens() {
        let whole = Deadline::after(Duration::from_secs(5));
        assert_eq!(whole.within(Duration::from_secs(60)), whole);
        assert!(whole.within(Duration::from_secs(1)) < whole);
    }

    /// A wall clock that stood still while time is paused and advanced would leave nothing ever due.
    #[tokio::test(start_paused = true)]
    async fn a_simulated_wall_clock_goes_on_with_paused_time() {
        let start = Timestamp::UNIX_EPOCH;
        set_wall_clock(Some(start));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(wall_clock(), start + Duration::from_secs(60));
        set_wall_clock(None);
        assert!(wall_clock() > start + Duration::from_secs(86_400));
    }

    /// Work whose deadline has passed is not even started: it would cost an engine a slot for nobody.
    #[tokio::test(start_paused = true)]
    async fn passed_deadline_starts_nothing() {
        let deadline = Deadline::after(Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut started = false;
        assert_eq!(deadline.run(async { started = true }).await, Err(Elapsed));
        assert!(!started);
    }
}
