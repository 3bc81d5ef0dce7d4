//! Stories of random incidents, by their laws.

mod limits;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use ulid::Ulid;

use super::mail::{UNCLAIMED_MAX, UNCLAIMED_TIME, UNWRITTEN_MAX};
use super::*;
use crate::incident::TouchOutcome;
use crate::message::MessageId;

/// A tracker with its own clocks.
struct World {
    tracker: Tracker,
    now: Instant,
    at: Timestamp,
    /// All phases so far.
    phases: Vec<Phase>,
    /// The stories as the log has them.
    log: BTreeMap<Ulid, StoryState>,
    /// The messages that the log has.
    messages: Vec<(Ulid, Touch)>,
    /// Whether signatures are old or differ.
    is_stale: bool,
}

impl World {
    fn new() -> Self {
        Self {
            tracker: Tracker::default(),
            now: Instant::now(),
            at: "2026-11-30T12:00:00Z".parse().expect("a time"),
            phases: Vec::new(),
            log: BTreeMap::new(),
            messages: Vec::new(),
            is_stale: true,
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.at += Duration::from_secs(seconds);
        let holds = |_: &Subject, condition: &Condition| match condition {
            Condition::Stale(_) | Condition::Differing => Some(self.is_stale),
            _ => None,
        };
        let phases = self.tracker.tick(self.now, self.at, holds);
        self.phases.extend(phases);
        self.write();
    }

    fn write(&mut self) {
        for ChangedStory { state, messages } in self.tracker.changed(self.now) {
            let id = state.story.id;
            self.messages
                .extend(messages.into_iter().map(|touch| (id, touch)));
            self.log.insert(id, state);
        }
    }

    fn record(&mut self, kind: Kind, subject: Subject) -> Incident {
        self.record_with(kind, subject, None)
    }

    fn record_with(&mut self, kind: Kind, subject: Subject, engine: Option<&str>) -> Incident {
        let mut incident = Incident::new(kind, subject, format!("{} happened", kind.as_str()));
        incident.at = self.at;
        if let Some(engine) = engine {
            incident = incident.with(Incident::ENGINE, engine);
        }
        let (_, phases) = self.tracker.record(self.now, &mut incident);
        self.phases.extend(phases);
        incident
    }

    fn touch(&mut self, cause: Subject, outcome: TouchOutcome, delay: u64) -> Option<Ulid> {
        let touch = Touch {
            message: MessageId::new(),
            outcome,
            at: self.at,
            received: self.at,
            delay: Duration::from_secs(delay),
            sender: String::new(),
            recipients: Vec::new(),
            recipients_total: 0,
            subject: String::new(),
        };
        self.tracker.touch(self.now, cause, touch, true)
    }

    /// So many messages of the time before `since` wait for the causes of all stories whose trouble is over.
    fn waiting(&mut self, messages: u64) {
        let mail = StillWaiting {
            messages,
            more: false,
            oldest: Timestamp::UNIX_EPOCH,
        };
        for of in self.tracker.waited_for() {
            self.tracker.waits(self.now, self.at, &of, mail);
        }
    }

    /// A restart: what the log has, and nothing else.
    fn restart(&mut self) {
        self.write();
        let states = self.log.values().cloned().collect();
        self.tracker = Tracker::restore(self.now, self.at, states);
    }

    fn state(&mut self, id: Ulid) -> StoryState {
        self.write();
        self.log[&id].clone()
    }

    fn phases_of(&self, id: Ulid) -> Vec<StoryPhase> {
        let of = self.phases.iter().filter(|(_, story)| story.id == id);
        of.map(|(phase, _)| *phase).collect()
    }
}

fn replica(name: &str, replica: &str) -> Subject {
    Subject::Engine {
        name: name.to_owned(),
        replica: Some(replica.to_owned()),
    }
}

/// The subject and the evidence of a random incident about one of a few causes.
fn random(rng: &mut StdRng, kind: Kind) -> (Subject, Option<&'static str>) {
    let engine = ["clamd", "rspamd"][rng.random_range(0..2)];
    match kind {
        Kind::NextHopPaced | Kind::NextHopDead | Kind::NextHopAlive => {
            (Subject::NextHop("mx".to_owned()), None)
        }
        Kind::QuarantineFilling
        | Kind::QuarantineRoomy
        | Kind::StoreTrouble
        | Kind::StoreWell
        | Kind::AdmissionAccepts => (Subject::Relay, None),
        Kind::AdmissionRefuses | Kind::LateFinding => {
            (Subject::Relay, rng.random::<bool>().then_some(engine))
        }
        Kind::InterceptorMade | Kind::InterceptorChanged | Kind::InterceptorLifted => {
            (Subject::Interceptor(format!("of-{engine}")), Some(engine))
        }
        Kind::RecoveryBegun | Kind::RecoveryEnded | Kind::Strike => (Subject::engine(engine), None),
        _ if rng.random() => (Subject::engine(engine), None),
        _ => (replica(engine, ["a", "b"][rng.random_range(0..2)]), None),
    }
}

/// Every sign of trouble belongs to exactly one story, whose cause it is about; no two open stories have one cause; a story
/// ends only when all its conditions have ended, and a listener is told of one end after each run of beginnings.
#[test]
fn every_trouble_has_one_story_and_every_story_one_end() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        for _ in 0..300 {
            let kind = Kind::ALL[rng.random_range(0..Kind::ALL.len())];
            let (subject, engine) = random(&mut rng, kind);
            let incident = world.record_with(kind, subject, engine);
            if kind.begins_story() {
                let id = incident.story.expect("trouble has a story");
                let followed = world
                    .tracker
                    .stories
                    .iter()
                    .find(|f| f.state.story.id == id);
                let cause = &followed.expect("it is followed").state.story.cause;
                let is_about = |name: &str| incident.subject.to_string().contains(name);
                assert!(
                    engine.is_some_and(|e| *cause == Subject::engine(e))
                        || is_about(&cause.to_string())
                        || incident.subject == Subject::Relay,
                    "seed {seed}: {cause} for {incident:?}"
                );
            }
            for state in world.tracker.open() {
                let same = world.tracker.open().filter(|other| {
                    other.topic == state.topic && other.story.cause == state.story.cause
                });
                assert_eq!(same.count(), 1, "seed {seed}: {state:?}");
            }
            world.pass([0, 1, 5, 40, 700][rng.random_range(0..5)]);
            for followed in &world.tracker.stories {
                let state = &followed.state;
                assert!(
                    state.story.ended.is_none() || state.conditions.is_empty(),
                    "seed {seed}: {state:?}"
                );
            }
        }
        // All conditions end, then time passes.
        world.is_stale = false;
        for kind in [
            Kind::AdmissionAccepts,
            Kind::QuarantineRoomy,
            Kind::StoreWell,
        ] {
            world.record(kind, Subject::Relay);
        }
        world.record(Kind::NextHopAlive, Subject::NextHop("mx".to_owned()));
        for engine in ["clamd", "rspamd"] {
            for of in [
                Subject::engine(engine),
                replica(engine, "a"),
                replica(engine, "b"),
            ] {
                for kind in [Kind::BreakerClosed, Kind::Resumed, Kind::RecoveryEnded] {
                    world.record(kind, of.clone());
                }
            }
            let interceptor = Subject::Interceptor(format!("of-{engine}"));
            world.record(Kind::InterceptorLifted, interceptor);
        }
        world.pass(1);
        world.pass(601);
        assert_eq!(world.tracker.open().count(), 0, "seed {seed}");
        for (id, state) in &world.log {
            assert!(state.story.ended.is_some() && !state.ended_by.is_empty());
            let phases = world.phases_of(*id);
            let mut told = phases.clone();
            told.dedup();
            let pairs = told
                .chunks(2)
                .all(|p| p == [StoryPhase::Begin, StoryPhase::End]);
            assert!(pairs, "seed {seed}: {phases:?}");
            let ends = phases.windows(2).all(|p| p != [StoryPhase::End; 2]);
            assert!(ends, "seed {seed}: {phases:?}");
        }
    }
}

/// An engine that goes away and comes back again and again is one story, and trouble after a quiet time is another one.
#[test]
fn flapping_is_one_story() {
    let mut world = World::new();
    let first = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    for _ in 0..100 {
        world.pass(20);
        world.record(Kind::BreakerClosed, Subject::engine("clamd"));
        world.pass(300);
        let again = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
        assert_eq!(again.story, first.story);
    }
    world.record(Kind::BreakerClosed, Subject::engine("clamd"));
    world.pass(601);
    let later = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    assert_ne!(later.story, first.story);
    assert_eq!(world.state(first.id).incidents(), 202);
}

/// The story has the kind and the words of the incident that says most, whatever came first, and a listener is told when it
/// gets worse.
#[test]
fn a_story_is_called_by_what_says_most() {
    let mut world = World::new();
    let strike = world.record(Kind::Strike, Subject::engine("clamd"));
    assert_eq!(world.phases, [], "a strike is nothing to be woken up for");
    let probe = world.record(Kind::ProbeFailed, replica("clamd", "a"));
    let opened = world.record(Kind::BreakerOpened, replica("clamd", "a"));
    world.record(Kind::Strike, Subject::engine("clamd"));
    let id = strike.story.expect("a story");
    assert_eq!((probe.story, opened.story), (Some(id), Some(id)));
    let state = world.state(id);
    assert_eq!(state.story.kind, Kind::BreakerOpened);
    assert_eq!(state.story.title, "breaker-opened happened");
    assert_eq!(state.main, opened.id);
    assert_eq!(state.story.cause, Subject::engine("clamd"));
    let kinds: Vec<_> = world.phases.iter().map(|(_, story)| story.kind).collect();
    assert_eq!(kinds, [Kind::ProbeFailed, Kind::BreakerOpened]);
}

/// A refusal of mail belongs to the engine for which the mail waits, and so does its end, which names no engine. If another
/// engine becomes the reason, the first one no longer is.
#[test]
fn a_refusal_belongs_to_the_engine_it_names() {
    let mut world = World::new();
    let opened = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    let refuses = world.record_with(Kind::AdmissionRefuses, Subject::Relay, Some("clamd"));
    assert_eq!(refuses.story, opened.story);
    world.tracker.refused(&Condition::Refusing, 7);
    world.record(Kind::BreakerClosed, Subject::engine("clamd"));
    world.pass(100);
    assert_eq!(world.tracker.open().count(), 1, "it still refuses");
    let accepts = world.record(Kind::AdmissionAccepts, Subject::Relay);
    assert_eq!(accepts.story, opened.story);
    world.pass(31);
    let state = world.state(opened.id);
    assert_eq!(state.story.touched.refused, 7);
    assert_eq!(state.ended_by, "admission-accepts happened");
    world.record_with(Kind::AdmissionRefuses, Subject::Relay, Some("clamd"));
    let other = world.record_with(Kind::AdmissionRefuses, Subject::Relay, Some("rspamd"));
    world.pass(31);
    let open: Vec<_> = world.tracker.open().map(|state| state.story.id).collect();
    assert_eq!(open, [other.id]);
}

/// The counts of a story are exact: those before its first incident, those after its end of mail that came before, and those
/// beyond the rows that the log keeps. Mail that comes after the end is not counted.
#[test]
fn all_mail_of_a_story_is_counted() {
    let mut world = World::new();
    let engine = || Subject::engine("clamd");
    assert_eq!(world.touch(engine(), TouchOutcome::Passed, 0), None);
    world.touch(Subject::engine("rspamd"), TouchOutcome::Passed, 0);
    world.pass(UNCLAIMED_TIME.as_secs() - 1);
    let mut opened = Incident::new(Kind::BreakerOpened, engine(), "down");
    opened.at = world.at;
    world.tracker.record(world.now, &mut opened);
    world.write();
    assert_eq!(
        world.messages.len(),
        1,
        "the timeouts that opened the breaker"
    );
    for delay in 1..=100 {
        let story = world.touch(engine(), TouchOutcome::Delayed, delay);
        assert_eq!(story, Some(opened.id));
    }
    world.record(Kind::InterceptorMade, Subject::Interceptor("i".to_owned()));
    world.record_with(
        Kind::InterceptorMade,
        Subject::Interceptor("k".to_owned()),
        Some("clamd"),
    );
    assert!(
        world
            .touch(Subject::Interceptor("k".to_owned()), TouchOutcome::Held, 0)
            .is_some()
    );
    assert!(
        world
            .touch(Subject::Interceptor("i".to_owned()), TouchOutcome::Held, 0)
            .is_none()
    );
    world.record(
        Kind::InterceptorLifted,
        Subject::Interceptor("k".to_owned()),
    );
    world.record(Kind::BreakerClosed, engine());
    let before_the_end = world.at;
    world.pass(3600);
    let mut late = world.touch(engine(), TouchOutcome::Delayed, 0);
    assert_eq!(late, None, "it came an hour after the end");
    let touch = Touch {
        received: before_the_end,
        delay: Duration::from_secs(3600),
        ..world.log_touch()
    };
    late = world.tracker.touch(world.now, engine(), touch, true);
    assert_eq!(late, Some(opened.id));
    let touched = world.state(opened.id).story.touched;
    assert_eq!((touched.delayed, touched.held, touched.passed), (101, 1, 1));
    assert_eq!(touched.delay_max, Duration::from_secs(3600));
    let median = touched.delay_median.as_secs_f64();
    assert!((51.0..58.0).contains(&median), "{median}");
    assert_eq!(world.messages.len(), 103, "the log has each of them");
}

/// Mail that still waits for a cause whose trouble is over holds the story open, so that the end counts it. Mail that does not
/// get less waits for something else, and holds no story open for ever. Mail that came later does not count.
#[test]
fn a_story_ends_when_no_mail_waits_for_its_cause() {
    let mut world = World::new();
    let opened = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    world.record(Kind::BreakerClosed, Subject::engine("clamd"));
    let closed = world.at;
    for left in (1..=20).rev() {
        world.pass(29);
        world.waiting(left);
        assert_eq!(world.tracker.waited_for()[0].before, Some(closed));
        let lasts = world.state(opened.id).lasts();
        assert!(lasts[0].contains(&left.to_string()), "{lasts:?}");
        world.touch(Subject::engine("clamd"), TouchOutcome::Delayed, 600);
    }
    assert_eq!(world.phases_of(opened.id), [StoryPhase::Begin]);
    world.pass(29);
    world.waiting(0);
    let gone = world.at;
    world.pass(29);
    assert_eq!(world.tracker.open().count(), 1, "it settles");
    world.pass(2);
    let (_, told) = world.phases.last().expect("an end");
    assert_eq!((told.touched.delayed, told.ended), (20, Some(gone)));
    let ended_by = world.state(opened.id).ended_by;
    assert_eq!(
        ended_by,
        "breaker-closed happened; then the mail that waited for it went on"
    );

    let stuck = world.record(Kind::BreakerOpened, Subject::engine("rspamd"));
    world.record(Kind::BreakerClosed, Subject::engine("rspamd"));
    for _ in 0..30 {
        world.pass(20);
        world.waiting(3);
    }
    assert_eq!(world.tracker.open().count(), 1);
    world.pass(21);
    let state = world.state(stuck.id);
    assert!(state.story.ended.is_some(), "{state:?}");
    assert!(state.ended_by.contains("3 messages"), "{state:?}");
}

/// While trouble lasts, the story says how much mail waits; after it, only mail of that time counts.
#[test]
fn a_story_says_how_much_waits_for_its_cause() {
    let mut world = World::new();
    let opened = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    assert_eq!(world.state(opened.id).waits(), None);
    world.waiting(258);
    let state = world.state(opened.id);
    assert_eq!(state.waits().as_deref(), Some("258 messages wait"));
    world.pass(60);
    let closed = world.record(Kind::BreakerClosed, Subject::engine("clamd"));
    assert_eq!(world.state(opened.id).waits(), None, "not looked at yet");
    assert_eq!(world.tracker.waited_for()[0].before, Some(closed.at));
}

/// Whoever sends a slow message now and then holds no story open whose trouble is over, so the next outage is told. What a person
/// does after the end is a story of its own.
#[test]
fn single_signs_hold_no_story_open() {
    use StoryPhase::{Begin, End};
    let mut world = World::new();
    let clamd = || Subject::engine("clamd");
    let opened = world.record(Kind::BreakerOpened, clamd());
    world.record(Kind::BreakerClosed, clamd());
    for _ in 0..12 {
        world.pass(5);
        world.record(Kind::LateAnswer, clamd());
    }
    assert_eq!(world.phases_of(opened.id), [Begin, End]);
    let again = world.record(Kind::BreakerOpened, clamd());
    assert_eq!(again.story, opened.story);
    assert_eq!(world.phases_of(opened.id), [Begin, End, Begin]);
    world.record(Kind::BreakerClosed, clamd());
    world.pass(31);
    let drained = world.record(Kind::Drained, clamd());
    assert_eq!(world.phases_of(drained.id), [Begin]);
}

/// Trouble that comes back continues the story, which says since when. What recovery does after the end is no new trouble.
#[test]
fn trouble_that_comes_back_is_told_as_such() {
    let mut world = World::new();
    let clamd = || Subject::engine("clamd");
    let opened = world.record(Kind::BreakerOpened, clamd());
    world.record(Kind::BreakerClosed, clamd());
    world.pass(31);
    let first_end = world.state(opened.id).story;
    assert!(first_end.ended.is_some() && first_end.back.is_none());
    for kind in [Kind::RecoveryBegun, Kind::RecoveryEnded] {
        assert_eq!(world.record(kind, clamd()).story, Some(opened.id));
    }
    use StoryPhase::{Begin, End};
    assert_eq!(world.phases_of(opened.id), [Begin, End]);
    world.pass(60);
    let back = world.record(Kind::BreakerOpened, clamd());
    let story = world.state(opened.id).story;
    assert_eq!((story.began, story.back), (opened.at, Some(back.at)));
    assert_eq!(world.phases_of(opened.id), [Begin, End, Begin]);
}

/// A virus in mail that was delivered is a story of its own, told at once, whatever else its engine does.
#[test]
fn a_finding_in_delivered_mail_hides_in_no_other_story() {
    let mut world = World::new();
    let out = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    let found = world.record_with(Kind::LateFinding, Subject::Relay, Some("clamd"));
    assert_ne!(found.story, out.story);
    let story = world.state(found.id).story;
    assert_eq!(story.kind, Kind::LateFinding);
    assert_eq!(story.cause, Subject::engine("clamd"));
    assert_eq!(world.phases_of(found.id), [StoryPhase::Begin]);
    world.touch(Subject::engine("clamd"), TouchOutcome::Found, 0);
    let counts = [found.id, out.id].map(|id| world.state(id).story.touched.found);
    assert_eq!(counts, [1, 0]);
}

/// The story of a state lasts as long as the state, however long nothing happens: signatures stay old without a further sign.
#[test]
fn a_state_is_a_story_until_it_ends() {
    let mut world = World::new();
    let stale = world.record(Kind::SignaturesStale, replica("clamd", "a"));
    let differ = world.record(Kind::ReplicasDiffer, Subject::engine("clamd"));
    assert_eq!(differ.story, stale.story);
    world.pass(86_000);
    assert_eq!(world.tracker.open().count(), 1);
    world.restart();
    world.pass(29);
    assert_eq!(world.tracker.open().count(), 1);
    world.pass(2);
    world.pass(600);
    assert_eq!(world.tracker.open().count(), 1, "they are still old");
    world.is_stale = false;
    world.pass(1);
    world.pass(31);
    let state = world.state(stale.id);
    assert_eq!(state.ended_by, "the signatures are new enough again");
}

impl World {
    fn log_touch(&self) -> Touch {
        Touch {
            message: MessageId::new(),
            outcome: TouchOutcome::Delayed,
            at: self.at,
            received: self.at,
            delay: Duration::ZERO,
            sender: String::new(),
            recipients: Vec::new(),
            recipients_total: 0,
            subject: String::new(),
        }
    }
}

/// After a restart, trouble that is still there continues its story under the same id; what nothing confirms ends, and the
/// story says that the restart ended it.
#[test]
fn a_restart_continues_what_lasts_and_ends_what_does_not() {
    let mut world = World::new();
    let clamd = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    world.record(Kind::RecoveryBegun, Subject::engine("clamd"));
    let rspamd = world.record(Kind::BreakerOpened, Subject::engine("rspamd"));
    let strike = world.record(Kind::Strike, Subject::engine("yara"));
    world.record(Kind::QuarantineFilling, Subject::Relay);
    for _ in 0..3 {
        world.pass(5);
        world.restart();
    }
    assert_eq!(world.tracker.open().count(), 4);
    let again = world.record(Kind::BreakerOpened, Subject::engine("clamd"));
    assert_eq!(again.story, clamd.story);
    world.record(Kind::QuarantineFilling, Subject::Relay);
    let now_holds = |cause: &Subject, condition: &Condition| match condition {
        Condition::Out(_) => Some(*cause == Subject::engine("clamd")),
        _ => None,
    };
    for _ in 0..70 {
        world.now += Duration::from_secs(1);
        world.at += Duration::from_secs(1);
        world.tracker.tick(world.now, world.at, now_holds);
    }
    let open: Vec<_> = world
        .tracker
        .open()
        .map(|s| s.story.cause.to_string())
        .collect();
    assert_eq!(
        open.into_iter().collect::<BTreeSet<_>>(),
        ["engine clamd", "engine yara", "quarantine"]
            .map(str::to_owned)
            .into()
    );
    let state = world.state(rspamd.id);
    assert!(state.ended_by.starts_with("ended by restart"), "{state:?}");
    let lasts = world.state(clamd.id).conditions;
    assert_eq!(
        lasts.into_iter().collect::<Vec<_>>(),
        [Condition::Out(None)]
    );
    world.pass(600);
    assert!(world.state(strike.id).story.ended.is_some());
}

/// A flood of incidents and of causes costs bounded memory, and the counts stay exact.
#[test]
fn a_flood_is_bounded_and_counted() {
    const FLOOD: u32 = 10_000;
    let mut world = World::new();
    let mut kept = 0;
    for n in 0..FLOOD {
        let mut strike = Incident::new(Kind::Strike, Subject::engine("clamd"), "x".repeat(1000));
        strike.at = world.at;
        kept += u64::from(world.tracker.record(world.now, &mut strike).0);
        if n % 4 == 0 {
            let hop = Subject::NextHop(format!("hop {n}"));
            world.record(Kind::NextHopDead, hop);
        }
        world.touch(Subject::NextHop("none".to_owned()), TouchOutcome::Passed, 0);
        if n % 1000 == 0 {
            world.write();
        }
    }
    assert!(world.tracker.stories.len() <= STORIES_MAX);
    assert!(world.tracker.unclaimed.len() <= UNCLAIMED_MAX);
    for _ in 0..2 * UNWRITTEN_MAX {
        world.touch(Subject::engine("clamd"), TouchOutcome::Passed, 0);
    }
    world.messages.clear();
    world.write();
    assert_eq!(world.messages.len(), UNWRITTEN_MAX);
    let strikes = world.log.values().filter(|s| s.story.kind == Kind::Strike);
    let counted: Vec<u64> = strikes.map(StoryState::incidents).collect();
    assert!(kept < u64::from(FLOOD));
    assert_eq!(
        counted.iter().sum::<u64>(),
        u64::from(FLOOD),
        "in {} stories",
        counted.len()
    );
    let mut alone = World::new();
    let first = alone.record(Kind::Strike, Subject::engine("clamd"));
    for _ in 1..FLOOD {
        alone.record(Kind::Strike, Subject::engine("clamd"));
    }
    let state = alone.state(first.id);
    assert_eq!(state.incidents(), u64::from(FLOOD));
    assert_eq!(state.kinds.len(), 1);
    assert!(state.story.title.len() <= 300);
}
