//! The open loop: every message is sent when it is due, whatever became of those before it.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::mail::{Ready, World};
use crate::plan::{From, Planned};
use crate::relay::ONE_CLIENT;

/// A message is made so long before it is due.
const AHEAD: Duration = Duration::from_millis(100);
/// What a mail server does after a 4yz: 1 s, twice as long each time, so long at most.
const RETRY_MAX: Duration = Duration::from_secs(64);

/// What became of a message as its sender knows it.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// How much later than it was due it was first sent: this program's own fault, not the relay's.
    pub late: Duration,
    /// When the relay answered for good.
    pub answered: Option<Duration>,
    /// The relay's own id, from its 250.
    pub id: Option<String>,
    /// 250, but kept by the relay and not delivered yet.
    pub kept: bool,
    pub rejected: Option<String>,
    /// 4yz replies.
    pub deferred: u32,
    /// Connections that ended in the middle.
    pub broken: u32,
    pub last_deferral: String,
}

/// What all senders share.
pub struct Load {
    pub relay: SocketAddr,
    pub world: World,
    pub plan: Arc<Vec<Planned>>,
    pub told: Vec<Mutex<Told>>,
    pub began: Instant,
    slots: Semaphore,
    limits: Limits,
    /// Whether a message ever had to wait for a session.
    pub capped: AtomicBool,
    idle: Mutex<HashMap<Ipv4Addr, Vec<Session>>>,
}

/// How many sessions there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// At once; a message that finds none waits.
    pub sessions: usize,
    /// Idle ones that are kept for one client.
    pub idle: usize,
}

enum Reply {
    Taken(String),
    Deferred(String),
    Rejected(String),
}

impl Load {
    pub fn new(
        relay: SocketAddr,
        world: World,
        plan: Arc<Vec<Planned>>,
        began: Instant,
        limits: Limits,
    ) -> Self {
        Self {
            relay,
            world,
            told: plan.iter().map(|_| Mutex::default()).collect(),
            plan,
            began,
            slots: Semaphore::new(limits.sessions),
            limits,
            capped: AtomicBool::new(false),
            idle: Mutex::default(),
        }
    }

    /// Sends everything; ends when every message has its answer. Dropping it stops all senders.
    pub async fn run(self: Arc<Self>) {
        let mut senders = JoinSet::new();
        for number in 0..self.plan.len() {
            let due = self.began + self.plan[number].due;
            tokio::time::sleep_until((due - AHEAD).into()).await;
            let load = self.clone();
            senders.spawn(async move { load.send(number).await });
            while senders.try_join_next().is_some() {}
        }
        while senders.join_next().await.is_some() {}
    }

    async fn send(&self, number: usize) {
        let planned = self.plan[number];
        let ready = self.world.compose(number, &planned);
        tokio::time::sleep_until((self.began + planned.due).into()).await;
        let late = self.began.elapsed().saturating_sub(planned.due);
        self.told[number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .late = late;
        let mut wait = Duration::from_secs(1);
        loop {
            let outcome = self.attempt(planned.from, &ready).await;
            {
                let mut told = self.told[number]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(Reply::Taken(text)) => {
                        told.kept = text.contains("accepted as");
                        told.id = id_in(&text);
                        told.answered = Some(self.began.elapsed());
                        return;
                    }
                    Ok(Reply::Rejected(text)) => {
                        told.rejected = Some(text);
                        told.answered = Some(self.began.elapsed());
                        return;
                    }
                    Ok(Reply::Deferred(text)) => {
                        told.deferred += 1;
                        told.last_deferral = text;
                    }
                    Err(_) => told.broken += 1,
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn attempt(&self, from: From, ready: &Ready) -> io::Result<Reply> {
        let _slot = match self.slots.try_acquire() {
            Ok(slot) => Some(slot),
            Err(_) => {
                self.capped.store(true, Ordering::Relaxed);
                self.slots.acquire().await.ok()
            }
        };
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = idle.entry(ready.client).or_default();
            // The relay may have ended meanwhile, and with it every session.
            idle.retain(Session::is_open);
            idle.pop()
        };
        let mut session = match idle {
            Some(session) => session,
            None => Session::open(self.relay, ready).await?,
        };
        let reply = session.mail(ready).await?;
        // Strangers come once, unless one server brings everybody's mail.
        let keep = if matches!(from, From::Fresh(_)) && ready.client != ONE_CLIENT {
            0
        } else {
            self.limits.idle
        };
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = idle.entry(ready.client).or_default();
            if idle.len() < keep && session.is_usable {
                idle.push(session);
                return Ok(reply);
            }
        }
        session.quit().await;
        Ok(reply)
    }
}

struct Session {
    stream: BufReader<TcpStream>,
    is_usable: bool,
}

impl Session {
    async fn open(relay: SocketAddr, ready: &Ready) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((ready.client, 0)))?;
        let stream = socket.connect(relay).await?;
        stream.set_nodelay(true)?;
        let mut session = Self {
            stream: BufReader::with_capacity(1024, stream),
            is_usable: true,
        };
        session.reply().await?;
        let hello = format!("EHLO {}\r\n", ready.helo);
        session.stream.write_all(hello.as_bytes()).await?;
        session.reply().await?;
        Ok(session)
    }

    /// Whether the relay has neither closed it nor said anything by itself.
    fn is_open(&self) -> bool {
        let read = self.stream.get_ref().try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn mail(&mut self, ready: &Ready) -> io::Result<Reply> {
        let told = ready.xforward.as_deref().unwrap_or_default();
        let commands = format!(
            "{told}MAIL FROM:<{}>\r\nRCPT TO:<{}>\r\nDATA\r\n",
            ready.sender, ready.recipient
        );
        self.stream.write_all(commands.as_bytes()).await?;
        let mut refusal = None;
        let mut last = String::new();
        for _ in 0..commands.lines().count() {
            last = self.reply().await?;
            if !last.starts_with(['2', '3']) && refusal.is_none() {
                refusal = Some(last.clone());
            }
        }
        if last.starts_with('3') {
            self.stream.write_all(&ready.content).await?;
            self.stream.write_all(b"\r\n.\r\n").await?;
            last = self.reply().await?;
        }
        let verdict = refusal.unwrap_or(last);
        self.is_usable = !verdict.starts_with("421");
        Ok(match verdict.as_bytes().first() {
            Some(b'2') => Reply::Taken(verdict),
            Some(b'5') => Reply::Rejected(verdict),
            _ => Reply::Deferred(verdict),
        })
    }

    /// Whether it is heard makes no difference.
    async fn quit(mut self) {
        let _ = self.stream.write_all(b"QUIT\r\n").await;
    }

    /// One reply, in one line.
    async fn reply(&mut self) -> io::Result<String> {
        let mut whole = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let last = line.as_bytes().get(3) != Some(&b'-');
            whole += line.trim_end();
            if last {
                return Ok(whole);
            }
            whole.push(' ');
        }
    }
}

/// The relay's id in a reply: "Ok: ID delivered …", "Ok: accepted as ID", Postfix's "Ok: queued as ID".
fn id_in(reply: &str) -> Option<String> {
    let after = |mark: &str| reply.split(mark).nth(1)?.split_ascii_whitespace().next();
    after(" as ").or_else(|| after("Ok: ")).map(str::to_owned)
}
