//! Tests of answers, metadata and tokens.

use super::*;
use crate::message::mime;
use crate::scan::tests::request;

fn reading() -> Reading {
    Reading {
        verdict_at: "/result/verdict".to_owned(),
        bad: vec!["malicious".to_owned(), "true".to_owned(), "2".to_owned()],
        clean: vec!["clean".to_owned(), "false".to_owned(), "0".to_owned()],
        bad_kind: FindingKind::Malware,
        bad_score: 10.0,
        name_at: Some("/names".to_owned()),
        score_at: None,
        signatures_at: None,
        id_at: None,
    }
}

fn found(body: &str, reading: &Reading) -> Vec<(FindingKind, String, f64)> {
    let said = read(body.as_bytes(), reading).expect(body);
    let seen = said.findings.into_iter().map(|f| (f.kind, f.name, f.score));
    seen.collect()
}

fn malware(name: &str, score: f64) -> (FindingKind, String, f64) {
    (FindingKind::Malware, name.to_owned(), score)
}

/// A verdict is a string, a number or a boolean. An answer may have one name or several; the score is that of the message.
#[test]
fn pointers_select_the_values_of_an_answer() {
    let reading = reading();
    for (body, expected) in [
        (r#"{"result":{"verdict":"clean"}}"#, vec![]),
        (
            r#"{"result":{"verdict":false},"names":["ignored"]}"#,
            vec![],
        ),
        (r#"{"result":{"verdict":0}}"#, vec![]),
        (
            r#"{"result":{"verdict":true},"names":"Eicar"}"#,
            vec![malware("Eicar", 10.0)],
        ),
        (
            r#"{"result":{"verdict":2},"names":["A",7,"","B"]}"#,
            vec![malware("A", 10.0), malware("B", 0.0)],
        ),
        (
            r#"{"result":{"verdict":"malicious"},"names":[]}"#,
            vec![malware("malicious", 10.0)],
        ),
        (
            r#"{"result":{"verdict":"malicious"}}"#,
            vec![malware("malicious", 10.0)],
        ),
    ] {
        assert_eq!(found(body, &reading), expected, "{body}");
    }
    let scored = Reading {
        score_at: Some("/score".to_owned()),
        signatures_at: Some("/v".to_owned()),
        ..reading
    };
    let clean = r#"{"result":{"verdict":"clean"},"score":-1.5,"v":7}"#;
    assert_eq!(
        found(clean, &scored),
        [(FindingKind::Score, "clean".to_owned(), -1.5)]
    );
    let said = read(clean.as_bytes(), &scored).expect("an answer");
    assert_eq!(said.signatures.as_deref(), Some("7"));
    let bad = r#"{"result":{"verdict":"malicious"},"score":3,"v":"7","names":"X"}"#;
    assert_eq!(found(bad, &scored), [malware("X", 3.0)]);
}

/// P4: an unlisted or missing verdict is garbage, not clean.
#[test]
fn only_listed_verdicts_count() {
    let scored = Reading {
        score_at: Some("/score".to_owned()),
        ..reading()
    };
    for (body, reading) in [
        ("", &reading()),
        ("OK", &reading()),
        ("{}", &reading()),
        (r#"{"result":{"verdict":null}}"#, &reading()),
        (r#"{"result":{"verdict":"Clean"}}"#, &reading()),
        (r#"{"result":{"verdict":["clean"]}}"#, &reading()),
        (r#"{"result":{"verdict":"clean"}"#, &reading()),
        (r#"{"result":{"verdict":"clean"}} {}"#, &reading()),
        (r#"{"result":{"verdict":"clean"}}"#, &scored),
        (r#"{"result":{"verdict":"clean"},"score":"5"}"#, &scored),
        (r#"{"result":{"verdict":"clean"},"score":1e999}"#, &scored),
    ] {
        assert!(read(body.as_bytes(), reading).is_err(), "{body}");
    }
    let deep = "[".repeat(1_000_000);
    assert!(read(deep.as_bytes(), &reading()).is_err());
}

/// A service that must not see content gets envelope, structure, sizes and hashes, and nothing of the content.
#[test]
fn metadata_contains_no_content() {
    let content = "Subject: =?utf-8?q?h=C3=A9?=\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nsecret words\r\n\
        --b\r\nContent-Type: application/zip; name=\"a.zip\"\r\n\r\nPK\r\n--b--\r\n";
    let request = request(content, Duration::from_secs(1));
    let inspection = mime::inspect(request.content.bytes(), mime::Limits::default());
    let (id, envelope) = (request.id, &request.envelope);
    let body = metadata::write("relay.test", id, envelope, &request.content, &inspection);
    let told: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(told["id"], request.id.to_string());
    assert_eq!(told["reverse_path"], "sender@example.com");
    assert_eq!(told["recipients"][0], "recipient@example.org");
    assert_eq!(told["size"], content.len());
    assert_eq!(told["subject"], "hé");
    assert_eq!(told["parts"][1]["names"][0], "a.zip");
    assert_eq!(told["parts"][1]["type"], "application/zip");
    assert_eq!(told["parts"].as_array().expect("parts").len(), 2);
    assert_eq!(
        told["parts"][1]["sha256"].as_str().expect("a hash").len(),
        64
    );
    assert!(!String::from_utf8_lossy(&body).contains("secret"));
}

/// P4: a service that did not get the metadata of all parts cannot call the message clean. Its objections count.
#[test]
fn incomplete_metadata_is_not_clean() {
    let found = vec![crate::verdict::Finding::new(FindingKind::Malware, "X", 1.0)];
    assert!(matches!(judged(found.clone(), false), Answer::Answered(_)));
    assert!(matches!(judged(Vec::new(), true), Answer::Answered(_)));
    let Answer::None { reason, .. } = judged(Vec::new(), false) else {
        panic!("an answer");
    };
    assert_eq!(reason, Reason::LimitsReached);
}

/// A token is one line of visible characters, and debug output does not show it.
#[test]
fn a_token_is_kept_secret() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("file");
    let value = token(&file).expect("a token");
    assert_eq!(value.as_bytes(), b"Bearer s3cret");
    assert!(!format!("{value:?}").contains("s3cret"));
    for bad in ["", "\n", "two\nlines\n", "a b"] {
        std::fs::write(&file, bad).expect("file");
        let error = token(&file).expect_err(bad).to_string();
        assert!(error.contains("one line"), "{error}");
    }
    assert!(token(&folder.path().join("none")).is_err());
}
