//! The law of custody: what was answered 250 ends delivered, bounced, held, or as the administrator says, recipient by
//! recipient; and what becomes of a bounce that a next hop refuses.

use std::sync::Mutex;

use futures_util::future::BoxFuture;
use metrics::Gauge;

use super::*;
use crate::deadline::wall_clock;
use crate::delivery::Outbound;
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop as Server};
use crate::message::{Notify, Recipient};
use crate::smtp::dialog::Stage;
use crate::store::{Cause, Extent, Notification};
use crate::verdict::{Answer as EngineAnswer, Reason};
use settle::{BOUNCE_UNDELIVERABLE_RULE, UNDELIVERABLE_RULE};

/// A refusal as a server gives it.
fn refusal(stage: Stage, code: u16, enhanced: Option<(u16, u16, u16)>) -> Answer {
    let reply = RemoteReply {
        code,
        enhanced,
        text: "said the hop".to_owned(),
    };
    Answer {
        stage: Some(stage),
        text: format!("{stage}: {reply}"),
        reply: Some(reply),
        ..answer(code)
    }
}

fn too_large() -> Answer {
    refusal(Stage::EndOfData, 552, Some((5, 3, 4)))
}

fn unknown() -> Answer {
    refusal(Stage::Rcpt, 550, Some((5, 1, 1)))
}

fn greylisted() -> Answer {
    refusal(Stage::Rcpt, 451, Some((4, 7, 1)))
}

fn blocked() -> Answer {
    refusal(Stage::Rcpt, 554, Some((5, 7, 1)))
}

/// Where a recipient is when the path has ended for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// With its sender, who was refused.
    Sender,
    NextHop,
    Waits,
    Held,
    Bounced,
    Discarded,
    Dropped,
}

/// All the places where a recipient is: the law wants one.
fn places(settlement: &Settlement, recipient: &Recipient) -> Vec<Where> {
    if settlement.reply.code() >= 500 {
        assert!(settlement.keep.is_empty() && settlement.notices.is_empty());
        return vec![Where::Sender];
    }
    let mailbox = recipient.mailbox.as_str();
    let told = |event: &str| {
        let mut those = settlement.history.iter().filter(|e| e.event == event);
        those.any(|e| e.recipients.iter().any(|r| r.as_str() == mailbox))
    };
    let mut places = Vec::new();
    for (event, place) in [
        ("delivered", Where::NextHop),
        ("discarded", Where::Discarded),
        ("dropped", Where::Dropped),
    ] {
        places.extend(told(event).then_some(place));
    }
    for record in &settlement.keep {
        let mut those = record.envelope.recipients.iter();
        if those.any(|r| r.mailbox.as_str() == mailbox) {
            places.push(match record.lane {
                Lane::Held => Where::Held,
                Lane::Scan | Lane::Delivery => Where::Waits,
                Lane::Rescan => panic!("what is delivered is not kept as mail"),
            });
        }
    }
    for notice in settlement.notices.iter().filter(|notice| notice.is_bounce) {
        let text = String::from_utf8_lossy(&notice.content).into_owned();
        let named = format!("Final-Recipient: rfc822; {mailbox}\r\n");
        places.extend(text.contains(&named).then_some(Where::Bounced));
    }
    places
}

/// Everything that can be known of a stored message that matters to its end.
fn custodies(generation: &Generation, message: &Message) -> Vec<(&'static str, Custody)> {
    let record = settle::unfinished(generation, message, None);
    let in_delivery = Record {
        lane: Lane::Delivery,
        expires_at: wall_clock() + Duration::from_secs(3600),
        ..record.clone()
    };
    let given_up = Record {
        expires_at: wall_clock() - Duration::from_secs(1),
        ..in_delivery.clone()
    };
    let released = Record {
        released: true,
        ..given_up.clone()
    };
    let mut all = vec![("session", Custody::Session)];
    let stored = [
        ("to be scanned", record),
        ("to be delivered", in_delivery),
        ("to be given up", given_up),
        ("released", released),
    ];
    all.extend(stored.map(|(what, record)| (what, Custody::Stored(Box::new(record)))));
    all
}

const ENDS: [&str; 11] = [
    "taken",
    "later",
    "greylisted",
    "blocked",
    "unknown",
    "too large",
    "held",
    "rejected",
    "queued",
    "deferred",
    "discarded",
];

fn end(what: &str) -> (Disposition, GroupOutcome) {
    let outcome = |outcome| (Disposition::Deliver, GroupOutcome::Delivered(vec![outcome]));
    match what {
        "taken" => outcome(Outcome::Delivered(answer(250))),
        "later" => outcome(Outcome::Deferred(refusal(Stage::Rcpt, 451, None))),
        "greylisted" => outcome(Outcome::Deferred(greylisted())),
        "blocked" => outcome(Outcome::Failed(blocked())),
        "unknown" => outcome(Outcome::Failed(unknown())),
        "too large" => outcome(Outcome::Failed(too_large())),
        "held" => (Disposition::Quarantine, GroupOutcome::Held),
        "rejected" => (Disposition::Reject, GroupOutcome::Rejected),
        "queued" => (Disposition::Deliver, GroupOutcome::Queued),
        "deferred" => (Disposition::Defer, GroupOutcome::Deferred),
        _ => (Disposition::Discard, GroupOutcome::Discarded),
    }
}

/// The law: what was answered 250 ends delivered, bounced, held, or forgotten as the administrator says, and never in two
/// ways or in none; whoever brings it, however it is kept, whatever its sender wants to know. What a reviewer released
/// comes back to the reviewer; who may not be told is not told, and the message is held, unless its recipient does not take it
/// for good: then nobody has it, and a stranger fills nothing.
#[test]
fn every_recipient_ends_in_exactly_one_way() {
    let generation = generation(Vec::new(), Budget::default());
    let never = Notify::default();
    let failure = Notify {
        failure: true,
        ..never
    };
    let success = Notify {
        success: true,
        ..never
    };
    for notify in [None, Some(never), Some(failure), Some(success)] {
        for null in [false, true] {
            let mut message = message(&["x@b.test", "y@c.test"]);
            let envelope = Arc::make_mut(&mut message.envelope);
            envelope.recipients[0].notify = notify;
            if null {
                envelope.reverse_path = ReversePath::NULL;
            }
            for (what, custody) in custodies(&generation, &message) {
                for first in ENDS {
                    for second in ENDS {
                        let ends = [end(first), end(second)];
                        let mut passed = passed(Vec::new());
                        for (at, (disposition, end)) in ends.into_iter().enumerate() {
                            let decision = Decision {
                                rule: format!("rule-{at}"),
                                verdict: Verdict::Undetermined,
                                ..decision(disposition)
                            };
                            passed.judged.groups.push((decision, vec![at]));
                            passed.ends.push(end);
                        }
                        let settled = settle::settle(&generation, &message, &custody, &passed);
                        let case = format!("{first}, {second}; {what}; {notify:?}, null: {null}");
                        check(&settled, &message, [first, second], what, &case);
                    }
                }
            }
        }
    }
}

fn check(settled: &Settlement, message: &Message, ends: [&str; 2], what: &str, case: &str) {
    for (recipient, end) in message.envelope.recipients.iter().zip(ends) {
        let places = places(settled, recipient);
        let [place] = places[..] else {
            panic!("{case}: {} is in {places:?}", recipient.mailbox);
        };
        let told = settled
            .history
            .iter()
            .any(|entry| entry.recipients.contains(&recipient.mailbox));
        assert!(told, "{case}: nobody can explain {}", recipient.mailbox);
        let failed = matches!(end, "unknown" | "too large" | "blocked")
            || matches!(end, "later" | "greylisted")
                && matches!(what, "to be given up" | "released");
        let is_bounced = !message.envelope.reverse_path.is_null()
            && recipient.notify.is_none_or(|notify| notify.failure);
        let expected = match end {
            "taken" => Where::NextHop,
            "discarded" if place != Where::Sender => Where::Discarded,
            "held" => Where::Held,
            _ if place == Where::Sender => {
                assert_eq!(what, "session", "{case}");
                assert!(failed || matches!(end, "rejected" | "discarded"), "{case}");
                continue;
            }
            "rejected" => Where::Held,
            _ if failed && what == "released" => Where::Held,
            _ if failed && is_bounced => Where::Bounced,
            "unknown" => Where::Dropped,
            _ if failed => Where::Held,
            _ => Where::Waits,
        };
        assert_eq!(place, expected, "{case}: {}", recipient.mailbox);
    }
    for record in &settled.keep {
        let rule = record.decision.as_ref().map_or("", |d| &*d.rule);
        if rule == UNDELIVERABLE_RULE {
            assert_eq!(record.cause, None, "{case}: no engine's return changes it");
            assert!(!record.released, "{case}");
        }
        if record.lane == Lane::Held {
            assert!(!record.released, "{case}: a reviewer has not decided again");
        }
    }
}

/// A notification that this relay has written about a message to `x@b.test`, as it is stored.
fn notice(generation: &Generation, answer: Answer) -> (Record, Content) {
    let mut message = message(&["x@b.test"]);
    message.content = Content::uncharged("Subject: hi\r\nFrom: a@a.test\r\n\r\nthe body\r\n");
    let custody = Custody::Stored(Box::new(settle::unfinished(generation, &message, None)));
    let passed = passed(vec![(
        Disposition::Deliver,
        vec![0],
        GroupOutcome::Delivered(vec![Outcome::Failed(answer)]),
    )]);
    let mut settled = settle::settle(generation, &message, &custody, &passed);
    let notice = settled.notices.pop().expect("a bounce");
    (notice.record, Content::uncharged(notice.content))
}

/// The message that a stored record goes out as.
fn of(record: &Record, content: &Content) -> Message {
    let message = Message {
        id: record.message,
        received_at: record.received_at,
        envelope: Arc::new(record.envelope.clone()),
        trace: record.trace.clone(),
        content: content.clone(),
        times: None,
    };
    settle::as_sent(record, message)
}

/// What becomes of a stored notification whose delivery ends like this, and what went out.
fn ended(
    generation: &Generation,
    (record, content): (&Record, &Content),
    outcome: Outcome,
) -> (Settlement, String) {
    let message = of(record, content);
    let passed = Passed {
        judged: settle::judged_before(record, &message).expect("it is to be delivered"),
        ends: vec![GroupOutcome::Delivered(vec![outcome])],
        told: Vec::new(),
        delivering: None,
    };
    let custody = Custody::Stored(Box::new(record.clone()));
    let settled = settle::settle(generation, &message, &custody, &passed);
    let sent = String::from_utf8_lossy(message.content.bytes()).into_owned();
    (settled, sent)
}

fn events(settled: &Settlement) -> Vec<&str> {
    settled.history.iter().map(|entry| &*entry.event).collect()
}

/// A bounce that is refused for another reason than its recipient is sent again with less, at once and for as long as
/// any mail, and then it is held, all of it: whoever releases it releases the whole.
#[test]
fn a_bounce_is_sent_with_less_and_then_held() {
    let generation = generation(Vec::new(), Budget::default());
    for refused in [
        too_large(),
        refusal(Stage::EndOfData, 554, Some((5, 6, 1))),
        refusal(Stage::EndOfData, 550, Some((5, 7, 1))),
        refusal(Stage::EndOfData, 554, None),
        refusal(Stage::Mail, 550, Some((5, 7, 1))),
        blocked(),
    ] {
        let (mut record, content) = notice(&generation, unknown());
        let expires_at = record.expires_at;
        for (extent, has, has_not) in [
            (Extent::Headers, "the body", "text/rfc822-headers"),
            (Extent::Bare, "Subject: hi", "the body"),
        ] {
            let outcome = Outcome::Failed(refused.clone());
            let (settled, sent) = ended(&generation, (&record, &content), outcome);
            assert!(sent.contains(has) && !sent.contains(has_not), "{sent}");
            assert_eq!(events(&settled), ["refused", "shortened"]);
            let [next] = &settled.keep[..] else {
                panic!("{:?}", settled.keep);
            };
            assert_eq!(next.notification, Some(Notification::Bounce(extent)));
            assert_eq!((next.lane, next.expires_at), (Lane::Delivery, expires_at));
            assert!(next.due_at <= wall_clock());
            assert_eq!((next.size, &next.sha256), (record.size, &record.sha256));
            record = next.clone();
        }
        let (settled, sent) = ended(
            &generation,
            (&record, &content),
            Outcome::Failed(refused.clone()),
        );
        assert!(!sent.contains("Subject: hi") && sent.contains("Final-Recipient"));
        assert_eq!(events(&settled), ["refused", "held"]);
        assert!(settled.holds_a_bounce() && settled.notices.is_empty());
        let held = &settled.keep[0];
        let decision = held.decision.as_ref().expect("a decision");
        assert_eq!(
            (held.lane, &*decision.rule),
            (Lane::Held, BOUNCE_UNDELIVERABLE_RULE)
        );
        assert!(
            decision.reason.contains("said the hop"),
            "{}",
            decision.reason
        );
        let released = Record {
            lane: Lane::Delivery,
            released: true,
            ..held.clone()
        };
        let (settled, sent) = ended(&generation, (&released, &content), Outcome::Failed(refused));
        assert!(sent.contains("the body"), "a reviewer releases the whole");
        assert_eq!(settled.keep[0].lane, Lane::Held, "and gets it back");
        let judged = settle::judged_before(&released, &of(&released, &content));
        let rule = judged.expect("a decision").groups[0].0.rule.clone();
        assert_eq!(
            rule, "own-mail",
            "no engine has seen it: it gets no result field"
        );
    }
}

/// A bounce that its recipient does not take is dropped, and told: otherwise whoever forges senders fills the quarantine.
#[test]
fn a_bounce_that_its_recipient_does_not_take_is_dropped_and_told() {
    let generation = generation(Vec::new(), Budget::default());
    for refused in [
        unknown(),
        refusal(Stage::Rcpt, 550, None),
        refusal(Stage::EndOfData, 550, Some((5, 2, 1))),
    ] {
        let (record, content) = notice(&generation, unknown());
        let (settled, _) = ended(&generation, (&record, &content), Outcome::Failed(refused));
        assert!(settled.keep.is_empty() && settled.notices.is_empty());
        let last = settled.history.last().expect("an event");
        let rule = last.decision.as_ref().map_or("", |d| &*d.rule);
        assert_eq!((&*last.event, rule), ("dropped", BOUNCE_UNDELIVERABLE_RULE));
    }
}

/// A bounce that its next hop did not take in time is held as it is: it may be the next hop's fault.
#[test]
fn a_bounce_that_is_given_up_is_held() {
    let generation = generation(Vec::new(), Budget::default());
    let (mut record, content) = notice(&generation, unknown());
    record.expires_at = wall_clock();
    for later in [
        answer(451),
        refusal(Stage::Rcpt, 451, None),
        greylisted(),
        refusal(Stage::Rcpt, 452, Some((4, 2, 2))),
    ] {
        let outcome = Outcome::Deferred(later);
        let (settled, _) = ended(&generation, (&record, &content), outcome);
        assert_eq!(events(&settled), ["given-up", "held"]);
        let decision = settled.keep[0].decision.as_ref().expect("a decision");
        assert_eq!(decision.rule, BOUNCE_UNDELIVERABLE_RULE);
    }
}

/// A bounce for whose recipient there is no next hop is held at once, with a reason that says what to do; mail waits for one, as
/// a new configuration may have forgotten its domain; and what was released goes back to the reviewer.
#[test]
fn a_bounce_without_a_way_is_held_at_once() {
    let generation = generation(Vec::new(), Budget::default());
    let unrouted = || Answer {
        next_hop: "".into(),
        reply: None,
        text: "4.4.4 no next hop takes a.test".to_owned(),
        ..answer(450)
    };
    let (record, content) = notice(&generation, unknown());
    let outcome = Outcome::Deferred(unrouted());
    let (settled, _) = ended(&generation, (&record, &content), outcome.clone());
    assert_eq!(events(&settled), ["given-up", "held"]);
    let decision = settled.keep[0].decision.as_ref().expect("a decision");
    assert_eq!(decision.rule, BOUNCE_UNDELIVERABLE_RULE);
    assert_eq!(
        decision.reason,
        "there is no way for the bounce: 4.4.4 no next hop takes a.test"
    );
    let message = message(&["x@b.test"]);
    for (what, custody) in custodies(&generation, &message) {
        let ends = vec![(
            Disposition::Deliver,
            vec![0],
            GroupOutcome::Delivered(vec![outcome.clone()]),
        )];
        let settled = settle::settle(&generation, &message, &custody, &passed(ends));
        let lanes: Vec<Lane> = settled.keep.iter().map(|record| record.lane).collect();
        match what {
            "released" => assert_eq!(lanes, [Lane::Held]),
            "to be given up" => assert_eq!((lanes.len(), settled.notices.len()), (0, 1)),
            _ => assert_eq!(lanes, [Lane::Delivery], "{what}"),
        }
    }
}

/// Nobody is owed a report of success; but it does not vanish without a word.
#[test]
fn a_report_of_success_that_is_refused_is_dropped_and_told() {
    let generation = generation(Vec::new(), Budget::default());
    let (record, content) = notice(&generation, unknown());
    let report = Record {
        notification: Some(Notification::Report),
        ..record
    };
    let outcome = Outcome::Failed(too_large());
    let (settled, _) = ended(&generation, (&report, &content), outcome);
    assert!(settled.keep.is_empty() && !settled.holds_a_bounce());
    assert_eq!(events(&settled), ["refused", "dropped"]);
}

/// When `budget.session` ends and groups of recipients differ, what the first of them is decided for is not done to all.
#[test]
fn groups_that_differ_are_judged_again_after_the_session() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test", "y@b.test"]);
    let judged = |groups: Vec<(Disposition, Vec<usize>)>| Judgement {
        groups: groups
            .into_iter()
            .map(|(d, those)| (decision(d), those))
            .collect(),
        reports: Vec::new(),
        spent: Duration::ZERO,
        reputation: None,
        described: None,
        basis: None,
    };
    let differing = judged(vec![
        (Disposition::Deliver, vec![0]),
        (Disposition::Quarantine, vec![1]),
    ]);
    let record = settle::unfinished(&generation, &message, Some(&differing));
    assert_eq!((record.lane, record.decision), (Lane::Scan, None));
    assert_eq!(record.envelope.recipients.len(), 2);
    let same = judged(vec![(Disposition::Deliver, vec![0, 1])]);
    let record = settle::unfinished(&generation, &message, Some(&same));
    assert_eq!(record.lane, Lane::Delivery);
}

/// Only an engine whose class has coverage is waited for, and only where it may answer another time.
#[test]
fn an_engine_that_coverage_does_not_ask_for_is_not_waited_for() {
    let generation = generation(Vec::new(), Budget::default());
    assert_eq!(generation.policy.required(EngineClass::Av), 1);
    assert_eq!(generation.policy.required(EngineClass::Spam), 0);
    let report = |engine: &str, class, answer| Report {
        engine: engine.into(),
        class,
        ..crate::store::contract::report(engine, answer)
    };
    let silent = || EngineAnswer::none(Reason::Timeout, "5 s");
    let spam = report("rspamd", EngineClass::Spam, silent());
    let well = report("clamd", EngineClass::Av, EngineAnswer::Answered(Vec::new()));
    let out = report("other", EngineClass::Av, silent());
    let awaited = |reports: &[Report], rule| settle::awaited(&generation, reports, rule);
    let rule = "coverage.av";
    assert_eq!(awaited(&[spam.clone(), well.clone()], rule), None);
    assert_eq!(awaited(&[spam, well, out], rule).as_deref(), Some("other"));
}

/// A next hop that takes at most so many octets, and what it was offered.
struct Narrow {
    takes: usize,
    offered: Mutex<Vec<String>>,
}

impl Server for Narrow {
    fn deliver<'a>(
        &'a self,
        mail: &'a Outbound,
        recipients: Vec<usize>,
        _: &'a Gauge,
        _: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        let text = String::from_utf8_lossy(mail.content.bytes()).into_owned();
        let fits = text.len() <= self.takes;
        self.offered.lock().expect("no panic").push(text);
        let outcome = move |at| {
            let outcome = match fits {
                true => Outcome::Delivered(answer(250)),
                false => Outcome::Failed(too_large()),
            };
            (at, outcome)
        };
        Box::pin(async move {
            HopResult {
                outcomes: recipients.into_iter().map(outcome).collect(),
                signal: HopSignal::Fine,
                offered: true,
            }
        })
    }
}

/// A message that is too large for the next hop comes back to its sender through the same next hop, across restarts: the
/// stage at which a bounce is stays with it.
#[tokio::test(start_paused = true)]
async fn a_bounce_gets_through_a_narrow_next_hop() {
    let store = Arc::new(Scripted::default());
    let hop = Arc::new(Narrow {
        takes: 2_200,
        offered: Mutex::default(),
    });
    let start = || {
        let mut generation = generation(Vec::new(), Budget::default());
        let server: Arc<dyn Server> = hop.clone();
        generation.delivery =
            Delivery::scripted(vec![(maildir_hop(), server)], None).expect("a next hop");
        pipeline(generation, &store)
    };
    let (first, _folder) = start();
    let fields = "X-Padding: pppppppppppppppppppppppppppppppppppppppppppppppppp\r\n".repeat(40);
    let mut message = message(&["x@b.test"]);
    message.content = Content::uncharged(format!("{fields}Subject: hi\r\n\r\nthe body\r\n"));
    let record = Record {
        lane: Lane::Delivery,
        ..settle::unfinished(&first.generation(), &message, None)
    };
    let put = store.put(vec![record], message.content.clone());
    put.await.expect("put");
    // A life of its own for every step: the message, its bounce, and what is left of that.
    for _ in 0..3 {
        let (pipeline, _folder) = start();
        let generation = pipeline.generation();
        for record in store.all() {
            let content = Content::uncharged(store.content(record.id).await.expect("content"));
            let message = Message {
                id: record.message,
                received_at: record.received_at,
                envelope: Arc::new(record.envelope.clone()),
                trace: record.trace.clone(),
                content,
                times: None,
            };
            let onward = NextStep::Deliver(None);
            pipeline
                .resume(
                    generation.clone(),
                    message,
                    record,
                    ScanReason::Again,
                    onward,
                )
                .await;
        }
    }
    assert_eq!(store.all(), []);
    let offered = hop.offered.lock().expect("no panic");
    let [original, headers, bare] = &offered[..] else {
        panic!("{} deliveries", offered.len());
    };
    assert!(original.contains("the body"));
    assert!(headers.contains("Subject: hi") && !headers.contains("the body"));
    assert!(!bare.contains("X-Padding") && bare.contains("Status: 5.3.4"));
}

/// However many bounces a stranger makes us hold, the newest are what is kept of them; nothing that is held for another
/// reason goes, and for an engine's least of all.
#[tokio::test(start_paused = true)]
async fn held_bounces_are_bounded_and_nothing_else_is() {
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let generation = pipeline.generation();
    let (bounce, content) = notice(&generation, unknown());
    let held = |rule: &str, cause: Option<Cause>| Record {
        id: MessageId::new(),
        lane: Lane::Held,
        received_at: wall_clock(),
        expires_at: wall_clock() + Duration::from_secs(86_400),
        decision: Some(Decision {
            rule: rule.to_owned(),
            reason: format!("not {BOUNCE_UNDELIVERABLE_RULE}"),
            ..decision(Disposition::Quarantine)
        }),
        cause,
        ..bounce.clone()
    };
    let mail = |rule: &str, cause: Option<Cause>| Record {
        notification: None,
        instead_of: Vec::new(),
        late_for: Vec::new(),
        hung: false,
        timeouts: 0,
        ..held(rule, cause)
    };
    let others = [
        mail("coverage.av", Some(Cause::Engine("clamd".to_owned()))),
        mail(UNDELIVERABLE_RULE, None),
        // A rule of the administrator may have any name.
        mail(BOUNCE_UNDELIVERABLE_RULE, None),
    ];
    let surplus = 600;
    let bounces =
        (0..lanes::HELD_BOUNCES_MAX + surplus).map(|_| held(BOUNCE_UNDELIVERABLE_RULE, None));
    for record in others.iter().cloned().chain(bounces) {
        store.put(vec![record], content.clone()).await.expect("put");
    }
    Lanes::new(pipeline.clone())
        .expire_bounces()
        .await
        .expect("expiry");
    let all = store.all();
    let kept = all.len() - others.len();
    let bound = lanes::HELD_BOUNCES_MAX;
    assert!(kept <= bound && kept + others.len() >= bound, "{kept}");
    for other in &others {
        assert!(all.iter().any(|record| record.id == other.id));
    }
    let audit = store.audited(None, 10_000).await.expect("audit");
    assert!(
        audit
            .iter()
            .all(|act| act.act == "expire" && act.detail.starts_with("surplus: "))
    );
    assert_eq!(audit.len(), lanes::HELD_BOUNCES_MAX + surplus - kept);
}
