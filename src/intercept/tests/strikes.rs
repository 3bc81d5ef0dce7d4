//! Strikes: two messages that fail in the same way put on hold what they share and good mail does not have.

use super::*;

/// Two timeouts of one attachment put it on hold: the first interceptor is in force 6 s after the flood began.
#[tokio::test(start_paused = true)]
async fn two_timeouts_convict_an_attachment() {
    let mut world = World::new();
    let same = fingerprint(4711, &[(Aspect::Skeleton, 3)]);
    world.minute(|_| same.clone());
    let hold = world.learner.list().find(|i| i.action == Action::Hold);
    let pattern = &hold.expect("it is held").pattern;
    assert!(pattern.traits.contains(&same.exact[0]), "{pattern}");
    let held = world.held[&true];
    assert!(
        held >= 480 - 6 * 8,
        "{held} of 480 held: all after six seconds"
    );
    assert_eq!(world.held.get(&false), None);
}

/// Retries of one message count as one message. An engine that breaks on everything is itself at fault.
#[tokio::test(start_paused = true)]
async fn strikes_need_two_messages_and_an_engine_that_is_fine_with_others() {
    let mut world = World::new();
    world.pass(Duration::from_secs(60));
    let same = fingerprint(4711, &[]);
    let once = MessageId::new();
    let good = usual(&mut world.rng);
    for _ in 0..5 {
        world.good(&good);
        world.evidence(once, &same, world.now, Observed::Broken);
    }
    assert!(!world.holds(), "one message");
    world.pass(Duration::from_secs(60));
    let other = fingerprint(4712, &[]);
    for _ in 0..2 {
        for _ in 0..3 {
            let unrelated = usual(&mut world.rng);
            world.evidence(MessageId::new(), &unrelated, world.now, Observed::Broken);
        }
        world.evidence(MessageId::new(), &other, world.now, Observed::Broken);
    }
    assert!(!world.holds(), "it breaks on everything");
    world.good(&good);
    world.evidence(MessageId::new(), &other, world.now, Observed::Broken);
    assert!(world.holds());
}

/// An attachment of usual mail neither shields a rarer one beside it nor is held for it. The same is true of an attachment
/// of some good mail.
#[tokio::test(start_paused = true)]
async fn of_all_that_failed_together_only_what_good_mail_has_least_is_held() {
    let (common, rare, poison) = (1, 2, 4711);
    let mut world = World::new();
    world.good(&attached(&[rare]));
    for _ in 0..50 {
        world.good(&attached(&[common]));
    }
    for _ in 0..2000 {
        let good = usual(&mut world.rng);
        world.good(&good);
    }
    // What was scanned well just now is not remembered when an episode begins: only the baseline knows it.
    world.pass(Duration::from_secs(60));
    let bad = attached(&[common, rare, poison]);
    let other = attached(&[3]);
    for _ in 0..2 {
        world.evidence(MessageId::new(), &other, world.now, FAST);
        world.evidence(MessageId::new(), &bad, world.now, Observed::Broken);
    }
    let held: Vec<Trait> = world
        .learner
        .list()
        .flat_map(|i| i.pattern.traits.clone())
        .collect();
    assert_eq!(held, [bad.exact[2]], "the poison, and nothing else");
    // Copies that were in the engine already fail as well: that is explained.
    world.evidence(MessageId::new(), &bad, world.now, Observed::Broken);
    assert_eq!(world.learner.list().count(), 1);
}

/// However many different messages break an engine, the next message that breaks it twice is held.
#[tokio::test(start_paused = true)]
async fn strikes_cannot_be_switched_off_by_striking_often() {
    let mut world = World::new();
    let other = fingerprint(3, &[]);
    for n in 0..10_100 {
        let once = fingerprint(10_000 + n, &[]);
        world.evidence(MessageId::new(), &once, world.now, Observed::Broken);
    }
    world.pass(Duration::from_secs(1));
    world.evidence(MessageId::new(), &other, world.now, FAST);
    let same = fingerprint(4711, &[]);
    (0..2).for_each(|_| world.evidence(MessageId::new(), &same, world.now, Observed::Broken));
    assert!(world.holds());
}
