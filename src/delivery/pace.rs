//! How fast one next hop gets its mail: a state machine without clock, sockets and chance of its own.
//!
//! The hop is paced, not the message: what a throttled or dead hop would refuse anyway is not sent at all, so that it costs
//! nobody a session, a connection or an attempt.
//!
//! | state | what goes out | how it ends |
//! |---|---|---|
//! | free | everything, at no cost | a throttling reply: paced; a cohort of failures: dead |
//! | paced | at the rate that was learnt, within a window, nothing during a pause | half a minute without trouble and without a backlog: free |
//! | dead | one delivery at a time, as a probe | the probe is answered: paced, with the first window |
//!
//! The rate falls by 0.7 at each throttling reply, once a second at most, and rises by a half a second for half a minute, then
//! by a fiftieth with each success (additive increase, multiplicative decrease: Chiu and Jain 1989). The window and the
//! cohort are Postfix's (Scheduler README, "concurrency feedback"): +1/w for a success, -1/w for a failure, and as
//! many failures in a row as the window is wide mean that the destination is dead.
//!
//! Whose fault is it? "Try later" may be about the message, and one sender's mail must not slow down everybody's. So a reply
//! that does not say that it throttles counts only while most of the hop's mail gets it; and when it comes at a rate that
//! the hop has just been seen to take, the rate is not the reason, and after a few of those such replies are not listened
//! to for a while. What fails once the content was on its way counts only when messages of two parties have failed so and
//! none was taken between; and when a probe fails so, the next one need not wait ([`Doubt`]).

mod doubt;
mod taken;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::{Rng, RngExt as _};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::ablation::{Mechanism, without};
use crate::message::Party;
use doubt::Doubt;
use taken::Taken;

/// The rate never falls below this, messages a second: lower ones would take hours to be corrected.
const SLOWEST: f64 = 0.5;
/// A rate that has risen to this is none.
const FASTEST: f64 = 1000.0;
/// What is left of the rate after a throttling reply.
const CUT: f64 = 0.7;
/// The rate is cut once in so long: replies to what was under way together are one refusal.
const CUT_EVERY: Duration = Duration::from_secs(1);
/// What the rate rises by, messages a second each second, while the last cut is recent.
const RISE: f64 = 0.5;
/// What the rate rises by with each success after that.
const GROWTH: f64 = 1.02;
/// So long after trouble the hop is still watched.
const CALM: Duration = Duration::from_secs(30);
/// What may go out at once at most, in time at the rate: longer than a timer is late, shorter than a server measures over.
const BURST: f64 = 0.1;
/// The first pause, before chance has taken up to half of it; doubled with each refusal in a row.
const PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// No pause after an answer to a content is longer: the reason may still be the message, and the next is another.
const CONTENT_PAUSE: Duration = Duration::from_secs(4);
/// Deliveries at once to a hop that has just come back, and failures in a row that make a free one dead.
const WINDOW: f64 = 5.0;
/// The wait before the first probe of a dead hop; doubled with each that fails.
const PROBE: Duration = Duration::from_secs(1);
/// The longest wait between probes. There are few next hops and one probe each: there is nothing to be saved by
/// waiting longer, and mail to be delivered by not doing so.
const LONGEST_PROBE: Duration = Duration::from_secs(60);
/// After so many probes in a row that came as far as the content there is a wait all the same: what is behind them in the
/// queue comes to its turn after as many sessions, and a hop that works for nobody is not sent a whole queue.
const AT_ONCE: u32 = 50;
/// What the last delivery counts for in the share of those that were put off.
const LATEST: f64 = 1.0 / 16.0;
/// From this share on, replies that may be about the message are taken to be about the hop: six in a row.
const MOST: f64 = 0.3;
/// So far above a rate that was taken it is still no reason for a refusal.
const MARGIN: f64 = 1.2;
/// So many refusals without that reason, and they are taken to be about messages …
const UNEXPLAINED: u32 = 3;
/// … for so long.
const DEAF: Duration = Duration::from_secs(600);
/// After a delivery has found no connection in time, fresh mail does not wait for one for so long.
const BUSY: Duration = Duration::from_secs(30);

/// What a delivery told about its hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It was answered about the message: taken or refused, the hop is well.
    Fine,
    /// It was told to come back later, whatever the message.
    Throttled,
    /// It was told to come back later, and that may be about the message.
    Later,
    /// [`Self::Throttled`] in answer to the content.
    ThrottledAtEnd,
    /// [`Self::Later`] in answer to the content.
    LaterAtEnd,
    /// No session came about, or it broke off before the content.
    Unreachable,
    /// A session broke off, or hung, once the content was on its way.
    Broken,
    /// No connection was free in time.
    Busy,
    /// Nothing: it was given up for reasons of ours.
    Unknown,
}

impl Sign {
    /// Whether it came once the content was on its way, so that the message may be the reason.
    pub fn is_at_content(self) -> bool {
        matches!(self, Self::ThrottledAtEnd | Self::LaterAtEnd | Self::Broken)
    }
}

/// Whose delivery it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A message that came in just now.
    Fresh,
    /// A message that has waited: when there is a rate, it goes first.
    Waiting,
}

/// The right to one delivery; it is brought back with [`Pace::ended`].
#[derive(Debug)]
pub struct Ticket {
    /// The state that it was given out in.
    epoch: u64,
}

/// No delivery now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Why,
    /// When it is worth asking again, if time alone decides that.
    pub until: Option<Instant>,
}

/// Why nothing goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It throttles us: the pause or the rate does not let another one go, or others have waited longer.
    Paced,
    /// It does not work.
    Dead,
    /// All its connections are in use, and have been for long.
    Busy,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shift {
    /// From free to paced, at so many messages a second.
    Paced(f64),
    /// The rate was cut to this.
    Cut(f64),
    /// A cohort of deliveries failed.
    Dead,
    /// It answers again after so long; mail goes out in a small window at first.
    Alive(Duration),
    /// From paced to free.
    Free,
    /// The same, because what it puts off are single messages, at any rate.
    Choosy,
}

/// The state in words and numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// free, paced or dead.
    pub state: State,
    /// Messages a second, if there is a limit.
    pub rate: Option<f64>,
    /// Deliveries at once, if there is a limit beside the connections.
    pub window: Option<usize>,
    /// Nothing goes out before this instant.
    pub until: Option<Instant>,
}

/// The word for the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Everything goes out.
    Free,
    /// It goes out slowly.
    Paced,
    /// One probe at a time goes out.
    Dead,
}

/// The state machine of one next hop. Time must not go backwards between calls.
#[derive(Debug)]
pub struct Pace {
    mode: Mode,
    /// Counts changes of the mode, so that an old probe's end does not pass for a new one's.
    epoch: u64,
    /// Connections that the hop may have; the window does not grow beyond that.
    connections: usize,
    in_flight: usize,
    /// The part of a cohort that has failed in a row; at one the hop is dead.
    failed: f64,
    /// Refusals in a row.
    streak: u32,
    /// The store has mail for this hop that is due.
    backlog: bool,
    busy_until: Option<Instant>,
    /// The share of late that was put off with replies that may be about the message.
    put_off: f64,
    /// Such replies are not listened to before this instant.
    deaf_until: Option<Instant>,
    doubt: Doubt,
    taken: Taken,
}

#[derive(Debug)]
enum Mode {
    Free,
    Paced(Paced),
    Dead(Dead),
}

#[derive(Debug, Clone)]
struct Paced {
    /// Messages a second.
    rate: Option<f64>,
    /// When the next one would go out without any burst (the theoretical arrival time of GCRA, ITU-T I.371).
    next: Instant,
    window: f64,
    /// The end of the pause.
    until: Instant,
    /// After a pause one goes first.
    trial: bool,
    cut_at: Instant,
    trouble_at: Instant,
    /// What the rate was cut to.
    floor: f64,
    /// What was taken, and put off, since then.
    fine: u32,
    put_off: u32,
    /// What was put off in all though the rate was no reason.
    unexplained: u32,
}

#[derive(Debug)]
struct Dead {
    since: Instant,
    wait: Duration,
    probe_at: Instant,
    probing: bool,
    /// Probes since the last wait that came as far as the content.
    at_once: u32,
    /// A rate that was learnt before is still the best guess.
    rate: Option<f64>,
}

impl Pace {
    /// A hop nothing is known about, which may have so many connections.
    pub fn new(connections: usize) -> Self {
        Self {
            mode: Mode::Free,
            epoch: 0,
            connections: connections.max(1),
            in_flight: 0,
            failed: 0.0,
            streak: 0,
            backlog: false,
            busy_until: None,
            put_off: 0.0,
            deaf_until: None,
            doubt: Doubt::None,
            taken: Taken::default(),
        }
    }

    /// Asks for the right to one delivery.
    pub fn ask(&mut self, who: Who, now: Instant) -> Result<Ticket, Refusal> {
        match &mut self.mode {
            Mode::Free => {
                let busy = self.busy_until.is_some_and(|until| now < until);
                if who == Who::Fresh && busy && self.in_flight >= self.connections {
                    return Err(Refusal::new(Why::Busy, None));
                }
            }
            Mode::Paced(paced) => {
                if who == Who::Fresh && paced.rate.is_some() && self.backlog {
                    return Err(Refusal::new(Why::Paced, None));
                }
                if paced.room(self.in_flight, now) == 0 {
                    self.backlog = true;
                    return Err(Refusal::new(Why::Paced, paced.opens(now)));
                }
                paced.spend(now);
            }
            Mode::Dead(dead) => {
                // A fresh message would keep its sender waiting for a timeout; one that waits keeps nobody.
                if who == Who::Fresh || dead.probing || now < dead.probe_at {
                    self.backlog = true;
                    let until = (!dead.probing).then_some(dead.probe_at);
                    return Err(Refusal::new(Why::Dead, until));
                }
                dead.probing = true;
            }
        }
        self.in_flight += 1;
        let epoch = self.epoch;
        Ok(Ticket { epoch })
    }

    /// How many messages that wait may go out now, of so many; and otherwise when it is worth asking again.
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

    /// Whether mail that is due waits for this hop.
    pub fn waits(&mut self, backlog: bool) {
        self.backlog = backlog;
    }

    /// A dead hop may be probed at once: somebody says that it works again.
    pub fn nudge(&mut self, now: Instant) {
        if let Mode::Dead(dead) = &mut self.mode {
            dead.probe_at = dead.probe_at.min(now);
            dead.wait = PROBE;
            dead.at_once = 0;
        }
    }

    /// A delivery of a message of this party has ended, and this is what it told.
    pub fn ended(
        &mut self,
        ticket: &Ticket,
        sign: Sign,
        party: Option<&Party>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Shift> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if without(Mechanism::Pacing) {
            return None;
        }
        // Nothing but probes is given out while it is dead.
        let probe = ticket.epoch == self.epoch;
        let of_one = sign.is_at_content() && self.doubt.add(party);
        match sign {
            Sign::Fine => {
                self.doubt = Doubt::None;
                self.fine(now)
            }
            Sign::ThrottledAtEnd | Sign::LaterAtEnd if of_one => self.answered(now),
            Sign::Broken if of_one && !matches!(self.mode, Mode::Dead(_)) => None,
            Sign::Throttled => self.throttled(LONGEST_PAUSE, now, rng),
            Sign::ThrottledAtEnd => self.throttled(CONTENT_PAUSE, now, rng),
            Sign::Later => self.later(LONGEST_PAUSE, now, rng),
            Sign::LaterAtEnd => self.later(CONTENT_PAUSE, now, rng),
            Sign::Unreachable => self.failed(probe, false, now, rng),
            Sign::Broken => self.failed(probe, true, now, rng),
            Sign::Busy => {
                self.busy_until = Some(now + BUSY);
                self.rest(probe, now);
                None
            }
            Sign::Unknown => {
                self.rest(probe, now);
                None
            }
        }
    }

    /// What it is like now.
    pub fn view(&self, now: Instant) -> View {
        let (state, rate, window, until) = match &self.mode {
            Mode::Free => (State::Free, None, None, None),
            Mode::Paced(paced) => {
                let window = paced.window as usize;
                (State::Paced, paced.rate, Some(window), Some(paced.until))
            }
            Mode::Dead(dead) => (State::Dead, dead.rate, Some(1), Some(dead.probe_at)),
        };
        View {
            state,
            rate,
            window,
            until: until.filter(|until| *until > now),
        }
    }

    fn fine(&mut self, now: Instant) -> Option<Shift> {
        self.failed = 0.0;
        self.streak = 0;
        self.put_off -= self.put_off * LATEST;
        self.taken.count(now);
        match &mut self.mode {
            Mode::Free => None,
            Mode::Dead(dead) => {
                let (dead_for, rate) = (now - dead.since, dead.rate);
                let paced = self.paced(rate, now);
                self.enter(Mode::Paced(paced));
                Some(Shift::Alive(dead_for))
            }
            Mode::Paced(paced) => {
                paced.succeed(self.connections, now);
                let calm = now - paced.trouble_at >= CALM && !self.backlog;
                let open = paced.rate.is_none() && paced.window >= self.connections as f64;
                if !calm && !open {
                    return None;
                }
                self.enter(Mode::Free);
                Some(Shift::Free)
            }
        }
    }

    /// Counts as throttling when it is about the hop, as far as that can be told.
    fn later(&mut self, longest: Duration, now: Instant, rng: &mut impl Rng) -> Option<Shift> {
        self.put_off += (1.0 - self.put_off) * LATEST;
        let about_hop = match &mut self.mode {
            _ if self.deaf_until.is_some_and(|until| now < until) => false,
            Mode::Paced(paced) if paced.rate.is_some() => match paced.explains(now) {
                true => true,
                false if paced.unexplained < UNEXPLAINED => false,
                false => {
                    self.deaf_until = Some(now + DEAF);
                    self.enter(Mode::Free);
                    return Some(Shift::Choosy);
                }
            },
            Mode::Dead(_) => false,
            Mode::Paced(_) | Mode::Free => self.put_off >= MOST,
        };
        match about_hop {
            true => self.throttled(longest, now, rng),
            false => self.answered(now),
        }
    }

    /// It answered, and that is what a probe asks for; nothing else is known.
    fn answered(&mut self, now: Instant) -> Option<Shift> {
        self.failed = 0.0;
        match self.mode {
            Mode::Dead(_) => self.fine(now),
            Mode::Free | Mode::Paced(_) => None,
        }
    }

    fn throttled(&mut self, longest: Duration, now: Instant, rng: &mut impl Rng) -> Option<Shift> {
        // It answers.
        self.failed = 0.0;
        let learnt = (CUT * self.taken.rate(now)).max(SLOWEST);
        let shift = match &mut self.mode {
            // What was under way when the pause began says nothing new.
            Mode::Paced(paced) if now < paced.until => return None,
            Mode::Paced(paced) => {
                paced.trouble_at = now;
                let cut = paced.rate.is_none() || now - paced.cut_at >= CUT_EVERY;
                if cut {
                    let lower = paced.rate.map_or(learnt, |rate| (CUT * rate).max(SLOWEST));
                    paced.cut(lower, now);
                }
                paced.rate.filter(|_| cut).map(Shift::Cut)
            }
            Mode::Free | Mode::Dead(_) => {
                let rate = match &self.mode {
                    Mode::Dead(dead) => dead.rate.unwrap_or(learnt),
                    _ => learnt,
                };
                let paced = self.paced(Some(rate), now);
                self.enter(Mode::Paced(paced));
                Some(Shift::Paced(rate))
            }
        };
        let pause = PAUSE
            .saturating_mul(1 << self.streak.min(16))
            .min(longest)
            .mul_f64(rng.random_range(0.5..=1.0));
        self.streak = self.streak.saturating_add(1);
        if let Mode::Paced(paced) = &mut self.mode {
            paced.pause(now + pause);
        }
        shift
    }

    /// `offered`: it came as far as the content.
    fn failed(
        &mut self,
        probe: bool,
        offered: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Shift> {
        let (window, rate) = match &mut self.mode {
            Mode::Free => (WINDOW, None),
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
        // Fifths do not add up to one exactly.
        if self.failed < 0.999 {
            return None;
        }
        self.failed = 0.0;
        self.enter(Mode::Dead(Dead {
            since: now,
            wait: PROBE,
            probe_at: now + jittered(PROBE, rng),
            probing: false,
            at_once: 0,
            rate,
        }));
        Some(Shift::Dead)
    }

    /// A probe that told nothing is made again after the same wait.
    fn rest(&mut self, probe: bool, now: Instant) {
        if let (true, Mode::Dead(dead)) = (probe, &mut self.mode) {
            dead.probing = false;
            dead.probe_at = now + dead.wait;
        }
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.epoch += 1;
    }

    fn paced(&self, rate: Option<f64>, now: Instant) -> Paced {
        Paced {
            rate,
            next: now,
            window: WINDOW.min(self.connections as f64),
            until: now,
            trial: false,
            cut_at: now,
            trouble_at: now,
            floor: rate.unwrap_or(FASTEST),
            fine: 0,
            put_off: 0,
            unexplained: 0,
        }
    }
}

impl Dead {
    /// The probe failed. If it came as far as the content, that may have been the reason: the message waits its own time, and the
    /// next one goes at once.
    fn failed(&mut self, offered: bool, now: Instant, rng: &mut impl Rng) {
        self.probing = false;
        if offered && self.at_once < AT_ONCE {
            self.at_once += 1;
            self.probe_at = now;
            return;
        }
        self.at_once = 0;
        self.wait = (self.wait * 2).min(LONGEST_PROBE);
        self.probe_at = now + jittered(self.wait, rng);
    }
}

impl Paced {
    /// How many may go out now.
    fn room(&self, in_flight: usize, now: Instant) -> usize {
        if now < self.until {
            return 0;
        }
        let window = if self.trial { 1 } else { self.window as usize };
        let free = window.saturating_sub(in_flight);
        let Some(rate) = self.rate else { return free };
        // As many as `spend` lets pass one after the other at this instant.
        let ahead = self.next.saturating_duration_since(now).as_secs_f64();
        match early(rate) - ahead {
            left if left < 0.0 => 0,
            left => free.min(1 + (left * rate) as usize),
        }
    }

    /// When the pause and the rate let one go, if they do not now.
    fn opens(&self, now: Instant) -> Option<Instant> {
        let due = self.rate.map_or(self.until, |rate| {
            let early = Duration::from_secs_f64(early(rate));
            self.next.checked_sub(early).unwrap_or(self.next)
        });
        Some(due.max(self.until)).filter(|opens| *opens > now)
    }

    fn cut(&mut self, rate: f64, now: Instant) {
        self.rate = Some(rate);
        self.floor = rate;
        self.cut_at = now;
        self.fine = 0;
        self.put_off = 0;
    }

    /// Whether the rate can be the reason for one more message that was put off: it is well above what was taken, or
    /// too little has been taken since the cut to say so.
    fn explains(&mut self, now: Instant) -> bool {
        if now < self.until {
            return true;
        }
        self.put_off += 1;
        let slow = self.rate.is_some_and(|rate| rate <= self.floor * MARGIN);
        let explained = !slow || self.fine < 2 * self.put_off;
        self.unexplained += u32::from(!explained);
        explained
    }

    fn spend(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            self.next = self.next.max(now) + Duration::from_secs_f64(1.0 / rate);
        }
    }

    fn pause(&mut self, until: Instant) {
        self.until = until;
        self.next = self.next.max(until);
        self.trial = true;
    }

    fn succeed(&mut self, connections: usize, now: Instant) {
        self.trial = false;
        self.fine = self.fine.saturating_add(1);
        self.window = (self.window + 1.0 / self.window).min(connections as f64);
        let recent = now - self.cut_at < CALM;
        self.rate = self
            .rate
            .map(|rate| match recent {
                true => rate + RISE / rate,
                false => rate * GROWTH,
            })
            .filter(|rate| *rate < FASTEST);
    }
}

/// How much earlier than evenly spaced one may go, in seconds, so that a burst passes.
fn early(rate: f64) -> f64 {
    (BURST - 1.0 / rate).max(0.0)
}

impl Refusal {
    fn new(why: Why, until: Option<Instant>) -> Self {
        Self { why, until }
    }
}

/// Without this, relays that lost the same server would come back to it together.
fn jittered(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(0.75..=1.0))
}
