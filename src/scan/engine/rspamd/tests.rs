//! Tests of answers. The integration tests use a real rspamd.

mod sealed;

use super::*;
use crate::verdict::{Answer, FindingKind, Reason};

fn judged(body: &str) -> Answer {
    parse(body.as_bytes()).expect(body).judged()
}

fn findings(body: &str) -> Vec<(FindingKind, String, f64)> {
    let Answer::Answered(findings) = judged(body) else {
        panic!("no answer");
    };
    let seen = findings.into_iter().map(|f| (f.kind, f.name, f.score));
    seen.collect()
}

/// The score counts with every action. The action and the symbols are for rules, and have no score.
#[test]
fn score_action_and_symbols_are_reported() {
    let body = r#"{"is_skipped":false,"score":7.5,"required_score":15.0,"action":"add header",
        "symbols":{"A":{"name":"A","score":0.5},"B":{"name":"B","score":-7.0,"options":["x","y"]}},"message-id":"1@x"}"#;
    let info = |name: &str| (FindingKind::Info, name.to_owned(), 0.0);
    assert_eq!(
        findings(body),
        [
            (FindingKind::Spam, "spam".to_owned(), 7.5),
            info("action.add-header"),
            info("B"),
            info("A"),
        ]
    );
    let Answer::Answered(all) = judged(body) else {
        panic!("no answer");
    };
    assert_eq!(all[0].detail.as_deref(), Some("7.50 of 15, add header"));
    assert_eq!(all[2].detail.as_deref(), Some("-7.00 x y"));
    for (action, kind) in [
        ("no action", FindingKind::Score),
        ("greylist", FindingKind::Score),
        ("rewrite subject", FindingKind::Spam),
        ("reject", FindingKind::Spam),
        ("a new one", FindingKind::Spam),
    ] {
        let body = format!(r#"{{"score":4.5,"action":"{action}"}}"#);
        assert_eq!(findings(&body)[0].0, kind, "{action}");
        assert_eq!(findings(&body)[0].2, 4.5, "{action}");
    }
}

/// P4: a message that rspamd skips is not clean. If rspamd skipped only the rest, because it had seen enough, its answer
/// counts.
#[test]
fn skipped_is_not_clean() {
    let skipped = judged(r#"{"is_skipped":true,"score":0.0,"action":"no action"}"#);
    let Answer::None {
        reason, findings, ..
    } = skipped
    else {
        panic!("an answer");
    };
    assert_eq!(
        (reason, &*findings[0].name),
        (Reason::LimitsReached, "skipped")
    );
    let gtube =
        r#"{"is_skipped":true,"score":15.0,"action":"reject","symbols":{"GTUBE":{"score":0.0}}}"#;
    assert!(matches!(judged(gtube), Answer::Answered(_)));
}

/// P4: rspamd also answers "soft reject" if it stopped before its filters ran, so the message is not clean. Rules can match
/// the findings.
#[test]
fn a_soft_reject_is_not_clean() {
    let put_off = judged(r#"{"score":0.0,"action":"soft reject","symbols":{"RATELIMITED":{}}}"#);
    let Answer::None {
        reason, findings, ..
    } = put_off
    else {
        panic!("an answer");
    };
    let names: Vec<&str> = findings.iter().map(|f| &*f.name).collect();
    assert_eq!(reason, Reason::EngineError);
    assert_eq!(names, ["not-spam", "action.soft-reject", "RATELIMITED"]);
}

/// rspamd requests the edits that it would request from a milter, with the same meaning. Positions count as for a milter,
/// negative ones from the end. A request that is not about a header field is reported.
#[test]
fn requested_edits_are_those_for_a_milter() {
    let body = r#"{"score":1.0,"action":"rewrite subject","subject":"[spam] x","dkim-signature":"v=1;\n\tb=x","milter":{
        "remove_headers":{"X-A":0,"X-B":2,"X-C":-1,"X-D":[-2,-1]},
        "add_headers":{"A":"plain","B":{"value":"top","order":0},"C":{"value":"third","order":3},
            "D":[{"value":"last","order":-1},{"value":"last but one","order":-2},{"value":"far","index":-99}]},
        "change_from":"x@a.test","no_action":false}}"#;
    let section = b"X-C: 1\r\nX-C: 2\r\nX-D: 1\r\n";
    let wanted = parse(body.as_bytes()).expect("a reply").wanted(section);
    let told = crate::message::edit::grant(wanted, crate::message::Rights::Fields, false);
    let told: Vec<String> = told
        .iter()
        .map(|wish| match wish {
            crate::message::RequestedEdit::Granted(edit) => edit.to_string(),
            crate::message::RequestedEdit::Refused { asked, .. } => format!("not {asked}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            "remove all X-A",
            "remove X-B 2",
            "remove X-C 2",
            "remove X-D 1",
            "add A at the end: plain",
            "add B on top: top",
            "add C before field 3: third",
            "add D at the end: last",
            "add D before field 3: last but one",
            "add D before field 1: far",
            "not change_from \"x@a.test\"",
            "add DKIM-Signature before field 1: v=1; b=x",
            "change Subject 1: [spam] x",
        ]
    );
}

/// An answer without the members that a verdict needs is an error.
#[test]
fn only_the_protocol_counts() {
    for body in [
        "",
        "OK",
        "{}",
        "[]",
        r#"{"score":1.0}"#,
        r#"{"action":"no action"}"#,
        r#"{"score":null,"action":"no action"}"#,
        r#"{"score":"1","action":"no action"}"#,
        r#"{"score":1e999,"action":"no action"}"#,
        r#"{"score":1.0,"action":"no action","symbols":[]}"#,
        r#"{"score":1.0,"action":"no action"} more"#,
        r#"{"error":"cannot parse"}"#,
    ] {
        assert!(parse(body.as_bytes()).is_err(), "{body}");
    }
    let deep = format!(
        r#"{{"score":1.0,"action":"x","symbols":{}"#,
        "[".repeat(100_000)
    );
    assert!(parse(deep.as_bytes()).is_err());
}

/// An answer that names another message does not count for this one. If the Message-IDs cannot be compared, the answer
/// counts.
#[test]
fn an_answer_about_another_message_is_detected() {
    let of = |id: &str| {
        let body = serde_json::json!({"score": 0.0, "action": "no action", "message-id": id});
        parse(body.to_string().as_bytes()).expect("an answer")
    };
    let mine = b"Subject: x\r\nmessage-id:\r\n <1@a.test>\r\n";
    assert!(of("1@a.test").is_about(mine));
    assert!(of("undef").is_about(mine));
    assert!(!of("2@a.test").is_about(mine));
    assert!(of("2@a.test").is_about(b"Subject: none\r\n"));
    assert!(of("2@a.test").is_about(b"Message-ID: <\"1\"@a.test>\r\n"));
    assert!(of("2@a.test").is_about(b"Message-ID: <1@a.test>\r\nMessage-ID: <3@a.test>\r\n"));
}
