//! An engine with a bug. It speaks clamd's protocol, finds only the EICAR test file with which the relay probes it, and hangs
//! on one particular message.
//!
//! The engine hangs like a real one: it reads the content, sends no answer, and keeps the connection open until its client
//! gives up, or until it is restarted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::loopback::Loopback;

/// The header field of the message on which the engine hangs.
pub(super) const HANG_MARKER: &str = "X-Demo: this field makes the engine hang";
/// The text that the engine finds: the known-bad probe of the relay contains it.
const PROBE_MARKER: &[u8] = b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE";
/// Maximum size of a message: 1 MiB, far more than any message of the demo.
const MESSAGE_OCTETS_MAX: usize = 1 << 20;

#[derive(Debug)]
struct State {
    restarted: watch::Sender<bool>,
    hangs: Notify,
}

/// The running engine.
#[derive(Debug)]
pub(super) struct FragileEngine {
    server: Loopback,
    state: Arc<State>,
}

impl FragileEngine {
    /// Starts the engine on a free port.
    pub(super) async fn start() -> io::Result<Self> {
        let state = Arc::new(State {
            restarted: watch::Sender::new(false),
            hangs: Notify::new(),
        });
        let shared = state.clone();
        let server = Loopback::serve(move |stream| session(stream, shared.clone())).await?;
        Ok(Self { server, state })
    }

    /// The address of the engine.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Resolves when a scan begins to hang, or has begun to hang since the last call.
    pub(super) async fn hangs(&self) {
        self.state.hangs.notified().await;
    }

    /// Restarts the engine without its bug: hanging connections end, and no further scan hangs.
    pub(super) fn restart(&self) {
        self.state.restarted.send_replace(true);
    }
}

async fn session(stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut command = Vec::new();
    (&mut stream).take(64).read_until(0, &mut command).await?;
    if command != b"zINSTREAM\0" {
        // The engine has no signatures, so it does not answer VERSION.
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
    let marked = memchr::memmem::find(&content, HANG_MARKER.as_bytes()).is_some();
    let mut restarted = state.restarted.subscribe();
    if marked && !*restarted.borrow_and_update() {
        state.hangs.notify_one();
        tokio::select! {
            gone = stream.read_u8() => gone.map(|_| ())?,
            changed = restarted.changed() => changed.map_err(io::Error::other)?,
        }
        return Ok(());
    }
    let answer: &[u8] = match memchr::memmem::find(&content, PROBE_MARKER).is_some() {
        true => b"stream: Eicar-Test-Signature FOUND\0",
        false => b"stream: OK\0",
    };
    stream.get_mut().write_all(answer).await
}
