//! A clamd that misbehaves on command: workers, a queue before them, scans that go on when nobody waits any more.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::mail::number_of;
use crate::plan::{Kind, Planned};
use crate::scene::Scene;

/// clamd's StreamMaxLength.
const STREAM: usize = 25 << 20;
/// A scan so old has outlived whoever asked for it.
const ABANDONED: Duration = Duration::from_secs(5);
const LARGE: usize = 1 << 20;
/// How long a process that crashed is gone.
const CRASHED: Duration = Duration::from_secs(1);

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Healthy,
    SlowLarge,
    SlowAll,
    /// As a process that is stopped: it accepts, is silent, and goes on where it was when the mode ends.
    Hung,
    /// As a process that is gone.
    Refused,
    Garbage,
    Gray,
    /// Mail waits until the mode ends; all else is answered.
    Stuck,
}

/// One scan that began.
#[derive(Debug, Clone, Copy)]
pub struct Scan {
    /// Since the first message of the run; zero if before.
    pub at: Duration,
    /// The message; none for a probe.
    pub message: Option<usize>,
    pub octets: usize,
    /// The answer was made up.
    pub gray: bool,
}

/// What the engine has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub scans: Mutex<Vec<Scan>>,
    /// How much longer than it should each scan took, from the worker on: this program's own fault.
    pub overrun: Mutex<Vec<Duration>>,
    busy: Gauge,
    zombies: Gauge,
}

impl Seen {
    /// Workers busy at once, at most.
    pub fn busiest(&self) -> usize {
        self.busy.most.load(Ordering::Relaxed)
    }

    /// Scans at once, at most, whose caller was gone or that had taken longer than any caller waits.
    pub fn most_zombies(&self) -> usize {
        self.zombies.most.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Gauge {
    fn up(&self) -> Held<'_> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Held(self)
    }
}

struct Held<'a>(&'a Gauge);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One running engine; it ends with its runtime.
pub struct Engine {
    pub port: u16,
    pub mode: watch::Sender<Mode>,
    pub seen: Arc<Seen>,
}

impl Engine {
    /// Starts the engine with this place among its like; only the first one knows about the plan's costs.
    pub async fn start(
        first: bool,
        scene: &Scene,
        plan: Arc<Vec<Planned>>,
        began: Instant,
    ) -> io::Result<Self> {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener.local_addr()?;
        let mode = watch::Sender::new(Mode::Healthy);
        let seen = Arc::new(Seen::default());
        let shared = Arc::new(Shared {
            first,
            plan,
            began,
            mode: mode.subscribe(),
            is_crashed: watch::Sender::new(false),
            workers: scene.slots,
            free: Semaphore::new(scene.slots),
            waiting: Gauge::default(),
            usual: scene.usual,
            seen: seen.clone(),
        });
        tokio::spawn(listen(shared, address, listener));
        Ok(Self {
            port: address.port(),
            mode,
            seen,
        })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn listen(shared: Arc<Shared>, address: SocketAddr, first: TcpListener) {
    let mut listener = Some(first);
    loop {
        match &listener {
            Some(open) => tokio::select! {
                accepted = open.accept() => if let Ok((stream, _)) = accepted {
                    tokio::spawn(life(shared.clone(), stream));
                },
                () = shared.until(false) => listener = None,
            },
            None => {
                shared.until(true).await;
                listener = bind(address).ok();
                if listener.is_none() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// A connection, until the process is gone.
async fn life(shared: Arc<Shared>, stream: TcpStream) {
    tokio::select! {
        _ = shared.serve(stream) => {}
        () = shared.until(false) => {}
    }
}

struct Shared {
    first: bool,
    plan: Arc<Vec<Planned>>,
    began: Instant,
    mode: watch::Receiver<Mode>,
    is_crashed: watch::Sender<bool>,
    /// Scans at once; more wait inside.
    workers: usize,
    free: Semaphore,
    waiting: Gauge,
    usual: Duration,
    seen: Arc<Seen>,
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    /// Until the process runs, or does not, whatever it is that ended it.
    async fn until(&self, runs: bool) {
        let (mut mode, mut is_crashed) = (self.mode.clone(), self.is_crashed.subscribe());
        while (*mode.borrow_and_update() != Mode::Refused && !*is_crashed.borrow_and_update())
            != runs
        {
            let changed = tokio::select! {
                changed = mode.changed() => changed,
                changed = is_crashed.changed() => changed,
            };
            if changed.is_err() {
                pending::<()>().await;
            }
        }
    }

    /// The process ends at once, with everything that it does, and is started again.
    fn crash(&self) {
        let is_crashed = self.is_crashed.clone();
        tokio::spawn(async move {
            is_crashed.send_replace(true);
            tokio::time::sleep(CRASHED).await;
            is_crashed.send_replace(false);
        });
    }

    /// While the process is stopped, nothing of it goes on.
    async fn thawed(&self) {
        let mut mode = self.mode.clone();
        if mode.wait_for(|mode| *mode != Mode::Hung).await.is_err() {
            pending::<()>().await;
        }
    }

    /// While mail is stuck.
    async fn unstuck(&self) {
        let mut mode = self.mode.clone();
        if mode.wait_for(|mode| *mode != Mode::Stuck).await.is_err() {
            pending::<()>().await;
        }
    }

    async fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::with_capacity(64 * 1024, stream);
        let mut command = Vec::new();
        let end = match stream.read_u8().await? {
            b'z' => 0,
            b'n' => b'\n',
            other => {
                command.push(other);
                b'\n'
            }
        };
        (&mut stream)
            .take(1024)
            .read_until(end, &mut command)
            .await?;
        let command = String::from_utf8_lossy(&command);
        let answer = match command.trim_end_matches(['\0', '\n', '\r']) {
            "INSTREAM" => self.instream(&mut stream).await?,
            "PING" => "PONG".to_owned(),
            "VERSION" => version(),
            "STATS" => self.stats(),
            _ => "UNKNOWN COMMAND".to_owned(),
        };
        self.thawed().await;
        let mut answer = match self.mode() {
            Mode::Garbage => "\u{fffd}??<html>418 = 7%\t-".repeat(2),
            _ => answer,
        }
        .into_bytes();
        answer.push(end);
        stream.write_all(&answer).await
    }

    async fn instream(&self, stream: &mut BufReader<TcpStream>) -> io::Result<String> {
        let mut content = Vec::new();
        loop {
            let length = stream.read_u32().await? as usize;
            if length == 0 {
                break;
            }
            if content.len() + length > STREAM {
                return Ok("INSTREAM size limit exceeded. ERROR".to_owned());
            }
            let at = content.len();
            content.resize(at + length, 0);
            stream.read_exact(&mut content[at..]).await?;
        }
        let message = number_of(&content);
        let kind = message
            .and_then(|at| self.plan.get(at))
            .map(|planned| planned.kind);
        let gray = self.mode() == Mode::Gray;
        self.note(message, content.len(), gray);
        self.thawed().await;
        if message.is_some() {
            self.unstuck().await;
        }
        if gray || self.mode() == Mode::Garbage {
            return Ok("stream: OK".to_owned());
        }
        let is_bad = has_eicar(&content);
        let cost = self.cost(kind, content.len(), is_bad);
        drop(content);
        self.work(stream, cost).await;
        if kind == Some(Kind::Killer) {
            self.crash();
            pending::<()>().await;
        }
        Ok(match kind {
            _ if is_bad => "stream: Eicar-Test-Signature FOUND",
            Some(Kind::Flood(_)) if self.first => "stream: Flood.Drill FOUND",
            Some(Kind::Malware) if self.first => "stream: Trojan.Drill FOUND",
            // What clamd says with AlertExceedsMax when it has given up.
            Some(Kind::Hang | Kind::Beside) if self.first => {
                "stream: Heuristics.Limits.Exceeded.MaxScanTime FOUND"
            }
            _ => "stream: OK",
        }
        .to_owned())
    }

    fn note(&self, message: Option<usize>, octets: usize, gray: bool) {
        let scan = Scan {
            at: Instant::now().saturating_duration_since(self.began),
            message,
            octets,
            gray,
        };
        self.seen
            .scans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(scan);
    }

    fn cost(&self, kind: Option<Kind>, octets: usize, is_bad: bool) -> Duration {
        let own = match kind {
            Some(kind @ Kind::Greedy { .. }) => kind.cost(self.usual),
            Some(kind) if self.first && !is_bad => kind.cost(self.usual),
            _ => self.usual,
        };
        match self.mode() {
            Mode::SlowAll => own + Duration::from_secs(3),
            Mode::SlowLarge if octets >= LARGE => own + Duration::from_secs(20),
            _ => own,
        }
    }

    /// One scan: a worker is waited for, and kept until the end whether or not the caller is still there, as clamd does
    /// (ClamAV issue 1129: callers gave up after 180 s, scans ran for more than an hour).
    async fn work(&self, stream: &mut BufReader<TcpStream>, cost: Duration) {
        let waits = self.waiting.up();
        let Ok(_worker) = self.free.acquire().await else {
            return;
        };
        drop(waits);
        let _busy = self.seen.busy.up();
        let ends = tokio::time::Instant::now() + cost;
        let mut zombie = None;
        tokio::select! {
            () = tokio::time::sleep(cost.min(ABANDONED)) => {}
            () = gone(stream) => zombie = Some(self.seen.zombies.up()),
        }
        if cost > ABANDONED && zombie.is_none() {
            zombie = Some(self.seen.zombies.up());
        }
        tokio::time::sleep_until(ends).await;
        let overrun = ends.elapsed();
        self.seen
            .overrun
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(overrun);
        self.thawed().await;
        drop(zombie);
    }

    fn stats(&self) -> String {
        let (most, waiting) = (self.workers, self.waiting.now.load(Ordering::Relaxed));
        let busy = most - self.free.available_permits();
        let idle = most - busy;
        format!(
            "POOLS: 1\n\nSTATE: VALID PRIMARY\nTHREADS: live {busy}  idle {idle} max {most} idle-timeout 30\n\
             QUEUE: {waiting} items\n\tSTATS 0.000000 \n\nMEMSTATS: heap N/A mmap N/A used N/A free N/A releasable N/A pools 1 \
             pools_used 100.000M pools_total 100.000M\nEND"
        )
    }
}

/// Until the caller closes.
async fn gone(stream: &mut BufReader<TcpStream>) {
    // Callers say nothing more: whatever can be read is the end.
    while stream.read_u8().await.is_ok() {}
}

fn version() -> String {
    let today = jiff::Zoned::now().strftime("%a %b %e %H:%M:%S %Y");
    format!("ClamAV 1.4.3/27812/{today}")
}

/// The EICAR test file, plain or at the beginning of a part in base64.
fn has_eicar(content: &[u8]) -> bool {
    // In pieces, so that nobody takes this program for what it looks for.
    let plain = ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR", "-STANDARD-ANTIVIRUS"].concat();
    let encoded = ["WDVPIVAlQEFQWzRcUFpYNTQo", "UF4pN0NDKTd9JEVJQ0FS"].concat();
    [plain, encoded]
        .iter()
        .any(|wanted| memchr::memmem::find(content, wanted.as_bytes()).is_some())
}
