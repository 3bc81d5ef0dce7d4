//! Which trouble the outcome of a message touches.

use super::*;
use crate::incident::{Incident, Kind as IncidentKind, Subject, Touched};
use crate::store::incidents;
use crate::verdict::Reason;

/// A delivered message to these many recipients.
fn delivered(recipients: usize) -> (Message, Settlement) {
    let addresses: Vec<String> = (0..recipients).map(|n| format!("x{n}@b.test")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let message = message(&addresses);
    let taken = vec![Outcome::Delivered(answer(250)); recipients];
    let end = GroupOutcome::Delivered(taken);
    let all = (0..recipients).collect();
    let passed = passed(vec![(Disposition::Deliver, all, end)]);
    let generation = generation(Vec::new(), Budget::default());
    let settlement = settle::settle(&generation, &message, &Custody::Session, &passed);
    (message, settlement)
}

/// A relay that has a story about clamd.
fn troubled() -> (Arc<Pipeline>, tempfile::TempDir) {
    let (pipeline, folder) = pipeline(
        generation(Vec::new(), Budget::default()),
        &Arc::new(Scripted::default()),
    );
    let opened = Incident::new(IncidentKind::BreakerOpened, Subject::engine("clamd"), "x");
    pipeline.incidents.record(opened);
    (pipeline, folder)
}

/// A message touches the trouble for whose missing answer it was delivered, held or refused. Nothing is touched by an answer that
/// nobody waited for or that no engine could give, by a finding, by mail that was held before, or by what a person decided.
#[tokio::test]
async fn an_outcome_touches_the_engine_that_it_lacks() {
    let (message, _) = delivered(1);
    let (undetermined, suspect) = (Verdict::Undetermined, Verdict::Suspect);
    for (event, verdict, reason, was_held, is_apart, wanted) in [
        (
            "delivered",
            suspect,
            Reason::Timeout,
            false,
            false,
            (0, 1, 0),
        ),
        (
            "delivered",
            suspect,
            Reason::Timeout,
            false,
            true,
            (0, 0, 0),
        ),
        (
            "delivered",
            suspect,
            Reason::Unneeded,
            false,
            false,
            (0, 0, 0),
        ),
        (
            "delivered",
            suspect,
            Reason::Encrypted,
            false,
            false,
            (0, 0, 0),
        ),
        (
            "held",
            undetermined,
            Reason::Timeout,
            false,
            false,
            (1, 0, 0),
        ),
        (
            "held",
            undetermined,
            Reason::Timeout,
            true,
            false,
            (0, 0, 0),
        ),
        ("held", suspect, Reason::Timeout, false, false, (0, 0, 0)),
        (
            "rejected",
            undetermined,
            Reason::Timeout,
            false,
            false,
            (0, 0, 1),
        ),
        (
            "rejected",
            suspect,
            Reason::Timeout,
            false,
            false,
            (0, 0, 0),
        ),
    ] {
        let (pipeline, _folder) = troubled();
        let (_, mut settlement) = delivered(1);
        (settlement.was_held, settlement.is_apart) = (was_held, is_apart);
        let mut entry = settlement.history[0].clone();
        entry.event = event.into();
        let decision = entry.decision.as_mut().expect("a decision");
        decision.verdict = verdict;
        decision.missing = vec![("clamd".into(), reason)];
        pipeline.tell_touched(&message, &settlement, &[entry]);
        let Touched {
            held,
            passed,
            refused,
            ..
        } = pipeline.incidents.open_stories()[0].touched;
        let seen = (held, passed, refused);
        assert_eq!(seen, wanted, "{event} {verdict:?} {reason:?} {was_held}");
    }
}

/// Of a message to many, ten recipients are listed and all are counted.
#[tokio::test]
async fn of_many_recipients_ten_are_listed() {
    let (pipeline, folder) = troubled();
    let (message, mut settlement) = delivered(15);
    settlement.late_for = vec![Subject::engine("clamd")];
    pipeline.tell_touched(&message, &settlement, &settlement.history);
    pipeline.incidents.flush().await;
    let story = pipeline.incidents.open_stories()[0].id;
    let path = folder.path().join("incidents.db");
    let listed = incidents::touched(&path, story, Vec::new(), 10).await;
    let (touched, total) = listed.expect("read");
    assert_eq!(total, 1);
    let [touch] = &touched[..] else {
        panic!("{touched:?}");
    };
    assert_eq!((touch.recipients.len(), touch.recipients_total), (10, 15));
}
