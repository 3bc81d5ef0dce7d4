//! One session from the greeting to its end: carries out the steps of [`Server`] on a [`Wire`].

mod admit;
mod auth;
mod handshake;
mod http;
mod line;
mod peer;
mod proxy;
mod receive;
mod refusal;
mod trace;
mod wire;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use memchr::memchr;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use self::admit::EnvelopeCharge;
use self::line::Line;
use self::peer::{apply_forwarded, offer};
use self::receive::Intake;
use self::wire::{Stream, Wire};
use super::admission::Admission;
use super::context::{Context, Shared};
use super::session_limits::SessionPlace;
use super::{LineEndings, Tls};
use crate::deadline::{Deadline, Elapsed};
use crate::message::{Content, Envelope, Message, MessageId, Origin, Recipient, header};
use crate::pipeline::Pipeline;
use crate::smtp::Reply;
use crate::smtp::content::Decoder;
use crate::smtp::transaction::{Server, Step, Transaction, refusal};
use crate::smtp::xtext::Attributes;

/// Timeout for a TLS handshake, and for the PROXY header.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Wait for each further command of a transaction in progress when the relay stops: 2 s, so that a client can complete its
/// message and a silent client does not delay the stop.
const CLOSING_COMMAND_WAIT: Duration = Duration::from_secs(2);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ending {
    #[error("quit")]
    Quit,
    #[error("closed by the client")]
    Closed,
    #[error("{0}")]
    TimedOut(&'static str),
    #[error("too many errors or commands")]
    TooManyErrors,
    #[error("the relay is stopping")]
    Drained,
    #[error("too many sessions of the client behind the peer")]
    TooManySessions,
    #[error("no PROXY header from a peer that must send one")]
    NoProxyHeader,
    #[error("HTTP instead of SMTP")]
    Http,
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("connection lost: {0}")]
    Lost(#[from] io::Error),
}

/// One session.
pub(super) struct Session {
    wire: Wire,
    server: Server,
    context: Arc<Context>,
    pipeline: Arc<Pipeline>,
    admission: Arc<Admission>,
    /// Address that decides about permissions: that of the peer, or of the client that a trusted peer named with XCLIENT or
    /// PROXY.
    address: IpAddr,
    place: SessionPlace,
    client_name: Option<String>,
    tls: Option<String>,
    client_certificate: bool,
    forwarded: Attributes,
    /// Memory of the recipients while the content has not begun.
    envelope: Option<Box<EnvelopeCharge>>,
    intake: Option<Box<Intake>>,
    wrong_passwords: u32,
    errors: usize,
    commands: usize,
    closing: CancellationToken,
    ends: Deadline,
    /// The number of the session in this process, for the log.
    number: u64,
}

impl Session {
    pub(super) fn new(
        stream: TcpStream,
        peer: IpAddr,
        place: SessionPlace,
        context: Arc<Context>,
        shared: &Shared,
    ) -> Self {
        Self {
            wire: Wire::new(Stream::Plain(stream)),
            server: Server::new(offer(&context, peer)),
            ends: Deadline::after(context.limits.session_total),
            context,
            pipeline: shared.pipeline.clone(),
            admission: shared.admission.clone(),
            address: peer,
            place,
            client_name: None,
            tls: None,
            client_certificate: false,
            forwarded: Attributes::default(),
            envelope: None,
            intake: None,
            wrong_passwords: 0,
            errors: 0,
            commands: 0,
            closing: shared.closing.clone(),
            number: refusal::session_number(),
        }
    }

    /// Runs the session to its end and returns the reason of the end.
    ///
    /// Cancel safety: not safe; a message may be in progress. The session ends soon after `closing` is cancelled.
    pub(super) async fn run(mut self) -> Ending {
        let ending = match self.converse().await {
            Ok(()) => Ending::Quit,
            Err(ending) => ending,
        };
        let farewell = match &ending {
            Ending::TimedOut(what) => Some(Reply::timed_out(what)),
            Ending::TooManyErrors => Some(Reply::too_many_errors()),
            Ending::TooManySessions => Some(Reply::too_many_sessions()),
            Ending::Drained => Some(Reply::shutting_down(&self.context.hostname)),
            Ending::Http => Some(Reply::not_http(&self.context.hostname)),
            Ending::Quit
            | Ending::Closed
            | Ending::NoProxyHeader
            | Ending::Handshake(_)
            | Ending::Lost(_) => None,
        };
        self.session_refused(&ending, farewell.as_ref());
        // The peer may be gone or may not read, so the last reply gets 1 s.
        let _ = Deadline::after(Duration::from_secs(1))
            .run(async {
                if let Some(reply) = farewell {
                    self.say(&reply);
                }
                let _ = self.wire.flush().await;
                self.wire.shutdown().await;
                if matches!(ending, Ending::Http) {
                    self.wire.discard().await;
                }
            })
            .await;
        ending
    }

    async fn converse(&mut self) -> Result<(), Ending> {
        if self.is_in(&self.context.settings.proxy_from) {
            self.proxy_header().await?;
        }
        if self.context.settings.tls == Tls::Implicit {
            Box::pin(self.handshake()).await?;
        }
        self.say(&Reply::greeting(&self.context.hostname));
        loop {
            let reply = match self.next_line().await? {
                Line::Command(line) => {
                    self.commands += 1;
                    let in_transaction = self.server.transaction().is_some();
                    let step = self.server.command(&line);
                    self.forget_abandoned(in_transaction || peer::is_reset(&line));
                    let begins = !in_transaction && self.server.transaction().is_some();
                    // The steps that take content tell of its refusal themselves, because they end the transaction.
                    let tells = matches!(step, Step::Content | Step::Chunk { .. });
                    let reply = match step {
                        Step::Reply(reply) if begins => self.transaction_begun(reply),
                        Step::Reply(reply) => reply,
                        Step::Recipient(recipient) => self.recipient(recipient),
                        step => match Box::pin(self.carry_out(step)).await? {
                            Some(reply) => reply,
                            None => continue,
                        },
                    };
                    if reply.is_refusal() && !tells {
                        self.command_refused(&line, &reply);
                    }
                    reply
                }
                Line::Unacceptable(reply) => {
                    self.command_refused(&[], &reply);
                    reply
                }
            };
            self.say(&reply);
            if reply.closes() {
                return Ok(());
            }
            if reply.code() >= 500 {
                self.errors += 1;
            }
            if self.errors > self.context.limits.errors
                || self.commands > self.context.limits.commands
            {
                return Err(Ending::TooManyErrors);
            }
        }
    }

    /// Ends a transaction that was refused before its content.
    fn forget_transaction(&mut self) {
        self.server.finish();
        self.forget_abandoned(true);
    }

    /// Drops the state of a transaction that a command has ended: chunks that arrived already, and the values of XFORWARD.
    /// RSET and EHLO end a transaction in this way, and drop XFORWARD also before MAIL.
    fn forget_abandoned(&mut self, ended: bool) {
        if !self.server.transaction().is_some_and(|t| t.chunking) {
            self.intake = None;
        }
        if ended && self.server.transaction().is_none() {
            self.envelope = None;
            self.forwarded = Attributes::default();
        }
    }

    /// Carries out the steps that need the wire. The caller boxes the future, so that an idle session does not hold its
    /// state. `None` if the client speaks next without a further reply.
    async fn carry_out(&mut self, step: Step) -> Result<Option<Reply>, Ending> {
        Ok(Some(match step {
            Step::Reply(reply) => reply,
            Step::Recipient(recipient) => self.recipient(recipient),
            Step::Content => self.data().await?,
            Step::Chunk {
                octets,
                last,
                refusal,
            } => self.chunk(octets, last, refusal).await?,
            Step::StartTls => {
                self.say(&Reply::start_tls());
                self.flush().await?;
                self.handshake().await?;
                self.server.reset_for_tls();
                self.forget_abandoned(true);
                return Ok(None);
            }
            Step::Auth { mechanism, initial } => self.authenticate(mechanism, initial).await?,
            Step::Xclient(attributes) => self.xclient(attributes)?,
            Step::Xforward(attributes) => {
                self.forwarded.add(attributes);
                Reply::ok()
            }
        }))
    }

    /// Adds a reply to the output. The output is sent before the next wait for input (RFC 2920 3.1).
    fn say(&mut self, reply: &Reply) {
        tracing::trace!(client = %self.address, %reply, "reply");
        reply.write_to(self.wire.output());
    }

    async fn flush(&mut self) -> Result<(), Ending> {
        let deadline = self.ends.within(self.context.limits.idle);
        match deadline.run(self.wire.flush()).await {
            Ok(result) => Ok(result?),
            Err(Elapsed) => Err(Ending::TimedOut("Timed out while sending replies")),
        }
    }

    async fn next_line(&mut self) -> Result<Line, Ending> {
        let limit = self.context.limits.command_line;
        let mut too_long = None;
        let mut idle = None;
        if self.wire.is_full() {
            self.flush().await?;
        }
        loop {
            if let Some(end) = memchr(b'\n', self.wire.input()) {
                let line = match too_long {
                    Some(reply) => Line::Unacceptable(reply),
                    None => Line::of(&self.wire.input()[..end], limit)?,
                };
                self.wire.consume(end + 1);
                return Ok(line);
            }
            if self.wire.input().len() > limit {
                let begun = self.wire.input();
                if too_long.is_none() && http::is_http(begun) {
                    return Err(Ending::Http);
                }
                too_long = too_long.or_else(|| Some(refusal(begun, Reply::line_too_long(limit))));
                self.wire.consume(self.wire.input().len());
            }
            self.flush().await?;
            // One deadline for the whole line. Between chunks, the deadline of the message's content applies as well.
            let deadline = *idle.get_or_insert_with(|| {
                let deadline = self.ends.within(self.context.limits.idle);
                self.intake
                    .as_ref()
                    .map_or(deadline, |intake| deadline.min(intake.ends))
            });
            let in_transaction = self.server.transaction().is_some();
            let closing = self.closing.clone();
            let drained = async {
                closing.cancelled().await;
                if in_transaction {
                    Deadline::after(CLOSING_COMMAND_WAIT).wait().await;
                }
            };
            let read = tokio::select! {
                biased;
                () = drained => return Err(Ending::Drained),
                read = deadline.run(self.wire.read_command()) => read,
            };
            match read {
                Ok(Ok(0)) => return Err(Ending::Closed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(Elapsed) => return Err(Ending::TimedOut("Timed out waiting for a command")),
            }
        }
    }

    fn recipient(&mut self, recipient: Recipient) -> Reply {
        if !self.may_relay() {
            return Reply::relay_denied();
        }
        if !self.pipeline.has_route(recipient.mailbox.domain()) {
            return Reply::no_route(recipient.mailbox.domain());
        }
        let mode = self.context.settings.mode;
        let before = self.server.transaction().map_or(0, |t| t.recipients.len());
        if !self.pipeline.has_room(mode, before) || !self.has_room_for(&recipient) {
            return Reply::no_room();
        }
        self.server.add_recipient(recipient)
    }

    fn is_in(&self, networks: &[ipnet::IpNet]) -> bool {
        networks
            .iter()
            .any(|network| network.contains(&self.address))
    }

    fn may_relay(&self) -> bool {
        self.client_certificate
            || self.server.user().is_some()
            || self.is_in(&self.context.settings.relay_networks)
    }

    async fn data(&mut self) -> Result<Reply, Ending> {
        let normalise = self.context.settings.line_endings == LineEndings::Normalise;
        let mut intake = match self.begin(Decoder::data(normalise)) {
            Ok(intake) => intake,
            Err(reply) => {
                self.content_refused(self.server.transaction(), &reply);
                self.forget_transaction();
                return Ok(reply);
            }
        };
        self.say(&Reply::send_content());
        self.flush().await?;
        self.receive(&mut intake, None).await?;
        Ok(self.complete(intake).await)
    }

    async fn chunk(
        &mut self,
        octets: u64,
        last: bool,
        refusal: Option<Reply>,
    ) -> Result<Reply, Ending> {
        let normalise = self.context.settings.line_endings == LineEndings::Normalise;
        let decoder = Decoder::chunks(normalise);
        let begun = match (refusal, self.intake.take()) {
            (Some(reply), _) => {
                self.content_refused(self.server.transaction(), &reply);
                Err(reply)
            }
            (None, Some(intake)) => Ok(intake),
            (None, None) => self.begin(decoder.clone()).inspect_err(|reply| {
                self.content_refused(self.server.transaction(), reply);
                self.forget_transaction();
            }),
        };
        let mut intake = match begun {
            Ok(intake) => intake,
            Err(reply) => {
                // The octets of the chunk follow in any case.
                let mut nothing = self.discarding(decoder, reply.clone());
                self.receive(&mut nothing, Some(octets)).await?;
                return Ok(reply);
            }
        };
        self.receive(&mut intake, Some(octets)).await?;
        if last {
            return Ok(self.complete(intake).await);
        }
        // The lowest rate applies to a message in chunks as well.
        intake.wait(&self.context.limits)?;
        let count = usize::try_from(octets).unwrap_or(usize::MAX);
        self.intake = Some(intake);
        Ok(Reply::chunk_ok(count))
    }

    /// At the end of data, makes a message of the transaction and returns the reply of the pipeline to it.
    async fn complete(&mut self, intake: Box<Intake>) -> Reply {
        let Some(transaction) = self.server.finish() else {
            return Reply::bad_sequence("Send MAIL first");
        };
        let forwarded = std::mem::take(&mut self.forwarded);
        let refuse_bare = self.context.settings.line_endings == LineEndings::Refuse;
        let receiving = intake.elapsed();
        let content = intake.finish(refuse_bare).and_then(|content| {
            let hops = header::count(content.header_section(), "Received");
            match hops >= self.context.limits.hops {
                true => Err(Reply::loop_detected(hops)),
                false => Ok(content),
            }
        });
        let content = match content {
            Ok(content) => content,
            Err(reply) => {
                self.content_refused(Some(&transaction), &reply);
                return reply;
            }
        };
        let message = self.message(transaction, forwarded, content);
        self.hand_over(message, receiving).await
    }

    fn message(
        &self,
        transaction: Transaction,
        forwarded: Attributes,
        content: Content,
    ) -> Message {
        let helo = self.server.helo();
        let mut origin = Origin {
            client: self.address,
            client_name: self.client_name.clone(),
            helo: helo.map(|h| h.name.clone()).unwrap_or_default(),
            protocol: String::new(),
            tls: self.tls.clone(),
            user: self.server.user().map(str::to_owned),
            listener: self.context.settings.name.clone(),
        };
        trace::set_protocol(
            &mut origin,
            helo.is_some_and(|h| h.extended),
            transaction.smtputf8,
        );
        apply_forwarded(&mut origin, forwarded);
        let envelope = Envelope {
            reverse_path: transaction.reverse_path,
            recipients: transaction.recipients,
            body: transaction.body,
            smtputf8: transaction.smtputf8,
            ret: transaction.ret,
            envid: transaction.envid,
            origin,
        };
        let id = MessageId::new();
        let received_at = jiff::Timestamp::now();
        let field = trace::received(&self.context.hostname, id, &envelope, received_at);
        Message {
            id,
            received_at,
            envelope: Arc::new(envelope),
            trace: field.into(),
            content,
            times: None,
        }
    }
}
