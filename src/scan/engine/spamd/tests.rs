//! Tests of answers and requests, octet by octet. The integration tests use a real spamd.

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::*;
use crate::message::Mailbox;
use crate::scan::tests::{request, sample};
use crate::verdict::{Answer, FindingKind, Reason};

fn judged(answer: &[u8]) -> Result<Answer, ScanError> {
    parse(answer)?.judged(Duration::from_secs(1))
}

/// The score always counts, also below spamd's own threshold, but it is an objection only from the threshold on. Rules are
/// shown without a score, because the score is the sum of theirs.
#[test]
fn score_and_rules_are_reported() {
    let spam =
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 12\r\nSpam: True ; 15.5 / 5.0\r\n\r\nGTUBE,B_99\r\n";
    let ham = b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; -1.5 / 5.0\r\nContent-length: 0\r\n\r\n";
    let Ok(Answer::Answered(findings)) = judged(spam) else {
        panic!("no answer");
    };
    let seen: Vec<_> = findings
        .iter()
        .map(|f| (f.kind, &*f.name, f.score))
        .collect();
    assert_eq!(
        seen,
        [
            (FindingKind::Spam, "spam", 15.5),
            (FindingKind::Info, "GTUBE", 0.0),
            (FindingKind::Info, "B_99", 0.0),
        ]
    );
    assert_eq!(findings[0].detail.as_deref(), Some("15.5 of 5"));
    let Ok(Answer::Answered(findings)) = judged(ham) else {
        panic!("no answer");
    };
    assert_eq!(findings.len(), 1);
    assert_eq!(
        (findings[0].kind, findings[0].score),
        (FindingKind::Score, -1.5)
    );
}

/// If SpamAssassin runs out of its own time, it reports the score until then. This is enough to call a message spam, and not
/// enough to call it clean.
#[test]
fn a_scan_that_was_cut_short_is_not_complete() {
    let answer = |spam: &str, rules: &str| {
        let length = rules.len();
        let text = format!(
            "SPAMD/1.1 0 EX_OK\r\nContent-length: {length}\r\nSpam: {spam} ; 3.5 / 5.0\r\n\r\n{rules}"
        );
        judged(text.as_bytes()).expect("an answer")
    };
    // The rule counts even if it comes after the last rule that is shown.
    for rules in [
        "A,TIME_LIMIT_EXCEEDED\n",
        &("A,".repeat(300) + "TIME_LIMIT_EXCEEDED"),
    ] {
        match answer("False", rules) {
            Answer::None {
                reason, findings, ..
            } => {
                assert_eq!(reason, Reason::LimitsReached);
                assert_eq!((&*findings[0].name, findings[0].score), ("not-spam", 3.5));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(answer("True", rules), Answer::Answered(_)));
    }
    assert!(matches!(answer("False", "TIME_LIMIT"), Answer::Answered(_)));
}

/// P4: only exactly one answer to this request counts.
#[test]
fn only_the_protocol_counts() {
    let cases: [(&str, Reason); 15] = [
        ("", Reason::Disconnected),
        ("SPAMD/1.1 0 EX", Reason::Disconnected),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 3\r\n",
            Reason::Disconnected,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 3\r\nSpam: True ; 5 / 5\r\n\r\nAB",
            Reason::Disconnected,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 1\r\nSpam: True ; 5 / 5\r\n\r\nAB",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nSpam: True ; 5 / 5\r\n\r\nAB",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: -1\r\nSpam: True ; 5 / 5\r\n\r\nAB",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\n\r\n",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: Maybe ; 5 / 5\r\n\r\n",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; NaN / 5\r\n\r\n",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False\r\n\r\n",
            Reason::Garbage,
        ),
        (
            "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 0 / 5\r\nSpam: True ; 9 / 5\r\n\r\n",
            Reason::Garbage,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-length: 0\r\nSpam: False ; 0 / 5\r\n\r\n",
            Reason::Garbage,
        ),
        ("SPAMD/1.0 76 Bad header line: FOO\r\n", Reason::EngineError),
        (
            "SPAMD/1.0 79 Timeout: (30 second timeout)\r\n",
            Reason::Timeout,
        ),
    ];
    for (answer, reason) in cases {
        let error = judged(answer.as_bytes()).expect_err(answer);
        assert_eq!(error.reason(), reason, "{answer:?}: {error}");
    }
}

/// The request that spamd gets for `content`.
async fn sent(content: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let settings = SpamdSettings {
        user: Some("filter".to_owned()),
        tls: None,
        connect_timeout: Duration::from_secs(10),
    };
    let address = Address::Socket(listener.local_addr().expect("address"));
    let engine = Arc::new(Spamd::new(&address, &settings).expect("an engine"));
    let scan = tokio::spawn(engine.scan(sample(content)));
    let (mut stream, _) = listener.accept().await.expect("accept");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("a request");
    drop(stream);
    let error = scan.await.expect("a task").expect_err("no answer");
    assert_eq!(error.reason(), Reason::Disconnected);
    text
}

/// The whole request: trace fields, then the message exactly as it arrived, and the length of both.
#[tokio::test]
async fn the_request_is_what_spamd_expects() {
    assert_eq!(
        sent("Subject: x\r\n\r\nx\r\n").await,
        "SYMBOLS SPAMC/1.5\r\nContent-length: 52\r\nUser: filter\r\n\r\n\
         Return-Path: <sender@example.com>\r\nSubject: x\r\n\r\nx\r\n"
    );
}

/// If the first line of a message begins with a space, the line continues a field without meaning: no sender writes into the
/// relay's trace fields.
#[tokio::test]
async fn a_folded_first_line_does_not_continue_the_trace_fields() {
    for content in [" with ESMTPA x\r\n\r\nx\r\n", "\twith ESMTPA x\r\n"] {
        let text = sent(content).await;
        let (_, message) = text.split_once("\r\n\r\n").expect("a head");
        let section = crate::message::header::section(message.as_bytes());
        let fields = crate::message::header::fields(section);
        let names: Vec<_> = fields.map(|f| String::from_utf8_lossy(f.name)).collect();
        assert_eq!(names, ["Return-Path", "X-Spillway-Break"], "{text}");
        assert!(message.ends_with(content), "{text}");
        let length = format!("Content-length: {}\r\n", message.len());
        assert!(text.contains(&length), "{text}");
    }
}

/// A client cannot write its own Received field into that of the relay.
#[test]
fn a_client_cannot_end_a_trace_field() {
    let mut envelope = (*request("x", Duration::from_secs(1)).envelope).clone();
    envelope.reverse_path = Mailbox::parse("a@example.com").expect("mailbox").into();
    envelope.origin.protocol = "ESMTPS".to_owned();
    envelope.origin.client = "2001:db8::7".parse().expect("address");
    envelope.origin.client_name = Some("mail.example.com".to_owned());
    envelope.origin.helo = "x (y [192.0.2.1])\r\nX-Y: z".to_owned();
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("id");
    assert_eq!(
        trace("relay", id, &envelope),
        "Return-Path: <a@example.com>\r\n\
         Received: from x__y_[192.0.2.1]___X-Y:_z (mail.example.com [IPv6:2001:db8::7])\r\n\
         \tby relay (Spillway) with ESMTPS id 01ARZ3NDEKTSV4RRFFQ69G5FAV;\r\n\
         \tSat, 30 Jul 2016 23:54:10 +0000\r\n"
    );
}
