//! The mail server behind the relay. It accepts every message and keeps it in memory.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::loopback::Loopback;
use crate::smtp::Reply;
use crate::smtp::content::Decoder;
use crate::smtp::transaction::{Offer, Server, Step};

/// The host name in the server's replies.
const HOSTNAME: &str = "mail.demo.example";
/// Maximum size of a message: 1 MiB, far more than any message of the demo.
const MESSAGE_OCTETS_MAX: usize = 1 << 20;
/// Maximum length of a command line in octets, far above the 512 of RFC 5321 4.5.3.1.4.
const COMMAND_OCTETS_MAX: u64 = 4096;
/// Messages that the server keeps; the demo sends fewer.
const MESSAGES_REMEMBERED: usize = 64;

type Received = Arc<Mutex<Vec<Vec<u8>>>>;

/// A mail server with the functions that the demo needs.
#[derive(Debug)]
pub(super) struct MailServer {
    server: Loopback,
    received: Received,
}

impl MailServer {
    /// Starts the server on a free port.
    pub(super) async fn start() -> io::Result<Self> {
        let received = Received::default();
        let kept = received.clone();
        let server = Loopback::serve(move |stream| session(stream, kept.clone())).await?;
        Ok(Self { server, received })
    }

    /// The address of the server.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The number of received messages with this content, byte for byte, below the fields that the relay adds.
    pub(super) fn copies(&self, content: &[u8]) -> usize {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let same = received.iter().filter(|got| got.ends_with(content));
        same.count()
    }
}

fn offer() -> Offer {
    Offer {
        hostname: HOSTNAME.into(),
        message_size: MESSAGE_OCTETS_MAX as u64,
        recipients: 100,
        starttls: false,
        tls_required: false,
        auth: false,
        encrypted: false,
        xclient: false,
        xforward: false,
    }
}

async fn session(stream: TcpStream, received: Received) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut server = Server::new(offer());
    say(&mut stream, &Reply::greeting(HOSTNAME)).await?;
    loop {
        let mut line = Vec::new();
        (&mut stream)
            .take(COMMAND_OCTETS_MAX)
            .read_until(b'\n', &mut line)
            .await?;
        let Some(command) = line.strip_suffix(b"\r\n") else {
            return Ok(());
        };
        let reply = match server.command(command) {
            Step::Reply(reply) => reply,
            Step::Recipient(recipient) => server.add_recipient(recipient),
            Step::Content => {
                say(&mut stream, &Reply::send_content()).await?;
                let content = content(&mut stream).await?;
                server.finish();
                keep(&received, content)
            }
            // The relay uses none of these commands, because this server does not offer them.
            Step::Chunk { .. }
            | Step::StartTls
            | Step::Auth { .. }
            | Step::Xclient(_)
            | Step::Xforward(_) => return Ok(()),
        };
        say(&mut stream, &reply).await?;
        if reply.closes() {
            return Ok(());
        }
    }
}

fn keep(received: &Received, content: Vec<u8>) -> Reply {
    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
    if received.len() >= MESSAGES_REMEMBERED {
        return Reply::no_room();
    }
    received.push(content);
    Reply::accepted(format_args!("message {} of {HOSTNAME}", received.len()))
}

async fn say(stream: &mut BufReader<TcpStream>, reply: &Reply) -> io::Result<()> {
    let mut octets = Vec::new();
    reply.write_to(&mut octets);
    stream.get_mut().write_all(&octets).await
}

async fn content(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut decoder = Decoder::data(false);
    let mut content = Vec::new();
    loop {
        let piece = stream.fill_buf().await?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (used, ended) = decoder.decode(piece, |octets| content.extend_from_slice(octets));
        stream.consume(used);
        if ended {
            return Ok(content);
        }
        if content.len() > MESSAGE_OCTETS_MAX {
            return Err(io::Error::other(
                "the message is larger than the offered SIZE",
            ));
        }
    }
}
