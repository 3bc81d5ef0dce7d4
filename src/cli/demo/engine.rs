//! An engine with a bug: it speaks clamd's protocol, finds the test file that the relay probes it with and nothing else,
//! and hangs on one particular message.
//!
//! It does what a real one does then: it takes the content, says nothing more, and holds the connection until its client
//! gives up, or until it is restarted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::loopback::Loopback;

/// What it hangs on.
pub(super) const MARKER: &str = "X-Demo: this field makes the engine hang";
/// What it finds.
const PROBE: &[u8] = b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE";
/// Octets of one message at most.
const MESSAGE_OCTETS_MAX: usize = 1 << 20;

#[derive(Debug)]
struct State {
    mended: watch::Sender<bool>,
    hangs: Notify,
}

/// The engine.
#[derive(Debug)]
pub(super) struct FragileEngine {
    server: Loopback,
    state: Arc<State>,
}

impl FragileEngine {
    /// Listens on a free port.
    pub(super) async fn start() -> io::Result<Self> {
        let state = Arc::new(State {
            mended: watch::Sender::new(false),
            hangs: Notify::new(),
        });
        let shared = state.clone();
        let server = Loopback::serve(move |stream| session(stream, shared.clone())).await?;
        Ok(Self { server, state })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Resolves when it hangs, or has begun to since this was last asked.
    pub(super) async fn hangs(&self) {
        self.state.hangs.notified().await;
    }

    /// Restarts it: connections end, and from now on it hangs no more.
    pub(super) fn mend(&self) {
        self.state.mended.send_replace(true);
    }
}

async fn session(stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut command = Vec::new();
    (&mut stream).take(64).read_until(0, &mut command).await?;
    if command != b"zINSTREAM\0" {
        // It has no signatures whose version it could tell.
        return Ok(());
    }
    let mut content = Vec::new();
    loop {
        let size = stream.read_u32().await?;
        if size == 0 {
            break;
        }
        if content.len().saturating_add(size as usize) > MESSAGE_OCTETS_MAX {
            return Err(io::Error::other("too large"));
        }
        (&mut stream)
            .take(size.into())
            .read_to_end(&mut content)
            .await?;
    }
    let marked = memchr::memmem::find(&content, MARKER.as_bytes()).is_some();
    let mut mended = state.mended.subscribe();
    if marked && !*mended.borrow_and_update() {
        state.hangs.notify_one();
        tokio::select! {
            gone = stream.read_u8() => gone.map(|_| ())?,
            restarted = mended.changed() => restarted.map_err(io::Error::other)?,
        }
        return Ok(());
    }
    let answer: &[u8] = match memchr::memmem::find(&content, PROBE).is_some() {
        true => b"stream: Eicar-Test-Signature FOUND\0",
        false => b"stream: OK\0",
    };
    stream.get_mut().write_all(answer).await
}
