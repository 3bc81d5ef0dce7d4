//! Keeps the measured durations: each minute, and at the end, they go from memory into the history file.
//!
//! Measures are not mail. A disk that is full or hangs costs measures, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Pipeline;
use crate::deadline::{Deadline, wall_clock};
use crate::measure::{DelayComparison, Latencies, Measured, Measures, written_spans};
use crate::store::{StoreError, late_scans, measures};

/// Interval between two writes: 60 s. A crash loses at most one interval.
const MEASURE_WRITE_INTERVAL: Duration = Duration::from_secs(60);

impl Pipeline {
    /// The durations measured since the last write.
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    /// Writes the measures each minute until `closing` is cancelled.
    ///
    /// Cancel safety: safe; a write that has begun goes on.
    pub async fn keep_measures(self: Arc<Self>, closing: CancellationToken) {
        let round = async {
            self.read_delays().await;
            loop {
                Deadline::after(MEASURE_WRITE_INTERVAL).wait().await;
                self.write_measures().await;
            }
        };
        // A disk that hangs blocks a thread, but not the shutdown of the relay.
        closing.run_until_cancelled(round).await;
    }

    /// Writes the measures since the last write. What cannot be written is tried again with the next write.
    ///
    /// Cancel safety: a write that has begun goes on.
    pub async fn write_measures(&self) {
        let (taken, late) = (self.measures.take(), self.measures.take_late());
        if taken.is_empty() && late.is_empty() {
            return self.read_delays().await;
        }
        let (path, at) = (self.history.path().to_owned(), wall_clock());
        let write = move || {
            let series = measures::add(&path, at, &taken).map_err(|error| (taken, error));
            let scans = late_scans::add(&path, &late).map_err(|error| (late, error));
            (series.err(), scans.err())
        };
        let Ok((series, scans)) = tokio::task::spawn_blocking(write).await else {
            return;
        };
        if let Some((taken, error)) = series {
            self.not_written(&error).await;
            self.measures.put_back(taken);
        }
        if let Some((late, error)) = scans {
            self.not_written(&error).await;
            self.measures.put_late_back(late);
        }
        // What is written is no longer pending: without this, the last hour of a status would lack it until the next write.
        self.read_delays().await;
    }

    /// The delays of valid mail, for a status. Asks no disk.
    pub fn delays(&self) -> DelayComparison {
        let unwritten = self.measures.pending();
        self.measures.delays().compare(wall_clock(), &unwritten)
    }

    /// Reads the delays of the last hour and of the same hour a week ago from the history, for [`delays`](Self::delays). Also
    /// those of the relay's earlier runs.
    ///
    /// Cancel safety: safe.
    pub(super) async fn read_delays(&self) {
        match self.written_delays().await {
            Ok(written) => self.measures.delays().set_written(written),
            // A history in trouble has told of it.
            Err(error) if self.history.check().await.is_none() => {
                tracing::warn!(%error, "the delays of earlier mail could not be read; the relay tries again");
            }
            Err(_) => {}
        }
    }

    async fn written_delays(&self) -> Result<Vec<(Timestamp, Latencies)>, StoreError> {
        let mut written: Vec<(Timestamp, Latencies)> = Vec::new();
        for [begin, end] in written_spans(wall_clock()) {
            let path = self.history.path();
            for measure in measures::read(path, Measured::Delay, begin, end).await? {
                match written.last_mut() {
                    Some((period, sum)) if *period == measure.period => {
                        sum.merge(&measure.latencies);
                    }
                    _ => written.push((measure.period, measure.latencies)),
                }
            }
        }
        Ok(written)
    }

    /// Tells of measures that could not be written, unless the history is in trouble and has told of it.
    async fn not_written(&self, error: &StoreError) {
        if self.history.check().await.is_none() {
            tracing::warn!(%error, "measured durations could not be written; the relay tries again");
        }
    }
}
