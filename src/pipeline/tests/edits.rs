//! What engines want done to a message, on its way out.

use super::*;
use crate::message::edit::{Edit, FieldPosition, RequestedEdit};
use crate::pipeline::outbound::outbound;
use crate::scan::engine::{AuthSettings, NameServers, Scores};
use crate::verdict::{Answer, Reason, Report};

fn field(place: FieldPosition, name: &str) -> RequestedEdit {
    RequestedEdit::Granted(Edit::Add {
        place,
        name: name.to_owned(),
        value: "v".to_owned(),
    })
}

fn report(engine: &str, requested_edits: Vec<RequestedEdit>) -> Report {
    Report {
        requested_edits,
        ..Report::unasked(
            engine.into(),
            EngineClass::Spam,
            Answer::Answered(Vec::new()),
        )
    }
}

fn judged(reports: Vec<Report>) -> Judgement {
    Judgement {
        groups: vec![(decision(Disposition::Deliver), vec![0])],
        reports,
        spent: Duration::ZERO,
        reputation: None,
        described: None,
        basis: None,
    }
}

async fn going_out(message: &Message, judged: &Judgement) -> (String, Content) {
    going_out_by(generation(Vec::new(), Budget::default()), message, judged).await
}

async fn going_out_by(
    generation: Generation,
    message: &Message,
    judged: &Judgement,
) -> (String, Content) {
    let generation = Arc::new(generation);
    let outbound = outbound(&generation, message, judged, &judged.groups[0]).await;
    let prefix = String::from_utf8(outbound.prefix.to_vec()).expect("text");
    (prefix, outbound.content)
}

/// Edits are made in the order of the engines, around our own fields; what was refused is not; the body is the very
/// octets that came, without a copy.
#[tokio::test]
async fn what_goes_out_has_the_edits_and_the_body_as_it_came() {
    let body = "\r\n".to_owned() + &"x".repeat(100_000);
    for body in ["\r\nx\r\n", &body] {
        let mut message = message(&["x@b.test"]);
        message.content = Content::uncharged(format!("Subject: x\r\n{body}"));
        let refused = RequestedEdit::Refused {
            asked: "add X-Not".to_owned(),
            why: "because".to_owned(),
        };
        let judged = judged(vec![
            report(
                "first",
                vec![
                    field(FieldPosition::Top, "T-1"),
                    field(FieldPosition::End, "E-1"),
                ],
            ),
            report("none", vec![refused]),
            report(
                "second",
                vec![
                    field(FieldPosition::Top, "T-2"),
                    field(FieldPosition::End, "E-2"),
                ],
            ),
        ]);
        let (prefix, content) = going_out(&message, &judged).await;
        let fields: Vec<_> = crate::message::header::fields(prefix.as_bytes())
            .map(|f| String::from_utf8_lossy(f.name).into_owned())
            .collect();
        let expected = [
            "T-2",
            "T-1",
            "Received",
            "X-Spillway-Result",
            "Subject",
            "E-1",
            "E-2",
        ];
        assert_eq!(fields, expected);
        let came = message.content.bytes();
        assert_eq!(content.bytes().as_ptr(), came[12..].as_ptr(), "no copy");
        assert_eq!(content.len() + 12, came.len());
    }
}

/// A message whose first line is folding folds nothing that means something: no sender writes into our fields, nor into those that
/// engines add.
#[tokio::test]
async fn a_first_line_of_folding_is_not_in_our_fields() {
    for first in [" score=0.0; by=relay\r\n", "\tx: y\r\n"] {
        let mut message = message(&["x@b.test"]);
        message.content = Content::uncharged(format!("{first}Subject: x\r\n\r\nx\r\n"));
        let edits = vec![
            field(FieldPosition::Top, "T"),
            field(FieldPosition::Before(1), "B"),
            field(FieldPosition::End, "E"),
        ];
        for (reports, rest) in [
            (vec![], ""),
            (vec![report("one", edits)], "B: v\r\nSubject: x\r\nE: v\r\n"),
        ] {
            let (prefix, content) = going_out(&message, &judged(reports)).await;
            let (prefix, content) = match rest {
                "" => {
                    let whole = prefix + &String::from_utf8_lossy(content.bytes());
                    let (prefix, body) = whole.split_once(first).expect("the first line");
                    (prefix.to_owned(), body.to_owned())
                }
                rest => {
                    let (before, after) = prefix.split_once(first).expect("the first line");
                    assert_eq!(after, rest);
                    (before.to_owned(), String::new())
                }
            };
            let last = prefix.lines().last().expect("a field");
            assert!(last.starts_with("X-Spillway-Break: "), "{prefix}{content}");
        }
    }
}

/// A message that waits for its next hop in the store goes out after a restart as it would have gone at once: its edits
/// are durable with it, and what is stored is what came.
#[tokio::test]
async fn edits_survive_a_restart() {
    let message = message(&["x@b.test"]);
    let judged = judged(vec![report("one", vec![field(FieldPosition::End, "E-1")])]);
    let generation = generation(Vec::new(), Budget::default());
    let record = settle::unfinished(&generation, &message, Some(&judged));
    assert_eq!(record.lane, Lane::Delivery);
    let json = serde_json::to_string(&record).expect("a row");
    let record: Record = serde_json::from_str(&json).expect("a record");
    let again = settle::judged_before(&record, &message).expect("judged");
    let (now, later) = (
        going_out(&message, &judged).await,
        going_out(&message, &again).await,
    );
    assert!(now.0.ends_with("Subject: x\r\nE-1: v\r\n"), "{}", now.0);
    assert_eq!(now.0, later.0);
    assert_eq!(record.size, message.content.len() as u64);
}

/// RFC 8601 5: nobody speaks in our name, also where the engine that would say so has no answer or was never asked, as about
/// a message that an interceptor has held and a person has released.
#[tokio::test]
async fn forged_results_are_removed_without_an_answer_too() {
    let mut message = message(&["x@b.test"]);
    let forged = "Authentication-Results: mx.test; dmarc=pass\r\n";
    let other = "Authentication-Results: other.test; dmarc=pass\r\n";
    message.content = Content::uncharged(format!("{forged}{other}Subject: x\r\n\r\nx\r\n"));
    let mut late = report("auth", Vec::new());
    late.answer = Answer::none(Reason::Timeout, "");
    for reports in [vec![late], Vec::new()] {
        for (edits, stays) in [(Rights::Fields, false), (Rights::None, true)] {
            let mut auth = engine("auth", Duration::from_secs(1), |_| None).await;
            auth.edits = edits;
            auth.kind = EngineKind::Auth(AuthSettings {
                authserv_id: "mx.test".to_owned(),
                scores: Scores::default(),
                obey_dmarc: false,
                max_signatures: 1,
                timeout: Duration::from_secs(1),
                servers: NameServers {
                    addresses: vec![([127, 0, 0, 1], 1).into()],
                    patience: Duration::from_secs(1),
                },
            });
            let generation = generation(vec![auth], Budget::default());
            let judged = judged(reports.clone());
            let (prefix, content) = going_out_by(generation, &message, &judged).await;
            let sent = prefix + &String::from_utf8_lossy(content.bytes());
            assert_eq!(sent.contains(forged), stays, "{sent}");
            assert!(sent.contains(other), "{sent}");
        }
    }
}
