//! Results of messages with real signatures, whose keys a test name server serves.

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
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);
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
        timeout: ENGINE_TIMEOUT,
        servers: NameServers {
            addresses: vec![server.address],
            patience: Duration::from_millis(200),
        },
    }
}

/// A key, and its key record.
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

/// The message, sealed by a mailing list with this key.
fn sealed(key: Ed25519Key) -> String {
    let message = AuthenticatedMessage::parse(MAIL.as_bytes()).expect("a message");
    let results = AuthenticationResults::new("list.test");
    let sealer = ArcSealer::from_key(key).domain("list.test").selector("s");
    let sealer = sealer.headers(["From", "To", "Subject"]);
    let set = sealer.seal(&message, &results, &mail_auth::ArcOutput::default());
    format!("{}{MAIL}", set.expect("a seal").to_header())
}

/// A name server for a domain that publishes SPF, DKIM and DMARC records, and the key of the domain.
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

/// The findings, as `name`, `name score` or `kind name`, and the field that the engine asks for.
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

/// Mail from a client that its domain names, signed with the key of the domain, passes all methods, and the field says so.
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

/// RFC 7208 4.3: a sender at an address literal has no SPF record, and no name server is asked for one.
#[tokio::test]
async fn a_sender_at_an_address_literal_has_no_spf() {
    let (server, key) = domain("none").await;
    let mail = signed(key, "a.test");
    let (found, field) = judged(&server, sample(&mail, "a@[192.0.2.1]", CLIENT, None)).await;
    assert!(found.contains(&"spf.none".to_owned()), "{found:?}");
    assert!(field.contains("; spf=none; dkim=pass"), "{field}");
    let asked = server.asked();
    assert!(!asked.iter().any(|name| name.contains('[')), "{asked:?}");
}

/// A changed field or body, sent by a client that the domain does not name, gets the scores that the administrator has set, and
/// the policy of the domain becomes a finding.
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

/// A signature without a key record, or one that cannot be parsed, counts like a wrong signature.
#[tokio::test]
async fn an_unverifiable_signature_counts_like_a_wrong_one() {
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

/// RFC 6376 3.6.1: a key that its domain publishes for another purpose verifies no message and no ARC chain.
#[tokio::test]
async fn a_key_for_another_purpose_verifies_nothing() {
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

/// RFC 7208 2.4, RFC 7489 3.1.2: a bounce has a null reverse-path, so SPF checks and DMARC aligns the HELO name.
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

/// SPF and DKIM results of a domain other than that of the author do not count for DMARC. One aligned result is enough.
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

/// If the name servers of a domain do not answer, the results are temporary errors: they do not count against the mail, and no
/// policy applies.
#[tokio::test]
async fn silent_name_servers_of_a_domain_are_temporary_errors() {
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

/// P4: if the relay's own name servers do not answer, the engine has no answer, because nothing is known about any domain.
#[tokio::test]
async fn silent_name_servers_of_the_relay_are_no_answer() {
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

/// A sender with silent name servers uses up neither the time of another method nor the timeout of the engine, for which the
/// guard would blame the engine. So a forgery still fails by the policy of the forged domain.
#[tokio::test(start_paused = true)]
async fn silent_name_servers_of_a_sender_do_not_exceed_the_timeout() {
    let (server, key) = domain("reject").await;
    for name in ["slow.test", "s._domainkey.slow.test", "_dmarc.slow.test"] {
        server.says(name, Says::Nothing);
    }
    let mut settings = settings(&server);
    // So that the deadline of the engine ends the questions, and not the timeout of a query.
    settings.servers.patience = ENGINE_TIMEOUT * 10;
    let engine = Arc::new(Auth::new(&settings).expect("an engine"));
    let ask = async |mail: &str| {
        let began = Instant::now();
        let sample = sample(mail, "a@slow.test", CLIENT, None);
        let answer = engine.clone().scan(sample).await;
        assert!(began.elapsed() < ENGINE_TIMEOUT, "{:?}", began.elapsed());
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

/// RFC 7208 4.6.4: a record that requires more than ten questions is a permanent error, and the engine asks no more questions.
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

/// The engine asks nothing about mail of the relay's own users and of private networks: no domain can name their addresses.
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

/// A hostile message causes a bounded number of questions: the engine does not verify signatures beyond the limit, does not
/// examine huge header sections, and asks for nothing but the key of a signature.
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
    // The tag `h`, and not the tag `bh`.
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

/// RFC 5322 3.6: if a mail program may show another author than the engine has found, or several authors, no policy applies.
/// Such a message is not exempt from all policies: with `dmarc = "obey"`, the engine objects to it.
#[tokio::test]
async fn an_ambiguous_author_is_an_objection() {
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

/// RFC 8617: an ARC chain passes if its seal verifies, and fails if the message was changed afterwards.
#[tokio::test]
async fn an_arc_chain_is_verified() {
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

/// The engine hashes a large body outside the runtime's threads, with the same result.
#[tokio::test]
async fn large_mail_has_the_same_results() {
    let (server, _) = domain("none").await;
    let mail = format!("{MAIL}{}", "x\r\n".repeat(40_000));
    let (found, _) = judged(&server, sample(&mail, "a@a.test", CLIENT, None)).await;
    assert_eq!(found, ["spf.pass", "dkim.none", "dmarc.pass", "arc.none"]);
}
