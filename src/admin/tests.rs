//! Tests of both surfaces over real sockets, with a control that only records calls.

use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;

#[derive(Default)]
struct Fake {
    not_ready: Mutex<Option<String>>,
    problems: Vec<String>,
    store_is_dead: bool,
    drained: AtomicBool,
    /// A reload waits while a test holds this lock.
    reloads: tokio::sync::Mutex<()>,
}

impl Control for Fake {
    async fn status(&self) -> Status {
        Status {
            version: "1".to_owned(),
            hostname: "<script>\u{202e}".to_owned(),
            config: "abc".to_owned(),
            config_file: None,
            started: Timestamp::UNIX_EPOCH,
            draining: false,
            not_ready: self.ready().err(),
            delay: DelayComparison::default(),
            refused: None,
            refused_for: None,
            listeners: Vec::new(),
            sessions: 3,
            memory_available: 1 << 20,
            stored: (!self.store_is_dead).then(Stored::default),
            engines: Vec::new(),
            next_hops: vec![HopStatus {
                per_minute: Some(90),
                at_once: Some(1),
                until: Some(Timestamp::UNIX_EPOCH),
                said: Some("no connection <b>".to_owned()),
                ..HopStatus::sample_dead("hop", Timestamp::UNIX_EPOCH)
            }],
            not_recorded: Vec::new(),
            recovery: Recovery::default(),
        }
    }

    fn waits(&self) -> Waits {
        Waits::default()
    }

    fn engines(&self) -> Vec<Health> {
        Vec::new()
    }

    async fn drain_engine(&self, asked: &EngineAsked) -> Result<Vec<String>, String> {
        match &*asked.engine {
            "clamd" => Ok(Vec::new()),
            engine => Err(format!("{engine}, drain, {}", asked.reason)),
        }
    }

    async fn resume_engine(&self, asked: &EngineAsked) -> Result<Vec<String>, String> {
        match &*asked.engine {
            "clamd" => Ok(Vec::new()),
            engine => Err(format!("{engine}, resume, {}", asked.reason)),
        }
    }

    async fn test_engine(&self, _: &EngineAsked) -> Result<Vec<Tested>, String> {
        Ok(Vec::new())
    }

    async fn test_notify(&self, way: Option<&str>) -> Result<Vec<notify::Tested>, String> {
        match way {
            None | Some("oncall") => Ok(vec![notify::Tested {
                way: "oncall".to_owned(),
                told: Some("exit code 0".to_owned()),
                wrong: None,
            }]),
            Some(way) => Err(format!("no way {way}")),
        }
    }

    fn ready(&self) -> Result<(), String> {
        let reason = self.not_ready.lock().expect("lock").clone();
        reason.map_or(Ok(()), Err)
    }

    async fn reload(&self, _: Option<PathBuf>) -> Result<Changes, Vec<String>> {
        let _turn = self.reloads.lock().await;
        match self.problems.is_empty() {
            true => Ok(Changes {
                changes: vec!["limits.errors: 20 -> 10".to_owned()],
                notes: Vec::new(),
            }),
            false => Err(self.problems.clone()),
        }
    }

    fn config(&self) -> InForce {
        InForce::default()
    }

    async fn begin_shadow(&self, file: PathBuf) -> Result<Changes, Vec<String>> {
        Err(vec![format!("{} is not there", file.display())])
    }

    fn end_shadow(&self) -> Option<ShadowView> {
        None
    }

    fn shadow(&self) -> Option<ShadowView> {
        None
    }

    fn drain(&self) {
        self.drained.store(true, Ordering::SeqCst);
    }

    fn wake(&self) {}

    async fn flush(&self) -> Vec<LogTrouble> {
        Vec::new()
    }
}

struct Surfaces {
    folder: tempfile::TempDir,
    control: Arc<Fake>,
    tasks: TaskTracker,
    closing: CancellationToken,
    address: SocketAddr,
}

impl Surfaces {
    async fn open(control: Fake) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let (control, tasks) = (Arc::new(control), TaskTracker::new());
        let closing = CancellationToken::new();
        let settings = settings(&folder);
        let address = serve(&settings, control.clone(), &tasks, closing.clone())
            .await
            .expect("serves")
            .expect("an address");
        Self {
            folder,
            control,
            tasks,
            closing,
            address,
        }
    }

    async fn tcp(&self, request: &str) -> String {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        ask(stream, request).await
    }

    async fn unix(&self, request: &str) -> String {
        let path = settings(&self.folder).socket;
        ask(UnixStream::connect(path).await.expect("connects"), request).await
    }
}

fn settings(folder: &tempfile::TempDir) -> Settings {
    Settings {
        http: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        socket: folder.path().join("control.sock"),
    }
}

async fn ask(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
) -> String {
    let request = format!("{request} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    answer
}

/// A client of the TCP address can read, and can change nothing.
#[tokio::test]
async fn tcp_address_is_read_only() {
    let surfaces = Surfaces::open(Fake::default()).await;
    assert!(surfaces.tcp("GET /live").await.starts_with("HTTP/1.0 200"));
    assert!(surfaces.tcp("GET /metrics").await.contains("version=0.0.4"));
    for request in [
        "POST /control/drain",
        "POST /control/reload",
        "POST /control/notify",
        "POST /control/flush",
        "POST /control/act?act=release",
        "GET /status",
    ] {
        let answer = surfaces.tcp(request).await;
        assert!(answer.starts_with("HTTP/1.0 404"), "{request}: {answer}");
    }
    assert!(!surfaces.control.drained.load(Ordering::SeqCst));
}

/// A test of the ways says how each ended; an unknown way is an error with its reason.
#[tokio::test]
async fn ways_are_tested_through_the_socket() {
    let surfaces = Surfaces::open(Fake::default()).await;
    for request in [
        "POST /control/notify",
        "POST /control/notify?way=oncall&who=rita",
    ] {
        let answer = surfaces.unix(request).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(answer.contains("\"told\":\"exit code 0\""), "{answer}");
    }
    let answer = surfaces.unix("POST /control/notify?way=x").await;
    assert!(answer.starts_with("HTTP/1.0 404") && answer.ends_with("no way x"));
}

/// The metrics contain the present state of the lanes.
#[tokio::test]
async fn metrics_contain_the_status() {
    telemetry::metrics::install();
    let surfaces = Surfaces::open(Fake::default()).await;
    let page = surfaces.tcp("GET /metrics").await;
    assert!(page.contains("\nspillway_sessions 3\n"), "{page}");
    assert!(page.contains("\nspillway_lane_messages{lane=\"held\"} 0\n"));
    assert!(page.contains("\nspillway_lane_oldest_message_age_seconds{lane=\"held\"} 0\n"));
    assert!(page.contains("\nprocess_open_fds "), "{page}");
    assert!(page.contains("# HELP spillway_ready 1 while"));
}

/// While the store does not answer, the status does not show it as empty: an administrator would stop the relay and believe
/// that no mail is stored.
#[tokio::test]
async fn a_store_that_does_not_answer_is_not_shown_as_empty() {
    let dead = Fake {
        store_is_dead: true,
        ..Fake::default()
    };
    let surfaces = Surfaces::open(dead).await;
    let page = surfaces.tcp("GET /").await;
    assert!(
        page.contains("not known: the store does not answer"),
        "{page}"
    );
    assert!(!page.contains("0 messages"), "{page}");
    let status = surfaces.unix("GET /status").await;
    let json = status.split_once("\r\n\r\n").expect("a body").1;
    let status: Status = serde_json::from_str(json).expect("a status");
    assert_eq!(status.stored, None);
    assert!(!json.contains("\"scan\""), "{json}");
    let well = surfaces.control.status().await;
    let well = Status {
        stored: Some(Stored::default()),
        ..well
    };
    let json = serde_json::to_string(&well).expect("JSON");
    assert!(json.contains("\"scan\":{\"messages\":0"), "{json}");
    let read: Status = serde_json::from_str(&json).expect("a status");
    assert_eq!(read, well);
}

/// The wait for a store whose disk does not answer is short enough for people, and half of its answers counts as none.
#[tokio::test(start_paused = true)]
async fn the_wait_for_the_store_is_bounded() {
    let lanes = || async { Ok(<[LaneStats; Lane::ALL.len()]>::default()) };
    let oldest = || async { Ok(Vec::new()) };
    let held = || async { Ok(Held::default()) };
    let waits = Waits::default();
    let late = || (async { Ok(Vec::new()) }, &waits);
    let began = tokio::time::Instant::now();
    assert_eq!(
        Stored::from(lanes(), oldest(), std::future::pending(), late()).await,
        None
    );
    assert_eq!(
        Stored::from(std::future::pending(), oldest(), held(), late()).await,
        None
    );
    let hangs = (std::future::pending(), &waits);
    assert_eq!(Stored::from(lanes(), oldest(), held(), hangs).await, None);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "each within a second"
    );
    let broken = async { Err(StoreError::Closed) };
    assert_eq!(Stored::from(lanes(), oldest(), broken, late()).await, None);
    assert_eq!(
        Stored::from(lanes(), oldest(), held(), late()).await,
        Some(Stored::default())
    );
}

/// `/ready` contains the reason, so that the administrator need not search the log.
#[tokio::test]
async fn readiness_names_its_reason() {
    let surfaces = Surfaces::open(Fake::default()).await;
    assert!(surfaces.tcp("GET /ready").await.starts_with("HTTP/1.0 200"));
    *surfaces.control.not_ready.lock().expect("lock") = Some("the disk is full".to_owned());
    let answer = surfaces.tcp("GET /ready").await;
    assert!(answer.starts_with("HTTP/1.0 503"));
    assert!(answer.ends_with("the disk is full\n"));
}

/// No text from mail acts as markup in the page or reorders a line.
#[tokio::test]
async fn status_page_escapes() {
    let surfaces = Surfaces::open(Fake::default()).await;
    let page = surfaces.tcp("GET /").await;
    assert!(page.contains("&lt;script&gt;\\u{202e}"), "{page}");
    assert!(!page.contains("<script>"));
}

/// The owner of the socket may use all paths, and a refused reload returns all problems.
#[tokio::test]
async fn socket_controls() {
    let surfaces = Surfaces::open(Fake::default()).await;
    let answer = surfaces.unix("POST /control/reload").await;
    assert!(answer.starts_with("HTTP/1.0 200"));
    assert!(answer.ends_with(r#"{"changes":["limits.errors: 20 -> 10"]}"#));
    let answer = surfaces.unix("GET /status").await;
    assert!(answer.contains(r#""sessions":3"#), "{answer}");
    let answer = surfaces.unix("POST /control/drain").await;
    assert!(answer.starts_with("HTTP/1.0 202"));
    assert!(surfaces.control.drained.load(Ordering::SeqCst));

    let refusing = Surfaces::open(Fake {
        problems: vec!["no".to_owned()],
        ..Fake::default()
    })
    .await;
    let answer = refusing.unix("POST /control/reload").await;
    assert!(answer.starts_with("HTTP/1.0 422"));
    assert!(answer.ends_with(r#"{"problems":["no"]}"#));
}

/// A start replaces the socket of a dead relay, but not the socket of a live relay, and no other kind of file.
#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    let surfaces = Surfaces::open(Fake::default()).await;
    let settings = settings(&surfaces.folder);
    let mode = std::fs::metadata(&settings.socket)
        .expect("socket")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let again = || {
        let closing = surfaces.closing.clone();
        serve(
            &settings,
            surfaces.control.clone(),
            &surfaces.tasks,
            closing,
        )
    };
    assert!(matches!(again().await, Err(AdminError::InUse(_))));

    surfaces.closing.cancel();
    surfaces.tasks.close();
    surfaces.tasks.wait().await;
    assert!(!settings.socket.exists(), "taken away at the end");

    drop(std::os::unix::net::UnixListener::bind(&settings.socket).expect("binds"));
    assert!(settings.socket.exists(), "a dead socket is in the way");
    again().await.expect("replaces it");
    surfaces.tasks.wait().await;

    std::fs::write(&settings.socket, "precious").expect("writes");
    assert!(matches!(again().await, Err(AdminError::NoSocket(_))));
    assert_eq!(std::fs::read(&settings.socket).expect("reads"), b"precious");
}

/// However many connections are silent, a client that sends a request is answered at once, on either surface. The oldest
/// silent connections end, no more than necessary, and a command that is being answered is not among them.
#[tokio::test]
async fn silent_connections_make_room() {
    let surfaces = Surfaces::open(Fake::default()).await;
    let path = settings(&surfaces.folder).socket;
    let held = surfaces.control.reloads.lock().await;
    let reloading = surfaces.unix("POST /control/reload");
    let silent = async {
        let (mut tcp, mut unix) = (Vec::new(), Vec::new());
        for _ in 0..80 {
            let stream = TcpStream::connect(surfaces.address).await;
            tcp.push(stream.expect("connects").into_std().expect("a stream"));
            let stream = UnixStream::connect(&path).await.expect("connects");
            unix.push(stream.into_std().expect("a stream"));
        }
        assert!(surfaces.tcp("GET /ready").await.starts_with("HTTP/1.0 200"));
        assert!(
            surfaces
                .unix("GET /status")
                .await
                .starts_with("HTTP/1.0 200")
        );
        let open = |peeked: std::io::Result<usize>| {
            peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        let tcp = tcp.iter().map(|stream| open(stream.peek(&mut [0])));
        let unix = unix
            .iter_mut()
            .map(|stream| open(std::io::Read::read(stream, &mut [0])));
        let open = [tcp.collect::<Vec<_>>(), unix.collect()];
        drop(held);
        open
    };
    let (reloaded, open) = tokio::join!(reloading, silent);
    assert!(reloaded.starts_with("HTTP/1.0 200"), "{reloaded}");
    for (open, others) in open.into_iter().zip([0, 1]) {
        // The client that asks has one of the places.
        let ended = open.len() + 1 + others - 64;
        assert_eq!(
            open,
            [vec![false; ended], vec![true; open.len() - ended]].concat()
        );
    }
}

/// A connection without a request ends: monitoring cannot use up the relay's descriptors.
#[tokio::test(start_paused = true)]
async fn silent_connections_end() {
    let surfaces = Surfaces::open(Fake::default()).await;
    let mut stream = TcpStream::connect(surfaces.address)
        .await
        .expect("connects");
    let mut answer = Vec::new();
    // The paused clock advances while all tasks wait. Without the limit on connections, the read would never end.
    let ended = Deadline::after(Duration::from_secs(3600))
        .run(stream.read_to_end(&mut answer))
        .await;
    assert!(ended.is_ok());
}
