//! Recovery: messages that were held, deferred, or delivered without an engine are scanned again automatically when the cause
//! is gone (promise P6).
//!
//! Which mail is scanned again, and when:
//!
//! | cause | rounds run | mail | messages at once |
//! |---|---|---|---|
//! | an engine that takes mail | from its return on | all | 2 for each slot, from 2 to 32 (`recovery_per_slot`, `recovery_max`) |
//! | an engine that is no longer configured | always | all | 2 |
//! | an engine that is out | never | | |
//! | … and without which a person lets mail pass | from then on | deferred and held mail that is no suspect | 32 |
//! | an interceptor that has ended or no longer holds | from then on | all | 1 |
//! | a learned interceptor that holds | always, in at most half of the rounds | of known senders | 1 |
//!
//! [`Pipeline::causes`] lists the causes of the table, [`width`] is its last column, and [`schedule`] says when the next round of
//! a cause begins.
//!
//! Each cause has sweeps. One sweep goes once through all messages that wait for the cause: known senders first, then the
//! oldest first, whatever backoff each message has. Several messages for each slot of the engine wait at its gate
//! (`recovery_per_slot`), and the gate decides which of them is next: a backlog drains at the pace of the engine, and fresh mail
//! goes first. The sweep passes over a message that stays, so that the messages behind do not wait; the next sweep meets the
//! message again. Suspected messages (timed out before, or parked because of similar slow messages) are scanned one of each
//! kind at a time, beside the others. Every message is leased meanwhile: a crash interrupts the recovery and loses no message.
//! Recovery delivers nothing itself: a clean message waits in the queue of its next hop like all mail.

mod crew;
mod delivered;
mod round;
mod schedule;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Generation, Pipeline, events};
use crate::ablation::{Mechanism, without};
use crate::deadline::Deadline;
use crate::incident::{Incident, Kind};
use crate::scan::Guarded;
use crate::store::Cause;
use crew::Places;
use schedule::{RECHECK_INTERVAL, Round, RoundEnd, Sweep, Worked};

/// Interval between checks for recovered engines and ended interceptors: 1 s.
const RECOVERY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum of the messages of one round that are scanned at once, also for an engine that is no longer configured and has no
/// slots. [`GuardSettings`](crate::scan::GuardSettings) has the number for each slot and the maximum.
const WIDTH_MIN: usize = 2;
/// Maximum number of concurrent rounds, each for another cause. Interceptors in force get at most half of them, because the
/// mail that they hold may well be bad.
const ROUNDS_MAX: usize = 4;

/// The rounds of all causes.
#[derive(Default)]
struct Rounds {
    of: BTreeMap<Cause, Round>,
    /// Rounds under way: the cause, and the result; `None` if the task of the round panicked.
    going: FuturesUnordered<BoxFuture<'static, (Cause, Option<Worked>)>>,
    /// The counters of the interceptors at the last check: version and chances for recovery.
    interceptors: (u64, u64),
    /// Time of the last query of the store, and the causes that mail waits for.
    waited_for: (Option<Instant>, Vec<Cause>),
    /// The engines without which mail passed at the last check.
    passing: Vec<Cause>,
    /// For each engine: the counter of its returns, and the time at which a return last renewed its cause.
    returns: HashMap<Cause, (u64, Instant)>,
}

impl Pipeline {
    /// Runs recovery until `closing` is cancelled. Scans under way then continue (see [`Pipeline::drained`]).
    ///
    /// Cancel safety: safe; each round is a task of its own and ends with `closing`.
    pub async fn recover(self: Arc<Self>, closing: CancellationToken) {
        let mut rounds = Rounds::default();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                Some((cause, worked)) = rounds.going.next() => {
                    self.end_round(&mut rounds, &cause, worked);
                }
                () = Deadline::after(RECOVERY_CHECK_INTERVAL).wait() => {}
            }
            if !without(Mechanism::Recovery) {
                self.look_at_causes(&mut rounds).await;
                self.begin_rounds(&mut rounds, &closing);
            }
            self.look_at_waiting().await;
        }
    }

    /// Starts the rounds that are due, up to [`ROUNDS_MAX`] at once.
    fn begin_rounds(self: &Arc<Self>, rounds: &mut Rounds, closing: &CancellationToken) {
        let generation = self.generation();
        let causes = self.causes(&generation, &rounds.waited_for.1);
        self.look_at_interceptors(rounds);
        self.look_at_returns(&generation, rounds);
        self.look_at_passing(&generation, rounds);
        // An engine that is out has no rounds; its first round is due as soon as the engine is back.
        rounds.of.retain(|cause, round| {
            let is_in_force = causes.iter().any(|(known, _)| known == cause);
            if !is_in_force {
                self.renew(cause, round);
            }
            is_in_force || matches!(cause, Cause::Engine(_)) || round.sweep.is_none()
        });
        let now = Instant::now();
        let mut due = Vec::new();
        for (cause, gone) in causes {
            let width = width(&generation, &cause, gone);
            let round = rounds.of.entry(cause.clone());
            let round = round.or_insert_with(|| Round::new(Sweep::new(), Places::new(width)));
            // A reload may have changed the width.
            round.places.resize(width);
            round.gone = gone;
            if round.sweep.is_some() && now >= round.next {
                due.push((round.next, cause, gone));
            }
        }
        // The earliest due time goes first, so that causes take turns; among new causes, engines come first.
        due.sort_by_key(|(next, ..)| *next);
        for (_, cause, gone) in due {
            let room = if gone { ROUNDS_MAX } else { ROUNDS_MAX / 2 };
            let round = rounds.of.get_mut(&cause);
            let Some(round) = round.filter(|_| rounds.going.len() < room) else {
                continue;
            };
            let Some(sweep) = round.sweep.take() else {
                continue;
            };
            let sweep = (sweep, round.places.clone());
            let of = (cause.clone(), gone);
            let work = self
                .clone()
                .round(generation.clone(), of, sweep, closing.clone());
            let handle = self.tasks.spawn(work);
            rounds
                .going
                .push(Box::pin(async move { (cause, handle.await.ok()) }));
        }
    }

    /// Asks the store for the causes that mail waits for: a reload may have removed or renamed an engine.
    async fn look_at_causes(&self, rounds: &mut Rounds) {
        let now = Instant::now();
        if rounds
            .waited_for
            .0
            .is_some_and(|asked| now < asked + RECHECK_INTERVAL)
        {
            return;
        }
        rounds.waited_for.0 = Some(now);
        match self.store.causes().await {
            Ok(causes) => rounds.waited_for.1 = causes,
            Err(error) => events::lane_failed("recovery", &error),
        }
    }

    /// Renews causes when interceptors change. Mail that an interceptor or a trial kept from an engine waits for that engine,
    /// and may be scanned when the interceptor or the trial has ended.
    fn look_at_interceptors(&self, rounds: &mut Rounds) {
        let (version, chances) = {
            let interception = self.interception.lock();
            (interception.version(), interception.recovery_chances())
        };
        if version == rounds.interceptors.0 {
            return;
        }
        let (_, before) = std::mem::replace(&mut rounds.interceptors, (version, chances));
        for (cause, round) in &mut rounds.of {
            // A new interceptor releases no mail, so causes in backoff stay there. Idle causes may have new mail.
            if chances == before && round.failures > 0 {
                continue;
            }
            self.renew(cause, round);
        }
    }

    /// Renews the cause of an engine that was unreachable for so short a time that its breaker did not open, or that has ended
    /// a hanging scan: mail that found no free slot may be scanned now. At most once per [`RECHECK_INTERVAL`]: an overloaded
    /// engine refuses some of its connections all the time, and hanging messages must not renew each other.
    fn look_at_returns(&self, generation: &Generation, rounds: &mut Rounds) {
        let now = Instant::now();
        for engine in generation.scanner.engines() {
            let cause = Cause::Engine(engine.settings().name.to_string());
            let (returns, before) = (engine.returns(), rounds.returns.get(&cause));
            if before.map_or(0, |(returns, _)| *returns) == returns
                || before.is_some_and(|(_, at)| now < *at + RECHECK_INTERVAL)
            {
                continue;
            }
            if let Some(round) = rounds.of.get_mut(&cause) {
                self.renew(&cause, round);
            }
            rounds.returns.insert(cause, (returns, now));
        }
    }

    /// Renews the cause of an engine when a drain begins to let mail pass without it, and when that has ended: then the engine
    /// may be back, and the mail that has passed is to be scanned.
    fn look_at_passing(&self, generation: &Generation, rounds: &mut Rounds) {
        let engines = generation.scanner.engines().iter();
        let passing = engines.filter(|engine| engine.passes().is_some());
        let passing: Vec<Cause> = passing
            .map(|engine| Cause::Engine(engine.settings().name.to_string()))
            .collect();
        let before = std::mem::replace(&mut rounds.passing, passing);
        let now = &rounds.passing;
        let began = now.iter().filter(|cause| !before.contains(cause));
        let ended = before.iter().filter(|cause| !now.contains(cause));
        for cause in began.chain(ended) {
            if let Some(round) = rounds.of.get_mut(cause) {
                round.places = Places::new(width(generation, cause, true));
                self.renew(cause, round);
            }
        }
    }

    /// Makes a new sweep due at once, or after the round under way: messages that stayed may be settled now.
    fn renew(&self, cause: &Cause, round: &mut Round) {
        match round.sweep.take() {
            None => round.renewed = true,
            Some(sweep) => {
                self.report_end(cause, &sweep);
                *round = Round::new(sweep.again(), round.places.clone());
            }
        }
    }

    fn end_round(&self, rounds: &mut Rounds, cause: &Cause, worked: Option<Worked>) {
        let Some(round) = rounds.of.get_mut(cause) else {
            return;
        };
        let worked = worked.unwrap_or_else(|| Worked {
            sweep: Sweep::new(),
            end: RoundEnd::Stuck,
            settled: 0,
            stays: 0,
        });
        round.schedule(&worked);
        // Clean mail is in the queue of its next hop: the delivery lane looks there now and not at its next poll.
        self.wake.notify_waiters();
        let renewed = std::mem::take(&mut round.renewed);
        round.sweep = Some(match worked.end {
            RoundEnd::Through => {
                self.report_end(cause, &worked.sweep);
                Sweep::new()
            }
            RoundEnd::Turn | RoundEnd::Stuck => worked.sweep,
        });
        if renewed {
            self.renew(cause, round);
        }
    }

    /// The causes whose mail may be scanned, each with whether the cause is gone. Gone: engines that take mail or without which
    /// mail passes, engines that are no longer configured, ended interceptors. Not gone: interceptors in force, where only mail
    /// from known senders is tried. While mail passes without an engine, no interceptor is a cause: its mail may be bad, and the
    /// engine that would detect this is not asked.
    fn causes(&self, generation: &Generation, waited_for: &[Cause]) -> Vec<(Cause, bool)> {
        let engines = generation.scanner.engines().iter();
        let is_any_passing = engines.clone().any(|engine| engine.passes().is_some());
        let well = engines.filter(|engine| lets_mail_go(engine));
        let mut causes: Vec<(Cause, bool)> = well
            .map(|engine| (Cause::Engine(engine.settings().name.to_string()), true))
            .collect();
        let removed = waited_for
            .iter()
            .filter(|cause| is_removed(generation, cause));
        causes.extend(removed.map(|cause| (cause.clone(), true)));
        if is_any_passing {
            return causes;
        }
        let (ended, holding) = self.interception.recoverable();
        causes.extend(ended.into_iter().map(|id| (Cause::Interceptor(id), true)));
        causes.extend(
            holding
                .into_iter()
                .map(|id| (Cause::Interceptor(id), false)),
        );
        causes
    }

    /// Whether a further message may be expected to be settled now.
    fn is_gone(&self, cause: &Cause) -> bool {
        let generation = self.generation();
        let mut engines = generation.scanner.engines().iter();
        match cause {
            Cause::Engine(_) if is_removed(&generation, cause) => true,
            Cause::Engine(name) => engines.any(|e| *e.settings().name == **name && lets_mail_go(e)),
            Cause::Interceptor(_) => true,
        }
    }

    fn report_end(&self, cause: &Cause, sweep: &Sweep) {
        if !sweep.is_announced {
            return;
        }
        let summary = match (is_passing(&self.generation(), cause), sweep.stays) {
            (true, 0) => "all that waited for it has passed without it",
            (true, _) => "what may pass without it has passed; what may be its cause stays",
            (false, 0) => "all that could be scanned again has been",
            (false, _) => "what is left of what was kept for it is tried later",
        };
        let (settled, stays) = (sweep.settled, sweep.stays);
        self.report(Kind::RecoveryEnded, cause, summary, settled, stays);
    }

    fn report(&self, kind: Kind, cause: &Cause, what: &str, settled: u64, stays: u64) {
        let subject = cause.subject();
        let summary = format!("{subject}: {what}");
        let mut incident = Incident::new(kind, subject, summary);
        if kind == Kind::RecoveryEnded {
            incident = incident
                .with("messages settled", settled)
                .with("messages that stay", stays);
        }
        self.incidents.record(incident);
    }
}

/// Whether mail need not wait for the engine: it takes mail, or mail passes without it.
fn lets_mail_go(engine: &Guarded) -> bool {
    !engine.is_out() || engine.passes().is_some()
}

/// Whether the cause is an engine that is out, and without which a person lets mail pass.
fn is_passing(generation: &Generation, cause: &Cause) -> bool {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) => {
            engines.any(|e| *e.settings().name == **name && e.passes().is_some())
        }
        Cause::Interceptor(_) => false,
    }
}

/// Whether the cause is an engine that is no longer configured.
fn is_removed(generation: &Generation, cause: &Cause) -> bool {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) => engines.all(|engine| *engine.settings().name != **name),
        Cause::Interceptor(_) => false,
    }
}

/// The number of messages that are scanned at once for a cause.
pub(super) fn width(generation: &Generation, cause: &Cause, gone: bool) -> usize {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) if gone => {
            let engine = engines.find(|engine| *engine.settings().name == **name);
            engine.map_or(WIDTH_MIN, |engine| {
                let guard = engine.settings().guard;
                // An engine without which mail passes is not asked, so its slots set no pace.
                let width = match engine.passes() {
                    Some(_) => guard.recovery_max,
                    None => engine.health().slots * guard.recovery_per_slot,
                };
                width.min(guard.recovery_max).max(WIDTH_MIN)
            })
        }
        // Mail that an interceptor has held may well be bad.
        Cause::Engine(_) | Cause::Interceptor(_) => 1,
    }
}
