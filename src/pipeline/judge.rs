//! All engines at once, then policy: how a message becomes a judgement, on the path and in `spillway scan`.

use crate::deadline::Deadline;
use crate::message::attachment::AttachmentFact;
use crate::message::mime::Shared;
use crate::message::{Message, Standing};
use crate::policy::{Facts, Group, Policy};
use crate::scan::{Errand, ScanRequest, Scanner};
use crate::verdict::Report;

/// The decisions about a message and what they were made from.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// One decision for each group of recipients.
    pub groups: Vec<Group>,
    /// One report for each engine.
    pub reports: Vec<Report>,
}

/// Asks every engine, at most until the deadline, and then policy.
///
/// Cancel safety: safe; see [`Scanner::scan`].
pub async fn judge(
    scanner: &Scanner,
    policy: &Policy,
    message: &Message,
    deadline: Deadline,
) -> Judgement {
    let request = ScanRequest {
        id: message.id,
        envelope: message.envelope.clone(),
        content: message.content.clone(),
        deadline,
        fingerprint: None,
        standing: Standing::Unknown,
        errand: Errand::Fresh,
    };
    let inspection = scanner.inspection();
    let reports = scanner.scan_inspected(request, inspection.clone()).await;
    let attachments = match policy.looks_at_attachments() {
        true => attachments(message, inspection, deadline).await,
        false => Vec::new(),
    };
    let groups = policy.decide(Facts {
        envelope: &message.envelope,
        size: message.content.len() as u64,
        header_section: message.content.header_section(),
        attachments: &attachments,
        reports: &reports,
    });
    Judgement { groups, reports }
}

/// Usually the inspection that an engine has made already. In a task of its own: content that makes it panic costs its
/// engines an answer, not its session. Without an inspection there are no facts; the engines have said so.
async fn attachments(
    message: &Message,
    inspection: Shared,
    deadline: Deadline,
) -> Vec<AttachmentFact> {
    let content = message.content.clone();
    let inspect = tokio::spawn(async move { inspection.get(&content).await.attachments() });
    match deadline.run(inspect).await {
        Ok(facts) => facts.unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}
