//! Recovery: what was held, deferred, or delivered without an engine for a cause that is gone is scanned again, by
//! itself (promise P6).
//!
//! Each cause has its sweeps: once through all that waits for it, known senders first, the oldest first, whatever each
//! message's own back-off says. As many messages at once as the engine has slots for wait at its gate, which knows best when it
//! is their turn: a backlog drains at the engine's own pace, and fresh mail goes first there. What stays where it is is passed
//! over, so that it keeps nothing behind it waiting, and met again in the next sweep. What may be to blame (it ran into its
//! timeout, or waits for what is like it) goes alone, beside the others. Every message is under a lease meanwhile: a crash
//! interrupts a recovery and loses nothing of it. Nothing is delivered here: what is clean waits for its turn at its next hop
//! like all mail.

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

use super::{Generation, Onward, Pipeline, events, lanes};
use crate::ablation::{Mechanism, without};
use crate::deadline::{Deadline, Elapsed, wall_clock};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Content, Message, Standing};
use crate::scan::ScanReason;
use crate::store::{Cause, Change, Lane, Place, Record, StoreError, Working};

/// How often it is looked for causes that are gone.
const TICK: Duration = Duration::from_secs(1);
/// After a round in which nothing went well: first so long, doubled up to [`LONGEST`].
const AGAIN: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(600);
/// The same at most while there is something behind that has not been tried yet.
const MORE: Duration = Duration::from_secs(20);
/// Messages of one round that are scanned at once: so many for each slot of its engine, so that there is always one at the gate
/// when a slot is free; at least and at most so many, as each is in memory.
const WIDTH_PER_SLOT: usize = 2;
const WIDTH_LEAST: usize = 2;
const WIDTH_MOST: usize = 32;
/// A sweep that found nothing to do is not repeated for so long.
const IDLE: Duration = Duration::from_secs(60);
/// Rounds at once, each for another cause; half of them at most for interceptors that hold, whose mail may well be bad.
const AT_ONCE: usize = 4;
/// A round lasts so long at most, and one message: then it is the turn of other causes.
const QUANTUM: Duration = Duration::from_secs(10);

/// What became of one message in a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It went on its way, or is held for what was found in it.
    Settled,
    /// It is where it was.
    Stays,
}

/// Once through all that waits for a cause.
#[derive(Debug)]
struct Sweep {
    /// What is left of it, beginning with the present one.
    lanes: &'static [Lane],
    /// How far it has come in them, or had come in them before it was interrupted.
    places: HashMap<Lane, Place>,
    /// What is before these places is the next sweep's.
    interrupted: bool,
    settled: u64,
    stays: u64,
    /// Its begin is in the incident log.
    told: bool,
}

impl Sweep {
    const LANES: &[Lane] = &[Lane::Scan, Lane::Held, Lane::Rescan];

    fn new() -> Self {
        Self {
            lanes: Self::LANES,
            places: HashMap::new(),
            interrupted: false,
            settled: 0,
            stays: 0,
            told: false,
        }
    }

    /// There is a new chance for all that waits, and first for what has not had one: what is at the head could otherwise end
    /// every sweep.
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
enum End {
    /// So has the sweep.
    Through,
    /// It was the turn of others.
    Turn,
    /// What was tried stays, or the store fails.
    Stuck,
}

/// A round that has ended.
#[derive(Debug)]
struct Worked {
    sweep: Sweep,
    end: End,
    settled: u64,
    stays: u64,
}

/// The rounds of a cause.
#[derive(Debug)]
struct Round {
    next: Instant,
    failures: u32,
    gone: bool,
    /// None while a round goes on.
    sweep: Option<Sweep>,
    /// There is a new chance for what stays.
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

    /// When the next one is.
    fn schedule(&mut self, worked: &Worked) {
        let failed = worked.stays > 0 || worked.end == End::Stuck;
        self.failures = match (worked.settled, failed) {
            (0, true) => self.failures + 1,
            (0, false) => self.failures,
            _ => 0,
        };
        let doubled = 1 << self.failures.saturating_sub(1).min(10);
        let backoff = AGAIN.saturating_mul(doubled).min(LONGEST);
        let sweep = &worked.sweep;
        let wait = match worked.end {
            End::Turn => Duration::ZERO,
            End::Stuck if self.gone => backoff.min(MORE),
            End::Stuck => backoff,
            End::Through if sweep.stays > 0 => backoff,
            End::Through if sweep.settled > 0 || sweep.interrupted => Duration::ZERO,
            End::Through => {
                self.failures = 0;
                IDLE
            }
        };
        self.next = Instant::now() + wait;
    }
}

/// All rounds.
#[derive(Default)]
struct Rounds {
    of: BTreeMap<Cause, Round>,
    /// Those that go on: their causes, and what became of them, unless they broke off.
    going: FuturesUnordered<BoxFuture<'static, (Cause, Option<Worked>)>>,
    /// The version of the interceptors, and their chances.
    interceptors: (u64, u64),
    /// What mail waits for in the store, and when that was asked.
    waited_for: (Option<Instant>, Vec<Cause>),
    /// How often each engine has returned, and when that was a new chance for what waits for it.
    returns: HashMap<Cause, (u64, Instant)>,
}

impl Pipeline {
    /// Recovers until `closing` is cancelled; what has begun then ends by itself (see [`Pipeline::drained`]).
    pub async fn recover(self: Arc<Self>, closing: CancellationToken) {
        let mut rounds = Rounds::default();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                Some((cause, worked)) = rounds.going.next() => {
                    self.end_round(&mut rounds, &cause, worked);
                }
                () = Deadline::after(TICK).wait() => {}
            }
            if !without(Mechanism::Recovery) {
                self.look_at_causes(&mut rounds).await;
                self.begin_rounds(&mut rounds, &closing);
            }
        }
    }

    /// Begins the rounds that are due, as far as there is room for them.
    fn begin_rounds(self: &Arc<Self>, rounds: &mut Rounds, closing: &CancellationToken) {
        let generation = self.generation();
        let causes = self.causes(&generation, &rounds.waited_for.1);
        self.look_at_interceptors(rounds);
        self.look_at_returns(&generation, rounds);
        // Of an engine that is out nothing is expected; when it is back its first round is due at once.
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
        // Whose turn was last waits longest; of those that are new, engines come first.
        due.sort_by_key(|(next, ..)| *next);
        for (_, cause, gone) in due {
            let room = if gone { AT_ONCE } else { AT_ONCE / 2 };
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

    /// Asks the store what mail waits for: it may be an engine that a reload has removed or renamed.
    async fn look_at_causes(&self, rounds: &mut Rounds) {
        let now = Instant::now();
        if rounds.waited_for.0.is_some_and(|asked| now < asked + IDLE) {
            return;
        }
        rounds.waited_for.0 = Some(now);
        match self.store.causes().await {
            Ok(causes) => rounds.waited_for.1 = causes,
            Err(error) => events::lane_failed("recovery", &error),
        }
    }

    /// What an interceptor or a trial kept from an engine waits for that engine: its end is a new chance.
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
            // One that was made frees nothing; but what was idle may have something to do.
            if chances == before && round.failures > 0 {
                continue;
            }
            self.renew(cause, round);
        }
    }

    /// An engine may be away for so short a time that its breaker does not open: a new chance for what that cost. But not again and
    /// again, as one that is overloaded refuses some of its connections all the time.
    fn look_at_returns(&self, generation: &Generation, rounds: &mut Rounds) {
        let now = Instant::now();
        for engine in generation.scanner.engines() {
            let cause = Cause::Engine(engine.settings().name.to_string());
            let (returns, before) = (engine.returns(), rounds.returns.get(&cause));
            if before.map_or(0, |(returns, _)| *returns) == returns
                || before.is_some_and(|(_, at)| now < *at + IDLE)
            {
                continue;
            }
            if let Some(round) = rounds.of.get_mut(&cause) {
                self.renew(&cause, round);
            }
            rounds.returns.insert(cause, (returns, now));
        }
    }

    /// What stays has a new chance: its first round is due.
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
            end: End::Stuck,
            settled: 0,
            stays: 0,
        });
        round.schedule(&worked);
        // Clean mail waits for its next hop, and need not wait until somebody looks.
        self.wake.notify_waiters();
        let renewed = std::mem::take(&mut round.renewed);
        round.sweep = Some(match worked.end {
            End::Through => {
                self.tell_end(cause, &worked.sweep);
                Sweep::new()
            }
            End::Turn | End::Stuck => worked.sweep,
        });
        if renewed {
            self.renew(cause, round);
        }
    }

    /// Engines that answer, engines that are configured no more, and interceptors that have ended: these causes are gone.
    /// Interceptors in force of which a message of a known sender may be tried: these are not.
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

    /// Whether mail may be expected to go on now.
    fn is_gone(&self, cause: &Cause) -> bool {
        let generation = self.generation();
        let mut engines = generation.scanner.engines().iter();
        match cause {
            Cause::Engine(_) if is_removed(&generation, cause) => true,
            Cause::Engine(name) => engines.any(|e| *e.settings().name == **name && !e.is_out()),
            Cause::Interceptor(_) => true,
        }
    }

    /// Goes on with a sweep. Ends when its turn does, and before if there is nothing left to be done, or it is no use; what hangs is
    /// left to itself then. Begins nothing more when `closing` is cancelled.
    async fn round(
        self: Arc<Self>,
        generation: Arc<Generation>,
        (cause, gone): (Cause, bool),
        (mut sweep, places): (Sweep, Places),
        closing: CancellationToken,
    ) -> Worked {
        let turn = Deadline::after(QUANTUM);
        let (settled, stays) = (sweep.settled, sweep.stays);
        let mut crew = Crew::new(places);
        let end = loop {
            if closing.is_cancelled() || turn.passed() {
                break End::Turn;
            }
            let of = (&cause, gone);
            if let Err(error) = self.hire(&generation, of, &mut sweep, &mut crew).await {
                events::lane_failed("recovery", &error);
                break End::Stuck;
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
                        break End::Stuck;
                    }
                }
                Ok(None) if sweep.lanes.is_empty() && crew.is_done() => break End::Through,
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

    /// Claims what comes next in the sweep, as long as there is room for it.
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
                // While the interceptor holds, only mail that something speaks for may cost the engine a scan.
                if !gone && record.standing != Some(Standing::Known) {
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
        // Nobody has begun with it since it was leased.
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
        let room = Deadline::after(lanes::MEMORY).run(self.memory.acquire(size));
        // Nothing is in memory before it has its place there.
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

    /// Held or deferred: it passes once more, as if it had just come in, but for the interceptors.
    async fn scan_kept(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        message: Message,
        mut record: Record,
    ) -> Step {
        let (id, cause) = (record.id, record.cause.clone());
        // Its engine is back: what it cost while it was away is not held against it.
        record.spent = Duration::ZERO;
        let scan_reason = match record.lane {
            Lane::Held => {
                // Out of quarantine first: what is on its way no reviewer should delete, or release once more.
                record.lane = Lane::Scan;
                // After a crash the lanes go on with it at once.
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
            Onward::Queue,
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

    /// Ends the lease. What a reviewer has moved meanwhile is let alone.
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

/// An engine that is configured no more.
fn is_removed(generation: &Generation, cause: &Cause) -> bool {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) => engines.all(|engine| *engine.settings().name != **name),
        Cause::Interceptor(_) => false,
    }
}

/// How many messages are scanned at once for a cause.
fn width(generation: &Generation, cause: &Cause, gone: bool) -> usize {
    let mut engines = generation.scanner.engines().iter();
    match cause {
        Cause::Engine(name) if gone => {
            let engine = engines.find(|engine| *engine.settings().name == **name);
            let slots = engine.map_or(0, |engine| engine.health().slots);
            (slots * WIDTH_PER_SLOT).clamp(WIDTH_LEAST, WIDTH_MOST)
        }
        // What an interceptor has held may well be bad.
        Cause::Engine(_) | Cause::Interceptor(_) => 1,
    }
}
