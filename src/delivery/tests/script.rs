//! A server that plays scripts: one script for each connection, and one connection after the other.
//!
//! | line | action of the server |
//! |---|---|
//! | `S: text` | sends the line |
//! | `S; text` | sends the line in one write with the next line |
//! | `C: text` | expects exactly this line |
//! | `TLS` | does the TLS handshake |
//! | `EOF` | expects the client to close at once |
//! | `HOLD` | drops all input until the client closes |
//! | `TELL` | notifies the test that the script has reached this line ([`Server::reached`]) |
//!
//! At the end of a script the server closes the connection.

use std::path::Path;
use std::sync::Arc;

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}
type Stream = BufReader<Box<dyn Socket>>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> Box<dyn Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await.expect("a connection");
                // The script writes line by line, and must not wait for the acknowledgements of the client.
                stream.set_nodelay(true).expect("an option");
                Box::new(stream)
            }
            Self::Unix(listener) => Box::new(listener.accept().await.expect("a connection").0),
        }
    }
}

pub(super) struct Server {
    address: String,
    reached: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(scripts: &[&str]) -> Self {
        Self::start_tls(scripts, None).await
    }

    pub(super) async fn start_tls(scripts: &[&str], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address").to_string();
        Self::run(address, scripts, tls, Listener::Tcp(listener))
    }

    pub(super) fn unix(path: &Path, scripts: &[&str]) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let address = format!("unix:{}", path.display());
        Self::run(address, scripts, None, Listener::Unix(listener))
    }

    fn run(
        address: String,
        scripts: &[&str],
        tls: Option<TlsAcceptor>,
        listener: Listener,
    ) -> Self {
        let scripts: Vec<String> = scripts.iter().map(|&script| script.to_owned()).collect();
        let reached = Arc::new(Notify::new());
        let notify = reached.clone();
        let task = tokio::spawn(async move {
            for script in scripts {
                let stream = listener.accept().await;
                play(&script, BufReader::new(stream), tls.as_ref(), &notify).await;
            }
        });
        Self {
            address,
            reached,
            task,
        }
    }

    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// Waits for `TELL`.
    pub(super) async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Waits for the end of all scripts. Panics if the client deviated from a script.
    pub(super) async fn finished(self) {
        self.task.await.expect("the script");
    }
}

async fn play(script: &str, mut stream: Stream, tls: Option<&TlsAcceptor>, reached: &Notify) {
    let mut gathered = String::new();
    for step in script
        .lines()
        .map(str::trim)
        .filter(|step| !step.is_empty())
    {
        if let Some(text) = step.strip_prefix("S;") {
            gathered += &format!("{}\r\n", text.trim());
        } else if let Some(text) = step.strip_prefix("S:") {
            gathered += &format!("{}\r\n", text.trim());
            // If the client has closed, the next expected line fails.
            let _ = stream.get_mut().write_all(gathered.as_bytes()).await;
            gathered.clear();
        } else if let Some(text) = step.strip_prefix("C:") {
            let mut line = String::new();
            stream.read_line(&mut line).await.expect("a line");
            assert_eq!(line, format!("{}\r\n", text.trim()), "in {script}");
        } else {
            match step {
                "TLS" => {
                    let accepted = tls.expect("an acceptor").accept(stream.into_inner()).await;
                    match accepted {
                        Ok(encrypted) => stream = BufReader::new(Box::new(encrypted)),
                        // The client has rejected the certificate, which ends this script.
                        Err(_) => return,
                    }
                }
                "EOF" => assert_eq!(stream.read_u8().await.ok(), None, "in {script}"),
                "HOLD" => while stream.read_u8().await.is_ok() {},
                "TELL" => reached.notify_one(),
                _ => panic!("unknown step {step}"),
            }
        }
    }
}
