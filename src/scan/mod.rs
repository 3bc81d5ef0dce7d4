//! Engines: one message to all of them at once, exactly one report from each.

pub mod engine;
pub mod guard;

use std::sync::Arc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::message::{Content, Envelope, MessageId};
use crate::verdict::{EngineClass, Report};

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

/// All configured engines, ready to scan.
#[derive(Debug, Clone)]
pub struct Scanner {
    engines: Arc<[guard::Guarded]>,
}

impl Scanner {
    /// Asks every engine at once and waits for all of them, at most until the deadline; then the missing ones have a
    /// report with `timeout`. The order is the configured one.
    pub async fn scan(&self, request: ScanRequest) -> Vec<Report> {
        unimplemented!("{:?} {:?}", self.engines.len(), request.id)
    }
}
