//! Passing messages to next hops.
//!
//! Recipients are grouped by next hop ([`Delivery::route`]), the next hops are spoken to at once, and every recipient
//! gets an outcome of its own. What is tried again at once and what is not is decided in one place per kind of next
//! hop: [`relay`] for SMTP and LMTP, [`maildir`] for folders. What is tried again later is the caller's, with
//! [`schedule::next_attempt`]; who is told about failures is [`dsn`]'s.
//!
//! A next hop that throttles us or does not work gets its mail at the [`pace`] that it allows: what it would refuse anyway
//! is not sent, and [`Answer::held_back`] says so. Whoever keeps such mail asks for [`Delivery::room`], and for a
//! [`Turn`] for each message.

mod connection;
pub mod dsn;
mod endpoint;
mod gate;
mod maildir;
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
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use serde::{Deserialize, Serialize};

use crate::deadline::Deadline;
use crate::incident::Incident;
use crate::message::{Content, Envelope, MessageId};
use crate::smtp::RemoteReply;
use crate::smtp::dialog::Stage;
use crate::smtp::reply_parser::parse_status;
pub use gate::{HopStatus, Turn};
pub use objection::Objection;
pub use pace::State;
pub use told::{Taken, Told};

#[cfg(test)]
pub(crate) use {pace::Sign, relay::Ended};

use gate::Gate;
use maildir::Maildir;
#[cfg(not(test))]
use pace::Sign;
use pace::Who;
#[cfg(not(test))]
use relay::Ended;
use relay::Relay;
use routes::Routes;

/// Domains without a next hop that the log names, each once for a configuration.
const UNROUTED_TOLD: usize = 100;

/// Settings of one `[[next_hop]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique; in logs and metrics.
    pub name: Arc<str>,
    /// Recipient domains it takes, lower case: `example.com`, `.example.com` (all below), `*` (all others).
    pub domains: Vec<String>,
    /// How it is spoken to.
    pub kind: Kind,
    /// First wait after a deferral; doubled each time, with jitter.
    pub retry_first: Duration,
    /// Longest wait between attempts.
    pub retry_max: Duration,
    /// Bounced after so long in the queue.
    pub give_up: Duration,
}

/// How a next hop is spoken to.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// SMTP or LMTP.
    Smtp(SmtpSettings),
    /// One Maildir per recipient below a folder.
    Maildir {
        /// `{domain}` and `{local}` stand for the recipient's; anything unsafe in them is replaced.
        path: String,
    },
}

/// A server that is spoken to over a socket.
#[derive(Debug, Clone, PartialEq)]
pub struct SmtpSettings {
    /// LMTP (RFC 2033) rather than SMTP.
    pub lmtp: bool,
    /// Tried in order: `host:port`, or `unix:/path` for LMTP.
    pub addresses: Vec<String>,
    /// Encryption.
    pub tls: TlsMode,
    /// Extra trusted certificates (PEM) for `verified`; the system's when empty.
    pub tls_ca: Option<PathBuf>,
    /// AUTH user.
    pub username: Option<String>,
    /// File that holds the password alone.
    pub password_file: Option<PathBuf>,
    /// Connections at once at most, idle ones included.
    pub connections: usize,
    /// Whether its mail waits here while it throttles us or does not work, and goes out at the pace that it allows.
    pub pace: bool,
    /// An idle connection is closed after so long.
    pub idle: Duration,
    /// One connection attempt.
    pub connect_timeout: Duration,
    /// The reply to any command but the last.
    pub command_timeout: Duration,
    /// The reply to end of data (RFC 5321 4.5.3.2.6).
    pub data_timeout: Duration,
    /// What we call ourselves in EHLO; from `relay.hostname`.
    pub hostname: String,
}

/// Encryption towards a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Off,
    /// STARTTLS where offered, any certificate.
    Opportunistic,
    /// STARTTLS or nothing, any certificate.
    Required,
    /// STARTTLS or nothing, certificate checked against the host's name.
    Verified,
}

/// What is to be delivered.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// For logs.
    pub id: MessageId,
    /// Reverse-path, parameters, and the recipients of this delivery.
    pub envelope: Arc<Envelope>,
    /// Header fields we put before the content, each with its CRLF.
    pub prefix: Bytes,
    /// The content as received.
    pub content: Content,
    /// Who hears of each recipient that a next hop takes, while others are waited for.
    pub told: Told,
}

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The next hop took responsibility.
    Delivered(Answer),
    /// Not now: 4yz, no connection, time ran out.
    Deferred(Answer),
    /// Never: 5yz, no route.
    Failed(Answer),
}

/// Who said what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The next hop's name; empty where there is no route.
    pub next_hop: Arc<str>,
    /// The server we spoke to, if we came so far.
    pub server: Option<SocketAddr>,
    /// What it said.
    pub reply: Option<RemoteReply>,
    /// What it said that to, where it was about this message.
    #[serde(default)]
    pub stage: Option<Stage>,
    /// One line for people: the reply with its stage, or what went wrong without one. A refusal of our own begins with
    /// its enhanced status code.
    pub text: String,
    /// The server offered DSN (RFC 3461) and got our DSN parameters: success reports are its business now.
    #[serde(default)]
    pub dsn_passed: bool,
    /// The message was not offered to anybody, so that this was no attempt; the next hop's pace decides when it is.
    #[serde(default)]
    pub held_back: bool,
}

impl Answer {
    /// Without server, reply and text.
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

    /// No next hop takes the recipient's domain.
    pub fn is_unrouted(&self) -> bool {
        self.next_hop.is_empty()
    }

    /// The enhanced status code (RFC 3463) that was given, by the server or by us.
    pub fn status(&self) -> Option<(u16, u16, u16)> {
        match &self.reply {
            Some(reply) => reply.enhanced,
            None => parse_status(self.text.split(' ').next()?),
        }
    }

    /// What it objects to.
    pub fn objection(&self) -> Objection {
        let code = self.reply.as_ref().map(|reply| reply.code);
        Objection::of(self.stage, code, self.status())
    }
}

impl Outcome {
    /// What was said.
    pub fn answer(&self) -> &Answer {
        match self {
            Self::Delivered(answer) | Self::Deferred(answer) | Self::Failed(answer) => answer,
        }
    }
}

/// Why next hops cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Not of a form that we know.
    #[error("next hop {0}: {1:?} is not an address (host:port, [IPv6]:port, or unix:/path)")]
    Address(String, String),
    /// None at all.
    #[error("next hop {0} has no address")]
    NoAddress(String),
    /// `verified` needs a name.
    #[error("next hop {0}: {1:?} has no host name that a certificate could be checked against")]
    NoNameToVerify(String, String),
    /// Username without password file, or the other way round.
    #[error("next hop {0}: username and password_file belong together")]
    HalfCredentials(String),
    /// The password file cannot be used.
    #[error("password file {path}: {why}", path = .0.display(), why = .1)]
    Password(PathBuf, String),
    /// No certificate can be checked.
    #[error(transparent)]
    Trust(#[from] crate::trust::NoTrust),
    /// Two next hops want the same mail.
    #[error("the domain {domain:?} is claimed by the next hops {first} and {second}")]
    DomainTwice {
        /// As written.
        domain: String,
        /// The next hop that comes first.
        first: String,
        /// The other.
        second: String,
    },
    /// A Maildir template without a place for the recipient.
    #[error(
        "next hop {0}: the path {1:?} does not contain {{local}}, so all recipients would share one mailbox"
    )]
    SharedMaildir(String, String),
}

/// All next hops, with their pools. Clones share them.
#[derive(Clone)]
pub struct Delivery {
    shared: Arc<Shared>,
}

struct Shared {
    hops: Vec<Hop>,
    routes: Routes,
    /// Domains that no next hop takes, as far as the log has named them.
    unrouted: Mutex<HashSet<String>>,
}

struct Hop {
    settings: Settings,
    means: Means,
    gate: Arc<Gate>,
    /// Made at the first delivery: by then the recorder is installed.
    meters: OnceLock<Meters>,
}

enum Means {
    Relay(Box<Relay>),
    Maildir(Maildir),
    #[cfg(test)]
    Scripted(Arc<dyn Scripted>),
}

/// A next hop without sockets, for tests on paused time.
#[cfg(test)]
pub(crate) trait Scripted: Send + Sync {
    /// What becomes of the recipients at these positions, by the deadline.
    fn deliver(
        &self,
        mail: Outbound,
        recipients: Vec<usize>,
        deadline: Deadline,
    ) -> futures_util::future::BoxFuture<'static, Ended>;
}

struct Meters {
    delivered: Counter,
    deferred: Counter,
    held_back: Counter,
    failed: Counter,
    seconds: Histogram,
    connections: Gauge,
}

impl Meters {
    fn new(next_hop: &Arc<str>) -> Self {
        let outcome = |outcome: &'static str| counter!("spillway_deliveries_total", "next_hop" => next_hop.to_string(), "outcome" => outcome);
        Self {
            delivered: outcome("delivered"),
            deferred: outcome("deferred"),
            held_back: outcome("held-back"),
            failed: outcome("failed"),
            seconds: histogram!("spillway_delivery_seconds", "next_hop" => next_hop.to_string()),
            connections: gauge!("spillway_next_hop_connections", "next_hop" => next_hop.to_string()),
        }
    }

    fn count(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Delivered(_) => self.delivered.increment(1),
            Outcome::Deferred(answer) if answer.held_back => self.held_back.increment(1),
            Outcome::Deferred(_) => self.deferred.increment(1),
            Outcome::Failed(_) => self.failed.increment(1),
        }
    }
}

impl Delivery {
    /// Sets up all next hops: reads their certificate and password files, connects nowhere. What is known of the pace of
    /// those of `before` goes on where the server is the same.
    pub fn new(settings: Vec<Settings>, before: Option<&Self>) -> Result<Self, BuildError> {
        let routes = Routes::new(&settings)?;
        let mut hops = Vec::with_capacity(settings.len());
        for settings in settings {
            let name = settings.name.clone();
            let means = match &settings.kind {
                Kind::Smtp(smtp) => Means::Relay(Box::new(Relay::new(name, smtp)?)),
                Kind::Maildir { path } => Means::Maildir(Maildir::new(name, path)?),
            };
            hops.push(Hop {
                gate: gate(&settings, before),
                settings,
                means,
                meters: OnceLock::new(),
            });
        }
        Ok(Self::of(hops, routes))
    }

    /// Next hops that a test has made; the settings say what they are for and how patient they are tried.
    #[cfg(test)]
    pub(crate) fn scripted(
        hops: Vec<(Settings, Arc<dyn Scripted>)>,
        before: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let (settings, scripts): (Vec<_>, Vec<_>) = hops.into_iter().unzip();
        let routes = Routes::new(&settings)?;
        let hop = |(settings, script)| Hop {
            gate: gate(&settings, before),
            settings,
            means: Means::Scripted(script),
            meters: OnceLock::new(),
        };
        let hops = settings.into_iter().zip(scripts).map(hop).collect();
        Ok(Self::of(hops, routes))
    }

    fn of(hops: Vec<Hop>, routes: Routes) -> Self {
        let shared = Shared {
            hops,
            routes,
            unrouted: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Delivers to all recipients, every next hop at once; one outcome per recipient in their order. At the deadline
    /// what is undecided is [`Outcome::Deferred`].
    ///
    /// Cancel safety: connections in use are closed and never used again; a next hop may or may not have taken what
    /// was on its way.
    pub async fn deliver(&self, mail: &Outbound, deadline: Deadline) -> Vec<Outcome> {
        self.deliver_in_turn(mail, None, deadline).await
    }

    /// The same for a message that has waited and has a turn at its next hop. To other next hops it is fresh mail.
    ///
    /// Cancel safety: as [`Self::deliver`].
    pub async fn deliver_in_turn(
        &self,
        mail: &Outbound,
        mut turn: Option<Turn>,
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

    /// What becomes of mail for a domain that no next hop takes: it waits for one, as most likely somebody has forgotten the
    /// domain in a new configuration.
    fn unrouted(&self, domain: &str) -> Outcome {
        let mut told = self
            .shared
            .unrouted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if told.len() < UNROUTED_TOLD && told.insert(domain.to_owned()) {
            tracing::warn!(
                domain,
                "no next hop takes this domain: its mail waits, and bounces to it are held"
            );
        }
        Outcome::Deferred(Answer {
            text: format!(
                "4.4.4 no next hop takes {domain}: add it, or \"*\" for all, to the domains of a [[next_hop]]"
            ),
            ..Answer::of(&Arc::from(""))
        })
    }

    /// The settings of the next hop for a recipient's domain.
    pub fn route(&self, domain: &str) -> Option<&Settings> {
        let at = self.shared.routes.find(domain)?;
        Some(&self.shared.hops[at].settings)
    }

    /// The longest wait between two attempts for a next hop. Nothing is known of one that is not configured any more: what
    /// waits for it is routed anew.
    pub fn longest_wait(&self, next_hop: &str) -> Duration {
        let mut hops = self.shared.hops.iter();
        let hop = hops.find(|hop| *hop.settings.name == *next_hop);
        hop.map_or(schedule::UNROUTED, |hop| hop.settings.retry_max)
    }

    /// For how long a message is tried at most, whatever its next hop.
    pub fn longest_patience(&self) -> Duration {
        let hops = self.shared.hops.iter();
        let longest = hops.map(|hop| hop.settings.give_up).max();
        longest.map_or(schedule::UNROUTED_GIVE_UP, |longest| {
            longest.max(schedule::UNROUTED_GIVE_UP)
        })
    }

    /// How many messages that wait for a next hop may go out to it now, of so many; and otherwise after how long to ask
    /// again, if time alone decides that. A next hop that is not known takes all.
    pub fn room(&self, next_hop: &str, wanted: usize) -> (usize, Option<Duration>) {
        self.gate(next_hop)
            .map_or((wanted, None), |gate| gate.room(wanted))
    }

    /// A turn at a next hop for a message that has waited: none to be had now, in words; none needed where the next hop
    /// is not known.
    pub fn turn(&self, next_hop: &str) -> Result<Option<Turn>, String> {
        let gate = self.gate(next_hop);
        gate.map(|gate| gate.ask(Who::Waiting)).transpose()
    }

    /// The next hops that mail waits for which is due; it goes before fresh mail where there is a rate.
    pub fn waits(&self, backlog: impl Fn(&str) -> bool) {
        for hop in &self.shared.hops {
            hop.gate.waits(backlog(&hop.settings.name));
        }
    }

    /// Somebody has mended something: next hops that do not work may be probed at once.
    pub fn nudge(&self) {
        for hop in &self.shared.hops {
            hop.gate.nudge();
        }
    }

    /// What each next hop gets now, in order.
    pub fn status(&self) -> Vec<HopStatus> {
        let hops = self.shared.hops.iter();
        hops.map(|hop| hop.gate.status()).collect()
    }

    /// What happened to the next hops since the last call.
    pub fn incidents(&self) -> Vec<Incident> {
        let hops = self.shared.hops.iter();
        hops.flat_map(|hop| hop.gate.incidents()).collect()
    }

    fn gate(&self, next_hop: &str) -> Option<&Arc<Gate>> {
        let mut hops = self.shared.hops.iter();
        let hop = hops.find(|hop| *hop.settings.name == *next_hop)?;
        Some(&hop.gate)
    }

    /// Positions of recipients by next hop. There are few next hops, mostly one: a list is searched faster than a map.
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

impl Hop {
    async fn deliver(
        &self,
        mail: &Outbound,
        recipients: Vec<usize>,
        turn: Option<Turn>,
        deadline: Deadline,
    ) -> Vec<(usize, Outcome)> {
        let meters = self.meters.get_or_init(|| Meters::new(&self.settings.name));
        let outcomes = match turn.map_or_else(|| self.gate.ask(Who::Fresh), Ok) {
            Ok(turn) => {
                let start = tokio::time::Instant::now();
                let outcomes = self.attempt(mail, recipients, turn, meters, deadline).await;
                meters.seconds.record(start.elapsed());
                outcomes
            }
            Err(text) => {
                let answer = Answer {
                    text,
                    held_back: true,
                    ..Answer::of(&self.settings.name)
                };
                let outcome = |at| (at, Outcome::Deferred(answer.clone()));
                recipients.into_iter().map(outcome).collect()
            }
        };
        for (_, outcome) in &outcomes {
            meters.count(outcome);
        }
        outcomes
    }

    async fn attempt(
        &self,
        mail: &Outbound,
        recipients: Vec<usize>,
        turn: Turn,
        meters: &Meters,
        deadline: Deadline,
    ) -> Vec<(usize, Outcome)> {
        let Ended {
            mut outcomes,
            sign,
            offered,
        } = match &self.means {
            Means::Maildir(maildir) => return maildir.deliver(mail, recipients, deadline).await,
            Means::Relay(relay) => {
                let connections = &meters.connections;
                relay.deliver(mail, recipients, connections, deadline).await
            }
            #[cfg(test)]
            Means::Scripted(hop) => hop.deliver(mail.clone(), recipients, deadline).await,
        };
        let deferred = |(_, outcome): &(usize, Outcome)| match outcome {
            Outcome::Deferred(answer) => Some(answer.text.clone()),
            _ => None,
        };
        let said = match sign {
            Sign::Fine => String::new(),
            _ => outcomes.iter().find_map(deferred).unwrap_or_default(),
        };
        if turn.end(sign, offered, &mail.envelope, &said) {
            for (_, outcome) in &mut outcomes {
                if let Outcome::Deferred(answer) = outcome {
                    answer.held_back = true;
                }
            }
        }
        outcomes
    }
}

/// The gate of the same hop before, if its server is the same; else a new one.
fn gate(settings: &Settings, before: Option<&Delivery>) -> Arc<Gate> {
    let same =
        |hop: &&Hop| hop.settings.name == settings.name && hop.settings.kind == settings.kind;
    let before = before.and_then(|before| before.shared.hops.iter().find(same));
    match (before, &settings.kind) {
        (Some(hop), _) => hop.gate.clone(),
        (None, Kind::Smtp(smtp)) => Gate::new(settings.name.clone(), smtp.connections, smtp.pace),
        // A folder has no pace.
        (None, Kind::Maildir { .. }) => Gate::new(settings.name.clone(), 1, false),
    }
}

/// The names of the next hops; their passwords are nobody's business.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.shared.hops.iter().map(|hop| &hop.settings.name);
        f.debug_list().entries(names).finish()
    }
}
