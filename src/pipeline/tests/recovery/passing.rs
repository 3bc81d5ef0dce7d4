//! A person lets mail pass without a drained engine (`engine drain --pass`).

use super::turns::by_learner;
use super::*;
use crate::incident::Kind as IncidentKind;
use crate::pipeline::tests::clock::Taking;
use crate::policy::PASSED_RULE;
use crate::scan::Drain;

const HOUR: Duration = Duration::from_secs(3600);

impl World {
    /// An engine that is moody, and a next hop that takes all mail.
    async fn of_moody() -> (Self, Arc<Taking>) {
        let moody = crate::scan::Settings {
            slots: 12,
            ..engine("moody", MINUTE, moody).await
        };
        let server = Taking::new(Duration::ZERO);
        let world = Self::delivering(vec![moody], Some(server.clone())).await;
        (world, server)
    }

    fn drain(&self, drain: &Arc<Drain>) {
        let generation = self.pipeline.generation();
        let drained = generation.scanner.engines()[0].drain(None, drain);
        drained.expect("drained");
    }

    fn resume(&self) {
        let generation = self.pipeline.generation();
        assert_eq!(generation.scanner.engines()[0].resume(None), Some(true));
    }

    /// Recovers, delivers, and removes what has expired, which the mail of this world has not.
    fn run(&self) {
        for id in &self.ids {
            let later = wall_clock() + 24 * HOUR;
            self.store.edit(*id, |record| record.expires_at = later);
        }
        self.recover();
        let lanes = Lanes::new(self.pipeline.clone());
        tokio::spawn(lanes.run(self.closing.clone()));
    }

    async fn incidents(&self, kind: IncidentKind) -> Vec<crate::incident::Incident> {
        let filter = crate::store::incidents::Filter {
            kinds: vec![kind],
            ..Default::default()
        };
        let told = self.pipeline.incidents.search(filter).await;
        told.expect("told")
    }
}

/// The lever of the eight-hour night. A backlog of deferred mail, and mail that was held because its time was over, leaves at once
/// when a person lets mail pass; mail that comes then passes in its session. Each such message is undetermined, names the reason
/// and the person, and is kept and scanned when the engine is back: a finding is told then.
#[tokio::test(start_paused = true)]
async fn a_backlog_passes_and_is_scanned_when_its_engine_is_back() {
    let (mut world, server) = World::of_moody().await;
    let mut waiting = Vec::new();
    for n in 0..40 {
        let lane = if n % 4 == 0 { Lane::Held } else { Lane::Scan };
        let id = world.keep(lane, "moody", &format!("hello {n}")).await;
        // Not due for hours: only the drain hastens it.
        world.store.edit(id, |record| record.due_at += 10 * HOUR);
        waiting.push(id);
    }
    let bad = world.keep(Lane::Scan, "moody", "EICAR-STANDARD").await;
    world.drain(&Drain::plain());
    world.run();
    Deadline::after(5 * MINUTE).wait().await;
    assert_eq!(server.begun(), 0, "it waits for its engine");
    world.drain(&Drain::passing(HOUR));
    let began = Instant::now();
    world.until(MINUTE, |_| server.begun() == 41).await;
    assert!(began.elapsed() < MINUTE / 6, "{:?}", began.elapsed());
    let fresh = message(&["x@b.test"]);
    let reply = world.pipeline.accept(fresh, Mode::CutThrough).await;
    assert!(reply.to_string().contains("said the hop"), "{reply}");
    world.until(MINUTE, |w| w.left(Lane::Rescan) == 42).await;
    for record in world.store.all() {
        let decision = record.decision.expect("judged");
        assert_eq!(decision.verdict, Verdict::Undetermined);
        assert_eq!(decision.rule, PASSED_RULE);
        let why = "mail passes without moody: it hangs, by a test";
        assert!(decision.reason.ends_with(why), "{}", decision.reason);
        assert_eq!(record.cause, Some(Cause::Engine("moody".to_owned())));
    }
    Deadline::after(5 * MINUTE).wait().await;
    assert_eq!(world.left(Lane::Rescan), 42, "until the engine is back");
    world.resume();
    world.until(MINUTE, |w| w.left(Lane::Rescan) == 0).await;
    let told = world.incidents(IncidentKind::LateFinding).await;
    let [told] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(told.message, Some(bad));
    assert_eq!(server.begun(), 42, "each once");
    for id in [waiting[0], bad] {
        let history = world.pipeline.history.entries(id).await.expect("read");
        let last = history.last().expect("an event");
        assert_eq!(last.event, "rescanned");
        assert_eq!(last.basis, None, "it decides nothing");
    }
    world.closing.cancel();
}

/// Only the answer `drained` lets mail pass. Mail that ran into its timeout before, and held mail that was refused as a suspect,
/// stays, however often it is tried: it may be what only this engine would find.
#[tokio::test(start_paused = true)]
async fn suspects_do_not_pass() {
    let (mut world, server) = World::of_moody().await;
    let mut suspects = Vec::new();
    for lane in [Lane::Scan, Lane::Held] {
        let id = world.keep(lane, "moody", "slow").await;
        world.store.edit(id, |record| record.timeouts = 1);
        suspects.push(id);
    }
    for reason in [Reason::Suspect, Reason::Parked] {
        let id = world.keep(Lane::Held, "moody", "like it").await;
        world.store.edit(id, |record| {
            record.reports[0].answer = Said::none(reason, "like another");
        });
        suspects.push(id);
    }
    // Not due, so that the sweep is what lets it go. What is due much later than any wait is due at once: the clock was set back.
    let good = world.keep(Lane::Scan, "moody", "hello").await;
    let later = wall_clock() + 10 * MINUTE;
    world.store.edit(good, |record| record.due_at = later);
    world.drain(&Drain::passing(HOUR));
    world.run();
    world.until(MINUTE, |_| server.begun() == 1).await;
    Deadline::after(30 * MINUTE).wait().await;
    assert_eq!(server.begun(), 1);
    let stays = |id: &MessageId| matches!(world.lane(*id), Some(Lane::Scan | Lane::Held));
    assert!(suspects.iter().all(stays), "{:#?}", world.store.all());
    let told = world.incidents(IncidentKind::RecoveryBegun).await;
    assert_eq!(told.len(), 1, "tries without a result are not told");
    world.closing.cancel();
}

/// Mail that was in the engine when its breaker opened may be what hangs it, although its answer was awaited no more for another
/// reason than its timeout. However often it is tried without the engine, it does not pass.
#[tokio::test(start_paused = true)]
async fn mail_in_an_engine_that_fails_does_not_pass() {
    let moody = crate::scan::Settings {
        slots: 24,
        limit: 10 * MINUTE,
        ..engine("moody", MINUTE, moody).await
    };
    let server = Taking::new(Duration::ZERO);
    let mut world = World::delivering(vec![moody], Some(server.clone())).await;
    // The timeouts of the first open the breaker while the last are in the engine.
    for contents in [&["a", "b", "c", "d", "e", "f"][..], &["g", "h"]] {
        for content in contents {
            let mut message = message(&["x@b.test"]);
            message.content =
                Content::uncharged(format!("Subject: x\r\n\r\nhang me {content}\r\n"));
            world.ids.push(message.id);
            world.pipeline.accept(message, Mode::Queue).await;
        }
        Deadline::after(MINUTE / 200).wait().await;
    }
    let attempts = |world: &World| world.store.all().iter().map(|r| r.attempts).min();
    world.until(2 * MINUTE, |w| attempts(w) == Some(1)).await;
    for record in world.store.all() {
        let is_late = world.ids[6..].contains(&record.id);
        assert_eq!(record.timeouts == 0, is_late, "{record:#?}");
    }
    for id in &world.ids {
        world.store.edit(*id, |record| record.due_at = wall_clock());
    }
    world.drain(&Drain::plain());
    world.run();
    world.until(MINUTE, |w| attempts(w) > Some(1)).await;
    world.drain(&Drain::passing(HOUR));
    Deadline::after(30 * MINUTE).wait().await;
    assert_eq!(server.begun(), 0, "{:#?}", world.store.all());
    world.closing.cancel();
}

/// Mail that an interceptor holds is scanned to test the interceptor. While mail passes without the engine, that scan would test
/// nothing, and let the mail go: it is not made until the engine is back.
#[tokio::test(start_paused = true)]
async fn held_mail_is_no_test_while_mail_passes() {
    let (mut world, server) = World::of_moody().await;
    let interception = &world.pipeline.interception;
    interception
        .lock()
        .add(Instant::now(), by_learner("one", 1));
    let id = world
        .keep_held(Lane::Held, "one", SenderReputation::Known)
        .await;
    world.drain(&Drain::passing(HOUR));
    world.run();
    Deadline::after(30 * MINUTE).wait().await;
    assert_eq!((world.lane(id), server.begun()), (Some(Lane::Held), 0));
    world.resume();
    world.until(MINUTE, |_| server.begun() == 1).await;
    world.closing.cancel();
}
