//! The probes of a dead hop, and the waits between them. A probe is a stored message, sent alone.

use std::time::Duration;

use rand::{Rng, RngExt as _};
use tokio::time::Instant;

use super::{PaceChange, RefusalReason};

/// Wait before the first probe of a dead hop. Each failed probe doubles the wait.
pub(super) const PROBE_WAIT_INITIAL: Duration = Duration::from_secs(1);
/// Longest wait between two probes. There are few next hops, each with one probe at a time, so a longer wait would save
/// little and would delay mail.
pub(super) const PROBE_WAIT_MAX: Duration = Duration::from_secs(60);
/// Wait after a refused login: 60 s, longer than the minute over which servers and fail2ban count a burst of failures. Each
/// further refusal doubles the wait.
pub(super) const LOGIN_WAIT_INITIAL: Duration = Duration::from_secs(60);
/// Longest wait between two refused logins: an hour, so that a day has fewer failures than lock an account, and a password
/// that was repaired at the server is found without an administrator of the relay.
pub(super) const LOGIN_WAIT_MAX: Duration = Duration::from_secs(3600);
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
    /// The last refused login, if no login was accepted since.
    refused_login: Option<RefusedLogin>,
}

#[derive(Debug)]
struct RefusedLogin {
    at: Instant,
    /// Wait before the next login, without jitter.
    wait: Duration,
    /// No probe has failed for another reason since.
    is_last: bool,
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
            refused_login: None,
        }
    }

    /// Allows a probe at once, and begins anew with short waits. The first wait after a refused login is kept: a script that
    /// retries in a loop must not lock the account.
    pub(super) fn nudge(&mut self, now: Instant) {
        self.immediate_probes = 0;
        match &mut self.refused_login {
            Some(refused) => {
                refused.wait = LOGIN_WAIT_INITIAL;
                self.probe_at = self.probe_at.min(refused.at + LOGIN_WAIT_INITIAL);
            }
            None => {
                self.probe_at = self.probe_at.min(now);
                self.wait = PROBE_WAIT_INITIAL;
            }
        }
    }

    /// Processes a probe whose login was refused: the next one waits a minute, then twice as long each time, up to an hour.
    /// Jitter only lengthens the wait.
    pub(super) fn login_refused(&mut self, now: Instant, rng: &mut impl Rng) -> PaceChange {
        let before = self.refused_login.as_ref();
        let wait = before.map_or(LOGIN_WAIT_INITIAL, |refused| {
            (refused.wait * 2).min(LOGIN_WAIT_MAX)
        });
        let change = match before {
            None => PaceChange::LoginRefused(wait),
            Some(_) => PaceChange::LoginRefusedAgain(wait),
        };
        self.refused_login = Some(RefusedLogin {
            at: now,
            wait,
            is_last: true,
        });
        self.probing = false;
        self.immediate_probes = 0;
        // A probe that fails before its login is repeated no sooner than a first refused login.
        self.wait = PROBE_WAIT_MAX;
        self.probe_at = now + wait.mul_f64(rng.random_range(1.0..=1.25));
        change
    }

    /// Whether the last probe failed because the hop refused our login.
    pub(super) fn is_login_refused(&self) -> bool {
        let refused = self.refused_login.as_ref();
        refused.is_some_and(|refused| refused.is_last)
    }

    /// Why the hop takes no message now.
    pub(super) fn reason(&self) -> RefusalReason {
        match self.is_login_refused() {
            true => RefusalReason::LoginRefused,
            false => RefusalReason::Dead,
        }
    }

    /// Processes a failed probe. If the probe reached the content, the message may be the cause: that message waits for
    /// its own next attempt, and the next probe may start immediately.
    pub(super) fn probe_failed(&mut self, offered: bool, now: Instant, rng: &mut impl Rng) {
        self.probing = false;
        // The content comes after an accepted login.
        self.refused_login.take_if(|_| offered);
        if let Some(refused) = &mut self.refused_login {
            refused.is_last = false;
        }
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
