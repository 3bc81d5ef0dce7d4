//! The shadow: another configuration that decides about each new message too, and only that.
//!
//! A decision that the relay has taken, with its reports, goes into a bounded queue; a task decides again under the terms of the
//! shadow, on a thread that may block. The path does not wait for it: if the queue is full, the message is not compared, and is
//! counted. A panic costs the comparison of one message. The engines are not asked again, so their timeouts have no shadow.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::Pipeline;
use crate::deadline::wall_clock;
use crate::store::history::HistoryEntry;
use crate::verdict::Disposition;
use crate::whatif::{Comparison, Decided, Examples, Terms};

/// Most messages that wait for the decision of the shadow: 1024. It decides in microseconds.
const SHADOW_QUEUE_MAX: usize = 1024;
/// Most examples that are kept, the newest ones.
const SHADOW_EXAMPLES_MAX: usize = 50;
/// The value of the label `to` where nobody can say what the shadow would decide.
const CANNOT_SAY: &str = "cannot-say";

/// The place of the shadow; empty if there is none.
#[derive(Debug, Default)]
pub(super) struct Slot(ArcSwapOption<Shadow>);

/// A shadow.
#[derive(Debug)]
struct Shadow {
    file: PathBuf,
    config: Arc<str>,
    since: Timestamp,
    queue: Sender<HistoryEntry>,
    seen: Arc<Seen>,
}

/// What a shadow has seen.
#[derive(Debug)]
struct Seen {
    comparison: Mutex<Comparison>,
    missed: AtomicU64,
    failed: AtomicU64,
}

/// A shadow as commands show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShadowView {
    /// The file of its configuration, as it was when the shadow began.
    pub file: PathBuf,
    /// The version of its configuration.
    pub config: String,
    /// The beginning of the shadow.
    pub since: Timestamp,
    /// What it would have decided.
    pub comparison: Comparison,
    /// Messages that were not compared, because too many came at once.
    pub missed: u64,
    /// Messages that were not compared, because the comparison failed.
    pub failed: u64,
}

impl Slot {
    /// Has the shadow decide about the message of an entry too, if there is a shadow and the entry has the first decision about
    /// its message. Never waits.
    pub(super) fn offer(&self, entry: &HistoryEntry) {
        let shadow = self.0.load();
        let Some(shadow) = &*shadow else {
            return;
        };
        if entry.basis.as_ref().is_some_and(|basis| !basis.again)
            && shadow.queue.try_send(entry.clone()).is_err()
        {
            shadow.seen.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Pipeline {
    /// Begins a shadow with these terms, in the place of the present one. Must be called on the tokio runtime.
    pub fn begin_shadow(&self, file: PathBuf, config: Arc<str>, terms: Terms) {
        let (queue, waiting) = channel(SHADOW_QUEUE_MAX);
        let seen = Arc::new(Seen {
            comparison: Mutex::new(Comparison::new(Examples::Newest(SHADOW_EXAMPLES_MAX))),
            missed: AtomicU64::default(),
            failed: AtomicU64::default(),
        });
        tokio::spawn(follow(waiting, Arc::new(terms), seen.clone()));
        let shadow = Shadow {
            file,
            config,
            since: wall_clock(),
            queue,
            seen,
        };
        self.shadow.0.store(Some(Arc::new(shadow)));
    }

    /// Ends the shadow, and returns its last view; none if there is no shadow.
    pub fn end_shadow(&self) -> Option<ShadowView> {
        self.shadow.0.swap(None).map(|shadow| shadow.view())
    }

    /// The shadow as it is now; none if there is none.
    pub fn shadow(&self) -> Option<ShadowView> {
        self.shadow.0.load().as_ref().map(|shadow| shadow.view())
    }
}

impl Shadow {
    fn view(&self) -> ShadowView {
        ShadowView {
            file: self.file.clone(),
            config: self.config.to_string(),
            since: self.since,
            comparison: self.seen.comparison().clone(),
            missed: self.seen.missed.load(Ordering::Relaxed),
            failed: self.seen.failed.load(Ordering::Relaxed),
        }
    }
}

impl Seen {
    fn comparison(&self) -> MutexGuard<'_, Comparison> {
        self.comparison
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides about one message after the other, until the shadow has ended.
async fn follow(mut waiting: Receiver<HistoryEntry>, terms: Arc<Terms>, seen: Arc<Seen>) {
    while let Some(entry) = waiting.recv().await {
        let terms = terms.clone();
        let decide = move || {
            let decided = terms.shadow(&entry);
            (entry, decided)
        };
        match tokio::task::spawn_blocking(decide).await {
            Ok((entry, decided)) => {
                count(&entry, &decided);
                seen.comparison().add(&entry, &decided);
            }
            Err(_) => {
                seen.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Counts a message once for each pair of dispositions of its recipients.
fn count(entry: &HistoryEntry, decided: &Decided) {
    let mut pairs: Vec<(&'static str, &'static str)> = Vec::new();
    match decided {
        Decided::ByGuard => {}
        Decided::CannotSay(_) => {
            let from = entry.decision.as_ref().map(|d| d.disposition);
            pairs.extend(from.map(|from| (from.as_str(), CANNOT_SAY)));
        }
        Decided::Ruled(ruled) => {
            for ruled in ruled {
                let word = |disposition: Disposition| disposition.as_str();
                let pair = (word(ruled.from.disposition), word(ruled.to.disposition));
                if !pairs.contains(&pair) {
                    pairs.push(pair);
                }
            }
        }
    }
    for (from, to) in pairs {
        metrics::counter!("spillway_shadow_decisions_total", "from" => from, "to" => to)
            .increment(1);
    }
}
