//! The path alone: engines and next hops are real code over scripted peers, the store is a scripted one, time is paused.

mod clock;
mod counting;
mod crowds;
mod custody;
mod drains;
mod edits;
mod ends;
mod interceptors;
mod judging;
mod keeper;
mod late;
mod logins;
mod pacing;
mod recovery;
mod room;
mod scan_times;
mod scripted;
mod simulation;
mod stand_ins;
mod stories;
mod touches;
mod whatif;

use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::settle::Settlement;
use super::*;
use crate::deadline::wall_clock;
use crate::delivery::{Answer, Kind, Settings as HopSettings, SmtpSettings, TlsMode};
use crate::message::{
    BodyKind, Content, Envelope, Mailbox, MessageId, Origin, Recipient, ReversePath, Rights,
    SenderReputation,
};
use crate::scan::engine::{Address, Kind as EngineKind};
use crate::smtp::RemoteReply;
use crate::store::Lane;
use crate::verdict::{Decision, EngineClass, Report, Verdict};
use scripted::Scripted;

fn message(recipients: &[&str]) -> Message {
    let mailbox = |text: &str| Mailbox::parse(text).expect("mailbox");
    Message {
        id: MessageId::new(),
        received_at: Timestamp::now(),
        envelope: Arc::new(Envelope {
            reverse_path: mailbox("sender@a.test").into(),
            recipients: recipients.iter().map(|r| mailbox(r).into()).collect(),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("smtp"),
        }),
        trace: "Received: from x by y; now\r\n".into(),
        content: Content::uncharged("Subject: x\r\n\r\nx\r\n"),
        times: None,
    }
}

fn maildir_hop() -> HopSettings {
    HopSettings::sample("hop", &["*"], Kind::sample())
}

/// A server in the clear that gets this long for everything.
fn smtp(address: std::net::SocketAddr, patience: Duration) -> SmtpSettings {
    SmtpSettings {
        lmtp: false,
        addresses: vec![address.to_string()],
        tls: TlsMode::Off,
        tls_ca: None,
        username: None,
        password_file: None,
        connections: 1,
        pace: true,
        idle: patience,
        connect_timeout: patience,
        command_timeout: patience,
        data_timeout: patience,
        hostname: "relay.test".to_owned(),
    }
}

fn generation(engines: Vec<crate::scan::Settings>, budget: Budget) -> Generation {
    let coverage = crate::config::load(None)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .policy;
    Generation {
        config: "test".into(),
        hostname: "relay.test".into(),
        scanner: Scanner::new(engines, None).expect("engines"),
        policy: Policy::new(coverage, "test".into()),
        delivery: Delivery::new(vec![maildir_hop()], None).expect("next hops"),
        budget,
        retention: Duration::from_secs(86_400),
        quarantine: Capacity::default(),
    }
}

fn pipeline(generation: Generation, store: &Arc<Scripted>) -> (Arc<Pipeline>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, day) = (folder.path(), Duration::from_secs(86_400));
    let history = History::open(&path.join("history.db"), day).expect("history");
    let incidents = Incidents::open(&path.join("incidents.db"), day).expect("log");
    (
        Pipeline::new(
            generation,
            store.clone(),
            (history, incidents),
            intercept::Settings::default(),
            64 << 20,
        ),
        folder,
    )
}

fn decision(disposition: Disposition) -> Decision {
    Decision {
        verdict: Verdict::Suspect,
        disposition,
        rule: "test-rule".to_owned(),
        reason: "because".to_owned(),
        score: 1.0,
        tag: false,
        missing: Vec::new(),
        config: "test".into(),
    }
}

fn answer(code: u16) -> Answer {
    let reply = RemoteReply {
        code,
        enhanced: None,
        text: "said the hop".to_owned(),
    };
    Answer {
        text: reply.to_string(),
        reply: Some(reply),
        ..Answer::of(&"hop".into())
    }
}

fn passed(groups: Vec<(Disposition, Vec<usize>, GroupOutcome)>) -> Passed {
    let mut judged = Judgement {
        groups: Vec::new(),
        reports: Vec::new(),
        spent: Duration::ZERO,
        reputation: None,
        described: None,
        basis: None,
    };
    let mut ends = Vec::new();
    for (disposition, recipients, end) in groups {
        judged.groups.push((decision(disposition), recipients));
        ends.push(end);
    }
    Passed {
        judged,
        ends,
        told: Vec::new(),
        delivering: None,
    }
}

/// The reply is true for every recipient, and what it promises is what is kept: all the ways a message can end in its
/// session.
#[test]
fn replies_are_true_for_all_recipients() {
    use Disposition::{Deliver, Discard, Quarantine, Reject};
    use GroupOutcome::{Delivered, Discarded, Held, Rejected};
    let taken = || Outcome::Delivered(answer(250));
    let later = || Outcome::Deferred(answer(451));
    let never = || Outcome::Failed(answer(550));
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test", "y@b.test"]);
    for (what, groups, reply, keep, bounces) in [
        (
            "both taken",
            vec![(Deliver, vec![0, 1], Delivered(vec![taken(), taken()]))],
            "delivered",
            vec![],
            0,
        ),
        (
            "both later",
            vec![(Deliver, vec![0, 1], Delivered(vec![later(), later()]))],
            "accepted",
            vec![(Lane::Delivery, 2)],
            0,
        ),
        (
            "both never",
            vec![(Deliver, vec![0, 1], Delivered(vec![never(), never()]))],
            "550",
            vec![],
            0,
        ),
        (
            "one taken, one never",
            vec![(Deliver, vec![0, 1], Delivered(vec![taken(), never()]))],
            "accepted",
            vec![],
            1,
        ),
        (
            "one taken, one later",
            vec![(Deliver, vec![0, 1], Delivered(vec![taken(), later()]))],
            "accepted",
            vec![(Lane::Delivery, 1)],
            0,
        ),
        (
            "one later, one never",
            vec![(Deliver, vec![0, 1], Delivered(vec![later(), never()]))],
            "accepted",
            vec![(Lane::Delivery, 1)],
            1,
        ),
        (
            "held",
            vec![(Quarantine, vec![0, 1], Held)],
            "accepted",
            vec![(Lane::Held, 2)],
            0,
        ),
        (
            "rejected",
            vec![(Reject, vec![0, 1], Rejected)],
            "550",
            vec![],
            0,
        ),
        (
            "rejected by two rules",
            vec![(Reject, vec![0], Rejected), (Reject, vec![1], Rejected)],
            "550",
            vec![],
            0,
        ),
        (
            "rejected for one",
            vec![
                (Reject, vec![0], Rejected),
                (Deliver, vec![1], Delivered(vec![taken()])),
            ],
            "accepted",
            vec![(Lane::Held, 1)],
            0,
        ),
        (
            "discarded",
            vec![(Discard, vec![0, 1], Discarded)],
            "accepted",
            vec![],
            0,
        ),
        (
            "held and later",
            vec![
                (Quarantine, vec![0], Held),
                (Deliver, vec![1], Delivered(vec![later()])),
            ],
            "accepted",
            vec![(Lane::Held, 1), (Lane::Delivery, 1)],
            0,
        ),
    ] {
        let settlement = settle::settle(&generation, &message, &Custody::Session, &passed(groups));
        assert!(
            settlement.reply.to_string().contains(reply),
            "{what}: {}",
            settlement.reply
        );
        let kept: Vec<_> = settlement
            .keep
            .iter()
            .map(|r| (r.lane, r.envelope.recipients.len()))
            .collect();
        assert_eq!(kept, keep, "{what}");
        assert_eq!(settlement.notices.len(), bounces, "{what}");
        let mut ids: Vec<_> = settlement.keep.iter().map(|r| r.id).collect();
        ids.dedup();
        assert_eq!(
            ids.len(),
            settlement.keep.len(),
            "{what}: every record has a name of its own"
        );
    }
}

/// A stored message has no session to refuse it in: what policy rejects is held, what the next hop refuses is bounced,
/// and neither vanishes.
#[test]
fn stored_messages_are_never_refused_into_nothing() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test"]);
    let stored = || Custody::Stored(Box::new(settle::unfinished(&generation, &message, None)));
    let rejected = passed(vec![(Disposition::Reject, vec![0], GroupOutcome::Rejected)]);
    let settlement = settle::settle(&generation, &message, &stored(), &rejected);
    assert_eq!(settlement.keep.len(), 1);
    assert_eq!(settlement.keep[0].lane, Lane::Held);
    let refused = passed(vec![(
        Disposition::Deliver,
        vec![0],
        GroupOutcome::Delivered(vec![Outcome::Failed(answer(550))]),
    )]);
    let settlement = settle::settle(&generation, &message, &stored(), &refused);
    assert!(settlement.keep.is_empty());
    assert_eq!(settlement.notices.len(), 1);
    assert!(settlement.notices[0].record.envelope.reverse_path.is_null());
}

/// RFC 5321 4.5.5: nothing is ever bounced to the null reverse-path.
#[test]
fn nothing_is_bounced_to_the_null_reverse_path() {
    let generation = generation(Vec::new(), Budget::default());
    let mut message = message(&["x@b.test", "y@b.test"]);
    Arc::make_mut(&mut message.envelope).reverse_path = ReversePath::NULL;
    let outcomes = vec![
        Outcome::Failed(answer(550)),
        Outcome::Delivered(answer(250)),
    ];
    let passed = passed(vec![(
        Disposition::Deliver,
        vec![0, 1],
        GroupOutcome::Delivered(outcomes),
    )]);
    let settlement = settle::settle(&generation, &message, &Custody::Session, &passed);
    assert!(settlement.notices.is_empty());
}

/// A reviewer's release that the next hop refuses comes back to the reviewer: its sender is as likely as not forged.
#[test]
fn a_refused_release_goes_back_to_quarantine() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test"]);
    let mut record = settle::unfinished(&generation, &message, None);
    record.lane = Lane::Delivery;
    record.released = true;
    // It was somebody else's.
    let own = vec![Recipient::from(
        Mailbox::parse("y@b.test").expect("mailbox"),
    )];
    record.instead_of.clone_from(&own);
    let refused = passed(vec![(
        Disposition::Deliver,
        vec![0],
        GroupOutcome::Delivered(vec![Outcome::Failed(answer(550))]),
    )]);
    let settlement = settle::settle(
        &generation,
        &message,
        &Custody::Stored(Box::new(record)),
        &refused,
    );
    assert!(settlement.notices.is_empty());
    assert_eq!(settlement.keep[0].lane, Lane::Held);
    assert_eq!(settlement.keep[0].status, "550 said the hop");
    assert!(!settlement.keep[0].released, "a second look is one");
    assert_eq!(settlement.keep[0].envelope.recipients, own);
    assert!(settlement.keep[0].instead_of.is_empty());
}

/// An engine that never says anything about mail, although it answers what it is probed with.
async fn hung_engine(timeout: Duration) -> crate::scan::Settings {
    engine("hung", timeout, |heard| {
        let said = |what: &[u8]| memchr::memmem::find(heard, what).is_some();
        let answer: &[u8] = match said(b"EICAR-STANDARD") {
            true => b"stream: Eicar FOUND\0",
            false => b"stream: OK\0",
        };
        said(b"<probe@spillway.invalid>").then_some(answer)
    })
    .await
}

/// Answers whatever it is given as clamd does.
async fn answers(listener: TcpListener, says: fn(&[u8]) -> Option<&'static [u8]>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut heard = Vec::new();
            while stream.read_buf(&mut heard).await.is_ok_and(|n| n > 0) {
                if heard.ends_with(&[0; 4])
                    && let Some(answer) = says(&heard)
                {
                    let _ = stream.write_all(answer).await;
                }
            }
        });
    }
}

/// An engine that gives these answers to contents, or none.
pub(super) async fn engine(
    name: &str,
    timeout: Duration,
    says: fn(&[u8]) -> Option<&'static [u8]>,
) -> crate::scan::Settings {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(answers(listener, says));
    crate::scan::Settings {
        name: name.into(),
        class: EngineClass::Av,
        timeout,
        limit: timeout,
        slow: timeout.min(Duration::from_millis(500)),
        wait: timeout,
        probe: None,
        signature_age: None,
        attempts: 1,
        slots: 4,
        max_size: 1 << 20,
        weight: 1.0,
        edits: Rights::None,
        guard: crate::scan::GuardSettings::default(),
        kind: EngineKind::Clamd {
            addresses: vec![Address::Socket(address)],
            connect_timeout: Duration::from_secs(1),
        },
    }
}

/// Promise P1: with an engine that hangs for longer than the whole budget, the sender is answered within
/// `budget.session`, and then a named reason holds the message within `budget.total`.
#[tokio::test(start_paused = true)]
async fn a_hung_engine_costs_the_sender_no_more_than_budget_session() {
    let budget = Budget {
        session: Duration::from_secs(30),
        total: Duration::from_secs(150),
        deferral: Duration::from_secs(3600),
    };
    let store = Arc::new(Scripted::default());
    let engine = hung_engine(Duration::from_secs(1000)).await;
    let (pipeline, _folder) = pipeline(generation(vec![engine], budget), &store);
    let began = Instant::now();
    let reply = pipeline
        .accept(message(&["x@b.test"]), Mode::CutThrough)
        .await;
    assert!(
        began.elapsed() < Duration::from_secs(31),
        "{:?}",
        began.elapsed()
    );
    assert!(reply.to_string().contains("accepted as"), "{reply}");
    assert_eq!(store.all()[0].lane, Lane::Scan, "durable before the 250");
    assert!(
        pipeline
            .drained(Deadline::after(Duration::from_secs(1000)))
            .await
    );
    assert!(
        began.elapsed() < Duration::from_secs(160),
        "{:?}",
        began.elapsed()
    );
    let record = store.all().pop().expect("still here");
    assert_eq!(record.lane, Lane::Held);
    assert_eq!(record.decision.expect("a decision").rule, "budget.total");
}

/// P4 and P5: when the engine fails in time, coverage is not met, the message is deferred and durable before its 250.
#[tokio::test(start_paused = true)]
async fn without_coverage_the_message_is_deferred_not_delivered() {
    let store = Arc::new(Scripted::default());
    let engine = hung_engine(Duration::from_secs(5)).await;
    let (pipeline, _folder) = pipeline(generation(vec![engine], Budget::default()), &store);
    let reply = pipeline
        .accept(message(&["x@b.test"]), Mode::CutThrough)
        .await;
    assert!(reply.to_string().contains("accepted as"), "{reply}");
    let record = store.all().pop().expect("kept");
    assert_eq!(record.lane, Lane::Scan);
    assert!(record.due_at > record.received_at);
    assert_eq!(record.reports.len(), 1, "exactly one report per engine");
}

/// The responsibility law: a store that fails leaves the message with its sender, in both modes: also when it is needed
/// only in the end, for what became of the message.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_leaves_the_message_with_its_sender() {
    for (engine_takes, is_to_end) in [(100, false), (5, true)] {
        let store = Arc::new(Scripted::default());
        store.fails.store(true, Ordering::Relaxed);
        let engine = hung_engine(Duration::from_secs(engine_takes)).await;
        let budget = Budget::default();
        assert_eq!(
            is_to_end,
            Duration::from_secs(engine_takes) < budget.session
        );
        let (pipeline, _folder) = pipeline(generation(vec![engine], budget), &store);
        for mode in [Mode::CutThrough, Mode::Queue] {
            let reply = pipeline.accept(message(&["x@b.test"]), mode).await;
            assert_eq!(reply.code(), 451, "{reply}");
        }
        assert!(store.all().is_empty());
    }
}

/// A reviewer's release is tried for as long as any mail, however long the message was held before: the next hop's first
/// "not now" does not send it back.
#[test]
fn a_release_of_old_mail_is_tried_as_long_as_any() {
    let generation = generation(Vec::new(), Budget::default());
    let mut message = message(&["x@b.test"]);
    message.received_at -= Duration::from_secs(30 * 86_400);
    let mut record = settle::unfinished(&generation, &message, None);
    record.lane = Lane::Delivery;
    record.released = true;
    record.expires_at = Timestamp::now() + Duration::from_secs(60);
    let later = || {
        let outcomes = vec![Outcome::Deferred(answer(451))];
        passed(vec![(
            Disposition::Deliver,
            vec![0],
            GroupOutcome::Delivered(outcomes),
        )])
    };
    let settle = |record: &Record| {
        let custody = Custody::Stored(Box::new(record.clone()));
        settle::settle(&generation, &message, &custody, &later()).keep
    };
    let kept = settle(&record);
    assert_eq!(kept[0].lane, Lane::Delivery);
    assert_eq!(kept[0].expires_at, record.expires_at, "it does not move");
    assert!(kept[0].released);
    record.expires_at = Timestamp::now();
    assert_eq!(settle(&record)[0].lane, Lane::Held, "and it has an end");
}

/// Recipients of different next hops wait apart: one that is down does not set the pace of the other.
#[test]
fn recipients_of_different_next_hops_wait_apart() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test", "y@c.test", "z@b.test"]);
    let later = |hop: &str| {
        Outcome::Deferred(Answer {
            next_hop: hop.into(),
            ..answer(451)
        })
    };
    let outcomes = vec![later("b"), later("c"), later("b")];
    let passed = passed(vec![(
        Disposition::Deliver,
        vec![0, 1, 2],
        GroupOutcome::Delivered(outcomes),
    )]);
    let settlement = settle::settle(&generation, &message, &Custody::Session, &passed);
    let kept: Vec<_> = settlement
        .keep
        .iter()
        .map(|record| record.envelope.recipients.len())
        .collect();
    assert_eq!(kept, [2, 1]);
}

/// A delivery ends before the lease of a stored message does, however patient the settings of its next hop are: somebody else
/// takes the message up then.
#[tokio::test(start_paused = true)]
async fn a_delivery_ends_before_the_lease_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = listener.local_addr().expect("its address");
    let mut generation = generation(Vec::new(), Budget::default());
    let hop = HopSettings {
        kind: Kind::Smtp(smtp(silent, Duration::from_secs(3600))),
        ..maildir_hop()
    };
    generation.delivery = Delivery::new(vec![hop], None).expect("a next hop");
    let judged = Judgement {
        groups: vec![(decision(Disposition::Deliver), vec![0, 1])],
        reports: Vec::new(),
        spent: Duration::ZERO,
        reputation: None,
        described: None,
        basis: None,
    };
    let lease = lanes::lease(&generation.budget);
    let began = Instant::now();
    let before = ResumeState {
        judged: Some(judged),
        ..ResumeState::NEW_MESSAGE
    };
    let (pipeline, _folder) = pipeline(generation, &Arc::default());
    let generation = pipeline.generation();
    let message = message(&["x@b.test", "y@b.test"]);
    let passed = pipeline
        .pass(generation, message, before, Arc::default())
        .await;
    assert!(began.elapsed() < lease, "{:?}", began.elapsed());
    let [GroupOutcome::Delivered(outcomes)] = &passed.ends[..] else {
        panic!("{:?}", passed.ends);
    };
    let deferred = |outcome: &Outcome| matches!(outcome, Outcome::Deferred(_));
    assert!(outcomes.iter().all(deferred), "{outcomes:?}");
}

/// Stored mail that finds no memory gives its slot back and comes again, long before its lease ends and somebody else
/// takes it up as well.
#[tokio::test(start_paused = true)]
async fn stored_mail_does_not_wait_for_memory_longer_than_its_lease() {
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let mut fresh = crate::message::Charge::default();
    assert!(pipeline.memory.try_extend(&mut fresh, 20 << 20));
    let mut record = settle::unfinished(&pipeline.generation(), &message(&["x@b.test"]), None);
    record.size = 20 << 20;
    let due = record.due_at;
    let id = record.id;
    let content = Content::uncharged("x");
    store.put(vec![record], content).await.expect("put");
    let closing = tokio_util::sync::CancellationToken::new();
    let began = Instant::now();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    let postponed = loop {
        tokio::time::advance(Duration::from_secs(1)).await;
        let record = store.get(id).await.expect("get").expect("kept");
        if record.due_at > due {
            break record;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it waits for ever"
        );
    };
    assert_eq!(postponed.lane, Lane::Scan);
    assert!(postponed.due_at > due);
    closing.cancel();
}

/// A next hop that takes the message after `wait`.
async fn slow_hop(wait: Duration) -> HopSettings {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = tokio::io::BufReader::new(stream);
        stream.write_all(b"220 hop\r\n").await.expect("write");
        let mut line = String::new();
        let mut content = false;
        while stream.read_line(&mut line).await.expect("read") > 0 {
            let reply: &[u8] = match line.trim_end() {
                "DATA" => {
                    content = true;
                    b"354 go\r\n"
                }
                "." => {
                    Deadline::after(wait).wait().await;
                    b"250 taken\r\n"
                }
                _ if content => b"",
                _ => b"250 ok\r\n",
            };
            stream.write_all(reply).await.expect("write");
            line.clear();
        }
    });
    let wait = Duration::from_secs(60);
    HopSettings {
        kind: Kind::Smtp(smtp(address, wait)),
        ..maildir_hop()
    }
}

/// When the store fails while the next hop is taking the message, the sender hears what the next hop says: a 451 would
/// make it send a message again that has arrived.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_during_delivery_makes_no_duplicates() {
    let store = Arc::new(Scripted::default());
    store.fails.store(true, Ordering::Relaxed);
    let mut generation = generation(Vec::new(), Budget::default());
    let hop = slow_hop(Duration::from_secs(45)).await;
    generation.delivery = Delivery::new(vec![hop], None).expect("a next hop");
    let mut settings = crate::config::load(None)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .policy;
    settings.coverage.clear();
    generation.policy = Policy::new(settings, "test".into());
    let (pipeline, _folder) = pipeline(generation, &store);
    let reply = pipeline
        .accept(message(&["x@b.test"]), Mode::CutThrough)
        .await;
    assert!(reply.to_string().contains("delivered"), "{reply}");
}
