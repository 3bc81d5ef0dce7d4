//! Interceptors and the store: what a restart must not forget.

use super::*;
use crate::deadline::{set_wall_clock, wall_clock};
use crate::intercept::{Action, Interceptor, Origin as Maker};
use crate::message::Pattern;
use crate::pipeline::interceptors::Exchange;
use crate::store::{Cause, Change, Store};

const ID: &str = "01KAJ0000000000000000LEARN";

fn learned() -> Interceptor {
    let key = "skeleton:00c0ffee00c0ffee".parse().expect("a trait");
    Interceptor {
        id: ID.to_owned(),
        pattern: Pattern::of([key]),
        action: Action::Hold,
        origin: Maker::Learned {
            evidence: Vec::new(),
            engine: "clamd".to_owned(),
            narrow: true,
            bad: false,
        },
        made: wall_clock(),
        expires: Some(wall_clock() + Duration::from_secs(600)),
        dry_run: false,
        hits: 0,
        samples: Vec::new(),
    }
}

async fn stored(store: &Scripted) -> usize {
    let read = store.interceptors(None).await.expect("interceptors");
    read.map_or(0, |read| read.all.len())
}

/// What was learned, has held mail and has ended is written down as ended for as long as that mail waits: the next process
/// gives it back as this one would have, and is not told that a person has made it.
#[tokio::test(start_paused = true)]
async fn what_has_ended_gives_back_what_it_held_after_a_restart() {
    ended_before_a_restart(false).await;
}

/// Nor does it matter that a person has ended it.
#[tokio::test(start_paused = true)]
async fn what_a_person_has_ended_gives_back_what_it_held_after_a_restart() {
    ended_before_a_restart(true).await;
}

/// Law 8: what was learned before a restart is in force when the first mail is taken, or taken up again.
#[tokio::test(start_paused = true)]
async fn what_was_learned_is_in_force_before_the_first_mail() {
    set_wall_clock(Some(wall_clock()));
    let store = Arc::new(Scripted::default());
    let (before, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    before.interception.lock().add(Instant::now(), learned());
    before.exchange_interceptors(&mut Exchange::default()).await;
    let (after, _other) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let _watch = Watch::begin(after.clone()).await;
    let in_force = after
        .interception
        .lock()
        .list()
        .map(|i| i.id.clone())
        .next();
    assert_eq!(in_force.as_deref(), Some(ID));
    set_wall_clock(None);
}

async fn ended_before_a_restart(by_a_person: bool) {
    set_wall_clock(Some(wall_clock()));
    let store = Arc::new(Scripted::default());
    let (before, _folder) = pipeline(generation(Vec::new(), Budget::default()), &store);
    before.interception.lock().add(Instant::now(), learned());
    let mut exchange = Exchange::default();
    before.exchange_interceptors(&mut exchange).await;
    let message = message(&["x@b.test"]);
    let mut record = settle::unfinished(&before.generation(), &message, None);
    let id = record.id;
    record.lane = Lane::Held;
    record.cause = Some(Cause::Interceptor(ID.to_owned()));
    let put = store.put(vec![record], message.content);
    put.await.expect("put");
    // It ends just when its own change is read back: that does not bring it back.
    match by_a_person {
        true => drop(store.drop_interceptor(ID.to_owned(), None).await),
        false => drop(
            before
                .interception
                .lock()
                .remove(ID)
                .expect("it is in force"),
        ),
    }
    for _ in 0..2 {
        before.exchange_interceptors(&mut exchange).await;
        assert_eq!(before.interception.lock().list().count(), 0);
    }
    let (after, _other) = pipeline(generation(Vec::new(), Budget::default()), &store);
    let mut exchange = Exchange::default();
    for _ in 0..30 {
        after.exchange_interceptors(&mut exchange).await;
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(after.interception.lock().list().count(), 0);
        assert_eq!(after.interception.recoverable().0, [ID]);
    }
    assert_eq!(stored(&store).await, 1, "mail waits for it");
    let gone = store.change(id, Change::Remove, None);
    gone.await.expect("it is there");
    after.exchange_interceptors(&mut exchange).await;
    assert_eq!(stored(&store).await, 0, "nothing does any more");
    set_wall_clock(None);
}
