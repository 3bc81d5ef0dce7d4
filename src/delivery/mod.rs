//! Delivery of messages to next hops.
//!
//! [`Delivery`] groups the recipients of a message by next hop ([`Delivery::route`]), contacts all these next hops
//! concurrently, and returns one outcome for each recipient. Each kind of [`next_hop`] decides in one place what to retry
//! within the same attempt: [`relay`] for SMTP and LMTP, [`maildir`] for folders. The caller schedules later attempts
//! with [`schedule::next_attempt`]. [`dsn`] decides which failures the sender hears of.
//!
//! A next hop that throttles or does not work receives mail at the [`pace`] that it allows. A message that it would
//! refuse is not sent, and [`Answer::held_back`] says so. The caller stores such a message, asks [`Delivery::room`] how
//! many messages may go out, and takes a [`DeliveryPermit`] for each.

mod connection;
mod delivered;
pub mod dsn;
mod endpoint;
mod failure;
mod gate;
mod login;
mod maildir;
pub(crate) mod next_hop;
mod objection;
mod outcome;
mod pace;
mod pool;
mod relay;
mod routes;
pub mod schedule;
mod settings;
mod throttle;
mod tls;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::deadline::Deadline;
use crate::incident::Incident;
use crate::message::{Content, Envelope, MessageId};
pub use delivered::{DeliveredRecipient, DeliveredSender};
pub use gate::{DeliveryPermit, HopStatus};
pub use objection::Objection;
pub use outcome::{Answer, Outcome};
pub use pace::PaceState;
pub use settings::{BuildError, Kind, Settings, SmtpSettings, TlsMode};

use gate::HopGate;
use maildir::Maildir;
use next_hop::{Hop, NextHop};
use pace::MailKind;
use relay::Relay;
use routes::Routes;

/// Largest number of domains without a next hop that the log names, each once per configuration. The bound keeps mail
/// for many invented domains from filling memory and log.
const UNROUTED_DOMAINS_LOGGED_MAX: usize = 100;

/// A message to deliver.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Message id for logs.
    pub id: MessageId,
    /// Reverse-path, parameters, and the recipients of this delivery.
    pub envelope: Arc<Envelope>,
    /// Header fields that this relay adds before the content, each with its CRLF.
    pub prefix: Bytes,
    /// The content as received.
    pub content: Content,
    /// Receives a report for each recipient whose message a next hop takes while other recipients are still open.
    pub delivered: DeliveredSender,
}

/// All next hops with their connection pools. Clones share the same next hops.
#[derive(Clone)]
pub struct Delivery {
    shared: Arc<SharedHops>,
}

struct SharedHops {
    hops: Vec<Hop>,
    routes: Routes,
    /// Domains without a next hop that the log has already named.
    unrouted: Mutex<HashSet<String>>,
}

impl Delivery {
    /// Sets up all next hops: reads their certificate and password files and opens no connection. A next hop with the
    /// same name and server in `before` keeps its pace.
    pub fn new(settings: Vec<Settings>, before: Option<&Self>) -> Result<Self, BuildError> {
        let routes = Routes::new(&settings)?;
        let mut hops: Vec<(Settings, Arc<dyn NextHop>)> = Vec::with_capacity(settings.len());
        for settings in settings {
            let name = settings.name.clone();
            let next_hop: Arc<dyn NextHop> = match &settings.kind {
                Kind::Smtp(smtp) => Arc::new(Relay::new(name, smtp)?),
                Kind::Maildir { path } => Arc::new(Maildir::new(name, path)?),
            };
            hops.push((settings, next_hop));
        }
        Ok(Self::of(hops, routes, before))
    }

    fn of(hops: Vec<(Settings, Arc<dyn NextHop>)>, routes: Routes, before: Option<&Self>) -> Self {
        let before = before.map_or(&[][..], |before| &before.shared.hops);
        let hops = hops.into_iter();
        let shared = SharedHops {
            hops: hops
                .map(|(settings, next_hop)| Hop::new(settings, next_hop, before))
                .collect(),
            routes,
            unrouted: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Delivers to all recipients, with all next hops concurrently, and returns one outcome for each recipient in
    /// envelope order. A recipient that is undecided at the deadline is [`Outcome::Deferred`].
    ///
    /// Cancel safety: open connections of this delivery are closed and never reused; a next hop may or may not have
    /// taken the message.
    pub async fn deliver(&self, mail: &Outbound, deadline: Deadline) -> Vec<Outcome> {
        self.deliver_in_turn(mail, None, deadline).await
    }

    /// As [`Self::deliver`], for a stored message that holds a permit for one next hop. Any other next hop treats the
    /// message as fresh mail.
    ///
    /// Cancel safety: as [`Self::deliver`].
    pub async fn deliver_in_turn(
        &self,
        mail: &Outbound,
        mut turn: Option<DeliveryPermit>,
        deadline: Deadline,
    ) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; mail.envelope.recipients.len()];
        let mut work = FuturesUnordered::new();
        for (hop, recipients) in self.group(mail) {
            let hop = &self.shared.hops[hop];
            let own = turn.take_if(|turn| turn.is_for(&hop.gate));
            work.push(hop.deliver(mail, recipients, own, deadline));
        }
        while let Some(done) = work.next().await {
            for (at, outcome) in done {
                if let Some(place) = outcomes.get_mut(at) {
                    *place = Some(outcome);
                }
            }
        }
        outcomes
            .into_iter()
            .zip(&mail.envelope.recipients)
            .map(|(outcome, recipient)| {
                let domain = recipient.mailbox.domain();
                outcome.unwrap_or_else(|| self.unrouted(domain))
            })
            .collect()
    }

    /// Delivers to all recipients through the next hop with this name, wherever their domains belong, and returns one outcome
    /// for each in envelope order; `None` without this next hop. The pace of the next hop holds.
    ///
    /// Cancel safety: as [`Self::deliver`].
    pub async fn deliver_through(
        &self,
        next_hop: &str,
        mail: &Outbound,
        deadline: Deadline,
    ) -> Option<Vec<Outcome>> {
        let mut hops = self.shared.hops.iter();
        let hop = hops.find(|hop| *hop.settings.name == *next_hop)?;
        let all = (0..mail.envelope.recipients.len()).collect();
        let mut outcomes = hop.deliver(mail, all, None, deadline).await;
        outcomes.sort_by_key(|(at, _)| *at);
        Some(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Outcome for a domain that no next hop takes. The message waits, because the most likely cause is that a new
    /// configuration lacks the domain by mistake.
    fn unrouted(&self, domain: &str) -> Outcome {
        let mut logged = self
            .shared
            .unrouted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if logged.len() < UNROUTED_DOMAINS_LOGGED_MAX && logged.insert(domain.to_owned()) {
            tracing::warn!(
                domain,
                "no next hop takes this domain: its mail waits, and bounces to it are held; add it to the domains of a [[next_hop]]"
            );
        }
        Outcome::Deferred(Answer {
            text: format!(
                "4.4.4 no next hop takes {domain}: add it, or \"*\" for all, to the domains of a [[next_hop]]"
            ),
            ..Answer::of(&Arc::from(""))
        })
    }

    /// The settings of the next hop that takes this recipient domain, or `None`.
    pub fn route(&self, domain: &str) -> Option<&Settings> {
        let at = self.shared.routes.find(domain)?;
        Some(&self.shared.hops[at].settings)
    }

    /// Longest wait between two attempts for this next hop. For a next hop that is not configured any more, the wait
    /// for unrouted mail applies: its messages are routed again.
    pub fn longest_wait(&self, next_hop: &str) -> Duration {
        let mut hops = self.shared.hops.iter();
        let hop = hops.find(|hop| *hop.settings.name == *next_hop);
        hop.map_or(schedule::UNROUTED_RETRY_INTERVAL, |hop| {
            hop.settings.retry_max
        })
    }

    /// Longest time in the queue before a message is bounced, over all next hops.
    pub fn longest_give_up(&self) -> Duration {
        let hops = self.shared.hops.iter();
        let longest = hops.map(|hop| hop.settings.give_up).max();
        longest.map_or(schedule::UNROUTED_GIVE_UP, |longest| {
            longest.max(schedule::UNROUTED_GIVE_UP)
        })
    }

    /// How many of `wanted` stored messages may go out to this next hop now. If none may and only time decides, also
    /// the wait before the next call is useful. An unknown next hop takes all.
    pub fn room(&self, next_hop: &str, wanted: usize) -> (usize, Option<Duration>) {
        self.gate(next_hop)
            .map_or((wanted, None), |gate| gate.room(wanted))
    }

    /// Takes a permit for a stored message at this next hop. Returns `Ok(None)` for an unknown next hop, which needs no
    /// permit, and `Err` with the reason in words if the next hop takes no message now.
    pub fn turn(&self, next_hop: &str) -> Result<Option<DeliveryPermit>, String> {
        let gate = self.gate(next_hop);
        gate.map(|gate| gate.ask(MailKind::Waiting)).transpose()
    }

    /// Tells each next hop whether stored mail for it is due. While the next hop has a rate, that mail goes before
    /// fresh mail.
    pub fn waits(&self, backlog: impl Fn(&str) -> bool) {
        for hop in &self.shared.hops {
            hop.gate.set_waiting(backlog(&hop.settings.name));
        }
    }

    /// Allows an immediate probe of each next hop that does not work, because an administrator may have repaired
    /// something.
    pub fn nudge(&self) {
        for hop in &self.shared.hops {
            hop.gate.nudge();
        }
    }

    /// Status of each next hop, in configuration order.
    pub fn status(&self) -> Vec<HopStatus> {
        let hops = self.shared.hops.iter();
        hops.map(|hop| hop.gate.status()).collect()
    }

    /// Incidents of the next hops since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        let hops = self.shared.hops.iter();
        hops.flat_map(|hop| hop.gate.incidents()).collect()
    }

    fn gate(&self, next_hop: &str) -> Option<&Arc<HopGate>> {
        let mut hops = self.shared.hops.iter();
        let hop = hops.find(|hop| *hop.settings.name == *next_hop)?;
        Some(&hop.gate)
    }

    /// Positions of the recipients, grouped by next hop. The list of groups is searched linearly: there are few next
    /// hops, usually one, and a linear search is faster than a map.
    fn group(&self, mail: &Outbound) -> Vec<(usize, Vec<usize>)> {
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        for (at, recipient) in mail.envelope.recipients.iter().enumerate() {
            let Some(hop) = self.shared.routes.find(recipient.mailbox.domain()) else {
                continue;
            };
            match groups.iter_mut().find(|(other, _)| *other == hop) {
                Some((_, recipients)) => recipients.push(at),
                None => groups.push((hop, vec![at])),
            }
        }
        groups
    }
}

/// Prints the names of the next hops only, because the settings can contain passwords.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.shared.hops.iter().map(|hop| &hop.settings.name);
        f.debug_list().entries(names).finish()
    }
}
