//! One scan for all who want it, and how long each of them waits.
//!
//! "The same" is every octet that the engine gets: what it finds may lie in any of them. Only while the engine is short of slots
//! may the answer about another message of the same content stand in for its own (ADR 7), and then its report says so.
//!
//! What is below this layer belongs to the scan, not to a caller: it goes on when callers leave, and its answer is kept
//! for those who come back. What is here belongs to one caller: his patience.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

use super::answer_cache::{AnswerScope, Key, stands_in};
use super::enter::entrant;
use super::gate::{LARGE, LARGE_FACTOR};
use super::layer::{Next, Outcome};
use super::state::{self, GuardState, InFlight, Phase, Presence};
use super::{Call, Progress};
use crate::ablation::{Mechanism, without};
use crate::deadline::{Deadline, Elapsed};
use crate::incident::{Incident, Kind};
use crate::message::{Identity, MessageId, Rights, Standing};
use crate::scan::engine::{self, EngineAnswer, ScanError};
use crate::verdict::{Answer, EngineClass, Reason, Same};

/// Uses an answer that holds, joins a scan of the same that is under way, or begins one; then waits for it.
pub(super) async fn scan(state: Arc<GuardState>, call: Call, next: impl Next) -> Outcome {
    state.ask_in_process();
    let about = about(&state, &call);
    let kept = state.answers().get(Instant::now(), about.key).cloned();
    if let Some(kept) = kept {
        call.progress.reuse(kept.from, Same::Octets);
        return Ok(kept.answer);
    }
    if state.answers().take_given_up(Instant::now(), about.key) {
        return Err(ScanError::NoAnswer(state.settings.limit));
    }
    if let Some(outcome) = stand_in(&state, &call, &about).await {
        return outcome;
    }
    if call.sample.deadline().passed() {
        return Err(ScanError::BudgetSpent);
    }
    let (in_flight, joined) = state.in_flight_scans().join(&about, &call.in_flight);
    let (caller, progress) = (
        Caller::new(&state, &call, joined.is_some()),
        call.progress.clone(),
    );
    if joined.is_none() {
        tokio::spawn(fly(state.clone(), about, call, next));
    }
    let outcome = caller.wait(in_flight, state.out()).await;
    if let (Ok(_), Some(from)) = (&outcome, joined) {
        progress.reuse(from, Same::Octets);
    }
    outcome
}

/// Engines for malware and content judge the octets; the others look at who sends what to whom as well. A filter always does: it
/// may accept a client or a recipient before it has seen any content, and nobody can tell what its answer is about.
fn about(state: &GuardState, call: &Call) -> AnswerScope {
    let (settings, request) = (&state.settings, call.sample.request());
    // What is written into a message may well be about its envelope.
    let of_content = matches!(settings.class, EngineClass::Av | EngineClass::Content)
        && settings.edits == Rights::None
        && !matches!(settings.kind, engine::Kind::Milter { .. });
    let fingerprint = request.fingerprint.as_deref().filter(|_| of_content);
    let key = match fingerprint {
        _ if without(Mechanism::Sharing) => Key::Message(MessageId::new()),
        Some(_) if settings.kind.sees_content_alone() => Key::Octets(request.content.digest()),
        _ => Key::Message(request.id),
    };
    let identity = fingerprint.map(|fingerprint| fingerprint.identity);
    AnswerScope {
        message: request.id,
        key,
        content: identity.filter(|_| !without(Mechanism::Sharing)),
        epoch: state.answers().epoch(),
    }
}

/// What was said of another message of the same content, or is about to be, if it may stand in for an answer of its own: its
/// engine is short of slots, and has found nothing. None: the engine must be asked about this one.
async fn stand_in(state: &GuardState, call: &Call, about: &AnswerScope) -> Option<Outcome> {
    let content = about.content.filter(|_| call.sample.request().stand_ins)?;
    if state.in_flight_scans().of(about).is_some() {
        return None;
    }
    let kept = state.answers().get_like(Instant::now(), content).cloned();
    let in_flight = state.in_flight_scans().like(content, about.epoch);
    if kept.is_none() && in_flight.is_none() || !state.is_short(&entrant(call)) {
        return None;
    }
    let (from, outcome) = match (kept, in_flight) {
        (Some(kept), _) => (kept.from, Ok(kept.answer)),
        (None, in_flight) => {
            let (in_flight, from) = in_flight?;
            let caller = Caller::new(state, call, true);
            (from, caller.wait(in_flight, state.out()).await)
        }
    };
    if let Ok(answer) = &outcome {
        if !stands_in(answer) {
            return None;
        }
        call.progress.reuse(from, Same::Content);
    }
    Some(outcome)
}

/// Scans under way that can be joined, by whoever wants no newer signatures.
#[derive(Debug, Default)]
pub(super) struct InFlightScans {
    by_key: HashMap<Key, Joinable>,
    /// One of them for each content.
    by_content: HashMap<Identity, Key>,
}

#[derive(Debug)]
struct Joinable {
    in_flight: InFlight,
    /// The message that it is made for.
    of: MessageId,
    /// That of [`AnswerScope`].
    epoch: u64,
}

impl Joinable {
    /// Whether its answer will be by those signatures: it was begun under them, or it has not begun.
    fn is_by(&self, epoch: u64) -> bool {
        self.epoch == epoch || matches!(*self.in_flight.borrow(), Phase::Waiting)
    }

    fn join(&self) -> (watch::Receiver<Phase>, MessageId) {
        (self.in_flight.subscribe(), self.of)
    }
}

impl InFlightScans {
    /// The scan of the same octets, with the message that it is made for; or `own`, which is one of these in_flight_scans from now on.
    fn join(
        &mut self,
        about: &AnswerScope,
        own: &InFlight,
    ) -> (watch::Receiver<Phase>, Option<MessageId>) {
        if let Some(joinable) = self.of(about) {
            let (in_flight, of) = joinable.join();
            return (in_flight, Some(of));
        }
        if let Some(content) = about.content
            && self.like(content, about.epoch).is_none()
        {
            self.by_content.insert(content, about.key);
        }
        let joinable = Joinable {
            in_flight: own.clone(),
            of: about.message,
            epoch: about.epoch,
        };
        self.by_key.insert(about.key, joinable);
        (own.subscribe(), None)
    }

    /// A scan of the same octets.
    fn of(&self, about: &AnswerScope) -> Option<&Joinable> {
        let joinable = self.by_key.get(&about.key)?;
        joinable.is_by(about.epoch).then_some(joinable)
    }

    /// A scan of a message of that content, and which.
    fn like(&self, content: Identity, epoch: u64) -> Option<(watch::Receiver<Phase>, MessageId)> {
        let joinable = self.by_key.get(self.by_content.get(&content)?)?;
        joinable.is_by(epoch).then(|| joinable.join())
    }

    /// It can be joined no more. One by newer signatures may have taken its place.
    fn end(&mut self, about: &AnswerScope) {
        let joinable = self.by_key.get(&about.key);
        if joinable.is_none_or(|joinable| joinable.epoch != about.epoch) {
            return;
        }
        self.by_key.remove(&about.key);
        if let Some(content) = about.content
            && self.by_content.get(&content) == Some(&about.key)
        {
            self.by_content.remove(&content);
        }
    }
}

/// The scan, from its wait for a slot to its real end.
async fn fly(state: Arc<GuardState>, about: AnswerScope, call: Call, next: impl Next) {
    let in_flight = call.in_flight.clone();
    let began = Instant::now();
    let outcome = AssertUnwindSafe(next.oneshot(call)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| Err(ScanError::panicked(&*panic)));
    if let Ok(answer) = &outcome {
        let is_kept = !state.has_liars() && state.answers().put(Instant::now(), about, answer);
        let took = began.elapsed();
        if took > state.settings.timeout && in_flight.is_closed() {
            came_late(&state, about, (answer, is_kept), took);
        }
    }
    state.in_flight_scans().end(&about);
    in_flight.send_replace(Phase::Done(outcome));
}

/// An answer has come after its caller had left. If it is none, the engine has given up on the message, unless the engine itself was at
/// fault: one that stood still may have run into limits of its own on any message.
fn came_late(
    state: &GuardState,
    about: AnswerScope,
    (answer, is_kept): (&EngineAnswer, bool),
    took: Duration,
) {
    let what = match &answer.answer {
        Answer::Answered(_) if is_kept => "kept for the next scan",
        Answer::Answered(_) => "not kept, as signatures are newer, or a probe was answered wrongly",
        Answer::None {
            reason: Reason::LimitsReached,
            ..
        } if state.out().presence() == Presence::Here => {
            state.answers().give_up(Instant::now(), about.key);
            "it has given up on the message, which is not scanned again"
        }
        Answer::None { .. } => "not kept, as it says nothing about the message",
    };
    let subject = state.subject(None);
    let summary = format!("{subject} answered after its caller had left: {what}");
    let incident = Incident::new(Kind::LateAnswer, subject, summary)
        .with("after", format!("{:.1} s", took.as_secs_f64()))
        .about(about.message);
    state.tell(incident);
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
    fn new(state: &GuardState, call: &Call, joined: bool) -> Self {
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
    async fn wait(self, mut in_flight: watch::Receiver<Phase>, out: &state::Out) -> Outcome {
        loop {
            // Asked for before the look, so that no change falls between.
            let turned = out.changed();
            let phase = in_flight.borrow_and_update().clone();
            let presence = out.presence();
            let until = match phase {
                Phase::Done(outcome) => return outcome,
                Phase::Waiting => self.deadline,
                Phase::Running { since, convicted } => {
                    if let Some(error) = self.gives_up(since.elapsed(), convicted, presence) {
                        return Err(error);
                    }
                    self.until(since.elapsed())
                }
            };
            let news = async {
                tokio::select! {
                    biased;
                    news = in_flight.changed() => news,
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
    fn gives_up(&self, age: Duration, convicted: bool, engine: Presence) -> Option<ScanError> {
        let (is_slow, is_overdue) = (age >= self.slow, age >= self.timeout);
        if convicted && is_slow {
            let why = "what it is like was convicted while it was being scanned";
            return Some(ScanError::Suspect(why.to_owned()));
        }
        // Whoever has a good name leaves with the engine's breaker. Of others it may be the content that broke it, if nothing
        // that something speaks for hangs as well.
        let leaves = match engine {
            Presence::Here => false,
            Presence::Out => is_overdue || is_slow && self.standing == Standing::Known,
            Presence::Hangs => is_slow,
        };
        if leaves {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::settings;
    use Presence::{Hangs, Here, Out};

    /// Why he leaves, in a word.
    fn leaves(
        standing: Standing,
        joined: bool,
        age: Duration,
        (convicted, engine): (bool, Presence),
    ) -> &'static str {
        let settings = settings("one");
        let caller = Caller {
            joined,
            standing,
            deadline: Deadline::after(Duration::from_secs(60)),
            timeout: settings.timeout,
            slow: settings.slow,
            progress: Arc::default(),
        };
        match caller.gives_up(age, convicted, engine) {
            None => "waits",
            Some(ScanError::Suspect(_)) => "suspect",
            Some(ScanError::BreakerOpen(_)) => "breaker-open",
            Some(ScanError::Parked(_)) => "parked",
            Some(ScanError::Overdue(_)) => "timeout",
            Some(other) => panic!("{other:?}"),
        }
    }

    const QUICK: Duration = Duration::from_millis(400);
    const SLOW: Duration = Duration::from_secs(2);
    const OVERDUE: Duration = Duration::from_secs(5);

    /// Nobody leaves a scan that is not slow. Who waits for one of his own waits until his timeout, and who has joined another
    /// leaves it once it is slow.
    #[tokio::test(start_paused = true)]
    async fn callers_leave_what_is_slow() {
        for standing in [Standing::Known, Standing::Unknown] {
            for (convicted, engine) in [(false, Here), (true, Here), (false, Hangs), (true, Hangs)]
            {
                let why = leaves(standing, true, QUICK, (convicted, engine));
                assert_eq!(why, "waits", "{convicted} {engine:?}");
            }
            let of = |joined, age| leaves(standing, joined, age, (false, Here));
            assert_eq!((of(false, SLOW), of(true, SLOW)), ("waits", "parked"));
            assert_eq!(of(false, OVERDUE), "timeout");
        }
    }

    /// When an engine fails while it is asked, other engines make up for it where the sender is known. What a stranger has sent
    /// may be what it fails on: he stays until his timeout, unless known senders' mail hangs there too.
    #[tokio::test(start_paused = true)]
    async fn strangers_do_not_leave_with_the_breaker() {
        let of = |standing, age| leaves(standing, false, age, (false, Out));
        assert_eq!(of(Standing::Known, SLOW), "breaker-open");
        assert_eq!(of(Standing::Unknown, SLOW), "waits");
        assert_eq!(of(Standing::Unknown, OVERDUE), "breaker-open");
        assert_eq!(
            leaves(Standing::Unknown, true, SLOW, (false, Out)),
            "parked"
        );
        let hangs = |age| leaves(Standing::Unknown, false, age, (false, Hangs));
        assert_eq!((hangs(QUICK), hangs(SLOW)), ("waits", "breaker-open"));
    }

    /// What was convicted while it was scanned is held, whatever else there is to say about it: no other engine makes up for it,
    /// and nobody waits for its end.
    #[tokio::test(start_paused = true)]
    async fn a_conviction_is_the_first_reason() {
        for standing in [Standing::Known, Standing::Unknown] {
            for joined in [false, true] {
                for age in [SLOW, OVERDUE] {
                    for engine in [Here, Out, Hangs] {
                        let why = leaves(standing, joined, age, (true, engine));
                        assert_eq!(why, "suspect", "{standing:?} {joined} {age:?} {engine:?}");
                    }
                }
            }
        }
    }
}
