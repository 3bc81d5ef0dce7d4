//! End-to-end latency with three engines that answer in 5, 10 and 20 ms, at 200 messages/s.
//!
//! An open loop: latency counts from the instant a message was due to be sent, so a relay that stalls cannot hide it by
//! slowing the load down.

use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::process::{Spillway, free_port, sink};

const RATE: u32 = 200;
const SECONDS: u32 = 15;

pub async fn run() {
    let engines = [5, 10, 20];
    let mut config = String::new();
    let mut slowest = 0;
    for milliseconds in engines {
        let port = engine(Duration::from_millis(milliseconds)).await;
        slowest = port;
        config += &format!(
            "[[engine]]\nname = \"e{milliseconds}\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"127.0.0.1:{port}\"]\nslots = 64\n"
        );
    }
    let sink_port = free_port();
    let _sink = sink(sink_port, 1_000_000);
    config += &format!(
        "[[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{sink_port}\"]\ntls = \"off\"\n"
    );
    let spillway = Spillway::start("cut-through", &config);
    load(spillway.port, 2).await;
    let histogram = load(spillway.port, SECONDS).await;
    let engine = alone(slowest).await;
    let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
    println!(
        "latency: {RATE}/s, engines of 5, 10, 20 ms: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, {} messages",
        at(0.5),
        at(0.99),
        histogram.max() as f64 / 1000.0,
        histogram.len()
    );
    println!(
        "latency: the slowest engine alone answers in {engine:.1} ms (p50): above it {:+.1} ms at p50 (<= 3), {:+.1} ms at p99 (<= 10)",
        at(0.5) - engine,
        at(0.99) - engine
    );
}

/// What the engine takes when it is asked directly, one call at a time: timers are no finer than a millisecond.
async fn alone(port: u16) -> f64 {
    let mut taken = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("engine");
        let piece = vec![b'x'; 4096];
        stream.write_all(b"zINSTREAM\0").await.expect("command");
        stream.write_u32(4096).await.expect("length");
        stream.write_all(&piece).await.expect("content");
        stream.write_u32(0).await.expect("end");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("answer");
        taken.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    taken.sort_by(f64::total_cmp);
    taken[taken.len() / 2]
}

/// A clamd that answers OK after `delay`.
async fn engine(delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, delay));
        }
    });
    port
}

async fn answer(mut stream: TcpStream, delay: Duration) -> std::io::Result<()> {
    let mut command = Vec::new();
    let mut stream_reader = BufReader::new(&mut stream);
    stream_reader.read_until(0, &mut command).await?;
    if command.ends_with(b"VERSION\0") {
        return stream
            .write_all(b"ClamAV 1.0.0/27000/Mon Jan  1 00:00:00 2024\0")
            .await;
    }
    let began = Instant::now();
    loop {
        let length = stream_reader.read_u32().await?;
        if length == 0 {
            break;
        }
        let mut piece = vec![0; length as usize];
        stream_reader.read_exact(&mut piece).await?;
    }
    tokio::time::sleep_until(began + delay).await;
    stream.write_all(b"stream: OK\0").await
}

async fn load(port: u16, seconds: u32) -> Histogram<u64> {
    let mut histogram = Histogram::<u64>::new(3).expect("a histogram");
    let began = Instant::now() + Duration::from_millis(50);
    let mut sending = Vec::new();
    for number in 0..RATE * seconds {
        let due = began + Duration::from_secs(1) * number / RATE;
        tokio::time::sleep_until(due).await;
        sending.push(tokio::spawn(async move {
            send(port, number).await.expect("accepted");
            due.elapsed()
        }));
    }
    for task in sending {
        let elapsed = task.await.expect("sent");
        let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        histogram.record(elapsed).expect("it grows as needed");
    }
    histogram
}

/// No two messages are alike, so that no verdict is used twice.
async fn send(port: u16, number: u32) -> std::io::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    reply(&mut stream).await?;
    stream.write_all(b"EHLO load.test\r\n").await?;
    reply(&mut stream).await?;
    stream
        .write_all(b"MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n")
        .await?;
    for _ in 0..3 {
        reply(&mut stream).await?;
    }
    let mut content = format!("Subject: load\r\n\r\n{number}\r\n").into_bytes();
    content.extend(
        b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n".repeat(56),
    );
    content.extend(b".\r\n");
    stream.write_all(&content).await?;
    let last = reply(&mut stream).await?;
    if !last.starts_with("250") {
        return Err(std::io::Error::other(last));
    }
    stream.write_all(b"QUIT\r\n").await
}

/// One reply; its last line.
pub async fn reply(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(line);
        }
    }
}
