//! Recovery: messages that were held, deferred, or delivered without an engine are scanned again automatically when the cause
//! is gone (promise P6).
//!
//! Each cause has sweeps. One sweep goes once through all messages that wait for the cause: known senders first, then the
//! oldest first, whatever backoff each message has. Several messages for each slot of the engine wait at its gate
//! ([`WIDTH_PER_SLOT`]), and the gate decides which of them is next: a backlog drains at the pace of the engine, and fresh mail
//! goes first. The sweep passes over a message that stays, so that the messages behind do not wait; the next sweep meets the
//! message again. Suspected messages (timed out before, or parked because of similar slow messages) are scanned one of each
//! kind at a time, beside the others. Every message is leased meanwhile: a crash interrupts the recovery and loses no message.
//! Recovery delivers nothing itself: a clean message waits in the queue of its next hop like all mail.

mod crew;
mod delivered;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crew::{Crew, Places};

use super::{Generation, NextStep, Pipeline, events, lanes};
use crate::ablation::{Mechanism, without};
use crate::deadline::{Deadline, Elapsed, wall_clock};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Content, Message, SenderReputation};
use crate::observation::ScanReason;
use crate::store::{Cause, Change, Lane, Place, Record, StoreError, Working};

/// Interval between checks for recovered engines and ended interceptors: 1 s.
const RECOVERY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Backoff after the first round without a settled message and with one that stays: 5 s, doubled with each further such round
/// up to [`ROUND_BACKOFF_MAX`].
const ROUND_BACKOFF_INITIAL: Duration = Duration::from_secs(5);
const ROUND_BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Maximum backoff if the cause is gone and the sweep has not reached its end: further messages have not been tried yet.
const ROUND_BACKOFF_UNTRIED_MAX: Duration = Duration::from_secs(20);
/// Messages of one round that are scanned at once, for each slot of the engine: 2, so that a message is always at the gate when
/// a slot becomes free.
const WIDTH_PER_SLOT: usize = 2;
/// Minimum of that number, also for an engine that is no longer configured and has no slots.
const WIDTH_MIN: usize = 2;
/// Maximum of that number, because every message of a round is in memory.
const WIDTH_MAX: usize = 32;
/// Minimum interval between two sweeps for one cause if the first found no message, between two queries of the store for
/// causes, and between two renewals of a cause by returns of its engine: 60 s.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of concurrent rounds, each for another cause. Interceptors in force get at most half of them, because the
/// mail that they hold may well be bad.
const ROUNDS_MAX: usize = 4;
/// Maximum duration of a round: 10 s, then other causes have their turn. Scans under way continue without the round.
const ROUND_TIME_MAX: Duration = Duration::from_secs(10);

/// The outcome of one message in a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The message no longer waits for the cause: delivered, queued, held for a finding, or waiting for another cause.
    Settled,
    /// The message still waits for the cause.
    Stays,
}

/// One pass through all messages that wait for a cause.
#[derive(Debug)]
struct Sweep {
    /// The lanes that are left, beginning with the current one.
    lanes: &'static [Lane],
    /// The position reached in each lane, by this sweep or by the interrupted one before.
    places: HashMap<Lane, Place>,
    /// The sweep began at these positions; messages before them are left to the next sweep.
    interrupted: bool,
    settled: u64,
    stays: u64,
    /// The incident log has an entry for the start of this sweep.
    told: bool,
}

impl Sweep {
    const LANE_ORDER: &[Lane] = &[Lane::Scan, Lane::Held, Lane::Rescan];

    fn new() -> Self {
        Self {
            lanes: Self::LANE_ORDER,
            places: HashMap::new(),
            interrupted: false,
            settled: 0,
            stays: 0,
            told: false,
        }
    }

    /// A new sweep after a renewal of the cause. The new sweep begins with the messages that this one has not tried: messages
    /// at the head could otherwise end every sweep.
    fn again(self) -> Self {
        Self {
            interrupted: !self.places.is_empty(),
            places: self.places,
            ..Self::new()
        }
    }

    fn end_of_lane(&mut self) {
        if let Some((lane, rest)) = self.lanes.split_first() {
            self.places.remove(lane);
            self.lanes = rest;
        }
    }
}

/// Why a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RoundEnd {
    /// The sweep is complete.
    Through,
    /// The time of the round is over, or the relay stops.
    Turn,
    /// A message stays and the cause is not gone, or the store fails.
    Stuck,
}

/// The result of a round.
#[derive(Debug)]
struct Worked {
    sweep: Sweep,
    end: RoundEnd,
    settled: u64,
    stays: u64,
}

/// The schedule of the rounds for one cause.
#[derive(Debug)]
struct Round {
    next: Instant,
    failures: u32,
    gone: bool,
    /// `None` while a round is under way.
    sweep: Option<Sweep>,
    /// The cause was renewed while a round was under way.
    renewed: bool,
    places: Places,
}

impl Round {
    fn new(sweep: Sweep, places: Places) -> Self {
        Self {
            next: Instant::now(),
            failures: 0,
            gone: true,
            sweep: Some(sweep),
            renewed: false,
            places,
        }
    }

    /// Sets the start of the next round.
    fn schedule(&mut self, worked: &Worked) {
        let failed = worked.stays > 0 || worked.end == RoundEnd::Stuck;
        self.failures = match (worked.settled, failed) {
            (0, true) => self.failures + 1,
            (0, false) => self.failures,
            _ => 0,
        };
        let doubled = 1 << self.failures.saturating_sub(1).min(10);
        let backoff = ROUND_BACKOFF_INITIAL
            .saturating_mul(doubled)
            .min(ROUND_BACKOFF_MAX);
        let sweep = &worked.sweep;
        let wait = match worked.end {
            RoundEnd::Turn => Duration::ZERO,
            RoundEnd::Stuck if self.gone => backoff.min(ROUND_BACKOFF_UNTRIED_MAX),
            RoundEnd::Stuck => backoff,
            RoundEnd::Through if sweep.stays > 0 => backoff,
            RoundEnd::Through if sweep.settled > 0 || sweep.interrupted => Duration::ZERO,
            RoundEnd::Through => {
                self.failures = 0;
                RECHECK_INTERVAL
            }
        };
        self.next = Instant::now() + wait;
    }
}

/// The rounds of all causes.
#[derive(Default)]
struct Rounds {
    of: BTreeMap<Cause, Round>,
    /// Rounds under way: the cause, and the result; `None` if the task of the round panicked.
    going: FuturesUnordered<BoxFuture<'static, (Cause, Option<Worked>)>>,
    /// Version and chance counter of the interceptors at the last check.
    interceptors: (u64, u64),
    /// Time of the last query of the store, and the causes that mail waits for.
    waited_for: (Option<Instant>, Vec<Cause>),
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
        }
    }

    /// Starts the rounds that are due, up to [`ROUNDS_MAX`] at once.
    fn begin_rounds(self: &Arc<Self>, rounds: &mut Rounds, closing: &CancellationToken) {
        let generation = self.generation();
        let causes = self.causes(&generation, &rounds.waited_for.1);
        self.look_at_interceptors(rounds);
        self.look_at_returns(&generation, rounds);
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
            let round = rounds.of.entry(cause.clone());
            let round = round.or_insert_with(|| {
                Round::new(Sweep::new(), Places::new(width(&generation, &cause, gone)))
            });
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
            let interception = self.suspicion.lock();
            (interception.version(), interception.chances())
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

    /// Renews the cause of an engine that was unreachable for so short a time that its breaker did not open. At most once per
    /// [`RECHECK_INTERVAL`]: an overloaded engine refuses some of its connections all the time.
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

    /// Makes a new sweep due at once, or after the round under way: messages that stayed may be settled now.
    fn renew(&self, cause: &Cause, round: &mut Round) {
        match round.sweep.take() {
            None => round.renewed = true,
            Some(sweep) => {
                self.tell_end(cause, &sweep);
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
                self.tell_end(cause, &worked.sweep);
                Sweep::new()
            }
            RoundEnd::Turn | RoundEnd::Stuck => worked.sweep,
        });
        if renewed {
            self.renew(cause, round);
        }
    }

    /// The causes whose mail may be scanned, each with whether the cause is gone. Gone: engines that take mail, engines that are
    /// no longer configured, ended interceptors. Not gone: interceptors in force, where only mail from known senders is tried.
    fn causes(&self, generation: &Generation, waited_for: &[Cause]) -> Vec<(Cause, bool)> {
        let engines = generation.scanner.engines().iter();
        let well = engines.filter(|engine| !engine.is_out());
        let mut causes: Vec<(Cause, bool)> = well
            .map(|engine| (Cause::Engine(engine.settings().name.to_string()), true))
            .collect();
        let removed = waited_for
            .iter()
            .filter(|cause| is_removed(generation, cause));
        causes.extend(removed.map(|cause| (cause.clone(), true)));
        let (ended, holding) = self.suspicion.recoverable();
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
            Cause::Engine(name) => engines.any(|e| *e.settings().name == **name && !e.is_out()),
            Cause::Interceptor(_) => true,
        }
    }

    /// Continues a sweep for one round: until [`ROUND_TIME_MAX`] has passed, the sweep is complete, or further scans would fail.
    /// Scans that hang then continue without the round. Begins no scan after `closing` is cancelled.
    async fn round(
        self: Arc<Self>,
        generation: Arc<Generation>,
        (cause, gone): (Cause, bool),
        (mut sweep, places): (Sweep, Places),
        closing: CancellationToken,
    ) -> Worked {
        let turn = Deadline::after(ROUND_TIME_MAX);
        let (settled, stays) = (sweep.settled, sweep.stays);
        let mut crew = Crew::new(places);
        let end = loop {
            if closing.is_cancelled() || turn.passed() {
                break RoundEnd::Turn;
            }
            let of = (&cause, gone);
            if let Err(error) = self.hire(&generation, of, &mut sweep, &mut crew).await {
                events::lane_failed("recovery", &error);
                break RoundEnd::Stuck;
            }
            while let Some((lane, record, working, places)) = crew.next_ready() {
                let (pipeline, generation) = (self.clone(), generation.clone());
                let step = self.tasks.spawn(async move {
                    let step = pipeline.step(&generation, lane, record).await;
                    drop((working, places));
                    step
                });
                crew.at_work.push(step);
            }
            let ended = tokio::select! {
                biased;
                () = closing.cancelled() => continue,
                ended = turn.run(crew.at_work.next()) => ended,
            };
            match ended {
                Ok(Some(Ok(Step::Settled))) => sweep.settled += 1,
                Ok(Some(_)) => {
                    sweep.stays += 1;
                    if !gone || !self.is_gone(&cause) {
                        break RoundEnd::Stuck;
                    }
                }
                Ok(None) if sweep.lanes.is_empty() && crew.is_done() => break RoundEnd::Through,
                Ok(None) => drop(turn.run(crew.freed()).await),
                Err(Elapsed) => {}
            }
        };
        for (record, _working) in crew.dismiss() {
            self.put_back(record).await;
        }
        sweep.stays += crew.at_work.len() as u64;
        Worked {
            end,
            settled: sweep.settled - settled,
            stays: sweep.stays - stays,
            sweep,
        }
    }

    /// Claims the next messages of the sweep while the crew has room.
    async fn hire(
        &self,
        generation: &Generation,
        (cause, gone): (&Cause, bool),
        sweep: &mut Sweep,
        crew: &mut Crew,
    ) -> Result<(), StoreError> {
        while let room @ 1.. = crew.room()
            && let Some(lane) = sweep.lanes.first().copied()
        {
            let claimed = self.next(generation, lane, cause, sweep, room).await?;
            let is_last = claimed.len() < room;
            for (record, working) in claimed {
                // While the interceptor is in force, only mail from known senders may cost the engine a scan.
                if !gone && record.reputation != Some(SenderReputation::Known) {
                    drop(working);
                    self.put_back(record).await;
                    sweep.end_of_lane();
                    return Ok(());
                }
                sweep.places.insert(lane, Place::of(&record));
                if !sweep.told && lane != Lane::Scan {
                    sweep.told = true;
                    let what = "what was kept for it is scanned again";
                    self.tell(Kind::RecoveryBegun, cause, what, 0, 0);
                }
                crew.add(lane, record, working);
            }
            if is_last {
                sweep.end_of_lane();
            }
        }
        Ok(())
    }

    async fn next(
        &self,
        generation: &Generation,
        lane: Lane,
        cause: &Cause,
        sweep: &Sweep,
        limit: usize,
    ) -> Result<Vec<(Record, Working)>, StoreError> {
        let after = sweep.places.get(&lane).copied();
        let times = lanes::times(generation, Duration::ZERO);
        let claimed = self.store.recover(lane, cause.clone(), after, times, limit);
        let at_work = self.store.at_work();
        // Without the records that another task of this process works on.
        let begin = |record: Record| Some((at_work.begin(record.id)?, record));
        let begun = claimed.await?.into_iter().filter_map(begin);
        Ok(begun.map(|(working, record)| (record, working)).collect())
    }

    async fn step(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        lane: Lane,
        record: Record,
    ) -> Step {
        let size = usize::try_from(record.size).unwrap_or(usize::MAX);
        let room = Deadline::after(lanes::MEMORY_WAIT_MAX).run(self.memory.acquire(size));
        // The content is read only after its memory is reserved.
        let Ok(charge) = room.await else {
            return self.put_back(record).await;
        };
        let content = match self.store.content(record.id).await {
            Ok(content) => Content::charged(content, charge),
            Err(error) => {
                events::lane_failed("content", &error);
                return self.put_back(record).await;
            }
        };
        let message = Message {
            id: record.message,
            received_at: record.received_at,
            envelope: Arc::new(record.envelope.clone()),
            trace: record.trace.clone(),
            content,
        };
        match lane {
            Lane::Rescan => self.scan_delivered(generation, message, record).await,
            Lane::Scan | Lane::Delivery | Lane::Held => {
                self.scan_kept(generation, message, record).await
            }
        }
    }

    /// Passes a held or deferred message through the pipeline again. Learned interceptors do not hold a message that comes out
    /// of quarantine for this scan ([`ScanReason::Redrive`]).
    async fn scan_kept(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        message: Message,
        mut record: Record,
    ) -> Step {
        let (id, cause) = (record.id, record.cause.clone());
        // The engine is back: scan time that the message spent without the engine does not count against its budget.
        record.spent = Duration::ZERO;
        let scan_reason = match record.lane {
            Lane::Held => {
                // The record leaves quarantine first, so that no reviewer deletes or releases a message on its way.
                record.lane = Lane::Scan;
                // After a crash, the lanes continue with the record at once.
                record.due_at = wall_clock();
                let until = record.due_at + lanes::lease(&generation.budget);
                let change = Change::Take(Box::new(record.clone()), until);
                match self.store.change_in(Lane::Held, id, change, None).await {
                    Ok(()) => ScanReason::Redrive,
                    Err(StoreError::NotFound(_)) => return Step::Settled,
                    Err(error) => {
                        events::lane_failed("recovery", &error);
                        return Step::Stays;
                    }
                }
            }
            Lane::Scan | Lane::Delivery | Lane::Rescan => ScanReason::Again,
        };
        self.resume(
            generation.clone(),
            message,
            record,
            scan_reason,
            NextStep::Queue,
        )
        .await;
        match self.store.get(id).await {
            Ok(Some(after)) if after.cause.is_some() && after.cause == cause => Step::Stays,
            Ok(_) => Step::Settled,
            Err(error) => {
                events::lane_failed("recovery", &error);
                Step::Stays
            }
        }
    }

    async fn remove(&self, record: Record) -> Step {
        match self.store.change(record.id, Change::Remove, None).await {
            Ok(()) | Err(StoreError::NotFound(_)) => Step::Settled,
            Err(error) => {
                events::lane_failed("recovery", &error);
                Step::Stays
            }
        }
    }

    /// Ends the lease. A record that a reviewer has moved meanwhile is not changed.
    async fn put_back(&self, record: Record) -> Step {
        let (lane, id) = (record.lane, record.id);
        let change = Change::Replace(Box::new(record));
        match self.store.change_in(lane, id, change, None).await {
            Ok(()) | Err(StoreError::NotFound(_)) => {}
            Err(error) => events::lane_failed("recovery", &error),
        }
        Step::Stays
    }

    fn tell_end(&self, cause: &Cause, sweep: &Sweep) {
        if !sweep.told {
            return;
        }
        let summary = match sweep.stays {
            0 => "all that could be scanned again has been",
            _ => "what is left of what was kept for it is tried later",
        };
        let (settled, stays) = (sweep.settled, sweep.stays);
        self.tell(Kind::RecoveryEnded, cause, summary, settled, stays);
    }

    fn tell(&self, kind: Kind, cause: &Cause, what: &str, settled: u64, stays: u64) {
        let subject = match cause {
            Cause::Engine(name) => Subject::Engine {
                name: name.clone(),
                replica: None,
            },
            Cause::Interceptor(id) => Subject::Interceptor(id.clone()),
        };
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

/// Whether the cause is an engine that is no longer configured.
fn is_removed(generation: &Generation, cause: &Cause) -> bool {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) => engines.all(|engine| *engine.settings().name != **name),
        Cause::Interceptor(_) => false,
    }
}

/// The number of messages that are scanned at once for a cause.
fn width(generation: &Generation, cause: &Cause, gone: bool) -> usize {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) if gone => {
            let engine = engines.find(|engine| *engine.settings().name == **name);
            let slots = engine.map_or(0, |engine| engine.health().slots);
            (slots * WIDTH_PER_SLOT).clamp(WIDTH_MIN, WIDTH_MAX)
        }
        // Mail that an interceptor has held may well be bad.
        Cause::Engine(_) | Cause::Interceptor(_) => 1,
    }
}
