//! One round of recovery: claims messages of a sweep, passes each through the pipeline again, and notes which of them stay.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::crew::{Crew, Places};
use super::is_passing;
use super::schedule::{RoundEnd, Sweep, Worked};
use crate::deadline::{Deadline, Elapsed, wall_clock};
use crate::incident::Kind;
use crate::message::{Message, SenderReputation};
use crate::observation::ScanReason;
use crate::pipeline::{Generation, NextStep, Pipeline, events, lanes};
use crate::store::{Cause, Change, Lane, Record, StoreError, SweepPosition, Working};
use crate::verdict::{Reason, Report};

/// Maximum duration of a round: 10 s, then other causes have their turn. Scans under way continue without the round.
const ROUND_TIME_MAX: Duration = Duration::from_secs(10);

/// The outcome of one message in a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The message no longer waits for the cause: delivered, queued, held for a finding, or waiting for another cause.
    Settled,
    /// The message still waits for the cause.
    Stays,
}

/// Whether the message may be the cause of a missing answer. It then does not pass without a drained engine.
fn is_suspect(record: &Record) -> bool {
    let blames = |report: &Report| report.missing().is_some_and(Reason::blames_message);
    record.timeouts > 0 || record.hung || record.reports.iter().any(blames)
}

impl Pipeline {
    /// Continues a sweep for one round: until [`ROUND_TIME_MAX`] has passed, the sweep is complete, or further scans would fail.
    /// Scans that hang then continue without the round. Begins no scan after `closing` is cancelled.
    pub(super) async fn round(
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
                Ok(Some(Ok(Step::Settled))) => self.settled(&generation, &cause, &mut sweep),
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

    /// Counts a settled message. A sweep that lets mail pass is reported only then: suspects are tried again and again.
    fn settled(&self, generation: &Generation, cause: &Cause, sweep: &mut Sweep) {
        sweep.settled += 1;
        if is_passing(generation, cause) {
            self.announce(cause, sweep, "what waits for it passes without it");
        }
    }

    /// Reports the start of a sweep, once.
    fn announce(&self, cause: &Cause, sweep: &mut Sweep, what: &str) {
        if !std::mem::replace(&mut sweep.is_announced, true) {
            self.report(Kind::RecoveryBegun, cause, what, 0, 0);
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
            let passes = is_passing(generation, cause);
            // What has passed waits for the engine.
            if passes && lane == Lane::Rescan {
                sweep.end_of_lane();
                continue;
            }
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
                sweep.places.insert(lane, SweepPosition::of(&record));
                if passes && is_suspect(&record) {
                    drop(working);
                    self.put_back(record).await;
                    sweep.stays += 1;
                    continue;
                }
                if lane != Lane::Scan && !passes {
                    self.announce(cause, sweep, "what was kept for it is scanned again");
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
        let Ok(message) = self.load(&record).await else {
            return self.put_back(record).await;
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
        let passes = cause
            .as_ref()
            .is_some_and(|cause| is_passing(generation, cause));
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
                    // Without the engine the scan is no test: what an interceptor holds stays held.
                    Ok(()) if passes => ScanReason::Again,
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
        // What has passed without the engine is on its way, and waits for the engine's later scan.
        let has_passed =
            |after: &Record| passes && matches!(after.lane, Lane::Delivery | Lane::Rescan);
        match self.store.get(id).await {
            Ok(Some(after))
                if after.cause.is_some() && after.cause == cause && !has_passed(&after) =>
            {
                Step::Stays
            }
            Ok(_) => Step::Settled,
            Err(error) => {
                events::lane_failed("recovery", &error);
                Step::Stays
            }
        }
    }

    pub(super) async fn remove(&self, record: Record) -> Step {
        match self.store.change(record.id, Change::Remove, None).await {
            Ok(()) | Err(StoreError::NotFound(_)) => Step::Settled,
            Err(error) => {
                events::lane_failed("recovery", &error);
                Step::Stays
            }
        }
    }

    /// Ends the lease. A record that a reviewer has moved meanwhile is not changed.
    pub(super) async fn put_back(&self, record: Record) -> Step {
        let (lane, id) = (record.lane, record.id);
        let change = Change::Replace(Box::new(record));
        match self.store.change_in(lane, id, change, None).await {
            Ok(()) | Err(StoreError::NotFound(_)) => {}
            Err(error) => events::lane_failed("recovery", &error),
        }
        Step::Stays
    }
}
