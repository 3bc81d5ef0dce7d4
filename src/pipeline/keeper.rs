//! Keeps the baseline of known senders and usual mail over a restart: a snapshot each minute and at the end. The loss of the
//! snapshot costs no mail (I13), so no failure here stops the start of the relay, the flow of mail, or a drain.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Pipeline;
use crate::deadline::{Deadline, wall_clock};
use crate::intercept::{Baseline, Unusable};
use crate::store::snapshot::SnapshotFile;

/// Name of the snapshot file inside `store.path`.
pub(super) const SNAPSHOT_FILE: &str = "baseline.snapshot";
/// Interval between snapshots, if the baseline has changed: 60 s. A crash loses at most one interval.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);

/// Reads and writes the baseline snapshot of the relay that has the store open.
pub struct Keeper {
    pipeline: Arc<Pipeline>,
    file: SnapshotFile,
    last: Mutex<Last>,
}

/// The result of the last write. The lock is held during a write, which may hang.
#[derive(Debug, Default)]
struct Last {
    /// The version of the baseline that is in the file.
    version: u64,
    failed: bool,
}

/// Why a snapshot file is not used.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Unread(#[from] io::Error),
    #[error("{0}")]
    Unusable(#[from] Unusable),
}

impl Keeper {
    /// Loads the snapshot from the store's folder. A file that cannot be used is set aside, and all senders are unknown again.
    /// Blocks on the disk.
    pub fn open(pipeline: Arc<Pipeline>, store: &Path) -> Arc<Self> {
        let keeper = Self {
            pipeline,
            file: SnapshotFile::new(store, SNAPSHOT_FILE, Baseline::SNAPSHOT_OCTETS_MAX),
            last: Mutex::default(),
        };
        let file = keeper.file.path().display();
        match keeper.read() {
            Ok(None) => {}
            Ok(Some(baseline)) => {
                let (senders, messages) = (baseline.senders(), baseline.messages());
                tracing::info!(%file, senders, messages, "known senders and usual mail are taken up");
                let mut interception = keeper.pipeline.interception.lock();
                interception.take_up(baseline);
            }
            Err(why) => keeper.set_aside(&why),
        }
        Arc::new(keeper)
    }

    fn read(&self) -> Result<Option<Baseline>, Refused> {
        let Some(octets) = self.file.read()? else {
            return Ok(None);
        };
        let baseline = Baseline::decode(&octets, Instant::now(), wall_clock())?;
        Ok(Some(baseline))
    }

    fn set_aside(&self, why: &Refused) {
        let aside = self.file.set_aside();
        let aside = aside.map_or_else(
            |error| format!("not renamed: {error}"),
            |p| p.display().to_string(),
        );
        let act = match why {
            Refused::Unusable(Unusable::OtherVersion(_)) => {
                "to go back to the version that wrote it, stop the relay and give it its name back; otherwise delete it"
            }
            _ => "delete it, or put a copy from a backup in its place while no relay runs",
        };
        tracing::warn!(
            file = %self.file.path().display(), %why, set_aside = %aside, act,
            "known senders are forgotten: each is a stranger until two of its messages were scanned well; no mail is lost"
        );
    }

    /// Writes the snapshot each minute until `closing` is cancelled.
    ///
    /// Cancel safety: safe; a write that has begun goes on.
    pub async fn keep(self: Arc<Self>, closing: CancellationToken) {
        let round = async {
            loop {
                Deadline::after(SNAPSHOT_INTERVAL).wait().await;
                self.write().await;
            }
        };
        // A disk that hangs blocks a thread, but not the shutdown of the relay.
        closing.run_until_cancelled(round).await;
    }

    /// Writes the snapshot if the baseline has changed since the last write. A failure is logged once; the next call retries.
    ///
    /// Cancel safety: safe; a write that has begun goes on, and the next write waits for its end.
    pub async fn write(self: &Arc<Self>) {
        let (keeper, now, wall) = (self.clone(), Instant::now(), wall_clock());
        let written = tokio::task::spawn_blocking(move || keeper.write_at(now, wall));
        if let Err(error) = written.await {
            tracing::error!(%error, "the snapshot of known senders was not written");
        }
    }

    fn write_at(&self, now: Instant, wall: Timestamp) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Encoded from a copy, so that no message waits for the lock meanwhile.
        let baseline = {
            let interception = self.pipeline.interception.lock();
            let baseline = interception.baseline();
            match baseline.version() == last.version {
                true => return,
                false => baseline.clone(),
            }
        };
        let written = self.file.write(&baseline.encode(now, wall));
        let file = self.file.path().display();
        match &written {
            Ok(()) => {
                last.version = baseline.version();
                if last.failed {
                    tracing::info!(%file, "the snapshot of known senders is written again");
                }
            }
            Err(error) if !last.failed => {
                tracing::warn!(
                    %file, %error,
                    "the snapshot of known senders is not written, and is tried again each minute: a restart would know those of the last one"
                );
            }
            Err(_) => {}
        }
        last.failed = written.is_err();
    }
}
