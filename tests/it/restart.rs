//! Law 8: a restart forgets nobody, on the program itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::Signal;

use crate::client::Client;
use crate::samples;
use crate::servers::{Spillway, cli, free_port, log_of, wait_until};

/// Sends one message; the reply.
async fn send(port: u16, content: &[u8]) -> String {
    let mut client = Client::open(([127, 0, 0, 1], port).into())
        .await
        .expect("connect");
    let reply = client.send("a@a.test", &["b@b.test"], content).await;
    reply.expect("a reply")
}

/// What speaks for the sender of a message that is held, as `explain` tells.
async fn reputation(config: &Path, port: u16) -> String {
    let mut content = b"Subject: held\r\n\r\n".to_vec();
    content.extend(samples::eicar());
    content.extend(b"\r\n");
    let reply = send(port, &content).await;
    assert!(reply.starts_with("250"), "{reply}");
    let id = reply.split_whitespace().find(|word| word.len() == 26);
    let told = cli(config, &["explain", id.expect("an id"), "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let reputation = told["record"]["reputation"].as_str();
    reputation.expect("it was asked").to_owned()
}

/// A sender that was scanned well is known after an end and after a kill, as of the last snapshot; one that is damaged is
/// set aside with a warning, and mail goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_sender_is_known_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let config = folder.path().join("spillway.toml");
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\n"
    );
    std::fs::write(&config, text).expect("configuration");
    let snapshot = folder.path().join("spillway-data/baseline.snapshot");

    let first = Spillway::start(&config, port);
    assert_eq!(reputation(&config, port).await, "unknown");
    for n in 0..2 {
        let content = format!("Subject: {n}\r\n\r\nnumber {n}\r\n");
        let reply = send(port, content.as_bytes()).await;
        assert!(reply.starts_with("250"), "{reply}");
    }
    assert_eq!(reputation(&config, port).await, "known");
    first.server.signal(Signal::TERM);
    wait_until("a snapshot is written at the end", || snapshot.exists());
    drop(first);
    let mode = std::fs::metadata(&snapshot).expect("a snapshot").mode();
    assert_eq!(mode & 0o777, 0o600);

    let second = Spillway::start(&config, port);
    assert!(log_of(&config).contains("known senders and usual mail are taken up"));
    assert_eq!(reputation(&config, port).await, "known");
    second.server.signal(Signal::KILL);
    drop(second);

    let third = Spillway::start(&config, port);
    assert_eq!(reputation(&config, port).await, "known", "after a kill");
    third.server.signal(Signal::KILL);
    drop(third);

    let whole = std::fs::read(&snapshot).expect("a snapshot");
    std::fs::write(&snapshot, &whole[..whole.len() / 2]).expect("cut");
    let _fourth = Spillway::start(&config, port);
    let log = log_of(&config);
    assert!(log.contains("known senders are forgotten"), "{log}");
    assert!(log.contains("baseline.snapshot.set-aside"), "{log}");
    assert_eq!(reputation(&config, port).await, "unknown");
}
