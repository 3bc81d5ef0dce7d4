//! The judgement of a message: interceptors, then all engines at once, then policy. Used by the pipeline and `spillway scan`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::suspicion::{LookedUp, SharedInterception};
use super::{Generation, Pipeline, settle};
use crate::deadline::Deadline;
use crate::message::attachment::AttachmentFact;
use crate::message::mime::{self, Inspection, SharedInspection};
use crate::message::{Described, Fingerprint, Message, SenderReputation};
use crate::observation::ScanReason;
use crate::policy::{Facts, Group, Policy};
use crate::scan::{Guarded, ScanRequest, Scanner};
use crate::store::Record;
use crate::store::basis::Basis;
use crate::verdict::{Decision, Disposition, Reason, Report, Verdict};

/// The decisions about a message, with the reports that led to them.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// One decision for each group of recipients.
    pub groups: Vec<Group>,
    /// One report for each engine; empty if an interceptor decided before the scan.
    pub reports: Vec<Report>,
    /// Scan time of this message so far, in all passes.
    pub spent: Duration,
    /// Sender reputation; `None` if the interceptors did not look at the message.
    pub reputation: Option<SenderReputation>,
    /// For the history; `None` if this process has not inspected the message.
    pub described: Option<Arc<Described>>,
    /// For the history: what policy knew, in the pass in which it decided.
    pub basis: Option<Basis>,
}

/// The conditions of one scan of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanTerms {
    /// Scan time of earlier passes.
    pub(super) spent: Duration,
    /// Why the message is scanned now.
    pub(super) scan_reason: ScanReason,
    /// See [`ScanRequest::timed_out_before`].
    pub(super) timed_out_before: bool,
    /// See [`Record::hung`].
    pub(super) hung_before: bool,
    /// See [`ScanRequest::stand_ins`].
    pub(super) stand_ins: bool,
}

impl ScanTerms {
    /// The terms of a message that has just arrived.
    pub(super) const FRESH: Self = Self {
        spent: Duration::ZERO,
        scan_reason: ScanReason::Fresh,
        timed_out_before: false,
        hung_before: false,
        stand_ins: true,
    };

    /// The terms of a stored message.
    pub(super) fn of(record: &Record, scan_reason: ScanReason) -> Self {
        Self {
            spent: record.spent,
            scan_reason,
            timed_out_before: record.timeouts > 0,
            hung_before: record.hung,
            stand_ins: true,
        }
    }
}

/// One judgement: engines, policy, interceptors, and the conditions of the scan.
pub(super) struct Asking<'a> {
    pub(super) scanner: &'a Scanner,
    pub(super) policy: &'a Policy,
    pub(super) interception: Option<&'a SharedInterception>,
    pub(super) terms: ScanTerms,
}

/// Scans with every engine, at most until the deadline, and then applies policy; without interceptors, for a message that is not
/// in the pipeline and from which nothing is learned.
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
        interception: None,
        terms: ScanTerms {
            stand_ins: false,
            ..ScanTerms::FRESH
        },
    };
    asking.judge(message, deadline).await
}

impl Pipeline {
    /// Interceptors first, then all engines at once, then policy. If the message would be delivered on an answer about another
    /// message, the store must have room to keep the message for its own scan; without room every engine scans it now.
    pub(super) async fn judge(
        &self,
        generation: &Generation,
        message: &Message,
        terms: ScanTerms,
    ) -> Judgement {
        let judged = self.ask(generation, message, terms).await;
        let delivers = |(decision, _): &(Decision, _)| decision.disposition == Disposition::Deliver;
        let judged = match settle::has_stand_in(&judged.reports)
            && judged.groups.iter().any(delivers)
            && !self.has_rescan_room(message.content.len()).await
        {
            true => {
                let exactly = ScanTerms {
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

    /// The decision of a stored message, if that decision still holds. If an answer about another message stood in, the store
    /// must still have room for the scan that is owed, unless a person has released the message.
    pub(super) async fn judged_before(
        &self,
        record: &Record,
        message: &Message,
    ) -> Option<Judgement> {
        let judged = settle::judged_before(record, message)?;
        let asks_for_room = !record.released && settle::has_stand_in(&judged.reports);
        let holds = !asks_for_room || self.has_rescan_room(message.content.len()).await;
        holds.then_some(judged)
    }

    async fn has_rescan_room(&self, octets: usize) -> bool {
        let room = self.store.rescan_room().await;
        self.store.accepts().is_ok() && room.is_ok_and(|room| room >= octets as u64)
    }

    /// Judges a message under the given terms, without a check for room if an answer stands in.
    pub(super) async fn ask(
        &self,
        generation: &Generation,
        message: &Message,
        terms: ScanTerms,
    ) -> Judgement {
        let deadline = Deadline::after(generation.budget.total.saturating_sub(terms.spent));
        let asking = Asking {
            scanner: &generation.scanner,
            policy: &generation.policy,
            interception: Some(&self.interception),
            terms,
        };
        let judgement = asking.judge(message, deadline).await;
        self.measure_refusals(&judgement.reports);
        judgement
    }
}

impl Asking<'_> {
    /// Judges as [`judge`] does, and with the interceptors if there are any.
    pub(super) async fn judge(&self, message: &Message, deadline: Deadline) -> Judgement {
        let began = Instant::now();
        let inspection = self.scanner.inspection();
        let looked = match self.interception {
            Some(interception) => {
                let known = fingerprint(message, &inspection, deadline).await;
                known.map(|(of, subject, inspected)| {
                    let looked = interception.look(message, of, &subject, self.terms.scan_reason);
                    (
                        looked,
                        (Described::of(&inspected, subject).into(), inspected),
                    )
                })
            }
            None => None,
        };
        let (looked, known) = looked.unzip();
        let (described, inspected) = known.unzip();
        if let Some(LookedUp {
            held: Some((rule, reason)),
            reputation,
            ..
        }) = &looked
        {
            return Judgement {
                spent: self.terms.spent + began.elapsed(),
                reputation: Some(*reputation),
                described,
                basis: Some(self.basis(message, &[])),
                ..self.held(message, rule, reason)
            };
        }
        let request = self.request(message, deadline, looked.as_ref());
        let scan = self.scanner.scan_inspected(request, inspection.clone());
        let mut reports = scan.await;
        self.pass_without_drained(&mut reports);
        let attachments = self.attachments(message, inspected, &inspection, deadline);
        let attachments = attachments.await;
        let basis = self.basis(message, &attachments);
        let groups = self.policy.decide(Facts {
            envelope: &message.envelope,
            size: message.content.len() as u64,
            header_section: message.content.header_section(),
            attachments: &attachments,
            reports: &reports,
        });
        if let (Some(interception), Some(looked)) = (self.interception, &looked)
            && is_well(&groups, &reports)
        {
            interception.scanned_well(looked);
        }
        Judgement {
            groups,
            reports,
            spent: self.terms.spent + began.elapsed(),
            reputation: looked.map(|l| l.reputation),
            described,
            basis: Some(basis),
        }
    }

    /// Notes in the report of each drained engine whether mail passes without it. A message at which an engine timed out or hung
    /// before does not pass: the message may be the one that only this engine would detect.
    fn pass_without_drained(&self, reports: &mut [Report]) {
        let is_drained = |report: &&mut Report| report.missing() == Some(Reason::Drained);
        for report in reports.iter_mut().filter(is_drained) {
            let mut engines = self.scanner.engines().iter();
            let engine = engines.find(|engine| engine.settings().name == report.engine);
            let may_pass = !self.terms.timed_out_before && !self.terms.hung_before;
            let passes = engine.filter(|_| may_pass);
            let drain = passes.and_then(Guarded::passes);
            report.passed = drain.map(|drain| drain.terms.why().into());
        }
    }

    /// The attachments that rules and the history need.
    async fn attachments(
        &self,
        message: &Message,
        inspected: Option<Arc<Inspection>>,
        inspection: &SharedInspection,
        deadline: Deadline,
    ) -> Vec<AttachmentFact> {
        let looks = self.policy.looks_at_attachments();
        match inspected {
            Some(inspected) => known_attachments(&inspected, looks),
            None if looks => attachments(message, inspection, deadline).await,
            None => Vec::new(),
        }
    }

    fn basis(&self, message: &Message, attachments: &[AttachmentFact]) -> Basis {
        let again = self.terms.scan_reason != ScanReason::Fresh;
        Basis::new(again, message.envelope.origin.user.as_deref(), attachments)
    }

    fn request(
        &self,
        message: &Message,
        deadline: Deadline,
        looked: Option<&LookedUp>,
    ) -> ScanRequest {
        ScanRequest {
            id: message.id,
            envelope: message.envelope.clone(),
            content: message.content.clone(),
            deadline,
            fingerprint: looked.map(|l| l.fingerprint.clone()),
            reputation: looked.map_or(SenderReputation::Unknown, |l| l.reputation),
            scan_reason: self.terms.scan_reason,
            timed_out_before: self.terms.timed_out_before,
            stand_ins: self.terms.stand_ins,
        }
    }

    /// The judgement of a message that an interceptor, or the search for the cause of engine crashes, holds before the scan: to
    /// quarantine, with the verdict undetermined and without reports.
    fn held(&self, message: &Message, rule: &str, reason: &str) -> Judgement {
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
            spent: Duration::ZERO,
            reputation: None,
            described: None,
            basis: None,
        }
    }
}

/// Whether every engine answered about this very message and all groups are clean and delivered: usual mail of this relay.
fn is_well(groups: &[Group], reports: &[Report]) -> bool {
    let delivers = |(decision, _): &Group| {
        decision.disposition == Disposition::Deliver && decision.verdict == Verdict::Clean
    };
    let is_seen = |r: &Report| r.missing().is_none() && r.stand_in().is_none();
    groups.iter().all(delivers) && reports.iter().all(is_seen)
}

/// The inspection of the content, in a task of its own: a panic there costs the engines an answer, but not the session.
async fn inspect(
    message: &Message,
    inspection: &SharedInspection,
    deadline: Deadline,
) -> Option<Arc<Inspection>> {
    let (content, inspection) = (message.content.clone(), inspection.clone());
    let inspect = tokio::spawn(async move { inspection.get(&content).await });
    deadline.run(inspect).await.ok()?.ok()
}

/// The fingerprint, the subject, and the inspection that both come from. Large content, whose hashing takes more than a few
/// hundred microseconds, is hashed outside the async runtime.
async fn fingerprint(
    message: &Message,
    inspection: &SharedInspection,
    deadline: Deadline,
) -> Option<(Arc<Fingerprint>, String, Arc<Inspection>)> {
    let inspected = inspect(message, inspection, deadline).await?;
    let subject = inspected.subject.clone().unwrap_or_default();
    let fingerprint = if message.content.len() <= mime::INLINE_OCTETS_MAX {
        Fingerprint::of(message, &inspected)
    } else {
        let (message, inspected) = (message.clone(), inspected.clone());
        let compute = tokio::task::spawn_blocking(move || Fingerprint::of(&message, &inspected));
        deadline.run(compute).await.ok()?.ok()?
    };
    Some((Arc::new(fingerprint), subject, inspected))
}

/// The attachments that a rule may look at; if none does, one more than the history keeps, so that it says that there are more.
fn known_attachments(inspected: &Inspection, rule_looks: bool) -> Vec<AttachmentFact> {
    let limit = match rule_looks {
        true => usize::MAX,
        false => Basis::ATTACHMENTS_MAX + 1,
    };
    inspected.attachments().take(limit).collect()
}

/// The attachments, usually from the existing inspection. If the inspection failed, the list is empty; reports say so too.
async fn attachments(
    message: &Message,
    inspection: &SharedInspection,
    deadline: Deadline,
) -> Vec<AttachmentFact> {
    let inspected = inspect(message, inspection, deadline).await;
    inspected.map_or_else(Vec::new, |inspected| inspected.attachments().collect())
}
