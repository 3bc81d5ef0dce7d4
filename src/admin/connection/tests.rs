//! Tests: which connections end for others, and which connections wait.

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::*;

fn open(remotes: &[Option<&str>]) -> Open {
    let place = |remote_host: &Option<&str>| {
        let address = remote_host.map(|text| SocketAddr::new(text.parse().expect("address"), 1));
        ConnectionPlace(Arc::new(PlaceState {
            remote_host: address.and_then(|address| address.remote_host()),
            ..PlaceState::default()
        }))
    };
    Open {
        places: Mutex::new(remotes.iter().map(place).collect()),
        idle: Notify::new(),
    }
}

/// The order in which the connections would end.
fn order(open: &Open) -> Vec<usize> {
    let ended = |open: &Open| {
        let ended =
            |(at, place): (usize, &ConnectionPlace)| place.0.wanted.is_cancelled().then_some(at);
        open.lock()
            .iter()
            .enumerate()
            .filter_map(ended)
            .collect::<Vec<_>>()
    };
    let mut order: Vec<usize> = Vec::new();
    let all = open.lock().len();
    for _ in 0..all {
        open.make_room();
        let now = ended(open);
        order.extend(now.iter().find(|at| !order.contains(at)));
    }
    order
}

/// The client with the most waiting connections loses one first, the oldest of them.
#[test]
fn the_client_with_most_connections_gives_way() {
    let (one, other) = (Some("192.0.2.1"), Some("198.51.100.2"));
    let places = open(&[one, other, other, other, one]);
    assert_eq!(order(&places), [1, 0, 2, 3, 4]);
    let own = open(&[None, Some("::ffff:127.0.0.1"), Some("::1")]);
    assert_eq!(order(&own), [0, 1, 2]);
    let network = [Some("2001:db8::1"), one, Some("2001:db8::2:1")];
    assert_eq!(order(&open(&network)), [0, 1, 2]);
}

/// New connections do not end a connection whose request is being answered, even if the answer takes long.
#[test]
fn a_connection_that_is_being_answered_keeps_its_place() {
    let places = open(&[Some("192.0.2.1"), None]);
    places.lock()[0].0.set(STATE_ANSWERING);
    assert_eq!(order(&places), [1]);
    places.lock()[0].0.set(STATE_ANSWERED);
    assert!(!places.make_room());
}

/// The clients of a surface.
struct Visitors(Sender<(DuplexStream, SocketAddr)>);

struct Arriving(Receiver<(DuplexStream, SocketAddr)>);

impl Listener for Arriving {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        self.0.recv().await.expect("callers")
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 1).into())
    }
}

impl Visitors {
    /// Starts a surface whose answers at `/stalled` wait for a permit of the returned semaphore.
    fn come() -> (Self, Arc<Semaphore>, CancellationToken) {
        let (callers, arriving) = channel(256);
        let gate = Arc::new(Semaphore::new(0));
        let opens = gate.clone();
        let stalled = move || {
            let gate = opens.clone();
            async move { gate.acquire_owned().await.expect("open").forget() }
        };
        let routes = Router::new()
            .route("/stalled", get(stalled))
            .route("/ready", get(async || "ready"));
        let closing = CancellationToken::new();
        tokio::spawn(serve(Arriving(arriving), routes, closing.clone(), ()));
        (Self(callers), gate, closing)
    }

    async fn ask(&self, from: &str, path: &str) -> DuplexStream {
        let (mut near, far) = tokio::io::duplex(4096);
        let from = SocketAddr::new(from.parse().expect("address"), 1);
        self.0.send((far, from)).await.expect("served");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        near.write_all(request.as_bytes()).await.expect("asks");
        near
    }
}

/// The beginning of an answer that comes within a second; empty if the connection ends, none if nothing comes.
async fn said(stream: &mut DuplexStream) -> Option<String> {
    let mut octets = vec![0; 4096];
    let second = Deadline::after(Duration::from_secs(1));
    let read = second.run(stream.read(&mut octets)).await.ok()?;
    let read = read.expect("reads");
    Some(String::from_utf8_lossy(&octets[..read.min(15)]).into_owned())
}

const OK: &str = "HTTP/1.1 200 OK";

/// However many answers to remote clients stall, a local client does not wait behind them. If all answers to local clients
/// stall, a new local client gets the place of the first answer that is written, and that answer is complete.
#[tokio::test(start_paused = true)]
async fn stalled_answers_delay_only_clients_of_their_kind() {
    let (callers, gate, closing) = Visitors::come();
    let mut remotes = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        remotes.push(callers.ask("192.0.2.1", "/stalled").await);
    }
    let mut refused = callers.ask("192.0.2.2", "/ready").await;
    assert_eq!(said(&mut refused).await.as_deref(), Some(""), "no place");
    let mut own = callers.ask("127.0.0.1", "/ready").await;
    assert_eq!(said(&mut own).await.as_deref(), Some(OK));
    let mut stalled = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        stalled.push(callers.ask("127.0.0.1", "/stalled").await);
    }
    assert_eq!(said(&mut own).await.as_deref(), Some(""), "it made room");
    let mut next = callers.ask("127.0.0.1", "/ready").await;
    assert_eq!(said(&mut next).await, None, "all are being answered");
    Deadline::after(2 * IDLE_CONNECTION_TIMEOUT).wait().await;
    assert_eq!(said(&mut stalled[0]).await, None, "they may take longer");
    gate.add_permits(CONNECTIONS_MAX + 1);
    assert_eq!(said(&mut next).await.as_deref(), Some(OK));
    gate.add_permits(CONNECTIONS_MAX - 1);
    for stream in stalled.iter_mut().chain(&mut remotes[..1]) {
        assert_eq!(said(stream).await.as_deref(), Some(OK));
    }
    closing.cancel();
}

/// A client that does not read its answer keeps no place, because its connection waits for the client.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_keeps_no_place() {
    let large = async || "x".repeat(1 << 20);
    let (callers, arriving) = channel(256);
    let callers = Visitors(callers);
    let routes = Router::new().route("/", get(large));
    let routes = routes.route("/ready", get(async || "ready"));
    let closing = CancellationToken::new();
    tokio::spawn(serve(Arriving(arriving), routes, closing.clone(), ()));
    let mut stuck = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        stuck.push(callers.ask("127.0.0.1", "/").await);
    }
    let mut next = callers.ask("127.0.0.1", "/ready").await;
    assert_eq!(said(&mut next).await.as_deref(), Some(OK));
    closing.cancel();
}
