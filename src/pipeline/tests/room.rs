//! The store without room: what needs none goes on, and what has its time behind it goes.

use tokio_util::sync::CancellationToken;

use super::scripted::{Fate, Operation, Witness};
use super::*;
use crate::store::{Audit, Filter};

/// A path whose quarantine is full.
fn full() -> (Arc<Pipeline>, Arc<Scripted>, tempfile::TempDir) {
    let store = Arc::new(Scripted::default());
    let mut generation = generation(Vec::new(), Budget::default());
    generation.quarantine = Capacity::Octets(1);
    let (pipeline, folder) = pipeline(generation, &store);
    (pipeline, store, folder)
}

async fn held(store: &Scripted) -> usize {
    let [_, _, held, _] = store.stats().await.expect("stats");
    usize::try_from(held.messages).expect("few")
}

/// Mail that would be held and finds no room stays with its sender, as long as its sender has all of it: what a next hop
/// has taken, or what was answered 250, is held whatever it takes.
#[tokio::test]
async fn what_finds_no_room_in_quarantine_stays_with_its_sender() {
    use Disposition::{Deliver, Quarantine};
    let (pipeline, store, _folder) = full();
    let generation = pipeline.generation();
    let taken = || Outcome::Delivered(answer(250));
    let end = async |custody, groups| {
        let message = message(&["x@b.test", "y@b.test"]);
        let reply = pipeline.conclude(&generation, &message, custody, passed(groups));
        reply.await.to_string()
    };
    let both_held = || vec![(Quarantine, vec![0, 1], GroupOutcome::Held)];
    let reply = end(Custody::Session, both_held()).await;
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert_eq!(held(&store).await, 0);
    let delivered = vec![(
        Deliver,
        vec![0, 1],
        GroupOutcome::Delivered(vec![taken(), taken()]),
    )];
    let reply = end(Custody::Session, delivered).await;
    assert!(reply.starts_with("250"), "{reply}");
    let one_taken = vec![
        (Deliver, vec![0], GroupOutcome::Delivered(vec![taken()])),
        (Quarantine, vec![1], GroupOutcome::Held),
    ];
    let reply = end(Custody::Session, one_taken).await;
    assert!(reply.starts_with("250"), "{reply}");
    assert_eq!(held(&store).await, 1, "the next hop has it for the other");
    let record = settle::unfinished(&generation, &message(&["x@b.test", "y@b.test"]), None);
    let put = store.put(vec![record.clone()], Content::uncharged("x"));
    put.await.expect("put");
    end(Custody::Stored(Box::new(record)), both_held()).await;
    assert_eq!(held(&store).await, 2, "it was answered 250");
}

/// A store without room refuses what has to be stored: mail that is stored first, and mail for several recipients, of whom
/// one may have to be kept. A store that does not work refuses everything.
#[tokio::test]
async fn mail_that_needs_no_storing_needs_no_room() {
    let (pipeline, store, _folder) = full();
    let room = |mode, recipients| pipeline.has_room(mode, recipients);
    assert!(room(Mode::CutThrough, 9) && room(Mode::Queue, 9));
    store.full.store(true, Ordering::Relaxed);
    assert!(room(Mode::CutThrough, 0));
    assert!(!room(Mode::CutThrough, 1));
    assert!(!room(Mode::Queue, 0));
    store.full.store(false, Ordering::Relaxed);
    store.fails.store(true, Ordering::Relaxed);
    assert!(!room(Mode::CutThrough, 0) && !room(Mode::Queue, 0));
}

/// Whatever has its time behind it goes at the first look, however much it is, each with its audit entry: quarantine, what
/// was to be scanned again, and mail for a next hop that takes nothing, which is returned.
#[tokio::test(start_paused = true)]
async fn everything_that_has_expired_goes_at_once() {
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let past = Timestamp::now() - Duration::from_secs(1);
    let (soon, long) = (30, 9999);
    let [soon, long] = [soon, long].map(|s| Timestamp::now() + Duration::from_secs(s));
    let put = async |lane, expires_at| {
        let mut record = settle::unfinished(&pipeline.generation(), &message(&["x@b.test"]), None);
        record.lane = lane;
        record.next_hop = "hop".into();
        record.due_at = soon;
        record.expires_at = expires_at;
        let id = record.id;
        let content = Content::uncharged("Subject: x\r\n\r\nx\r\n");
        store.put(vec![record], content).await.expect("put");
        id
    };
    let mut gone = Vec::new();
    for _ in 0..600 {
        gone.push(put(Lane::Held, past).await);
        gone.push(put(Lane::Rescan, past).await);
    }
    let returned = put(Lane::Delivery, past).await;
    let stays = [put(Lane::Held, long).await, put(Lane::Delivery, long).await];
    let closing = tokio_util::sync::CancellationToken::new();
    let began = Instant::now();
    tokio::spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    let all = || Filter {
        limit: usize::MAX,
        ..Filter::default()
    };
    let left = loop {
        Deadline::after(Duration::from_secs(1)).wait().await;
        let left = store.search(all()).await.expect("search");
        let left: Vec<MessageId> = left.iter().map(|record| record.id).collect();
        if !left.contains(&returned) && !gone.iter().any(|id| left.contains(id)) {
            break left;
        }
        assert!(began.elapsed() < Duration::from_secs(50), "{}", left.len());
    };
    closing.cancel();
    assert!(stays.iter().all(|id| left.contains(id)), "their time comes");
    for id in gone.into_iter().step_by(2) {
        let acts = store.audited(Some(id.into()), 9).await.expect("audited");
        assert_eq!(acts.len(), 1);
        assert_eq!(acts[0].act, "expire");
    }
}

/// A store that does not answer what it is asked.
struct Dead;

impl Witness for Dead {
    fn fate(&self, _: Option<MessageId>, what: Operation) -> Fate {
        let day = Duration::from_secs(86_400);
        Fate {
            before: if what == Operation::Read {
                day
            } else {
                Duration::ZERO
            },
            ..Fate::default()
        }
    }

    fn changed(&self, _: &[Record], _: &[(Record, Content)], _: Option<&Audit>) {}
}

/// A disk that is gone, and leaves questions without an answer for ever, does not keep the watch from telling of trouble nor
/// the relay from ending.
#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_holds_nobody_up() {
    let store = Arc::new(Scripted::watched(Arc::new(Dead)));
    let (pipeline, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let began = Instant::now();
    pipeline.look_at_store(&mut Default::default()).await;
    assert!(began.elapsed() < Duration::from_secs(60));
    let closing = CancellationToken::new();
    let watch = tokio::spawn(pipeline.watch_store(closing.clone()));
    tokio::task::yield_now().await;
    closing.cancel();
    let began = Instant::now();
    watch.await.expect("it ends");
    assert_eq!(began.elapsed(), Duration::ZERO);
}
