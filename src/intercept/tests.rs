//! The learner alone, over streams of mail in simulated time: an engine with 12 workers takes 5 ms for a good message and
//! 120 s for one of a flood.

mod bypass;
mod laws;
mod losses;
mod shapes;
mod strikes;
mod thresholds;
mod trials;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::*;
use crate::measure::SizeClass;
use crate::message::ComparedAddress;
use crate::message::fingerprint::Aspect;
use crate::message::pattern::{Facts, Pattern};
use crate::message::{Envelope, Fingerprint, Identity, Mailbox, Origin, SenderReputation, Trait};
use crate::observation::{Evidence, Observed, ScanReason};

const FAST: Observed = Observed::Fast { found: false };
const IN_TIME: Observed = Observed::Ended { found: false };
const LATE: Observed = Observed::Late { found: false };
const FOUND_FAST: Observed = Observed::Fast { found: true };
const FOUND_LATE: Observed = Observed::Late { found: true };

fn envelope() -> Envelope {
    let mailbox = Mailbox::parse("a@a.test").expect("a mailbox");
    Envelope {
        reverse_path: mailbox.clone().into(),
        recipients: vec![mailbox.into()],
        body: Default::default(),
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin::local("test"),
    }
}

/// A message with this attachment and these broad traits.
fn fingerprint(attachment: u64, broad: &[(Aspect, u64)]) -> Arc<Fingerprint> {
    let one = |(aspect, value): &(Aspect, u64)| Trait {
        aspect: *aspect,
        value: *value,
    };
    Arc::new(Fingerprint {
        identity: Identity([0; 32]),
        exact: Box::new([one(&(Aspect::Attachment, attachment))]),
        broad: broad.iter().map(one).collect(),
        attachments: Box::new([]),
    })
}

/// A usual message: one of 40 senders, one of some shapes.
fn usual(rng: &mut StdRng) -> Arc<Fingerprint> {
    let sender = rng.random_range(0..40);
    fingerprint(
        rng.random(),
        &[
            (Aspect::Type, rng.random_range(0..4)),
            (Aspect::Size, rng.random_range(12..19)),
            (Aspect::Skeleton, rng.random_range(0..12)),
            (Aspect::SenderDomain, sender),
            (Aspect::Client, sender),
            (Aspect::Subject, rng.random_range(0..300)),
        ],
    )
}

/// The learner and a clock.
struct World {
    now: Instant,
    learner: Interception,
    rng: StdRng,
    engine: Arc<str>,
    /// Running scans of the flood: the start of each, and its stage (0 running, 1 reported slow, 2 reported overdue).
    slow: Vec<(MessageId, Arc<Fingerprint>, Instant, u8)>,
    held: HashMap<bool, u32>,
    made: Vec<(Duration, Interceptor)>,
    began: Instant,
    /// Whether other engines suffice to judge mail without the engine.
    covered: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self::bare(Settings::default());
        for _ in 0..2000 {
            let good = usual(&mut world.rng);
            world.good(&good);
        }
        world.began = world.now;
        world.held.clear();
        world
    }

    /// A world without mail so far.
    fn bare(settings: Settings) -> Self {
        let now = Instant::now();
        Self {
            now,
            learner: Interception::new(now, settings),
            rng: StdRng::seed_from_u64(7),
            engine: "clamd".into(),
            slow: Vec::new(),
            held: HashMap::new(),
            made: Vec::new(),
            began: now,
            covered: true,
        }
    }

    /// The engine finds something in the message.
    fn found(&mut self, f: &Arc<Fingerprint>, what: Observed) {
        self.evidence(MessageId::new(), f, self.now, what);
    }

    fn evidence(
        &mut self,
        message: MessageId,
        f: &Arc<Fingerprint>,
        started: Instant,
        what: Observed,
    ) {
        let evidence = Evidence {
            message,
            fingerprint: f.clone(),
            reputation: SenderReputation::Unknown,
            scan_reason: ScanReason::Fresh,
            size: SizeClass::Tiny,
            arrived: started,
            started,
            at: self.now,
            what,
        };
        self.learner
            .observe(self.now, &self.engine.clone(), &evidence);
    }

    /// The message arrives. Returns whether it is held.
    fn arrives(&mut self, f: &Arc<Fingerprint>, flood: bool) -> bool {
        let envelope = envelope();
        let facts = Facts {
            envelope: &envelope,
            sender: &ComparedAddress::of_sender(&envelope.reverse_path),
            subject: "",
            fingerprint: f,
        };
        let (now, id) = (self.now, MessageId::new());
        let held = self.learner.arrived(now, id, &facts, f, Exemption::None);
        if held.is_some() {
            *self.held.entry(flood).or_default() += 1;
        }
        held.is_some()
    }

    /// Whether an interceptor parks the message.
    fn is_parked(&self, f: &Fingerprint) -> bool {
        self.matched(f, |action| matches!(action, Action::Park { .. }))
    }

    fn matched(&self, f: &Fingerprint, does: fn(&Action) -> bool) -> bool {
        let envelope = envelope();
        let facts = Facts {
            envelope: &envelope,
            sender: &ComparedAddress::of_sender(&envelope.reverse_path),
            subject: "",
            fingerprint: f,
        };
        let mut all = self.learner.list();
        all.any(|i| does(&i.action) && i.pattern.matches(&facts))
    }

    fn good(&mut self, f: &Arc<Fingerprint>) {
        if !self.arrives(f, false) {
            self.evidence(MessageId::new(), f, self.now, FAST);
            self.learner.scanned_well(self.now, f);
        }
    }

    fn bad(&mut self, f: &Arc<Fingerprint>) {
        if !self.arrives(f, true) && !self.is_parked(f) && self.slow.len() < 12 {
            self.slow.push((MessageId::new(), f.clone(), self.now, 0));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for at in 0..self.slow.len() {
            let (message, f, began, stage) = self.slow[at].clone();
            let age = self.now - began;
            if stage == 0 && age >= Duration::from_millis(500) {
                self.slow[at].3 = 1;
                self.evidence(message, &f, began, Observed::Slow);
            } else if stage == 1 && age >= Duration::from_secs(5) {
                self.slow[at].3 = 2;
                self.evidence(message, &f, began, Observed::TimedOut);
            }
        }
        let before: Vec<String> = self.learner.list().map(|i| i.id.clone()).collect();
        let engine = EngineState {
            name: "clamd",
            is_out: false,
            covered: self.covered,
            slots: 12,
        };
        self.learner.tick(self.now, &[engine]);
        let at = self.now - self.began;
        let made = self.learner.list().filter(|i| !before.contains(&i.id));
        self.made.extend(made.map(|i| (at, i.clone())));
    }

    /// One minute with 30 good messages and 8 of a flood in each second: 480 of the flood.
    fn minute(&mut self, mut flood: impl FnMut(&mut StdRng) -> Arc<Fingerprint>) {
        for tick in 0..600 {
            for _ in 0..3 {
                let good = usual(&mut self.rng);
                self.good(&good);
            }
            if tick % 5 != 4 {
                let bad = flood(&mut self.rng);
                self.bad(&bad);
            }
            self.pass(Duration::from_millis(100));
        }
    }

    /// Copies of the message are late and clean, so that the engine is bypassed for it.
    fn spare(&mut self, f: &Arc<Fingerprint>) {
        self.pass(Duration::from_millis(100));
        let good = fingerprint(1, &[]);
        self.evidence(MessageId::new(), &good, self.now, FAST);
        for seen in [Observed::TimedOut, Observed::TimedOut, LATE, LATE] {
            self.evidence(MessageId::new(), f, self.now, seen);
        }
        assert!(self.spares());
    }

    fn spares(&self) -> bool {
        let spares = |i: &Interceptor| matches!(i.action, Action::Bypass { .. });
        self.learner.list().any(spares)
    }

    fn holds(&self) -> bool {
        self.learner.list().any(|i| i.action == Action::Hold)
    }
}

/// Messages of a flood that differ still share a shape. It is found within 3 s, and held after two timeouts. No good message
/// is held.
#[tokio::test(start_paused = true)]
async fn a_flood_that_differs_is_recognised_by_its_shape() {
    let mut world = World::new();
    world.minute(|rng| {
        fingerprint(
            rng.random(),
            &[
                (Aspect::Type, 2),
                (Aspect::Size, 15),
                (Aspect::Skeleton, 99),
                (Aspect::SenderDomain, rng.random()),
                (Aspect::Client, rng.random()),
                (Aspect::Subject, rng.random()),
            ],
        )
    });
    let (first, interceptor) = &world.made[0];
    assert!(*first <= Duration::from_secs(3), "{first:?}");
    assert!(matches!(interceptor.action, Action::Park { .. }));
    assert!(world.slow.len() <= 10, "{} scans", world.slow.len());
    assert!(world.holds(), "after two timeouts");
    assert_eq!(world.held.get(&false), None, "good mail is not held");
    assert!(world.held[&true] > 400, "the flood is");
}

/// If each single trait of a flood is usual, the learner recognises the flood by a pair of traits.
#[tokio::test(start_paused = true)]
async fn a_flood_that_imitates_good_mail_is_recognised_by_a_combination() {
    let mut world = World::new();
    world.minute(|rng| {
        fingerprint(
            rng.random(),
            &[
                (Aspect::Type, 2),
                (Aspect::Size, 18),
                (Aspect::Skeleton, 3),
                (Aspect::SenderDomain, rng.random()),
                (Aspect::Client, 12_345),
                (Aspect::Subject, 77),
            ],
        )
    });
    assert!(!world.made.is_empty());
    let held = world.held.get(&false).copied().unwrap_or(0);
    assert!(held <= 9, "{held} of 1800 good messages held");
    assert!(world.slow.len() <= 12, "{}", world.slow.len());
}

/// If all scans are slow the engine is at fault: nothing sets messages apart, and no interceptor is made (I8).
#[tokio::test(start_paused = true)]
async fn an_engine_that_is_slow_for_everything_makes_no_interceptor() {
    let mut world = World::new();
    for _ in 0..120 {
        for _ in 0..10 {
            let mail = usual(&mut world.rng);
            if world.slow.len() < 12 && !world.arrives(&mail, false) {
                world.slow.push((MessageId::new(), mail, world.now, 0));
            }
        }
        world.pass(Duration::from_millis(250));
        let now = world.now;
        world
            .slow
            .retain(|(_, _, began, _)| now - *began < Duration::from_secs(3));
    }
    assert_eq!(
        world
            .made
            .iter()
            .map(|(_, i)| i.pattern.to_string())
            .collect::<Vec<_>>(),
        [""; 0]
    );
}

/// A mailing whose scans are slow but end in time is never held. An interceptor that parks it is disproved.
#[tokio::test(start_paused = true)]
async fn a_slow_mailing_is_never_held() {
    let mut world = World::new();
    let pdf = fingerprint(
        99,
        &[
            (Aspect::Skeleton, 77),
            (Aspect::SenderDomain, 3),
            (Aspect::Client, 3),
        ],
    );
    for _ in 0..300 {
        for _ in 0..3 {
            let mail = usual(&mut world.rng);
            world.good(&mail);
        }
        world.bad(&pdf);
        world.pass(Duration::from_millis(100));
        let now = world.now;
        let (over, rest): (Vec<_>, Vec<_>) = world
            .slow
            .drain(..)
            .partition(|(_, _, began, _)| now - *began >= Duration::from_secs(3));
        world.slow = rest;
        for (message, f, began, _) in over {
            world.evidence(message, &f, began, IN_TIME);
        }
    }
    let holds = world.made.iter().filter(|(_, i)| i.action == Action::Hold);
    assert_eq!(holds.count(), 0);
    assert_eq!(world.held.get(&false), None);
    assert_eq!(world.held.get(&true), None);
}

/// A usual message of the shape `Large`.
fn large(rng: &mut StdRng) -> Arc<Fingerprint> {
    let f = usual(rng);
    let mut broad: Vec<(Aspect, u64)> = f.broad.iter().map(|t| (t.aspect, t.value)).collect();
    broad.push((Aspect::Large, 1));
    fingerprint(rng.random(), &broad)
}

/// The shape `Large` becomes slow all at once, for 30 s.
fn slow_class() -> World {
    let mut world = World::new();
    for _ in 0..100 {
        let good = large(&mut world.rng);
        world.good(&good);
    }
    world.pass(Duration::from_secs(20));
    world.began = world.now;
    world.slow_class_goes_on();
    world
}

impl World {
    fn slow_class_goes_on(&mut self) {
        for tick in 0..120 {
            for _ in 0..8 {
                let good = usual(&mut self.rng);
                self.good(&good);
            }
            if tick % 4 == 0 {
                let slow = large(&mut self.rng);
                self.bad(&slow);
            }
            self.pass(Duration::from_millis(250));
        }
    }
}

/// Some messages are always slow. However long that goes on, a flood is recognised as quickly as on the first day.
#[tokio::test(start_paused = true)]
async fn what_is_always_slow_does_not_hide_a_flood() {
    let mut world = World::new();
    for _ in 0..200 {
        let (odd, started) = (usual(&mut world.rng), world.now);
        world.pass(Duration::from_secs(20));
        world.evidence(MessageId::new(), &odd, started, Observed::Slow);
        for _ in 0..20 {
            let good = usual(&mut world.rng);
            world.good(&good);
        }
    }
    assert!(world.made.is_empty(), "chance makes no interceptor");
    world.began = world.now;
    world.minute(|rng| {
        let of_its_own = [Aspect::SenderDomain, Aspect::Client, Aspect::Subject];
        let mut broad: Vec<(Aspect, u64)> = of_its_own.map(|a| (a, rng.random())).into();
        broad.push((Aspect::Skeleton, 99));
        fingerprint(rng.random(), &broad)
    });
    let (first, _) = world.made.first().expect("the flood is recognised");
    assert!(*first <= Duration::from_secs(3), "{first:?}");
    assert_eq!(world.held.get(&false), None, "good mail is not held");
}

/// After a restart a learned interceptor is weighed as before: it ends on time, clean scans end its hold, a finding keeps
/// the hold until that end, and one strike is enough to block the key again.
#[tokio::test(start_paused = true)]
async fn a_restart_makes_nobody_the_maker_of_what_was_learned() {
    for found in [false, true] {
        let mut world = World::new();
        let (same, other) = (fingerprint(4711, &[]), fingerprint(1, &[]));
        world.evidence(MessageId::new(), &other, world.now, FAST);
        let mut see = |seen| world.evidence(MessageId::new(), &same, world.now, seen);
        see(Observed::TimedOut);
        see(Observed::TimedOut);
        if found {
            world.found(&same, FOUND_LATE);
        }
        let stored: Vec<Interceptor> = world.learner.list().cloned().collect();
        let [held] = &stored[..] else {
            panic!("{stored:?}")
        };
        let kept = serde_json::to_string(held).expect("JSON");
        world.learner = Interception::new(world.now, Settings::default());
        let mut read: Interceptor = serde_json::from_str(&kept).expect("an interceptor");
        // A wall clock that was set back must not make it last.
        read.expires = read.expires.map(|end| end + Duration::from_secs(86_400));
        world.learner.add(world.now, read);
        assert_eq!(
            world.learner.recoverable().1,
            std::slice::from_ref(&held.id)
        );
        world.pass(Duration::from_millis(100));
        (0..2).for_each(|_| world.evidence(MessageId::new(), &same, world.now, LATE));
        assert_eq!((world.holds(), world.spares()), (found, !found));
        world.pass(Duration::from_secs(600 * 16));
        assert!(!world.holds() && !world.spares());
        assert_eq!(
            world.learner.recoverable().0,
            std::slice::from_ref(&held.id)
        );
        world.evidence(MessageId::new(), &other, world.now, FAST);
        world.evidence(MessageId::new(), &same, world.now, Observed::Broken);
        assert!(world.holds(), "one strike");
    }
}

/// A hold that a person made.
fn by_hand(pattern: Pattern) -> Interceptor {
    Interceptor {
        id: "by-hand".to_owned(),
        pattern,
        action: Action::Hold,
        origin: super::Origin::Person {
            who: "root".to_owned(),
            note: String::new(),
        },
        made: crate::deadline::wall_clock(),
        expires: None,
        dry_run: false,
        hits: 0,
        samples: Vec::new(),
    }
}

/// Only a person releases what a person has held. Recovery from another hold does not release it either.
#[tokio::test(start_paused = true)]
async fn what_a_person_holds_stays_held() {
    let mut learner = Interception::new(Instant::now(), Settings::default());
    let fingerprint = usual(&mut StdRng::seed_from_u64(1));
    let envelope = envelope();
    let facts = Facts {
        envelope: &envelope,
        sender: &ComparedAddress::of_sender(&envelope.reverse_path),
        subject: "invoice",
        fingerprint: &fingerprint,
    };
    let invoices = Pattern {
        subject: Some("invoice".parse().expect("a glob")),
        ..Pattern::default()
    };
    learner.add(Instant::now(), by_hand(invoices));
    assert!(learner.person_holds(&facts).is_some());
    learner.remove("by-hand").expect("it is there");
    assert_eq!(learner.person_holds(&facts), None);
    assert_eq!(learner.recoverable(), (Vec::new(), Vec::new()));
}

/// A sender is known by good mail through the same network. A domain alone can be written by anybody.
#[tokio::test(start_paused = true)]
async fn a_sender_is_known_by_domain_and_network() {
    let now = Instant::now();
    let mut learner = Interception::new(now, Settings::default());
    let from = |network| fingerprint(1, &[(Aspect::SenderDomain, 5), (Aspect::Client, network)]);
    learner.scanned_well(now, &from(1));
    assert_eq!(learner.reputation(&from(1)), SenderReputation::Unknown);
    learner.scanned_well(now, &from(1));
    assert_eq!(learner.reputation(&from(1)), SenderReputation::Known);
    assert_eq!(learner.reputation(&from(2)), SenderReputation::Unknown);
}

/// A message with these attachments, in this order.
fn attached(attachments: &[u64]) -> Arc<Fingerprint> {
    let mut f = Arc::unwrap_or_clone(fingerprint(0, &[]));
    let one = |value: &u64| Trait {
        aspect: Aspect::Attachment,
        value: *value,
    };
    f.exact = attachments.iter().map(one).collect();
    Arc::new(f)
}

/// An interceptor for the same key lasts twice as long each time, and ends by itself.
#[tokio::test(start_paused = true)]
async fn interceptors_expire_and_come_back_for_longer() {
    let mut world = World::new();
    let (same, usual) = (fingerprint(4711, &[]), fingerprint(1, &[]));
    let mut lasted = Vec::new();
    for _ in 0..2 {
        world.evidence(MessageId::new(), &usual, world.now, FAST);
        for _ in 0..2 {
            let id = MessageId::new();
            world.evidence(id, &same, world.now, Observed::TimedOut);
        }
        assert!(world.holds());
        let made = world.now;
        while world.holds() {
            world.pass(Duration::from_secs(10));
        }
        lasted.push((world.now - made).as_secs());
        world.slow.clear();
    }
    assert_eq!(lasted, [600, 1200]);
}

proptest! {
    /// I13: after any observations only a few interceptors are in force, everything else is bounded, and nothing panics.
    #[test]
    fn whatever_is_seen_interceptors_are_few(seen in prop::collection::vec((0_u64..50, 0_u8..8, 0_u64..2000), 1..300)) {
        let mut now = Instant::now();
        let mut learner = Interception::new(now, Settings::default());
        let engine: Arc<str> = "clamd".into();
        for (n, what, wait) in seen {
            let f = fingerprint(n % 10, &[(Aspect::Skeleton, n % 3), (Aspect::Size, n % 5)]);
            let seen = [FAST, Observed::Slow, IN_TIME, Observed::TimedOut, LATE, Observed::Broken, FOUND_LATE, FOUND_FAST][what as usize];
            let evidence = Evidence {
                message: MessageId::new(),
                fingerprint: f.clone(),
                reputation: SenderReputation::Unknown,
                scan_reason: if n % 4 == 0 { ScanReason::Again } else { ScanReason::Fresh },
                size: SizeClass::Tiny,
                arrived: now,
                started: now,
                at: now,
                what: seen,
            };
            learner.observe(now, &engine, &evidence);
            if matches!(seen, Observed::Fast { .. }) { learner.scanned_well(now, &f); }
            now += Duration::from_millis(wait);
            let state = EngineState { name: "clamd", is_out: false, covered: true, slots: 12 };
            learner.tick(now, &[state]);
            prop_assert!(learner.list().count() <= 20);
        }
    }
}
