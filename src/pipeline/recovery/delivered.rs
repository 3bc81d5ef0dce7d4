//! What was delivered without engines is scanned after all: nothing can be changed any more, but people can be told.

use std::time::Duration;

use super::{ScanReason, Step};
use crate::incident::{Incident, Kind, Subject};
use crate::message::Message;
use crate::pipeline::judge::Terms;
use crate::pipeline::{Generation, Judged, Pipeline, events, settle};
use crate::store::{Cause, Record};
use crate::verdict::{Decision, Disposition, Reason, Report, Verdict};

impl Pipeline {
    /// Delivered without engines: their answers can change nothing any more, but people can be told.
    pub(super) async fn scan_delivered(
        &self,
        generation: &Generation,
        message: Message,
        mut record: Record,
    ) -> Step {
        // An answer about another message may be why it is here: this time none stands in.
        let terms = Terms {
            spent: Duration::ZERO,
            // It has waited for the end of an interceptor, and is tried whatever holds its like by now: one of many would else
            // be tried in the life of each, which last longer and longer.
            scan_reason: match record.cause {
                Some(Cause::Interceptor(_)) => ScanReason::Redrive,
                _ => ScanReason::Again,
            },
            struck: record.timeouts > 0,
            stand_ins: false,
        };
        let judged = self.ask(generation, &message, terms).await;
        if self.tell_if_bad(&record, &judged) {
            return self.remove(record).await;
        }
        if timed_out(&judged.reports) {
            record.timeouts += 1;
            if record.timeouts >= settle::TIMEOUTS_MOST {
                events::not_scanned_later(record.message);
                return self.remove(record).await;
            }
        }
        let missing = |engine: &str| {
            let mut reports = judged.reports.iter();
            reports.any(|r| &*r.engine == engine && r.missing().is_some_and(|m| m.is_transient()))
        };
        // An interceptor that holds such mail now has found nothing: nobody was asked.
        if judged.reports.is_empty() {
            record.cause = self.learned_holder(&judged).or(record.cause);
            return self.put_back(record).await;
        }
        if let Some(Cause::Engine(engine)) = &record.cause
            && missing(engine)
        {
            return self.put_back(record).await;
        }
        for report in &mut record.reports {
            let answered = |now: &&Report| now.engine == report.engine && now.missing().is_none();
            if settle::is_owed(report)
                && let Some(now) = judged.reports.iter().find(answered)
            {
                report.clone_from(now);
            }
        }
        let mut asked = record.reports.clone();
        asked.retain(|report| missing(&report.engine));
        let Some((engine, status)) = settle::owed(generation, &asked) else {
            return self.remove(record).await;
        };
        // What it alone knows is not known yet.
        record.status = status;
        record.cause = Some(Cause::Engine(engine.to_string()));
        self.put_back(record).await;
        Step::Settled
    }

    /// Whether something was found. Engines that did not answer have found nothing.
    fn tell_if_bad(&self, record: &Record, judged: &Judged) -> bool {
        let bad = |decision: &Decision| {
            decision.disposition != Disposition::Deliver
                && decision.verdict != Verdict::Undetermined
        };
        let bad = || judged.groups.iter().filter(|(decision, _)| bad(decision));
        let Some((decision, _)) = bad().next() else {
            return false;
        };
        let recipients: Vec<&str> = bad()
            .flat_map(|(_, recipients)| recipients)
            .filter_map(|at| record.envelope.recipients.get(*at))
            .map(|r| r.mailbox.as_str())
            .collect();
        let summary = format!(
            "delivered to {} recipients, and bad after all: {}",
            recipients.len(),
            decision.reason
        );
        let incident = Incident::new(Kind::LateFinding, Subject::Relay, summary)
            .with("recipients", recipients.join(", "))
            .with("from", &record.envelope.reverse_path)
            .with("subject", &record.subject)
            .with("received", record.received_at)
            .with("rule", &decision.rule)
            .about(record.message);
        self.incidents.record(incident);
        true
    }

    /// The learner's interceptor that holds a message. One that a person made may never end.
    fn learned_holder(&self, judged: &Judged) -> Option<Cause> {
        let (decision, _) = judged.groups.first()?;
        let id = decision.rule.strip_prefix("interceptor.")?;
        let interception = self.suspicion.lock();
        let mut all = interception.list();
        let is_learned = all.any(|i| i.id == id && i.is_learned());
        is_learned.then(|| Cause::Interceptor(id.to_owned()))
    }
}

fn timed_out(reports: &[Report]) -> bool {
    let timed_out = |report: &Report| report.missing() == Some(Reason::Timeout);
    reports.iter().any(timed_out)
}
