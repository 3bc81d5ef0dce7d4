//! The breaker of one replica: a pure state machine. Time is an argument.
//!
//! ```text
//! closed ──failing, stalled, untrusted──▶ open ──a second, or a late answer──▶ half-open ──a probe pair──▶ ramp ──▶ closed
//!                                          ▲ ◀──────────────a probe fails──────────────┘ ◀──fails again──┘
//! ```
//!
//! While it is out a replica is probed every second, and at once when it answers something: what it lost it must not lose longer
//! than it is out. Mail comes back in a ramp: a window of two scans, and one more for each that ends well, so that it doubles in
//! the time of a scan. A trial that fails costs a pause of 1, 2, 4 … 16 s; scans of it that the engine never ends stay in the
//! window of the next one, and at most a third of the slots are risked so.
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
/// Between the begins of two probe pairs while it is out: an engine that is back should not wait longer than mail does for a
/// slot, and a pair a second costs nothing that is noticed.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// Pause after the first trial with mail that failed, and after any: doubled in between. Each may cost two messages a second pass.
const TRIAL_PAUSE: Duration = Duration::from_secs(1);
const TRIAL_PAUSE_MOST: Duration = Duration::from_secs(16);
/// Scans of mail at once in the first trial, where probes have shown that it works.
const FIRST_WINDOW: usize = 2;
/// Probe pairs that must be answered rightly, in a row, before any mail, by a replica that has answered wrongly: what it says
/// next is used.
const PAIRS_AFTER_LIES: u32 = 2;
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
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing, until then.
    Open {
        /// When it is probed next.
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
    /// So many scans at once of those begun since it is tried again.
    Ramp {
        /// Of its slots.
        allowed: usize,
        /// Why it had opened.
        cause: Cause,
    },
}

impl fmt::Display for BreakerState {
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
    state: BreakerState,
    buckets: [Bucket; BUCKETS],
    failed_in_a_row: u32,
    wrong_in_a_row: u32,
    /// When the probe pair was due that it is half-open for.
    asked: Instant,
    /// That it is probed has been told since it opened.
    told: bool,
    /// When the first trial with mail began of which scans may still run.
    trial_began: Option<Instant>,
    /// Pause after the next trial that fails.
    trial_pause: Duration,
    slots: usize,
    /// Where there is nothing to probe with, mail itself is the trial: it begins with a ramp of one.
    probed: bool,
}

impl Breaker {
    /// A closed breaker before so many slots; `probed` tells whether there are probes to find out with.
    pub fn new(now: Instant, slots: usize, probed: bool) -> Self {
        Self {
            began: now,
            state: BreakerState::Closed,
            buckets: [Bucket::default(); BUCKETS],
            failed_in_a_row: 0,
            wrong_in_a_row: 0,
            asked: now,
            told: false,
            trial_began: None,
            trial_pause: TRIAL_PAUSE,
            slots,
            probed,
        }
    }

    /// It stands before so many slots now.
    pub fn resize(&mut self, slots: usize) {
        self.slots = slots;
    }

    /// What it lets through now.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Scans of mail that may run at once.
    pub fn allowed(&self) -> usize {
        match self.state {
            _ if without(Mechanism::Breaker) => self.slots,
            BreakerState::Closed => self.slots,
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. } => 0,
            BreakerState::Ramp { allowed, .. } => allowed.min(self.slots),
        }
    }

    /// In a ramp, since when scans count against its window.
    pub fn ramp_began(&self) -> Option<Instant> {
        let ramps = matches!(self.state, BreakerState::Ramp { .. });
        self.trial_began.filter(|_| ramps)
    }

    /// Since when mail has been tried while it was out, if it was.
    pub fn tried_since(&self) -> Option<Instant> {
        self.trial_began
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
            BreakerState::Closed if !good => {
                let (good, bad) = self.counts(now);
                let failing = good + bad >= ENOUGH && bad >= good;
                let only_failures = self.failed_in_a_row >= IN_A_ROW && good == 0;
                (failing || only_failures).then(|| self.open(now, Cause::Failing))
            }
            BreakerState::Ramp { cause, .. } if !good => Some(self.open(now, cause)),
            BreakerState::Ramp { allowed, cause } => {
                let allowed = allowed + 1;
                self.state = BreakerState::Ramp { allowed, cause };
                (allowed >= self.slots).then(|| self.close())
            }
            _ => None,
        }
    }

    /// All slots are taken, mail waits, and nothing has ended for a while.
    pub fn stalled(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            BreakerState::Closed => Some(self.open(now, Cause::Stalled)),
            BreakerState::Ramp { cause, .. } => Some(self.open(now, cause)),
            _ => None,
        }
    }

    /// A scan was answered that was begun before it opened, or in a trial that failed: whatever was wrong may be over, and a
    /// probe tells.
    pub fn answered(&mut self, now: Instant) {
        if let BreakerState::Open { until, .. } = &mut self.state {
            *until = now;
            self.trial_pause = TRIAL_PAUSE;
        }
    }

    /// A probe pair was answered: rightly and in time, or not. Routine pairs count too. `stuck` are scans of earlier trials that
    /// have not ended.
    pub fn probed(&mut self, now: Instant, passed: bool, stuck: usize) -> Option<Change> {
        self.wrong_in_a_row = match passed {
            true => 0,
            false => self.wrong_in_a_row + 1,
        };
        if passed {
            // It is well with others: whatever failed in a row did so by itself.
            self.failed_in_a_row = 0;
        }
        match (self.state, passed) {
            (BreakerState::HalfOpen { passed: n, cause }, true) => {
                let needed = match cause {
                    Cause::Untrusted => PAIRS_AFTER_LIES,
                    Cause::Failing | Cause::Stalled => 1,
                };
                if n + 1 < needed {
                    let passed = n + 1;
                    self.state = BreakerState::HalfOpen { passed, cause };
                    return None;
                }
                self.try_mail(now, cause, FIRST_WINDOW, stuck)
            }
            (BreakerState::HalfOpen { cause, .. }, false) => {
                // Still out, as before: that is no news.
                self.probe_later(now, cause);
                None
            }
            (BreakerState::Closed | BreakerState::Ramp { .. }, false)
                if self.wrong_in_a_row >= WRONG =>
            {
                Some(self.open(now, Cause::Untrusted))
            }
            _ => None,
        }
    }

    /// Lets time pass. `stuck` are scans of earlier trials that have not ended.
    pub fn tick(&mut self, now: Instant, stuck: usize) -> Option<Change> {
        match self.state {
            BreakerState::Open { until, cause } if now >= until => {
                self.asked = now;
                self.buckets = [Bucket::default(); BUCKETS];
                self.failed_in_a_row = 0;
                if !self.probed {
                    return self.try_mail(now, cause, 1, stuck);
                }
                self.state = BreakerState::HalfOpen { passed: 0, cause };
                let first = !std::mem::replace(&mut self.told, true);
                first.then_some(Change::Probing)
            }
            _ => None,
        }
    }

    /// Begins a trial with mail, unless too many scans of earlier ones are stuck.
    fn try_mail(
        &mut self,
        now: Instant,
        cause: Cause,
        window: usize,
        stuck: usize,
    ) -> Option<Change> {
        if stuck >= (self.slots / 3).max(FIRST_WINDOW) {
            self.probe_later(now, cause);
            return None;
        }
        let allowed = match stuck {
            0 => {
                self.trial_began = Some(now);
                window
            }
            _ => stuck + 1,
        };
        let allowed = allowed.min(self.slots);
        self.state = BreakerState::Ramp { allowed, cause };
        Some(Change::Readmitting)
    }

    fn probe_later(&mut self, now: Instant, cause: Cause) {
        let until = now.max(self.asked + jittered(PROBE_PERIOD));
        self.state = BreakerState::Open { until, cause };
    }

    fn open(&mut self, now: Instant, cause: Cause) -> Change {
        let pause = match self.state {
            BreakerState::Ramp { .. } => {
                let pause = self.trial_pause;
                self.trial_pause = (2 * pause).min(TRIAL_PAUSE_MOST);
                pause
            }
            _ => PROBE_PERIOD,
        };
        self.wrong_in_a_row = 0;
        self.told = false;
        let until = now + jittered(pause);
        self.state = BreakerState::Open { until, cause };
        Change::Opened(cause)
    }

    fn close(&mut self) -> Change {
        self.state = BreakerState::Closed;
        self.trial_began = None;
        self.trial_pause = TRIAL_PAUSE;
        Change::Closed
    }

    fn bucket(&self, now: Instant) -> u64 {
        let width = WINDOW.as_millis() as u64 / BUCKETS as u64;
        // The first is number 1, so that an untouched bucket (0) never looks current for long.
        now.saturating_duration_since(self.began).as_millis() as u64 / width + 1
    }
}

/// Relays that lost an engine together must not come back to it together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * chance::rng().random::<f64>())
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

    /// I11: no mail before a probe pair that was answered rightly; two in a row where it had answered wrongly.
    #[tokio::test(start_paused = true)]
    async fn no_mail_before_a_passed_probe_pair() {
        for (lied, pairs) in [(false, 1), (true, 2)] {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(now, 12, true);
            match lied {
                true => drop((breaker.probed(now, false, 0), breaker.probed(now, false, 0))),
                false => assert!(opened(&mut breaker, now)),
            }
            assert_eq!(breaker.probed(now, true, 0), None, "not asked for yet");
            now += seconds(2);
            assert_eq!(breaker.tick(now, 0), Some(Change::Probing));
            for _ in 1..pairs {
                assert_eq!(breaker.probed(now, true, 0), None);
                assert_eq!(breaker.allowed(), 0);
            }
            let readmitted = breaker.probed(now, true, 0);
            assert_eq!(readmitted, Some(Change::Readmitting));
            assert_eq!(breaker.allowed(), FIRST_WINDOW);
            for _ in 0..9 {
                assert_eq!(breaker.outcome(now, true), None);
            }
            assert_eq!(breaker.outcome(now, true), Some(Change::Closed));
            assert_eq!(breaker.allowed(), 12);
        }
    }

    /// Law 5: while it is out it is probed every second, however long it is out, and at once when it answers something; people
    /// are told once.
    #[tokio::test(start_paused = true)]
    async fn it_is_probed_every_second_and_at_once_when_it_answers() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        assert!(opened(&mut breaker, now));
        let mut waits = Vec::new();
        for probe in 0..100 {
            let BreakerState::Open { until, .. } = breaker.state() else {
                panic!("open");
            };
            let wait = (until - now).as_secs_f64();
            assert!((0.79..1.21).contains(&wait), "{wait}");
            waits.push(wait);
            now = until;
            let told = (probe == 0).then_some(Change::Probing);
            assert_eq!(breaker.tick(now, 0), told);
            assert_eq!(breaker.probed(now, false, 0), None);
        }
        let differ = waits.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(differ > 90, "not all relays at once: {waits:?}");
        breaker.answered(now);
        breaker.tick(now, 0);
        assert!(matches!(breaker.state(), BreakerState::HalfOpen { .. }));
        // A probe that took longer than a second is followed by the next one at once.
        now += seconds(3);
        breaker.probed(now, false, 0);
        breaker.tick(now, 0);
        assert!(matches!(breaker.state(), BreakerState::HalfOpen { .. }));
    }

    /// Law 5: a trial that fails costs a pause, longer each time and no longer than 16 s; what of it is stuck stays in the
    /// window of the next, and a third of the slots is risked at most.
    #[tokio::test(start_paused = true)]
    async fn a_failed_trial_costs_a_pause() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        assert!(opened(&mut breaker, now));
        for (stuck, (allowed, pause)) in [(2, 1.0), (3, 2.0), (4, 4.0)].into_iter().enumerate() {
            let BreakerState::Open { until, .. } = breaker.state() else {
                panic!("open");
            };
            now = until;
            breaker.tick(now, stuck);
            let stuck = if stuck == 0 { 0 } else { stuck + 1 };
            assert_eq!(breaker.probed(now, true, stuck), Some(Change::Readmitting));
            assert_eq!(breaker.allowed(), allowed);
            assert!(breaker.ramp_began().is_some());
            assert!(opened(&mut breaker, now));
            let BreakerState::Open { until, .. } = breaker.state() else {
                panic!("open");
            };
            let wait = (until - now).as_secs_f64() / pause;
            assert!((0.79..1.21).contains(&wait), "{wait} of {pause}");
        }
        now += seconds(5);
        breaker.tick(now, 4);
        assert_eq!(breaker.probed(now, true, 4), None, "a third is stuck");
        assert!(matches!(breaker.state(), BreakerState::Open { .. }));
        now += seconds(2);
        breaker.tick(now, 0);
        let readmitted = breaker.probed(now, true, 0);
        assert_eq!(readmitted, Some(Change::Readmitting), "all have ended");
        assert_eq!(breaker.allowed(), FIRST_WINDOW);
    }

    /// What it did before it was out says nothing about what it does since: neither do its failures open it again, nor is it
    /// passed over for another replica, or what would show that it works would never come to it.
    #[tokio::test(start_paused = true)]
    async fn what_came_before_it_was_out_is_forgotten() {
        for probed in [true, false] {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(now, 4, probed);
            for _ in 0..ENOUGH {
                breaker.outcome(now, false);
            }
            assert!(matches!(breaker.state(), BreakerState::Open { .. }));
            now += seconds(2);
            breaker.tick(now, 0);
            assert_eq!(breaker.counts(now), (0, 0));
            assert!(!breaker.failed_last());
            if probed {
                breaker.probed(now, true, 0);
            }
            while breaker.outcome(now, true) != Some(Change::Closed) {}
            assert_eq!(breaker.outcome(now, false), None, "one of few");
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
    }

    /// One failure while it is let in again slowly, and it is out again.
    #[tokio::test(start_paused = true)]
    async fn a_failure_in_the_ramp_opens_it_again() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now, 12, false);
        assert!(opened(&mut breaker, now));
        now += seconds(2);
        assert_eq!(breaker.tick(now, 0), Some(Change::Readmitting), "no probes");
        assert_eq!(breaker.allowed(), 1);
        let again = breaker.outcome(now, false);
        assert_eq!(again, Some(Change::Opened(Cause::Stalled)));
    }

    /// An engine that answers quickly and wrongly is taken out on the second wrong answer in a row.
    #[tokio::test(start_paused = true)]
    async fn two_wrong_probes_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now, 12, true);
        assert_eq!(breaker.probed(now, false, 0), None);
        assert_eq!(breaker.probed(now, true, 0), None);
        assert_eq!(breaker.probed(now, false, 0), None);
        let second = breaker.probed(now, false, 0);
        assert_eq!(second, Some(Change::Opened(Cause::Untrusted)));
    }
}
