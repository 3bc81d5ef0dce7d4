//! One next hop's [`Pace`] with a clock, and what it tells: whoever wants to deliver asks here first.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use metrics::counter;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::pace::{Pace, Refusal, Shift, Sign, State, Ticket, Who, Why};
use crate::chance;
use crate::deadline::wall_clock;
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Envelope, Party};

/// Incidents that wait to be fetched, at most; later ones are in the counters alone.
const INCIDENTS: usize = 64;
/// Characters kept of what the hop said last.
const SAID: usize = 200;

/// What one next hop gets, as `spillway status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopStatus {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Whether everything goes out to it.
    pub state: State,
    /// Messages a minute at most; none: no limit.
    pub per_minute: Option<u64>,
    /// Deliveries at once at most, where there is a limit beside its connections.
    pub at_once: Option<usize>,
    /// Nothing goes out before this instant.
    pub until: Option<Timestamp>,
    /// What it said, or what went wrong, when it was last in trouble.
    pub said: Option<String>,
}

/// The way to one next hop. It outlives a reload that leaves the hop as it was.
#[derive(Debug)]
pub struct Gate {
    name: Arc<str>,
    /// Whether anything is ever held back.
    paced: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pace: Pace,
    said: Option<String>,
    incidents: Vec<Incident>,
}

/// The right to make one delivery to one next hop; dropped, it tells nothing about the hop and frees its place.
#[derive(Debug)]
pub struct Turn {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
}

impl Gate {
    /// A hop that nothing is known about, which may have so many connections; unless `paced`, everything goes out to it,
    /// always.
    pub fn new(name: Arc<str>, connections: usize, paced: bool) -> Arc<Self> {
        Arc::new(Self {
            name,
            paced,
            inner: Mutex::new(Inner {
                pace: Pace::new(connections),
                said: None,
                incidents: Vec::new(),
            }),
        })
    }

    /// Asks for a turn now; the text says why there is none.
    pub fn ask(self: &Arc<Self>, who: Who) -> Result<Turn, String> {
        let ticket = match self.paced {
            false => None,
            true => {
                let now = Instant::now();
                let mut inner = self.lock();
                let asked = inner.pace.ask(who, now);
                Some(asked.map_err(|refusal| self.text(&refusal, inner.said.as_deref(), now))?)
            }
        };
        let gate = self.clone();
        Ok(Turn { gate, ticket })
    }

    /// How many messages that wait may go out now, of so many; and otherwise after how long to ask again, if time alone
    /// decides that.
    pub fn room(&self, wanted: usize) -> (usize, Option<Duration>) {
        if !self.paced {
            return (wanted, None);
        }
        let now = Instant::now();
        let (room, until) = self.lock().pace.room(wanted, now);
        (room, until.map(|until| until - now))
    }

    /// Whether mail that is due waits for this hop.
    pub fn waits(&self, backlog: bool) {
        self.lock().pace.waits(backlog);
    }

    /// A dead hop may be probed at once.
    pub fn nudge(&self) {
        self.lock().pace.nudge(Instant::now());
    }

    /// What it is like now.
    pub fn status(&self) -> HopStatus {
        let now = Instant::now();
        let inner = self.lock();
        let view = inner.pace.view(now);
        let wait = |until: Instant| SignedDuration::try_from(until - now).unwrap_or_default();
        HopStatus {
            name: self.name.clone(),
            state: view.state,
            per_minute: view.rate.map(|rate| (rate * 60.0).round() as u64),
            at_once: view.window,
            until: view.until.map(|until| wall_clock() + wait(until)),
            said: inner.said.clone().filter(|_| view.state != State::Free),
        }
    }

    /// What happened to it since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        std::mem::take(&mut self.lock().incidents)
    }

    fn end(&self, ticket: &Ticket, sign: Sign, whose: Option<&Envelope>, said: &str) {
        let party = whose.filter(|_| sign.is_at_content()).map(Party::of);
        let mut inner = self.lock();
        if matches!(
            sign,
            Sign::Throttled | Sign::Later | Sign::ThrottledAtEnd | Sign::LaterAtEnd
        ) {
            counter!("spillway_next_hop_throttles_total", "next_hop" => self.name.to_string())
                .increment(1);
        }
        let trouble = !matches!(sign, Sign::Fine | Sign::Unknown | Sign::Busy);
        if trouble {
            inner.said = Some(said.chars().take(SAID).collect());
        }
        let (now, rng) = (Instant::now(), &mut chance::rng());
        let shift = inner.pace.ended(ticket, sign, party.as_ref(), now, rng);
        if let Some(shift) = shift {
            self.tell(&mut inner, shift);
        }
    }

    /// Puts a change into the list of incidents; a cut while it is paced anyway is a line of the log alone.
    fn tell(&self, inner: &mut Inner, shift: Shift) {
        let name = &self.name;
        let (kind, summary) = match shift {
            Shift::Paced(rate) => (
                Kind::NextHopPaced,
                format!("next hop {name} throttles us: {rate:.1} messages a second from now on"),
            ),
            Shift::Cut(rate) => {
                tracing::info!(next_hop = %name, rate, said = inner.said, "next hop throttles again");
                return;
            }
            Shift::Dead => (
                Kind::NextHopDead,
                format!("next hop {name} does not work: one probe at a time from now on"),
            ),
            Shift::Alive(after) => (
                Kind::NextHopAlive,
                format!("next hop {name} works again after {} s", after.as_secs()),
            ),
            Shift::Free => (
                Kind::NextHopAlive,
                format!("next hop {name} gets all its mail again"),
            ),
            Shift::Choosy => (
                Kind::NextHopAlive,
                format!(
                    "next hop {name} puts off single messages at any rate: it gets all its mail again"
                ),
            ),
        };
        let mut incident = Incident::new(kind, Subject::NextHop(name.to_string()), summary);
        if let Some(said) = &inner.said {
            incident = incident.with("said", said);
        }
        if inner.incidents.len() < INCIDENTS {
            inner.incidents.push(incident);
        }
    }

    fn text(&self, refusal: &Refusal, said: Option<&str>, now: Instant) -> String {
        let (name, said) = (&self.name, said.unwrap_or("trouble"));
        let mut text = match refusal.why {
            Why::Paced => format!("next hop {name} is paced after {said}"),
            Why::Dead => format!("next hop {name} does not work: {said}"),
            Why::Busy => format!("all connections to next hop {name} are in use"),
        };
        match refusal.until {
            Some(until) => {
                let seconds = (until.saturating_duration_since(now)).as_secs_f64().ceil();
                text.push_str(&format!("; tried again in {seconds} s at the earliest"));
            }
            None => text.push_str("; tried again when its turn comes"),
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line for people: `paced, 90 a minute, 5 at once, nothing before …: 451 4.7.1 …`.
impl fmt::Display for HopStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Free => "takes everything",
            State::Paced => "paced",
            State::Dead => "does not work; one probe at a time",
        })?;
        if let (State::Paced, Some(rate)) = (self.state, self.per_minute) {
            write!(f, ", {rate} a minute")?;
        }
        if let (State::Paced, Some(at_once)) = (self.state, self.at_once) {
            write!(f, ", {at_once} at once")?;
        }
        if let Some(until) = self.until {
            write!(f, ", nothing before {until:.0}")?;
        }
        match &self.said {
            Some(said) => write!(f, ": {said}"),
            None => Ok(()),
        }
    }
}

impl Turn {
    /// Whether it is one for this hop.
    pub fn is_for(&self, gate: &Arc<Gate>) -> bool {
        Arc::ptr_eq(&self.gate, gate)
    }

    /// Brings it back, with what the delivery of `whose` message told and the words for it. True if the hop's pace decides when what was not
    /// delivered goes out: the message was not even offered, so that this was no attempt of its own.
    pub fn end(mut self, sign: Sign, offered: bool, whose: &Envelope, said: &str) -> bool {
        let Some(ticket) = self.ticket.take() else {
            return false;
        };
        self.gate.end(&ticket, sign, Some(whose), said);
        !offered && matches!(sign, Sign::Throttled | Sign::Unreachable | Sign::Busy)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.end(&ticket, Sign::Unknown, None, "");
        }
    }
}
