//! Resident memory: idle sessions, and large messages against `limits.in_flight_bytes`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::latency::reply;
use crate::process::{Spillway, free_port, sink};

const MIB: u64 = 1 << 20;

pub async fn run() {
    idle_sessions().await;
    for sessions in [1, 8, 32] {
        large_messages(sessions).await;
    }
}

async fn idle_sessions() {
    const SESSIONS: u64 = 10_000;
    let spillway = Spillway::start("cut-through", "[limits]\nsessions_per_client = 20000\n");
    // One session first, so that what the first session of all costs is not counted.
    let mut open = vec![greeted(spillway.port).await];
    let before = spillway.resident();
    for _ in 0..SESSIONS {
        open.push(greeted(spillway.port).await);
    }
    let each = (spillway.resident() - before) as f64 / SESSIONS as f64;
    println!(
        "memory: {SESSIONS} idle sessions after EHLO: {:.1} KiB resident each (< 16)",
        each / 1024.0
    );
}

async fn greeted(port: u16) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connect");
    let mut stream = BufReader::with_capacity(512, stream);
    reply(&mut stream).await.expect("greeting");
    stream.write_all(b"EHLO idle.test\r\n").await.expect("EHLO");
    reply(&mut stream).await.expect("extensions");
    stream
}

/// So many sessions send 50 MiB at once; those that find no room are told to come back, and do.
async fn large_messages(sessions: usize) {
    const IN_FLIGHT: u64 = 256 * MIB;
    let sink_port = free_port();
    let _sink = sink(sink_port, 1_000_000);
    let spillway = Spillway::start(
        "cut-through",
        &format!(
            "[limits]\nin_flight_bytes = \"256MiB\"\nmessage_size = \"51MiB\"\n[[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\n\
             kind = \"smtp\"\naddress = [\"127.0.0.1:{sink_port}\"]\ntls = \"off\"\n"
        ),
    );
    let mut first = greeted(spillway.port).await;
    first.write_all(b"QUIT\r\n").await.expect("QUIT");
    let before = spillway.resident();
    let peak = Arc::new(AtomicU64::new(0));
    let port = spillway.port;
    let tasks: Vec<_> = (0..sessions).map(|_| tokio::spawn(large(port))).collect();
    let watching = {
        let peak = peak.clone();
        async move {
            loop {
                peak.fetch_max(spillway.resident(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let watcher = tokio::spawn(watching);
    let mut accepted = 0;
    for task in tasks {
        accepted += usize::from(task.await.expect("sent"));
    }
    watcher.abort();
    let grown = peak.load(Ordering::Relaxed).saturating_sub(before);
    println!(
        "memory: {sessions} sessions with 50 MiB each: resident +{} MiB (<= {} = in_flight_bytes), {accepted} accepted at once, the others 452",
        grown / MIB,
        IN_FLIGHT / MIB
    );
}

async fn large(port: u16) -> bool {
    let mut stream = greeted(port).await;
    stream
        .write_all(b"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n")
        .await
        .expect("commands");
    for _ in 0..3 {
        reply(&mut stream).await.expect("reply");
    }
    let line =
        b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n".repeat(1000);
    let mut sent = 0;
    stream
        .write_all(b"Subject: large\r\n\r\n")
        .await
        .expect("content");
    while sent < 50 * MIB as usize {
        stream.write_all(&line).await.expect("content");
        sent += line.len();
    }
    stream.write_all(b".\r\n").await.expect("end of data");
    reply(&mut stream).await.expect("reply").starts_with("250")
}
