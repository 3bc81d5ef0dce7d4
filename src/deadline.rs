//! Deadlines and budgets: the only place in the crate that calls a timeout.
//!
//! Time is an argument here. One absolute [`Deadline`] is made at the edge (end of data, a scheduled attempt) and handed
//! down; nothing below the edge invents an allowance of its own, it can only make the one it got shorter
//! ([`Deadline::within`]). That is what keeps the sum of all waits of a message bounded (promise P1), however many
//! engines, attempts and next hops it meets.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
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
/// is a [`Deadline`]; what ends by it is compared with [`steady_clock`].
#[cfg(not(test))]
pub fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// The wall clock without the leaps forward that it made after `from`: what was to last for a while from then on is not
/// ended before that while has passed, because somebody set the clock or the machine slept. Of leaps before the start of
/// this process nothing is known; a clock that was set back only makes things last longer.
///
/// Leaps are found by asking: something must ask now and then ([`crate::pipeline`] does, every minute).
pub fn steady_clock(from: Timestamp) -> Timestamp {
    let now = wall_clock();
    now.checked_sub(leapt_since(from)).unwrap_or(now)
}

/// The same for what lasts for `term`: what was to end before then has ended. It does not need to be known when it began, and
/// what began after a leap may last longer by that leap.
pub fn expiry_clock(term: Duration) -> Timestamp {
    steady_clock(wall_clock().checked_sub(term).unwrap_or(Timestamp::MIN))
}

#[cfg(not(test))]
static LEAPS: std::sync::Mutex<Leaps> = std::sync::Mutex::new(Leaps::NONE);

/// By how much the wall clock has leapt forward after it showed `from`.
#[cfg(not(test))]
pub fn leapt_since(from: Timestamp) -> Duration {
    let mut leaps = LEAPS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    leaps.read(wall_clock(), Instant::now());
    leaps.since(from)
}

#[cfg(test)]
pub use simulated::{leapt_since, set_wall_clock, wall_clock};

/// How far the wall clock has run ahead of the time that really passed.
#[derive(Debug)]
struct Leaps {
    last: Option<(Timestamp, Instant)>,
    /// What the clock showed after each, and how far it went. Of more than [`Self::MOST`] the two oldest become one.
    seen: VecDeque<(Timestamp, SignedDuration)>,
}

impl Leaps {
    const NONE: Self = Self {
        last: None,
        seen: VecDeque::new(),
    };
    const MOST: usize = 16;
    /// Less is the clock's own business: it is steered, and read a moment apart from the other.
    const LEAST: SignedDuration = SignedDuration::from_secs(2);

    /// It is `wall` now.
    fn read(&mut self, wall: Timestamp, now: Instant) {
        let last = self.last.replace((wall, now));
        let Some((before, then)) = last else { return };
        let passed = SignedDuration::try_from(now.saturating_duration_since(then));
        let leap = wall.duration_since(before) - passed.unwrap_or(SignedDuration::MAX);
        if leap > Self::LEAST {
            self.seen.push_back((wall, leap));
        } else if leap < -Self::LEAST {
            self.take_back(-leap);
        }
        if self.seen.len() > Self::MOST
            && let Some((_, oldest)) = self.seen.pop_front()
            && let Some((_, next)) = self.seen.front_mut()
        {
            *next = next.saturating_add(oldest);
        }
    }

    /// The clock was set back: the latest leaps were mistakes that are mended.
    fn take_back(&mut self, mut back: SignedDuration) {
        while back.is_positive()
            && let Some((_, leap)) = self.seen.back_mut()
        {
            let undone = back.min(*leap);
            *leap -= undone;
            back -= undone;
            if leap.is_zero() {
                self.seen.pop_back();
            }
        }
    }

    fn since(&self, from: Timestamp) -> Duration {
        let later = self.seen.iter().filter(|(after, _)| *after > from);
        let sum = later.fold(SignedDuration::ZERO, |sum, (_, leap)| {
            sum.saturating_add(*leap)
        });
        sum.unsigned_abs()
    }
}

/// In tests a thread can have a wall clock of its own, so that it goes on with paused time.
#[cfg(test)]
mod simulated {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use super::{Instant, Leaps, Timestamp};

    thread_local! {
        static CLOCK: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
        static LEAPS: RefCell<Leaps> = const { RefCell::new(Leaps::NONE) };
    }

    /// It is `now` on this thread, and goes on with tokio's time; `None` gives the real one back. One that is set a second
    /// time leaps.
    pub fn set_wall_clock(now: Option<Timestamp>) {
        CLOCK.set(now.map(|now| (now, Instant::now())));
        match now {
            None => LEAPS.set(Leaps::NONE),
            Some(_) => drop(leapt_since(Timestamp::MAX)),
        }
    }

    /// As the one for production. The real clock does not leap beside time that is paused: it is another time.
    pub fn leapt_since(from: Timestamp) -> Duration {
        if CLOCK.get().is_none() {
            return Duration::ZERO;
        }
        LEAPS.with_borrow_mut(|leaps| {
            leaps.read(wall_clock(), Instant::now());
            leaps.since(from)
        })
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

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a plain time")
    }

    /// A clock that is set an hour ahead ends nothing an hour early, and keeps nothing of what comes afterwards an hour late.
    #[tokio::test(start_paused = true)]
    async fn a_leap_ends_nothing_early() {
        set_wall_clock(Some(second(0)));
        assert_eq!(steady_clock(second(0)), second(0));
        tokio::time::advance(Duration::from_secs(100)).await;
        set_wall_clock(Some(second(3700)));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(wall_clock(), second(3750));
        assert_eq!(steady_clock(second(0)), second(150), "it came before");
        assert_eq!(steady_clock(second(3710)), second(3750), "it came after");
        set_wall_clock(None);
    }

    /// A mistake that is mended leaves nothing behind; a clock that was only set back is as it is, and what it says of the
    /// past is taken as said.
    #[tokio::test(start_paused = true)]
    async fn a_leap_that_is_taken_back_is_none() {
        let year = 365 * 86_400;
        set_wall_clock(Some(second(0)));
        set_wall_clock(Some(second(year)));
        assert_eq!(steady_clock(second(-9)), second(0));
        set_wall_clock(Some(second(60)));
        assert_eq!(steady_clock(second(-9)), second(0), "a minute is left");
        set_wall_clock(Some(second(0)));
        assert_eq!(steady_clock(second(-9)), second(0));
        set_wall_clock(Some(second(-86_400)));
        assert_eq!(steady_clock(second(-9)), second(-86_400));
        set_wall_clock(None);
    }

    /// However often a clock leaps, what is known of it stays small, and nothing ends early for it.
    #[test]
    fn many_leaps_are_few() {
        let (mut leaps, now) = (Leaps::NONE, Instant::now());
        for leap in 0..100 {
            leaps.read(second(leap * 3600), now);
        }
        assert_eq!(leaps.seen.len(), Leaps::MOST);
        assert_eq!(leaps.since(second(0)), Duration::from_secs(99 * 3600));
        assert_eq!(leaps.since(second(98 * 3600)), Duration::from_secs(3600));
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
