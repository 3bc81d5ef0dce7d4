//! One connection to a server. It runs the SMTP client state machines of `smtp::dialog` over a socket and applies the
//! timeouts.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt as _;
use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::endpoint::{Endpoint, Target};
use super::login::{KnownRefusals, LoginTurn, Logins};
use super::{Outbound, SmtpSettings};
use crate::deadline::Deadline;
use crate::smtp::RemoteReply;
use crate::smtp::dialog::{
    Capabilities, Facts, Fate, Interruption, Next, Opening, OpeningError, Progress, Stage, TlsWish,
    Transaction,
};
use crate::smtp::dot_stuff;
use crate::smtp::reply_parser::{Garbage, RawReply};

/// Size of the write buffer, in octets. Commands and small pieces of content are gathered here, so that a small message
/// leaves in one write. A larger piece is written without a copy.
const WRITE_BUFFER_OCTETS: usize = 64 * 1024;
/// Size of one write of a large piece of content, in octets. Each write has the command timeout, so a slow server may
/// take as long as it needs and a stuck server is detected.
const WRITE_CHUNK_OCTETS: usize = 256 * 1024;
/// Timeout for the reply to QUIT: 2 s. The reply changes nothing, so no message waits longer for it.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The transport below a session: TCP, TLS or a unix socket. In tests: an in-memory stream.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for T {}

/// Why a connection cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The TCP or unix socket connection could not be made.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The server refused the session, or does not offer an extension that the configuration requires.
    #[error(transparent)]
    Opening(#[from] OpeningError),
    /// The server offered STARTTLS, and the TLS handshake failed.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// The server sent octets between its reply to STARTTLS and the TLS handshake.
    #[error("the server sent plaintext after STARTTLS, which an attacker may have injected")]
    Injection,
    /// The server announced that it closes the connection (421), or sent a reply that does not fit the command.
    #[error(transparent)]
    Interrupted(#[from] Interruption),
    /// The server sent something that is not an SMTP reply.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// Reading from or writing to the socket failed, or the server closed the connection.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The server sent no reply, or took no data, within this timeout.
    #[error("the server did not react for {} s", .0.as_secs())]
    Timeout(Duration),
    /// Other connections to this next hop were logging in for too long.
    #[error("the relay logs in on one connection at a time, and others took too long")]
    LoginsBusy,
    /// The deadline of the message passed before the timeout of the command.
    #[error("the deadline of the message passed")]
    Deadline,
}

impl ConnectionError {
    /// The server's reply, if a reply ended the connection.
    pub fn reply(&self) -> Option<&RemoteReply> {
        match self {
            Self::Opening(OpeningError::Refused { reply, .. })
            | Self::Interrupted(
                Interruption::Closing(_, reply) | Interruption::Unexpected(_, reply),
            ) => Some(reply),
            _ => None,
        }
    }
}

/// A transaction that ended before every recipient was settled.
#[derive(Debug)]
pub struct Unfinished {
    /// The error that ended the transaction.
    pub error: ConnectionError,
    /// The end of data was being sent. The server may have taken the message, so a second attempt could deliver a
    /// duplicate.
    pub content_sent: bool,
    /// The server had accepted DATA or BDAT and was waiting for content or its end.
    pub content_begun: bool,
    /// The fate of each recipient. A recipient that was settled before the error stays settled.
    pub fates: Vec<(usize, Fate)>,
}

/// Settings for opening connections to a next hop.
pub struct Plan {
    /// Timeouts and host names.
    pub settings: SmtpSettings,
    /// TLS configuration made from the settings; `None` when TLS is off.
    pub tls: Option<TlsConnector>,
    /// User name and password for AUTH, if the next hop requires authentication, and the logins with them.
    pub logins: Logins,
}

/// The server to connect to, and how.
pub struct Dial<'a> {
    /// The configured address.
    pub target: &'a Target,
    /// The resolved address.
    pub endpoint: &'a Endpoint,
    /// Whether to use STARTTLS.
    pub wish: TlsWish,
    /// The refused logins of which the pace of the next hop has known.
    pub refusals: KnownRefusals,
}

/// An open session with a server. Dropping it closes the socket immediately, without QUIT.
pub struct Connection {
    socket: Box<dyn Socket>,
    endpoint: Endpoint,
    capabilities: Capabilities,
    input: BytesMut,
    output: Vec<u8>,
    lmtp: bool,
    needs_reset: bool,
    command_timeout: Duration,
    data_timeout: Duration,
    _counted: Counted,
}

/// Counts one open connection in the gauge; dropping it decrements the gauge.
struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Connection {
    /// Connects, negotiates TLS and AUTH as the plan requires, and stops when the server is ready for MAIL.
    ///
    /// `deadline` bounds the whole call; within it, `connect_timeout` bounds the connection attempt and
    /// `command_timeout` bounds each reply.
    ///
    /// Cancel safety: safe; a dropped attempt closes its socket.
    pub async fn open(
        plan: &Plan,
        dial: Dial<'_>,
        gauge: Gauge,
        deadline: Deadline,
    ) -> Result<Self, ConnectionError> {
        let (settings, endpoint) = (&plan.settings, dial.endpoint);
        let socket = connect(endpoint, settings.connect_timeout, deadline).await?;
        let mut connection = Self::over(socket, endpoint, settings, gauge);
        let mut opening = Opening::new(
            settings.lmtp,
            &settings.hostname,
            dial.wish,
            plan.logins.credentials().cloned(),
            endpoint.is_local(),
        );
        let mut login: Option<LoginTurn<'_>> = None;
        loop {
            let limit = connection.command_timeout;
            let step = |reply: &RawReply<'_>, out: &mut Vec<u8>| opening.on_reply(reply, out);
            let progress = connection.reply(limit, deadline, step).await?;
            if let (Some(login), Err(OpeningError::Refused { reply, .. })) = (&login, &progress) {
                login.refused(endpoint, reply);
            }
            match progress? {
                Progress::Reply => {
                    if login.is_none() && opening.stage() == Stage::Auth {
                        let turn = plan.logins.turn(endpoint, dial.refusals, deadline);
                        login = Some(turn.await?);
                    }
                    connection.send(deadline).await?;
                }
                Progress::Handshake => {
                    connection = connection.encrypt(plan, dial.target, deadline).await?;
                    opening.encrypted(&mut connection.output);
                    connection.send(deadline).await?;
                }
                Progress::Ready => break,
            }
        }
        connection.capabilities = opening.into_capabilities();
        Ok(connection)
    }

    /// Wraps a socket over which no SMTP has been spoken yet.
    pub(super) fn over(
        socket: Box<dyn Socket>,
        endpoint: &Endpoint,
        settings: &SmtpSettings,
        gauge: Gauge,
    ) -> Self {
        gauge.increment(1.0);
        Self {
            socket,
            endpoint: endpoint.clone(),
            capabilities: Capabilities::default(),
            input: BytesMut::with_capacity(4096),
            output: Vec::with_capacity(1024),
            lmtp: settings.lmtp,
            needs_reset: false,
            command_timeout: settings.command_timeout,
            data_timeout: settings.data_timeout,
            _counted: Counted(gauge),
        }
    }

    /// The server's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The extensions that the server announced in its reply to EHLO or LHLO.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether an idle connection still looks usable: the server has sent nothing, in particular neither an end of
    /// stream nor a 421. Does not wait.
    pub fn is_quiet(&mut self) -> bool {
        let mut octet = [0];
        self.input.is_empty() && self.socket.read(&mut octet).now_or_never().is_none()
    }

    /// Sends one message to the recipients at these positions of its envelope, and returns the fate of each.
    ///
    /// `deadline` bounds the whole transaction; `command_timeout` bounds each reply before the end of data and
    /// `data_timeout` bounds the replies to it.
    ///
    /// Cancel safety: if this future is dropped, the connection must be dropped as well. The server may or may not have
    /// taken the message.
    pub async fn transact(
        &mut self,
        mail: &Outbound,
        recipients: &[usize],
        facts: Facts,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Fate)>, Unfinished> {
        let capabilities = std::mem::take(&mut self.capabilities);
        let reset = self.needs_reset;
        let mut machine = Transaction::new(
            &mail.envelope,
            recipients,
            facts,
            &capabilities,
            self.lmtp,
            reset,
        );
        let mut content_sent = false;
        let result = self
            .run(&mut machine, mail, deadline, &mut content_sent)
            .await;
        self.needs_reset = machine.needs_reset();
        let content_begun = machine.stage() == Stage::EndOfData;
        let fates = machine.into_fates();
        self.capabilities = capabilities;
        match result {
            Ok(()) => Ok(fates),
            Err(error) => Err(Unfinished {
                error,
                content_sent,
                content_begun,
                fates,
            }),
        }
    }

    /// Sends QUIT and waits up to `QUIT_TIMEOUT` for the reply, so that the server does not log a lost connection.
    pub async fn quit(mut self) {
        self.output.clear();
        self.output.extend_from_slice(b"QUIT\r\n");
        let deadline = Deadline::after(QUIT_TIMEOUT);
        if self.send(deadline).await.is_ok() {
            // The reply is ignored, because the connection closes in any case.
            let _ = self.reply(QUIT_TIMEOUT, deadline, |_, _| ()).await;
        }
    }

    async fn run(
        &mut self,
        machine: &mut Transaction<'_>,
        mail: &Outbound,
        deadline: Deadline,
        content_sent: &mut bool,
    ) -> Result<(), ConnectionError> {
        let mut next = machine.start(&mut self.output);
        let mut reported = 0;
        loop {
            match next {
                Next::Done => return Ok(()),
                Next::Reply => self.send(deadline).await?,
                Next::Content => {
                    self.send_content(&mail.prefix, mail.content.bytes(), deadline, content_sent)
                        .await?;
                }
            }
            let limit = if *content_sent {
                self.data_timeout
            } else {
                self.command_timeout
            };
            let step = |reply: &RawReply<'_>, out: &mut Vec<u8>| machine.on_reply(reply, out);
            next = self.reply(limit, deadline, step).await??;
            if self.lmtp && *content_sent {
                for (at, reply) in machine.taken().skip(reported) {
                    mail.delivered
                        .send(at, || format!("{}: {reply}", Stage::EndOfData));
                    reported += 1;
                }
            }
        }
    }

    /// Writes the buffered output.
    async fn send(&mut self, deadline: Deadline) -> Result<(), ConnectionError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let limit = self.command_timeout;
        let socket = &mut self.socket;
        let output = &self.output;
        let write = async {
            socket.write_all(output).await?;
            socket.flush().await
        };
        bounded(limit, deadline, write).await??;
        self.output.clear();
        Ok(())
    }

    /// Writes the content and the end of data. A small message leaves in one write; large pieces are not copied.
    async fn send_content(
        &mut self,
        prefix: &[u8],
        content: &[u8],
        deadline: Deadline,
        content_sent: &mut bool,
    ) -> Result<(), ConnectionError> {
        for piece in dot_stuff::pieces(prefix).chain(dot_stuff::pieces(content)) {
            if self.output.len() + piece.len() > WRITE_BUFFER_OCTETS {
                self.send(deadline).await?;
            }
            if piece.len() <= WRITE_BUFFER_OCTETS {
                self.output.extend_from_slice(piece);
                continue;
            }
            for part in piece.chunks(WRITE_CHUNK_OCTETS) {
                bounded(self.command_timeout, deadline, self.socket.write_all(part)).await??;
            }
        }
        self.output
            .extend_from_slice(dot_stuff::end_of_data(content));
        // From here on the server may have received the complete message, even if the write fails.
        *content_sent = true;
        self.send(deadline).await
    }

    /// Reads one reply and passes it to `step`.
    async fn reply<T>(
        &mut self,
        limit: Duration,
        deadline: Deadline,
        step: impl FnOnce(&RawReply<'_>, &mut Vec<u8>) -> T,
    ) -> Result<T, ConnectionError> {
        let until = deadline.within(limit);
        loop {
            if let Some(reply) = RawReply::parse(&self.input)? {
                let used = reply.used();
                let result = step(&reply, &mut self.output);
                self.input.advance(used);
                return Ok(result);
            }
            self.input.reserve(1024);
            let read = self.socket.read_buf(&mut self.input);
            let octets = match until.run(read).await {
                Ok(octets) => octets?,
                Err(_) => return Err(too_late(limit, deadline)),
            };
            if octets == 0 {
                let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server");
                return Err(ConnectionError::Broken(closed));
            }
        }
    }

    async fn encrypt(
        self,
        plan: &Plan,
        target: &Target,
        deadline: Deadline,
    ) -> Result<Self, ConnectionError> {
        // Octets already buffered arrived in plaintext. Reading them after the handshake would treat them as encrypted
        // (CVE-2011-0411).
        if !self.input.is_empty() {
            return Err(ConnectionError::Injection);
        }
        let unusable = |why: &str| ConnectionError::Tls(io::Error::other(why.to_owned()));
        let Some(tls) = &plan.tls else {
            return Err(unusable("TLS is off for this next hop"));
        };
        // A target without a host name never has its certificate verified: `Relay::new` rejects such settings.
        let name = match target.server_name() {
            Some(name) => name,
            None => "localhost".try_into().map_err(|_| unusable("no name"))?,
        };
        let handshake = tls.connect(name, self.socket);
        let encrypted = match bounded(self.command_timeout, deadline, handshake).await {
            Ok(result) => result.map_err(ConnectionError::Tls)?,
            // A timeout during the handshake counts as a TLS failure, as a broken handshake does: an opportunistic next
            // hop falls back to plaintext in both cases.
            Err(ConnectionError::Timeout(_)) => {
                let silent = io::Error::new(io::ErrorKind::TimedOut, "the handshake timed out");
                return Err(ConnectionError::Tls(silent));
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            socket: Box::new(encrypted),
            ..self
        })
    }
}

async fn connect(
    endpoint: &Endpoint,
    limit: Duration,
    deadline: Deadline,
) -> Result<Box<dyn Socket>, ConnectionError> {
    let connect = async {
        Ok(match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // Commands are small and each waits for its reply, so Nagle's algorithm would only add delay.
                stream.set_nodelay(true)?;
                Box::new(stream) as Box<dyn Socket>
            }
            Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    };
    bounded(limit, deadline, connect)
        .await?
        .map_err(ConnectionError::Connect)
}

async fn bounded<T>(
    limit: Duration,
    deadline: Deadline,
    work: impl Future<Output = T>,
) -> Result<T, ConnectionError> {
    let until = deadline.within(limit);
    until.run(work).await.map_err(|_| too_late(limit, deadline))
}

/// Returns which of the two limits was reached: the message's deadline or the timeout of this step.
fn too_late(limit: Duration, deadline: Deadline) -> ConnectionError {
    if deadline.passed() {
        ConnectionError::Deadline
    } else {
        ConnectionError::Timeout(limit)
    }
}
