//! One SMTP or LMTP next hop: chooses the connection for a message and decides which failures allow another attempt.
//!
//! Until the end of data was sent, no server has the message, and another address may receive it. After that the server
//! may have taken the message even if its reply never arrived (RFC 5321 4.5.5, RFC 1047), so the message is deferred. A
//! later attempt may then deliver a duplicate: the only case that SMTP itself leaves open.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics::Gauge;
use tracing::{debug, warn};

use super::connection::{Connection, ConnectionError, Dial, Plan, Unfinished};
use super::endpoint::{Avoided, Endpoint, Target};
use super::failure::{ConnectionFailure, Failed, remember};
use super::login::{KnownRefusals, Logins, ends_logins};
use super::next_hop::{HopResult, HopSignal, NextHop};
use super::pool::{Lease, Pool};
use super::throttle;
use super::{Answer, BuildError, Outbound, Outcome, SmtpSettings, TlsMode, tls};
use crate::deadline::Deadline;
use crate::message::Content;
use crate::smtp::RemoteReply;
use crate::smtp::dialog::{BareLineEnd, Credentials, Facts, Fate, Settled, Stage, TlsWish};
use crate::smtp::reply::Class;

/// Largest content in octets that is inspected in the async task. Larger content is inspected in a thread that may
/// block.
const INLINE_INSPECTION_OCTETS_MAX: usize = 1 << 20;

/// Longest wait for a connection while all are in use. A longer wait would let mail for a slow server hold sessions and
/// memory that other mail needs.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// A next hop that is reached over sockets.
pub struct Relay {
    name: Arc<str>,
    plan: Plan,
    targets: Vec<Target>,
    pool: Pool,
    avoided: Avoided,
}

/// Recipients that are still open, and the outcomes of the others.
struct Progress {
    open: Vec<usize>,
    done: Vec<(usize, Outcome)>,
    /// What the replies so far say about the hop.
    signal: HopSignal,
    /// Whether a server was offered the message.
    offered: bool,
    /// Whether a server was ready for content.
    content_begun: bool,
}

impl Relay {
    /// Parses the addresses and reads the certificate and password files.
    pub fn new(name: Arc<str>, settings: &SmtpSettings) -> Result<Self, BuildError> {
        let mut targets = Vec::with_capacity(settings.addresses.len());
        for text in &settings.addresses {
            let address = || BuildError::Address(name.to_string(), text.clone());
            let target = Target::parse(text).ok_or_else(address)?;
            if settings.tls == TlsMode::Verified && target.server_name().is_none() {
                return Err(BuildError::NoNameToVerify(name.to_string(), text.clone()));
            }
            targets.push(target);
        }
        if targets.is_empty() {
            return Err(BuildError::NoAddress(name.to_string()));
        }
        Ok(Self {
            plan: Plan {
                tls: tls::connector(settings)?,
                logins: Logins::new(&name, settings)?,
                settings: settings.clone(),
            },
            targets,
            pool: Pool::new(settings.connections, settings.idle),
            avoided: Avoided::default(),
            name,
        })
    }

    fn fail(&self, progress: &mut Progress, why: &BareLineEnd) {
        for at in progress.open.drain(..) {
            let answer = Answer {
                text: why.to_string(),
                ..Answer::of(&self.name)
            };
            progress.done.push((at, Outcome::Failed(answer)));
        }
    }

    fn defer(&self, progress: &mut Progress, endpoint: Option<&Endpoint>, why: &ConnectionFailure) {
        let answer = Answer {
            server: endpoint.and_then(Endpoint::address),
            reply: why.reply().cloned(),
            text: why.to_string(),
            ..Answer::of(&self.name)
        };
        for at in progress.open.drain(..) {
            let outcome = Outcome::Deferred(answer.clone());
            progress.done.push((at, outcome));
        }
    }

    /// Moves settled recipients from `open` to `done`.
    fn settle(
        &self,
        progress: &mut Progress,
        fates: Vec<(usize, Fate)>,
        server: &Endpoint,
        dsn_passed: bool,
    ) {
        progress.open.clear();
        for (at, fate) in fates {
            let Fate::Settled(settled) = fate else {
                progress.open.push(at);
                continue;
            };
            progress.signal = match &settled {
                Settled::Replied(stage, reply) => {
                    combined(progress.signal, throttle::of_reply(*stage, reply))
                }
                Settled::Unsupported(_) => HopSignal::Fine,
            };
            let answer = Answer {
                server: server.address(),
                dsn_passed,
                ..Answer::of(&self.name)
            };
            let outcome = match settled {
                Settled::Replied(stage, reply) => {
                    let (class, text) = (class(stage, &reply), format!("{stage}: {reply}"));
                    let answer = Answer {
                        reply: Some(reply),
                        stage: Some(stage),
                        text,
                        ..answer
                    };
                    match class {
                        Class::Positive => Outcome::Delivered(answer),
                        Class::Transient | Class::Intermediate => Outcome::Deferred(answer),
                        Class::Permanent => Outcome::Failed(answer),
                    }
                }
                Settled::Unsupported(why) => Outcome::Failed(Answer {
                    text: why.to_string(),
                    ..answer
                }),
            };
            progress.done.push((at, outcome));
        }
    }
}

impl NextHop for Relay {
    fn credentials(&self) -> Option<&Credentials> {
        self.plan.logins.credentials()
    }

    /// Waits at most `CONNECTION_WAIT_MAX` for a connection.
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        open_connections: &'a Gauge,
        deadline: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        Box::pin(async move {
            let mut progress = Progress {
                done: Vec::with_capacity(recipients.len()),
                open: recipients,
                signal: HopSignal::Unknown,
                offered: false,
                content_begun: false,
            };
            let refusals = self.plan.logins.known();
            let facts = match facts(mail).await {
                Ok(facts) => facts,
                Err(why) => {
                    self.fail(&mut progress, &why);
                    return progress.result();
                }
            };
            let Some(lease) = self.pool.lease(deadline.within(CONNECTION_WAIT_MAX)).await else {
                let why = ConnectionFailure::Busy;
                progress.signal = why.signal(false);
                self.defer(&mut progress, None, &why);
                return progress.result();
            };
            let attempt = Attempt {
                relay: self,
                mail,
                facts,
                deadline,
                gauge: open_connections,
                refusals,
            };
            if let Err((endpoint, why)) = attempt.run(lease, &mut progress).await {
                progress.signal = why.signal(progress.content_begun);
                self.defer(&mut progress, endpoint.as_ref(), &why);
            }
            progress.result()
        })
    }
}

impl Progress {
    fn result(self) -> HopResult {
        HopResult {
            outcomes: self.done,
            signal: self.signal,
            offered: self.offered,
        }
    }
}

/// Combines what the replies for two recipients say about the hop. If one of them is [`HopSignal::Fine`], the hop does
/// not throttle.
fn combined(one: HopSignal, other: HopSignal) -> HopSignal {
    match (one, other) {
        (HopSignal::Fine, _) | (_, HopSignal::Fine) => HopSignal::Fine,
        (HopSignal::Throttled, _) | (_, HopSignal::Throttled) => HopSignal::Throttled,
        (HopSignal::ThrottledAtEnd, _) | (_, HopSignal::ThrottledAtEnd) => {
            HopSignal::ThrottledAtEnd
        }
        (_, other) => other,
    }
}

/// One message at one next hop.
struct Attempt<'a> {
    relay: &'a Relay,
    mail: &'a Outbound,
    facts: Facts,
    deadline: Deadline,
    gauge: &'a Gauge,
    /// The refused logins before this attempt.
    refusals: KnownRefusals,
}

impl Attempt<'_> {
    /// Tries an idle connection, then every address in order, until a server may have taken the message.
    async fn run(&self, lease: Lease<'_>, progress: &mut Progress) -> Result<(), Failed> {
        if let Some(mut connection) = lease.idle() {
            match self.transact(&mut connection, progress).await {
                Ok(()) => {
                    lease.give_back(connection);
                    return Ok(());
                }
                Err(failure) if self.is_final(&failure, progress) => return Err(failure),
                // The server closed the connection while it was idle, which is normal, or the message needs a session with
                // EHLO. A new connection replaces the old one.
                Err((_, why)) => {
                    (progress.offered, progress.content_begun) = (false, false);
                    debug!(next_hop = %self.relay.name, %why, "idle connection is of no use");
                }
            }
        }
        let connection = self.all_addresses(progress).await?;
        lease.give_back(connection);
        Ok(())
    }

    /// Tries every address in order; addresses that failed recently come after the others.
    async fn all_addresses(&self, progress: &mut Progress) -> Result<Connection, Failed> {
        let mut last: Option<Failed> = None;
        let mut avoided = Vec::new();
        for target in &self.relay.targets {
            let endpoints = match self.resolve(target).await {
                Ok(endpoints) => endpoints,
                Err(why) => {
                    remember(&mut last, (None, why));
                    continue;
                }
            };
            for endpoint in endpoints {
                if self.relay.avoided.contains(&endpoint) {
                    avoided.push((target, endpoint));
                    continue;
                }
                match self.fresh(target, &endpoint, progress).await {
                    Err(failure) if !self.is_final(&failure, progress) => {
                        remember(&mut last, failure)
                    }
                    result => return result,
                }
            }
        }
        for (target, endpoint) in avoided {
            match self.fresh(target, &endpoint, progress).await {
                Err(failure) if !self.is_final(&failure, progress) => remember(&mut last, failure),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| {
            let why = "the host names of this next hop have no IP addresses".to_owned();
            (None, ConnectionFailure::Text(why))
        }))
    }

    async fn resolve(&self, target: &Target) -> Result<Vec<Endpoint>, ConnectionFailure> {
        let limit = self.relay.plan.settings.connect_timeout;
        match self.deadline.within(limit).run(target.resolve()).await {
            Ok(Ok(endpoints)) => Ok(endpoints),
            Ok(Err(error)) => Err(ConnectionFailure::Text(format!(
                "looking up {target}: {error}"
            ))),
            Err(_) => Err(ConnectionFailure::Text(format!(
                "looking up {target}: timed out"
            ))),
        }
    }

    /// Opens a connection to this endpoint and runs the transaction on it.
    async fn fresh(
        &self,
        target: &Target,
        endpoint: &Endpoint,
        progress: &mut Progress,
    ) -> Result<Connection, Failed> {
        let result = match self.open(target, endpoint).await {
            Ok(mut connection) => {
                let result = self.transact(&mut connection, progress).await;
                result.map(|()| connection)
            }
            Err(error) => {
                let failure = ConnectionFailure::Connection(endpoint.clone(), error);
                Err((Some(endpoint.clone()), failure))
            }
        };
        if let Err((_, ConnectionFailure::Connection(_, error))) = &result
            && !ends_logins(error)
        {
            self.relay.avoided.add(endpoint);
        }
        result
    }

    async fn open(
        &self,
        target: &Target,
        endpoint: &Endpoint,
    ) -> Result<Connection, ConnectionError> {
        let plan = &self.relay.plan;
        let open = |wish| {
            let dial = Dial {
                target,
                endpoint,
                wish,
                refusals: self.refusals,
            };
            Connection::open(plan, dial, self.gauge.clone(), self.deadline)
        };
        match plan.settings.tls {
            TlsMode::Off => open(TlsWish::Never).await,
            TlsMode::Required | TlsMode::Verified => open(TlsWish::Always).await,
            TlsMode::Opportunistic => match open(TlsWish::IfOffered).await {
                Err(ConnectionError::Tls(error)) => {
                    warn!(next_hop = %self.relay.name, %endpoint, %error, "TLS failed, continuing without encryption");
                    open(TlsWish::Never).await
                }
                result => result,
            },
        }
    }

    async fn transact(
        &self,
        connection: &mut Connection,
        progress: &mut Progress,
    ) -> Result<(), Failed> {
        progress.offered = true;
        let endpoint = connection.endpoint().clone();
        let dsn = connection.capabilities().dsn;
        let ehlo_refused = connection.capabilities().ehlo_refused.clone();
        let result = connection
            .transact(self.mail, &progress.open, self.facts, self.deadline)
            .await;
        match result {
            Ok(fates) => {
                let needs = fates.iter().find_map(|(_, fate)| match fate {
                    Fate::NeedsEhlo(why) => Some(why.for_now()),
                    _ => None,
                });
                self.relay.settle(progress, fates, &endpoint, dsn);
                match needs.zip(ehlo_refused) {
                    Some((why, reply)) => {
                        let failure = ConnectionFailure::NeedsEhlo(why, reply);
                        Err((Some(endpoint), failure))
                    }
                    None => Ok(()),
                }
            }
            Err(Unfinished {
                error,
                content_sent,
                content_begun,
                fates,
            }) => {
                progress.content_begun |= content_begun;
                self.relay.settle(progress, fates, &endpoint, dsn);
                let failure = if content_sent {
                    ConnectionFailure::Late(endpoint.clone(), error)
                } else {
                    ConnectionFailure::Connection(endpoint.clone(), error)
                };
                Err((Some(endpoint), failure))
            }
        }
    }

    /// Whether no other address may be tried: the server may have taken the message, the hop refuses our login, no
    /// recipient is open, or the deadline has passed.
    fn is_final(&self, (_, why): &Failed, progress: &Progress) -> bool {
        why.forbids_another_address() || progress.open.is_empty() || self.deadline.passed()
    }
}

/// The class of a reply. 552 to RCPT may mean "too many recipients", which is transient (RFC 5321 4.5.3.1.10).
fn class(stage: Stage, reply: &RemoteReply) -> Class {
    let too_many = stage == Stage::Rcpt
        && reply.code == 552
        && matches!(reply.enhanced, None | Some((5, 5, 3)));
    if too_many {
        Class::Transient
    } else {
        reply.class()
    }
}

async fn facts(mail: &Outbound) -> Result<Facts, BareLineEnd> {
    let declared = mail.envelope.smtputf8;
    if mail.content.len() <= INLINE_INSPECTION_OCTETS_MAX {
        return Facts::of(&mail.prefix, mail.content.bytes(), declared);
    }
    let (prefix, content): (_, Content) = (mail.prefix.clone(), mail.content.clone());
    let look = move || Facts::of(&prefix, content.bytes(), declared);
    match tokio::task::spawn_blocking(look).await {
        Ok(facts) => facts,
        // The thread fails only at shutdown or if the inspection panicked. The content is then inspected here.
        Err(_) => Facts::of(&mail.prefix, mail.content.bytes(), declared),
    }
}
