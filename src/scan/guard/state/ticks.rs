//! The clock of a guard: ticks of the gate, routine probes, queries for signature versions, and the drift detector.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{GateState, GuardState, is_probed, times};
use crate::deadline::{Deadline, wall_clock};
use crate::incident::Incident;
use crate::scan::guard::breaker::BreakerState;
use crate::scan::guard::gate::ReplicaState;
use crate::scan::guard::probe;

/// Interval between two ticks of a busy gate. A scan is slow from 500 ms by default, and a silence of half of that may mean
/// a stalled engine, so 100 ms is short enough to notice either soon.
const GATE_TICK_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between two queries for the signature version alone. New signatures end all cached answers, but while cached
/// answers replace scans, only such a query reveals them. So an answer by old signatures is reused for about 10 s at most.
const SIGNATURE_QUERY_INTERVAL: Duration = Duration::from_secs(10);

impl GuardState {
    /// Starts the ticks of the gate if it needs them. An idle gate has no task, so it costs nothing.
    pub(super) fn keep_time(self: &Arc<Self>, gate_state: &mut GateState) {
        let newest = gate_state.ticking.is_none_or(|by| by < self.generation);
        if !newest || !gate_state.needs_time() {
            return;
        }
        gate_state.ticking = Some(self.generation);
        let state = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                Deadline::after(GATE_TICK_INTERVAL).wait().await;
                if !Weak::upgrade(&state).is_some_and(|state| state.tick()) {
                    break;
                }
            }
        });
    }

    /// One tick of the gate. Returns whether another one must follow.
    fn tick(self: &Arc<Self>) -> bool {
        let mut gate_state = self.lock();
        if gate_state.ticking != Some(self.generation) {
            return false;
        }
        gate_state.gate.tick(Instant::now());
        self.carry_out(&mut gate_state);
        self.send_probes(&mut gate_state);
        self.ask_signatures(&mut gate_state);
        let goes_on = gate_state.needs_time();
        gate_state.ticking = goes_on.then_some(self.generation);
        drop(gate_state);
        self.watch_drift();
        goes_on
    }

    fn send_probes(self: &Arc<Self>, gate_state: &mut GateState) {
        let now = Instant::now();
        let every = self.settings.probe.filter(|_| gate_state.watched);
        for at in 0..self.engines.len() {
            let replica_state = gate_state.gate.replicas().nth(at);
            let Some(ReplicaState { breaker, .. }) =
                replica_state.filter(|replica| !replica.resting)
            else {
                continue;
            };
            let (breaker, doubt) = (breaker.state(), gate_state.gate.is_doubtful(now, at));
            if is_probed(&self.engines[at])
                && gate_state.probes[at].is_due(now, every, breaker, doubt)
            {
                let half_open = matches!(breaker, BreakerState::HalfOpen { .. });
                tokio::spawn(probe::run(self.clone(), at, half_open, doubt));
            }
        }
    }

    /// Queries the signature versions: while cached answers replace scans, no scan would reveal new signatures.
    fn ask_signatures(self: &Arc<Self>, gate_state: &mut GateState) {
        let now = Instant::now();
        if now < gate_state.ask {
            return;
        }
        gate_state.ask = now + SIGNATURE_QUERY_INTERVAL;
        for (at, replica) in gate_state.gate.replicas().enumerate() {
            let engine = self.engines.get(at);
            let engine = engine.filter(|_| replica.drain.is_none() && !replica.resting);
            if let Some(asked) = engine.and_then(|engine| engine.clone().ask_signatures()) {
                let state = self.clone();
                tokio::spawn(async move { state.signed(at, asked.await.as_deref()) });
            }
        }
    }

    /// A probe pair has ended, with or without answers.
    pub(in crate::scan::guard) fn probe_ended(&self, replica: usize) {
        if let Some(schedule) = self.lock().probes.get_mut(replica) {
            schedule.ended();
        }
    }

    /// Puts this configuration in force at the gate. Starts the ticks for routine probes and signature queries, and the
    /// background work of the engines.
    pub(in crate::scan::guard) fn watch(self: &Arc<Self>) {
        for engine in &self.engines {
            engine.clone().watch();
        }
        let (now, settings) = (Instant::now(), &self.settings);
        let mut gate_state = self.lock();
        gate_state
            .gate
            .retune(now, times(settings), (settings.slots, settings.guard));
        let is_apart = self.engines.iter().any(|engine| engine.replica().is_some());
        gate_state.watched = is_apart || self.settings.probe.is_some() && self.is_probed();
        self.keep_time(&mut gate_state);
    }

    /// Advances the drift detector and turns its remarks into incidents.
    fn watch_drift(&self) {
        let oldest = self.settings.signature_age;
        let made = |version: &str| self.engines.first().and_then(|e| e.signed(version));
        let remarks = self
            .records()
            .drift
            .tick(Instant::now(), wall_clock(), oldest, made);
        for remark in remarks {
            let subject = self.subject(remark.replica);
            let summary = format!("{subject}: {}", remark.text);
            self.report_incident(Incident::new(remark.kind, subject, summary));
        }
    }
}
