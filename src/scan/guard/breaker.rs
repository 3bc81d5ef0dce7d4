//! The breaker of one replica: a pure state machine. Time is an argument.
//!
//! ```text
//! closed ──failing, stalled, untrusted──▶ open ──a second, or a late answer──▶ half-open ──a probe pair──▶ ramp ──▶ closed
//!                                          ▲ ◀──────────────a probe fails──────────────┘ ◀──fails again──┘
//! ```
//!
//! A replica with an open breaker is probed every second, and at once when a scan from before is answered: the replica must get
//! mail again soon after its recovery. (The numbers here are the defaults of [`GuardSettings`].) Mail comes back in a ramp. The ramp's window is two scans at first and grows by one
//! with each good outcome, so that the window doubles in the time of a scan. A failed trial costs a pause of 1, 2, 4 … 16 s.
//! Scans of a failed trial that the engine never ends stay in the window of the next trial. These scans hold at most a third of
//! the slots.
//!
//! Each signal is blind to something, so there are three. *Failing* counts outcomes: errors, timeouts, and answers too slow for
//! the caller. *Failing* needs outcomes, so it cannot see an engine that takes scans and returns nothing. *Stalled* sees that:
//! the scans under way last longer than the engine's own latencies make likely, and none ends (`gate/stall.rs`). *Untrusted*
//! comes from probes and sees an engine that answers quickly and wrongly (gray failure; Huang et al., HotOS 2017).
//!
//! The breaker does not compare engines, so it works with a single one. Outcomes of a poison message must not count here, or
//! the next copy of that message would fail each half-open trial. The gate therefore leaves out the outcomes of suspected
//! fingerprints (M7; RESILIENCE section 1, "Whose fault is it?").

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;

use super::settings::GuardSettings;
use crate::ablation::{Mechanism, without};
use crate::chance;

/// Buckets of [`GuardSettings::failure_window`], of one second each by default: an outcome leaves the window at most a tenth of
/// it early.
const OUTCOME_BUCKETS: usize = 10;
/// Scans of mail at once when a trial begins after a right probe pair. Two messages at most are risked at first.
const RAMP_WINDOW_INITIAL: usize = 2;
/// Consecutive right probe pairs before mail if failed probes opened the breaker: the next answers decide about mail, so one
/// right pair is too little evidence.
const UNTRUSTED_PROBE_PAIRS_MIN: u32 = 2;
/// Consecutive failed probe pairs (wrong or missing answers) that open the breaker: a single one may be an accident.
const WRONG_PROBES_TO_OPEN: u32 = 2;

/// Why the breaker opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// [`GuardSettings::failure_share`] of the outcomes in the window were failures (by default half in 10 s), or five failures
    /// came and no good outcome.
    Failing,
    /// The scans under way last too long for this engine, and none ends.
    Stalled,
    /// Probes were answered wrongly, or not in time.
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

/// State of the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// All mail passes.
    Closed,
    /// No mail passes.
    Open {
        /// Time of the next probe, or of the next trial with mail if there are no probes.
        until: Instant,
        /// Why the breaker opened.
        cause: Cause,
    },
    /// Only probes pass.
    HalfOpen {
        /// Consecutive probe pairs passed so far.
        passed: u32,
        /// Why the breaker had opened.
        cause: Cause,
    },
    /// A limited number of scans passes. Only scans that began since the trial began count.
    Ramp {
        /// Scans at once.
        allowed: usize,
        /// Why the breaker had opened.
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
    /// No mail passes any more.
    Opened(Cause),
    /// Probes pass from now on.
    Probing,
    /// A part of the mail passes again.
    Readmitting,
    /// All mail passes again.
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Number of the bucket's second since the breaker was made; it tells an old bucket from a current one.
    at: u64,
    good: u32,
    bad: u32,
}

/// The breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    began: Instant,
    state: BreakerState,
    buckets: [Bucket; OUTCOME_BUCKETS],
    failed_in_a_row: u32,
    wrong_in_a_row: u32,
    /// Due time of the probe pair for which the breaker became half-open.
    asked: Instant,
    /// [`Change::Probing`] has been reported since the breaker opened.
    is_reported: bool,
    /// Start of the first trial with mail whose scans may still run.
    trial_began: Option<Instant>,
    /// Pause after the next failed trial.
    trial_pause: Duration,
    slots: usize,
    settings: GuardSettings,
    /// The engine has probes. Without probes the trial begins with a ramp of one message.
    probed: bool,
}

impl Breaker {
    /// A closed breaker for a replica with `slots` slots; `probed` tells whether the engine has probes.
    pub fn new(now: Instant, slots: usize, settings: GuardSettings, probed: bool) -> Self {
        Self {
            began: now,
            state: BreakerState::Closed,
            buckets: [Bucket::default(); OUTCOME_BUCKETS],
            failed_in_a_row: 0,
            wrong_in_a_row: 0,
            asked: now,
            is_reported: false,
            trial_began: None,
            trial_pause: settings.open_first,
            slots,
            settings,
            probed,
        }
    }

    /// Puts the number of slots and the settings of a reload in force. Another length of the window ends the counts, because
    /// their buckets have the old length.
    pub fn retune(&mut self, now: Instant, slots: usize, settings: GuardSettings) {
        self.slots = slots;
        if self.settings == settings {
            return;
        }
        if self.settings.failure_window != settings.failure_window {
            self.buckets = [Bucket::default(); OUTCOME_BUCKETS];
        }
        self.settings = settings;
        self.trial_pause = match self.state {
            BreakerState::Closed => settings.open_first,
            _ => self
                .trial_pause
                .min(settings.open_max)
                .max(settings.open_first),
        };
        if let BreakerState::Open { until, .. } = &mut self.state {
            *until = (*until).min(now + settings.open_max);
        }
    }

    /// The current state.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Maximum number of scans of mail at once; in a ramp, of scans that began in the trial.
    pub fn allowed(&self) -> usize {
        match self.state {
            _ if without(Mechanism::Breaker) => self.slots,
            BreakerState::Closed => self.slots,
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. } => 0,
            BreakerState::Ramp { allowed, .. } => allowed.min(self.slots),
        }
    }

    /// In a ramp, the instant since which started scans count against the window.
    pub fn ramp_began(&self) -> Option<Instant> {
        let ramps = matches!(self.state, BreakerState::Ramp { .. });
        self.trial_began.filter(|_| ramps)
    }

    /// Start of the first trial with mail whose scans may still run; none if the breaker is closed and no trial is open.
    pub fn tried_since(&self) -> Option<Instant> {
        self.trial_began
    }

    /// Whether the last outcome was a failure. A right probe pair resets this.
    pub fn failed_last(&self) -> bool {
        self.failed_in_a_row > 0
    }

    /// Good and bad outcomes in the window, as evidence.
    pub fn counts(&self, now: Instant) -> (u32, u32) {
        let current = self.bucket(now);
        let recent = |b: &&Bucket| b.at + OUTCOME_BUCKETS as u64 > current;
        self.buckets
            .iter()
            .filter(recent)
            .fold((0, 0), |(good, bad), b| (good + b.good, bad + b.bad))
    }

    /// A scan has ended or passed its timeout. A scan that counted at its timeout must not be reported again when it ends.
    pub fn outcome(&mut self, now: Instant, good: bool) -> Option<Change> {
        let at = self.bucket(now);
        let bucket = &mut self.buckets[at as usize % OUTCOME_BUCKETS];
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
                let (all, settings) = (good + bad, &self.settings);
                let failing = all >= settings.failure_outcomes
                    && f64::from(bad) >= settings.failure_share * f64::from(all);
                let only_failures = self.failed_in_a_row >= settings.failures_in_a_row && good == 0;
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

    /// The gate has found that the replica has stalled (`gate/stall.rs`).
    pub fn stalled(&mut self, now: Instant) -> Option<Change> {
        match self.state {
            BreakerState::Closed => Some(self.open(now, Cause::Stalled)),
            BreakerState::Ramp { cause, .. } => Some(self.open(now, cause)),
            _ => None,
        }
    }

    /// A scan from before the breaker opened, or from a failed trial, was answered, or a person's test has passed. The cause may
    /// be gone, so the next probe is due at once.
    pub fn answered(&mut self, now: Instant) {
        if let BreakerState::Open { until, .. } = &mut self.state {
            *until = now;
            self.trial_pause = self.settings.open_first;
        }
    }

    /// A probe pair, routine or not, has ended; `passed` tells whether both answers were right and in time. `unended` is the
    /// number of scans of earlier trials that have not ended.
    pub fn probed(&mut self, now: Instant, passed: bool, unended: usize) -> Option<Change> {
        self.wrong_in_a_row = match passed {
            true => 0,
            false => self.wrong_in_a_row + 1,
        };
        if passed {
            // The engine works on the probes, so the messages themselves caused the consecutive failures.
            self.failed_in_a_row = 0;
        }
        match (self.state, passed) {
            (BreakerState::HalfOpen { passed: n, cause }, true) => {
                let needed = match cause {
                    Cause::Untrusted => UNTRUSTED_PROBE_PAIRS_MIN,
                    Cause::Failing | Cause::Stalled => 1,
                };
                if n + 1 < needed {
                    let passed = n + 1;
                    self.state = BreakerState::HalfOpen { passed, cause };
                    return None;
                }
                self.try_mail(now, cause, RAMP_WINDOW_INITIAL, unended)
            }
            (BreakerState::HalfOpen { cause, .. }, false) => {
                // The engine is out as before, so no change is reported.
                self.probe_later(now, cause);
                None
            }
            (BreakerState::Closed | BreakerState::Ramp { .. }, false)
                if self.wrong_in_a_row >= WRONG_PROBES_TO_OPEN =>
            {
                Some(self.open(now, Cause::Untrusted))
            }
            _ => None,
        }
    }

    /// Advances the time. `unended` is the number of scans of earlier trials that have not ended.
    pub fn tick(&mut self, now: Instant, unended: usize) -> Option<Change> {
        match self.state {
            BreakerState::Open { until, cause } if now >= until => {
                self.asked = now;
                self.buckets = [Bucket::default(); OUTCOME_BUCKETS];
                self.failed_in_a_row = 0;
                if !self.probed {
                    return self.try_mail(now, cause, 1, unended);
                }
                self.state = BreakerState::HalfOpen { passed: 0, cause };
                let first = !std::mem::replace(&mut self.is_reported, true);
                first.then_some(Change::Probing)
            }
            _ => None,
        }
    }

    /// Begins a trial with mail, unless too many scans of earlier trials have not ended.
    fn try_mail(
        &mut self,
        now: Instant,
        cause: Cause,
        window: usize,
        unended: usize,
    ) -> Option<Change> {
        if unended >= (self.slots / 3).max(RAMP_WINDOW_INITIAL) {
            self.probe_later(now, cause);
            return None;
        }
        let allowed = match unended {
            0 => {
                self.trial_began = Some(now);
                window
            }
            _ => unended + 1,
        };
        let allowed = allowed.min(self.slots);
        self.state = BreakerState::Ramp { allowed, cause };
        Some(Change::Readmitting)
    }

    fn probe_later(&mut self, now: Instant, cause: Cause) {
        let until = now.max(self.asked + jittered(self.settings.open_first));
        self.state = BreakerState::Open { until, cause };
    }

    fn open(&mut self, now: Instant, cause: Cause) -> Change {
        let pause = match self.state {
            BreakerState::Ramp { .. } => {
                let pause = self.trial_pause;
                self.trial_pause = (2 * pause).min(self.settings.open_max);
                pause
            }
            _ => self.settings.open_first,
        };
        self.wrong_in_a_row = 0;
        self.is_reported = false;
        let until = now + jittered(pause);
        self.state = BreakerState::Open { until, cause };
        Change::Opened(cause)
    }

    fn close(&mut self) -> Change {
        self.state = BreakerState::Closed;
        self.trial_began = None;
        self.trial_pause = self.settings.open_first;
        Change::Closed
    }

    fn bucket(&self, now: Instant) -> u64 {
        let window = self.settings.failure_window.as_millis() as u64;
        let width = (window / OUTCOME_BUCKETS as u64).max(1);
        // Numbers start at 1: number 0 marks a bucket that was never written, whose counts are 0.
        now.saturating_duration_since(self.began).as_millis() as u64 / width + 1
    }
}

/// A pause with a jitter of 20 %, so that relays that lost an engine together do not probe it together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * chance::rng().random::<f64>())
}

#[cfg(test)]
mod tests;
