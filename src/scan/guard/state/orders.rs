//! The orders of the gate: each goes to the task that waits for it, and a change of a breaker becomes an incident.

use tokio::time::Instant;

use super::{GateState, GuardState, Phase};
use crate::incident::{Incident, Kind};
use crate::scan::guard::breaker::{BreakerState, Cause, Change};
use crate::scan::guard::gate::{Gate, GateOrder, ReplicaState};

impl GuardState {
    pub(super) fn carry_out(&self, gate_state: &mut GateState) {
        for order in gate_state.gate.orders() {
            match order {
                GateOrder::Start(ticket, replica) => gate_state.answer(ticket, Ok(replica)),
                GateOrder::Refuse(ticket, refusal) => gate_state.answer(ticket, Err(refusal)),
                GateOrder::Blocked(ticket) => {
                    if let Some(waiter) = gate_state.waiters.get(&ticket) {
                        waiter.in_flight.send_if_modified(block_scan);
                    }
                }
            }
        }
        let changes = gate_state.gate.changes();
        if !changes.is_empty() {
            let refuses = gate_state.gate.refuses().is_some();
            self.core.out.set(refuses, gate_state.gate.hangs_on_known());
            for (replica, change) in changes {
                if matches!(change, Change::Opened(_)) {
                    self.doubt(replica);
                }
                self.report_incident(self.changed(&gate_state.gate, replica, change));
            }
        }
    }

    /// The incident for a change of a breaker, with the evidence.
    fn changed(&self, gate: &Gate, replica: usize, change: Change) -> Incident {
        let subject = self.subject(Some(replica));
        let (kind, summary) = match change {
            Change::Opened(cause) => (
                Kind::BreakerOpened,
                format!("{subject} is {cause}: it gets no mail"),
            ),
            Change::Probing => (
                Kind::BreakerProbing,
                format!("{subject} is half-open: it gets probes, but no mail"),
            ),
            Change::Readmitting => (
                Kind::BreakerProbing,
                format!("{subject} is in a ramp: it gets a growing part of its mail"),
            ),
            Change::Closed => (
                Kind::BreakerClosed,
                format!("{subject} gets all its mail again"),
            ),
        };
        let mut incident = Incident::new(kind, subject, summary);
        if let Some(ReplicaState {
            breaker, running, ..
        }) = gate.replicas().nth(replica)
        {
            let (good, bad) = breaker.counts(Instant::now());
            let window = self.settings.guard.failure_window.as_secs_f64();
            let outcomes = [("good", good), ("bad", bad)];
            let outcomes = outcomes.map(|(what, n)| {
                let label = format!("outcomes {what} in {window} s");
                (label.into(), n.to_string())
            });
            incident.evidence.extend(outcomes);
            if let Change::Opened(cause) = change {
                incident = incident.with("threshold", self.threshold(cause));
            }
            incident = incident
                .with("scans in it", running)
                .with("of them past their timeout", gate.zombies())
                .with("mail waiting for it", gate.queued());
            if let BreakerState::Open { until, .. } = breaker.state() {
                let wait = until.saturating_duration_since(Instant::now());
                incident = incident.with("probes begin in", format!("{:.1} s", wait.as_secs_f64()));
            }
        }
        incident
    }
}

impl GuardState {
    /// The threshold at which a breaker opens for this cause, with the keys that set it.
    fn threshold(&self, cause: Cause) -> String {
        let (slow, guard) = (self.settings.slow, &self.settings.guard);
        match cause {
            Cause::Stalled => format!(
                "no scan ended for {:?} (slow {slow:?} x guard.stall_factor {})",
                slow.mul_f64(guard.stall_factor),
                guard.stall_factor
            ),
            Cause::Failing => format!(
                "{} of at least {} outcomes failed (guard.failure_share, failure_outcomes), or {} in a row (failures_in_a_row)",
                guard.failure_share, guard.failure_outcomes, guard.failures_in_a_row
            ),
            Cause::Untrusted => {
                "two probe pairs in a row were not answered rightly and in time".to_owned()
            }
        }
    }
}

fn block_scan(phase: &mut Phase) -> bool {
    match phase {
        Phase::Running { blocked, .. } => !std::mem::replace(blocked, true),
        Phase::Waiting | Phase::Done(_) => false,
    }
}
