//! What it costs to judge a message, and what is learnt from it.

use super::*;
use crate::message::SenderReputation;

const MINUTE: Duration = Duration::from_secs(60);

/// Bounded scanning (P1): engines have `budget.total` for a message over all its passes together, wherever the relay was
/// killed between them, and what is left over is held by that name.
#[tokio::test(start_paused = true)]
async fn all_passes_of_a_message_share_its_budget() {
    let budget = Budget::default();
    let (before, left) = (budget.total - MINUTE, MINUTE);
    let engine = hung_engine(10 * budget.total).await;
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation(vec![engine], budget.clone()), &store);
    let generation = pipeline.generation();
    let message = message(&["x@b.test"]);
    let mut record = settle::unfinished(&generation, &message, None);
    record.spent = before;
    let put = store.put(vec![record.clone()], message.content.clone());
    put.await.expect("put");
    let began = Instant::now();
    let onward = NextStep::Deliver(None);
    pipeline
        .resume(generation, message, record, ScanReason::Again, onward)
        .await;
    assert!(began.elapsed() <= left, "{:?}", began.elapsed());
    let record = store.all().pop().expect("kept");
    assert_eq!(record.lane, Lane::Held);
    assert_eq!(record.decision.expect("a decision").rule, "budget.total");
    assert!(record.spent >= budget.total, "{:?}", record.spent);
}

/// Promise P4: a missing answer is never "clean". Mail that is delivered without one makes nobody known, or an engine that
/// does not answer would be what a sender needs to be believed.
#[tokio::test(start_paused = true)]
async fn mail_with_a_missing_answer_makes_nobody_known() {
    fn clean(_: &[u8]) -> Option<&'static [u8]> {
        Some(b"stream: OK\0")
    }
    fn broken(_: &[u8]) -> Option<&'static [u8]> {
        Some(b"stream: it is broken ERROR\0")
    }
    type Says = fn(&[u8]) -> Option<&'static [u8]>;
    for (says, expected) in [
        (clean as Says, SenderReputation::Known),
        (broken, SenderReputation::Unknown),
    ] {
        let second = crate::scan::Settings {
            class: EngineClass::Content,
            ..engine("second", MINUTE, says).await
        };
        let engines = vec![engine("first", MINUTE, clean).await, second];
        let mut generation = generation(engines, Budget::default());
        let config = crate::config::load(None).unwrap_or_else(|problems| panic!("{problems}"));
        let mut policy = config.policy;
        policy.coverage = [(EngineClass::Av, 1)].into();
        generation.policy = Policy::new(policy, "test".into());
        let (pipeline, _folder) = pipeline(generation, &Arc::default());
        let generation = pipeline.generation();
        let mut reputation = None;
        for number in 0..4 {
            let mut message = message(&["x@b.test"]);
            let content = format!("Subject: x\r\n\r\nThis is number {number}\r\n");
            message.content = Content::uncharged(content);
            let judged = pipeline
                .judge(&generation, &message, ResumeState::NEW_MESSAGE.terms)
                .await;
            let (decision, _) = &judged.groups[0];
            assert_eq!(decision.disposition, Disposition::Deliver, "{decision:?}");
            assert_eq!(decision.verdict, Verdict::Clean);
            reputation = judged.reputation;
        }
        assert_eq!(reputation, Some(expected));
    }
}
