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
pub mod dsn;
mod endpoint;
mod gate;
mod maildir;
pub(crate) mod next_hop;
mod objection;
mod pace;
mod pool;
mod relay;
mod routes;
pub mod schedule;
mod throttle;
mod tls;
mod told;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::incident::Incident;
use crate::message::{Content, Envelope, MessageId};
use crate::smtp::RemoteReply;
use crate::smtp::dialog::Stage;
use crate::smtp::reply_parser::parse_status;
pub use gate::{DeliveryPermit, HopStatus};
pub use objection::Objection;
pub use pace::PaceState;
pub use told::{Taken, Told};

use gate::HopGate;
use maildir::Maildir;
use next_hop::{Hop, NextHop};
use pace::Who;
use relay::Relay;
use routes::Routes;

/// Largest number of domains without a next hop that the log names, each once per configuration. The bound keeps mail
/// for many invented domains from filling memory and log.
const UNROUTED_DOMAINS_LOGGED_MAX: usize = 100;

/// Settings of one `[[next_hop]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique name, used in logs and metrics.
    pub name: Arc<str>,
    /// Recipient domains of this next hop, in lower case: `example.com`, `.example.com` (all subdomains), `*` (all
    /// others).
    pub domains: Vec<String>,
    /// Protocol of this next hop.
    pub kind: Kind,
    /// Wait after the first deferral. The wait doubles with each further deferral and has jitter.
    pub retry_first: Duration,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// Time in the queue after which the message is bounced.
    pub give_up: Duration,
}

/// Protocol of a next hop.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// An SMTP or LMTP server.
    Smtp(SmtpSettings),
    /// One Maildir for each recipient below a folder.
    Maildir {
        /// Template of the Maildir's path. `{domain}` and `{local}` stand for the parts of the recipient's address;
        /// unsafe characters in them are encoded.
        path: String,
    },
}

/// Settings of a server that this relay reaches over a socket.
#[derive(Debug, Clone, PartialEq)]
pub struct SmtpSettings {
    /// Whether the server speaks LMTP (RFC 2033) instead of SMTP.
    pub lmtp: bool,
    /// Addresses, tried in order: `host:port`, or `unix:/path` for LMTP.
    pub addresses: Vec<String>,
    /// Encryption mode.
    pub tls: TlsMode,
    /// File with additional trusted certificates (PEM) for `verified`; the system's certificates if `None`.
    pub tls_ca: Option<PathBuf>,
    /// User name for AUTH.
    pub username: Option<String>,
    /// File that contains only the password.
    pub password_file: Option<PathBuf>,
    /// Largest number of connections at a time, including idle ones.
    pub connections: usize,
    /// Whether mail for this server waits here and goes out at the pace that the server allows, while the server
    /// throttles or does not work.
    pub pace: bool,
    /// Idle time after which a connection is closed.
    pub idle: Duration,
    /// Timeout of one connection attempt.
    pub connect_timeout: Duration,
    /// Timeout of the reply to any command before the end of data.
    pub command_timeout: Duration,
    /// Timeout of the reply to the end of data (RFC 5321 4.5.3.2.6).
    pub data_timeout: Duration,
    /// Host name in EHLO, taken from `relay.hostname`.
    pub hostname: String,
}

/// Encryption of connections to a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Off,
    /// STARTTLS if the server offers it, with any certificate.
    Opportunistic,
    /// STARTTLS is required, with any certificate.
    Required,
    /// STARTTLS is required, and the certificate must match the host name.
    Verified,
}

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
    /// Receives a report for each recipient that a next hop accepts while other recipients are still open.
    pub told: Told,
}

/// Result of a delivery for one recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The next hop took responsibility for the message.
    Delivered(Answer),
    /// Transient failure: a 4yz reply, no connection, or the deadline passed.
    Deferred(Answer),
    /// Permanent failure: a 5yz reply, or a message that the next hop's protocol cannot carry.
    Failed(Answer),
}

/// What happened at the next hop: the server and its reply, or the reason why there is no reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the next hop; empty if no next hop takes the domain.
    pub next_hop: Arc<str>,
    /// Address of the server, if a connection was attempted.
    pub server: Option<SocketAddr>,
    /// The server's reply.
    pub reply: Option<RemoteReply>,
    /// The command that the reply answers, if the reply is about this message.
    #[serde(default)]
    pub stage: Option<Stage>,
    /// One line for people: the reply with its stage, or the error if there is no reply. A refusal by this relay begins
    /// with its enhanced status code.
    pub text: String,
    /// The server offered DSN (RFC 3461) and received the DSN parameters, so the server now sends success
    /// notifications.
    #[serde(default)]
    pub dsn_passed: bool,
    /// No server was offered the message, so this was not an attempt. The next hop's pace decides when the message goes
    /// out.
    #[serde(default)]
    pub held_back: bool,
}

impl Answer {
    /// An answer without server, reply and text.
    fn of(next_hop: &Arc<str>) -> Self {
        Self {
            next_hop: next_hop.clone(),
            server: None,
            reply: None,
            stage: None,
            text: String::new(),
            dsn_passed: false,
            held_back: false,
        }
    }

    /// Whether no next hop takes the recipient's domain.
    pub fn is_unrouted(&self) -> bool {
        self.next_hop.is_empty()
    }

    /// The enhanced status code (RFC 3463) from the server's reply or, without a reply, from this relay's own text.
    pub fn status(&self) -> Option<(u16, u16, u16)> {
        match &self.reply {
            Some(reply) => reply.enhanced,
            None => parse_status(self.text.split(' ').next()?),
        }
    }

    /// What the answer objects to: the form of the message, the recipient, or something else.
    pub fn objection(&self) -> Objection {
        let code = self.reply.as_ref().map(|reply| reply.code);
        Objection::of(self.stage, code, self.status())
    }
}

impl Outcome {
    /// The answer inside the outcome.
    pub fn answer(&self) -> &Answer {
        match self {
            Self::Delivered(answer) | Self::Deferred(answer) | Self::Failed(answer) => answer,
        }
    }
}

/// Why the next hops cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Next hop and address: the address has none of the known forms.
    #[error("next hop {0}: {1:?} is not an address (host:port, [IPv6]:port, or unix:/path)")]
    Address(String, String),
    /// The next hop has no address.
    #[error("next hop {0} has no address")]
    NoAddress(String),
    /// `verified` is set, and the address has no host name to check the certificate against.
    #[error("next hop {0}: {1:?} has no host name that a certificate could be checked against")]
    NoNameToVerify(String, String),
    /// The settings contain a user name without a password file, or a password file without a user name.
    #[error("next hop {0}: username and password_file belong together; set both or neither")]
    HalfCredentials(String),
    /// The password file cannot be used; the text says why.
    #[error("password file {path}: {why}", path = .0.display(), why = .1)]
    Password(PathBuf, String),
    /// No trusted certificates are available, or TLS cannot be set up.
    #[error(transparent)]
    Trust(#[from] crate::trust::NoTrust),
    /// Two next hops claim the same domain.
    #[error("the domain {domain:?} is claimed by the next hops {first} and {second}")]
    DomainTwice {
        /// The domain as written in the configuration.
        domain: String,
        /// The next hop that comes first in the configuration.
        first: String,
        /// The other next hop.
        second: String,
    },
    /// The Maildir template has no placeholder for the recipient.
    #[error(
        "next hop {0}: the path {1:?} does not contain {{local}}, so all recipients would share one mailbox"
    )]
    SharedMaildir(String, String),
}

/// All next hops with their connection pools. Clones share the same next hops.
#[derive(Clone)]
pub struct Delivery {
    shared: Arc<Shared>,
}

struct Shared {
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
        let shared = Shared {
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

    /// Outcome for a domain that no next hop takes. The message waits, because the most likely cause is that a new
    /// configuration lacks the domain by mistake.
    fn unrouted(&self, domain: &str) -> Outcome {
        let mut told = self
            .shared
            .unrouted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if told.len() < UNROUTED_DOMAINS_LOGGED_MAX && told.insert(domain.to_owned()) {
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
    pub fn longest_patience(&self) -> Duration {
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
        gate.map(|gate| gate.ask(Who::Waiting)).transpose()
    }

    /// Tells each next hop whether stored mail for it is due. While the next hop has a rate, that mail goes before
    /// fresh mail.
    pub fn waits(&self, backlog: impl Fn(&str) -> bool) {
        for hop in &self.shared.hops {
            hop.gate.waits(backlog(&hop.settings.name));
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
