//! What is late, and why, as `spillway status` tells it of a relay with a real engine.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use spillway::message::{BodyKind, Content, Envelope, Mailbox, MessageId, Origin};
use spillway::store::sqlite::{Role, SqliteStore};
use spillway::store::{Lane, Record, Settings, Store};

use crate::relay::{Site, eventually};
use crate::servers::{Clamd, cli, free_port};
use crate::sink;

/// A message that arrived so many minutes ago, and is due.
fn waiting(lane: Lane, minutes: i64) -> Record {
    let mailbox = |text: &str| Mailbox::parse(text).expect("mailbox");
    let (now, id) = (Timestamp::now(), MessageId::new());
    let ago = now - SignedDuration::from_mins(minutes);
    Record {
        id,
        message: id,
        lane,
        envelope: Envelope {
            reverse_path: mailbox("a@a.test").into(),
            recipients: vec![mailbox("b@b.test").into()],
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("smtp"),
        },
        trace: "Received: by relay.test\r\n".into(),
        size: CONTENT.len() as u64,
        sha256: String::new(),
        subject: "late".to_owned(),
        received_at: ago,
        due_at: ago,
        expires_at: now + SignedDuration::from_hours(24),
        attempts: 0,
        spent: Duration::ZERO,
        decision: None,
        reports: Vec::new(),
        status: String::new(),
        released: false,
        cause: None,
        reputation: None,
        notification: None,
        instead_of: Vec::new(),
        timeouts: 0,
        late_for: Vec::new(),
        hung: false,
        next_hop: match lane {
            Lane::Delivery => "mx".into(),
            _ => "".into(),
        },
    }
}

const CONTENT: &str = "From: a@a.test\r\nSubject: late\r\n\r\nhello\r\n";

/// Each kind of late mail: what it waits for, its name, the state of that, and the number of messages.
fn late(site: &Site) -> Vec<(String, String, String, u64)> {
    let told = cli(&site.path().join("spillway.toml"), &["status", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let late = told["late"].as_array().expect("a list").iter().map(|late| {
        let word = |key: &str| {
            late["waits_for"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let messages = late["messages"].as_u64().expect("a number");
        (word("what"), word("name"), word("state"), messages)
    });
    late.collect()
}

/// Old mail that waits for an engine and for a next hop that are both down is late for two causes, each with its name, its number
/// and its advice. One cause goes with the next hop, the other with the engine, and then nothing is late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cause_of_late_mail_is_told_until_it_is_gone() {
    let (site, port) = (Site::new(), free_port());
    let settings = Settings {
        path: site.path().join("spillway-data"),
        disk_reserve: 0,
        ..Settings::default()
    };
    let (store, _) = SqliteStore::open(&settings, Role::Relay)
        .await
        .expect("opens");
    for (lane, minutes) in [
        (Lane::Scan, 40),
        (Lane::Scan, 30),
        (Lane::Delivery, 20),
        (Lane::Delivery, 10),
        (Lane::Delivery, 10),
    ] {
        let content = Content::uncharged(CONTENT);
        let put = store.put(vec![waiting(lane, minutes)], content);
        put.await.expect("puts");
    }
    store.close().await;
    drop(store);
    let config = format!(
        "[[engine]]\nname = \"clamd\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"unix:{}\"]\nprobe = \"1s\"\n\
         [coverage]\nav = 1\n[[next_hop]]\nname = \"mx\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\n",
        site.path().join("clamd.ctl").display()
    );
    let relay = site.start(&config).await;
    eventually("both causes are told", async || {
        let told = late(&site);
        let is = |what: &str, name: &str, messages| {
            told.iter()
                .any(|(w, n, _, m)| (&**w, &**n, *m) == (what, name, messages))
        };
        // The first is tried as a probe, and may be in work.
        (is("engine", "clamd", 2) && is("next-hop", "mx", 3)).then_some(())
    })
    .await;
    let shown = cli(&site.path().join("spillway.toml"), &["status"]);
    for words in [
        "engine clamd",
        "3 messages wait for next hop mx, down since",
        "do: Repair the next hop",
        "(40m)",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    let (_, got) = sink::start_at(port, |_| None).await;
    eventually("the next hop is not to blame any more", async || {
        let told = late(&site);
        told.iter().all(|(what, ..)| what == "engine").then_some(())
    })
    .await;
    assert_eq!(got.bodies().len(), 3);
    assert_eq!(late(&site).len(), 1, "the engine still is");

    let _clamd = Clamd::start(site.path());
    eventually("nothing is late", async || {
        late(&site).is_empty().then_some(())
    })
    .await;
    assert_eq!(got.bodies().len(), 5);
    let shown = cli(&site.path().join("spillway.toml"), &["status"]);
    assert!(shown.contains("Nothing is late"), "{shown}");
    assert!(shown.contains("now (5 min)"), "{shown}");
    let told = cli(&site.path().join("spillway.toml"), &["status", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["delay"]["now"]["messages"], 5);
    let p99 = told["delay"]["now"]["p99_ms"].as_u64().expect("mail");
    assert!(p99 > 2_400_000, "the oldest took 40 minutes: {p99} ms");
    assert!(relay.running.drain().await);
}
