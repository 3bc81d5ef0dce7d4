//! Probes: a message that must be found and one that must pass, sent the way that mail takes (differential
//! observability: what looks at an engine must see what its users see; Huang et al., HotOS 2017).
//!
//! Each replica gets a pair now and then, at once when there is doubt about it, and before it gets mail again after its
//! breaker was open. A probe takes a slot like any scan, and keeps it until the engine has really ended it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::answer_cache::is_bad;
use super::breaker::BreakerState;
use super::gate::ScanEnd;
use super::state::GuardState;
use crate::chance;
use crate::deadline::Deadline;
use crate::incident::{Incident, Kind};
use crate::message::envelope::Origin;
use crate::message::mime;
use crate::message::{
    BodyKind, Content, Envelope, Mailbox, MessageId, Recipient, ReversePath, Standing,
};
use crate::scan::engine::{Probe, Probes, Sample};
use crate::scan::{ScanReason, ScanRequest};
use crate::verdict::{Answer, Finding};

/// Between two pairs where there is doubt.
const DOUBT: Duration = Duration::from_secs(1);

/// When a replica is probed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    next: Instant,
    last: Option<Instant>,
    is_running: bool,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now,
            last: None,
            is_running: false,
        }
    }

    /// Whether a pair is to be sent now: `every` is the routine (none: no routine), `doubt` that something is wrong.
    pub(super) fn is_due(
        &mut self,
        now: Instant,
        every: Option<Duration>,
        breaker: BreakerState,
        doubt: bool,
    ) -> bool {
        let rested = self.last.is_none_or(|last| now >= last + DOUBT);
        let due = match breaker {
            BreakerState::Open { .. } => false,
            BreakerState::HalfOpen { .. } => true,
            BreakerState::Closed | BreakerState::Ramp { .. } => {
                doubt && rested || every.is_some() && now >= self.next
            }
        };
        if self.is_running || !due {
            return false;
        }
        self.is_running = true;
        self.last = Some(now);
        // Jitter, so that relays that were started together do not probe together.
        let every = every.unwrap_or(DOUBT);
        self.next = now + every.mul_f64(0.9 + 0.2 * chance::rng().random::<f64>());
        true
    }

    pub(super) fn ended(&mut self) {
        self.is_running = false;
    }
}

/// What a replica has passed when a person asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// What it must find was found, and what is clean passed.
    Pair,
    /// It answered about a harmless message, with findings of these names; nothing says what it must find.
    Answered(Vec<String>),
}

/// What a pair showed.
enum Shown {
    /// Both answers were right and in time.
    Right,
    /// One was not in time, or none.
    Missing(String),
    /// One was wrong: the engine does not see what it should, or sees what is not there.
    Wrong(String),
    /// There was no free slot to ask with.
    NoSlot,
}

/// Sends a pair to a replica. Each answer has `patience`.
async fn pair(state: &Arc<GuardState>, replica: usize, patience: Duration) -> Shown {
    let Some(probes) = state.engines.get(replica).and_then(|e| e.probes()) else {
        return Shown::Right;
    };
    let Probes { bad, clean } = probes;
    for (content, half) in [(bad, Probe::Bad), (clean, Probe::Clean)] {
        let findings = match ask(state, replica, content, half, patience).await {
            Ok(findings) => findings,
            Err(shown) => return shown,
        };
        match half {
            Probe::Bad if !is_bad(&findings) => {
                return Shown::Wrong(format!("{} was not found", what(half)));
            }
            Probe::Clean if is_bad(&findings) => {
                let name = findings.first().map_or("", |f| &f.name);
                return Shown::Wrong(format!("in {} it found {name}", what(half)));
            }
            Probe::Bad | Probe::Clean => {}
        }
    }
    Shown::Right
}

/// Sends one half of a pair; what was found in it, or why there is no answer.
async fn ask(
    state: &Arc<GuardState>,
    replica: usize,
    content: Content,
    half: Probe,
    patience: Duration,
) -> Result<Vec<Finding>, Shown> {
    let entered = state.enter_probe(replica).ok_or(Shown::NoSlot)?;
    let engine = state.engines[replica].clone();
    let sample = sample(state, content).as_probe(half);
    let (tell, told) = oneshot::channel();
    let limit = state.settings.limit;
    tokio::spawn(async move {
        let answer = Deadline::after(limit).run(engine.scan(sample)).await;
        entered.end(ScanEnd::Probe);
        // Nobody there any more: it took too long, and that was the answer.
        let _ = tell.send(answer);
    });
    let missing = |why: &dyn fmt::Display| Shown::Missing(format!("{}: {why}", what(half)));
    match Deadline::after(patience).run(told).await {
        Ok(Ok(Ok(Ok(answer)))) => match state.heard(replica, answer) {
            Answer::Answered(findings) => Ok(findings),
            Answer::None { detail, .. } => Err(missing(&detail)),
        },
        Ok(Ok(Ok(Err(error)))) => Err(missing(&error)),
        _ => {
            let milliseconds = patience.as_millis();
            Err(missing(&format!("no answer within {milliseconds} ms")))
        }
    }
}

fn what(half: Probe) -> &'static str {
    match half {
        Probe::Bad => "the known-bad message",
        Probe::Clean => "the known-clean message",
    }
}

/// Sends a pair and acts on what it shows.
pub(super) async fn run(state: Arc<GuardState>, replica: usize, half_open: bool, doubt: bool) {
    let patience = match half_open || doubt {
        // Slowness is what the breaker was opened for, or what the doubt is about.
        true => (state.settings.slow * 2).min(state.settings.timeout),
        false => state.settings.timeout,
    };
    let began = Instant::now();
    let shown = pair(&state, replica, patience).await;
    if matches!(shown, Shown::Wrong(_)) {
        state.lied(replica);
    }
    match shown {
        Shown::Right => {
            state.believe(replica, began);
            state.work(|gate, now| gate.probed(now, replica, true));
        }
        Shown::Wrong(why) | Shown::Missing(why) => {
            let subject = state.subject(Some(replica));
            let summary = format!("{subject} failed a probe: {why}");
            if !half_open {
                state.tell(Incident::new(Kind::ProbeFailed, subject, summary));
            }
            state.work(|gate, now| gate.probed(now, replica, false));
            if state.look(|gate| gate.is_out(replica)) {
                state.doubt(replica);
            }
        }
        Shown::NoSlot if half_open => state.work(|gate, now| gate.probed(now, replica, false)),
        Shown::NoSlot => {}
    }
    state.probe_ended(replica);
}

/// Sends a pair to a replica because a person asked, and where nothing says what it must find, at least the message that
/// everybody passes; else what was wrong with the answers.
pub(super) async fn test(state: &Arc<GuardState>, replica: usize) -> Result<Passed, String> {
    let patience = state.settings.timeout;
    let shown = match state.engines[replica].probes() {
        Some(_) => pair(state, replica, patience).await,
        None => match ask(state, replica, Probes::clean(), Probe::Clean, patience).await {
            Ok(findings) => {
                let names = findings.into_iter().map(|finding| finding.name);
                return Ok(Passed::Answered(names.collect()));
            }
            Err(shown) => shown,
        },
    };
    match shown {
        Shown::Right => {
            state.work(|gate, now| gate.tested(now, replica));
            Ok(Passed::Pair)
        }
        Shown::Wrong(why) | Shown::Missing(why) => Err(why),
        Shown::NoSlot => Err("no slot is free to ask with".to_owned()),
    }
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
        standing: Standing::Known,
        scan_reason: ScanReason::Again,
        struck: false,
        stand_ins: false,
    };
    let alone = Arc::new(Semaphore::new(1));
    Sample::new(request, mime::Shared::new(mime::Limits::default(), alone))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTINE: Option<Duration> = Some(Duration::from_secs(10));

    /// Where something is wrong a pair is sent at once, and no more than one a second, whatever the routine is and where there is
    /// none.
    #[tokio::test(start_paused = true)]
    async fn doubt_asks_at_once() {
        let mut now = Instant::now();
        for every in [ROUTINE, None] {
            let mut schedule = Schedule::new(now);
            let closed = BreakerState::Closed;
            assert_eq!(schedule.is_due(now, every, closed, false), every.is_some());
            schedule.ended();
            now += DOUBT;
            assert!(!schedule.is_due(now, every, closed, false), "all is well");
            assert!(schedule.is_due(now, every, closed, true));
            assert!(
                !schedule.is_due(now + DOUBT, every, closed, true),
                "it runs"
            );
            schedule.ended();
            assert!(!schedule.is_due(now + DOUBT / 2, every, closed, true));
            assert!(schedule.is_due(now + DOUBT, every, closed, true));
        }
    }

    /// Relays that were started together do not probe together: routine pairs come ten seconds apart, a tenth more or less.
    #[tokio::test(start_paused = true)]
    async fn routine_probes_come_at_random() {
        let now = Instant::now();
        let nexts: Vec<Duration> = (0..100)
            .map(|_| {
                let mut schedule = Schedule::new(now);
                assert!(schedule.is_due(now, ROUTINE, BreakerState::Closed, false));
                schedule.next - now
            })
            .collect();
        let range = Duration::from_secs(9)..=Duration::from_secs(11);
        assert!(nexts.iter().all(|next| range.contains(next)), "{nexts:?}");
        let differ = nexts.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(differ > 90, "{nexts:?}");
    }
}
