//! Real engines.

use crate::client::Client;
use crate::relay::{Site, eventually};
use crate::samples;
use crate::servers::Clamd;
use spillway::store::{Filter, Lane};

/// clamd finds the EICAR test file inside nested multiparts and inside a zip, a clean message passes, and the report of
/// each held message names the engine and the finding.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clamd_finds_what_is_nested_and_zipped() {
    let site = Site::new();
    let clamd = Clamd::start(site.path());
    let relay = site
        .start(&format!(
            "[[engine]]\nname = \"clamd\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"unix:{}\"]\n",
            clamd.socket.display()
        ))
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let eicar = samples::eicar();
    let zip = samples::zipped("eicar.com", &eicar);
    for content in [
        samples::nested(3, "note.txt", b"nothing to see"),
        samples::nested(3, "eicar.com", &eicar),
        samples::nested(1, "archive.zip", &zip),
        samples::nested(2, "archive.zip", &samples::zipped("inner.zip", &zip)),
    ] {
        let reply = client
            .send("a@a.test", &["b@b.test"], &content)
            .await
            .expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }
    let store = relay.running.pipeline().store().clone();
    let held = eventually("three are held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            engine: Some("clamd".to_owned()),
            finding: Some("test.eicar".to_owned()),
            limit: 10,
            ..Filter::default()
        };
        let found = store.search(filter).await.expect("search");
        (found.len() == 3).then_some(found)
    })
    .await;
    for record in &held {
        assert_eq!(
            record.decision.as_ref().expect("a decision").rule,
            "policy.malware"
        );
    }
    assert_eq!(site.delivered().len(), 1, "the clean one");
}
