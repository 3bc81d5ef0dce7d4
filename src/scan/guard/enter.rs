//! The gate layer: takes one attempt through the gate and back.

use std::sync::Arc;

use tokio::time::Instant;
use tower::ServiceExt;

use super::Call;
use super::answer_cache::is_bad;
use super::gate::{GateRefusal, GateRequest, LARGE_OCTETS_MIN, ScanEnd};
use super::layer::{Next, Outcome};
use super::state::{GuardState, Phase};
use crate::scan::engine::ScanError;
use crate::verdict::Answer;

/// Waits for a slot, scans, and gives the slot back when the engine has really ended the scan, whether or not a caller still
/// waits. An attempt leaves the queue as soon as its last caller has given up.
///
/// Cancel safety: dropping the future gives back the place in the queue or the slot, as the engine's connection is closed then.
pub(super) async fn gate(state: Arc<GuardState>, mut call: Call, next: impl Next) -> Outcome {
    let in_flight = call.in_flight.clone();
    let (entered, started) = state.enter(entrant(&call), in_flight.clone());
    let ordered = tokio::select! {
        biased;
        ordered = started => ordered,
        () = in_flight.closed() => return Err(ScanError::Busy),
    };
    call.replica = match ordered {
        Ok(Ok(replica)) => replica,
        Ok(Err(refusal)) => return Err(refused(refusal)),
        Err(_) => return Err(ScanError::Stopping),
    };
    let (since, replica) = (Instant::now(), call.replica);
    in_flight.send_replace(Phase::Running {
        since,
        convicted: false,
    });
    let outcome = next.oneshot(call).await;
    if let Ok(answer) = &outcome {
        state.saw(replica, answer, since.elapsed());
    }
    entered.end(match &outcome {
        Ok(answer) => match &answer.answer {
            Answer::Answered(findings) | Answer::None { findings, .. } => ScanEnd::Answered {
                found: is_bad(findings),
            },
        },
        Err(ScanError::Throttled { pause, .. }) => ScanEnd::Rests(*pause),
        Err(ScanError::NoAnswer(_)) => ScanEnd::Lost,
        Err(ScanError::Disconnected { .. }) => ScanEnd::Broken,
        Err(ScanError::Unreachable(_)) => ScanEnd::Unreachable,
        Err(_) => ScanEnd::Failed,
    });
    outcome
}

/// The request to the gate for a call.
pub(super) fn entrant(call: &Call) -> GateRequest {
    let request = call.sample.request();
    GateRequest {
        id: request.id,
        fingerprint: request.fingerprint.clone(),
        reputation: request.reputation,
        scan_reason: call.scan_reason,
        struck: request.struck,
        turn: call.sample.turn(),
        large: request.content.len() >= LARGE_OCTETS_MIN,
        arrived: call.arrived,
    }
}

fn refused(refusal: GateRefusal) -> ScanError {
    match refusal {
        GateRefusal::Busy => ScanError::Busy,
        GateRefusal::Open(why) => ScanError::BreakerOpen(why),
        GateRefusal::Drained => ScanError::Drained,
        GateRefusal::Resting => ScanError::Resting,
        GateRefusal::Parked(why) => ScanError::Parked(why),
        GateRefusal::Suspect(why) => ScanError::Suspect(why),
    }
}
