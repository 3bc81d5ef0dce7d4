//! A next hop that remembers what it got and misbehaves on request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What it has got, in order, and how many sessions are open.
#[derive(Clone, Default)]
pub struct Got(Arc<Mutex<Vec<Vec<u8>>>>, Arc<AtomicU64>);

impl Got {
    /// Sessions whose end it has not seen.
    pub fn open(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    /// The `X-Test-Id` fields of everything that was accepted.
    pub fn ids(&self) -> Vec<String> {
        let got = self.0.lock().expect("no test panics with it");
        got.iter()
            .map(|content| id_of(content).unwrap_or_default())
            .collect()
    }

    /// All that was accepted, dot-stuffing undone.
    pub fn bodies(&self) -> Vec<String> {
        let got = self.0.lock().expect("no test panics with it");
        got.iter()
            .map(|content| String::from_utf8_lossy(content).into_owned())
            .collect()
    }
}

/// The test's own id of a message.
pub fn id_of(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    text.lines()
        .find_map(|line| line.strip_prefix("X-Test-Id: "))
        .map(|id| id.trim().to_owned())
}

/// How it answers end of data: the reply for the nth message it sees, or nothing special.
pub type Mood = fn(u64) -> Option<&'static str>;

/// Accepts everything, but for what `mood` says.
pub async fn start(mood: Mood) -> (SocketAddr, Got) {
    start_at(0, mood).await
}

/// The same on a port.
pub async fn start_at(port: u16, mood: Mood) -> (SocketAddr, Got) {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .expect("a port");
    let address = listener.local_addr().expect("its address");
    let got = Got::default();
    let kept = got.clone();
    let count = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (got, count) = (kept.clone(), count.clone());
            got.1.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let _ = serve(stream, &got, &count, mood).await;
                got.1.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (address, got)
}

async fn serve(stream: TcpStream, got: &Got, count: &AtomicU64, mood: Mood) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 sink.test\r\n").await?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let verb = line
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => stream.write_all(b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 DSN\r\n").await?,
            "DATA" => {
                stream.write_all(b"354 go\r\n").await?;
                let mut content = Vec::new();
                loop {
                    let mut line = Vec::new();
                    if stream.read_until(b'\n', &mut line).await? == 0 {
                        return Ok(());
                    }
                    if line == b".\r\n" {
                        break;
                    }
                    content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                }
                let number = count.fetch_add(1, Ordering::Relaxed);
                match mood(number) {
                    Some(reply) => stream.write_all(format!("{reply}\r\n").as_bytes()).await?,
                    None => {
                        got.0.lock().expect("no test panics with it").push(content);
                        stream.write_all(b"250 2.0.0 taken\r\n").await?;
                    }
                }
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => stream.write_all(b"250 ok\r\n").await?,
        }
    }
}
