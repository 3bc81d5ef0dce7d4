//! Engines: one message to all of them at once, exactly one report from each.

pub mod engine;
pub mod guard;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use crate::deadline::Deadline;
use crate::message::mime;
use crate::message::{Content, Envelope, MessageId};
use crate::verdict::{EngineClass, Report};
use engine::{BuildError, Sample};
use guard::Guarded;

/// Settings of one `[[engine]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Unique; in reports, rules, metrics.
    pub name: Arc<str>,
    /// For coverage.
    pub class: EngineClass,
    /// One call's duration.
    pub timeout: Duration,
    /// Calls per message at most, the first included; retried only for transient reasons.
    pub attempts: u32,
    /// Calls at once at most: the engine's worker count or less.
    pub slots: usize,
    /// Larger content is not sent: a report with `too-large`.
    pub max_size: u64,
    /// Scores of its findings are multiplied by this.
    pub weight: f64,
    /// The protocol and its own settings.
    pub kind: engine::Kind,
}

/// What an engine is asked.
#[derive(Debug, Clone)]
pub struct ScanRequest {
    /// For logs.
    pub id: MessageId,
    /// Sender, recipients, client.
    pub envelope: Arc<Envelope>,
    /// What to scan.
    pub content: Content,
    /// When the answer is of no use any more.
    pub deadline: Deadline,
}

/// An engine that cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("engine \"{engine}\": {cause}")]
pub struct BadEngine {
    /// Its name in the configuration.
    pub engine: Arc<str>,
    /// What is wrong with it.
    #[source]
    pub cause: BuildError,
}

/// All configured engines, ready to scan. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Scanner {
    engines: Arc<[Guarded]>,
    limits: mime::Limits,
    workers: Arc<Semaphore>,
}

impl Scanner {
    /// Builds all engines, in order; all that cannot be built are returned at once. Reads rule files: blocks.
    pub fn new(engines: Vec<Settings>) -> Result<Self, Vec<BadEngine>> {
        let mut ready = Vec::with_capacity(engines.len());
        let mut bad = Vec::new();
        for settings in engines {
            match build(&settings) {
                Ok(engine) => ready.push(guard::guard(engine, Arc::new(settings))),
                Err(cause) => bad.push(BadEngine {
                    engine: settings.name,
                    cause,
                }),
            }
        }
        if bad.is_empty() {
            Ok(Self::of(ready))
        } else {
            Err(bad)
        }
    }

    fn of(engines: Vec<Guarded>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            limits: limits(engines.iter().map(Guarded::settings)),
            engines: engines.into(),
            workers: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The settings of all engines, in order: names and classes for coverage and status.
    pub fn settings(&self) -> impl Iterator<Item = &Settings> {
        self.engines.iter().map(Guarded::settings)
    }

    /// An inspection of a message, not yet made, for [`scan_inspected`](Self::scan_inspected).
    pub fn inspection(&self) -> mime::Shared {
        mime::Shared::new(self.limits, self.workers.clone())
    }

    /// Asks every engine at once and waits for all of them, at most until the deadline; then the missing ones have a
    /// report with `timeout`. The order is the configured one. Without engines it returns at once.
    ///
    /// Cancel safety: safe. Calls under way go on until their deadline, in their slots, and are then forgotten.
    pub async fn scan(&self, request: ScanRequest) -> Vec<Report> {
        self.scan_inspected(request, self.inspection()).await
    }

    /// The same, with an inspection that the caller wants to use too; it must be one of this content.
    pub async fn scan_inspected(
        &self,
        request: ScanRequest,
        inspection: mime::Shared,
    ) -> Vec<Report> {
        let sample = Sample::new(request, inspection);
        join_all(self.engines.iter().map(|e| e.scan(sample.clone()))).await
    }
}

fn build(settings: &Settings) -> Result<Arc<dyn engine::Engine>, BuildError> {
    if settings.slots == 0 {
        return Err(BuildError::Zero("slots"));
    }
    if settings.attempts == 0 {
        return Err(BuildError::Zero("attempts"));
    }
    engine::build(&settings.kind)
}

/// The inspection is shared, so it must go as far as the most curious engine wants; each judges by its own settings.
fn limits<'a>(engines: impl Iterator<Item = &'a Settings>) -> mime::Limits {
    engines.fold(
        mime::Limits::default(),
        |limits, settings| match &settings.kind {
            engine::Kind::Attachment(wants) => mime::Limits {
                depth: limits.depth.max(wants.max_depth),
                parts: limits.parts.max(wants.max_parts),
                ..limits
            },
            engine::Kind::Clamd { .. } | engine::Kind::Rules { .. } => limits,
        },
    )
}
