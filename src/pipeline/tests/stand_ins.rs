//! What is delivered while an answer about another message stands in is scanned itself, and people are told.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::incident::Kind as IncidentKind;
use crate::store::Cause;
use crate::verdict::{Answer as Said, Report, Reused, Same};

const MINUTE: Duration = Duration::from_secs(60);

/// Knows a name in a header field, and keeps silent about some mail.
fn says(heard: &[u8]) -> Option<&'static [u8]> {
    let said = |what: &[u8]| memchr::memmem::find(heard, what).is_some();
    // What it is probed with, when it is back.
    match (said(b"bad-id") || said(b"EICAR-STANDARD"), said(b"ang me")) {
        (true, _) => Some(b"stream: Bad FOUND\0"),
        (_, true) => None,
        _ => Some(b"stream: OK\0"),
    }
}

fn copy(id: &str, octets: usize) -> Message {
    let text = "x".repeat(octets);
    Message {
        content: Content::uncharged(format!(
            "Message-ID: <{id}@a.test>\r\nSubject: x\r\n\r\n{text}\r\n"
        )),
        ..message(&["x@b.test"])
    }
}

/// A path to a Maildir, through an engine with one slot.
struct World {
    pipeline: Arc<Pipeline>,
    store: Arc<Scripted>,
    noticed: Box<dyn FnMut() -> Option<crate::incident::Incident> + Send>,
    mail: tempfile::TempDir,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let settings = crate::scan::Settings {
            slots: 1,
            wait: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            // It is asked for its version each time, and does not tell.
            slow: Duration::from_secs(2),
            ..engine("one", MINUTE, says).await
        };
        let mail = tempfile::tempdir().expect("a folder");
        let mut generation = generation(vec![settings], Budget::default());
        let hop = HopSettings {
            kind: Kind::Maildir {
                path: mail.path().join("{local}").to_string_lossy().into_owned(),
            },
            ..maildir_hop()
        };
        generation.delivery = Delivery::new(vec![hop], None).expect("a next hop");
        let mut policy = crate::config::load(None)
            .unwrap_or_else(|problems| panic!("{problems}"))
            .policy;
        policy.coverage = [(EngineClass::Av, 1)].into_iter().collect();
        generation.policy = Policy::new(policy, "test".into());
        let store = Arc::new(Scripted::default());
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::open(&folder.path().join("history.db"), MINUTE).expect("history");
        let (incidents, noticed) = Incidents::detached();
        let pipeline = Pipeline::new(
            generation,
            store.clone(),
            (history, incidents),
            intercept::Settings::default(),
            64 << 20,
        );
        Self {
            pipeline,
            store,
            noticed: Box::new(noticed),
            mail,
            _folder: folder,
        }
    }

    /// The one slot is taken for a minute, by something else.
    async fn take_the_slot(&self) {
        let generation = self.pipeline.generation();
        let other = Message {
            content: Content::uncharged("Subject: y\r\n\r\nhang me\r\n"),
            ..message(&["y@b.test"])
        };
        let of = generation.clone();
        tokio::spawn(async move {
            judge(&of.scanner, &of.policy, &other, Deadline::after(MINUTE)).await
        });
        self.until(|_| generation.scanner.engines()[0].health().running == 1)
            .await;
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !what(self) {
            assert!(began.elapsed() < 10 * MINUTE, "{:#?}", self.store.all());
            Deadline::after(Duration::from_millis(100)).wait().await;
        }
    }

    /// The header sections that have arrived at a mailbox.
    fn arrived(&self, local: &str) -> Vec<String> {
        let new = self.mail.path().join(local).join("new");
        let files = std::fs::read_dir(new).expect("a mailbox");
        let read = |file: std::io::Result<std::fs::DirEntry>| {
            let file = std::fs::read(file.expect("a file").path()).expect("a message");
            let text = String::from_utf8(file).expect("ASCII");
            text.split("\r\n\r\n").next().unwrap_or_default().to_owned()
        };
        files.map(read).collect()
    }
}

/// Whoever keeps an engine short of slots gets one message past it and no further: what was delivered on the answer about
/// another is marked, is kept until the engine has seen it, and is told to people when it is bad; in both modes.
#[tokio::test(start_paused = true)]
async fn what_was_delivered_on_a_stand_in_is_scanned_and_told() {
    for mode in [Mode::CutThrough, Mode::Queue] {
        let mut world = World::new().await;
        let good = copy("good", 10);
        let from = good.id;
        world.pipeline.accept(good, mode).await;
        world.until(|w| w.store.all().is_empty()).await;
        world.take_the_slot().await;
        let bad = copy("bad-id", 10);
        let id = bad.id;
        let reply = world.pipeline.accept(bad, mode).await;
        assert_eq!(reply.code(), 250, "{reply}");
        let kept = |w: &World| w.store.all().into_iter().find(|r| r.message == id);
        world
            .until(|w| kept(w).is_some_and(|r| r.lane == Lane::Rescan))
            .await;
        let record = kept(&world).expect("kept");
        assert_eq!(record.cause, Some(Cause::Engine("one".to_owned())));
        assert_eq!(record.reports[0].stand_in(), Some(from));
        assert!(
            record.status.contains(&from.to_string()),
            "{}",
            record.status
        );
        let marked = format!("reused=one:{from}");
        let arrived = world.arrived("x");
        let told = arrived.iter().filter(|head| head.contains(&marked));
        assert_eq!((arrived.len(), told.count()), (2, 1), "{arrived:?}");
        let closing = CancellationToken::new();
        tokio::spawn(world.pipeline.clone().recover(closing.clone()));
        world.until(|w| kept(w).is_none()).await;
        let incidents = std::iter::from_fn(&mut world.noticed);
        let late: Vec<_> = incidents
            .filter(|incident| incident.kind == IncidentKind::LateFinding)
            .collect();
        assert_eq!(late.len(), 1, "{late:?}");
        assert_eq!(late[0].message, Some(id));
        closing.cancel();
    }
}

/// Nothing stands in that cannot be kept until it is scanned: what has given way would never be.
#[tokio::test(start_paused = true)]
async fn without_room_to_keep_it_nothing_stands_in() {
    let world = World::new().await;
    let large = crate::store::contract::RESCAN_BYTES as usize / 2;
    world
        .pipeline
        .accept(copy("good", large), Mode::CutThrough)
        .await;
    world.until(|w| w.store.all().is_empty()).await;
    world.take_the_slot().await;
    let other = copy("other", large);
    let id = other.id;
    world.pipeline.accept(other, Mode::CutThrough).await;
    let kept = world.store.get(id).await.expect("get").expect("kept");
    assert_eq!(kept.lane, Lane::Scan, "it waits for its engine");
    assert_eq!(kept.reports[0].reused, None);
    assert_eq!(world.arrived("x").len(), 1);
}

/// What waited in delivery on the answer about another message asks for room again when it goes out: without it the engine
/// is asked about this one, and what is kept already for its second look stays. A person's release is not asked again.
#[tokio::test(start_paused = true)]
async fn what_waited_on_a_stand_in_asks_for_room_again() {
    for (released, full) in [(false, false), (false, true), (true, true)] {
        let world = World::new().await;
        let generation = world.pipeline.generation();
        let octets = match full {
            true => crate::store::contract::RESCAN_BYTES as usize / 2,
            false => 10,
        };
        let other = copy("other", octets);
        let owed = Record {
            lane: Lane::Rescan,
            expires_at: other.received_at + MINUTE,
            ..settle::unfinished(&generation, &other, None)
        };
        let put = world.store.put(vec![owed.clone()], other.content);
        put.await.expect("put");
        let message = copy("waiting", 10);
        let record = Record {
            lane: Lane::Delivery,
            decision: Some(decision(Disposition::Deliver)),
            reports: vec![stand_in("one", EngineClass::Av)],
            released,
            ..settle::unfinished(&generation, &message, None)
        };
        let put = world
            .store
            .put(vec![record.clone()], message.content.clone());
        put.await.expect("put");
        let onward = NextStep::Deliver(None);
        let work = world.pipeline.clone();
        work.resume(generation, message, record, ScanReason::Again, onward)
            .await;
        let [arrived] = &world.arrived("x")[..] else {
            panic!("not delivered: {:?}", world.store.all());
        };
        let on_a_stand_in = arrived.contains("reused=one:");
        assert_eq!(on_a_stand_in, released || !full, "{arrived}");
        let kept = world.store.all();
        assert_eq!(kept[0].id, owed.id);
        assert_eq!(kept.len(), 1 + usize::from(on_a_stand_in), "{kept:?}");
    }
}

fn stand_in(engine: &str, class: EngineClass) -> Report {
    Report {
        reused: Some(Reused {
            from: MessageId::new(),
            same: Same::Content,
        }),
        ..Report::unasked(engine.into(), class, Said::Answered(Vec::new()))
    }
}

/// What an answer stood in for is owed a look of that engine, whether or not its class is required and any engine is probed, and
/// keeps the name that its sender knows: in the place of the record that there was, or beside the reply that the next hop has
/// given, which a store that fails does not take back.
#[test]
fn a_stand_in_is_owed_a_scan_whatever_its_engine_is_for() {
    let generation = generation(Vec::new(), Budget::default());
    let message = message(&["x@b.test"]);
    let stored = settle::unfinished(&generation, &message, None);
    for custody in [Custody::Session, Custody::Stored(Box::new(stored))] {
        let taken = GroupOutcome::Delivered(vec![Outcome::Delivered(answer(250))]);
        let mut passed = passed(vec![(Disposition::Deliver, vec![0], taken)]);
        passed.judged.reports = vec![stand_in("odd", EngineClass::Content)];
        let settlement = settle::settle(&generation, &message, &custody, &passed);
        assert!(settlement.reply.to_string().contains("delivered"));
        let in_place = matches!(custody, Custody::Stored(_));
        let kept = match (&settlement.keep[..], &settlement.rescan) {
            ([kept], None) if in_place => kept,
            ([], Some(kept)) if !in_place => kept,
            other => panic!("{other:?}"),
        };
        assert_eq!((kept.lane, kept.message), (Lane::Rescan, message.id));
        assert_eq!(kept.id == message.id, in_place);
        assert_eq!(kept.cause, Some(Cause::Engine("odd".to_owned())));
    }
}
