//! Recovery: what was held, deferred, or delivered without an engine for a cause that is gone is scanned again, by
//! itself (promise P6).
//!
//! It is done one message at a time for each cause, known senders first, the oldest first. The next one follows as soon
//! as a scan went well, so a backlog drains at the engine's own pace; a scan that does not go well ends the round, and
//! the next round comes later. Every message is under a lease meanwhile: a crash interrupts a recovery and loses nothing
//! of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Generation, Pipeline, events, lanes};
use crate::ablation::{Mechanism, without};
use crate::deadline::{Deadline, wall_clock};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Content, Message, Standing};
use crate::scan::Errand;
use crate::store::{Cause, Change, Lane, Record, StoreError};
use crate::verdict::Disposition;

/// How often it is looked for causes that are gone.
const TICK: Duration = Duration::from_secs(1);
/// After a round in which nothing went well: first so long, doubled up to [`LONGEST`].
const AGAIN: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(600);
/// A round that found nothing to do is not repeated for so long.
const IDLE: Duration = Duration::from_secs(60);

/// What became of one message in a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It went on its way, or is held for what was found in it.
    Settled,
    /// It is where it was.
    Stays,
}

/// When a cause is looked at again.
#[derive(Debug, Clone, Copy)]
struct Round {
    next: Instant,
    failures: u32,
}

impl Pipeline {
    /// Recovers until `closing` is cancelled.
    pub async fn recover(self: Arc<Self>, closing: CancellationToken) {
        let mut rounds: HashMap<Cause, Round> = HashMap::new();
        let mut version = 0;
        loop {
            let work = async {
                Deadline::after(TICK).wait().await;
                // What an interceptor kept from an engine waits for that engine: its end is a new chance.
                let current = self.suspicion.lock().version();
                if std::mem::replace(&mut version, current) != current {
                    rounds.retain(|_, round| round.failures > 0);
                }
                self.recover_due(&mut rounds).await;
            };
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = work => {}
            }
        }
    }

    /// One round for each cause that is gone, or may be.
    async fn recover_due(self: &Arc<Self>, rounds: &mut HashMap<Cause, Round>) {
        if without(Mechanism::Recovery) {
            return;
        }
        let generation = self.generation();
        let causes = self.causes(&generation);
        // Of an engine that is out nothing is expected; when it is back its first round is due at once.
        rounds.retain(|cause, _| causes.iter().any(|(known, _)| known == cause));
        for (cause, gone) in causes {
            let now = Instant::now();
            let first = !rounds.contains_key(&cause);
            let round = rounds.entry(cause.clone()).or_insert(Round {
                next: now,
                failures: 0,
            });
            if now < round.next {
                continue;
            }
            let lanes: &[Lane] = match first {
                // Deferred mail has its own times; they need not be waited for.
                true => &[Lane::Scan, Lane::Held, Lane::Rescan],
                false => &[Lane::Held, Lane::Rescan],
            };
            let done = self.recover_cause(&generation, &cause, gone, lanes).await;
            let (failures, wait) = match done {
                Some(true) => (0, Duration::ZERO),
                None => (0, IDLE),
                Some(false) => {
                    let failures = round.failures + 1;
                    let wait = AGAIN.saturating_mul(1 << (failures - 1).min(10));
                    (failures, wait.min(LONGEST))
                }
            };
            let next = Instant::now() + wait;
            *round = Round { next, failures };
        }
    }

    /// Engines that answer and interceptors that have ended: these causes are gone. Interceptors in force of which a
    /// message of a known sender may be tried: these are not.
    fn causes(&self, generation: &Generation) -> Vec<(Cause, bool)> {
        let engines = generation.scanner.engines().iter();
        let well = engines.filter(|engine| !engine.is_out());
        let mut causes: Vec<(Cause, bool)> = well
            .map(|engine| (Cause::Engine(engine.settings().name.to_string()), true))
            .collect();
        let (ended, holding) = self.suspicion.recoverable();
        causes.extend(ended.into_iter().map(|id| (Cause::Interceptor(id), true)));
        causes.extend(
            holding
                .into_iter()
                .map(|id| (Cause::Interceptor(id), false)),
        );
        causes
    }

    /// Works on what waits for a cause. Whether all of it went well; none if nothing waits for it.
    async fn recover_cause(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        cause: &Cause,
        gone: bool,
        lanes: &[Lane],
    ) -> Option<bool> {
        let (mut settled, mut stays) = (0_u64, 0_u64);
        let mut told = false;
        for &lane in lanes {
            loop {
                let record = match self.next(generation, lane, cause).await {
                    Ok(Some(record)) => record,
                    Ok(None) => break,
                    Err(error) => {
                        events::lane_failed("recovery", &error);
                        break;
                    }
                };
                // While the interceptor holds, only mail that something speaks for may cost the engine a scan.
                if !gone && record.standing != Some(Standing::Known) {
                    self.put_back(record).await;
                    break;
                }
                if !told && lane != Lane::Scan {
                    told = true;
                    self.tell(
                        Kind::RecoveryBegun,
                        cause,
                        "what was kept for it is scanned again",
                        0,
                        0,
                    );
                }
                match self.step(generation, lane, record).await {
                    Step::Settled => settled += 1,
                    Step::Stays => {
                        stays += 1;
                        break;
                    }
                }
            }
        }
        if told {
            let summary = match stays {
                0 => "all that could be scanned again has been",
                _ => "what is left of what was kept for it is tried later",
            };
            self.tell(Kind::RecoveryEnded, cause, summary, settled, stays);
        }
        (settled + stays > 0).then_some(stays == 0)
    }

    async fn next(
        &self,
        generation: &Generation,
        lane: Lane,
        cause: &Cause,
    ) -> Result<Option<Record>, StoreError> {
        let now = wall_clock();
        let until = now + lanes::lease(&generation.budget);
        let claimed = self.store.recover(lane, cause.clone(), now, until, 1);
        Ok(claimed.await?.pop())
    }

    async fn step(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        lane: Lane,
        record: Record,
    ) -> Step {
        let size = usize::try_from(record.size).unwrap_or(usize::MAX);
        let room = Deadline::after(lanes::MEMORY).run(self.memory.acquire(size));
        let content = match (room.await, self.store.content(record.id).await) {
            (Ok(charge), Ok(content)) => Content::charged(content, charge),
            (Ok(_), Err(error)) => {
                events::lane_failed("content", &error);
                return Step::Stays;
            }
            (Err(_), _) => return Step::Stays,
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
        let errand = match record.lane {
            Lane::Held => {
                // Out of quarantine first: what is on its way no reviewer should delete, or release once more.
                record.lane = Lane::Scan;
                record.due_at = wall_clock() + lanes::lease(&generation.budget);
                let change = Change::Replace(Box::new(record.clone()));
                match self.store.change_in(Lane::Held, id, change, None).await {
                    Ok(()) => Errand::Redrive,
                    Err(StoreError::NotFound(_)) => return Step::Settled,
                    Err(error) => {
                        events::lane_failed("recovery", &error);
                        return Step::Stays;
                    }
                }
            }
            Lane::Scan | Lane::Delivery | Lane::Rescan => Errand::Again,
        };
        self.resume(generation.clone(), message, record, errand, None)
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

    /// Delivered without an engine: that engine's answer can change nothing any more, but people can be told.
    async fn scan_delivered(
        &self,
        generation: &Generation,
        message: Message,
        record: Record,
    ) -> Step {
        let judged = self
            .judge(generation, &message, Duration::ZERO, Errand::Again)
            .await;
        let missing = |engine: &str| {
            let mut reports = judged.reports.iter();
            reports.any(|r| &*r.engine == engine && r.missing().is_some_and(|m| m.is_transient()))
        };
        // An interceptor that holds such mail now has found nothing: nobody was asked.
        let is_intercepted = judged.reports.is_empty();
        if let Some(Cause::Engine(engine)) = &record.cause
            && (missing(engine) || is_intercepted)
        {
            return self.put_back(record).await;
        }
        let bad = judged
            .groups
            .iter()
            .find(|(decision, _)| decision.disposition != Disposition::Deliver);
        if let Some((decision, _)) = bad {
            let recipients: Vec<&str> = record
                .envelope
                .recipients
                .iter()
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
        }
        match self.store.change(record.id, Change::Remove, None).await {
            Ok(()) | Err(StoreError::NotFound(_)) => Step::Settled,
            Err(error) => {
                events::lane_failed("recovery", &error);
                Step::Stays
            }
        }
    }

    /// Ends the lease.
    async fn put_back(&self, record: Record) -> Step {
        let change = Change::Replace(Box::new(record.clone()));
        if let Err(error) = self.store.change(record.id, change, None).await {
            events::lane_failed("recovery", &error);
        }
        Step::Stays
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
