//! The guard around a real engine.

use rustix::process::Signal;

use crate::client::Client;
use crate::relay::{Relay, Site, eventually};
use crate::samples;
use crate::servers::{Clamd, cli};

/// clamd, and the embedded rules beside it; one of them must have answered.
async fn start(site: &Site, clamd: &Clamd) -> Relay {
    site.start(&format!(
        "[[engine]]\nname = \"clamd\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"unix:{}\"]\nslots = 12\nprobe = \"1s\"\n\
         [[engine]]\nname = \"rules\"\nkind = \"rules\"\n[coverage]\nav = 1\n",
        clamd.socket.display()
    ))
    .await
}

/// The kinds of incidents so far, the oldest first.
fn incidents(site: &Site) -> Vec<String> {
    let listed = cli(
        &site.path().join("spillway.toml"),
        &["incident", "list", "--events", "--json", "--limit", "1000"],
    );
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let listed = listed["incidents"].as_array().expect("a list").iter().rev();
    let kind = |i: &serde_json::Value| i["kind"].as_str().expect("a kind").to_owned();
    listed.map(kind).collect()
}

/// P2 and P6 with a real engine: while clamd is stopped mail flows by the other engine's answers; when it goes on, the
/// relay notices by itself, gives it its mail back, and scans what was delivered without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_clamd_delays_nobody_and_comes_back() {
    let site = Site::new();
    let clamd = Clamd::start(site.path());
    let relay = start(&site, &clamd).await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let mut sent = 0;
    let mut send = async || {
        sent += 1;
        let text = format!("message number {sent} of this test, unlike all others");
        let content = samples::nested(1, "note.txt", text.as_bytes());
        let reply = client.send("a@a.test", &["b@b.test"], &content).await;
        let reply = reply.expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
        sent
    };
    for _ in 0..20 {
        send().await;
    }
    clamd.server.signal(Signal::STOP);
    eventually("the breaker opens", async || {
        send().await;
        incidents(&site)
            .contains(&"breaker-opened".to_owned())
            .then_some(())
    })
    .await;
    let before = site.delivered().len();
    for _ in 0..20 {
        send().await;
    }
    assert!(
        site.delivered().len() >= before + 20,
        "inside their sessions"
    );
    clamd.server.signal(Signal::CONT);
    let all = eventually("the breaker closes", async || {
        let all = send().await;
        incidents(&site)
            .contains(&"breaker-closed".to_owned())
            .then_some(all)
    })
    .await;
    eventually("everything is delivered", async || {
        (site.delivered().len() == all).then_some(())
    })
    .await;
    eventually(
        "what was delivered without clamd was scanned by it",
        async || {
            let [scan, _, held, rescan] = relay
                .running
                .pipeline()
                .store()
                .stats()
                .await
                .expect("stats");
            assert_eq!(held.messages, 0, "nothing is wrong with this mail");
            (scan.messages + rescan.messages == 0).then_some(())
        },
    )
    .await;
    let story = eventually("the recovery ends, and the breaker closes", async || {
        let story = incidents(&site);
        let both = ["recovery-ended", "breaker-closed"];
        both.iter()
            .all(|kind| story.iter().any(|seen| seen == kind))
            .then_some(story)
    })
    .await;
    let at = |kind: &str| story.iter().position(|k| k == kind);
    assert!(at("breaker-opened") < at("breaker-probing"), "{story:?}");
    assert!(at("breaker-probing") < at("breaker-closed"), "{story:?}");
    assert!(at("breaker-probing") < at("recovery-ended"), "{story:?}");
    relay.running.drain().await;
}
