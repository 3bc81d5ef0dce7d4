//! One scan for all who want it, and how long each of them waits.
//!
//! What is below this layer belongs to the scan, not to a caller: it goes on when callers leave, and its answer is kept
//! for those who come back. What is here belongs to one caller: his patience.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

use super::gate::{LARGE, LARGE_FACTOR};
use super::layer::{Next, Outcome};
use super::reuse::Key;
use super::state::{Out, Phase, State};
use super::{Call, Progress};
use crate::ablation::{Mechanism, without};
use crate::deadline::{Deadline, Elapsed};
use crate::incident::{Incident, Kind};
use crate::message::{MessageId, Rights, Standing};
use crate::scan::Settings;
use crate::scan::engine::{self, ScanError};
use crate::verdict::EngineClass;

/// Uses an answer that holds, joins a scan of the same that is under way, or begins one; then waits for it.
pub(super) async fn scan(state: Arc<State>, call: Call, next: impl Next) -> Outcome {
    if call.sample.deadline().passed() {
        return Err(ScanError::BudgetSpent);
    }
    let mut key = key(&state.settings, &call);
    if without(Mechanism::Sharing) {
        key = Key::Message(MessageId::new());
    }
    if let Some(answer) = state.reuse().get(Instant::now(), key) {
        return Ok(answer);
    }
    let (flight, joined) = {
        let mut flights = state.flights();
        match flights.get(&key) {
            Some(flight) => (flight.subscribe(), true),
            None => {
                flights.insert(key, call.flight.clone());
                (call.flight.subscribe(), false)
            }
        }
    };
    let caller = Caller::new(&state, &call, joined);
    if !joined {
        tokio::spawn(fly(state.clone(), key, call, next));
    }
    caller.wait(flight, state.out()).await
}

/// Engines for malware and content judge the octets; the others look at who sends what to whom as well. A filter always does: it
/// may accept a client or a recipient before it has seen any content, and nobody can tell what its answer is about.
fn key(settings: &Settings, call: &Call) -> Key {
    let request = call.sample.request();
    // What is written into a message may well be about its envelope.
    let of_content = matches!(settings.class, EngineClass::Av | EngineClass::Content)
        && settings.edits == Rights::None
        && !matches!(settings.kind, engine::Kind::Milter { .. });
    match &request.fingerprint {
        Some(fingerprint) if of_content => Key::Content(fingerprint.identity),
        _ => Key::Message(request.id),
    }
}

/// The scan, from its wait for a slot to its real end.
async fn fly(state: Arc<State>, key: Key, call: Call, next: impl Next) {
    let (flight, id) = (call.flight.clone(), call.sample.request().id);
    let began = Instant::now();
    let outcome = AssertUnwindSafe(next.oneshot(call)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| Err(ScanError::panicked(&*panic)));
    if let Ok(answer) = &outcome {
        if !state.has_liars() && state.reuse().put(Instant::now(), key, answer) {
            state.work(|gate, now| gate.forget_proofs(now));
        }
        let took = began.elapsed();
        if took > state.settings.timeout && flight.is_closed() {
            let subject = state.subject(None);
            let summary =
                format!("{subject} answered after its caller had left; kept for the next scan");
            let incident = Incident::new(Kind::LateAnswer, subject, summary)
                .with("after", format!("{:.1} s", took.as_secs_f64()))
                .about(id);
            state.tell(incident);
        }
    }
    state.flights().remove(&key);
    flight.send_replace(Phase::Done(outcome));
}

/// One who waits.
struct Caller {
    joined: bool,
    standing: Standing,
    deadline: Deadline,
    timeout: Duration,
    slow: Duration,
    progress: Arc<Progress>,
}

impl Caller {
    fn new(state: &State, call: &Call, joined: bool) -> Self {
        let request = call.sample.request();
        let settings = &state.settings;
        let slow = match request.content.len() >= LARGE {
            true => settings.slow.saturating_mul(LARGE_FACTOR),
            false => settings.slow,
        };
        Self {
            joined,
            standing: request.standing,
            deadline: call.sample.deadline(),
            timeout: settings.timeout,
            slow: slow.min(settings.timeout),
            progress: call.progress.clone(),
        }
    }

    /// Waits for the end of the scan, or for the end of his own patience.
    async fn wait(self, mut flight: watch::Receiver<Phase>, out: &Out) -> Outcome {
        loop {
            // Asked for before the look, so that no change falls between.
            let turned = out.changed();
            let phase = flight.borrow_and_update().clone();
            let is_out = out.is();
            let until = match phase {
                Phase::Done(outcome) => return outcome,
                Phase::Waiting => self.deadline,
                Phase::Running { since, convicted } => {
                    if let Some(error) = self.gives_up(since.elapsed(), convicted, is_out) {
                        return Err(error);
                    }
                    self.until(since.elapsed())
                }
            };
            let news = async {
                tokio::select! {
                    biased;
                    news = flight.changed() => news,
                    () = turned => Ok(()),
                }
            };
            match until.run(news).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ScanError::Stopping),
                Err(Elapsed) if self.deadline.passed() => return Err(self.progress.overdue()),
                Err(Elapsed) => {}
            }
        }
    }

    /// Why he leaves a scan of that age: the one place where a wait for an engine is given a name.
    fn gives_up(&self, age: Duration, convicted: bool, is_out: bool) -> Option<ScanError> {
        let (is_slow, is_overdue) = (age >= self.slow, age >= self.timeout);
        if convicted && is_slow {
            let why = "what it is like was convicted while it was being scanned";
            return Some(ScanError::Suspect(why.to_owned()));
        }
        // Whoever has a good name leaves with the engine's breaker. Of others it may be the content that broke it.
        if is_out && (is_overdue || is_slow && self.standing == Standing::Known) {
            let why = "the engine failed while it was being asked";
            return Some(ScanError::BreakerOpen(why.to_owned()));
        }
        if self.joined && is_slow {
            let why = "the same content is being scanned, slowly";
            return Some(ScanError::Parked(why.to_owned()));
        }
        is_overdue.then_some(ScanError::Overdue(self.timeout))
    }

    /// When [`gives_up`](Self::gives_up) may say something else than at that age.
    fn until(&self, age: Duration) -> Deadline {
        let next = match age < self.slow {
            true => self.slow,
            false => self.timeout,
        };
        self.deadline.within(next.saturating_sub(age))
    }
}
