//! Deadlines and budgets: the only place in the crate that calls a timeout.
//!
//! Time is an argument. The edge (end of data, a scheduled attempt) makes one absolute [`Deadline`] and hands it down. Code
//! below the edge creates no allowance of its own; it can only shorten the deadline that it got ([`Deadline::within`]). This
//! bounds the sum of all waits of a message (promise P1), for any number of engines, attempts and next hops.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// The time budgets of one message, from the section `[budget]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Time from end of data to the reply. When this time runs out, the relay stores the message, answers 250, and continues
    /// the work in the background. The value must be shorter than the time that sending servers wait for the reply to end of
    /// data: RFC 5321 4.5.3.2.6 asks for ten minutes, but some servers wait only one.
    pub session: Duration,
    /// Time from end of data to a verdict, or to the hold that replaces a verdict, over all scans and waits in one pass.
    pub total: Duration,
    /// Time from end of data during which a message without a verdict is scanned again. After that a reviewer decides.
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

/// The wall clock: for times that people read and for times that a restart must understand. The wall clock may jump. Use a
/// [`Deadline`] where a jump would do harm, and [`steady_clock`] to decide whether a stored time has passed.
#[cfg(not(test))]
pub fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// The wall clock without its leaps forward after `from`. A leap occurs when a person sets the clock or the machine sleeps.
/// With this clock, a term that began at `from` never ends early. Leaps before the start of this process are unknown. A clock
/// that was set back only makes terms longer.
///
/// The process detects a leap only when it reads the clock, so some part must read it regularly ([`crate::pipeline`] does so
/// every minute).
pub fn steady_clock(from: Timestamp) -> Timestamp {
    let now = wall_clock();
    now.checked_sub(leapt_since(from)).unwrap_or(now)
}

/// Like [`steady_clock`], for entries that last for `term` and whose start is unknown: an entry has ended if its end is not
/// after the returned time. An entry that began after a leap may last longer by that leap.
pub fn expiry_clock(term: Duration) -> Timestamp {
    steady_clock(wall_clock().checked_sub(term).unwrap_or(Timestamp::MIN))
}

#[cfg(not(test))]
static LEAPS: std::sync::Mutex<Leaps> = std::sync::Mutex::new(Leaps::NONE);

/// How far the wall clock leapt forward after it showed `from`, in total.
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
    /// For each leap, the time that the clock showed after it, and its length. Beyond [`Self::LEAPS_MAX`], the two oldest
    /// become one, to bound the memory.
    seen: VecDeque<(Timestamp, SignedDuration)>,
}

impl Leaps {
    const NONE: Self = Self {
        last: None,
        seen: VecDeque::new(),
    };
    /// Leaps that are remembered. Leaps are rare (a person sets the clock, the machine sleeps), so 16 are enough.
    const LEAPS_MAX: usize = 16;
    /// Smaller differences are not leaps: a time service adjusts the clock gradually, and the two clocks are read one after
    /// the other.
    const LEAP_MIN: SignedDuration = SignedDuration::from_secs(2);

    /// Compares the two clocks, which show `wall` and `now` at present.
    fn read(&mut self, wall: Timestamp, now: Instant) {
        let last = self.last.replace((wall, now));
        let Some((before, then)) = last else { return };
        let passed = SignedDuration::try_from(now.saturating_duration_since(then));
        let leap = wall.duration_since(before) - passed.unwrap_or(SignedDuration::MAX);
        if leap > Self::LEAP_MIN {
            self.seen.push_back((wall, leap));
        } else if leap < -Self::LEAP_MIN {
            self.take_back(-leap);
        }
        if self.seen.len() > Self::LEAPS_MAX
            && let Some((_, oldest)) = self.seen.pop_front()
            && let Some((_, next)) = self.seen.front_mut()
        {
            *next = next.saturating_add(oldest);
        }
    }

    /// The clock was set back, so the latest leaps were mistakes that are now corrected: removes that much of them.
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

/// In tests, a thread can have a wall clock of its own that follows paused time.
#[cfg(test)]
mod simulated {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use super::{Instant, Leaps, Timestamp};

    thread_local! {
        static CLOCK: Cell<Option<(Timestamp, Instant)>> = const { Cell::new(None) };
        static LEAPS: RefCell<Leaps> = const { RefCell::new(Leaps::NONE) };
    }

    /// Sets the clock of this thread to `now`; from then on the clock follows tokio's time. `None` restores the real clock. A
    /// second call without `None` in between is a leap.
    pub fn set_wall_clock(now: Option<Timestamp>) {
        CLOCK.set(now.map(|now| (now, Instant::now())));
        match now {
            None => LEAPS.set(Leaps::NONE),
            Some(_) => drop(leapt_since(Timestamp::MAX)),
        }
    }

    /// As in production. Without a clock of its own, a thread sees no leaps: the real clock does not follow paused time, so
    /// their difference means nothing.
    pub fn leapt_since(from: Timestamp) -> Duration {
        if CLOCK.get().is_none() {
            return Duration::ZERO;
        }
        LEAPS.with_borrow_mut(|leaps| {
            leaps.read(wall_clock(), Instant::now());
            leaps.since(from)
        })
    }

    /// As in production, or the clock of this thread.
    pub fn wall_clock() -> Timestamp {
        match CLOCK.get() {
            Some((at, since)) => at + since.elapsed(),
            None => Timestamp::now(),
        }
    }
}

/// An absolute instant after which work is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline passed before the work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

impl Deadline {
    /// The instant `allowance` from now.
    pub fn after(allowance: Duration) -> Self {
        let now = Instant::now();
        // An allowance too large for the clock means "never": thirty years are long enough for that.
        Self(
            now.checked_add(allowance)
                .unwrap_or_else(|| now + Duration::from_secs(86_400 * 365 * 30)),
        )
    }

    /// The earlier of this deadline and `allowance` from now: a part can get less time than the whole, never more.
    pub fn within(self, allowance: Duration) -> Self {
        self.min(Self::after(allowance))
    }

    /// The time left; zero after the deadline.
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

    /// The simulated wall clock must follow paused time. Otherwise nothing would ever become due in a simulation.
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

    /// After the clock is set an hour ahead, no earlier term ends an hour early, and no later term ends an hour late.
    #[tokio::test(start_paused = true)]
    async fn a_leap_ends_nothing_early() {
        set_wall_clock(Some(second(0)));
        assert_eq!(steady_clock(second(0)), second(0));
        tokio::time::advance(Duration::from_secs(100)).await;
        set_wall_clock(Some(second(3700)));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(wall_clock(), second(3750));
        assert_eq!(steady_clock(second(0)), second(150), "before the leap");
        assert_eq!(steady_clock(second(3710)), second(3750), "after the leap");
        set_wall_clock(None);
    }

    /// A leap that is corrected leaves no trace. A clock that was only set back is believed.
    #[tokio::test(start_paused = true)]
    async fn a_corrected_leap_leaves_no_trace() {
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

    /// Many leaps use bounded memory, and no term ends early because of them.
    #[test]
    fn many_leaps_use_bounded_memory() {
        let (mut leaps, now) = (Leaps::NONE, Instant::now());
        for leap in 0..100 {
            leaps.read(second(leap * 3600), now);
        }
        assert_eq!(leaps.seen.len(), Leaps::LEAPS_MAX);
        assert_eq!(leaps.since(second(0)), Duration::from_secs(99 * 3600));
        assert_eq!(leaps.since(second(98 * 3600)), Duration::from_secs(3600));
    }

    /// Work whose deadline has passed is not started: the work would take a slot of an engine, and no caller waits for the
    /// answer.
    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_starts_no_work() {
        let deadline = Deadline::after(Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut started = false;
        assert_eq!(deadline.run(async { started = true }).await, Err(Elapsed));
        assert!(!started);
    }
}
