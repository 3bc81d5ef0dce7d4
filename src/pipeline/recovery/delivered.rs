//! Later scans of messages that were delivered without engines: the delivery is final, but an incident can tell people.

use std::time::Duration;

use super::round::Step;
use crate::incident::{Incident, Kind, Subject};
use crate::message::Message;
use crate::observation::ScanReason;
use crate::pipeline::judge::ScanTerms;
use crate::pipeline::{Generation, Judgement, Pipeline, events, settle, touches};
use crate::store::history::{HistoryEntry, RESCANNED_EVENT};
use crate::store::{Cause, Record};
use crate::verdict::{Decision, Disposition, Reason, Report, Verdict};

impl Pipeline {
    /// Scans a delivered message again, for the engines that did not answer before. A finding becomes an incident.
    ///
    /// An answer about another message may be the reason for this scan, so no answer stands in this time. A message that waited
    /// for the end of an interceptor is scanned even if another learned interceptor holds similar mail now: otherwise each
    /// interceptor would allow one scan only, and each lasts longer than the one before.
    pub(super) async fn scan_delivered(
        &self,
        generation: &Generation,
        message: Message,
        mut record: Record,
    ) -> Step {
        let scan_reason = match record.cause {
            Some(Cause::Interceptor(_)) => ScanReason::Redrive,
            _ => ScanReason::Again,
        };
        let terms = ScanTerms {
            spent: Duration::ZERO,
            stand_ins: false,
            ..ScanTerms::of(&record, scan_reason)
        };
        let judged = self.ask(generation, &message, terms).await;
        if let Some(bad) = self.report_if_bad(&message, &record, &judged) {
            let detail = format!("bad after all, delivered before: {bad}");
            self.tell_scanned_again(&message, &record, &judged, detail);
            return self.remove(record).await;
        }
        if timed_out(&judged.reports) {
            record.timeouts += 1;
            if record.timeouts >= settle::TIMEOUTS_MAX {
                events::not_scanned_later(record.message);
                let detail = "it ran into its timeout twice, and is not scanned again".to_owned();
                self.tell_scanned_again(&message, &record, &judged, detail);
                return self.remove(record).await;
            }
        }
        let missing = |engine: &str| {
            let mut reports = judged.reports.iter();
            reports.any(|r| &*r.engine == engine && r.missing().is_some_and(|m| m.is_transient()))
        };
        // An interceptor holds such mail now: no engine was asked, and nothing was found.
        if judged.reports.is_empty() {
            record.cause = self.learned_holder(&judged).or(record.cause);
            return self.put_back(record).await;
        }
        if let Some(Cause::Engine(engine)) = &record.cause
            && missing(engine)
        {
            return self.put_back(record).await;
        }
        let detail = take_answers(&mut record, &judged.reports);
        self.tell_scanned_again(&message, &record, &judged, detail);
        let mut asked = record.reports.clone();
        asked.retain(|report| missing(&report.engine));
        let Some((engine, status)) = settle::owed(generation, &asked) else {
            return self.remove(record).await;
        };
        // Another engine still owes its answer and may find what the others do not: the message waits for that engine.
        record.status = status;
        record.cause = Some(Cause::Engine(engine.to_string()));
        self.put_back(record).await;
        Step::Settled
    }

    /// Writes the later scan into the history. It has no basis, because it decides nothing.
    fn tell_scanned_again(
        &self,
        message: &Message,
        record: &Record,
        judged: &Judgement,
        detail: String,
    ) {
        let Some((decision, _)) = judged.groups.first() else {
            return;
        };
        let all: Vec<usize> = (0..message.envelope.recipients.len()).collect();
        let told = (RESCANNED_EVENT, decision, detail);
        self.history.record(HistoryEntry {
            message: record.message,
            ..settle::entry(message, Some(judged), &all, told)
        });
    }

    /// Records an incident if an engine found something, and returns what it found. A missing answer is no finding.
    fn report_if_bad(
        &self,
        message: &Message,
        record: &Record,
        judged: &Judgement,
    ) -> Option<String> {
        let bad = |decision: &Decision| {
            decision.disposition != Disposition::Deliver
                && decision.verdict != Verdict::Undetermined
        };
        let bad = || judged.groups.iter().filter(|(decision, _)| bad(decision));
        let (decision, _) = bad().next()?;
        let recipients: Vec<&str> = bad()
            .flat_map(|(_, recipients)| recipients)
            .filter_map(|at| record.envelope.recipients.get(*at))
            .map(|r| r.mailbox.as_str())
            .collect();
        let summary = format!(
            "message {} from {} to {} was delivered, and is bad after all: {}",
            record.message,
            record.envelope.reverse_path,
            named(&recipients),
            decision.reason
        );
        let incident = Incident::new(Kind::LateFinding, Subject::Relay, summary)
            .with("recipients", recipients.join(", "))
            .with("from", &record.envelope.reverse_path)
            .with("subject", &record.subject)
            .with("received", record.received_at)
            .with("rule", &decision.rule)
            .about(record.message);
        let incident = match &record.cause {
            Some(Cause::Engine(engine)) => incident.with(Incident::ENGINE, engine),
            Some(Cause::Interceptor(_)) | None => incident,
        };
        let cause = incident.engine().map_or(Subject::Relay, Subject::engine);
        self.incidents.record(incident);
        let touch = touches::found_late(message, recipients.into_iter());
        self.incidents.touch(cause, touch);
        Some(decision.reason.clone())
    }

    /// The learned interceptor that holds a message. An interceptor made by a person may never end, so no message waits for it.
    fn learned_holder(&self, judged: &Judgement) -> Option<Cause> {
        let (decision, _) = judged.groups.first()?;
        let id = decision.rule.strip_prefix("interceptor.")?;
        let interception = self.interception.lock();
        let mut all = interception.list();
        let is_learned = all.any(|i| i.id == id && i.is_learned());
        is_learned.then(|| Cause::Interceptor(id.to_owned()))
    }
}

/// The first recipients, and the number of the others.
fn named(recipients: &[&str]) -> String {
    match recipients {
        [] => "nobody".to_owned(),
        [one] => (*one).to_owned(),
        [first, second] => format!("{first} and {second}"),
        [first, second, others @ ..] => format!("{first}, {second} and {} more", others.len()),
    }
}

/// Puts the answers that were owed into the record, and returns them in words.
fn take_answers(record: &mut Record, reports: &[Report]) -> String {
    let mut answers = Vec::new();
    for report in &mut record.reports {
        let answered = |now: &&Report| now.engine == report.engine && now.missing().is_none();
        if settle::is_owed(report)
            && let Some(now) = reports.iter().find(answered)
        {
            report.clone_from(now);
            answers.push(found_by(now));
        }
    }
    match answers.is_empty() {
        true => "nothing bad found, delivered before".to_owned(),
        false => answers.join("; "),
    }
}

/// What an engine said at last: `clamd found nothing`.
fn found_by(report: &Report) -> String {
    let names: Vec<&str> = report.findings().iter().map(|found| &*found.name).collect();
    match names.is_empty() {
        true => format!("{} found nothing", report.engine),
        false => format!("{} found {}", report.engine, names.join(", ")),
    }
}

fn timed_out(reports: &[Report]) -> bool {
    let timed_out = |report: &Report| report.missing() == Some(Reason::Timeout);
    reports.iter().any(timed_out)
}
