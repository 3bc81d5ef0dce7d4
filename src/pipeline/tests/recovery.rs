//! What was kept for a cause that is gone goes on: nothing keeps it waiting, and nobody else has it meanwhile.

mod passing;
mod turns;
mod width;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::measure::SizeClass;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Identity, SenderReputation, Trait};
use crate::observation::{Evidence, Observed, ScanReason};
use crate::store::{Cause, Times};
use crate::verdict::{Answer as Said, Reason, Verdict};

const MINUTE: Duration = Duration::from_secs(60);

/// Breaks off at some mail, says nothing about other mail, and knows nothing against the rest.
fn moody(heard: &[u8]) -> Option<&'static [u8]> {
    let said = |what: &[u8]| memchr::memmem::find(heard, what).is_some();
    if said(b"EICAR-STANDARD") {
        return Some(b"stream: Eicar FOUND\0");
    }
    match (said(b"ail me"), said(b"ang me")) {
        (true, _) => Some(b"stream: it is broken ERROR\0"),
        (_, true) => None,
        _ => Some(b"stream: OK\0"),
    }
}

/// Knows nothing against any mail.
fn sound(heard: &[u8]) -> Option<&'static [u8]> {
    moody(heard).map(|said| match said.ends_with(b"ERROR\0") {
        true => &b"stream: OK\0"[..],
        false => said,
    })
}

/// Engine `name` was out.
fn out(name: &str) -> Report {
    Report::unasked(
        name.into(),
        EngineClass::Av,
        Said::none(Reason::BreakerOpen, "out"),
    )
}

/// A path with these engines, and mail that waits for them.
struct World {
    pipeline: Arc<Pipeline>,
    store: Arc<Scripted>,
    closing: CancellationToken,
    ids: Vec<MessageId>,
    engines: Vec<String>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn of(engines: &[&str], timeout: Duration) -> Self {
        let mut settings = Vec::new();
        for name in engines {
            settings.push(crate::scan::Settings {
                probe: Some(Duration::from_secs(10)),
                wait: Duration::from_secs(1),
                slots: 12,
                ..engine(name, timeout, if *name == "sound" { sound } else { moody }).await
            });
        }
        Self::of_settings(settings).await
    }

    async fn of_settings(settings: Vec<crate::scan::Settings>) -> Self {
        Self::delivering(settings, None).await
    }

    /// Its mail goes to that server, if there is one.
    async fn delivering(
        settings: Vec<crate::scan::Settings>,
        server: Option<Arc<dyn crate::delivery::next_hop::NextHop>>,
    ) -> Self {
        let engines = settings.iter().map(|one| one.name.to_string()).collect();
        let store = Arc::new(Scripted::default());
        let mut generation = generation(settings, Budget::default());
        let policy = crate::config::load(None).unwrap_or_else(|problems| panic!("{problems}"));
        let mut policy = policy.policy;
        policy.coverage = [(EngineClass::Av, 1)].into_iter().collect();
        generation.policy = Policy::new(policy, "test".into());
        if let Some(server) = server {
            let hop = (maildir_hop(), server);
            generation.delivery = Delivery::scripted(vec![hop], None).expect("a next hop");
        }
        let (pipeline, folder) = pipeline(generation, &store);
        Self {
            pipeline,
            store,
            closing: CancellationToken::new(),
            ids: Vec::new(),
            engines,
            _folder: folder,
        }
    }

    /// Kept for an engine; each was received a second after the one before, all of them before yesterday.
    async fn keep(&mut self, lane: Lane, engine: &str, content: &str) -> MessageId {
        self.keep_for(&["x@b.test"], lane, engine, content).await
    }

    async fn keep_for(
        &mut self,
        recipients: &[&str],
        lane: Lane,
        engine: &str,
        content: &str,
    ) -> MessageId {
        let cause = Cause::Engine(engine.to_owned());
        // What stays is at the head of all.
        let reputation = content.contains(" me").then_some(SenderReputation::Known);
        self.put(recipients, lane, (cause, reputation), content)
            .await
    }

    async fn put(
        &mut self,
        recipients: &[&str],
        lane: Lane,
        (cause, reputation): (Cause, Option<SenderReputation>),
        content: &str,
    ) -> MessageId {
        let mut message = message(recipients);
        let age = Duration::from_secs(2 * 86_400 - self.ids.len() as u64);
        message.received_at -= age;
        message.content = Content::uncharged(format!("Subject: x\r\n\r\n{content}\r\n"));
        let mut record = settle::unfinished(&self.pipeline.generation(), &message, None);
        record.lane = lane;
        record.cause = Some(cause);
        record.reports = self.engines.iter().map(|name| out(name)).collect();
        record.reputation = reputation;
        let put = self.store.put(vec![record], message.content);
        put.await.expect("put");
        self.ids.push(message.id);
        message.id
    }

    fn recover(&self) {
        tokio::spawn(self.pipeline.clone().recover(self.closing.clone()));
    }

    fn lane(&self, id: MessageId) -> Option<Lane> {
        let all = self.store.all();
        all.iter().find(|r| r.id == id).map(|r| r.lane)
    }

    /// How many are in a lane still.
    fn left(&self, lane: Lane) -> usize {
        let all = self.store.all();
        all.iter().filter(|record| record.lane == lane).count()
    }

    async fn until(&self, within: Duration, what: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !what(self) {
            assert!(began.elapsed() < within, "{:#?}", self.store.all());
            Deadline::after(Duration::from_millis(100)).wait().await;
        }
    }
}

/// Promise P3: mail that its engine fails at, again and again, keeps nothing behind it waiting, in quarantine or among
/// what was delivered: not a single such message, and not many of them in a row.
#[tokio::test(start_paused = true)]
async fn what_stays_keeps_nothing_behind_it_waiting() {
    for (lane, bad) in [(Lane::Held, 1), (Lane::Held, 10), (Lane::Rescan, 10)] {
        let mut world = World::of(&["moody"], MINUTE).await;
        for _ in 0..bad {
            world.keep(lane, "moody", "fail me").await;
        }
        for _ in 0..20 {
            world.keep(lane, "moody", "hello").await;
        }
        world.recover();
        world.until(5 * MINUTE, |w| w.left(lane) == bad).await;
        let bad = &world.ids[..bad];
        assert!(bad.iter().all(|id| world.lane(*id) == Some(lane)));
        world.closing.cancel();
    }
}

/// Law 10: mail that waits for an engine which a reload has removed or renamed goes on, by what the engines of now say.
#[tokio::test(start_paused = true)]
async fn what_waits_for_an_engine_that_is_gone_goes_on() {
    for lane in [Lane::Scan, Lane::Held, Lane::Rescan] {
        let mut world = World::of(&["moody"], MINUTE).await;
        for _ in 0..3 {
            world.keep(lane, "removed", "hello").await;
        }
        world.recover();
        world.until(5 * MINUTE, |w| w.left(lane) == 0).await;
        world.closing.cancel();
    }
}

/// A message on its way out of quarantine belongs to its recovery alone: no lane takes it up, and nothing that is heard of
/// it late hastens it, or it would be delivered twice.
#[tokio::test(start_paused = true)]
async fn what_is_scanned_again_belongs_to_its_recovery_alone() {
    let mut world = World::of(&["moody"], 2 * MINUTE).await;
    let id = world.keep(Lane::Held, "moody", "hang me").await;
    world.recover();
    world
        .until(MINUTE, |w| w.lane(id) == Some(Lane::Scan))
        .await;
    let now = wall_clock();
    assert!(!world.store.make_due(id, now).await.expect("hasten"));
    let times = Times::from(now, MINUTE, MINUTE);
    let claimed = world.store.claim(Lane::Scan, times, 9).await;
    assert_eq!(claimed.expect("claim"), []);
    world.closing.cancel();
}

/// Recovery passes nothing on itself: what is clean waits in the queue of its next hop, and however slow that is, it keeps
/// no other mail in quarantine.
#[tokio::test(start_paused = true)]
async fn what_is_recovered_waits_for_its_next_hop_like_all_mail() {
    let mut world = World::of(&["moody"], MINUTE).await;
    for _ in 0..5 {
        world.keep(Lane::Held, "moody", "hello").await;
    }
    world.keep(Lane::Scan, "moody", "hello").await;
    world.recover();
    world.until(MINUTE, |w| w.left(Lane::Delivery) == 6).await;
    for record in world.store.all() {
        assert_eq!(record.attempts, 0, "nobody has tried it");
        assert_eq!(&*record.next_hop, "hop");
        assert!(record.due_at <= wall_clock());
        let decision = record.decision.expect("judged");
        assert_eq!(decision.disposition, Disposition::Deliver);
    }
    world.closing.cancel();
}

/// A stop lets the steps that go on end: what an engine has said is not asked twice, and nothing is left half done.
#[tokio::test(start_paused = true)]
async fn a_stop_lets_the_steps_in_hand_end() {
    let mut world = World::of(&["moody"], Duration::from_secs(5)).await;
    let id = world.keep(Lane::Held, "moody", "hang me").await;
    world.recover();
    world
        .until(MINUTE, |w| w.lane(id) == Some(Lane::Scan))
        .await;
    world.closing.cancel();
    assert!(world.pipeline.drained(Deadline::after(MINUTE)).await);
    assert_eq!(world.lane(id), Some(Lane::Held), "it has its end");
}

/// Mail that waits for one cause does not wait for what is done about another.
#[tokio::test(start_paused = true)]
async fn causes_do_not_wait_for_each_other() {
    let mut world = World::of(&["one", "two"], 10 * MINUTE).await;
    let stuck = world.keep(Lane::Held, "one", "hang me").await;
    for n in 0..5 {
        world.keep(Lane::Held, "two", &format!("hello {n}")).await;
    }
    world.recover();
    world.until(MINUTE, |w| w.left(Lane::Delivery) == 5).await;
    assert_eq!(world.lane(stuck), Some(Lane::Scan), "it is not through");
    world.closing.cancel();
}

/// Law 4: nothing waits behind a message. While some hang, all others that wait for the same engine go on, those that come later as
/// well; and what hung twice, while others did not, is held with that reason and not scanned a third time.
#[tokio::test(start_paused = true)]
async fn nothing_waits_behind_a_message_that_hangs() {
    let mut world = World::of(&["moody"], Duration::from_secs(5)).await;
    let mut hanging = Vec::new();
    for n in 0..3 {
        hanging.push(
            world
                .keep(Lane::Scan, "moody", &format!("hang me {n}"))
                .await,
        );
    }
    for n in 0..50 {
        world.keep(Lane::Scan, "moody", &format!("hello {n}")).await;
    }
    world.recover();
    world.until(MINUTE, |w| w.left(Lane::Delivery) == 50).await;
    let stays = |id: &MessageId| matches!(world.lane(*id), Some(Lane::Scan | Lane::Held));
    assert!(hanging.iter().all(stays));
    for n in 50..60 {
        world.keep(Lane::Scan, "moody", &format!("hello {n}")).await;
    }
    world
        .until(2 * MINUTE, |w| w.left(Lane::Delivery) == 60)
        .await;
    world.closing.cancel();
}

/// Law 4: a message that ran into its timeout is scanned once more. If it does so again it is held with that reason, and is not kept
/// for its engine: nothing scans it a third time. Whatever is said of it in between, its first timeout counts.
#[tokio::test]
async fn what_timed_out_twice_is_held_for_a_person() {
    let world = World::of(&["one"], MINUTE).await;
    let generation = world.pipeline.generation();
    let message = message(&["x@b.test"]);
    let report = |reason| Report {
        answer: Said::none(reason, "no answer"),
        ..out("one")
    };
    let mut custody = Custody::Session;
    let passes = [
        (Reason::Timeout, Lane::Scan, 1),
        (Reason::Busy, Lane::Scan, 1),
        (Reason::Parked, Lane::Scan, 1),
        (Reason::Timeout, Lane::Held, 2),
    ];
    for (reason, lane, timeouts) in passes {
        let mut passed = passed(vec![(Disposition::Defer, vec![0], GroupOutcome::Deferred)]);
        passed.judged.reports = vec![report(reason)];
        for (decision, _) in &mut passed.judged.groups {
            decision.verdict = Verdict::Undetermined;
        }
        let mut settlement = settle::settle(&generation, &message, &custody, &passed);
        let record = settlement.keep.pop().expect("kept");
        assert_eq!(
            (record.lane, record.timeouts),
            (lane, timeouts),
            "{reason:?}"
        );
        assert_eq!(record.cause.is_none(), lane == Lane::Held, "{reason:?}");
        custody = Custody::Stored(Box::new(record));
    }
    let Custody::Stored(record) = custody else {
        panic!("stored");
    };
    assert_eq!(
        record.decision.expect("a decision").rule,
        settle::TIMEOUT_RULE
    );
}

/// Promise P4: what was delivered without two engines is scanned by both of them, whichever is back first: what only one
/// knows the other does not tell.
#[tokio::test(start_paused = true)]
async fn every_engine_that_was_absent_gets_its_second_look() {
    let mut world = World::of(&["sound", "moody"], MINUTE).await;
    let bad = world.keep(Lane::Rescan, "sound", "fail me").await;
    let good = world.keep(Lane::Rescan, "sound", "hello").await;
    world.recover();
    world.until(MINUTE, |w| w.lane(good).is_none()).await;
    let record = world.store.get(bad).await.expect("get").expect("kept");
    let cause = Cause::Engine("moody".to_owned());
    assert_eq!(record.cause, Some(cause), "its answer is missing yet");
    assert_eq!(record.reports[0].missing(), None, "the other's is there");
    assert!(record.reports[1].missing().is_some());
    world.closing.cancel();
}

/// Groups of recipients for whom different rules decided share one message: all of them are in its second look, and are told
/// what is found in it.
#[tokio::test]
async fn all_groups_of_recipients_are_in_the_second_look() {
    let world = World::of(&["one"], MINUTE).await;
    let taken = || GroupOutcome::Delivered(vec![Outcome::Delivered(answer(250))]);
    let mut passed = passed(vec![
        (Disposition::Deliver, vec![0], taken()),
        (Disposition::Quarantine, vec![2], GroupOutcome::Held),
        (Disposition::Deliver, vec![1], taken()),
    ]);
    passed.judged.reports = vec![out("one")];
    let message = message(&["x@b.test", "y@b.test", "z@b.test"]);
    let generation = world.pipeline.generation();
    let settlement = settle::settle(&generation, &message, &Custody::Session, &passed);
    let rescan = settlement.rescan.expect("to be scanned again");
    let recipients = rescan.envelope.recipients.iter();
    let recipients: Vec<&str> = recipients.map(|r| r.mailbox.as_str()).collect();
    assert_eq!(recipients, ["x@b.test", "y@b.test"]);
}

/// An interceptor that a person has made and that holds mail of this subject.
fn by_hand(subject: &str) -> intercept::Interceptor {
    intercept::Interceptor {
        id: "by-hand".to_owned(),
        pattern: crate::message::pattern::Pattern {
            subject: Some(subject.parse().expect("a glob")),
            ..Default::default()
        },
        action: intercept::Action::Hold,
        origin: intercept::Origin::Person {
            who: "root".to_owned(),
            note: String::new(),
        },
        made: wall_clock(),
        expires: None,
        dry_run: false,
        hits: 0,
        samples: Vec::new(),
    }
}

/// What was delivered without its engine, and is bad after all, is told with everybody who has got it: nothing else can be done
/// for them. It is told once, and what is not bad is not told.
#[tokio::test(start_paused = true)]
async fn what_is_found_late_is_told_with_its_recipients() {
    let mut world = World::of(&["one"], MINUTE).await;
    let to = ["x@b.test", "y@b.test"];
    let bad = world
        .keep_for(&to, Lane::Rescan, "one", "EICAR-STANDARD")
        .await;
    world.keep(Lane::Rescan, "one", "hello").await;
    world.recover();
    world.until(MINUTE, |w| w.left(Lane::Rescan) == 0).await;
    Deadline::after(5 * MINUTE).wait().await;
    world.closing.cancel();
    let filter = crate::store::incidents::Filter {
        kinds: vec![crate::incident::Kind::LateFinding],
        ..Default::default()
    };
    let told = world.pipeline.incidents.search(filter).await.expect("told");
    let [told] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(told.message, Some(bad));
    let said = |what: &str| {
        let mut evidence = told.evidence.iter();
        evidence
            .find(|(name, _)| name == what)
            .map(|(_, said)| &**said)
    };
    assert_eq!(said("recipients"), Some("x@b.test, y@b.test"));
    assert_eq!(said("from"), Some("<sender@a.test>"));
    assert!(told.summary.contains("Eicar"), "{}", told.summary);
}

/// What a person has said to hold stays held though its engine is back: a recovery passes what was learned, not what was said.
#[tokio::test(start_paused = true)]
async fn no_recovery_passes_what_a_person_holds() {
    let mut world = World::of(&["one"], MINUTE).await;
    let id = world.keep(Lane::Held, "one", "hello").await;
    let interception = &world.pipeline.interception;
    interception.lock().add(Instant::now(), by_hand("x"));
    world.recover();
    let rule = |w: &World| w.store.all()[0].decision.clone().map(|d| d.rule);
    let by_hand = Some("interceptor.by-hand".to_owned());
    world.until(MINUTE, |w| rule(w) == by_hand).await;
    Deadline::after(20 * MINUTE).wait().await;
    assert_eq!(world.lane(id), Some(Lane::Held));
    world.closing.cancel();
}

/// A second look that an interceptor prevents is none: nobody has been asked. It is made when the interceptor has ended.
#[tokio::test(start_paused = true)]
async fn a_second_look_that_is_intercepted_is_made_later() {
    let mut world = World::of(&["one"], MINUTE).await;
    let id = world.keep(Lane::Rescan, "one", "hello").await;
    let interception = &world.pipeline.interception;
    interception.lock().add(Instant::now(), by_hand("x"));
    world.recover();
    Deadline::after(20 * MINUTE).wait().await;
    assert_eq!(world.lane(id), Some(Lane::Rescan));
    interception.lock().remove("by-hand").expect("it was there");
    world.until(MINUTE, |w| w.lane(id).is_none()).await;
    world.closing.cancel();
}

/// The end of an interceptor is a new chance for what stays, however long ago the last one was: it may have waited for it.
#[tokio::test(start_paused = true)]
async fn the_end_of_an_interceptor_is_a_new_chance() {
    let mut world = World::of(&["moody"], MINUTE).await;
    let id = world.keep(Lane::Held, "moody", "fail me").await;
    world.recover();
    Deadline::after(20 * MINUTE).wait().await;
    let tried = |w: &World| w.store.all()[0].due_at;
    let (interception, before) = (&world.pipeline.interception, tried(&world));
    interception.lock().add(Instant::now(), by_hand("invoice"));
    Deadline::after(MINUTE / 12).wait().await;
    assert_eq!(tried(&world), before, "there is nothing new");
    interception.lock().remove("by-hand").expect("it was there");
    world.until(MINUTE / 12, |w| tried(w) != before).await;
    assert_eq!(world.lane(id), Some(Lane::Held));
    world.closing.cancel();
}

/// A message that finds no place in memory is not loaded: sweeps at a full memory would otherwise hold more than there is.
#[tokio::test(start_paused = true)]
async fn nothing_is_loaded_before_it_has_its_place_in_memory() {
    let mut world = World::of(&["moody"], MINUTE).await;
    let id = world.keep(Lane::Held, "moody", "hello").await;
    let memory = world.pipeline.memory().clone();
    let total = usize::try_from(memory.total()).expect("a size");
    let everything = memory.acquire(total).await;
    world.recover();
    Deadline::after(60 * MINUTE).wait().await;
    assert_eq!(world.store.loaded.load(Ordering::SeqCst), 0);
    assert_eq!(world.lane(id), Some(Lane::Held));
    drop(everything);
    world
        .until(20 * MINUTE, |w| w.left(Lane::Delivery) == 1)
        .await;
    world.closing.cancel();
}

const FAST: Observed = Observed::Fast { found: false };
const IN_TIME: Observed = Observed::Ended { found: false };

impl World {
    /// A known sender's message that has what a stranger's hangs with is scanned, and ends like that.
    fn tries(&self, end: &[Observed]) {
        let mut interception = self.pipeline.interception.lock();
        let (now, engine) = (Instant::now(), self.engines[0].as_str().into());
        let of = |exact: &[u64], broad: &[Aspect]| {
            let one = |(aspect, value)| Trait { aspect, value };
            Arc::new(Fingerprint {
                identity: Identity([0; 32]),
                exact: exact
                    .iter()
                    .map(|n| one((Aspect::Attachment, *n)))
                    .collect(),
                broad: broad.iter().map(|aspect| one((*aspect, 1))).collect(),
                attachments: Box::new([]),
            })
        };
        let letter = of(&[1], &[Aspect::SenderDomain, Aspect::Client]);
        (0..2).for_each(|_| interception.scanned_well(now, &letter));
        let mut see = |message, fingerprint: &Arc<Fingerprint>, seen| {
            let evidence = Evidence {
                message,
                fingerprint: fingerprint.clone(),
                reputation: SenderReputation::Unknown,
                scan_reason: ScanReason::Fresh,
                size: SizeClass::Tiny,
                arrived: now,
                started: now,
                at: now,
                what: seen,
            };
            if seen != IN_TIME {
                interception.judge(now, message, fingerprint);
            }
            interception.observe(now, &engine, &evidence);
        };
        see(MessageId::new(), &of(&[1, 2], &[]), Observed::Slow);
        let trial = MessageId::new();
        end.iter().for_each(|seen| see(trial, &letter, *seen));
    }
}

/// Law 6: what waits for a trial goes on when that has ended, quickly or by accident not, also where other mail that waits for the
/// same engine could not be helped before.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_trial_is_a_chance_for_what_waits_for_it() {
    for end in [&[FAST][..], &[Observed::Slow, IN_TIME]] {
        let mut world = World::of(&["moody"], Duration::from_secs(5)).await;
        world.keep(Lane::Scan, "moody", "fail me").await;
        world.recover();
        Deadline::after(MINUTE).wait().await;
        let waits = world.keep(Lane::Scan, "moody", "Hello").await;
        world.tries(end);
        let goes_on = |world: &World| world.lane(waits) != Some(Lane::Scan);
        world.until(Duration::from_secs(3), goes_on).await;
        world.closing.cancel();
    }
}
