//! Every kind of engine at once about messages of 40 KiB: the servers that administrators run, from Debian's packages.
//!
//! One message after the other, because all these servers share the processors with the relay. What the relay adds is what a
//! client waits beyond the slowest engine's report about the same message; its processor time is its own process's.

use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use spillway::message::MessageId;
use spillway::store::history;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::latency::reply;
use crate::name_server::NameServer;
use crate::process::{Spillway, free_port, sink};
use crate::servers::{CIcap, Clamd, Dkim, OpenDkim, Rspamd, Spamd};

const MESSAGES: usize = 200;
const WARM_UP: usize = 20;
const OCTETS: usize = 40 << 10;

pub async fn run() {
    let folder = tempfile::tempdir().expect("a folder");
    let clamd = Clamd::start(folder.path());
    let icap = CIcap::start(folder.path(), &clamd);
    let spamd = Spamd::start(folder.path());
    let rspamd = Rspamd::start(folder.path());
    let opendkim = OpenDkim::start(folder.path(), Dkim::Verify);
    let names = NameServer::start().await;
    names.has("test.list.test", [127, 0, 0, 2]);
    let service = service().await;
    let unix = |path: &Path| format!("address = [\"unix:{}\"]", path.display());
    let tcp = |port: u16| format!("address = [\"127.0.0.1:{port}\"]");
    let url = |scheme: &str, rest: String| format!("address = [\"{scheme}://127.0.0.1:{rest}\"]");
    let resolver = format!("resolver = [\"{}\"]", names.address);
    let engines = [
        ("clamd", "clamd", unix(&clamd.socket)),
        ("icap", "icap", url("icap", format!("{}/avscan", icap.port))),
        ("spamd", "spamd", tcp(spamd.port)),
        ("rspamd", "rspamd", url("http", rspamd.port.to_string())),
        ("proxy", "milter", tcp(rspamd.milter)),
        ("opendkim", "milter", unix(&opendkim.socket)),
        (
            "service",
            "http",
            format!(
                "{}\nverdict_at = \"/malicious\"",
                url("http", format!("{service}/scan"))
            ),
        ),
        ("program", "command", "command = [\"/bin/true\"]".to_owned()),
        (
            "auth",
            "auth",
            format!("authserv_id = \"relay.test\"\n{resolver}"),
        ),
        (
            "urls",
            "dns",
            format!(
                "zone = \"list.test\"\nask = [\"url\"]\nanswers = [\"127.0.0.0/8 spam 1.0 listed\"]\n{resolver}"
            ),
        ),
        ("attachments", "attachment", String::new()),
    ];
    let mut config = String::new();
    for (name, kind, more) in &engines {
        config += &format!(
            "[[engine]]\nname = \"{name}\"\nkind = \"{kind}\"\ntimeout = \"30s\"\nlimit = \"30s\"\n{more}\n"
        );
    }
    let sink_port = free_port();
    let _sink = sink(sink_port, 1_000_000);
    config += &format!(
        "[policy]\nquarantine_score = 100000.0\nreject_score = 100000.0\n\
         [[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{sink_port}\"]\ntls = \"off\"\n"
    );
    let spillway = Spillway::start("cut-through", &config);
    let mut random = SmallRng::seed_from_u64(1);
    for _ in 0..WARM_UP {
        send(spillway.port, &message(&mut random)).await;
    }
    let (mut waits, before) = (Vec::new(), spillway.cpu());
    for _ in 0..MESSAGES {
        waits.push(send(spillway.port, &message(&mut random)).await);
    }
    let processor = (spillway.cpu() - before) * 1000.0 / MESSAGES as f64;
    // Entries reach the history within a second.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let file = spillway.config().with_file_name("spillway-data");
    let (mut above, mut slowest) = (Vec::new(), Vec::new());
    for (id, wait) in waits {
        let told = history::read(&file.join(history::FILE_NAME), id).await;
        let told = told.expect("the history").pop().expect("its end");
        assert_eq!(told.reports.len(), engines.len(), "{:?}", told.reports);
        let missing = told.reports.iter().find(|r| r.missing().is_some());
        assert!(missing.is_none(), "{missing:?}");
        let reports = told
            .reports
            .iter()
            .map(|r| r.elapsed.as_secs_f64() * 1000.0);
        slowest.push(reports.fold(0.0, f64::max));
        above.push(wait - slowest[slowest.len() - 1]);
    }
    let [(above, above_most), (slowest, _)] = [above, slowest].map(|mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[values.len() * 99 / 100])
    });
    println!(
        "engines: {} at once, {} KiB, {MESSAGES} messages: the slowest takes {slowest:.0} ms (p50), and the client waits \
         {above:.1} ms more (<= 3; p99 {above_most:.1}); {processor:.1} ms of the relay's processor time per message",
        engines.len(),
        OCTETS >> 10,
    );
}

/// A message like no other, so that no verdict is used twice.
fn message(random: &mut SmallRng) -> Vec<u8> {
    let mut octets = vec![0; OCTETS * 3 / 4 - 512];
    random.fill(&mut octets[..]);
    let text = base64::engine::general_purpose::STANDARD.encode(octets);
    let mut out = b"From: a@a.test\r\nTo: b@b.test\r\nSubject: figures\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n\
        The figures; see http://www.example.com/\r\n--b\r\nContent-Type: application/octet-stream\r\n\
        Content-Transfer-Encoding: base64\r\n\r\n"
        .to_vec();
    for line in text.as_bytes().chunks(76) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"--b--\r\n.\r\n");
    out
}

/// The message's id, and milliseconds from its first octet until its 250.
async fn send(port: u16, message: &[u8]) -> (MessageId, f64) {
    let stream = TcpStream::connect(("127.0.0.1", port)).await;
    let stream = stream.expect("the relay listens");
    stream.set_nodelay(true).expect("an option");
    let mut stream = BufReader::new(stream);
    reply(&mut stream).await.expect("a greeting");
    for line in [
        "EHLO load.test",
        "MAIL FROM:<a@a.test>",
        "RCPT TO:<b@b.test>",
        "DATA",
    ] {
        let line = format!("{line}\r\n");
        stream.write_all(line.as_bytes()).await.expect("a command");
        reply(&mut stream).await.expect("a reply");
    }
    let began = Instant::now();
    stream.write_all(message).await.expect("the message");
    let last = reply(&mut stream).await.expect("a reply");
    let wait = began.elapsed().as_secs_f64() * 1000.0;
    assert!(last.starts_with("250"), "{last}");
    let id = last.split_whitespace().find_map(|word| word.parse().ok());
    (id.expect("an id"), wait)
}

/// A service that finds nothing.
async fn service() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let answer = || async { axum::Json(serde_json::json!({"malicious": false})) };
    let router = axum::Router::new().route("/scan", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}
