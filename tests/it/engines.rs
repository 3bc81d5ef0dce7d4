//! Real engines.

use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router, routing::post};
use serde_json::{Value, json};

use crate::client::Client;
use crate::relay::{Site, eventually};
use crate::samples;
use crate::servers::{CIcap, Clamd, Rspamd, Spamd};
use spillway::store::{Filter, Lane, Record};
use spillway::verdict::{Answer, Reason, Report};

/// clamd finds the EICAR test file inside nested multiparts and inside a zip, and in mail whose first octets would make it a
/// PDF or a tar archive to clamd, if the sender chose them; a clean message passes, and the report of each held message
/// names the engine and the finding.
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
    let mail = samples::nested(1, "eicar.com", &eicar);
    let tar = format!("X-A: {}ustar\r\n", "a".repeat(252));
    for content in [
        samples::nested(3, "note.txt", b"nothing to see"),
        samples::nested(3, "eicar.com", &eicar),
        [b"%PDF-: x\r\n", &*mail].concat(),
        [tar.as_bytes(), &mail].concat(),
        [b" x\r\n", &*mail].concat(),
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
    let held = eventually("six are held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            engine: Some("clamd".to_owned()),
            finding: Some("test.eicar".to_owned()),
            limit: 10,
            ..Filter::default()
        };
        let found = store.search(filter).await.expect("search");
        (found.len() == 6).then_some(found)
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

/// GTUBE, the known-bad message of spam filters: see spamassassin.apache.org/gtube.
const GTUBE: [&str; 2] = [
    "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-",
    "ANTI-UBE-TEST-EMAIL*C.34X",
];

/// Sends a harmless message and GTUBE through a relay with that one engine of the class `spam`; what was held.
pub async fn spam_is_held(site: &Site, engine: &str) -> Record {
    let relay = site
        .start(&format!(
            "[[engine]]\nname = \"spam\"\n{engine}\n[policy]\nreject_score = 100000.0\n"
        ))
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    for text in ["See you at noon.", &GTUBE.concat()] {
        let content = format!(
            "From: a@a.test\r\nTo: b@b.test\r\nSubject: lunch\r\nMessage-ID: <{}@a.test>\r\n\
             Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n\r\n{text}\r\n",
            text.len()
        );
        let reply = client
            .send("a@a.test", &["b@b.test"], content.as_bytes())
            .await
            .expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }
    let store = relay.running.pipeline().store().clone();
    let held = eventually("one is held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            engine: Some("spam".to_owned()),
            finding: Some("GTUBE".to_owned()),
            limit: 10,
            ..Filter::default()
        };
        store.search(filter).await.expect("search").pop()
    })
    .await;
    assert_eq!(site.delivered().len(), 1, "the harmless one");
    held
}

/// spamd's score is what policy judges by, the rules that made it are in the report, and it stands up to probes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spamd_scores_and_names_its_rules() {
    let site = Site::new();
    let spamd = Spamd::start(site.path());
    let engine = format!(
        "kind = \"spamd\"\naddress = [\"127.0.0.1:{}\"]\ntimeout = \"60s\"\nprobe = \"50ms\"",
        spamd.port
    );
    let held = spam_is_held(&site, &engine).await;
    let decision = held.decision.as_ref().expect("a decision");
    assert_eq!(decision.rule, "policy.score");
    assert!(decision.score > 900.0, "{}", decision.score);
}

/// rspamd's score is what policy judges by, whatever action rspamd itself would take; it stands up to probes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rspamd_scores_and_policy_decides() {
    let site = Site::new();
    let rspamd = Rspamd::start(site.path());
    let engine = format!(
        "kind = \"rspamd\"\naddress = [\"http://127.0.0.1:{}\"]\ntimeout = \"60s\"\nprobe = \"50ms\"",
        rspamd.port
    );
    let held = spam_is_held(&site, &engine).await;
    let decision = held.decision.as_ref().expect("a decision");
    assert_eq!(decision.rule, "policy.score");
    assert!(decision.score > 14.0, "{}", decision.score);
    let report = held.reports.iter().find(|r| &*r.engine == "spam");
    let findings = report.expect("a report").findings();
    assert!(
        findings.iter().any(|f| f.name == "action.reject"),
        "{findings:?}"
    );
}

fn encrypted(rspamd: &Rspamd, key: &str) -> String {
    format!(
        "kind = \"rspamd\"\naddress = [\"http://127.0.0.1:{}\"]\nkey = \"{key}\"\ntimeout = \"60s\"\nprobe = \"50ms\"",
        rspamd.port
    )
}

/// Through rspamd's own encryption it judges the same: what we seal is what it opens, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rspamd_judges_what_is_encrypted_to_it() {
    let site = Site::new();
    let (rspamd, key) = Rspamd::with_key(site.path());
    let held = spam_is_held(&site, &encrypted(&rspamd, &key)).await;
    let decision = held.decision.as_ref().expect("a decision");
    assert_eq!(decision.rule, "policy.score");
    let log = std::fs::read_to_string(site.path().join("rspamd.log")).expect("its log");
    assert!(!log.contains("cannot decrypt"), "{log}");
}

/// P4: with a key that is not the worker's, or where the worker has none, there is no verdict, and the report says what to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rspamd_with_another_key_has_no_answer() {
    for (has_key, expected) in [(true, Reason::Disconnected), (false, Reason::Garbage)] {
        let site = Site::new();
        let rspamd = match has_key {
            true => Rspamd::with_key(site.path()).0,
            false => Rspamd::start(site.path()),
        };
        let (_, another) = Rspamd::key_pair();
        let engine = encrypted(&rspamd, &another).replace("50ms", "0s");
        let relay = site
            .start(&format!("[[engine]]\nname = \"spam\"\n{engine}\n"))
            .await;
        let mut client = Client::open(relay.address()).await.expect("connect");
        let content = b"From: a@a.test\r\nSubject: lunch\r\n\r\nSee you at noon.\r\n";
        let reply = client.send("a@a.test", &["b@b.test"], content).await;
        let reply = reply.expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
        let store = relay.running.pipeline().store().clone();
        let kept = eventually("it is kept", async || {
            let found = store.search(Filter {
                limit: 10,
                ..Filter::default()
            });
            found.await.expect("search").pop()
        })
        .await;
        let report = kept.reports.iter().find(|r| &*r.engine == "spam");
        let Answer::None { reason, detail, .. } = &report.expect("a report").answer else {
            panic!("an answer: {:?}", kept.reports);
        };
        assert_eq!(*reason, expected, "{detail}");
        assert!(
            detail.contains("is it this worker's public key?"),
            "{detail}"
        );
        assert!(site.delivered().is_empty());
    }
}

/// A service such as people write themselves: it wants a token, and calls whatever mentions GTUBE bad.
async fn service(fields: HeaderMap, body: String) -> Result<Json<Value>, StatusCode> {
    if fields["authorization"] != "Bearer s3cret" || fields["x-spillway-rcpt"] != "b@b.test" {
        return Err(StatusCode::FORBIDDEN);
    }
    let bad = body.contains("GTUBE");
    let id = fields["x-spillway-queue-id"]
        .to_str()
        .map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(Json(
        json!({"malicious": bad, "names": ["GTUBE.Test"], "id": id}),
    ))
}

/// A service of the administrator's own is one section of the configuration away, whatever its answers look like.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_over_http_is_an_engine() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = listener.local_addr().expect("address");
    let router = Router::new().route("/v1/scan", post(service));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let site = Site::new();
    std::fs::write(site.path().join("token"), "s3cret\n").expect("a token");
    let engine = format!(
        "kind = \"http\"\naddress = [\"http://{address}/v1/scan\"]\ntoken_file = \"token\"\n\
         verdict_at = \"/malicious\"\nname_at = \"/names\"\nid_at = \"/id\""
    );
    let held = spam_is_held(&site, &engine).await;
    let decision = held.decision.as_ref().expect("a decision");
    assert_eq!(decision.rule, "policy.malware");
    assert!(
        decision.reason.contains("GTUBE.Test"),
        "{}",
        decision.reason
    );
}

/// A scanner made for web proxies finds the EICAR test file in a mail, names it, and tells its version. Mail that poses as
/// something else by its first octets, by which both c-icap and clamd go, is mail to them all the same. A service that finds
/// something when it has sent a part back already, which c-icap as it is shipped does, can only cut off the rest, and has
/// blocked it. One that sends everything back as it was has found nothing; one that is content with a preview says nothing
/// about the rest: the echo of c-icap does both by turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn icap_services_scan_mail() {
    let site = Site::new();
    let clamd = Clamd::start(site.path());
    let service = CIcap::start(site.path(), &clamd);
    let engine = |name: &str, service: &str, more: &str| {
        format!(
            "[[engine]]\nname = \"{name}\"\nkind = \"icap\"\naddress = [\"icap://{service}\"]\ntimeout = \"60s\"\n{more}\n"
        )
    };
    let at = format!("127.0.0.1:{}", service.port);
    let relay = site
        .start(&format!(
            "{}{}{}{}[coverage]\nav = 3\ncontent = 0\n",
            engine("scanner", &format!("{at}/avscan"), "probe = \"50ms\""),
            engine(
                "uploads",
                &format!("{at}/avscan"),
                "probe = \"0s\"\nmethod = \"reqmod\""
            ),
            engine(
                "echo",
                &format!("{at}/echo"),
                "probe = \"0s\"\nclass = \"content\""
            ),
            engine("stock", &format!("{at}/stock"), "probe = \"0s\""),
        ))
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let large = "0123456789abcdef".repeat(100_000);
    let eicar = samples::nested(1, "eicar.com", &samples::eicar());
    let tar = format!("X-Pad: {}ustar\r\n", "x".repeat(250));
    let poses = ["%PDF-: x\r\n", "ID3: x\r\n", &tar];
    let mut mail = poses
        .map(|first| [first.as_bytes(), &eicar].concat())
        .to_vec();
    mail.push(eicar);
    let behind = [vec![0; 2 << 20], samples::eicar()].concat();
    mail.push(samples::nested(1, "large.bin", &behind));
    let infected = mail.len();
    mail.push(samples::nested(1, "note.txt", b"nothing to see"));
    mail.push(samples::nested(1, "note.txt", large.as_bytes()));
    for content in &mail {
        let reply = client
            .send("a@a.test", &["b@b.test"], content)
            .await
            .expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }
    let store = relay.running.pipeline().store().clone();
    let held = eventually("all of them are held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            finding: Some("test.eicar".to_owned()),
            limit: 10,
            ..Filter::default()
        };
        let held = store.search(filter).await.expect("search");
        (held.len() == infected).then_some(held)
    })
    .await;
    let cut = held.iter().flat_map(|held| &held.reports);
    let cut = cut.filter(|r| r.findings().iter().any(|f| f.name == "blocked"));
    assert_eq!(cut.map(|r| &*r.engine).collect::<Vec<_>>(), ["stock"]);
    let echo = held.iter().flat_map(|held| &held.reports);
    let echo = echo.filter(|r| &*r.engine == "echo").map(Report::missing);
    let (back, passed): (Vec<_>, Vec<_>) = echo.partition(Option::is_none);
    assert!(!back.is_empty() && passed.contains(&Some(Reason::LimitsReached)));
    let names = ["scanner", "uploads"];
    for (held, name) in held.iter().flat_map(|held| names.map(|name| (held, name))) {
        let report = held
            .reports
            .iter()
            .find(|r| &*r.engine == name)
            .expect(name);
        assert!(
            report.findings()[0].name.contains("Test.EICAR"),
            "{report:?}"
        );
        assert!(report.signatures.is_some(), "{report:?}");
    }
    eventually("the clean ones are delivered", async || {
        (site.delivered().len() == mail.len() - infected).then_some(())
    })
    .await;
}
