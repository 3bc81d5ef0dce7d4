//! The breaker of one replica: a pure state machine. Time is an argument.
//!
//! ```text
//! closed ──failing, stalled, untrusted──▶ open ──its time is over──▶ half-open ──2 probe pairs──▶ ramp ──▶ closed
//!    ▲                                     ▲ ◀───────────a probe fails───────────┘ ◀──fails again──┘
//! ```
//!
//! Two signals, because either alone is blind. *Failing* counts what came back: errors, and answers so slow that they
//! are failures for whoever waits. It needs answers to count, so it cannot see an engine that takes work and returns
//! nothing; that is *stalled*: all slots taken, mail waiting, and no scan ended for a while. A third signal, *untrusted*,
//! comes from probes: an engine that answers quickly and wrongly (gray failure; Huang et al., HotOS 2017).
//!
//! Nothing here compares an engine with others, so it works where there is only one. What a poison message does to an
//! engine must not count here (RESILIENCE M7), or each half-open trial would be lost to the next copy of it: the gate
//! leaves out the outcomes of fingerprints that are at fault.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use crate::ablation::{Mechanism, without};
use crate::chance;

/// Outcomes are counted over this window, in [`BUCKETS`].
const WINDOW: Duration = Duration::from_secs(10);
const BUCKETS: usize = 10;
/// Outcomes in the window below which a share means nothing.
const ENOUGH: u32 = 20;
/// Failures in a row that are enough by themselves where there is little mail, all on different content.
const IN_A_ROW: u32 = 5;
/// The first time that it stays open; doubled up to [`DOUBLED`] times.
const OPEN: Duration = Duration::from_secs(5);
const DOUBLED: u32 = 4;
/// After so long closed, the next opening counts as the first again.
const FORGIVEN: Duration = Duration::from_secs(60);
/// Probe pairs that must be answered rightly, in a row, before any mail.
const PAIRS: u32 = 2;
/// Wrong routine probes in a row that open it: one may be bad luck.
const WRONG: u32 = 2;

/// Why it opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Half of its outcomes or more were failures.
    Failing,
    /// All slots taken, mail waiting, nothing ends.
    Stalled,
    /// Probes were answered wrongly, or not at all.
    Untrusted,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failing => "failing",
            Self::Stalled => "stalled",
            Self::Untrusted => "failing its probes",
        })
    }
}

/// What it lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything.
    Closed,
    /// Nothing, until then.
    Open {
        /// When probes begin.
        until: Instant,
        /// Why.
        cause: Cause,
    },
    /// Probes only.
    HalfOpen {
        /// Pairs passed so far.
        passed: u32,
        /// Why it had opened.
        cause: Cause,
    },
    /// So many scans at once: slow re-admission.
    Ramp {
        /// Of its slots.
        allowed: usize,
        /// Why it had opened.
        cause: Cause,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Open { cause, .. } => write!(f, "open ({cause})"),
            Self::HalfOpen { .. } => f.write_str("half-open"),
            Self::Ramp { allowed, .. } => write!(f, "ramp ({allowed} at once)"),
        }
    }
}

/// A change of state, for the incident log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// No mail any more.
    Opened(Cause),
    /// Probes from now on.
    Probing,
    /// A part of the mail again.
    Readmitting,
    /// All of it.
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Number of the bucket's time since the breaker was made; tells an old one from a current one.
    at: u64,
    good: u32,
    bad: u32,
}

/// The breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    began: Instant,
    state: State,
    buckets: [Bucket; BUCKETS],
    failed_in_a_row: u32,
    wrong_in_a_row: u32,
    /// Openings since it was last forgiven.
    openings: u32,
    closed_since: Instant,
    slots: usize,
    /// Where there is nothing to probe with, mail itself is the trial: it begins with a ramp of one.
    probed: bool,
}

impl Breaker {
    /// A closed breaker before so many slots; `probed` tells whether there are probes to find out with.
    pub fn new(now: Instant, slots: usize, probed: bool) -> Self {
        Self {
            began: now,
            state: State::Closed,
            buckets: [Bucket::default(); BUCKETS],
            failed_in_a_row: 0,
            wrong_in_a_row: 0,
            openings: 0,
            closed_since: now,
            slots,
            probed,
        }
    }

    /// It stands before so many slots now.
    pub fn resize(&mut self, slots: usize) {
        self.slots = slots;
    }

    /// What it lets through now.
    pub fn state(&self) -> State {
        self.state
    }

    /// Scans of mail that may run at once.
    pub fn allowed(&self) -> usize {
        match self.state {
            _ if without(Mechanism::Breaker) => self.slots,
            State::Closed => self.slots,
            State::Open { .. } | State::HalfOpen { .. } => 0,
            State::Ramp { allowed, .. } => allowed.min(self.slots),
        }
    }

    /// Whether nothing has ended well since something failed.
    pub fn failed_last(&self) -> bool {
        self.failed_in_a_row > 0
    }

    /// Good and bad outcomes in the window: the evidence.
    pub fn counts(&self, now: Instant) -> (u32, u32) {
        let current = self.bucket(now);
        let recent = |b: &&Bucket| b.at + BUCKETS as u64 > current;
        self.buckets
            .iter()
            .filter(recent)
            .fold((0, 0), |(good, bad), b| (good + b.good, bad + b.bad))
    }

    /// A scan ended, or was given up. Late ends of scans that were counted when they were given up do not come here.
    pub fn outcome(&mut self, now: Instant, good: bool) -> Option<Change> {
        let at = self.bucket(now);
        let bucket = &mut self.buckets[at as usize % BUCKETS];
        if bucket.at != at {
            *bucket = Bucket {
                at,
                ..Bucket::default()
            };
        }
        if good {
            bucket.good += 1;
            self.failed_in_a_row = 0;
        } else {
            bucket.bad += 1;
            self.failed_in_a_row += 1;
        }
        match self.state {
            State::Closed if !good => {
                let (good, bad) = self.counts(now);
                let failing = good + bad >= ENOUGH && bad >= good;
                let only_failures = self.failed_in_a_row >= IN_A_ROW && good == 0;
                (failing || only_failures).then(|| self.open(now, Cause::Failing))
            }
            State::Ramp { cause, .. } if !good => Some(self.open(now, cause)),
            State::Ramp { allowed, cause } => {
                let allowed = allowed + 1;
                self.state = State::Ramp { allowed, cause };
                (allowed >= self.slots).then(|| self.close(now))
            }
            _ => None,
        }
    }

    /// All slots are taken, mail waits, and nothing has ended for a while.
    pub fn stalled(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Closed => Some(self.open(now, Cause::Stalled)),
            State::Ramp { cause, .. } => Some(self.open(now, cause)),
            _ => None,
        }
    }

    /// A probe pair was answered: rightly and in time, or not. Routine pairs count too.
    pub fn probed(&mut self, now: Instant, passed: bool) -> Option<Change> {
        self.wrong_in_a_row = match passed {
            true => 0,
            false => self.wrong_in_a_row + 1,
        };
        if passed {
            // It is well with others: whatever failed in a row did so by itself.
            self.failed_in_a_row = 0;
        }
        match (self.state, passed) {
            (State::HalfOpen { passed: n, cause }, true) if n + 1 >= PAIRS => {
                self.state = State::Ramp {
                    allowed: (self.slots / 6).max(2).min(self.slots),
                    cause,
                };
                Some(Change::Readmitting)
            }
            (State::HalfOpen { passed: n, cause }, true) => {
                let passed = n + 1;
                self.state = State::HalfOpen { passed, cause };
                None
            }
            (State::HalfOpen { cause, .. }, false) => {
                self.open(now, cause);
                // Still out, as before: that is no news.
                None
            }
            (State::Closed | State::Ramp { .. }, false) if self.wrong_in_a_row >= WRONG => {
                Some(self.open(now, Cause::Untrusted))
            }
            _ => None,
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            State::Open { until, cause } if now >= until => {
                self.buckets = [Bucket::default(); BUCKETS];
                self.failed_in_a_row = 0;
                if self.probed {
                    self.state = State::HalfOpen { passed: 0, cause };
                    Some(Change::Probing)
                } else {
                    self.state = State::Ramp { allowed: 1, cause };
                    Some(Change::Readmitting)
                }
            }
            State::Closed if now >= self.closed_since + FORGIVEN => {
                self.openings = 0;
                None
            }
            _ => None,
        }
    }

    fn open(&mut self, now: Instant, cause: Cause) -> Change {
        let longer = OPEN.saturating_mul(1 << self.openings.min(DOUBLED));
        // Relays that lost an engine together must not come back to it together.
        let jitter = 0.8 + 0.4 * chance::rng().random::<f64>();
        self.openings += 1;
        self.wrong_in_a_row = 0;
        self.state = State::Open {
            until: now + longer.mul_f64(jitter),
            cause,
        };
        Change::Opened(cause)
    }

    fn close(&mut self, now: Instant) -> Change {
        self.state = State::Closed;
        self.closed_since = now;
        Change::Closed
    }

    fn bucket(&self, now: Instant) -> u64 {
        let width = WINDOW.as_millis() as u64 / BUCKETS as u64;
        // The first is number 1, so that an untouched bucket (0) never looks current for long.
        now.saturating_duration_since(self.began).as_millis() as u64 / width + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn opened(breaker: &mut Breaker, now: Instant) -> bool {
        matches!(breaker.stalled(now), Some(Change::Opened(_)))
    }

    /// Half of at least twenty outcomes must be failures: below that it is noise.
    #[tokio::test(start_paused = true)]
    async fn a_share_of_failures_opens_it_and_a_few_do_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        for _ in 0..10 {
            assert_eq!(breaker.outcome(now, true), None);
        }
        for _ in 0..9 {
            assert_eq!(breaker.outcome(now, false), None);
        }
        let last = breaker.outcome(now, false);
        assert_eq!(last, Some(Change::Opened(Cause::Failing)));
        assert_eq!(breaker.allowed(), 0);
    }

    /// Old failures are forgotten with the window: they say nothing about now.
    #[tokio::test(start_paused = true)]
    async fn old_outcomes_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        for _ in 0..19 {
            breaker.outcome(now, true);
            breaker.outcome(now, false);
        }
        let later = now + seconds(11);
        assert_eq!(breaker.counts(later), (0, 0));
        assert_eq!(breaker.outcome(later, false), None);
    }

    /// Where there is little mail nobody waits for twenty outcomes.
    #[tokio::test(start_paused = true)]
    async fn nothing_but_failures_opens_it_soon() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        let changes: Vec<_> = (0..5).map(|_| breaker.outcome(now, false)).collect();
        assert_eq!(changes[..4], [None; 4]);
        assert_eq!(changes[4], Some(Change::Opened(Cause::Failing)));
    }

    /// I11: it never closes without two probe pairs that were answered rightly, in a row.
    #[tokio::test(start_paused = true)]
    async fn no_mail_before_two_passed_probe_pairs() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        assert!(opened(&mut breaker, now));
        assert_eq!(breaker.probed(now, true), None, "not asked for yet");
        now += seconds(7);
        assert_eq!(breaker.tick(now), Some(Change::Probing));
        assert_eq!(breaker.probed(now, true), None);
        assert_eq!(breaker.allowed(), 0);
        assert_eq!(breaker.probed(now, true), Some(Change::Readmitting));
        assert_eq!(breaker.allowed(), 2, "a sixth of its slots");
        for _ in 0..9 {
            assert_eq!(breaker.outcome(now, true), None);
        }
        assert_eq!(breaker.outcome(now, true), Some(Change::Closed));
        assert_eq!(breaker.allowed(), 12);
    }

    /// Each failed trial doubles the wait, to a limit; a calm minute makes up for all of it.
    #[tokio::test(start_paused = true)]
    async fn it_stays_open_longer_each_time() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        assert!(opened(&mut breaker, now));
        for longest in [6.0, 12.0, 24.0, 48.0, 96.0, 96.0] {
            let State::Open { until, .. } = breaker.state() else {
                panic!("open");
            };
            let wait = (until - now).as_secs_f64();
            assert!(
                wait <= longest && wait >= longest * 0.66,
                "{wait} {longest}"
            );
            now = until;
            breaker.tick(now);
            assert_eq!(breaker.probed(now, false), None);
        }
        breaker.state = State::Closed;
        breaker.closed_since = now;
        now += FORGIVEN;
        breaker.tick(now);
        assert_eq!(breaker.openings, 0);
    }

    /// One failure while it is let in again slowly, and it is out again.
    #[tokio::test(start_paused = true)]
    async fn a_failure_in_the_ramp_opens_it_again() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, false);
        assert!(opened(&mut breaker, now));
        now += seconds(7);
        assert_eq!(breaker.tick(now), Some(Change::Readmitting), "no probes");
        assert_eq!(breaker.allowed(), 1);
        let again = breaker.outcome(now, false);
        assert_eq!(again, Some(Change::Opened(Cause::Stalled)));
    }

    /// An engine that answers quickly and wrongly is taken out on the second wrong answer in a row.
    #[tokio::test(start_paused = true)]
    async fn two_wrong_probes_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        assert_eq!(breaker.probed(now, false), None);
        assert_eq!(breaker.probed(now, true), None);
        assert_eq!(breaker.probed(now, false), None);
        let second = breaker.probed(now, false);
        assert_eq!(second, Some(Change::Opened(Cause::Untrusted)));
    }
}
