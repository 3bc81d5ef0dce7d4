//! An engine with a bug: it speaks clamd's protocol, finds nothing, and hangs on one particular message.
//!
//! It does what a real one does then: it takes the content, says nothing more, and holds the connection until its client
//! gives up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::loopback::Loopback;

/// What it hangs on.
pub(super) const MARKER: &str = "X-Demo: this field makes the engine hang";
/// Octets of one message at most.
const LARGEST: usize = 1 << 20;

#[derive(Debug)]
struct State {
    mended: AtomicBool,
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
            mended: AtomicBool::new(false),
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

    /// From now on it hangs no more.
    pub(super) fn mend(&self) {
        self.state.mended.store(true, Ordering::SeqCst);
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
        if content.len().saturating_add(size as usize) > LARGEST {
            return Err(io::Error::other("too large"));
        }
        (&mut stream)
            .take(size.into())
            .read_to_end(&mut content)
            .await?;
    }
    let marked = memchr::memmem::find(&content, MARKER.as_bytes()).is_some();
    if marked && !state.mended.load(Ordering::SeqCst) {
        state.hangs.notify_one();
        // Ends when the client goes away.
        stream.read_u8().await?;
        return Ok(());
    }
    stream.get_mut().write_all(b"stream: OK\0").await
}
