//! What is measured of an engine, through a real guard.

use std::collections::BTreeMap;

use futures_util::future::{BoxFuture, join_all};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::measure::{LateScan, Measured};
use crate::observation::ScanReason;
use crate::scan::engine::{Engine, EngineAnswer, Sample, ScanError};
use crate::store::{late_scans, measures};
use crate::verdict::{Answer as Said, Finding, FindingKind};

/// Does what the last line of a message says.
#[derive(Debug)]
struct Obedient;

impl Engine for Obedient {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, std::result::Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let content = String::from_utf8_lossy(sample.content().bytes()).into_owned();
            let order = content.lines().last().unwrap_or_default();
            let (act, milliseconds) = order.split_once(' ').expect("an order");
            let pause = Duration::from_millis(milliseconds.parse().expect("a number"));
            Deadline::after(pause).wait().await;
            match act {
                "clean" => Ok(EngineAnswer::new(Said::Answered(Vec::new()))),
                "find" => {
                    let finding = Finding::new(FindingKind::Suspicious, "x", 0.1);
                    Ok(EngineAnswer::new(Said::Answered(vec![finding])))
                }
                "fail" => Err(ScanError::Engine("scripted".to_owned())),
                "break" => Err(ScanError::Disconnected("scripted".to_owned())),
                "hang" => std::future::pending().await,
                _ => panic!("{order}"),
            }
        })
    }
}

/// A message of a sender of its own, so that no message stands for another.
pub(super) fn ordered(number: usize, padding: usize, order: &str) -> Message {
    let mut message = message(&["x@b.test"]);
    let sender = format!("sender{number}@a{number}.test");
    let sender = Mailbox::parse(&sender).expect("mailbox");
    Arc::make_mut(&mut message.envelope).reverse_path = sender.into();
    let line = "0123456789abcdef\r\n".repeat(padding);
    let text = format!("Subject: {number}\r\n\r\n{line}{number}\r\n{order}\r\n");
    message.content = Content::uncharged(text);
    message
}

pub(super) struct World {
    pub(super) pipeline: Arc<Pipeline>,
    _folder: tempfile::TempDir,
    closing: CancellationToken,
}

impl World {
    /// A path through one engine with so many slots, for which a message waits at most 1 s.
    pub(super) async fn new(slots: usize, slow: Duration) -> Self {
        let settings = crate::scan::Settings {
            limit: Duration::from_secs(60),
            wait: Duration::from_secs(1),
            slots,
            slow,
            attempts: 1,
            probe: None,
            ..engine("one", Duration::from_secs(5), |_| None).await
        };
        let mut generation = generation(Vec::new(), Budget::default());
        let engines = vec![(settings, vec![Arc::new(Obedient) as Arc<dyn Engine>])];
        generation.scanner = Scanner::of_engines(engines, None);
        let (pipeline, folder) = pipeline(generation, &Arc::new(Scripted::default()));
        let closing = CancellationToken::new();
        let watch = Watch::begin(pipeline.clone()).await;
        tokio::spawn(watch.run(closing.clone()));
        Self {
            pipeline,
            _folder: folder,
            closing,
        }
    }

    pub(super) async fn accept(&self, message: Message) {
        let pipeline = self.pipeline.clone();
        pipeline.accept(message, Mode::CutThrough).await;
    }

    /// Writes everything, and reads the counts of all series.
    async fn counts(&self) -> BTreeMap<String, u64> {
        Deadline::after(Duration::from_secs(100)).wait().await;
        self.closing.cancel();
        self.pipeline.look_around().await;
        self.pipeline.write_measures().await;
        let path = self.pipeline.history.path();
        let mut counts = BTreeMap::new();
        for measured in [Measured::Scan, Measured::Wait, Measured::Missed] {
            let all = measures::read(path, measured, Timestamp::MIN, Timestamp::MAX).await;
            for one in all.expect("read") {
                let key = format!(
                    "{} {} {}",
                    measured.as_str(),
                    one.series.name,
                    one.series.class
                );
                *counts.entry(key).or_default() += one.latencies.count();
            }
        }
        counts
    }

    async fn late(&self) -> Vec<LateScan> {
        let path = self.pipeline.history.path();
        let late = late_scans::read(path, Timestamp::MIN, Timestamp::MAX).await;
        late.expect("read")
    }
}

/// Each scan counts once, by its end and its size, with its wait; a scan that still runs, an answer from the cache and a shared
/// scan count nowhere. A scan that lasted longer than the timeout is kept with its length, whether it answered or not.
#[tokio::test(start_paused = true)]
async fn each_scan_counts_once() {
    let world = World::new(10, Duration::from_millis(500)).await;
    for number in 0..30 {
        world.accept(ordered(number, 1, "clean 10")).await;
    }
    for number in 30..33 {
        world.accept(ordered(number, 5000, "clean 20")).await;
    }
    // In the cache.
    world.accept(ordered(0, 1, "clean 10")).await;
    // Two callers, one scan.
    let same = || ordered(40, 1, "clean 100");
    join_all([world.accept(same()), world.accept(same())]).await;
    // Its wait is not that of a fresh message.
    let terms = judge::ScanTerms {
        spent: Duration::ZERO,
        scan_reason: ScanReason::Again,
        timed_out_before: false,
        hung_before: false,
        stand_ins: false,
    };
    let again = ordered(47, 1, "clean 10");
    let generation = world.pipeline.generation();
    world.pipeline.ask(&generation, &again, terms).await;
    world.accept(ordered(41, 1, "clean 2000")).await;
    world.accept(ordered(42, 1, "fail 10")).await;
    world.accept(ordered(43, 1, "break 10")).await;
    let late = [
        ordered(44, 1, "find 20000"),
        ordered(45, 1, "hang 0"),
        ordered(46, 1, "clean 30000"),
    ];
    let ids: Vec<MessageId> = late.iter().map(|message| message.id).collect();
    join_all(late.map(|message| world.accept(message))).await;
    let count = |key: &str, count: u64| (key.to_owned(), count);
    let wanted = BTreeMap::from([
        count("scan one below-64k", 30 + 1 + 1 + 1 + 2),
        count("scan one below-1m", 3),
        count("wait one below-64k", 30 + 1 + 1 + 2 + 3),
        count("wait one below-1m", 3),
        count("missed one failed", 1),
        count("missed one broken", 1),
        count("missed one lost", 1),
    ]);
    assert_eq!(world.counts().await, wanted);
    let late = world.late().await;
    let seen = late.iter().map(|scan| {
        let at = ids.iter().position(|id| *id == scan.message).expect("ours");
        (at, scan.took.as_secs(), scan.found, &*scan.engine)
    });
    let wanted = [
        (0, 20, Some(true), "one"),
        (2, 30, Some(false), "one"),
        (1, 60, None, "one"),
    ];
    assert_eq!(seen.collect::<Vec<_>>(), wanted);
}

/// What a history that takes nothing did not get is written with the next write: durations and late scans.
#[tokio::test(start_paused = true)]
async fn what_was_not_written_is_written_later() {
    let world = World::new(1, Duration::from_secs(5)).await;
    world.accept(ordered(0, 1, "clean 7000")).await;
    Deadline::after(Duration::from_secs(10)).wait().await;
    world.pipeline.look_around().await;
    let path = world.pipeline.history.path();
    let aside = path.with_extension("aside");
    std::fs::rename(path, &aside).expect("renamed");
    world.pipeline.write_measures().await;
    std::fs::rename(&aside, path).expect("renamed");
    assert!(world.late().await.is_empty(), "not written");
    let counts = world.counts().await;
    assert_eq!(counts.get("scan one below-64k"), Some(&1), "{counts:?}");
    assert_eq!(world.late().await.len(), 1);
}

/// A message that gets no slot counts as missed for that reason, and not as a scan or a wait.
#[tokio::test(start_paused = true)]
async fn a_message_without_a_slot_is_missed() {
    // A slow scan would be evidence against the mail, and park the second message.
    let world = World::new(1, Duration::from_secs(5)).await;
    let first = world.accept(ordered(0, 1, "clean 3000"));
    let second = async {
        Deadline::after(Duration::from_millis(10)).wait().await;
        world.accept(ordered(1, 1, "clean 10")).await;
    };
    tokio::join!(first, second);
    let count = |key: &str, count: u64| (key.to_owned(), count);
    let wanted = BTreeMap::from([
        count("scan one below-64k", 1),
        count("wait one below-64k", 1),
        count("missed one busy", 1),
    ]);
    assert_eq!(world.counts().await, wanted);
}
