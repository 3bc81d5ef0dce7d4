//! The next hops: SMTP servers that remember what came, and that can throttle.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::mail::number_of;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Quick,
    /// So many messages a second; beyond them 451 4.7.1 to MAIL.
    Throttled(u32),
    /// Every reply to MAIL takes so long.
    Tarpit(Duration),
}

/// A message that came.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub at: Duration,
    /// Its number in the plan; none for mail that we did not send, such as reports.
    pub message: Option<usize>,
    /// Engines without an answer, as the result field names them.
    pub missing: String,
}

/// What a next hop has seen.
#[derive(Debug, Default)]
pub struct Book {
    pub arrivals: Vec<Arrival>,
    /// Instants of refused MAIL commands.
    pub refused: Vec<Duration>,
}

/// One running next hop; it ends with its runtime.
pub struct Sink {
    pub port: u16,
    pub manner: watch::Sender<Manner>,
    pub book: Arc<Mutex<Book>>,
}

struct Shared {
    manner: watch::Receiver<Manner>,
    allowance: Mutex<Allowance>,
    book: Arc<Mutex<Book>>,
    began: Instant,
}

/// A token bucket as deep as one second.
struct Allowance {
    tokens: f64,
    at: Instant,
}

impl Sink {
    pub async fn start(began: Instant) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let manner = watch::Sender::new(Manner::Quick);
        let book = Arc::new(Mutex::new(Book::default()));
        let shared = Arc::new(Shared {
            manner: manner.subscribe(),
            allowance: Mutex::new(Allowance {
                tokens: 0.0,
                at: Instant::now(),
            }),
            book: book.clone(),
            began,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move { shared.session(stream).await });
            }
        });
        Ok(Self { port, manner, book })
    }
}

impl Shared {
    async fn session(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        stream.write_all(b"220 sink.test ESMTP\r\n").await?;
        let mut line = Vec::new();
        let mut is_open = false;
        loop {
            line.clear();
            if (&mut stream)
                .take(4096)
                .read_until(b'\n', &mut line)
                .await?
                == 0
            {
                return Ok(());
            }
            let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
            let reply: &[u8] = match &verb[..] {
                b"EHLO" => b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
                b"MAIL" => {
                    let reply = self.mail().await;
                    is_open = reply.starts_with(b"2");
                    reply
                }
                b"RCPT" | b"DATA" if !is_open => b"503 5.5.1 MAIL first\r\n",
                b"DATA" => {
                    is_open = false;
                    stream.write_all(b"354 go on\r\n").await?;
                    stream.get_mut().flush().await?;
                    self.content(&mut stream).await?;
                    b"250 2.0.0 taken\r\n"
                }
                b"QUIT" => {
                    stream.write_all(b"221 2.0.0 bye\r\n").await?;
                    return Ok(());
                }
                _ => b"250 2.0.0 ok\r\n",
            };
            stream.write_all(reply).await?;
        }
    }

    async fn mail(&self) -> &'static [u8] {
        let manner = *self.manner.borrow();
        match manner {
            Manner::Quick => {}
            Manner::Tarpit(wait) => tokio::time::sleep(wait).await,
            Manner::Throttled(rate) => {
                let now = Instant::now();
                let mut allowance = self
                    .allowance
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let earned = (now - allowance.at).as_secs_f64() * f64::from(rate);
                allowance.tokens = (allowance.tokens + earned).min(f64::from(rate));
                allowance.at = now;
                if allowance.tokens < 1.0 {
                    let at = now.saturating_duration_since(self.began);
                    let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
                    book.refused.push(at);
                    return b"451 4.7.1 Too much mail from you, try again later\r\n";
                }
                allowance.tokens -= 1.0;
            }
        }
        b"250 2.1.0 ok\r\n"
    }

    /// Reads content to its end and notes it.
    async fn content(&self, stream: &mut BufReader<TcpStream>) -> io::Result<()> {
        const HEAD: usize = 16 * 1024;
        const END: &[u8] = b"\r\n.\r\n";
        let mut head = Vec::new();
        let mut tail = b"\r\n".to_vec();
        loop {
            let octets = stream.fill_buf().await?;
            if octets.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.extend_from_slice(&octets[..octets.len().min(HEAD - head.len().min(HEAD))]);
            // The end may lie across two reads, and the next command may follow it at once.
            let known = tail.len();
            tail.extend_from_slice(octets);
            let end = memchr::memmem::find(&tail, END);
            let read = end.map_or(octets.len(), |at| at + END.len() - known);
            stream.consume(read);
            if end.is_some() {
                break;
            }
            tail.drain(..tail.len().saturating_sub(END.len() - 1));
        }
        let arrival = Arrival {
            at: Instant::now().saturating_duration_since(self.began),
            message: number_of(&head),
            missing: missing(&head),
        };
        self.book
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .arrivals
            .push(arrival);
        Ok(())
    }
}

/// What follows "missing=" in the result field, for each engine.
fn missing(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let Some(field) = head.split("X-Spillway-Result:").nth(1) else {
        return String::new();
    };
    let end = field
        .match_indices("\r\n")
        .find(|(at, _)| !field[at + 2..].starts_with([' ', '\t']))
        .map_or(field.len(), |(at, _)| at);
    let words = field[..end].split([';', '\r', '\n', '\t', ' ']);
    let missing: Vec<_> = words
        .filter_map(|word| word.strip_prefix("missing="))
        .collect();
    missing.join(" ")
}
