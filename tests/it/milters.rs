//! Real mail filters, and every kind of engine side by side.

use crate::client::Client;
use crate::relay::{Relay, Site, eventually};
use crate::samples;
use crate::servers::{CIcap, Clamd, Dkim, OpenDkim, Rspamd, Spamd};
use crate::sink;
use spillway::store::{Filter, Lane, Record};
use spillway::verdict::Report;

fn engine(name: &str, kind: &str, class: &str, address: &str, more: &str) -> String {
    format!(
        "[[engine]]\nname = \"{name}\"\nkind = \"{kind}\"\nclass = \"{class}\"\naddress = [\"{address}\"]\n\
         timeout = \"60s\"\nlimit = \"60s\"\nprobe = \"0s\"\n{more}\n"
    )
}

fn hop(address: std::net::SocketAddr) -> String {
    format!(
        "[[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"{address}\"]\ntls = \"off\"\n"
    )
}

async fn send(relay: &Relay, mail: &[u8]) {
    let mut client = Client::open(relay.address()).await.expect("connect");
    let reply = client.send("a@a.test", &["b@b.test"], mail).await;
    let reply = reply.expect("a reply");
    assert!(reply.starts_with("250"), "{reply}");
}

/// What is in quarantine, once there are so many.
async fn held(relay: &Relay, count: usize) -> Vec<Record> {
    let store = relay.running.pipeline().store().clone();
    eventually("so many are held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            limit: 10,
            ..Filter::default()
        };
        let held = store.search(filter).await.expect("search");
        (held.len() == count).then_some(held)
    })
    .await
}

fn report<'a>(record: &'a Record, engine: &str) -> &'a Report {
    let mut reports = record.reports.iter();
    reports.find(|r| &*r.engine == engine).expect("a report")
}

fn found(record: &Record, engine: &str, name: &str) -> bool {
    let findings = report(record, engine).findings();
    findings.iter().any(|f| f.name.contains(name))
}

const MAIL: &str = "From: a@a.test\r\nTo: b@b.test\r\nSubject: signed\r\n\tby a\r\nDate: Mon, 03 Nov 2025 09:00:00 +0000\r\n\
                    Message-ID: <1@a.test>\r\n\r\nThe text.\r\n\r\n.dots\r\n";

/// OpenDKIM as a filter signs mail on its way out, and the signature holds at the next relay: the content was not changed
/// anywhere. A forged result in our name goes, ours is on top; and a rule holds what was changed after it was signed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opendkim_signs_and_verifies() {
    let site = Site::new();
    let signer = OpenDkim::start(site.path(), Dkim::Sign);
    let verifier = OpenDkim::start(site.path(), Dkim::Verify);
    let (address, got) = sink::start(|_| None).await;
    let at = |server: &OpenDkim| format!("unix:{}", server.socket.display());
    let fields = "edits = \"fields\"";
    let relay = site
        .start(&format!(
            "{}{}{}[[rule]]\nname = \"changed\"\nengine = [\"verifier\"]\nfinding = [\"dkim=fail\"]\nthen = \"quarantine\"\n",
            engine("signer", "milter", "content", &at(&signer), fields),
            engine("verifier", "milter", "auth", &at(&verifier), fields),
            hop(address),
        ))
        .await;
    send(&relay, MAIL.as_bytes()).await;
    let signed = got.bodies().pop().expect("the signed one");
    assert!(signed.starts_with("DKIM-Signature: v=1;"), "{signed}");
    assert!(signed.ends_with(MAIL), "{signed}");

    let forged =
        format!("Authentication-Results: relay.test; dkim=pass header.d=forged.test\r\n{signed}");
    send(&relay, forged.as_bytes()).await;
    let verified = got.bodies().pop().expect("the verified one");
    assert!(
        verified.starts_with("Authentication-Results: relay.test;"),
        "{verified}"
    );
    let top = verified.split_once("\r\nReceived:").expect("ours").0;
    assert!(
        top.contains("dkim=pass") && top.contains("header.d=a.test"),
        "{top}"
    );
    assert!(!verified.contains("forged.test"), "{verified}");

    // However many there are.
    let forged = format!(
        "{}{signed}",
        "Authentication-Results: relay.test; dkim=pass header.d=forged.test\r\n".repeat(150)
    );
    send(&relay, forged.as_bytes()).await;
    let verified = got.bodies().pop().expect("the second one");
    let top = verified.split_once("\r\nReceived:").expect("ours").0;
    assert!(top.contains("header.d=a.test"), "{top}");
    assert!(!verified.contains("forged.test"), "{verified}");

    for mail in [&signed, &forged] {
        let changed = mail.replace("The text.", "Another text.");
        send(&relay, changed.as_bytes()).await;
    }
    for held in held(&relay, 2).await {
        assert_eq!(held.decision.as_ref().expect("a decision").rule, "changed");
        assert!(found(&held, "verifier", "dkim=fail"), "{:?}", held.reports);
    }
}

/// Every kind of scanner that users have, in one configuration: each finds what it is there for, all of them answer about
/// every message, and a clean one is passed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_engine_finds_its_own() {
    let site = Site::new();
    // They take seconds to start, so they start side by side.
    let at = site.path();
    let ((clamd, icap), spamd, rspamd, (signer, opendkim)) = std::thread::scope(|scope| {
        let clamd = scope.spawn(|| {
            let clamd = Clamd::start(at);
            let icap = CIcap::start(at, &clamd);
            (clamd, icap)
        });
        let spamd = scope.spawn(|| Spamd::start(at));
        let rspamd = scope.spawn(|| Rspamd::start(at));
        let dkim = [Dkim::Sign, Dkim::Verify].map(|what| OpenDkim::start(at, what));
        let [signer, opendkim] = dkim;
        (
            clamd.join().expect("clamd"),
            spamd.join().expect("spamd"),
            rspamd.join().expect("rspamd"),
            (signer, opendkim),
        )
    });
    let (address, got) = sink::start(|_| None).await;
    let unix = |path: &std::path::Path| format!("unix:{}", path.display());
    let spam = "bad_kind = \"spam\"\nbad_score = 15.0\nprobe_with = \"gtube\"";
    let engines = [
        engine(
            "signer",
            "milter",
            "content",
            &unix(&signer.socket),
            "edits = \"fields\"",
        ),
        engine("clamd", "clamd", "av", &unix(&clamd.socket), ""),
        engine(
            "icap",
            "icap",
            "av",
            &format!("icap://127.0.0.1:{}/avscan", icap.port),
            "",
        ),
        engine(
            "spamd",
            "spamd",
            "spam",
            &format!("127.0.0.1:{}", spamd.port),
            "",
        ),
        engine(
            "rspamd",
            "rspamd",
            "spam",
            &format!("http://127.0.0.1:{}", rspamd.port),
            "",
        ),
        engine(
            "proxy",
            "milter",
            "spam",
            &format!("127.0.0.1:{}", rspamd.milter),
            spam,
        ),
        engine(
            "opendkim",
            "milter",
            "auth",
            &unix(&opendkim.socket),
            "edits = \"fields\"",
        ),
    ];
    let policy = "[coverage]\nav = 2\nspam = 3\nauth = 1\n[policy]\nquarantine_score = 15.0\nreject_score = 100000.0\n";
    let relay = site
        .start(&format!("{}{policy}{}", engines.concat(), hop(address)))
        .await;

    send(&relay, MAIL.as_bytes()).await;
    let signed = got.bodies().pop().expect("the clean one");
    assert!(signed.contains("X-Spillway-Result: clean;"), "{signed}");
    assert!(!signed.contains("missing="), "{signed}");
    send(&relay, signed.as_bytes()).await;
    let verified = got.bodies().pop().expect("the signed one");
    assert!(
        verified.starts_with("Authentication-Results: relay.test;"),
        "{verified}"
    );
    assert!(
        verified
            .split("Received:")
            .next()
            .is_some_and(|top| top.contains("dkim=pass"))
    );

    send(&relay, &samples::nested(1, "eicar.com", &samples::eicar())).await;
    let virus = held(&relay, 1).await.pop().expect("one");
    assert_eq!(
        virus.decision.as_ref().expect("a decision").rule,
        "policy.malware"
    );
    assert!(found(&virus, "clamd", "Test.EICAR") && found(&virus, "icap", "Test.EICAR"));
    let gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X";
    send(&relay, MAIL.replace("The text.", gtube).as_bytes()).await;
    let records = held(&relay, 2).await;
    let spam = records
        .iter()
        .find(|r| r.id != virus.id)
        .expect("the other");
    assert_eq!(
        spam.decision.as_ref().expect("a decision").rule,
        "policy.score"
    );
    for (engine, name) in [("spamd", "spam"), ("rspamd", "spam"), ("proxy", "reject")] {
        assert!(
            found(spam, engine, name),
            "{engine}: {:?}",
            report(spam, engine)
        );
    }
    assert!(
        spam.reports.iter().all(|r| r.missing().is_none()),
        "{:?}",
        spam.reports
    );
    assert_eq!(got.bodies().len(), 2, "the clean ones");
}
