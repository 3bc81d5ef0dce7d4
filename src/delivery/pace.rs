//! Pace of the mail to one next hop: a pure state machine. The caller passes in the time and the random generator, and
//! owns the sockets.
//!
//! The state belongs to the hop, not to the message. A message that a throttled or dead hop would refuse is not sent,
//! so it costs no session, no connection and no attempt.
//!
//! | state | what goes out | transitions |
//! |---|---|---|
//! | free | everything, without limit | a throttling reply: paced; a cohort of failures: dead |
//! | paced | mail within rate and window, none during a pause | calm, or no limit left: free; a cohort of failures: dead |
//! | dead | one delivery at a time, as a probe | a probe is answered: paced, with the initial window |
//!
//! Calm means 30 s without trouble and without a backlog. No limit is left when the hop has no rate and its window
//! reaches its connections. A throttling reply multiplies the rate by 0.7, at most once a second. Successes raise the
//! rate by 0.5 messages/s each second for 30 s after a cut, then by 2 % each (additive increase, multiplicative
//! decrease: Chiu and Jain 1989). Window and cohort are those of Postfix (Scheduler README, "concurrency feedback"): a
//! success widens the window w by 1/w, a failure narrows it by 1/w, and as many consecutive failures as the window is
//! wide mark the destination as dead.
//!
//! The pace separates trouble of the hop from trouble of a message, because one sender's mail must not slow down all
//! other mail:
//!
//! - A "try later" reply may be about the message. A deferral that does not name throttling as its reason counts only
//!   while a large share of the hop's mail receives such deferrals.
//! - If such deferrals arrive at a rate that the hop has just accepted, the rate is not their reason. After a few of
//!   them, the pace ignores such deferrals for a while.
//! - A failure after the start of the content counts only if messages of two parties have failed that way and the hop
//!   has taken no message in between. A probe that fails that way is followed by the next probe immediately
//!   ([`Doubt`]).

mod doubt;
mod limits;
mod probing;
mod taken_rate;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::{Rng, RngExt as _};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::next_hop::HopSignal;
use crate::ablation::{Mechanism, without};
use crate::message::Party;
use doubt::Doubt;
use limits::{Limits, RATE_CUT_FACTOR, RATE_MIN, WINDOW_INITIAL};
use probing::Probing;
use taken_rate::TakenRate;

/// Shortest interval between two rate cuts. Replies to deliveries that were in flight together count as one refusal.
const RATE_CUT_INTERVAL: Duration = Duration::from_secs(1);
/// Time without trouble and without a backlog after which a paced hop is free. The same time separates recent cuts of
/// the rate from older ones.
const CALM_PERIOD: Duration = Duration::from_secs(30);
/// First pause after a refusal, before jitter removes up to half of it. Each consecutive refusal doubles the pause.
const PAUSE_INITIAL: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest pause after a refusal of content. The refusal may still be about the message, and the next message is
/// another one.
const CONTENT_PAUSE_MAX: Duration = Duration::from_secs(4);
/// Weight of the latest delivery in the moving average of the share of deferred deliveries.
const DEFERRED_SHARE_WEIGHT: f64 = 1.0 / 16.0;
/// Share of deferred deliveries from which a deferral that may be about the message counts as throttling: six
/// consecutive deferrals reach it.
const DEFERRED_SHARE_THRESHOLD: f64 = 0.3;
/// Number of deferrals not explained by the rate after which the pace treats deferrals as decisions about single
/// messages …
const UNEXPLAINED_DEFERRALS_MAX: u32 = 3;
/// … and ignores them for this time. Then the pace judges the hop's deferrals anew.
const DEFERRALS_IGNORED_PERIOD: Duration = Duration::from_secs(600);
/// Time after a delivery that got no connection during which fresh mail does not wait for a connection in use.
const CONNECTIONS_BUSY_PERIOD: Duration = Duration::from_secs(30);

/// Kind of the message that asks for a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailKind {
    /// A message that has just arrived.
    Fresh,
    /// A stored message that waits. While the hop has a rate, stored messages go first.
    Waiting,
}

/// The right to one delivery, returned with [`Pace::ended`].
#[derive(Debug)]
pub struct Ticket {
    /// Value of the epoch counter at the time of issue.
    epoch: u64,
}

/// The hop takes no message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: RefusalReason,
    /// Time from which another request is useful; `None` if something other than time decides.
    pub until: Option<Instant>,
}

/// Why the hop takes no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The hop throttles us: the pause or the rate allows no further message, or stored messages go first.
    Paced,
    /// The hop does not work.
    Dead,
    /// All connections of the hop are in use, and a recent delivery did not get one in time.
    Busy,
}

/// A change of the pace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PaceChange {
    /// From free or dead to paced, with this rate in messages a second.
    Paced(f64),
    /// The rate was cut to this value, in messages a second.
    Cut(f64),
    /// A cohort of consecutive deliveries failed.
    Dead,
    /// The hop answers again after this time; mail goes out in a small window at first.
    Alive(Duration),
    /// From paced to free.
    Free,
    /// From paced to free, because the hop defers single messages at any rate.
    PerMessageDeferrals,
}

/// Current state and limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Free, paced or dead.
    pub state: PaceState,
    /// Rate limit in messages a second; `None` without a limit.
    pub rate: Option<f64>,
    /// Limit of concurrent deliveries in addition to the connection limit; `None` without one.
    pub window: Option<usize>,
    /// Time before which nothing goes out.
    pub until: Option<Instant>,
}

/// Name of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PaceState {
    /// Everything goes out.
    Free,
    /// Mail goes out within a rate and a window.
    Paced,
    /// One probe at a time goes out.
    Dead,
}

/// The state machine of one next hop. Time must not go backwards between calls.
#[derive(Debug)]
pub struct Pace {
    mode: Mode,
    /// Counts changes of the mode, so that the end of an old delivery is not mistaken for the end of a current probe.
    epoch: u64,
    /// Connection limit of the hop, at least 1; upper limit of the window.
    connections: usize,
    in_flight: usize,
    /// Consecutive failures as a fraction of the cohort; the hop is dead at one.
    failed: f64,
    consecutive_refusals: u32,
    /// Whether the store has mail for this hop that is due.
    backlog: bool,
    busy_until: Option<Instant>,
    /// Moving average of the share of deliveries with deferrals that may be about the message.
    deferred_share: f64,
    /// Time before which the pace ignores such deferrals.
    deferrals_ignored_until: Option<Instant>,
    doubt: Doubt,
    taken: TakenRate,
}

#[derive(Debug)]
enum Mode {
    Free,
    Paced(Limits),
    Dead(Probing),
}

impl Pace {
    /// A hop without history, with at most this many connections.
    pub fn new(connections: usize) -> Self {
        Self {
            mode: Mode::Free,
            epoch: 0,
            connections: connections.max(1),
            in_flight: 0,
            failed: 0.0,
            consecutive_refusals: 0,
            backlog: false,
            busy_until: None,
            deferred_share: 0.0,
            deferrals_ignored_until: None,
            doubt: Doubt::None,
            taken: TakenRate::default(),
        }
    }

    /// Requests the right to one delivery.
    pub fn ask(&mut self, kind: MailKind, now: Instant) -> Result<Ticket, Refusal> {
        match &mut self.mode {
            Mode::Free => {
                let busy = self.busy_until.is_some_and(|until| now < until);
                if kind == MailKind::Fresh && busy && self.in_flight >= self.connections {
                    return Err(Refusal::new(RefusalReason::Busy, None));
                }
            }
            Mode::Paced(paced) => {
                if kind == MailKind::Fresh && paced.rate.is_some() && self.backlog {
                    return Err(Refusal::new(RefusalReason::Paced, None));
                }
                if paced.room(self.in_flight, now) == 0 {
                    self.backlog = true;
                    return Err(Refusal::new(RefusalReason::Paced, paced.opens(now)));
                }
                paced.spend(now);
            }
            Mode::Dead(dead) => {
                // The sender of a fresh message would wait for the probe's timeout. No sender waits for a stored
                // message.
                if kind == MailKind::Fresh || dead.probing || now < dead.probe_at {
                    self.backlog = true;
                    let until = (!dead.probing).then_some(dead.probe_at);
                    return Err(Refusal::new(RefusalReason::Dead, until));
                }
                dead.probing = true;
            }
        }
        self.in_flight += 1;
        let epoch = self.epoch;
        Ok(Ticket { epoch })
    }

    /// How many of `wanted` stored messages may go out now. If none may and only time decides, also the time from which
    /// the next call is useful.
    pub fn room(&self, wanted: usize, now: Instant) -> (usize, Option<Instant>) {
        match &self.mode {
            Mode::Free => (wanted, None),
            Mode::Paced(paced) => (
                paced.room(self.in_flight, now).min(wanted),
                paced.opens(now),
            ),
            Mode::Dead(dead) if dead.probing => (0, None),
            Mode::Dead(dead) => (
                wanted.min(usize::from(now >= dead.probe_at)),
                Some(dead.probe_at),
            ),
        }
    }

    /// Sets whether stored mail for this hop is due.
    pub fn waits(&mut self, backlog: bool) {
        self.backlog = backlog;
    }

    /// Allows an immediate probe of a dead hop, because an administrator says that the hop works again.
    pub fn nudge(&mut self, now: Instant) {
        if let Mode::Dead(dead) = &mut self.mode {
            dead.nudge(now);
        }
    }

    /// Processes the end of a delivery: its signal, and the party of its message where the signal may be about the
    /// message.
    pub fn ended(
        &mut self,
        ticket: &Ticket,
        signal: HopSignal,
        party: Option<&Party>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PaceChange> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if without(Mechanism::Pacing) {
            return None;
        }
        // A dead hop issues permits for probes only.
        let probe = ticket.epoch == self.epoch;
        let is_of_one_party = signal.is_at_content() && self.doubt.add(party);
        match signal {
            HopSignal::Fine => {
                self.doubt = Doubt::None;
                self.fine(now)
            }
            HopSignal::ThrottledAtEnd | HopSignal::LaterAtEnd if is_of_one_party => {
                self.answered(now)
            }
            HopSignal::Broken if is_of_one_party && !matches!(self.mode, Mode::Dead(_)) => None,
            HopSignal::Throttled => self.throttled(PAUSE_MAX, now, rng),
            HopSignal::ThrottledAtEnd => self.throttled(CONTENT_PAUSE_MAX, now, rng),
            HopSignal::Later => self.later(PAUSE_MAX, now, rng),
            HopSignal::LaterAtEnd => self.later(CONTENT_PAUSE_MAX, now, rng),
            HopSignal::Unreachable => self.failed(probe, false, now, rng),
            HopSignal::Broken => self.failed(probe, true, now, rng),
            HopSignal::Busy => {
                self.busy_until = Some(now + CONNECTIONS_BUSY_PERIOD);
                self.rest(probe, now);
                None
            }
            HopSignal::Unknown => {
                self.rest(probe, now);
                None
            }
        }
    }

    /// The current state and limits.
    pub fn view(&self, now: Instant) -> View {
        let (state, rate, window, until) = match &self.mode {
            Mode::Free => (PaceState::Free, None, None, None),
            Mode::Paced(paced) => {
                let window = paced.window as usize;
                (
                    PaceState::Paced,
                    paced.rate,
                    Some(window),
                    Some(paced.until),
                )
            }
            Mode::Dead(dead) => (PaceState::Dead, dead.rate, Some(1), Some(dead.probe_at)),
        };
        View {
            state,
            rate,
            window,
            until: until.filter(|until| *until > now),
        }
    }

    fn fine(&mut self, now: Instant) -> Option<PaceChange> {
        self.failed = 0.0;
        self.consecutive_refusals = 0;
        self.deferred_share -= self.deferred_share * DEFERRED_SHARE_WEIGHT;
        self.taken.count(now);
        match &mut self.mode {
            Mode::Free => None,
            Mode::Dead(dead) => {
                let (dead_for, rate) = (now - dead.since, dead.rate);
                let paced = Limits::new(rate, self.connections, now);
                self.enter(Mode::Paced(paced));
                Some(PaceChange::Alive(dead_for))
            }
            Mode::Paced(paced) => {
                paced.succeed(self.connections, now);
                let calm = now - paced.trouble_at >= CALM_PERIOD && !self.backlog;
                let open = paced.rate.is_none() && paced.window >= self.connections as f64;
                if !calm && !open {
                    return None;
                }
                self.enter(Mode::Free);
                Some(PaceChange::Free)
            }
        }
    }

    /// Processes a deferral that may be about the message. The deferral counts as throttling if the evidence points to
    /// the hop.
    fn later(&mut self, longest: Duration, now: Instant, rng: &mut impl Rng) -> Option<PaceChange> {
        self.deferred_share += (1.0 - self.deferred_share) * DEFERRED_SHARE_WEIGHT;
        let about_hop = match &mut self.mode {
            _ if self
                .deferrals_ignored_until
                .is_some_and(|until| now < until) =>
            {
                false
            }
            Mode::Paced(paced) if paced.rate.is_some() => match paced.explains(now) {
                true => true,
                false if paced.unexplained < UNEXPLAINED_DEFERRALS_MAX => false,
                false => {
                    self.deferrals_ignored_until = Some(now + DEFERRALS_IGNORED_PERIOD);
                    self.enter(Mode::Free);
                    return Some(PaceChange::PerMessageDeferrals);
                }
            },
            Mode::Dead(_) => false,
            Mode::Paced(_) | Mode::Free => self.deferred_share >= DEFERRED_SHARE_THRESHOLD,
        };
        match about_hop {
            true => self.throttled(longest, now, rng),
            false => self.answered(now),
        }
    }

    /// Processes an answer that shows only that the hop works, which is what a probe tests.
    fn answered(&mut self, now: Instant) -> Option<PaceChange> {
        self.failed = 0.0;
        match self.mode {
            Mode::Dead(_) => self.fine(now),
            Mode::Free | Mode::Paced(_) => None,
        }
    }

    fn throttled(
        &mut self,
        longest: Duration,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PaceChange> {
        // A throttling reply shows that the hop works.
        self.failed = 0.0;
        let learnt = (RATE_CUT_FACTOR * self.taken.rate(now)).max(RATE_MIN);
        let change = match &mut self.mode {
            // Refusals of deliveries that started before the pause contain no new information.
            Mode::Paced(paced) if now < paced.until => return None,
            Mode::Paced(paced) => {
                paced.trouble_at = now;
                let cut = paced.rate.is_none() || now - paced.cut_at >= RATE_CUT_INTERVAL;
                if cut {
                    let lower = paced
                        .rate
                        .map_or(learnt, |rate| (RATE_CUT_FACTOR * rate).max(RATE_MIN));
                    paced.cut(lower, now);
                }
                paced.rate.filter(|_| cut).map(PaceChange::Cut)
            }
            Mode::Free | Mode::Dead(_) => {
                let rate = match &self.mode {
                    Mode::Dead(dead) => dead.rate.unwrap_or(learnt),
                    _ => learnt,
                };
                let paced = Limits::new(Some(rate), self.connections, now);
                self.enter(Mode::Paced(paced));
                Some(PaceChange::Paced(rate))
            }
        };
        let pause = PAUSE_INITIAL
            .saturating_mul(1 << self.consecutive_refusals.min(16))
            .min(longest)
            .mul_f64(rng.random_range(0.5..=1.0));
        self.consecutive_refusals = self.consecutive_refusals.saturating_add(1);
        if let Mode::Paced(paced) = &mut self.mode {
            paced.pause(now + pause);
        }
        change
    }

    /// Processes a failed delivery. `offered`: the delivery reached the content.
    fn failed(
        &mut self,
        probe: bool,
        offered: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PaceChange> {
        let (window, rate) = match &mut self.mode {
            Mode::Free => (WINDOW_INITIAL, None),
            Mode::Paced(paced) => {
                let window = paced.window;
                paced.window = (window - 1.0 / window).max(1.0);
                paced.trouble_at = now;
                (window, paced.rate)
            }
            Mode::Dead(dead) => {
                if probe {
                    dead.failed(offered, now, rng);
                }
                return None;
            }
        };
        self.failed += 1.0 / window;
        // The sum of five fifths is not exactly one in floating point.
        if self.failed < 0.999 {
            return None;
        }
        self.failed = 0.0;
        self.enter(Mode::Dead(Probing::new(rate, now, rng)));
        Some(PaceChange::Dead)
    }

    /// Repeats a probe without a result after the same wait.
    fn rest(&mut self, probe: bool, now: Instant) {
        if let (true, Mode::Dead(dead)) = (probe, &mut self.mode) {
            dead.rest(now);
        }
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.epoch += 1;
    }
}

impl Refusal {
    fn new(reason: RefusalReason, until: Option<Instant>) -> Self {
        Self { reason, until }
    }
}
