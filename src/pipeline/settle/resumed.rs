//! A message between two passes: the record of an unfinished pass, and the judgement with which the next pass resumes.

use super::draft::Draft;
use crate::message::Message;
use crate::pipeline::{Generation, Judgement};
use crate::store::{Lane, Record};
use crate::verdict::{Decision, Disposition, Verdict};

/// The record of a message whose pass has not ended: to be delivered if one decision to deliver holds for all recipients, to be
/// scanned otherwise.
pub(in crate::pipeline) fn unfinished(
    generation: &Generation,
    message: &Message,
    so_far: Option<&Judgement>,
) -> Record {
    let all: Vec<usize> = (0..message.envelope.recipients.len()).collect();
    let draft = Draft {
        generation,
        message,
        before: None,
        judged: so_far,
    };
    match so_far.map(|judged| judged.groups.as_slice()) {
        Some([(decision, _)]) if decision.disposition == Disposition::Deliver => {
            draft.record(Lane::Delivery, Some(decision), &all, "in delivery")
        }
        _ => draft.record(Lane::Scan, None, &all, "being scanned"),
    }
}

/// The decision that a stored message already has; `None` for a message that waits for a scan.
pub(in crate::pipeline) fn judged_before(record: &Record, message: &Message) -> Option<Judgement> {
    if record.lane != Lane::Delivery {
        return None;
    }
    let judged = record.decision.clone();
    let decision = judged
        .filter(|_| record.notification.is_none())
        .unwrap_or_else(|| own_mail(record));
    Some(Judgement {
        groups: vec![(
            Decision {
                // A reviewer's release overrides the policy.
                disposition: Disposition::Deliver,
                ..decision
            },
            (0..message.envelope.recipients.len()).collect(),
        )],
        reports: record.reports.clone(),
        spent: record.spent,
        reputation: record.reputation,
        described: None,
        basis: None,
    })
}

/// The decision about mail that this relay has written.
fn own_mail(record: &Record) -> Decision {
    Decision {
        verdict: Verdict::Clean,
        disposition: Disposition::Deliver,
        rule: "own-mail".to_owned(),
        reason: format!("written by this relay as {}", record.id),
        score: 0.0,
        tag: false,
        missing: Vec::new(),
        config: "".into(),
    }
}
