//! Tests: what the gate does with mail that an interceptor holds, parks or keeps from the engine.

use super::*;

/// Blocked content is not scanned, except held mail that is scanned again as a test.
#[tokio::test(start_paused = true)]
async fn a_hold_refuses_what_it_matches() {
    let mut world = World::new(1);
    let running = world.enter(7, SenderReputation::Known);
    let waiting = world.enter(7, SenderReputation::Known);
    let other = world.enter(8, SenderReputation::Known);
    world.gate.orders();
    world.divert(DiversionAct::Hold, 7);
    let orders = world.gate.orders();
    assert!(orders.contains(&GateOrder::Blocked(running)), "{orders:?}");
    let suspect = GateRefusal::Suspect("interceptor rule".to_owned());
    assert!(orders.contains(&GateOrder::Refuse(waiting, suspect)));
    world.answered(running);
    assert_eq!(world.started(), [other]);
    world.answered(other);
    let redrive = GateRequest {
        scan_reason: ScanReason::Redrive,
        ..gate_request(world.now, 7, SenderReputation::Known)
    };
    let redrive = world.gate.enter(world.now, redrive);
    assert_eq!(world.started(), [redrive]);
}

/// Parked messages are scanned one at a time, so that a scan can disprove the suspicion.
#[tokio::test(start_paused = true)]
async fn a_park_lets_one_through_at_a_time() {
    let mut world = World::new(12);
    world.divert(DiversionAct::Park, 7);
    let canary = world.enter(7, SenderReputation::Unknown);
    assert_eq!(world.started(), [canary]);
    let next = world.enter(7, SenderReputation::Unknown);
    assert!(matches!(&world.refused()[..], [(n, GateRefusal::Parked(_))] if *n == next));
    world.answered(canary);
    let next = world.enter(7, SenderReputation::Unknown);
    assert_eq!(world.started(), [next]);
}

/// A bypassed class sends one message every 10 s to the engine, to detect that the engine has recovered.
#[tokio::test(start_paused = true)]
async fn a_bypass_is_the_engines_fault_and_tries_again() {
    let mut world = World::new(12);
    world.divert(DiversionAct::Bypass, 7);
    let shadow = world.enter(7, SenderReputation::Known);
    assert_eq!(world.started(), [shadow]);
    world.answered(shadow);
    world.enter(7, SenderReputation::Known);
    assert!(matches!(&world.refused()[..], [(_, GateRefusal::Open(_))]));
    world.after(10_000);
    world.enter(7, SenderReputation::Known);
    assert_eq!(world.started().len(), 1);
}
