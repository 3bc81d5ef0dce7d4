//! Whose turn it is among causes, and what is let alone as long as its cause is not gone.

use super::*;
use crate::scan::Drain;

const SECOND: Duration = Duration::from_secs(1);

/// What the learner has made, in force: it holds mail in which one engine has hung.
pub(super) fn by_learner(id: &str, skeleton: usize) -> intercept::Interceptor {
    let key = format!("skeleton:{skeleton:016x}");
    let key = key.parse().expect("a trait");
    intercept::Interceptor {
        id: id.to_owned(),
        pattern: crate::message::Pattern::of([key]),
        origin: intercept::Origin::Learned {
            evidence: Vec::new(),
            engine: "moody".to_owned(),
            narrow: true,
            bad: false,
        },
        ..by_hand("x")
    }
}

impl World {
    /// Kept for an interceptor.
    pub(super) async fn keep_held(
        &mut self,
        lane: Lane,
        id: &str,
        reputation: SenderReputation,
    ) -> MessageId {
        let cause = Cause::Interceptor(id.to_owned());
        let of = (cause, Some(reputation));
        self.put(&["x@b.test"], lane, of, "hello").await
    }

    /// Begins to recover while there is no memory for it, so that all that has begun waits: how many messages have. Then there is.
    async fn begun_at_once(&self) -> usize {
        let memory = self.pipeline.memory().clone();
        let total = usize::try_from(memory.total()).expect("a size");
        let everything = memory.acquire(total).await;
        self.recover();
        let begun = |w: &Self| w.ids.len() - w.store.never_claimed();
        self.until(MINUTE, |w| begun(w) > 0).await;
        Deadline::after(5 * SECOND).wait().await;
        let begun = begun(self);
        drop(everything);
        begun
    }

    fn loaded(&self) -> usize {
        self.store.loaded.load(Ordering::SeqCst)
    }
}

/// While an interceptor holds, mail of unknown senders costs its engine nothing: only mail that something speaks for is tried. The
/// rest has its turn when the interceptor has ended.
#[tokio::test(start_paused = true)]
async fn strangers_wait_for_the_end_of_an_interceptor() {
    let mut world = World::of(&["moody"], MINUTE).await;
    let interception = &world.pipeline.interception;
    interception
        .lock()
        .add(Instant::now(), by_learner("one", 1));
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(
            world
                .keep_held(Lane::Held, "one", SenderReputation::Unknown)
                .await,
        );
    }
    let known = world
        .keep_held(Lane::Held, "one", SenderReputation::Known)
        .await;
    world.recover();
    let is_out = |w: &World, id: &MessageId| w.lane(*id) == Some(Lane::Delivery);
    world.until(MINUTE, |w| is_out(w, &known)).await;
    Deadline::after(5 * MINUTE).wait().await;
    let is_held = |id: &MessageId| world.lane(*id) == Some(Lane::Held);
    assert!(strangers.iter().all(is_held));
    assert_eq!(world.loaded(), 1, "nobody has looked at them");
    let interception = &world.pipeline.interception;
    interception.lock().remove("one").expect("it was there");
    let all_out = |w: &World| strangers.iter().all(|id| is_out(w, id));
    world.until(MINUTE, all_out).await;
    world.closing.cancel();
}

/// While an interceptor holds, one message that stays where it is speaks for the others: they are not tried one after the other,
/// and the next one waits longer each time.
#[tokio::test(start_paused = true)]
async fn one_that_stays_speaks_for_all_while_the_interceptor_holds() {
    let mut world = World::of(&["moody"], MINUTE).await;
    let interception = &world.pipeline.interception;
    interception
        .lock()
        .add(Instant::now(), by_learner("one", 1));
    // A person holds such mail as well: whatever is tried stays.
    interception.lock().add(Instant::now(), by_hand("x"));
    for _ in 0..30 {
        world
            .keep_held(Lane::Rescan, "one", SenderReputation::Known)
            .await;
    }
    world.recover();
    world.until(MINUTE, |w| w.loaded() > 0).await;
    Deadline::after(MINUTE).wait().await;
    let tried = world.loaded();
    assert!((2..10).contains(&tried), "{tried}");
    world.closing.cancel();
}

/// An engine that goes away in the middle of a sweep ends it: what has not been begun is not touched any more, and goes on when
/// the engine is back.
#[tokio::test(start_paused = true)]
async fn an_engine_that_goes_away_again_ends_its_sweep() {
    let mut world = World::of(&["moody"], 5 * SECOND).await;
    let hanging = 30;
    for n in 0..hanging {
        let content = format!("hang me {n}");
        world.keep(Lane::Held, "moody", &content).await;
    }
    for n in 0..10 {
        let content = format!("hello {n}");
        world.keep(Lane::Held, "moody", &content).await;
    }
    world.recover();
    world.until(MINUTE, |w| w.loaded() > 0).await;
    let begun = world.loaded();
    assert!(begun < hanging, "{begun}");
    let drain = |away| {
        let generation = world.pipeline.generation();
        let engine = &generation.scanner.engines()[0];
        match away {
            true => engine.drain(None, &Drain::plain()).expect("drained"),
            false => drop(engine.resume(None)),
        }
    };
    drain(true);
    Deadline::after(5 * MINUTE).wait().await;
    assert_eq!(world.loaded(), begun);
    drain(false);
    world
        .until(20 * MINUTE, |w| w.left(Lane::Delivery) == 10)
        .await;
    world.closing.cancel();
}

/// However many causes are gone, four of them are recovered at once at most: each has messages in memory.
#[tokio::test(start_paused = true)]
async fn four_causes_at_once() {
    let mut world = World::of(&["moody"], MINUTE).await;
    for n in 0..6 {
        let removed = format!("removed-{n}");
        world.keep(Lane::Held, &removed, "hello").await;
    }
    assert_eq!(world.begun_at_once().await, 4);
    world.until(MINUTE, |w| w.left(Lane::Delivery) == 6).await;
    world.closing.cancel();
}

/// Mail that interceptors hold may well be bad: while they do, two of them are tried at once at most.
#[tokio::test(start_paused = true)]
async fn two_interceptors_that_hold_at_once() {
    let mut world = World::of(&["moody"], MINUTE).await;
    for (n, id) in ["one", "two", "three"].into_iter().enumerate() {
        let made = by_learner(id, n);
        let interception = &world.pipeline.interception;
        interception.lock().add(Instant::now(), made);
        world
            .keep_held(Lane::Held, id, SenderReputation::Known)
            .await;
    }
    assert_eq!(world.begun_at_once().await, 2);
    world.until(MINUTE, |w| w.left(Lane::Delivery) == 3).await;
    world.closing.cancel();
}

/// No cause waits for long for the others, whatever hangs in them: that is left to itself, and it is the next one's turn.
#[tokio::test(start_paused = true)]
async fn causes_take_turns() {
    let mut world = World::of(&["moody"], 10 * MINUTE).await;
    let mut hanging = Vec::new();
    for n in 0..4 {
        let removed = format!("removed-{n}");
        // None is a copy of another: copies would not be scanned at once.
        let content = format!("hang me {}", "x".repeat(n + 1));
        hanging.push(world.keep(Lane::Held, &removed, &content).await);
    }
    world.keep(Lane::Held, "removed-4", "hello").await;
    world.recover();
    world.until(MINUTE, |w| w.loaded() > 4).await;
    let is_scanned = |id: &MessageId| world.lane(*id) == Some(Lane::Scan);
    assert!(hanging.iter().all(is_scanned), "they have not ended");
    world.closing.cancel();
}

/// Law 5: what an engine has cost that could not be reached for a moment, too short for its breaker, is scanned again as soon as it
/// answers, and not when each message would be tried next.
#[tokio::test(start_paused = true)]
async fn a_connection_that_works_again_is_a_new_chance() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let mut settings = engine("one", MINUTE, moody).await;
    settings.kind = crate::scan::engine::Kind::Clamd {
        addresses: vec![crate::scan::engine::Address::Socket(address)],
        connect_timeout: SECOND,
    };
    let world = World::of_settings(vec![settings]).await;
    world.recover();
    Deadline::after(5 * SECOND).wait().await;
    let accept = async || {
        let accepted = world.pipeline.accept(message(&["x@b.test"]), Mode::Queue);
        assert_eq!(accepted.await.code(), 250);
    };
    accept().await;
    let waits = |w: &World| w.store.all().iter().any(|record| record.cause.is_some());
    world.until(SECOND, waits).await;
    tokio::spawn(answers(
        TcpListener::bind(address).await.expect("its port"),
        moody,
    ));
    accept().await;
    world.until(2 * SECOND, |w| w.left(Lane::Scan) == 0).await;
    world.closing.cancel();
}

/// Law 4: what was parked is most likely innocent, and does not wait behind what timed out before and hangs again.
#[tokio::test(start_paused = true)]
async fn parked_messages_do_not_wait_for_what_hangs_again() {
    let mut world = World::of(&["moody"], 5 * SECOND).await;
    for n in 0..3 {
        let id = world
            .keep(Lane::Scan, "moody", &format!("hang me {n}"))
            .await;
        world.store.edit(id, |record| record.timeouts = 1);
    }
    for n in 0..5 {
        let id = world.keep(Lane::Scan, "moody", &format!("hello {n}")).await;
        world.store.edit(id, |record| {
            record.reports[0].answer = Said::none(Reason::Parked, "");
        });
    }
    world.recover();
    world
        .until(4 * SECOND, |w| w.left(Lane::Delivery) == 5)
        .await;
    world.closing.cancel();
}
