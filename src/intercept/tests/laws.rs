//! Laws that no flood shows by itself: each of these was broken once without another test noticing.

use super::*;

/// What all mail of a flood has, and one message in a hundred of good mail.
const SHAPE: [(Aspect, u64); 6] = [
    (Aspect::Type, 50),
    (Aspect::Size, 50),
    (Aspect::Skeleton, 50),
    (Aspect::SenderDomain, 50),
    (Aspect::Client, 50),
    (Aspect::Subject, 50),
];

/// A hundredth of the mail has that shape.
fn with_usual_shape() -> World {
    let mut world = World::new();
    for _ in 0..20 {
        let good = fingerprint(world.rng.random(), &SHAPE);
        world.good(&good);
    }
    // What was scanned just now is not remembered when an episode begins.
    world.pass(Duration::from_secs(60));
    world.began = world.now;
    world
}

fn strike(world: &mut World, f: &Arc<Fingerprint>) {
    world.evidence(MessageId::new(), f, world.now, Seen::Broken);
}

fn seen_well(world: &mut World) {
    let other = fingerprint(1, &[]);
    world.evidence(MessageId::new(), &other, world.now, Seen::Fast);
}

/// In shadow mode an interceptor counts, and holds neither fresh mail nor what was deferred.
#[tokio::test(start_paused = true)]
async fn shadow_mode_holds_nothing() {
    let mut world = World::bare(Settings {
        mode: Mode::Shadow,
        ..Settings::default()
    });
    let same = fingerprint(4711, &[]);
    seen_well(&mut world);
    (0..2).for_each(|_| strike(&mut world, &same));
    assert!(world.holds(), "it is made");
    assert!(!world.arrives(&same, true), "fresh mail");
    let envelope = envelope();
    let facts = Facts {
        envelope: &envelope,
        subject: "",
        fingerprint: &same,
    };
    assert_eq!(world.learner.holds(&facts, Mercy::None), None, "deferred");
    let hits: Vec<u64> = world.learner.list().map(|i| i.hits).collect();
    assert_eq!(hits, [1], "it counts");
}

/// With the learner off nothing is made, whatever fails, and what a person has made holds nevertheless.
#[tokio::test(start_paused = true)]
async fn an_off_learner_makes_nothing() {
    let mut world = World::bare(Settings {
        mode: Mode::Off,
        ..Settings::default()
    });
    let same = fingerprint(4711, &[]);
    seen_well(&mut world);
    (0..3).for_each(|_| strike(&mut world, &same));
    assert_eq!(world.learner.list().count(), 0);
    world
        .learner
        .add(world.now, by_hand(Pattern::of([same.exact[0]])));
    assert!(world.arrives(&same, true));
}

/// However many different things fail, the learner holds mail for twenty of them at most.
#[tokio::test(start_paused = true)]
async fn interceptors_of_the_learner_are_bounded() {
    let mut world = World::bare(Settings::default());
    for attachment in 0..30 {
        seen_well(&mut world);
        let bad = fingerprint(1000 + attachment, &[]);
        (0..2).for_each(|_| strike(&mut world, &bad));
    }
    assert_eq!(world.learner.list().count(), 20);
}

/// What is scanned again is no evidence of what mail is like now: a sweep through a backlog of slow mail is no flood, and
/// quick scans in it do not speak for what comes in.
#[tokio::test(start_paused = true)]
async fn scans_of_deferred_mail_are_no_evidence_of_an_episode() {
    let mut world = World::new();
    let again = |world: &mut World, f: &Arc<Fingerprint>, seen| {
        let evidence = Evidence {
            message: MessageId::new(),
            fingerprint: f.clone(),
            fresh: false,
            started: world.now,
            seen,
            found: false,
        };
        world
            .learner
            .observe(world.now, &world.engine.clone(), &evidence);
    };
    for n in 0..12 {
        let old = fingerprint(1000 + n, &[(Aspect::Skeleton, 99)]);
        world.arrives(&old, true);
        again(&mut world, &old, Seen::Slow);
        for _ in 0..3 {
            let good = usual(&mut world.rng);
            world.good(&good);
        }
        world.pass(Duration::from_millis(100));
    }
    assert!(world.made.is_empty(), "{:?}", world.made);
    let bad = fingerprint(4711, &[]);
    again(&mut world, &bad, Seen::Fast);
    (0..2).for_each(|_| strike(&mut world, &bad));
    assert!(world.holds(), "what was quick then is held now");
}

/// What all slow mail has in common says nothing while all mail is slow, however new it is.
#[tokio::test(start_paused = true)]
async fn new_mail_is_not_parked_while_all_other_mail_is_slow_too() {
    let mut world = World::new();
    world.pass(Duration::from_secs(60));
    for _ in 0..20 {
        let new = fingerprint(world.rng.random(), &[(Aspect::Skeleton, 99)]);
        for mail in [new, usual(&mut world.rng)] {
            world.arrives(&mail, false);
            world.evidence(MessageId::new(), &mail, world.now, Seen::Slow);
        }
        world.pass(Duration::from_millis(100));
    }
    assert!(world.made.is_empty(), "{:?}", world.made);
}

/// A burst of what good mail has now and then is not parked for being slow: only once it does not end in time.
#[tokio::test(start_paused = true)]
async fn a_burst_of_usual_mail_is_parked_after_a_timeout_and_not_before() {
    let mut world = with_usual_shape();
    world.minute(|rng| fingerprint(rng.random(), &SHAPE));
    let (first, interceptor) = world.made.first().expect("it is parked");
    assert!(*first >= Duration::from_secs(5), "{first:?}");
    assert!(matches!(interceptor.action, Action::Park { .. }));
}

/// An engine is spared a usual class only when that has been slow for ten seconds: what passes by itself needs no remedy.
#[tokio::test(start_paused = true)]
async fn a_class_is_not_bypassed_at_once() {
    let world = slow_class();
    let spares = |i: &Interceptor| matches!(i.action, Action::Bypass { .. });
    let first = world.made.iter().find(|(_, i)| spares(i));
    let (at, _) = first.expect("it is bypassed");
    assert!(*at >= Duration::from_secs(10), "{at:?}");
}

/// An engine that nobody covers is spared nothing: its mail could not be judged.
#[tokio::test(start_paused = true)]
async fn an_engine_that_nobody_covers_is_not_bypassed() {
    let mut world = World::new();
    world.covered = false;
    for _ in 0..100 {
        let good = large(&mut world.rng);
        world.good(&good);
    }
    world.pass(Duration::from_secs(20));
    world.slow_class_goes_on();
    assert!(!world.spares());
}

/// While hardly any good mail was seen everything looks new: only content itself is blamed.
#[tokio::test(start_paused = true)]
async fn without_a_baseline_only_content_is_blamed() {
    let mut world = World::bare(Settings::default());
    for n in 0..50 {
        seen_well(&mut world);
        let bad = fingerprint(1000 + n, &[(Aspect::Skeleton, 99)]);
        world.bad(&bad);
        world.pass(Duration::from_millis(100));
    }
    assert!(world.made.is_empty(), "{:?}", world.made);
}

/// Two failures of the same content in an hour are a pattern; two in a day are not.
#[tokio::test(start_paused = true)]
async fn strikes_age() {
    let mut world = World::bare(Settings::default());
    let same = fingerprint(4711, &[]);
    strike(&mut world, &same);
    world.pass(Duration::from_secs(3601));
    seen_well(&mut world);
    strike(&mut world, &same);
    assert!(!world.holds(), "an hour apart");
    strike(&mut world, &same);
    assert!(world.holds());
}

/// A sender that has sent nothing for two weeks is a stranger again.
#[tokio::test(start_paused = true)]
async fn senders_are_not_known_for_ever() {
    let mut world = World::bare(Settings::default());
    let from = |sender| fingerprint(1, &[(Aspect::SenderDomain, sender), (Aspect::Client, 1)]);
    (0..2).for_each(|_| world.learner.judged_clean(world.now, &from(1)));
    assert_eq!(world.learner.standing(&from(1)), Standing::Known);
    for _ in 0..2 {
        world.now += Duration::from_secs(8 * 86_400);
        world.learner.judged_clean(world.now, &from(2));
    }
    assert_eq!(world.learner.standing(&from(1)), Standing::Unknown);
    assert_eq!(world.learner.standing(&from(2)), Standing::Known);
}

/// A scan that began before the interceptor was made refutes nothing: the engine may have changed since.
#[tokio::test(start_paused = true)]
async fn scans_that_began_before_do_not_refute() {
    let mut world = World::bare(Settings::default());
    let same = fingerprint(4711, &[]);
    let before = world.now;
    world.pass(Duration::from_secs(1));
    seen_well(&mut world);
    (0..2).for_each(|_| strike(&mut world, &same));
    let mut see = |started| world.evidence(MessageId::new(), &same, started, Seen::InTime);
    (0..3).for_each(|_| see(before));
    assert!(world.holds(), "they began before it");
    let now = world.now;
    (0..2).for_each(|_| world.evidence(MessageId::new(), &same, now, Seen::InTime));
    assert!(!world.holds(), "they are refuted since");
}

/// What is found at once in a class that much good mail is of does not make the class bad: if it is clean, however late, the
/// engine is spared it.
#[tokio::test(start_paused = true)]
async fn a_quick_finding_does_not_make_a_broad_class_bad() {
    let mut world = with_usual_shape();
    world.minute(|rng| fingerprint(rng.random(), &SHAPE));
    let class = fingerprint(world.rng.random(), &SHAPE);
    assert!(world.is_parked(&class), "{:?}", world.made);
    world.found(&class, Seen::Fast);
    (0..2).for_each(|_| world.evidence(MessageId::new(), &class, world.now, Seen::Late));
    assert!(world.spares());
}
