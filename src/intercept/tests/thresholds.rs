//! Tests: each key of `[intercept]` changes what the reference says it changes.

use super::*;

fn tuned(change: impl FnOnce(&mut Settings)) -> World {
    let mut world = World::new();
    let mut settings = Settings::default();
    change(&mut settings);
    world.learner.configure(settings);
    world.pass(Duration::from_secs(60));
    world.began = world.now;
    world
}

/// Messages with one attachment that break the engine, until an interceptor is made.
fn strikes_to_block(world: &mut World) -> Option<usize> {
    let same = fingerprint(4711, &[]);
    (1..=30).find(|_| {
        let good = usual(&mut world.rng);
        world.good(&good);
        world.evidence(MessageId::new(), &same, world.now, Observed::Broken);
        world.learner.list().count() > 0
    })
}

/// `strikes`: as many messages must fail before such mail is held.
#[tokio::test(start_paused = true)]
async fn as_many_strikes_block_as_the_setting_says() {
    let needed = [1, 2, 3, 8].map(|strikes| {
        let mut world = tuned(|settings| settings.strikes = strikes);
        let needed = strikes_to_block(&mut world);
        assert!(world.holds());
        needed
    });
    assert_eq!(needed, [Some(1), Some(2), Some(3), Some(8)]);
}

/// `act`: with `park`, no interceptor of the learner holds mail. The mail waits from the same strike on, and further failures
/// make no further interceptors.
#[tokio::test(start_paused = true)]
async fn a_learner_that_may_only_park_holds_nothing() {
    let same = fingerprint(4711, &[(Aspect::Skeleton, 3)]);
    for (act, holds) in [(Act::Hold, true), (Act::Park, false)] {
        let mut world = tuned(|settings| settings.act = act);
        assert_eq!(strikes_to_block(&mut world), Some(2));
        assert_eq!(
            (world.holds(), world.is_parked(&fingerprint(4711, &[]))),
            (holds, !holds)
        );
        for _ in 0..5 {
            world.evidence(MessageId::new(), &same, world.now, Observed::TimedOut);
        }
        assert_eq!(world.learner.list().count(), 1);
        assert_eq!((world.holds(), world.is_parked(&same)), (holds, !holds));
        // What a flood has in common is parked, and held after timeouts only if that is allowed.
        let mut world = tuned(|settings| settings.act = act);
        world.minute(|_| same.clone());
        assert_eq!(world.holds(), holds);
        assert!(!world.made.is_empty());
        // Something is found in mail that the engine was spared.
        let mut world = tuned(|settings| settings.act = act);
        world.spare(&same);
        world.evidence(MessageId::new(), &same, world.now, FOUND_LATE);
        assert!(!world.spares());
        assert_eq!((world.holds(), world.is_parked(&same)), (holds, !holds));
    }
}

/// Of messages with a new skeleton, in a burst, these are slow and the others are fast: whether they are parked.
fn parks(world: &mut World, slow: usize, fast: usize) -> bool {
    let mut of_shape = || fingerprint(world.rng.random(), &[(Aspect::Skeleton, 99)]);
    let messages: Vec<_> = (0..slow + fast).map(|_| of_shape()).collect();
    for _ in 0..20 {
        let good = usual(&mut world.rng);
        world.good(&good);
    }
    for (nth, message) in messages.iter().enumerate() {
        world.arrives(message, true);
        let what = if nth < slow { Observed::Slow } else { FAST };
        world.evidence(MessageId::new(), message, world.now, what);
    }
    (0..40).for_each(|_| {
        let more = fingerprint(world.rng.random(), &[(Aspect::Skeleton, 99)]);
        world.arrives(&more, true);
    });
    world.pass(Duration::from_millis(100));
    world.is_parked(&messages[0])
}

/// `min_precision`: a trait is blamed if that share of the mail with it is slow.
#[tokio::test(start_paused = true)]
async fn a_higher_precision_blames_less() {
    for (precision, of_twenty) in [(0.5, 10), (0.75, 15), (0.9, 18), (1.0, 20)] {
        for slow in [9, 10, 14, 15, 17, 18, 19, 20] {
            let mut world = tuned(|settings| settings.min_precision = precision);
            assert_eq!(
                parks(&mut world, slow, 20 - slow),
                slow >= of_twenty,
                "{precision} {slow}"
            );
        }
    }
}

/// `min_slow_scans`: so many slow scans with a new trait stop a flood.
#[tokio::test(start_paused = true)]
async fn as_many_slow_scans_park_as_the_setting_says() {
    let needed = [2, 4, 9].map(|least| {
        let slow = |slow: &usize| {
            let mut world = tuned(|settings| settings.min_slow_scans = least);
            parks(&mut world, *slow, 0)
        };
        (1..=20).find(slow)
    });
    assert_eq!(needed, [Some(2), Some(4), Some(9)]);
}

/// `expiry`: an interceptor lasts as long.
#[tokio::test(start_paused = true)]
async fn an_interceptor_lasts_as_long_as_the_setting_says() {
    for minutes in [1, 10, 60] {
        let mut world = tuned(|settings| settings.expiry = Duration::from_secs(60 * minutes));
        strikes_to_block(&mut world);
        world.pass(Duration::from_secs(60 * minutes - 1));
        assert!(world.holds(), "{minutes}");
        world.pass(Duration::from_secs(2));
        assert!(!world.holds(), "{minutes}");
    }
}
