//! Mail for a next hop that takes nothing: what waiting costs it, and others.

use std::sync::Mutex;

use futures_util::future::BoxFuture;
use metrics::Gauge;

use super::*;
use crate::chance;
use crate::deadline::{set_wall_clock, wall_clock};
use crate::delivery::Outbound;
use crate::delivery::next_hop::{HopResult, HopSignal, NextHop as Server};

/// A server that is not there.
async fn nobody() -> HopSettings {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    HopSettings {
        name: "dead".into(),
        domains: vec!["dead.test".to_owned()],
        kind: Kind::Smtp(smtp(address, Duration::from_secs(60))),
        ..maildir_hop()
    }
}

/// Records of mail to this domain that are to be delivered.
pub(super) fn stored(pipeline: &Pipeline, to: &str, count: usize) -> Vec<Record> {
    let generation = pipeline.generation();
    let later = || GroupOutcome::Delivered(vec![Outcome::Deferred(answer(451))]);
    let record = |_| {
        let passed = passed(vec![(Disposition::Deliver, vec![0], later())]);
        let message = message(&[to]);
        let settled = settle::settle(&generation, &message, &Custody::Session, &passed);
        let mut record = settled.keep.into_iter().next().expect("it is kept");
        record.due_at = record.received_at;
        record
    };
    (0..count).map(record).collect()
}

/// A message that was held back has had no attempt, and keeps its place: its next hop's pace decides when it goes, and the
/// oldest goes first. One that was refused has had an attempt and waits its own time.
#[test]
fn what_is_held_back_keeps_its_place_and_its_attempts() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test"]);
    let settle = |custody: &Custody, held_back| {
        let outcome = Outcome::Deferred(Answer {
            held_back,
            ..answer(451)
        });
        let end = GroupOutcome::Delivered(vec![outcome]);
        let passed = passed(vec![(Disposition::Deliver, vec![0], end)]);
        let settled = settle::settle(&generation, &message, custody, &passed);
        settled.keep.into_iter().next().expect("it is kept")
    };
    let refused = settle(&Custody::Session, false);
    assert_eq!((refused.attempts, &*refused.next_hop), (1, "hop"));
    assert!(refused.due_at > refused.received_at);
    let held_back = settle(&Custody::Session, true);
    assert_eq!((held_back.attempts, &*held_back.next_hop), (0, "hop"));
    assert_eq!(held_back.due_at, held_back.received_at);
    let again = settle(&Custody::Stored(Box::new(refused)), true);
    assert_eq!(
        (again.attempts, again.due_at),
        (1, held_back.due_at),
        "no attempt was made"
    );
    let refused = settle(&Custody::Stored(Box::new(again)), false);
    assert_eq!(refused.attempts, 2);
}

/// However much waits for a next hop that does not work: other mail goes out, and the rest of it is not even claimed.
#[tokio::test(start_paused = true)]
async fn a_dead_next_hop_keeps_nobody_elses_mail_waiting() {
    let store = Arc::new(Scripted::default());
    let mailboxes = tempfile::tempdir().expect("a folder");
    let path = mailboxes.path().join("{local}");
    let folder = HopSettings {
        name: "zulu".into(),
        kind: Kind::Maildir {
            path: path.to_string_lossy().into_owned(),
        },
        ..maildir_hop()
    };
    let mut generation = generation(Vec::new(), Budget::default());
    let hops = vec![nobody().await, folder];
    generation.delivery = Delivery::new(hops, None).expect("next hops");
    let (pipeline, _folder) = pipeline(generation, &store);
    let dead = stored(&pipeline, "x@dead.test", 500);
    let well = stored(&pipeline, "x@b.test", 20);
    for record in dead.into_iter().chain(well) {
        let put = store.put(vec![record], Content::uncharged("x"));
        put.await.expect("put");
    }
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    while store.all().iter().any(|record| &*record.next_hop == "zulu") {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let waiting = store.never_claimed();
    assert!(waiting >= 500 - 2 * Lanes::HOP_SLOTS, "{waiting}");
    let tried = store.all();
    assert!(!tried.is_empty());
    for record in tried {
        assert_eq!((record.attempts, record.due_at), (1, record.received_at));
    }
    closing.cancel();
}

/// Mail for a next hop that does not work is returned to its sender when its time is up, however rarely the hop is probed.
#[tokio::test(start_paused = true)]
async fn mail_for_a_dead_next_hop_is_returned_in_time() {
    let store = Arc::new(Scripted::default());
    let mut generation = generation(Vec::new(), Budget::default());
    let hops = vec![nobody().await, maildir_hop()];
    generation.delivery = Delivery::new(hops, None).expect("next hops");
    let (pipeline, _folder) = pipeline(generation, &store);
    let mut old = stored(&pipeline, "x@dead.test", 40);
    for record in &mut old {
        record.expires_at = record.received_at;
        record.due_at = record.received_at + Duration::from_secs(3600);
        record.next_hop = "not due".into();
    }
    let ids: Vec<MessageId> = old.iter().map(|record| record.id).collect();
    for record in old {
        let put = store.put(vec![record], Content::uncharged("x"));
        put.await.expect("put");
    }
    let lanes = Lanes::new(pipeline.clone());
    let giving_up = tokio::spawn(async move { lanes.give_up().await });
    while store.all().iter().any(|record| ids.contains(&record.id)) {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let bounces = store.all();
    assert_eq!(bounces.len(), 40, "each sender is told");
    giving_up.await.expect("it ends");
}

/// A server that takes so many messages a second and puts off the others without saying why.
struct Allowing {
    a_second: f64,
    seen: Mutex<Seen>,
}

struct Seen {
    /// What it would take at this moment; five at most.
    allowed: f64,
    at: Instant,
    taken: u32,
    refused: u32,
}

impl Allowing {
    fn new(a_second: f64) -> Arc<Self> {
        let seen = Seen {
            allowed: 5.0,
            at: Instant::now(),
            taken: 0,
            refused: 0,
        };
        let seen = Mutex::new(seen);
        Arc::new(Self { a_second, seen })
    }

    fn counts(&self) -> (u32, u32) {
        let seen = self.seen.lock().expect("no panic");
        (seen.taken, seen.refused)
    }

    fn ask(&self) -> bool {
        let mut seen = self.seen.lock().expect("no panic");
        let now = Instant::now();
        let more = (now - seen.at).as_secs_f64() * self.a_second;
        seen.allowed = (seen.allowed + more).min(5.0);
        seen.at = now;
        let takes = seen.allowed >= 1.0;
        match takes {
            true => (seen.allowed, seen.taken) = (seen.allowed - 1.0, seen.taken + 1),
            false => seen.refused += 1,
        }
        takes
    }
}

impl Server for Allowing {
    fn deliver<'a>(
        &'a self,
        _: &'a Outbound,
        at: Vec<usize>,
        _: &'a Gauge,
        _: Deadline,
    ) -> BoxFuture<'a, HopResult> {
        let (outcome, signal) = match self.ask() {
            true => (Outcome::Delivered(answer(250)), HopSignal::Fine),
            false => (Outcome::Deferred(answer(451)), HopSignal::Later),
        };
        Box::pin(async move {
            Deadline::after(Duration::from_millis(20)).wait().await;
            HopResult {
                outcomes: at.into_iter().map(|at| (at, outcome.clone())).collect(),
                signal,
                offered: true,
            }
        })
    }
}

/// I12, and the rate that is found by itself: one next hop takes five messages a second and is sent twenty, another
/// everything. The first refuses at most one for ten that it takes and gets all its mail in the end, once; mail for the
/// other is never even stored.
#[tokio::test(start_paused = true)]
async fn a_throttling_next_hop_gets_what_it_takes_and_the_other_everything_at_once() {
    const EACH: u32 = 600;
    set_wall_clock(Some(Timestamp::now()));
    chance::seed(Some(5));
    let (slow, well) = (Allowing::new(5.0), Allowing::new(1e6));
    let listed = |name: &str, domain: &str, server: &Arc<Allowing>| {
        let settings = HopSettings {
            name: name.into(),
            domains: vec![domain.to_owned()],
            kind: Kind::Smtp(SmtpSettings {
                connections: 20,
                ..smtp(([127, 0, 0, 1], 1).into(), Duration::from_secs(60))
            }),
            ..maildir_hop()
        };
        (settings, server.clone() as Arc<dyn Server>)
    };
    let hops = vec![
        listed("slow", "slow.test", &slow),
        listed("well", "well.test", &well),
    ];
    let mut generation = generation(Vec::new(), Budget::default());
    generation.delivery = Delivery::scripted(hops, None).expect("next hops");
    let mut settings = crate::config::load(None)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .policy;
    settings.coverage.clear();
    generation.policy = Policy::new(settings, "test".into());
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation, &store);
    let closing = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    let mut sessions = Vec::new();
    for _ in 0..EACH {
        for to in ["x@slow.test", "x@well.test"] {
            let mut message = message(&[to]);
            message.received_at = wall_clock();
            let pipeline = pipeline.clone();
            sessions.push(tokio::spawn(async move {
                let reply = pipeline.accept(message, Mode::CutThrough).await;
                let delivered = reply.to_string().contains("delivered");
                assert!(delivered || to != "x@well.test", "{reply}");
            }));
        }
        Deadline::after(Duration::from_millis(50)).wait().await;
    }
    for session in sessions {
        session.await.expect("its reply is as it should be");
    }
    assert_eq!(well.counts(), (EACH, 0), "at once, all of it");
    while slow.counts().0 < EACH {
        Deadline::after(Duration::from_secs(1)).wait().await;
    }
    let (taken, refused) = slow.counts();
    println!("{refused} refused for {taken} taken");
    assert!(refused * 10 <= taken, "{refused} refused for {taken} taken");
    Deadline::after(Duration::from_secs(60)).wait().await;
    assert_eq!(slow.counts().0, EACH, "once");
    assert!(store.all().is_empty(), "nothing waits any more");
    closing.cancel();
    chance::seed(None);
    set_wall_clock(None);
}
