//! Promise P5: after 250 a message is on the next hop, or durable here, across kill -9.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use crate::client::Client;
use crate::relay::eventually;
use crate::samples;
use crate::servers::{Spillway, cli, free_port, listens};
use crate::sink;

const KILLS: u32 = 50;
/// Messages that are acknowledged, at least, between two kills.
const LEAST: usize = 5;
/// What the lanes deliver at once (the slots of the scan lane and those of a next hop), and so the messages whose 250 from
/// there a kill can keep from being noted, on a disk that is slow as well.
const DELIVERIES: usize = 32 + 16;

/// Every twentieth message is put off once more, so that the queue is in use as well.
fn mood(number: u64) -> Option<&'static str> {
    (number % 20 == 7).then_some("451 4.3.0 later")
}

/// kill -9 at random moments of traffic in both modes, fifty times: nothing acknowledged is lost, and the next hop gets
/// nothing twice but what was between its 250 and our note of it when a kill fell, which SMTP leaves open (RFC 5321 6.1,
/// RFC 1047).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_killed() {
    let (hop, got) = sink::start(mood).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (cut, queue) = (free_port(), free_port());
    let config = folder.path().join("spillway.toml");
    std::fs::write(
        &config,
        format!(
            "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"\"\n[store]\ndisk_reserve = \"1MiB\"\n\
             [[listener]]\nname = \"cut\"\naddress = [\"127.0.0.1:{cut}\"]\n\
             [[listener]]\nname = \"queue\"\naddress = [\"127.0.0.1:{queue}\"]\nmode = \"queue\"\n\
             [[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"{hop}\"]\ntls = \"off\"\n\
             retry_first = \"1s\"\nretry_max = \"2s\"\n"
        ),
    )
    .expect("configuration");

    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    // What the next hop had got by the end of each life of the relay.
    let mut lives = Vec::new();
    for round in 0..KILLS {
        let spillway = Spillway::start(&config, queue);
        let senders: Vec<_> = (0..6)
            .map(|n| {
                let port = if n % 2 == 0 { cut } else { queue };
                tokio::spawn(traffic(port, format!("{round}-{n}"), acknowledged.clone()))
            })
            .collect();
        // Another moment each time, but one that a slow machine reaches as well: after so many answers, and a little.
        let enough = count(&acknowledged) + LEAST + rand::random_range(0..4 * LEAST);
        eventually("there is traffic", async || {
            (count(&acknowledged) >= enough).then_some(())
        })
        .await;
        let moment = Duration::from_micros(rand::random_range(0..20_000));
        let _ = tokio::time::timeout(moment, std::future::pending::<()>()).await;
        spillway.server.signal(Signal::KILL);
        for sender in senders {
            let _ = sender.await;
        }
        drop(spillway);
        eventually(
            "the next hop has seen the end of all sessions",
            async || (got.open() == 0).then_some(()),
        )
        .await;
        lives.push(got.ids().len());
    }

    let last = Spillway::start(&config, queue);
    assert!(listens(cut));
    let mut waiting = String::new();
    eventually("the queue is empty", async || {
        let now = cli(&config, &["queue", "list", "--json"]);
        if now != waiting {
            println!("still waiting: {} octets", now.len());
            waiting = now;
        }
        waiting.contains("\"total\": 0,").then_some(())
    })
    .await;
    let held: serde_json::Value = serde_json::from_str(&cli(
        &config,
        &["quarantine", "list", "--limit", "100000", "--json"],
    ))
    .expect("JSON");
    let held: HashSet<String> = held["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry["subject"].as_str().expect("a subject").to_owned())
        .collect();
    drop(last);

    let acknowledged = acknowledged.lock().expect("no sender panics").clone();
    let all = got.ids();
    let received: HashSet<&String> = all.iter().collect();
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|id| {
            if id.starts_with("eicar") {
                !held.contains(*id)
            } else {
                !received.contains(id)
            }
        })
        .collect();
    println!(
        "{} acknowledged, {} held, {} received, {} more than once, {KILLS} kills",
        acknowledged.len(),
        held.len(),
        received.len(),
        all.len() - received.len(),
    );
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(
        !received.iter().any(|id| id.starts_with("eicar")),
        "malware was delivered"
    );
    let mut before = 0;
    for (life, until) in lives.into_iter().enumerate() {
        let again: Vec<_> = all[before..until]
            .iter()
            .filter(|id| all[until..].contains(id))
            .collect();
        assert!(
            again.len() <= DELIVERIES,
            "more than the kill of life {life} had caught between two replies: {again:?}"
        );
        let once: HashSet<_> = all[before..until].iter().collect();
        assert_eq!(
            once.len(),
            until - before,
            "one life delivers nothing twice"
        );
        before = until;
    }
}

fn count(acknowledged: &Mutex<Vec<String>>) -> usize {
    acknowledged.lock().expect("no sender panics").len()
}

/// Sends until the relay is gone; notes what was answered with 250.
async fn traffic(port: u16, name: String, acknowledged: Arc<Mutex<Vec<String>>>) {
    let Ok(mut client) = Client::open(([127, 0, 0, 1], port).into()).await else {
        return;
    };
    for number in 0.. {
        let malware = number % 10 == 3;
        let id = format!(
            "{}-{name}-{number}",
            if malware { "eicar" } else { "clean" }
        );
        let mut content = format!("X-Test-Id: {id}\r\nSubject: {id}\r\n\r\n").into_bytes();
        if malware {
            content.extend(samples::eicar());
            content.extend(b"\r\n");
        } else if number % 7 == 0 {
            // Larger than what is kept inside the database.
            content.extend(
                b"0123456789012345678901234567890123456789012345678901234567890123\r\n"
                    .repeat(3000),
            );
        }
        match client.send("a@a.test", &["b@b.test"], &content).await {
            Ok(reply) if reply.starts_with("250") => {
                acknowledged.lock().expect("no sender panics").push(id)
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
