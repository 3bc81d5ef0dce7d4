//! Between two real mail servers.

use std::collections::HashMap;
use std::path::Path;

use crate::client::Client;
use crate::relay::eventually;
use crate::samples;
use crate::servers::{Postfix, Spillway, cli, command, free_port, is_root, left_out};
use crate::sink::id_of;

const MESSAGES: usize = 500;

/// Postfix -> Spillway -> Postfix, cut-through: every message arrives exactly once, byte for byte below the documented
/// header fields.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_messages_between_two_postfixes_in_cut_through() {
    between("cut-through").await;
}

/// The same in queue mode.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_messages_between_two_postfixes_in_queue_mode() {
    between("queue").await;
}

async fn between(mode: &str) {
    if !is_root() {
        return left_out(
            &format!("five hundred messages, {mode}"),
            "only root can run Postfix",
        );
    }
    let folder = tempfile::Builder::new()
        .prefix("it")
        .tempdir_in("/var/tmp")
        .expect("a folder");
    command("chmod", &["755", &folder.path().display().to_string()]);
    let (first, last, mail) = (
        folder.path().join("first"),
        folder.path().join("last"),
        folder.path().join("mail"),
    );
    for part in [&first, &last, &mail] {
        std::fs::create_dir(part).expect("a folder");
    }
    command("chown", &["65534:65534", &mail.display().to_string()]);
    let last = Postfix::start(
        &last,
        &format!(
            "myhostname = last.test\nmydestination =\nvirtual_mailbox_domains = b.test\nvirtual_mailbox_base = {}\n\
             virtual_mailbox_limit = 0\nvirtual_mailbox_maps = static:box/\nvirtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n",
            mail.display()
        ),
    );
    let port = free_port();
    let config = folder.path().join("spillway.toml");
    std::fs::write(
        &config,
        format!(
            "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"\"\n\
             [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\nmode = \"{mode}\"\n\
             [[next_hop]]\nname = \"last\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{}\"]\ntls = \"off\"\n",
            last.port
        ),
    )
    .expect("configuration");
    let _spillway = Spillway::start(&config, port);
    let first = Postfix::start(
        &first,
        &format!("myhostname = first.test\nmydestination =\nrelayhost = [127.0.0.1]:{port}\n"),
    );

    let mut sent = HashMap::new();
    let mut sending = Vec::new();
    for session in 0..8 {
        let batch: Vec<_> = (session..MESSAGES)
            .step_by(8)
            .map(|n| (n, message(n)))
            .collect();
        sent.extend(
            batch
                .iter()
                .map(|(n, content)| (n.to_string(), content.clone())),
        );
        let address = ([127, 0, 0, 1], first.port).into();
        sending.push(tokio::spawn(async move {
            let mut client = Client::open(address).await.expect("connect");
            for (number, content) in batch {
                // Some go to two recipients, and so arrive twice.
                let to: &[&str] = if number % 50 == 0 {
                    &["x@b.test", "y@b.test"]
                } else {
                    &["x@b.test"]
                };
                let reply = client
                    .send("sender@a.test", to, &content)
                    .await
                    .expect("a reply");
                assert!(reply.starts_with("250"), "{reply}");
            }
        }));
    }
    for task in sending {
        task.await.expect("sent");
    }

    let expected: usize = (0..MESSAGES).map(|n| if n % 50 == 0 { 2 } else { 1 }).sum();
    let inbox = mail.join("box/new");
    eventually("everything has arrived", async || {
        (files(&inbox) >= expected).then_some(())
    })
    .await;
    let queue = cli(&config, &["queue", "list", "--json"]);
    let queue: serde_json::Value = serde_json::from_str(&queue).expect("JSON");
    assert_eq!(queue["total"], 0, "nothing is left behind: {queue}");

    let mut arrived: HashMap<String, usize> = HashMap::new();
    for entry in std::fs::read_dir(&inbox).expect("inbox") {
        let got = std::fs::read(entry.expect("entry").path()).expect("a message");
        let id = id_of(&got).expect("an id");
        let original = String::from_utf8_lossy(&sent[&id]).replace("\r\n", "\n");
        let got = String::from_utf8_lossy(&got).into_owned();
        let added = got
            .strip_suffix(&original)
            .unwrap_or_else(|| panic!("message {id} was changed:\n{got:.2000}"));
        only_documented_fields(added);
        *arrived.entry(id).or_default() += 1;
    }
    for number in 0..MESSAGES {
        let times = if number % 50 == 0 { 2 } else { 1 };
        assert_eq!(
            arrived.get(&number.to_string()),
            Some(&times),
            "message {number}"
        );
    }
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Between the two there may be what the servers add themselves, one Received of ours and one result field.
fn only_documented_fields(added: &str) {
    let mut ours = (0, 0);
    for field in added.replace("\n\t", " ").replace("\n ", " ").lines() {
        let name = field.split(':').next().unwrap_or_default();
        match name {
            "Received" => ours.0 += usize::from(field.contains("by relay.test (Spillway)")),
            "X-Spillway-Result" => ours.1 += 1,
            "Return-Path" | "X-Original-To" | "Delivered-To" => {}
            other => panic!("an undocumented field: {other}: in {added}"),
        }
    }
    assert_eq!(
        ours,
        (1, 1),
        "one Received and one result field of ours: {added}"
    );
}

/// All sorts: small, large, empty, with dots, with long lines, in 8 bits, with attachments.
fn message(number: usize) -> Vec<u8> {
    let mut out = format!(
        "X-Test-Id: {number}\r\nFrom: sender@a.test\r\nTo: x@b.test\r\nSubject: message {number}\r\n\
         Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-Id: <{number}@a.test>\r\n"
    )
    .into_bytes();
    match number % 8 {
        0 => out.extend(b"\r\n"),
        1 => out.extend(b"\r\n.\r\n..\r\n...\r\n.x\r\n\r\n.\r\n"),
        2 => {
            out.extend(b"\r\n");
            out.extend(std::iter::repeat_n(b'x', 998));
            out.extend(b"\r\n");
        }
        3 => out.extend("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße, Welt ✓\r\n".as_bytes()),
        4 => {
            let attachment: Vec<u8> = (0..number * 40 % 250_000).map(|n| (n * 31 % 251) as u8).collect();
            out.extend(b"MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n");
            out.extend(samples::base64_lines(&attachment).as_bytes());
            out.extend(b"\r\n");
        }
        5 => out.extend(b"\r\nFrom the beginning of a line\r\n>From\r\n \r\n\t\r\n"),
        6 => {
            out.extend(b"\r\n");
            out.extend(b"0123456789012345678901234567890123456789012345678901234567890123456789\r\n".repeat(number % 500));
        }
        _ => out.extend(b"\r\ntext\r\n"),
    }
    out
}
