//! Combines the [`Pace`] of one next hop with the clock, and reports its changes as incidents. Every delivery asks here
//! first.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use metrics::counter;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::next_hop::HopSignal;
use super::pace::{DeliveryTicket, MailKind, Pace, PaceChange, PaceState, Refusal, RefusalReason};
use crate::chance;
use crate::deadline::wall_clock;
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Envelope, Party};

/// Largest number of incidents kept until the next fetch. Counters still include later ones.
const PENDING_INCIDENTS_MAX: usize = 64;
/// Characters kept of the last error reply or error text.
const ERROR_TEXT_CHARS_MAX: usize = 200;

/// Status of one next hop, as `spillway status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopStatus {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Whether mail goes out freely, at a pace, or one stored message at a time as a probe.
    pub state: PaceState,
    /// Rate limit in messages a minute; `None` without a limit.
    pub per_minute: Option<u64>,
    /// Limit of concurrent deliveries in addition to the connection limit; `None` without one.
    pub at_once: Option<usize>,
    /// End of the current pause or wait; nothing goes out before it.
    pub until: Option<Timestamp>,
    /// Time from which the next hop is dead; `None` while it is not.
    #[serde(default)]
    pub dead_since: Option<Timestamp>,
    /// Whether a probe of a dead next hop is under way.
    #[serde(default)]
    pub probing: bool,
    /// Error reply or error text of the last deferral, throttling reply or failed delivery.
    pub said: Option<String>,
    /// The state is dead because the hop refuses our login.
    #[serde(default)]
    pub login_refused: bool,
}

/// Controls the deliveries to one next hop. A reload keeps the gate of a next hop with unchanged name and server
/// settings.
#[derive(Debug)]
pub struct HopGate {
    name: Arc<str>,
    /// Whether trouble other than a refused login holds mail back.
    paced: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pace: Pace,
    /// Error reply or error text of the last deferral, throttling reply or failed delivery.
    said: Option<String>,
    /// Incidents until the next fetch.
    incidents: Vec<Incident>,
}

/// The right to one delivery to one next hop. Dropping a permit frees its place and reports nothing about the hop.
#[derive(Debug)]
pub struct DeliveryPermit {
    gate: Arc<HopGate>,
    /// `None` once the permit was returned.
    ticket: Option<DeliveryTicket>,
}

impl HopGate {
    /// A gate for a hop without history and with at most this many connections. A gate that is not `paced` lets
    /// everything pass, unless the hop refuses our login.
    pub fn new(name: Arc<str>, connections: usize, paced: bool) -> Arc<Self> {
        Arc::new(Self {
            name,
            paced,
            inner: Mutex::new(Inner {
                pace: match paced {
                    true => Pace::new(connections),
                    false => Pace::unlimited(),
                },
                said: None,
                incidents: Vec::new(),
            }),
        })
    }

    /// Takes a permit now. The error text gives the reason if the hop takes no message.
    pub fn ask(self: &Arc<Self>, kind: MailKind) -> Result<DeliveryPermit, String> {
        let now = Instant::now();
        let mut inner = self.lock();
        let asked = inner.pace.ask(kind, now);
        let ticket = asked.map_err(|refusal| self.text(&refusal, inner.said.as_deref()))?;
        Ok(DeliveryPermit {
            gate: self.clone(),
            ticket: Some(ticket),
        })
    }

    /// How many of `wanted` stored messages may go out now. If none may and only time decides, also the wait before the
    /// next call is useful.
    pub fn room(&self, wanted: usize) -> (usize, Option<Duration>) {
        let now = Instant::now();
        let (room, until) = self.lock().pace.room(wanted, now);
        (room, until.map(|until| until - now))
    }

    /// Sets whether the store has due mail for this hop. While the hop has a rate, due mail goes before fresh mail.
    pub fn set_waiting(&self, due_mail: bool) {
        self.lock().pace.set_waiting(due_mail);
    }

    /// Allows an immediate probe of a dead hop.
    pub fn nudge(&self) {
        self.lock().pace.nudge(Instant::now());
    }

    /// The current status.
    pub fn status(&self) -> HopStatus {
        let now = Instant::now();
        let inner = self.lock();
        let view = inner.pace.view(now);
        let wait = |until: Instant| SignedDuration::try_from(until - now).unwrap_or_default();
        let ago = |since: Instant| SignedDuration::try_from(now - since).unwrap_or_default();
        HopStatus {
            name: self.name.clone(),
            state: view.state,
            per_minute: view.rate.map(|rate| (rate * 60.0).round() as u64),
            at_once: view.window,
            until: view.until.map(|until| wall_clock() + wait(until)),
            dead_since: view.dead_since.map(|since| wall_clock() - ago(since)),
            probing: view.probing,
            said: inner.said.clone().filter(|_| view.state != PaceState::Free),
            login_refused: view.login_refused,
        }
    }

    /// Incidents since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        std::mem::take(&mut self.lock().incidents)
    }

    /// Processes the end of a delivery: counts throttling and keeps the hop's words, returns the ticket to the pace, and
    /// records the change that follows. `whose`: the message.
    fn end(
        &self,
        ticket: &DeliveryTicket,
        signal: HopSignal,
        whose: Option<&Envelope>,
        said: &str,
    ) {
        let party = whose.filter(|_| signal.is_at_content()).map(Party::of);
        let mut inner = self.lock();
        if matches!(
            signal,
            HopSignal::Throttled
                | HopSignal::Later
                | HopSignal::ThrottledAtEnd
                | HopSignal::LaterAtEnd
        ) {
            counter!("spillway_next_hop_throttles_total", "next_hop" => self.name.to_string())
                .increment(1);
        }
        let trouble = !matches!(
            signal,
            HopSignal::Fine | HopSignal::Unknown | HopSignal::Busy
        );
        if trouble {
            inner.said = Some(said.chars().take(ERROR_TEXT_CHARS_MAX).collect());
        }
        let (now, rng) = (Instant::now(), &mut chance::rng());
        let change = inner.pace.ended(ticket, signal, party.as_ref(), now, rng);
        if let Some(change) = change {
            self.record(&mut inner, change);
        }
    }

    /// Records a change as an incident. A rate cut of a hop that is already paced is only logged.
    fn record(&self, inner: &mut Inner, change: PaceChange) {
        let name = &self.name;
        let (kind, summary) = match change {
            PaceChange::Paced(rate) => (
                Kind::NextHopPaced,
                format!("next hop {name} throttles us: {rate:.1} messages a second from now on"),
            ),
            PaceChange::Cut(rate) => {
                tracing::info!(next_hop = %name, rate, said = inner.said, "next hop throttles again");
                return;
            }
            PaceChange::Dead => (
                Kind::NextHopDead,
                format!("next hop {name} does not work: one probe at a time from now on"),
            ),
            PaceChange::LoginRefused(wait) => (
                Kind::NextHopDead,
                format!(
                    "next hop {name} refused our login: one login at a time from now on, the next in {} s",
                    wait.as_secs()
                ),
            ),
            PaceChange::LoginRefusedAgain(wait) => {
                let (said, seconds) = (&inner.said, wait.as_secs());
                tracing::warn!(next_hop = %name, said, seconds, "next hop refused our login again");
                return;
            }
            PaceChange::Alive(after) => (
                Kind::NextHopAlive,
                format!("next hop {name} works again after {} s", after.as_secs()),
            ),
            PaceChange::Free => (
                Kind::NextHopAlive,
                format!("next hop {name} gets all its mail again"),
            ),
            PaceChange::PerMessageDeferrals => (
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
        if inner.incidents.len() < PENDING_INCIDENTS_MAX {
            inner.incidents.push(incident);
        }
    }

    /// A refusal in words, for the reply to a sender and for the record of a stored message. The record is shown later, so the
    /// text names no time.
    fn text(&self, refusal: &Refusal, said: Option<&str>) -> String {
        let (name, said) = (&self.name, said.unwrap_or("trouble"));
        let mut text = match refusal.reason {
            RefusalReason::Paced => format!("next hop {name} is paced after {said}"),
            RefusalReason::Dead => format!("next hop {name} does not work: {said}"),
            RefusalReason::LoginRefused => format!("next hop {name} refused our login: {said}"),
            RefusalReason::Busy => format!("all connections to next hop {name} are in use"),
        };
        text.push_str(match refusal.until {
            Some(_) => "; tried again as soon as its pace allows it",
            None => "; tried again when its turn comes",
        });
        text
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HopStatus {
    /// The state for people, with times as `time` writes them: `healthy`; `paced, 90 a minute, 5 at once`; `down since 12:26:05,
    /// next probe 12:31:10`; `refuses our login since 12:26:05, next login 12:31:10`.
    pub fn words(&self, time: impl Fn(Timestamp) -> String) -> String {
        match self.state {
            PaceState::Free => "healthy".to_owned(),
            PaceState::Paced => {
                let mut text = "paced".to_owned();
                if let Some(rate) = self.per_minute {
                    text.push_str(&format!(", {rate} a minute"));
                }
                if let Some(at_once) = self.at_once {
                    text.push_str(&format!(", {at_once} at once"));
                }
                if let Some(until) = self.until {
                    text.push_str(&format!(", nothing before {}", time(until)));
                }
                text
            }
            PaceState::Dead => {
                let since = self.dead_since.map(&time);
                let since = since.map_or(String::new(), |since| format!(" since {since}"));
                // A probe of a hop that refuses our login is a login.
                let (down, probe) = match self.login_refused {
                    true => ("refuses our login", "login"),
                    false => ("down", "probe"),
                };
                let next = match (self.probing, self.until) {
                    (true, _) => format!("a {probe} is under way"),
                    (false, Some(until)) => format!("next {probe} {}", time(until)),
                    // The lanes look for mail every second.
                    (false, None) => format!("next {probe} with the next message to be tried"),
                };
                format!("{down}{since}, {next}")
            }
        }
    }
}

/// One line for people: [`HopStatus::words`], and the next hop's last error.
impl fmt::Display for HopStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words(|at| format!("{at:.0}")))?;
        match &self.said {
            Some(said) => write!(f, ": {said}"),
            None => Ok(()),
        }
    }
}

impl DeliveryPermit {
    /// Whether this permit is for this gate.
    pub fn is_for(&self, gate: &Arc<HopGate>) -> bool {
        Arc::ptr_eq(&self.gate, gate)
    }

    /// Returns the permit with the result of the delivery of message `whose`: the signal about the hop and its text.
    /// True if the hop's pace decides when the undelivered message goes out: no server was offered the message, so the
    /// delivery does not count as an attempt.
    pub fn end(mut self, signal: HopSignal, offered: bool, whose: &Envelope, said: &str) -> bool {
        let Some(ticket) = self.ticket.take() else {
            return false;
        };
        // Without a pace only a refused login matters, and that the server accepted the next one.
        let about_hop = match signal {
            HopSignal::Fine | HopSignal::LoginRefused => signal,
            _ if self.gate.paced => signal,
            _ if offered => HopSignal::Fine,
            _ => HopSignal::Unknown,
        };
        self.gate.end(&ticket, about_hop, Some(whose), said);
        let decides = match signal {
            HopSignal::LoginRefused => true,
            HopSignal::Throttled | HopSignal::Unreachable | HopSignal::Busy => self.gate.paced,
            _ => false,
        };
        decides && !offered
    }
}

impl Drop for DeliveryPermit {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.end(&ticket, HopSignal::Unknown, None, "");
        }
    }
}
