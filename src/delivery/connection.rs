//! One connection to a server: the dialog's machines with a socket and a clock.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt as _;
use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::endpoint::{Endpoint, Target};
use super::{Outbound, SmtpSettings};
use crate::deadline::Deadline;
use crate::smtp::RemoteReply;
use crate::smtp::dialog::{
    Capabilities, Credentials, Facts, Fate, Interruption, Next, Opening, OpeningError, Progress,
    Stage, TlsWish, Transaction,
};
use crate::smtp::dot_stuff;
use crate::smtp::reply_parser::{Garbage, RawReply};

/// Content is gathered into writes of this size; a piece that is larger goes out without being copied.
const BUFFER: usize = 64 * 1024;
/// A large piece is written in parts of this size, each of which must be taken within the command timeout: slow is
/// allowed, stuck is not.
const PART: usize = 256 * 1024;
/// How long a closing connection may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a session runs over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Socket for T {}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No connection.
    #[error("no connection: {0}")]
    Connect(#[source] io::Error),
    /// The server refused the session, or does not offer what we need.
    #[error(transparent)]
    Opening(#[from] OpeningError),
    /// No encryption, though offered.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// Octets came in after the reply to STARTTLS and before the handshake.
    #[error("the server sent plaintext behind its reply to STARTTLS, which may have been injected")]
    Injection,
    /// The server broke off.
    #[error(transparent)]
    Interrupted(#[from] Interruption),
    /// It does not speak SMTP.
    #[error(transparent)]
    Garbage(#[from] Garbage),
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// No answer, or nothing taken, for so long.
    #[error("the server did not react for {} s", .0.as_secs())]
    Timeout(Duration),
    /// The message's own time was up first.
    #[error("time ran out")]
    Deadline,
}

impl ConnectionError {
    /// What the server said, if that is what went wrong.
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

/// A transaction that did not come to its end.
#[derive(Debug)]
pub struct Unfinished {
    /// What happened.
    pub error: ConnectionError,
    /// The end of data was on its way: the server may have taken the message, and to send it again could double it.
    pub content_sent: bool,
    /// The server had said that it takes content.
    pub content_begun: bool,
    /// Recipients that were settled before are still settled.
    pub fates: Vec<(usize, Fate)>,
}

/// How connections of a next hop are made.
pub struct Plan {
    /// Timeouts, names.
    pub settings: SmtpSettings,
    /// Made from them; `None` when TLS is off.
    pub tls: Option<TlsConnector>,
    /// For AUTH.
    pub credentials: Option<Credentials>,
}

/// An open session. Dropping it closes the socket at once.
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

/// One open connection in the gauge.
struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Connection {
    /// Connects, and leads the dialog to where mail is taken.
    ///
    /// Cancel safety: safe; a dropped attempt closes its socket.
    pub async fn open(
        plan: &Plan,
        target: &Target,
        endpoint: &Endpoint,
        wish: TlsWish,
        gauge: Gauge,
        deadline: Deadline,
    ) -> Result<Self, ConnectionError> {
        let settings = &plan.settings;
        let socket = connect(endpoint, settings.connect_timeout, deadline).await?;
        let mut connection = Self::over(socket, endpoint, settings, gauge);
        let mut opening = Opening::new(
            settings.lmtp,
            &settings.hostname,
            wish,
            plan.credentials.clone(),
            endpoint.is_local(),
        );
        loop {
            let limit = connection.command_timeout;
            let step = |reply: &RawReply<'_>, out: &mut Vec<u8>| opening.on_reply(reply, out);
            match connection.reply(limit, deadline, step).await?? {
                Progress::Reply => connection.send(deadline).await?,
                Progress::Handshake => {
                    connection = connection.encrypt(plan, target, deadline).await?;
                    opening.encrypted(&mut connection.output);
                    connection.send(deadline).await?;
                }
                Progress::Ready => break,
            }
        }
        connection.capabilities = opening.into_capabilities();
        Ok(connection)
    }

    /// Over a socket on which nothing was said yet.
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

    /// Who is at the other end.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What it offers.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Whether an idle connection still looks usable: nothing to read, above all no end and no 421. Does not wait.
    pub fn is_quiet(&mut self) -> bool {
        let mut octet = [0];
        self.input.is_empty() && self.socket.read(&mut octet).now_or_never().is_none()
    }

    /// Carries one message for the recipients at these positions of its envelope.
    ///
    /// Cancel safety: when dropped, the connection must be dropped with it; the message may or may not have been taken.
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

    /// Says QUIT and waits a moment for the answer, so that the server's log shows no lost connection.
    pub async fn quit(mut self) {
        self.output.clear();
        self.output.extend_from_slice(b"QUIT\r\n");
        let deadline = Deadline::after(FAREWELL);
        if self.send(deadline).await.is_ok() {
            // Whether and what it answers changes nothing.
            let _ = self.reply(FAREWELL, deadline, |_, _| ()).await;
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
        let mut told = 0;
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
                for (at, reply) in machine.taken().skip(told) {
                    mail.told
                        .tell(at, || format!("{}: {reply}", Stage::EndOfData));
                    told += 1;
                }
            }
        }
    }

    /// Writes what was gathered.
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

    /// Writes the content and its end. Small mail leaves in one write; large pieces are never copied.
    async fn send_content(
        &mut self,
        prefix: &[u8],
        content: &[u8],
        deadline: Deadline,
        content_sent: &mut bool,
    ) -> Result<(), ConnectionError> {
        for piece in dot_stuff::pieces(prefix).chain(dot_stuff::pieces(content)) {
            if self.output.len() + piece.len() > BUFFER {
                self.send(deadline).await?;
            }
            if piece.len() <= BUFFER {
                self.output.extend_from_slice(piece);
                continue;
            }
            for part in piece.chunks(PART) {
                bounded(self.command_timeout, deadline, self.socket.write_all(part)).await??;
            }
        }
        self.output
            .extend_from_slice(dot_stuff::end_of_data(content));
        // From here on the server may have everything it needs, whatever happens to us.
        *content_sent = true;
        self.send(deadline).await
    }

    /// Reads one reply and feeds it to `step`.
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
        // What is here already was sent in the clear and would be read as if it were not (CVE-2011-0411).
        if !self.input.is_empty() {
            return Err(ConnectionError::Injection);
        }
        let unusable = |why: &str| ConnectionError::Tls(io::Error::other(why.to_owned()));
        let Some(tls) = &plan.tls else {
            return Err(unusable("it is off for this next hop"));
        };
        // Without a name there is nothing to verify; the settings were checked for that when they were loaded.
        let name = match target.server_name() {
            Some(name) => name,
            None => "localhost".try_into().map_err(|_| unusable("no name"))?,
        };
        let handshake = tls.connect(name, self.socket);
        let encrypted = match bounded(self.command_timeout, deadline, handshake).await {
            Ok(result) => result.map_err(ConnectionError::Tls)?,
            // A server that goes silent in the handshake fails at TLS like one that breaks it off.
            Err(ConnectionError::Timeout(_)) => {
                let silent = io::Error::new(io::ErrorKind::TimedOut, "no end of the handshake");
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
                // Commands are small and each waits for an answer: Nagle's algorithm would only add to the wait.
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

/// Which of the two bounds was hit.
fn too_late(limit: Duration, deadline: Deadline) -> ConnectionError {
    if deadline.passed() {
        ConnectionError::Deadline
    } else {
        ConnectionError::Timeout(limit)
    }
}
