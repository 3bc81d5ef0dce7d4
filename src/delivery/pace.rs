//! Pace of the mail to one next hop: a pure state machine. The caller passes in the time and the random generator, and
//! owns the sockets.
//!
//! The state belongs to the hop, not to the message. A message that a throttled or dead hop would refuse is not sent,
//! so it costs no session, no connection and no attempt.
//!
//! Terms of this module:
//!
//! - *Trouble* is a reply that throttles (the hop asks for a later attempt, and the reason is the hop) or a failed delivery
//!   (no session, or a session that breaks off).
//! - The *window* is the number of deliveries that may run at once. A *cohort* is as many consecutive failed deliveries as
//!   the window is wide; a free hop has a cohort of 5.
//! - A *probe* is a stored message that the relay sends to a dead hop. It is real mail, unlike the probes of an engine.
//! - *Due mail* is mail in the delivery lane whose time to be sent has come.
//!
//! | state | what goes out | transitions |
//! |---|---|---|
//! | free | everything, without limit | a throttling reply: paced; a cohort of failures: dead |
//! | paced | mail within rate and window, none during a pause | calm, or no limit left: free; a cohort of failures: dead |
//! | dead | one delivery at a time, as a probe | a probe is answered: paced, with the initial window |
//!
//! A refused login makes any hop dead at once, whatever its pace: further logins could lock the account. Its probes have
//! longer waits ([`Probing::login_refused`]).
//!
//! Calm means 30 s without trouble and without due mail. No limit is left when the hop has no rate and its window
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
//! - If such deferrals arrive at a rate that the hop has just accepted, the rate is not their reason: they are
//!   *unexplained*. After a few unexplained deferrals, the pace ignores such deferrals for a while.
//! - A failure after the start of the content counts only if messages of two parties have failed that way and the hop
//!   has taken no message in between. A probe that fails that way is followed by the next probe immediately
//!   ([`ContentFailures`]).

mod content_failures;
mod limits;
mod probing;
mod taken_rate;
mod terms;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

use rand::{Rng, RngExt as _};
use tokio::time::Instant;

use super::next_hop::HopSignal;
use crate::ablation::{Mechanism, without};
use crate::message::Party;
use content_failures::ContentFailures;
use limits::{Limits, RATE_CUT_FACTOR, RATE_MIN, WINDOW_INITIAL};
use probing::Probing;
use taken_rate::TakenRate;

pub use terms::{DeliveryTicket, MailKind, PaceChange, Refusal, RefusalReason};
pub use view::{PaceState, View};

/// Shortest interval between two rate cuts. Replies to deliveries that were in flight together count as one refusal.
const RATE_CUT_INTERVAL: Duration = Duration::from_secs(1);
/// Time without trouble and without due mail after which a paced hop is free. The same time separates recent cuts of
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
/// Number of unexplained deferrals in one paced period from which the pace treats deferrals as decisions about single
/// messages, not about the rate.
const UNEXPLAINED_DEFERRALS_MAX: u32 = 3;
/// Time for which the pace ignores deferrals after too many unexplained ones. Then it judges the hop's deferrals anew.
const DEFERRALS_IGNORED_PERIOD: Duration = Duration::from_secs(600);
/// Time after a delivery that got no connection during which fresh mail does not wait for a connection in use.
const CONNECTIONS_BUSY_PERIOD: Duration = Duration::from_secs(30);

/// The state machine of one next hop. Time must not go backwards between calls.
#[derive(Debug)]
pub struct Pace {
    mode: Mode,
    /// Counts changes of the mode. A delivery that began before the hop was dead may end after that. The counter shows that
    /// such a delivery is not the probe.
    epoch: u64,
    /// Connection limit of the hop, at least 1; upper limit of the window.
    connections: usize,
    in_flight: usize,
    /// Consecutive failed deliveries as a fraction of the cohort; the hop is dead at one.
    failed_part_of_cohort: f64,
    consecutive_refusals: u32,
    /// Whether the store has due mail for this hop. Also set when a message is refused, because that message is stored then.
    has_due_mail: bool,
    /// End of the time in which fresh mail does not wait for a connection.
    busy_until: Option<Instant>,
    /// Moving average of the share of deliveries with deferrals that may be about the message.
    deferred_share: f64,
    /// Time before which the pace ignores such deferrals.
    deferrals_ignored_until: Option<Instant>,
    /// Parties whose messages failed during content since the hop last took a message.
    content_failures: ContentFailures,
    /// How fast the hop has taken mail recently; the first rate after a refusal is derived from it.
    taken: TakenRate,
    /// Whether a hop that answers a probe is free at once, without limits.
    unlimited: bool,
}

/// The state with its data; see the table at the top.
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
            failed_part_of_cohort: 0.0,
            consecutive_refusals: 0,
            has_due_mail: false,
            busy_until: None,
            deferred_share: 0.0,
            deferrals_ignored_until: None,
            content_failures: ContentFailures::None,
            taken: TakenRate::default(),
            unlimited: false,
        }
    }

    /// A hop that only a refused login stops. The caller reports no other trouble.
    pub fn unlimited() -> Self {
        Self {
            unlimited: true,
            ..Self::new(usize::MAX)
        }
    }

    /// Requests the right to one delivery. The caller returns the ticket with [`Pace::ended`].
    pub fn ask(&mut self, kind: MailKind, now: Instant) -> Result<DeliveryTicket, Refusal> {
        match &mut self.mode {
            Mode::Free => {
                let busy = self.busy_until.is_some_and(|until| now < until);
                if kind == MailKind::Fresh && busy && self.in_flight >= self.connections {
                    return Err(Refusal::new(RefusalReason::Busy, None));
                }
            }
            Mode::Paced(paced) => {
                if kind == MailKind::Fresh && paced.rate.is_some() && self.has_due_mail {
                    return Err(Refusal::new(RefusalReason::Paced, None));
                }
                if paced.room(self.in_flight, now) == 0 {
                    self.has_due_mail = true;
                    return Err(Refusal::new(RefusalReason::Paced, paced.opens(now)));
                }
                paced.spend(now);
            }
            Mode::Dead(dead) => {
                // The sender of a fresh message would wait for the probe's timeout. No sender waits for a stored
                // message.
                if kind == MailKind::Fresh || dead.probing || now < dead.probe_at {
                    self.has_due_mail = true;
                    let until = (!dead.probing).then_some(dead.probe_at);
                    return Err(Refusal::new(dead.reason(), until));
                }
                dead.probing = true;
            }
        }
        self.in_flight += 1;
        let epoch = self.epoch;
        Ok(DeliveryTicket { epoch })
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

    /// Sets whether the store has due mail for this hop.
    pub fn set_waiting(&mut self, due_mail: bool) {
        self.has_due_mail = due_mail;
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
        ticket: &DeliveryTicket,
        signal: HopSignal,
        party: Option<&Party>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PaceChange> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if without(Mechanism::Pacing) {
            return None;
        }
        // Whether the ticket was issued in the present mode. In the mode `Dead`, tickets are issued for probes only. So while
        // the hop is dead, a current ticket is that of the probe, and other tickets are of deliveries that began earlier and
        // say nothing about the probe.
        let is_current = ticket.epoch == self.epoch;
        let is_of_one_party = signal.is_at_content() && self.content_failures.record(party);
        match signal {
            HopSignal::Fine => {
                self.content_failures = ContentFailures::None;
                self.delivery_succeeded(now)
            }
            HopSignal::ThrottledAtEnd | HopSignal::LaterAtEnd if is_of_one_party => {
                self.hop_answered(now)
            }
            HopSignal::Broken if is_of_one_party && !matches!(self.mode, Mode::Dead(_)) => None,
            HopSignal::Throttled => self.throttled(PAUSE_MAX, now, rng),
            HopSignal::ThrottledAtEnd => self.throttled(CONTENT_PAUSE_MAX, now, rng),
            HopSignal::Later => self.later(PAUSE_MAX, now, rng),
            HopSignal::LaterAtEnd => self.later(CONTENT_PAUSE_MAX, now, rng),
            HopSignal::LoginRefused => self.login_refused(is_current, now, rng),
            HopSignal::Unreachable => self.delivery_failed(is_current, false, now, rng),
            HopSignal::Broken => self.delivery_failed(is_current, true, now, rng),
            HopSignal::Busy => {
                self.busy_until = Some(now + CONNECTIONS_BUSY_PERIOD);
                self.repeat_probe(is_current, now);
                None
            }
            HopSignal::Unknown => {
                self.repeat_probe(is_current, now);
                None
            }
        }
    }

    /// The current state and limits.
    pub fn view(&self, now: Instant) -> View {
        let (dead_since, probing) = match &self.mode {
            Mode::Dead(dead) => (Some(dead.since), dead.probing),
            Mode::Free | Mode::Paced(_) => (None, false),
        };
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
            login_refused: matches!(&self.mode, Mode::Dead(dead) if dead.is_login_refused()),
            dead_since,
            probing,
        }
    }

    /// Processes a delivery that shows that the hop takes mail: ends a dead hop's probing, and ends the pacing if no reason
    /// for it is left.
    fn delivery_succeeded(&mut self, now: Instant) -> Option<PaceChange> {
        self.failed_part_of_cohort = 0.0;
        self.consecutive_refusals = 0;
        self.deferred_share -= self.deferred_share * DEFERRED_SHARE_WEIGHT;
        self.taken.count(now);
        match &mut self.mode {
            Mode::Free => None,
            Mode::Dead(dead) => {
                let (dead_for, rate) = (now - dead.since, dead.rate);
                self.enter(match self.unlimited {
                    true => Mode::Free,
                    false => Mode::Paced(Limits::new(rate, self.connections, now)),
                });
                Some(PaceChange::Alive(dead_for))
            }
            Mode::Paced(paced) => {
                paced.succeed(self.connections, now);
                let calm = now - paced.trouble_at >= CALM_PERIOD && !self.has_due_mail;
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
            Mode::Paced(paced) if paced.rate.is_some() => match paced.rate_explains_deferral(now) {
                true => true,
                false if paced.unexplained_deferrals < UNEXPLAINED_DEFERRALS_MAX => false,
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
            false => self.hop_answered(now),
        }
    }

    /// Processes an answer that shows only that the hop works. That is what a probe tests, so a probe with such an answer
    /// counts as a success. For a free or a paced hop, the answer ends only the series of failures.
    fn hop_answered(&mut self, now: Instant) -> Option<PaceChange> {
        self.failed_part_of_cohort = 0.0;
        match self.mode {
            Mode::Dead(_) => self.delivery_succeeded(now),
            Mode::Free | Mode::Paced(_) => None,
        }
    }

    /// Processes a throttling reply: cuts the rate, and pauses all mail for at most `longest`.
    fn throttled(
        &mut self,
        longest: Duration,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PaceChange> {
        // A throttling reply shows that the hop works.
        self.failed_part_of_cohort = 0.0;
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

    /// Processes a failed delivery. `is_current`: the ticket was issued in the present mode (see [`Pace::ended`]).
    /// `offered`: the delivery reached the content.
    fn delivery_failed(
        &mut self,
        is_current: bool,
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
                if is_current {
                    dead.probe_failed(offered, now, rng);
                }
                return None;
            }
        };
        self.failed_part_of_cohort += 1.0 / window;
        // The sum of five fifths is not exactly one in floating point.
        if self.failed_part_of_cohort < 0.999 {
            return None;
        }
        self.failed_part_of_cohort = 0.0;
        self.enter(Mode::Dead(Probing::new(rate, now, rng)));
        Some(PaceChange::Dead)
    }

    /// Processes a refused login. A dead hop's delivery that is not the probe began before the hop was dead.
    fn login_refused(
        &mut self,
        is_current: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<PaceChange> {
        let rate = match &mut self.mode {
            Mode::Dead(_) if !is_current => return None,
            Mode::Dead(dead) => return Some(dead.login_refused(now, rng)),
            Mode::Paced(paced) => paced.rate,
            Mode::Free => None,
        };
        self.failed_part_of_cohort = 0.0;
        let mut dead = Probing::new(rate, now, rng);
        let change = dead.login_refused(now, rng);
        self.enter(Mode::Dead(dead));
        Some(change)
    }

    /// If the hop is dead and the delivery was its probe, repeats the probe after the same wait: this one had no result.
    fn repeat_probe(&mut self, is_current: bool, now: Instant) {
        if let (true, Mode::Dead(dead)) = (is_current, &mut self.mode) {
            dead.repeat_probe(now);
        }
    }

    /// Changes the mode.
    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.epoch += 1;
    }
}
