//! Laws that no flood shows by itself: each of these was broken once, and no other test failed.

use super::*;

/// The shape of all messages of a flood, and of one good message in a hundred.
const SHAPE: [(Aspect, u64); 6] = [
    (Aspect::Type, 50),
    (Aspect::Size, 50),
    (Aspect::Skeleton, 50),
    (Aspect::SenderDomain, 50),
    (Aspect::Client, 50),
    (Aspect::Subject, 50),
];

/// A world in which one message in a hundred has that shape.
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
    world.evidence(MessageId::new(), f, world.now, Observed::Broken);
}

fn seen_well(world: &mut World) {
    let other = fingerprint(1, &[]);
    world.evidence(MessageId::new(), &other, world.now, FAST);
}

/// In shadow mode an interceptor counts matches, and holds neither fresh nor deferred messages.
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
        sender: &ComparedAddress::of_sender(&envelope.reverse_path),
        subject: "",
        fingerprint: &same,
    };
    assert_eq!(
        world.learner.holds(&facts, Exemption::None),
        None,
        "deferred"
    );
    let hits: Vec<u64> = world.learner.list().map(|i| i.hits).collect();
    assert_eq!(hits, [1], "it counts");
}

/// With the learner off no failure makes an interceptor. An interceptor that a person made holds nevertheless.
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

/// However many different messages fail, the learner has at most 20 interceptors in force.
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

/// A scan of deferred mail is no evidence of what mail is like now: a sweep through a backlog of slow messages is no flood,
/// and quick scans in a sweep do not exonerate messages that arrive.
#[tokio::test(start_paused = true)]
async fn scans_of_deferred_mail_are_no_evidence_of_an_episode() {
    let mut world = World::new();
    let again = |world: &mut World, f: &Arc<Fingerprint>, seen| {
        let evidence = Evidence {
            message: MessageId::new(),
            fingerprint: f.clone(),
            reputation: SenderReputation::Unknown,
            scan_reason: ScanReason::Again,
            size: SizeClass::Tiny,
            arrived: world.now,
            started: world.now,
            at: world.now,
            what: seen,
        };
        world
            .learner
            .observe(world.now, &world.engine.clone(), &evidence);
    };
    for n in 0..12 {
        let old = fingerprint(1000 + n, &[(Aspect::Skeleton, 99)]);
        world.arrives(&old, true);
        again(&mut world, &old, Observed::Slow);
        for _ in 0..3 {
            let good = usual(&mut world.rng);
            world.good(&good);
        }
        world.pass(Duration::from_millis(100));
    }
    assert!(world.made.is_empty(), "{:?}", world.made);
    let bad = fingerprint(4711, &[]);
    again(&mut world, &bad, FAST);
    (0..2).for_each(|_| strike(&mut world, &bad));
    assert!(world.holds(), "what was quick then is held now");
}

/// While all scans are slow, a trait that all new mail has in common says nothing, however new it is.
#[tokio::test(start_paused = true)]
async fn new_mail_is_not_parked_while_all_other_mail_is_slow_too() {
    let mut world = World::new();
    world.pass(Duration::from_secs(60));
    for _ in 0..20 {
        let new = fingerprint(world.rng.random(), &[(Aspect::Skeleton, 99)]);
        for mail in [new, usual(&mut world.rng)] {
            world.arrives(&mail, false);
            world.evidence(MessageId::new(), &mail, world.now, Observed::Slow);
        }
        world.pass(Duration::from_millis(100));
    }
    assert!(world.made.is_empty(), "{:?}", world.made);
}

/// A burst of a shape that good mail has now and then is not parked because it is slow, but only after a timeout.
#[tokio::test(start_paused = true)]
async fn a_burst_of_usual_mail_is_parked_after_a_timeout_and_not_before() {
    let mut world = with_usual_shape();
    world.minute(|rng| fingerprint(rng.random(), &SHAPE));
    let (first, interceptor) = world.made.first().expect("it is parked");
    assert!(*first >= Duration::from_secs(5), "{first:?}");
    assert!(matches!(interceptor.action, Action::Park { .. }));
}

/// An engine is bypassed for a usual class only after that class was slow for 10 s: a shorter slowdown passes without a
/// remedy.
#[tokio::test(start_paused = true)]
async fn a_class_is_not_bypassed_at_once() {
    let world = slow_class();
    let spares = |i: &Interceptor| matches!(i.action, Action::Bypass { .. });
    let first = world.made.iter().find(|(_, i)| spares(i));
    let (at, _) = first.expect("it is bypassed");
    assert!(*at >= Duration::from_secs(10), "{at:?}");
}

/// An engine is never bypassed if no other engine makes up for it: its mail could not be judged.
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

/// While the baseline has few good messages everything looks new: the learner blames content only.
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

/// Two failures of the same content within an hour are a pattern; two within a day are not.
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

/// A sender without mail for two weeks is unknown again.
#[tokio::test(start_paused = true)]
async fn senders_are_not_known_for_ever() {
    let mut world = World::bare(Settings::default());
    let from = |sender| fingerprint(1, &[(Aspect::SenderDomain, sender), (Aspect::Client, 1)]);
    (0..2).for_each(|_| world.learner.scanned_well(world.now, &from(1)));
    assert_eq!(world.learner.reputation(&from(1)), SenderReputation::Known);
    for _ in 0..2 {
        world.now += Duration::from_secs(8 * 86_400);
        world.learner.scanned_well(world.now, &from(2));
    }
    assert_eq!(
        world.learner.reputation(&from(1)),
        SenderReputation::Unknown
    );
    assert_eq!(world.learner.reputation(&from(2)), SenderReputation::Known);
}

/// A scan that began before the interceptor was made does not disprove it: the engine may have changed since.
#[tokio::test(start_paused = true)]
async fn scans_that_began_before_do_not_refute() {
    let mut world = World::bare(Settings::default());
    let same = fingerprint(4711, &[]);
    let before = world.now;
    world.pass(Duration::from_secs(1));
    seen_well(&mut world);
    (0..2).for_each(|_| strike(&mut world, &same));
    let mut see = |started| world.evidence(MessageId::new(), &same, started, IN_TIME);
    (0..3).for_each(|_| see(before));
    assert!(world.holds(), "they began before it");
    let now = world.now;
    (0..2).for_each(|_| world.evidence(MessageId::new(), &same, now, IN_TIME));
    assert!(!world.holds(), "they are refuted since");
}

/// A fast finding in a class that much good mail belongs to does not make the class bad. If messages of the class are clean,
/// however late, the engine is bypassed for it.
#[tokio::test(start_paused = true)]
async fn a_quick_finding_does_not_make_a_broad_class_bad() {
    let mut world = with_usual_shape();
    world.minute(|rng| fingerprint(rng.random(), &SHAPE));
    let class = fingerprint(world.rng.random(), &SHAPE);
    assert!(world.is_parked(&class), "{:?}", world.made);
    world.found(&class, Observed::Fast { found: true });
    (0..2).for_each(|_| world.evidence(MessageId::new(), &class, world.now, LATE));
    assert!(world.spares());
}
