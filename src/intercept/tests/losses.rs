//! Laws 7 and 10: what an engine loses to messages without an interceptor.

use super::*;
use crate::incident::{Incident, Kind};
use crate::intercept::crash::Crashed;

impl World {
    fn tick(&mut self) -> Vec<Incident> {
        let engine = EngineState {
            name: "clamd",
            is_out: false,
            covered: true,
            slots: 12,
        };
        self.learner.tick(self.now, &[engine])
    }

    fn hangs_alone(&mut self, f: &Arc<Fingerprint>) -> MessageId {
        let id = MessageId::new();
        let good = usual(&mut self.rng);
        self.good(&good);
        for seen in [Observed::Slow, Observed::TimedOut] {
            self.evidence(id, f, self.now, seen);
        }
        id
    }
}

/// If half of the workers hang on messages with nothing in common, an incident says so once. It names some of the messages,
/// and says what helps. Messages that an interceptor explains do not count.
#[tokio::test(start_paused = true)]
async fn workers_lost_to_unlike_messages_are_told_with_their_names() {
    let mut world = World::new();
    let mut hung = Vec::new();
    for n in 0..6 {
        let incidents = world.tick();
        assert!(
            incidents.iter().all(|i| i.kind != Kind::WorkersLost),
            "{incidents:?}"
        );
        let id = world.hangs_alone(&fingerprint(1000 + n, &[]));
        hung.push((id, fingerprint(1000 + n, &[])));
    }
    let incidents = world.tick();
    let [incident] = &incidents[..] else {
        panic!("{incidents:?}")
    };
    let text = format!("{incidents:?}");
    assert!(incident.summary.contains("6 of 12 workers"), "{text}");
    assert!(text.contains(&hung[4].0.to_string()), "five names: {text}");
    assert!(
        !text.contains(&hung[5].0.to_string()),
        "and no more: {text}"
    );
    assert!(
        text.contains("explain ID") && text.contains("time limit"),
        "{text}"
    );
    assert_eq!(world.tick(), [], "once");
    for (id, f) in hung.drain(..) {
        world.evidence(id, &f, world.now, LATE);
    }
    assert_eq!(world.tick(), []);
    for n in 0..6 {
        world.hangs_alone(&fingerprint(2000 + n, &[]));
    }
    assert_eq!(world.tick().len(), 1, "and again when it happens again");

    let mut world = World::new();
    let same = fingerprint(4711, &[]);
    for _ in 0..8 {
        world.hangs_alone(&same);
    }
    assert!(world.holds());
    let incidents = world.tick();
    assert!(
        incidents.iter().all(|i| i.kind != Kind::WorkersLost),
        "{incidents:?}"
    );
}

/// The message that an engine goes away on is reported and barred, and gets a strike. Messages that were in flight with it
/// wait for their turn, and are free after a good scan. In shadow mode none of this happens.
#[tokio::test(start_paused = true)]
async fn who_makes_an_engine_go_away_is_told_and_barred() {
    let mut world = World::new();
    let all: Vec<_> = (0..4)
        .map(|n| (MessageId::new(), fingerprint(n, &[])))
        .collect();
    let (culprit, engine) = (all[0].0, world.engine.clone());
    assert!(world.learner.crashed(world.now, &engine, &all).is_empty());
    let wait = |world: &World| world.learner.suspects_of_crashes("clamd").waits.len();
    assert_eq!(wait(&world), 2, "half of them go");
    let version = world.learner.version();
    assert!(
        world
            .learner
            .crashed(world.now, &engine, &all[..2])
            .is_empty()
    );
    assert!(world.learner.version() > version, "the gate is told");
    assert!(
        world
            .learner
            .crashed(world.now, &engine, &all[..1])
            .is_empty()
    );
    let other = fingerprint(9, &[]);
    world.evidence(MessageId::new(), &other, world.now, FAST);
    let incidents = world.learner.crashed(world.now, &engine, &all[..1]);
    assert_eq!(incidents[0].message, Some(culprit));
    assert!(
        incidents[0].summary.contains("goes away on one message"),
        "{incidents:?}"
    );
    for (id, f) in &all[1..] {
        world.evidence(*id, f, world.now, FAST);
    }
    let left = Crashed {
        waits: Vec::new(),
        barred: vec![culprit],
    };
    assert_eq!(world.learner.suspects_of_crashes("clamd"), left);
    let shadow = Settings {
        mode: Mode::Shadow,
        ..Settings::default()
    };
    world.learner.configure(shadow);
    assert_eq!(
        world.learner.suspects_of_crashes("clamd"),
        Crashed::default()
    );
}
