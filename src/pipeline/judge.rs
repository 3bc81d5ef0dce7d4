//! Interceptors, all engines at once, then policy: how a message becomes a judgement, on the path and in `spillway scan`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::suspicion::{Looked, Suspicion};
use super::{Generation, Judged, Pipeline, settle};
use crate::deadline::Deadline;
use crate::message::attachment::AttachmentFact;
use crate::message::mime::{self, Inspection, Shared};
use crate::message::{Fingerprint, Message, Standing};
use crate::policy::{Facts, Group, Policy};
use crate::scan::{ScanReason, ScanRequest, Scanner};
use crate::store::Record;
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

/// On what terms engines are asked about a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Scan time of earlier passes.
    pub(super) spent: Duration,
    /// Why it is scanned now.
    pub(super) scan_reason: ScanReason,
    /// See [`ScanRequest::struck`].
    pub(super) struck: bool,
    /// See [`ScanRequest::stand_ins`].
    pub(super) stand_ins: bool,
}

/// Who judges.
pub(super) struct Asking<'a> {
    pub(super) scanner: &'a Scanner,
    pub(super) policy: &'a Policy,
    pub(super) suspicion: Option<&'a Suspicion>,
    pub(super) terms: Terms,
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
        terms: Terms {
            spent: Duration::ZERO,
            scan_reason: ScanReason::Fresh,
            struck: false,
            stand_ins: false,
        },
    };
    asking.judge(message, deadline).await
}

impl Pipeline {
    /// Interceptors first, then all engines at once, then policy. What would be delivered because an answer about another
    /// message stands in must find room to be kept for its engine: without it every engine is asked about this one.
    pub(super) async fn judge(
        &self,
        generation: &Generation,
        message: &Message,
        terms: Terms,
    ) -> Judged {
        let judged = self.ask(generation, message, terms).await;
        let delivers = |(decision, _): &(Decision, _)| decision.disposition == Disposition::Deliver;
        let judged = match settle::has_stand_in(&judged.reports)
            && judged.groups.iter().any(delivers)
            && !self.has_rescan_room(message.content.len()).await
        {
            true => {
                let exactly = Terms {
                    spent: judged.spent,
                    stand_ins: false,
                    ..terms
                };
                self.ask(generation, message, exactly).await
            }
            false => judged,
        };
        let decisions = judged.groups.iter();
        self.rate.judged(decisions.map(|(d, _)| d.disposition));
        judged
    }

    /// The decision that a stored message has and that still holds: unless a person has released it, what stands in for an
    /// answer about it must find room to be kept, as when it was judged.
    pub(super) async fn judged_before(&self, record: &Record, message: &Message) -> Option<Judged> {
        let judged = settle::judged_before(record, message)?;
        let asks_for_room = !record.released && settle::has_stand_in(&judged.reports);
        let holds = !asks_for_room || self.has_rescan_room(message.content.len()).await;
        holds.then_some(judged)
    }

    async fn has_rescan_room(&self, octets: usize) -> bool {
        let room = self.store.rescan_room().await;
        self.store.accepts().is_ok() && room.is_ok_and(|room| room >= octets as u64)
    }

    /// The same, whether or not answers about other messages stand in.
    pub(super) async fn ask(
        &self,
        generation: &Generation,
        message: &Message,
        terms: Terms,
    ) -> Judged {
        let began = Instant::now();
        let spent = terms.spent;
        let deadline = Deadline::after(generation.budget.total.saturating_sub(spent));
        let asking = Asking {
            scanner: &generation.scanner,
            policy: &generation.policy,
            suspicion: Some(&self.suspicion),
            terms,
        };
        let judgement = asking.judge(message, deadline).await;
        Judged {
            groups: judgement.groups,
            reports: judgement.reports,
            spent: spent + began.elapsed(),
            standing: judgement.standing,
        }
    }
}

impl Asking<'_> {
    /// As [`judge`], with the interceptors.
    pub(super) async fn judge(&self, message: &Message, deadline: Deadline) -> Judgement {
        let inspection = self.scanner.inspection();
        let looked = match self.suspicion {
            Some(suspicion) => {
                let known = fingerprint(message, &inspection, deadline).await;
                known.map(|(of, subject)| {
                    suspicion.look(message, of, &subject, self.terms.scan_reason)
                })
            }
            None => None,
        };
        if let Some(Looked {
            held: Some((rule, reason)),
            standing,
            ..
        }) = &looked
        {
            return self.held(message, rule, reason, *standing);
        }
        let request = ScanRequest {
            id: message.id,
            envelope: message.envelope.clone(),
            content: message.content.clone(),
            deadline,
            fingerprint: looked.as_ref().map(|l| l.fingerprint.clone()),
            standing: looked.as_ref().map_or(Standing::Unknown, |l| l.standing),
            scan_reason: self.terms.scan_reason,
            struck: self.terms.struck,
            stand_ins: self.terms.stand_ins,
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

    /// The decision of an interceptor, or of the search for what engines go away on: the message is kept for review, no engine is asked, and nothing is said about it.
    fn held(&self, message: &Message, rule: &str, reason: &str, standing: Standing) -> Judgement {
        let decision = Decision {
            verdict: Verdict::Undetermined,
            disposition: Disposition::Quarantine,
            rule: rule.to_owned(),
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
