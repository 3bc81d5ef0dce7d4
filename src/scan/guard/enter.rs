//! The way through the gate, for one attempt.

use std::sync::Arc;

use tokio::time::Instant;
use tower::ServiceExt;

use super::Call;
use super::gate::{End, Entrant, LARGE, Refusal};
use super::layer::{Next, Outcome};
use super::reuse::is_bad;
use super::state::{Phase, State};
use crate::scan::engine::ScanError;
use crate::verdict::Answer;

/// Waits for a slot, scans, and gives the slot back when the engine has really ended, whoever still waits for it then.
/// While it waits it leaves as soon as nobody waits for it any more.
pub(super) async fn gate(state: Arc<State>, mut call: Call, next: impl Next) -> Outcome {
    let flight = call.flight.clone();
    let (entered, started) = state.enter(entrant(&call), flight.clone());
    let ordered = tokio::select! {
        biased;
        ordered = started => ordered,
        () = flight.closed() => return Err(ScanError::Busy),
    };
    call.replica = match ordered {
        Ok(Ok(replica)) => replica,
        Ok(Err(refusal)) => return Err(refused(refusal)),
        Err(_) => return Err(ScanError::Stopping),
    };
    let (since, replica) = (Instant::now(), call.replica);
    flight.send_replace(Phase::Running {
        since,
        convicted: false,
    });
    let outcome = next.oneshot(call).await;
    if let Ok(answer) = &outcome {
        state.saw(replica, answer, since.elapsed());
    }
    entered.end(match &outcome {
        Ok(answer) => match &answer.answer {
            Answer::Answered(findings) | Answer::None { findings, .. } => End::Answered {
                found: is_bad(findings),
            },
        },
        Err(ScanError::Throttled { pause, .. }) => End::Rests(*pause),
        Err(ScanError::NoAnswer(_)) => End::Lost,
        Err(ScanError::Disconnected { .. }) => End::Broken,
        Err(ScanError::Unreachable(_)) => End::Unreachable,
        Err(_) => End::Failed,
    });
    outcome
}

/// What the gate is told of a call.
pub(super) fn entrant(call: &Call) -> Entrant {
    let request = call.sample.request();
    Entrant {
        id: request.id,
        fingerprint: request.fingerprint.clone(),
        standing: request.standing,
        errand: call.errand,
        struck: request.struck,
        turn: call.sample.turn(),
        large: request.content.len() >= LARGE,
        arrived: call.arrived,
    }
}

fn refused(refusal: Refusal) -> ScanError {
    match refusal {
        Refusal::Busy => ScanError::Busy,
        Refusal::Open(why) => ScanError::BreakerOpen(why),
        Refusal::Drained => ScanError::Drained,
        Refusal::Resting => ScanError::Resting,
        Refusal::Parked(why) => ScanError::Parked(why),
        Refusal::Suspect(why) => ScanError::Suspect(why),
    }
}
