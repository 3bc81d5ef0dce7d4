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

/// While mail passes without a drained engine, a suspect is still refused as one: mail that an interceptor holds, and copies of
/// content whose scans hang. Only the answer `drained` lets mail pass.
#[tokio::test(start_paused = true)]
async fn a_suspect_is_not_drained_while_mail_passes() {
    let mut world = World::new(12);
    for _ in 0..2 {
        world.enter(8, SenderReputation::Known);
    }
    world.after(600);
    world.divert(DiversionAct::Hold, 7);
    world.gate.orders();
    let hour = Duration::from_secs(3600);
    let mut asked = |drain: Arc<Drain>, content| {
        world.gate.drain(world.now, 0, Some(drain));
        world.enter(content, SenderReputation::Known);
        let (_, refusal) = world.refused().pop().expect("refused");
        refusal
    };
    for content in [7, 8, 9] {
        assert_eq!(asked(Drain::plain(), content), GateRefusal::Drained);
    }
    let suspect = GateRefusal::Suspect("interceptor rule".to_owned());
    assert_eq!(asked(Drain::passing(hour), 7), suspect);
    let copy = asked(Drain::passing(hour), 8);
    assert!(matches!(copy, GateRefusal::Parked(_)), "{copy:?}");
    assert_eq!(asked(Drain::passing(hour), 9), GateRefusal::Drained);
}

/// A bypass is the engine's fault: such mail passes like other mail.
#[tokio::test(start_paused = true)]
async fn bypassed_mail_passes_without_a_drained_engine() {
    let mut world = World::new(12);
    world.divert(DiversionAct::Bypass, 7);
    let drain = Drain::passing(Duration::from_secs(3600));
    world.gate.drain(world.now, 0, Some(drain));
    for _ in 0..2 {
        world.enter(7, SenderReputation::Known);
        assert_eq!(world.refused()[0].1, GateRefusal::Drained);
    }
}
