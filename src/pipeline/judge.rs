//! All engines at once, then policy: how a message becomes a judgement, on the path and in `spillway scan`.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use crate::deadline::Deadline;
use crate::message::Message;
use crate::message::attachment::AttachmentFact;
use crate::message::mime::{Part, Shared};
use crate::policy::{Facts, Group, Policy};
use crate::scan::{ScanRequest, Scanner};
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
    };
    let inspection = scanner.inspection();
    let reports = scanner.scan_inspected(request, inspection.clone()).await;
    let attachments = match policy.looks_at_attachments() {
        true => attachments(message, &inspection, deadline).await,
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

/// Usually the inspection that an engine has made already. Where it fails or takes too long there are no facts, and the
/// engine that asked for the same inspection has said so in its report.
async fn attachments(
    message: &Message,
    inspection: &Shared,
    deadline: Deadline,
) -> Vec<AttachmentFact> {
    let inspected = AssertUnwindSafe(inspection.get(&message.content)).catch_unwind();
    match deadline.run(inspected).await {
        Ok(Ok(inspection)) => inspection.parts.iter().flat_map(facts).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// A fact for each name that some reader may show; none for the text that people read and for what only holds parts.
fn facts(part: &Part) -> Vec<AttachmentFact> {
    let text = !part.is_attachment && part.declared.starts_with("text/");
    if part.is_container || text {
        return Vec::new();
    }
    let fact = |name: Option<String>| AttachmentFact {
        name,
        declared: part.declared.clone(),
        sniffed: part.sniffed().media_type().to_owned(),
        size: part.bytes.len() as u64,
    };
    match part.names.is_empty() {
        true => vec![fact(None)],
        false => part.names.iter().cloned().map(Some).map(fact).collect(),
    }
}
