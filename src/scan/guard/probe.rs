//! Probes: a known-bad message that the engine must find, and a known-clean one that must pass. Probes use the same path as mail
//! (differential observability: an observer of an engine must see what the engine's users see; Huang et al., HotOS 2017).
//!
//! Each replica gets a probe pair at intervals, at once when the gate doubts the replica, and after an open breaker before it
//! gets mail again. A probe takes a slot like every scan, and keeps the slot until the engine has really ended the probe.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::answer_cache::is_bad;
use super::gate::{ScanEnd, Taken};
use super::state::GuardState;
use crate::deadline::Deadline;
use crate::incident::{Incident, Kind};
use crate::message::envelope::Origin;
use crate::message::mime;
use crate::message::{
    BodyKind, Content, Envelope, Mailbox, MessageId, Recipient, ReversePath, SenderReputation,
};
use crate::observation::ScanReason;
use crate::scan::ScanRequest;
use crate::scan::engine::{Probe, Probes, Sample};
use crate::verdict::{Answer, Finding};

/// The test that a replica has passed when a person asked for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// The replica found the known-bad message and passed the known-clean one.
    Pair,
    /// The replica answered about a harmless message, with findings of these names. The engine has no known-bad message.
    Answered(Vec<String>),
}

/// Result of a probe pair.
enum PairResult {
    /// Both answers were right and in time.
    Right,
    /// An answer was missing or late.
    Missing(String),
    /// An answer was wrong: the engine missed the known-bad message, or found something in the known-clean one.
    Wrong(String),
    /// The gate gave no slot for the probe.
    NoSlot,
}

/// Sends a probe pair to a replica, one message after the other, and waits up to `patience` for each answer.
async fn pair(state: &Arc<GuardState>, replica: usize, patience: Duration) -> PairResult {
    let Some(probes) = state.engines.get(replica).and_then(|e| e.probes()) else {
        return PairResult::Right;
    };
    let Probes { bad, clean } = probes;
    for (content, half) in [(bad, Probe::Bad), (clean, Probe::Clean)] {
        let findings = match ask(state, replica, content, half, patience).await {
            Ok(findings) => findings,
            Err(result) => return result,
        };
        match half {
            Probe::Bad if !is_bad(&findings) => {
                return PairResult::Wrong(format!("{} was not found", name_of(half)));
            }
            Probe::Clean if is_bad(&findings) => {
                let name = findings.first().map_or("", |f| &f.name);
                return PairResult::Wrong(format!("in {} it found {name}", name_of(half)));
            }
            Probe::Bad | Probe::Clean => {}
        }
    }
    PairResult::Right
}

/// Sends one half of a pair and returns its findings, or the reason for a missing answer. The scan runs in a task of its own and
/// keeps its slot until the engine ends it.
async fn ask(
    state: &Arc<GuardState>,
    replica: usize,
    content: Content,
    half: Probe,
    patience: Duration,
) -> Result<Vec<Finding>, PairResult> {
    let entered = state.enter_probe(replica).ok_or(PairResult::NoSlot)?;
    let engine = state.engines[replica].clone();
    let sample = sample(state, content).as_probe(half);
    let (sender, answer) = oneshot::channel();
    let limit = state.settings.limit;
    tokio::spawn(async move {
        let answer = Deadline::after(limit).run(engine.scan(sample)).await;
        entered.end(ScanEnd::Probe);
        // The receiver is gone if the answer was late; the pair has counted as missing then.
        let _ = sender.send(answer);
    });
    let missing = |why: &dyn fmt::Display| PairResult::Missing(format!("{}: {why}", name_of(half)));
    match Deadline::after(patience).run(answer).await {
        Ok(Ok(Ok(outcome))) => match state.named(replica, outcome) {
            Ok(answer) => match state.probe_answer(replica, answer) {
                Answer::Answered(findings) => Ok(findings),
                Answer::None { detail, .. } => Err(missing(&detail)),
            },
            Err(error) => Err(missing(&error)),
        },
        _ => {
            let milliseconds = patience.as_millis();
            Err(missing(&format!("no answer within {milliseconds} ms")))
        }
    }
}

fn name_of(half: Probe) -> &'static str {
    match half {
        Probe::Bad => "the known-bad message",
        Probe::Clean => "the known-clean message",
    }
}

/// Sends a probe pair and reports its result to the gate, to the probe trust and to the incidents.
pub(super) async fn run(state: Arc<GuardState>, replica: usize, half_open: bool, doubt: bool) {
    let patience = match half_open || doubt {
        // Slowness may have opened the breaker or caused the doubt, so a slow answer is a failed probe here.
        true => (state.settings.slow * 2).min(state.settings.timeout),
        false => state.settings.timeout,
    };
    let began = Instant::now();
    let result = pair(&state, replica, patience).await;
    if matches!(result, PairResult::Wrong(_)) {
        state.answered_wrongly(replica);
    }
    match result {
        PairResult::Right => {
            state.trust_from(replica, began);
            state.work(|gate, now| gate.probed(now, replica, true));
        }
        PairResult::Wrong(why) | PairResult::Missing(why) => {
            let subject = state.subject(Some(replica));
            let summary = format!("{subject} failed a probe: {why}");
            if !half_open {
                state.report_incident(Incident::new(Kind::ProbeFailed, subject, summary));
            }
            state.work(|gate, now| gate.probed(now, replica, false));
            if state.look(|gate| gate.is_out(replica)) {
                state.doubt(replica);
            }
        }
        PairResult::NoSlot if half_open => state.work(|gate, now| gate.probed(now, replica, false)),
        PairResult::NoSlot => {}
    }
    state.probe_ended(replica);
}

/// Sends a probe pair to a replica because a person asked; an engine without probes gets the known-clean message only. The error
/// is the reason why the replica failed.
pub(super) async fn test(state: &Arc<GuardState>, replica: usize) -> Result<Passed, String> {
    let patience = state.settings.timeout;
    let result = match state.engines[replica].probes() {
        Some(_) => pair(state, replica, patience).await,
        None => match ask(state, replica, Probes::clean(), Probe::Clean, patience).await {
            Ok(findings) => {
                let names = findings.into_iter().map(|finding| finding.name);
                return Ok(Passed::Answered(names.collect()));
            }
            Err(result) => result,
        },
    };
    match result {
        PairResult::Right => {
            state.work(|gate, now| gate.tested(now, replica));
            Ok(Passed::Pair)
        }
        PairResult::Wrong(why) | PairResult::Missing(why) => Err(why),
        PairResult::NoSlot => {
            let taken = state.look(|gate| gate.taken(replica));
            Err(no_slot(&state.settings.name, &taken))
        }
    }
}

/// Why a test got no slot, and what to do.
fn no_slot(engine: &str, taken: &Taken) -> String {
    let Taken {
        slots,
        running,
        probes,
        overdue,
    } = *taken;
    let told = match (running >= slots, overdue) {
        (false, _) => format!(
            "probes that have not ended ({probes}) hold the slots that probes may have: if this lasts, the engine hangs: restart it"
        ),
        (true, 0) => format!(
            "all {slots} slots are taken, and no scan is past its timeout, so the engine works: test it again later, or give it \
             more slots; see: spillway engine show {engine}"
        ),
        (true, _) => format!(
            "all {slots} slots are taken, {overdue} by scans past their timeout: if none of them ends, the engine hangs: restart it; \
             whether answers come late says: spillway engine show {engine}"
        ),
    };
    format!("no slot was free for the test: {told}")
}

fn sample(state: &GuardState, content: Content) -> Sample {
    let mut recipients = Vec::new();
    let mut origin = Origin::local("probe");
    "probe".clone_into(&mut origin.helo);
    if let Ok(mailbox) = Mailbox::parse("probe@spillway.invalid") {
        recipients.push(Recipient::from(mailbox));
    }
    let envelope = Envelope {
        reverse_path: ReversePath::NULL,
        recipients,
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        origin,
    };
    let request = ScanRequest {
        id: MessageId::new(),
        envelope: Arc::new(envelope),
        content,
        deadline: Deadline::after(state.settings.limit),
        fingerprint: None,
        reputation: SenderReputation::Known,
        scan_reason: ScanReason::Again,
        timed_out_before: false,
        stand_ins: false,
    };
    let alone = Arc::new(Semaphore::new(1));
    Sample::new(
        request,
        mime::SharedInspection::new(mime::Limits::default(), alone),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test without a slot says what holds the slots: an engine that is merely busy is not to be restarted.
    #[test]
    fn a_test_without_a_slot_says_what_holds_the_slots() {
        let told = |running, probes, overdue| {
            let taken = Taken {
                slots: 6,
                running,
                probes,
                overdue,
            };
            no_slot("clamd", &taken)
        };
        let busy = told(6, 1, 0);
        assert!(
            busy.contains(
                "all 6 slots are taken, and no scan is past its timeout, so the engine works"
            ),
            "{busy}"
        );
        assert!(!busy.contains("restart"), "{busy}");
        let hangs = told(6, 0, 2);
        assert!(
            hangs.contains("all 6 slots are taken, 2 by scans past their timeout"),
            "{hangs}"
        );
        let probes = told(3, 2, 0);
        assert!(
            probes.contains("probes that have not ended (2)"),
            "{probes}"
        );
    }
}
