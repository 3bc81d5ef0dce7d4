//! One scan for all callers with the same octets, and how long each caller waits.
//!
//! Messages share a scan if every octet that the engine gets is equal, because a finding may be in any octet. Only while the
//! engine is short of slots may the answer about another message of the same content stand in (ADR 7); the report says so.
//!
//! The layers below this one belong to the scan: the scan goes on when its callers give up, and its answer is cached for the
//! next caller. This layer belongs to one caller, and decides when that caller gives up.
//!
//! In this file, a *caller gives up* when it stops waiting; an *engine abandons* a message when it ends the scan at a limit of
//! its own, without a complete answer. An *epoch* is the time between two ends of all cached answers, for example by new
//! signatures ([`AnswerScope::epoch`]); a caller joins no scan of an earlier epoch.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

use super::answer_cache::{AnswerScope, Key, stands_in};
use super::gate::{LARGE_LATENCY_FACTOR, LARGE_OCTETS_MIN};
use super::layers::{Next, Outcome, gate_request};
use super::state::{self, GuardState, InFlight, Phase, Presence};
use super::{Call, Progress};
use crate::ablation::{Mechanism, without};
use crate::deadline::{Deadline, Elapsed};
use crate::incident::{Incident, Kind};
use crate::message::{Identity, MessageId, Rights, SenderReputation};
use crate::scan::engine::{self, EngineAnswer, ScanError};
use crate::verdict::{Answer, EngineClass, Reason, Same};

/// Returns a cached answer, or joins a scan of the same octets, or starts a scan, and waits for the answer.
///
/// Cancel safety: safe. A scan that has started goes on in a task of its own.
pub(super) async fn scan(state: Arc<GuardState>, call: Call, next: impl Next) -> Outcome {
    state.note_signatures_in_process();
    let scope = answer_scope(&state, &call);
    let kept = state.answers().get(Instant::now(), scope.key).cloned();
    if let Some(kept) = kept {
        call.progress.reuse(kept.from, Same::Octets);
        return Ok(kept.answer);
    }
    // The error says that the engine did not end the scan within its limit, because this is how the last scan went.
    if state.answers().take_abandoned(Instant::now(), scope.key) {
        return Err(ScanError::NoAnswer(state.settings.limit));
    }
    if let Some(outcome) = stand_in(&state, &call, &scope).await {
        return outcome;
    }
    if call.sample.deadline().passed() {
        return Err(ScanError::BudgetSpent);
    }
    let (in_flight, joined) = state.in_flight_scans().join_or_add(&scope, &call.in_flight);
    let (caller, progress) = (
        Caller::new(&state, &call, joined.is_some()),
        call.progress.clone(),
    );
    if joined.is_none() {
        tokio::spawn(run_scan(state.clone(), scope, call, next));
    }
    let outcome = caller.wait(in_flight, state.out()).await;
    if let (Ok(_), Some(from)) = (&outcome, joined) {
        progress.reuse(from, Same::Octets);
    }
    outcome
}

/// The scope of the answer to a call. Two conditions decide:
///
/// - The engine *judges* the content alone. Then its answer may stand in for messages of the same content. Engines of class
///   `av` and `content` judge the content alone; engines of other classes also judge the envelope. A milter judges the envelope
///   in every class: it may accept a client or a recipient before it has any content, and the answer does not tell whether it
///   is about the client, the recipient or the content.
/// - The engine also *gets* the content alone ([`sees_content_alone`](engine::Kind::sees_content_alone)). Then its answer is
///   reused for all messages with the same octets. The answer of any other engine is reused for the same message only.
fn answer_scope(state: &GuardState, call: &Call) -> AnswerScope {
    let (settings, request) = (&state.settings, call.sample.request());
    // An edit of the message may depend on the envelope, so engines with edits do not judge the content alone.
    let judges_content_alone = matches!(settings.class, EngineClass::Av | EngineClass::Content)
        && settings.edits == Rights::None
        && !matches!(settings.kind, engine::Kind::Milter { .. });
    let fingerprint = request
        .fingerprint
        .as_deref()
        .filter(|_| judges_content_alone);
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

/// The answer about another message of the same content, cached or awaited from a scan under way, if it may stand in: the engine
/// is short of slots for this message, and the answer has no finding. None if the engine must scan this message itself.
async fn stand_in(state: &GuardState, call: &Call, scope: &AnswerScope) -> Option<Outcome> {
    let content = scope.content.filter(|_| call.sample.request().stand_ins)?;
    if state.in_flight_scans().joinable(scope).is_some() {
        return None;
    }
    let kept = state
        .answers()
        .get_by_content(Instant::now(), content)
        .cloned();
    let in_flight = state
        .in_flight_scans()
        .join_by_content(content, scope.epoch);
    if kept.is_none() && in_flight.is_none() || !state.is_short(&gate_request(call)) {
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

/// Scans under way that a caller can join, unless the cached answers have ended since the scan began, as by new signatures.
#[derive(Debug, Default)]
pub(super) struct InFlightScans {
    by_key: HashMap<Key, Joinable>,
    /// For each content, the key of one of these scans.
    by_content: HashMap<Identity, Key>,
}

#[derive(Debug)]
struct Joinable {
    in_flight: InFlight,
    /// The scanned message.
    message: MessageId,
    /// [`AnswerScope::epoch`] of the scan.
    epoch: u64,
}

impl Joinable {
    /// Whether the scan uses the signatures of `epoch` or newer ones: the caller that began the scan came in that epoch, or the
    /// scan still waits for a slot.
    fn uses_signatures_of(&self, epoch: u64) -> bool {
        self.epoch == epoch || matches!(*self.in_flight.borrow(), Phase::Waiting)
    }

    /// A receiver for the phase of the scan, and the scanned message.
    fn subscribe(&self) -> (watch::Receiver<Phase>, MessageId) {
        (self.in_flight.subscribe(), self.message)
    }
}

impl InFlightScans {
    /// Joins the scan of the same octets and returns the scanned message too. Without such a scan, adds `own` as a scan that
    /// others can join, and returns no message.
    fn join_or_add(
        &mut self,
        scope: &AnswerScope,
        own: &InFlight,
    ) -> (watch::Receiver<Phase>, Option<MessageId>) {
        if let Some(joinable) = self.joinable(scope) {
            let (in_flight, message) = joinable.subscribe();
            return (in_flight, Some(message));
        }
        if let Some(content) = scope.content
            && self.join_by_content(content, scope.epoch).is_none()
        {
            self.by_content.insert(content, scope.key);
        }
        let joinable = Joinable {
            in_flight: own.clone(),
            message: scope.message,
            epoch: scope.epoch,
        };
        self.by_key.insert(scope.key, joinable);
        (own.subscribe(), None)
    }

    /// The scan of the same octets, if the caller can join it.
    fn joinable(&self, scope: &AnswerScope) -> Option<&Joinable> {
        let joinable = self.by_key.get(&scope.key)?;
        joinable.uses_signatures_of(scope.epoch).then_some(joinable)
    }

    /// Joins a scan of a message of that content, if the caller can join it; returns the scanned message too.
    fn join_by_content(
        &self,
        content: Identity,
        epoch: u64,
    ) -> Option<(watch::Receiver<Phase>, MessageId)> {
        let joinable = self.by_key.get(self.by_content.get(&content)?)?;
        joinable
            .uses_signatures_of(epoch)
            .then(|| joinable.subscribe())
    }

    /// Removes a scan that has ended. A scan of a newer epoch may have replaced the entry; then the entry stays.
    fn end(&mut self, scope: &AnswerScope) {
        let joinable = self.by_key.get(&scope.key);
        if joinable.is_none_or(|joinable| joinable.epoch != scope.epoch) {
            return;
        }
        self.by_key.remove(&scope.key);
        if let Some(content) = scope.content
            && self.by_content.get(&content) == Some(&scope.key)
        {
            self.by_content.remove(&content);
        }
    }
}

/// Runs the scan, from its wait for a slot until the engine has really ended it.
async fn run_scan(state: Arc<GuardState>, scope: AnswerScope, call: Call, next: impl Next) {
    let in_flight = call.in_flight.clone();
    let began = Instant::now();
    let outcome = AssertUnwindSafe(next.oneshot(call)).catch_unwind().await;
    let outcome = outcome.unwrap_or_else(|panic| Err(ScanError::panicked(&*panic)));
    if let Ok(answer) = &outcome {
        let is_kept =
            !state.has_wrong_answers() && state.answers().put(Instant::now(), scope, answer);
        let took = began.elapsed();
        if took > state.settings.timeout && in_flight.is_closed() {
            came_late(&state, scope, (answer, is_kept), took);
        }
    }
    if let Err(ScanError::NoAnswer(limit)) = &outcome {
        report_lost(&state, scope.message, *limit);
    }
    state.in_flight_scans().end(&scope);
    in_flight.send_replace(Phase::Done(outcome));
}

/// Reports an answer that came after every caller had given up.
///
/// If the engine reached a limit of its own, the cache remembers the message as abandoned, and the next call gets no scan. An
/// engine that takes no mail at that moment is the exception: an engine that stood still may reach its limits on any message.
fn came_late(
    state: &GuardState,
    scope: AnswerScope,
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
            state.answers().abandon(Instant::now(), scope.key);
            "it abandoned the message, and the next scan counts as timed out without being run"
        }
        Answer::None { .. } => "not kept, as it says nothing about the message",
    };
    let subject = state.subject(None);
    let summary = format!("{subject} answered after its caller had left: {what}");
    let incident = Incident::new(Kind::LateAnswer, subject, summary)
        .with("after", format!("{:.1} s", took.as_secs_f64()))
        .about(scope.message);
    state.report_incident(incident);
}

/// Reports a scan that the engine did not end within its limit. Its slot is free for other mail, but the engine may still work
/// on the scan.
fn report_lost(state: &GuardState, message: MessageId, limit: Duration) {
    let subject = state.subject(None);
    let seconds = limit.as_secs_f64();
    let summary = format!(
        "{subject} did not end a scan within its limit of {seconds:.0} s: if this lasts, restart the engine, or raise its limit"
    );
    state.report_incident(Incident::new(Kind::ScanLost, subject, summary).about(message));
}

/// A caller that waits for a scan.
struct Caller {
    joined: bool,
    reputation: SenderReputation,
    deadline: Deadline,
    timeout: Duration,
    slow: Duration,
    progress: Arc<Progress>,
}

impl Caller {
    fn new(state: &GuardState, call: &Call, joined: bool) -> Self {
        let request = call.sample.request();
        let settings = &state.settings;
        let slow = match request.content.len() >= LARGE_OCTETS_MIN {
            true => settings.slow.saturating_mul(LARGE_LATENCY_FACTOR),
            false => settings.slow,
        };
        Self {
            joined,
            reputation: request.reputation,
            deadline: call.sample.deadline(),
            timeout: settings.timeout,
            slow: slow.min(settings.timeout),
            progress: call.progress.clone(),
        }
    }

    /// Waits until the scan ends or the caller gives up.
    async fn wait(self, mut in_flight: watch::Receiver<Phase>, out: &state::Out) -> Outcome {
        loop {
            // Registered before the current state is read, so that no change is missed.
            let presence_changed = out.changed();
            let phase = in_flight.borrow_and_update().clone();
            let presence = out.presence();
            let until = match phase {
                Phase::Done(outcome) => return outcome,
                Phase::Waiting => self.deadline,
                Phase::Running { since, blocked } => {
                    if let Some(error) = self.gives_up(since.elapsed(), blocked, presence) {
                        return Err(error);
                    }
                    self.until(since.elapsed())
                }
            };
            let news = async {
                tokio::select! {
                    biased;
                    news = in_flight.changed() => news,
                    () = presence_changed => Ok(()),
                }
            };
            match until.run(news).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ScanError::Stopping),
                Err(Elapsed) if self.deadline.passed() => {
                    return Err(self.progress.missing_at_deadline());
                }
                Err(Elapsed) => {}
            }
        }
    }

    /// The reason why the caller gives up on a scan of that age; none if the caller waits on. [`wait`](Self::wait) has two more
    /// reasons: the deadline of the caller, and the shutdown of the relay.
    fn gives_up(&self, age: Duration, blocked: bool, engine: Presence) -> Option<ScanError> {
        let (is_slow, is_overdue) = (age >= self.slow, age >= self.timeout);
        if blocked && is_slow {
            let why = "an interceptor began to hold mail like this one during its scan";
            return Some(ScanError::Suspect(why.to_owned()));
        }
        // Known senders give up when the breaker opens; others wait for `timeout`, because their content may have hung the
        // engine. If known senders' mail hangs in the engine as well, others give up too.
        let leaves = match engine {
            Presence::Here => false,
            Presence::Out => is_overdue || is_slow && self.reputation == SenderReputation::Known,
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

    /// The next instant at which [`gives_up`](Self::gives_up) may change its result.
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

    /// The reason why the caller gives up, in a word.
    fn leaves(
        reputation: SenderReputation,
        joined: bool,
        age: Duration,
        (blocked, engine): (bool, Presence),
    ) -> &'static str {
        let settings = settings("one");
        let caller = Caller {
            joined,
            reputation,
            deadline: Deadline::after(Duration::from_secs(60)),
            timeout: settings.timeout,
            slow: settings.slow,
            progress: Arc::default(),
        };
        match caller.gives_up(age, blocked, engine) {
            None => "waits",
            Some(ScanError::Suspect(_)) => "suspect",
            Some(ScanError::BreakerOpen(_)) => "breaker-open",
            Some(ScanError::Parked(_)) => "parked",
            Some(ScanError::Overdue(_)) => "timeout",
            Some(other) => panic!("{other:?}"),
        }
    }

    /// Younger than a slow scan, by the test settings; a slow one; and one past its timeout.
    const QUICK_AGE: Duration = Duration::from_millis(400);
    const SLOW_AGE: Duration = Duration::from_secs(2);
    const OVERDUE_AGE: Duration = Duration::from_secs(5);

    /// No caller gives up on a scan that is not slow. The caller of its own scan waits for `timeout`; a caller that has joined
    /// another scan gives up when that scan is slow.
    #[tokio::test(start_paused = true)]
    async fn callers_that_joined_give_up_on_slow_scans() {
        for reputation in [SenderReputation::Known, SenderReputation::Unknown] {
            for (blocked, engine) in [(false, Here), (true, Here), (false, Hangs), (true, Hangs)] {
                let why = leaves(reputation, true, QUICK_AGE, (blocked, engine));
                assert_eq!(why, "waits", "{blocked} {engine:?}");
            }
            let of = |joined, age| leaves(reputation, joined, age, (false, Here));
            assert_eq!(
                (of(false, SLOW_AGE), of(true, SLOW_AGE)),
                ("waits", "parked")
            );
            assert_eq!(of(false, OVERDUE_AGE), "timeout");
        }
    }

    /// When the breaker opens during a scan, other engines cover for known senders' mail. An unknown sender's content may be the
    /// cause, so that caller waits for `timeout`, unless known senders' mail hangs too.
    #[tokio::test(start_paused = true)]
    async fn unknown_senders_wait_when_the_breaker_opens() {
        let of = |reputation, age| leaves(reputation, false, age, (false, Out));
        assert_eq!(of(SenderReputation::Known, SLOW_AGE), "breaker-open");
        assert_eq!(of(SenderReputation::Unknown, SLOW_AGE), "waits");
        assert_eq!(of(SenderReputation::Unknown, OVERDUE_AGE), "breaker-open");
        assert_eq!(
            leaves(SenderReputation::Unknown, true, SLOW_AGE, (false, Out)),
            "parked"
        );
        let hangs = |age| leaves(SenderReputation::Unknown, false, age, (false, Hangs));
        assert_eq!(
            (hangs(QUICK_AGE), hangs(SLOW_AGE)),
            ("waits", "breaker-open")
        );
    }

    /// A message that an interceptor blocks during its scan is held before every other reason counts: no other engine covers for
    /// it, and no caller waits for the end of the scan.
    #[tokio::test(start_paused = true)]
    async fn a_block_during_the_scan_is_the_first_reason() {
        for reputation in [SenderReputation::Known, SenderReputation::Unknown] {
            for joined in [false, true] {
                for age in [SLOW_AGE, OVERDUE_AGE] {
                    for engine in [Here, Out, Hangs] {
                        let why = leaves(reputation, joined, age, (true, engine));
                        assert_eq!(why, "suspect", "{reputation:?} {joined} {age:?} {engine:?}");
                    }
                }
            }
        }
    }
}
