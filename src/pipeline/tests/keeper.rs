//! Law 8: a restart forgets nobody.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Identity, Trait};
use crate::pipeline::keeper::{Keeper, SNAPSHOT_FILE};

/// A relay with this folder for its store.
struct Life {
    pipeline: Arc<Pipeline>,
    keeper: Arc<Keeper>,
    closing: CancellationToken,
    _logs: tempfile::TempDir,
}

impl Life {
    fn begin(store: &tempfile::TempDir) -> Self {
        let generation = generation(Vec::new(), Budget::default());
        let (pipeline, logs) = pipeline(generation, &Arc::default());
        let keeper = Keeper::open(pipeline.clone(), store.path());
        let closing = CancellationToken::new();
        tokio::spawn(keeper.clone().keep(closing.clone()));
        Self {
            pipeline,
            keeper,
            closing,
            _logs: logs,
        }
    }

    fn meet(&self, sender: u64) {
        let now = tokio::time::Instant::now();
        let mut interception = self.pipeline.interception.lock();
        for _ in 0..2 {
            interception.scanned_well(now, &mail(sender));
        }
    }

    fn knows(&self, sender: u64) -> bool {
        let interception = self.pipeline.interception.lock();
        interception.reputation(&mail(sender)) == SenderReputation::Known
    }
}

fn mail(sender: u64) -> Fingerprint {
    let broad = [(Aspect::SenderDomain, sender), (Aspect::Client, 1)];
    let broad = broad.map(|(aspect, value)| Trait { aspect, value });
    Fingerprint {
        identity: Identity([0; 32]),
        exact: Box::new([]),
        broad: broad.into(),
        attachments: Box::new([]),
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let store = tempfile::tempdir().expect("a folder");
    let file = store.path().join(SNAPSHOT_FILE);
    (store, file)
}

/// A minute, and the writing at its end.
async fn minute() {
    Deadline::after(Duration::from_secs(60)).wait().await;
    for _ in 0..3 {
        // The file is written on another thread, for which paused time waits.
        Deadline::after(Duration::from_millis(1)).wait().await;
    }
}

/// A relay that is killed is known the senders of the last minute's snapshot again, one that ends all of them; a minute in
/// which nothing was learnt writes nothing.
#[tokio::test(start_paused = true)]
async fn senders_are_known_after_a_restart() {
    let (store, file) = folder();
    let life = Life::begin(&store);
    minute().await;
    assert!(!file.exists(), "nothing is known");
    life.meet(1);
    minute().await;
    let first = fs::metadata(&file).expect("a snapshot").ino();
    minute().await;
    assert_eq!(fs::metadata(&file).expect("a snapshot").ino(), first);
    life.meet(2);
    life.closing.cancel();

    let life = Life::begin(&store);
    assert!(life.knows(1), "after a kill");
    assert!(!life.knows(2), "what was learnt since");
    life.meet(2);
    life.closing.cancel();
    life.keeper.write().await;

    let life = Life::begin(&store);
    assert!(life.knows(1) && life.knows(2), "after an end");
    life.closing.cancel();
}

/// Whatever is in the file, the relay starts; what cannot be used is kept under another name, and the next minute writes a
/// new one.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_set_aside() {
    let newer = [&b"SPWYBASE"[..], &[200], &[0; 64]].concat();
    for (octets, what) in [
        (Vec::new(), "nothing"),
        (b"something else".to_vec(), "foreign"),
        (newer, "newer"),
        (
            vec![0; crate::intercept::Baseline::SNAPSHOT_OCTETS_MAX + 1],
            "too large",
        ),
    ] {
        let (store, file) = folder();
        fs::write(&file, &octets).expect("written");
        let life = Life::begin(&store);
        assert!(!file.exists(), "{what}");
        let aside = store.path().join(format!("{SNAPSHOT_FILE}.set-aside"));
        assert!(fs::read(aside).expect(what) == octets, "{what}");
        life.meet(1);
        minute().await;
        life.closing.cancel();
        let life = Life::begin(&store);
        assert!(life.knows(1), "{what}");
        life.closing.cancel();
    }
}

/// A disk that takes nothing stops nothing, and what it did not take it gets a minute after it takes something again.
#[tokio::test(start_paused = true)]
async fn what_the_disk_refuses_is_tried_again() {
    let (store, file) = folder();
    let life = Life::begin(&store);
    let in_the_way = store.path().join(format!("{SNAPSHOT_FILE}.tmp"));
    fs::create_dir(&in_the_way).expect("a folder in its way");
    life.meet(1);
    for _ in 0..3 {
        minute().await;
        assert!(!file.exists());
        assert!(life.knows(1));
    }
    fs::remove_dir(&in_the_way).expect("out of its way");
    minute().await;
    assert!(file.exists());
    life.closing.cancel();
}
