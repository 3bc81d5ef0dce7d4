//! The watch: four times a second, evidence from the guard goes to the interceptors, their diversions go to the gates of the
//! engines, and all resulting actions go to the incident log.
//!
//! The watch processes no message and waits only for the disk, so that a flood cannot slow it down.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::interceptors::Exchange;
use super::{Pipeline, events};
use crate::deadline::{Deadline, wall_clock};
use crate::incident::{Incident, Kind, Subject};
use crate::observation::{Evidence, Observed};
use crate::store::Cause;

/// Interval between two rounds of the watch: 250 ms. A flood must stop reaching an engine within 2 s (promise P3).
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The watch over a pipeline.
pub struct Watch {
    pipeline: Arc<Pipeline>,
    exchange: Exchange,
}

impl Watch {
    /// Creates the watch and puts the stored interceptors in force. Call this before the relay accepts or claims mail: otherwise
    /// engines would scan messages that are known to hang.
    ///
    /// Cancel safety: safe.
    pub async fn begin(pipeline: Arc<Pipeline>) -> Self {
        let mut exchange = Exchange::default();
        pipeline.exchange_interceptors(&mut exchange).await;
        pipeline.look_around().await;
        Self { pipeline, exchange }
    }

    /// Runs the watch until `closing` is cancelled. A round that has begun ends first.
    ///
    /// Cancel safety: not safe; evidence of the round under way may be lost.
    pub async fn run(mut self, closing: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = Deadline::after(WATCH_INTERVAL).wait() => {
                    self.pipeline.look_around().await;
                    self.pipeline.exchange_interceptors(&mut self.exchange).await;
                }
            }
        }
    }
}

impl Pipeline {
    /// One round of the watch. At the end of the relay, after the last round of the watch, it takes the evidence that is left.
    pub async fn look_around(&self) {
        let generation = self.generation();
        let scanner = &generation.scanner;
        let mut late = Vec::new();
        let mut seen = Vec::new();
        for ((engine, evidence), settings) in scanner.evidence().into_iter().zip(scanner.settings())
        {
            self.measure_scans(&engine, settings.timeout, &evidence);
            late.extend(evidence.iter().filter(|e| is_late(e)).map(|e| e.message));
            seen.extend(evidence.into_iter().map(|e| (engine.clone(), e)));
        }
        for incident in self.interception.tick(scanner, &generation.policy, seen) {
            self.incidents.record(incident);
        }
        for incident in generation.delivery.incidents() {
            self.incidents.record(incident);
        }
        let probes = scanner.engines().iter().filter_map(|e| e.settings().probe);
        self.recent.forget(probes.max().unwrap_or_default());
        for engine in scanner.engines() {
            if let Some(since) = engine.doubted() {
                self.doubt(&engine.settings().name, since).await;
            }
        }
        for incident in scanner.incidents() {
            self.incidents.record(incident);
        }
        self.follow_stories();
        // A late answer has arrived: the deferred message is due now and not at the end of its backoff.
        for message in late {
            if let Err(error) = self.store.make_due(message, wall_clock()).await {
                events::lane_failed("hasten", &error);
            }
        }
    }
}

impl Pipeline {
    /// Stores messages that were delivered on the answers of an engine that failed its probes, to be scanned again when the
    /// engine is back.
    async fn doubt(&self, engine: &str, since: Instant) {
        self.recent.found_out(engine, wall_clock());
        let taken = self.recent.since(since);
        let mut kept = 0_u64;
        for (mut record, content) in taken {
            record.cause = Some(Cause::Engine(engine.to_owned()));
            let message = record.message;
            match self.store.put(vec![record], content).await {
                Ok(()) => kept += 1,
                Err(_) => events::not_remembered(message),
            }
        }
        if kept == 0 {
            return;
        }
        let subject = Subject::engine(engine);
        let seconds = since.elapsed().as_secs();
        let summary = format!(
            "{subject} answered probes wrongly: {kept} messages of the last {seconds} s are scanned again when it is back"
        );
        self.incidents
            .record(Incident::new(Kind::ProbeFailed, subject, summary).with("messages", kept));
    }
}

fn is_late(evidence: &Evidence) -> bool {
    matches!(evidence.what, Observed::Late { .. })
}
