//! Bypass: slow mail that is clean in the end is kept from the engine, until the engine finds something in it.

use super::*;

/// If usual mail of one shape becomes slow all at once the engine has changed: it is bypassed for that shape.
#[tokio::test(start_paused = true)]
async fn a_usual_class_that_becomes_slow_is_bypassed_not_held() {
    let world = slow_class();
    let bypass = world
        .made
        .iter()
        .find(|(_, i)| matches!(i.action, Action::Bypass { .. }));
    let (at, _) = bypass.expect("the class is bypassed");
    assert!(*at <= Duration::from_secs(20), "{at:?}");
    assert!(!world.holds());
}

/// After a finding in such a class the engine gets messages like it again, however slow. The class is too usual to be held.
#[tokio::test(start_paused = true)]
async fn a_class_in_which_something_was_found_is_neither_bypassed_nor_held() {
    let mut world = slow_class();
    assert!(world.spares());
    let bad = large(&mut world.rng);
    world.found(&bad, FOUND_LATE);
    assert!(!world.spares() && !world.holds());
    world.slow.clear();
    world.slow_class_goes_on();
    assert!(!world.matched(&bad, |action| matches!(action, Action::Bypass { .. })));
    assert!(!world.holds());
}

/// If held messages are clean in the end, the interceptor bypasses the engine instead. Another late scan does not change
/// that. After a finding the messages stay held.
#[tokio::test(start_paused = true)]
async fn what_is_clean_in_the_end_is_not_held_but_kept_from_the_engine() {
    for found in [false, true] {
        let mut world = World::new();
        let (same, good) = (fingerprint(4711, &[]), fingerprint(1, &[]));
        world.pass(Duration::from_millis(100));
        world.evidence(MessageId::new(), &good, world.now, FAST);
        (0..2).for_each(|_| world.evidence(MessageId::new(), &same, world.now, Observed::TimedOut));
        if found {
            world.found(&same, FOUND_LATE);
        }
        let mut see = |seen| world.evidence(MessageId::new(), &same, world.now, seen);
        (0..5).for_each(|_| see(LATE));
        // Copies that are still sent now and then, to find out, are late again.
        (0..3).for_each(|_| see(Observed::TimedOut));
        assert_eq!(world.holds(), found);
        assert_eq!(world.spares(), !found);
        let (ended, holding) = world.learner.recoverable();
        assert_eq!(
            (ended.len(), holding.len()),
            if found { (0, 1) } else { (1, 0) }
        );
    }
}

/// An engine is bypassed because copies were clean, but late. A late finding in the next copy ends the bypass, because other
/// engines do not know it. Such messages are held, and more clean copies do not free them.
#[tokio::test(start_paused = true)]
async fn what_is_bad_after_all_is_not_kept_from_the_engine_but_held() {
    let mut world = World::new();
    let same = fingerprint(4711, &[]);
    world.spare(&same);
    world.found(&same, FOUND_LATE);
    assert!(world.holds(), "it is held");
    assert!(!world.spares());
    (0..5).for_each(|_| world.evidence(MessageId::new(), &same, world.now, LATE));
    assert!(world.holds() && !world.spares(), "whatever is clean");
}

/// A finding in time during a bypass shows that the engine can scan such messages. It is not bypassed for them again.
#[tokio::test(start_paused = true)]
async fn what_is_found_in_time_is_not_kept_from_the_engine_any_more() {
    for seen in [FOUND_FAST, Observed::Ended { found: true }] {
        let mut world = World::new();
        let same = fingerprint(4711, &[]);
        world.spare(&same);
        world.found(&same, seen);
        assert!(!world.spares() && !world.holds(), "{seen:?}");
        let mut see = |seen| world.evidence(MessageId::new(), &same, world.now, seen);
        see(Observed::TimedOut);
        (0..5).for_each(|_| see(LATE));
        // What was answered at once is not held for what took long.
        assert_eq!((world.spares(), world.holds()), (false, seen != FOUND_FAST));
    }
}
