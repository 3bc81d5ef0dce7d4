//! Results of messages that were really signed, with keys that a name server really serves.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_auth::arc::ArcSealer;
use mail_auth::common::crypto::{Ed25519Key, SigningKey};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::DkimSigner;
use mail_auth::{AuthenticatedMessage, AuthenticationResults};

use tokio::time::Instant;

use super::*;
use crate::message::{Mailbox, ReversePath};
use crate::scan::engine::tests::name_server::{NameServer, Says};
use crate::scan::tests::{request, sampled};

const MAIL: &str = "From: A <a@a.test>\r\nTo: b@b.test\r\nSubject: x\r\n\r\nbody\r\n";
const TIMEOUT: Duration = Duration::from_secs(10);
const CLIENT: [u8; 4] = [192, 0, 2, 1];

fn settings(server: &NameServer) -> AuthSettings {
    AuthSettings {
        authserv_id: "mx.test".to_owned(),
        scores: Scores {
            spf_fail: 3.0,
            dkim_fail: 2.0,
            dmarc_fail: 4.0,
            ..Scores::default()
        },
        obey_dmarc: true,
        max_signatures: 3,
        timeout: TIMEOUT,
        servers: NameServers {
            addresses: vec![server.address],
            patience: Duration::from_millis(200),
        },
    }
}

/// A key, and the record that makes it known.
fn key() -> (Ed25519Key, String) {
    let der = Ed25519Key::generate_pkcs8().expect("a key");
    let key = Ed25519Key::from_pkcs8_der(&der).expect("a key");
    let record = format!(
        "v=DKIM1; k=ed25519; p={}",
        STANDARD.encode(key.public_key())
    );
    (key, record)
}

fn signed(
    key: impl SigningKey<Hasher = mail_auth::common::crypto::Sha256>,
    domain: &str,
) -> String {
    let signer = DkimSigner::from_key(key).domain(domain).selector("s");
    let signer = signer.headers(["From", "To", "Subject"]);
    let signature = signer.sign(MAIL.as_bytes()).expect("a signature");
    format!("{}{MAIL}", signature.to_header())
}

/// Passed on by a list with that key.
fn sealed(key: Ed25519Key) -> String {
    let message = AuthenticatedMessage::parse(MAIL.as_bytes()).expect("a message");
    let results = AuthenticationResults::new("list.test");
    let sealer = ArcSealer::from_key(key).domain("list.test").selector("s");
    let sealer = sealer.headers(["From", "To", "Subject"]);
    let set = sealer.seal(&message, &results, &mail_auth::ArcOutput::default());
    format!("{}{MAIL}", set.expect("a seal").to_header())
}

/// A domain that publishes everything, and a key of it.
async fn domain(policy: &str) -> (NameServer, Ed25519Key) {
    let server = NameServer::start().await;
    let (key, record) = key();
    server.text("a.test", "v=spf1 ip4:192.0.2.1 -all");
    server.text("s._domainkey.a.test", &record);
    server.text("_dmarc.a.test", &format!("v=DMARC1; p={policy}"));
    (server, key)
}

fn sample(mail: &str, from: &str, client: [u8; 4], user: Option<&str>) -> Sample {
    let mut request = request(mail.to_owned(), Duration::from_secs(60));
    let envelope = Arc::make_mut(&mut request.envelope);
    envelope.reverse_path = match from {
        "" => ReversePath::NULL,
        from => Mailbox::parse(from).expect("a mailbox").into(),
    };
    envelope.origin.client = client.into();
    envelope.origin.helo = "helo.test".to_owned();
    envelope.origin.user = user.map(str::to_owned);
    sampled(request)
}

async fn answer(server: &NameServer, sample: Sample) -> Result<EngineAnswer, ScanError> {
    Arc::new(Auth::new(&settings(server)).expect("an engine"))
        .scan(sample)
        .await
}

/// What it found, `name` or `name score` or `kind name`, and the field that it wants.
async fn judged(server: &NameServer, sample: Sample) -> (Vec<String>, String) {
    let answer = answer(server, sample).await.expect("an answer");
    let Answer::Answered(findings) = answer.answer else {
        panic!("{:?}", answer.answer);
    };
    let shown = findings.iter().map(|f| match f.kind {
        FindingKind::Info => f.name.clone(),
        FindingKind::Score => format!("{} {}", f.name, f.score),
        kind => format!("{} {}", kind.as_str(), f.name),
    });
    let field = match &answer.wanted[..] {
        [] => String::new(),
        [removal, Wanted::Field(Edit::Add { name, value, .. })] => {
            assert_eq!(*removal, settings(server).no_forged_results());
            format!("{name}: {value}")
        }
        other => panic!("{other:?}"),
    };
    (shown.collect(), field.replace("\r\n\t", " "))
}

/// Mail from where its domain says, signed with the domain's key, passes everything, and the field says so.
#[tokio::test]
async fn honest_mail_passes() {
    let (server, key) = domain("reject").await;
    let mail = signed(key, "a.test");
    let (found, field) = judged(&server, sample(&mail, "a@a.test", CLIENT, None)).await;
    assert_eq!(found, ["spf.pass", "dkim.pass", "dmarc.pass", "arc.none"]);
    assert_eq!(
        field,
        "Authentication-Results: mx.test; spf=pass smtp.mailfrom=a.test; \
         dkim=pass header.d=a.test header.s=s; dmarc=pass header.from=a.test"
    );
}

/// A field or a body that was changed, from where the domain's mail does not come: it counts what the administrator says it
/// counts, and the domain's own policy is a finding.
#[tokio::test]
async fn forged_mail_fails() {
    let (server, key) = domain("reject").await;
    let mail = signed(key, "a.test");
    for (signed, forged) in [("Subject: x", "Subject: y"), ("\r\nbody", "\r\nb0dy")] {
        let mail = mail.replace(signed, forged);
        let (found, field) = judged(&server, sample(&mail, "a@a.test", [192, 0, 2, 2], None)).await;
        let all = [
            "spf.fail 3",
            "dkim.fail",
            "dkim.no-pass 2",
            "dmarc.fail",
            "dmarc.not-aligned 4",
            "policy dmarc.reject",
            "arc.none",
        ];
        assert_eq!(found, all, "{forged}");
        assert!(field.contains("; dkim=fail header.d=a.test"), "{field}");
        assert!(field.contains("; dmarc=fail header.from=a.test"), "{field}");
    }
}

/// A signature is as worthless if nobody knows its key or nobody can read it as if it is wrong.
#[tokio::test]
async fn a_signature_that_cannot_be_verified_counts_as_one_that_is_wrong() {
    let (server, key) = domain("none").await;
    let mail = signed(key, "a.test");
    let wrong = [
        (" s=s;", " s=unknown;", "dkim.permerror"),
        (" v=1;", " v=2;", "dkim.neutral"),
    ];
    for (signed, changed, word) in wrong {
        let changed = mail.replace(signed, changed);
        assert_ne!(changed, mail);
        let (found, _) = judged(&server, sample(&changed, "a@a.test", CLIENT, None)).await;
        assert_eq!(found[1..3], [word, "dkim.no-pass 2"]);
    }
}

/// RFC 6376 3.6.1: a key that its domain publishes for something else makes no mail genuine, and no chain of ARC.
#[tokio::test]
async fn a_key_for_something_else_passes_nothing() {
    for (version, dkim, arc) in [
        ("v=DKIM1; s=email; h=sha256;", "dkim.pass", "arc.pass"),
        ("v=DKIM1; s=other;", "dkim.permerror", "arc.fail"),
        ("v=DKIM1; h=sha1;", "dkim.permerror", "arc.fail"),
        ("v=dkim1;", "dkim.permerror", "arc.fail"),
    ] {
        let server = NameServer::start().await;
        let (signs, record) = key();
        server.text("s._domainkey.a.test", &record.replace("v=DKIM1;", version));
        let mail = signed(signs, "a.test");
        let (found, _) = judged(&server, sample(&mail, "a@a.test", CLIENT, None)).await;
        assert!(found.contains(&dkim.to_owned()), "{version}: {found:?}");
        let (seals, record) = key();
        server.text(
            "s._domainkey.list.test",
            &record.replace("v=DKIM1;", version),
        );
        let mail = sealed(seals);
        let (found, _) = judged(&server, sample(&mail, "a@a.test", CLIENT, None)).await;
        assert!(found.contains(&arc.to_owned()), "{version}: {found:?}");
    }
}

/// RFC 7208 2.4, RFC 7489 3.1.2: a bounce has no reverse-path; what is checked and aligned is the name of its server.
#[tokio::test]
async fn a_bounce_is_aligned_by_the_name_of_its_server() {
    let (server, _) = domain("none").await;
    server.text("helo.test", "v=spf1 ip4:192.0.2.1 -all");
    server.text("_dmarc.helo.test", "v=DMARC1; p=reject");
    let mail = "From: mailer-daemon@helo.test\r\n\r\nit bounced\r\n";
    let (found, field) = judged(&server, sample(mail, "", CLIENT, None)).await;
    assert_eq!(found, ["spf.pass", "dkim.none", "dmarc.pass", "arc.none"]);
    assert!(field.contains("spf=pass smtp.helo=helo.test"), "{field}");
}

/// SPF and DKIM of another domain than the one that is shown are worth nothing for DMARC; one of them aligned is enough.
#[tokio::test]
async fn only_aligned_results_count_for_dmarc() {
    let (server, key) = domain("none").await;
    server.text("c.test", "v=spf1 +all");
    let (found, _) = judged(&server, sample(MAIL, "a@c.test", CLIENT, None)).await;
    assert_eq!(found[..3], ["spf.pass", "dkim.none", "dmarc.fail"]);
    let mail = signed(key, "a.test");
    let (found, _) = judged(&server, sample(&mail, "a@c.test", CLIENT, None)).await;
    assert_eq!(found[..3], ["spf.pass", "dkim.pass", "dmarc.pass"]);
}

/// Name servers of a domain that do not answer are no proof against its mail; nobody's policy is obeyed then.
#[tokio::test]
async fn a_domain_that_nobody_can_ask_about_has_temporary_errors() {
    for fault in [Says::ServFail, Says::Nothing, Says::Refused] {
        let (server, key) = domain("reject").await;
        for name in ["a.test", "s._domainkey.a.test", "_dmarc.a.test"] {
            server.says(name, fault.clone());
        }
        let mail = signed(key, "a.test");
        let (found, _) = judged(&server, sample(&mail, "a@a.test", CLIENT, None)).await;
        let all = [
            "spf.temperror",
            "dkim.temperror",
            "dmarc.temperror",
            "arc.none",
        ];
        assert_eq!(found, all, "{fault:?}");
    }
}

/// P4: with name servers of our own that say nothing, nothing is known about anybody: that is no answer.
#[tokio::test]
async fn without_name_servers_there_is_no_answer() {
    for fault in [Says::ServFail, Says::Nothing] {
        let (server, _) = domain("reject").await;
        for name in ["a.test", "_dmarc.a.test", ""] {
            server.says(name, fault.clone());
        }
        let error = answer(&server, sample(MAIL, "a@a.test", CLIENT, None)).await;
        let error = error.expect_err("no answer");
        let reasons = [Reason::EngineError, Reason::Unreachable];
        assert!(reasons.contains(&error.reason()), "{fault:?}: {error}");
    }
}

/// Whoever has name servers that say nothing, and says something about them in his mail, uses up no other part's time, nor the
/// engine's, whose fault it would then be: a domain's policy holds that his forgery fails by.
#[tokio::test(start_paused = true)]
async fn silent_name_servers_of_a_sender_are_waited_for_less_long_than_the_engine_is() {
    let (server, key) = domain("reject").await;
    for name in ["slow.test", "s._domainkey.slow.test", "_dmarc.slow.test"] {
        server.says(name, Says::Nothing);
    }
    let mut settings = settings(&server);
    // What ends the questions here is not this.
    settings.servers.patience = TIMEOUT * 10;
    let engine = Arc::new(Auth::new(&settings).expect("an engine"));
    let ask = async |mail: &str| {
        let began = Instant::now();
        let sample = sample(mail, "a@slow.test", CLIENT, None);
        let answer = engine.clone().scan(sample).await;
        assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
        let Answer::Answered(findings) = answer?.answer else {
            panic!("no answer");
        };
        Ok(findings.into_iter().map(|f| f.name).collect::<Vec<_>>())
    };
    let (another, _) = super::tests::key();
    let slow = signed(another, "slow.test");
    let forged = signed(key, "a.test").replace("Subject: x", "Subject: y");
    let both = slow.replace(MAIL, &forged);
    let found = ask(&both).await.expect("an answer");
    let all = [
        "spf.temperror",
        "dkim.temperror",
        "dkim.fail",
        "dmarc.fail",
        "dmarc.not-aligned",
        "dmarc.reject",
        "arc.none",
    ];
    assert_eq!(found, all);
    let found = ask(&slow.replace("a@a.test", "a@slow.test")).await;
    let found = found.expect("an answer");
    assert_eq!(
        found[..3],
        ["spf.temperror", "dkim.temperror", "dmarc.temperror"]
    );
    server.says("", Says::Nothing);
    let error: ScanError = ask(&slow).await.expect_err("no answer");
    assert_eq!(error.reason(), Reason::Unreachable);
}

/// RFC 7208 4.6.4: a record that makes us ask more than ten questions is an error of its domain's, and costs no more.
#[tokio::test]
async fn spf_asks_ten_questions_at_most() {
    let server = NameServer::start().await;
    for at in 0..20 {
        let record = format!("v=spf1 include:{}.a.test -all", at + 1);
        server.text(&format!("{at}.a.test"), &record);
    }
    let (found, _) = judged(&server, sample(MAIL, "a@0.a.test", CLIENT, None)).await;
    assert_eq!(found[0], "spf.permerror");
    let asked = server.asked();
    let asked = asked
        .iter()
        .filter(|name| name.ends_with("a.test") && !name.starts_with('_'));
    assert!(asked.count() <= 12, "{:?}", server.asked());
}

/// Mail of our own users and neighbours comes from no server that a domain could have named: nothing is asked.
#[tokio::test]
async fn own_mail_is_not_judged() {
    let (server, _) = domain("reject").await;
    for (client, user) in [(CLIENT, Some("u")), ([10, 0, 0, 1], None)] {
        let (found, field) = judged(&server, sample(MAIL, "a@a.test", client, user)).await;
        assert_eq!(
            (found, field),
            (vec!["not-asked".to_owned()], String::new())
        );
    }
    assert_eq!(server.asked(), Vec::<String>::new());
}

/// A hostile message costs a bounded number of questions: signatures beyond the limit are not verified, header sections without
/// measure are not looked at, and no signature makes us ask for anything but its key.
#[tokio::test]
async fn hostile_header_sections_are_bounded() {
    let (server, key) = domain("none").await;
    let mail = signed(key, "a.test");
    let signature = mail.strip_suffix(MAIL).expect("a signature").to_owned();
    let asking = signature.replace(" d=a.test", " r=y; atps=a.test; d=a.test");
    assert_ne!(asking, signature);
    let many = format!("{}{mail}", asking.repeat(100));
    let (found, _) = judged(&server, sample(&many, "a@a.test", CLIENT, None)).await;
    assert_eq!(
        found.iter().filter(|f| f.starts_with("dkim.fail")).count(),
        3,
        "{found:?}"
    );
    assert!(found.contains(&"dkim.not-verified".to_owned()), "{found:?}");
    let asked = server.asked();
    assert!(
        !asked
            .iter()
            .any(|n| n.contains("_atps") || n.contains("_report")),
        "{asked:?}"
    );
    // Not the tag bh.
    let tag = |(at, _): &(usize, &str)| !mail[..*at].ends_with('b');
    let (at, tag) = mail.match_indices("h=").find(tag).expect("h=");
    let (before, after) = mail.split_at(at + tag.len());
    let greedy = format!("{before}{}{after}", "x:".repeat(300));
    let (found, _) = judged(&server, sample(&greedy, "a@a.test", CLIENT, None)).await;
    assert!(found.contains(&"dkim.not-verified".to_owned()), "{found:?}");
    for hostile in [
        signature.repeat(10_000),
        format!("X: {}\r\n", "x".repeat(300_000)),
    ] {
        let hostile = format!("{hostile}{MAIL}");
        let answer = answer(&server, sample(&hostile, "a@a.test", CLIENT, None)).await;
        let answer = answer.expect("an answer").answer;
        let Answer::None { reason, .. } = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(reason, Reason::LimitsReached);
    }
}

/// RFC 5322 3.6: where readers may see another author than we do, or more than one, nobody can say whose policy holds. Such
/// a message is not exempt from everybody's: with `obey` it is objected to.
#[tokio::test]
async fn an_author_that_cannot_be_told_is_an_objection() {
    let (server, _) = domain("reject").await;
    server.text("c.test", "v=spf1 +all");
    let unclear = [
        "From: x@c.test\r\nFrom: a@a.test\r\n",
        "From: a@a.test, x@c.test\r\n",
        "Fr om: x@c.test\r\nFrom: a@a.test\r\n",
        "From\r\n : x@c.test\r\nFrom: a@a.test\r\n",
        "From\x0c: a@a.test\r\nFrom: x@c.test\r\n",
        "From\x0c: x@c.test\r\n",
        " From: a@a.test\r\nFrom: x@c.test\r\n",
        "X: x\r\njunk\r\nFrom: a@a.test\r\n",
        "junk\r\nFrom: a@a.test\r\n",
        "X: x\nFrom: a@a.test\r\nX: x\r\n",
        "X: x\n\nX: x\r\nFrom: a@a.test\r\n",
        "From: a\r\n",
        "From: nobody:;\r\n",
        "Subject: x\r\n",
        "",
    ];
    for fields in unclear {
        let mail = format!("{fields}\r\nx\r\n");
        let (found, field) = judged(&server, sample(&mail, "x@c.test", CLIENT, None)).await;
        let error = ["dmarc.permerror", "policy from.malformed"];
        assert_eq!(found[2..4], error, "{fields:?}: {found:?}");
        assert!(field.ends_with("; dmarc=permerror"), "{fields:?}: {field}");
    }
    for fields in [
        "From: a@a.test, B <b@A.test>\r\n",
        "FROM : =?utf-8?q?c=40c=2etest?= <a@a.test>\r\nX-From: x@c.test\r\n",
        "X:\r\nFrom: \"x@c.test, x\"\r\n <a@a.test>\r\n",
    ] {
        let mail = format!("{fields}\r\nx\r\n");
        let (found, _) = judged(&server, sample(&mail, "x@c.test", CLIENT, None)).await;
        assert!(
            found.contains(&"dmarc.fail".to_owned()),
            "{fields:?}: {found:?}"
        );
    }
}

/// RFC 8617: a chain whose seal verifies passes; one whose message was changed afterwards does not.
#[tokio::test]
async fn a_chain_is_verified() {
    let (server, _) = domain("none").await;
    let (key, record) = key();
    server.text("s._domainkey.list.test", &record);
    let sealed = sealed(key);
    let (found, _) = judged(&server, sample(&sealed, "a@a.test", CLIENT, None)).await;
    assert_eq!(found.last().map(String::as_str), Some("arc.pass"));
    let changed = sealed.replace("Subject: x", "Subject: y");
    let (found, _) = judged(&server, sample(&changed, "a@a.test", CLIENT, None)).await;
    assert_eq!(found.last().map(String::as_str), Some("arc.fail"));
}

/// A large body is hashed away from the runtime's threads, with the same result.
#[tokio::test]
async fn large_mail_has_the_same_results() {
    let (server, _) = domain("none").await;
    let mail = format!("{MAIL}{}", "x\r\n".repeat(40_000));
    let (found, _) = judged(&server, sample(&mail, "a@a.test", CLIENT, None)).await;
    assert_eq!(found, ["spf.pass", "dkim.none", "dmarc.pass", "arc.none"]);
}
