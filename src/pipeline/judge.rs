//! Interceptors, all engines at once, then policy: how a message becomes a judgement, on the path and in `spillway scan`.

use std::sync::Arc;

use super::suspicion::{Looked, Suspicion};
use crate::deadline::Deadline;
use crate::message::attachment::AttachmentFact;
use crate::message::mime::{self, Inspection, Shared};
use crate::message::{Fingerprint, Message, Standing};
use crate::policy::{Facts, Group, Policy};
use crate::scan::{Errand, ScanRequest, Scanner};
use crate::verdict::{Decision, Disposition, Report, Verdict};

/// The decisions about a message and what they were made from.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// One decision for each group of recipients.
    pub groups: Vec<Group>,
    /// One report for each engine; none if an interceptor decided before any was asked.
    pub reports: Vec<Report>,
    /// What speaks for its sender, if that was asked.
    pub standing: Option<Standing>,
}

/// Who judges.
pub(super) struct Asking<'a> {
    pub(super) scanner: &'a Scanner,
    pub(super) policy: &'a Policy,
    pub(super) suspicion: Option<&'a Suspicion>,
    pub(super) errand: Errand,
    /// See [`ScanRequest::struck`].
    pub(super) struck: bool,
    /// See [`ScanRequest::stand_ins`].
    pub(super) stand_ins: bool,
}

/// Asks every engine, at most until the deadline, and then policy; for a message that nobody waits for and nothing is
/// learnt from.
///
/// Cancel safety: safe; see [`Scanner::scan`].
pub async fn judge(
    scanner: &Scanner,
    policy: &Policy,
    message: &Message,
    deadline: Deadline,
) -> Judgement {
    let asking = Asking {
        scanner,
        policy,
        suspicion: None,
        errand: Errand::Fresh,
        struck: false,
        stand_ins: false,
    };
    asking.judge(message, deadline).await
}

impl Asking<'_> {
    /// As [`judge`], with the interceptors.
    pub(super) async fn judge(&self, message: &Message, deadline: Deadline) -> Judgement {
        let inspection = self.scanner.inspection();
        let looked = match self.suspicion {
            Some(suspicion) => {
                let known = fingerprint(message, &inspection, deadline).await;
                known.map(|(of, subject)| suspicion.look(message, of, &subject, self.errand))
            }
            None => None,
        };
        if let Some(Looked {
            held: Some((id, reason)),
            standing,
            ..
        }) = &looked
        {
            return self.held(message, id, reason, *standing);
        }
        let request = ScanRequest {
            id: message.id,
            envelope: message.envelope.clone(),
            content: message.content.clone(),
            deadline,
            fingerprint: looked.as_ref().map(|l| l.fingerprint.clone()),
            standing: looked.as_ref().map_or(Standing::Unknown, |l| l.standing),
            errand: self.errand,
            struck: self.struck,
            stand_ins: self.stand_ins,
        };
        let reports = self
            .scanner
            .scan_inspected(request, inspection.clone())
            .await;
        let attachments = match self.policy.looks_at_attachments() {
            true => attachments(message, &inspection, deadline).await,
            false => Vec::new(),
        };
        let groups = self.policy.decide(Facts {
            envelope: &message.envelope,
            size: message.content.len() as u64,
            header_section: message.content.header_section(),
            attachments: &attachments,
            reports: &reports,
        });
        if let (Some(suspicion), Some(looked)) = (self.suspicion, &looked)
            && is_well(&groups, &reports)
        {
            suspicion.scanned_well(looked);
        }
        Judgement {
            groups,
            reports,
            standing: looked.map(|l| l.standing),
        }
    }

    /// An interceptor's decision: the message is kept for review, no engine is asked, and nothing is said about it.
    fn held(&self, message: &Message, id: &str, reason: &str, standing: Standing) -> Judgement {
        let decision = Decision {
            verdict: Verdict::Undetermined,
            disposition: Disposition::Quarantine,
            rule: format!("interceptor.{id}"),
            reason: reason.to_owned(),
            score: 0.0,
            tag: false,
            missing: Vec::new(),
            config: self.policy.config.clone(),
        };
        Judgement {
            groups: vec![(decision, (0..message.envelope.recipients.len()).collect())],
            reports: Vec::new(),
            standing: Some(standing),
        }
    }
}

/// Everybody answered, about this very message, and nothing speaks against it: this is what the mail of this relay's users looks like.
fn is_well(groups: &[Group], reports: &[Report]) -> bool {
    let delivers = |(decision, _): &Group| {
        decision.disposition == Disposition::Deliver && decision.verdict == Verdict::Clean
    };
    let is_seen = |r: &Report| r.missing().is_none() && r.stand_in().is_none();
    groups.iter().all(delivers) && reports.iter().all(is_seen)
}

/// The inspection, in a task of its own: content that makes it panic costs its engines an answer, not its session.
async fn inspect(
    message: &Message,
    inspection: &Shared,
    deadline: Deadline,
) -> Option<Arc<Inspection>> {
    let (content, inspection) = (message.content.clone(), inspection.clone());
    let inspect = tokio::spawn(async move { inspection.get(&content).await });
    deadline.run(inspect).await.ok()?.ok()
}

/// The fingerprint and the subject. Hashing is off the runtime where it takes more than a few hundred microseconds.
async fn fingerprint(
    message: &Message,
    inspection: &Shared,
    deadline: Deadline,
) -> Option<(Arc<Fingerprint>, String)> {
    let inspected = inspect(message, inspection, deadline).await?;
    let subject = inspected.subject.clone().unwrap_or_default();
    let fingerprint = if message.content.len() <= mime::INLINE {
        Fingerprint::of(message, &inspected)
    } else {
        let message = message.clone();
        let compute = tokio::task::spawn_blocking(move || Fingerprint::of(&message, &inspected));
        deadline.run(compute).await.ok()?.ok()?
    };
    Some((Arc::new(fingerprint), subject))
}

/// Usually of the inspection that has been made already. Without one there are no facts; the engines have said so.
async fn attachments(
    message: &Message,
    inspection: &Shared,
    deadline: Deadline,
) -> Vec<AttachmentFact> {
    let inspected = inspect(message, inspection, deadline).await;
    inspected.map(|i| i.attachments()).unwrap_or_default()
}
