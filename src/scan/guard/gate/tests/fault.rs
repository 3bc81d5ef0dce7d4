//! Tests: whether the message or the engine is at fault for a scan that is slow or fails.

use super::*;
use crate::scan::guard::breaker::Cause;

/// Scans `count` different messages, one at a time. Each scan ends with `end` after `after` ms.
fn one_by_one(world: &mut World, count: usize, end: ScanEnd, after: u64) {
    for _ in 0..count {
        let ticket = world.unique(SenderReputation::Known);
        world.after(after);
        world.gate.end(world.now, ticket, end);
        world.gate.orders();
    }
}

/// Copies wait for running copies while one of these may still be fast. The gate refuses further copies only if all are slow.
#[tokio::test(start_paused = true)]
async fn one_slow_copy_of_two_convicts_nothing() {
    let mut world = World::new(12);
    world.enter(7, SenderReputation::Known);
    world.after(400);
    world.enter(7, SenderReputation::Known);
    world.gate.orders();
    world.after(200);
    let third = world.enter(7, SenderReputation::Known);
    assert_eq!(world.refused(), [], "the second is not slow yet");
    world.after(300);
    let refused = world.refused();
    assert!(
        matches!(&refused[..], [(ticket, GateRefusal::Parked(_))] if *ticket == third),
        "{refused:?}"
    );
}

/// A scan past its timeout counts as one failure, even if the scan ends later with an error.
#[tokio::test(start_paused = true)]
async fn a_scan_fails_once() {
    let mut world = World::new(12);
    let ticket = world.unique(SenderReputation::Known);
    world.after(5000);
    world.gate.end(world.now, ticket, ScanEnd::Lost);
    let counts = world.gate.replicas[0].breaker.counts(world.now);
    assert_eq!(counts, (0, 1));
}

/// An answer too slow for any caller is a failure. A merely slow answer is not a failure. Large content is slow only after
/// ten times as long.
#[tokio::test(start_paused = true)]
async fn answers_that_take_too_long_are_failures() {
    let clean = ScanEnd::Answered { found: false };
    for (took, fails) in [(1900, false), (2100, true)] {
        let mut world = World::new(1);
        one_by_one(&mut world, 5, clean, took);
        let failing = BreakerState::Open {
            until: world.now,
            cause: Cause::Failing,
        };
        let opens = std::mem::discriminant(&world.breaker()) == std::mem::discriminant(&failing);
        assert_eq!(opens, fails, "{took} ms");
    }
    let mut world = World::new(1);
    let large = GateRequest {
        large: true,
        ..gate_request(world.now, TEXT, SenderReputation::Known)
    };
    let large = world.gate.enter(world.now, large);
    world.after(4900);
    assert!(!world.gate.scans[&large].is_slow, "ten times 500 ms");
    world.answered(large);
    assert_eq!(world.gate.replicas[0].breaker.counts(world.now), (1, 0));
}

/// In each 10 s, two failures of one fingerprint count against the engine. An engine that fails on all mail must be detected
/// even if all mail is a flood of one message.
#[tokio::test(start_paused = true)]
async fn failures_of_one_fingerprint_count_again_later() {
    let mut world = World::new(12);
    for _ in 0..2 {
        for _ in 0..5 {
            let ticket = world.enter(7, SenderReputation::Known);
            world.gate.end(world.now, ticket, ScanEnd::Failed);
        }
        let (_, bad) = world.gate.replicas[0].breaker.counts(world.now);
        assert_eq!(bad, 2);
        world.after(10_000);
    }
}

/// Slow or failed scans that an interceptor explains are not the fault of the engine.
#[tokio::test(start_paused = true)]
async fn what_an_interceptor_explains_is_not_the_engines_fault() {
    for explained in [false, true] {
        let mut world = World::new(12);
        let one = world.enter(7, SenderReputation::Known);
        world.after(600);
        if explained {
            world.divert(DiversionAct::Hold, 7);
        }
        world.gate.end(world.now, one, ScanEnd::Failed);
        let (_, bad) = world.gate.replicas[0].breaker.counts(world.now);
        assert_eq!(bad, u32::from(!explained));
    }
}

/// When a bypass ends, the gate forgets when the bypass last sent a test message.
#[tokio::test(start_paused = true)]
async fn a_bypass_that_has_ended_leaves_nothing() {
    let mut world = World::new(12);
    world.divert(DiversionAct::Bypass, 7);
    world.enter(7, SenderReputation::Known);
    assert_eq!(world.gate.shadowed.len(), 1);
    world.gate.divert(world.now, Arc::new([]));
    assert!(world.gate.shadowed.is_empty());
}

/// An answer in time is a proof, which makes an attachment of a known sender proven. The proof lasts two generations: at most
/// an hour while other content is proven.
#[tokio::test(start_paused = true)]
async fn proof_is_an_answer_in_time() {
    let proven = |world: &World| {
        let request = gate_request(world.now, 7, SenderReputation::Known);
        world.gate.level(&request) == Level::Proven
    };
    for (took, proves) in [(4900, true), (5100, false)] {
        let mut world = World::new(12);
        let ticket = world.enter(7, SenderReputation::Known);
        assert!(!proven(&world));
        world.after(took);
        world.answered(ticket);
        assert_eq!(proven(&world), proves, "after {took} ms");
        // What is proven later ends what was proven before, generation by generation.
        for _ in 0..2 {
            world.now += Duration::from_secs(1801);
            let other = world.unique(SenderReputation::Known);
            world.answered(other);
        }
        assert!(!proven(&world));
    }
}

/// Once a scan of a known sender's new attachment is slow, these scans leave a sixth of the slots to proven mail.
#[tokio::test(start_paused = true)]
async fn what_is_unproven_leaves_a_sixth() {
    let mut world = World::new(12);
    let first = world.enter(1, SenderReputation::Known);
    world.after(600);
    for at in 2..20 {
        world.enter(at, SenderReputation::Known);
    }
    assert_eq!(world.started().len(), 10, "{first} and nine");
    for _ in 0..3 {
        world.unique(SenderReputation::Known);
    }
    assert_eq!(world.started().len(), 2);
}

/// Mail that is scanned again waits ten times as long for a slot, as no SMTP session waits for the answer.
#[tokio::test(start_paused = true)]
async fn what_is_scanned_again_waits_longer() {
    let mut world = World::new(1);
    world.unique(SenderReputation::Known);
    let again = GateRequest {
        scan_reason: ScanReason::Again,
        ..gate_request(world.now, TEXT, SenderReputation::Known)
    };
    let again = world.gate.enter(world.now, again);
    world.gate.orders();
    world.after(4000);
    assert_eq!(world.refused(), []);
    world.after(6000);
    let refused = world.refused();
    assert_eq!(refused.first().map(|(ticket, _)| *ticket), Some(again));
}

/// An engine that hangs on its only message is probed at once, even if the engine worked well before. If the probe hangs too,
/// the engine is out for all waiting messages. If the probe is answered, the message is at fault.
#[tokio::test(start_paused = true)]
async fn where_there_is_little_mail_a_probe_shows_a_stall() {
    for answered in [false, true] {
        let mut world = World::new(10);
        (0..1000).for_each(|_| world.gate.latencies.add(milliseconds(50)));
        let before = world.unique(SenderReputation::Known);
        world.after(100);
        world.answered(before);
        world.after(1000);
        world.unique(SenderReputation::Unknown);
        world.after(400);
        assert!(!world.gate.is_doubtful(world.now, 0), "it is not slow yet");
        world.after(200);
        assert!(world.gate.is_doubtful(world.now, 0));
        let probe = world.gate.probe(world.now, 0).expect("a slot");
        world.after(100);
        if answered {
            world.gate.end(world.now, probe, ScanEnd::Probe);
            world.gate.probed(world.now, 0, true);
        }
        world.after(700);
        assert_eq!(world.gate.is_out(0), !answered);
        assert_eq!(world.gate.hangs_on_known(), !answered);
        assert!(!world.gate.is_doubtful(world.now, 0) || !answered);
    }
}

/// Slow large mail may hold half of the slots that unknown senders may hold, and small mail has the rest. Large mail of
/// unknown senders takes no slots from large mail of known senders.
#[tokio::test(start_paused = true)]
async fn large_mail_that_is_slow_leaves_room_for_small_mail() {
    let mut world = World::new(10);
    let large = |world: &mut World, reputation| {
        world.next += 1;
        let request = GateRequest {
            large: true,
            ..gate_request(world.now, world.next, reputation)
        };
        world.gate.enter(world.now, request)
    };
    for _ in 0..3 {
        large(&mut world, SenderReputation::Unknown);
    }
    assert_eq!(world.started().len(), 3);
    world.after(5000);
    large(&mut world, SenderReputation::Unknown);
    assert!(world.started().is_empty(), "half of seven are large");
    let small = world.unique(SenderReputation::Unknown);
    let known = large(&mut world, SenderReputation::Known);
    assert_eq!(world.started(), [small, known]);
    let again = GateRequest {
        large: true,
        timed_out_before: true,
        scan_reason: ScanReason::Again,
        ..gate_request(world.now, TEXT, SenderReputation::Known)
    };
    world.gate.enter(world.now, again);
    assert!(world.started().is_empty(), "it may not be its own fault");
}

/// A message that timed out before says nothing about the engine if the message hangs again. A bypass does not use this
/// message as a sample, as a second timeout would hold the message for a fault of the engine. Other engines do not make up
/// for an engine for which this message waits.
#[tokio::test(start_paused = true)]
async fn what_hung_before_is_nobody_elses_fault() {
    let timed_out_before = |world: &mut World, attachment: u64| {
        let request = GateRequest {
            scan_reason: ScanReason::Again,
            timed_out_before: true,
            ..gate_request(world.now, attachment, SenderReputation::Known)
        };
        world.gate.enter(world.now, request)
    };
    let mut world = World::new(32);
    let hangs: Vec<Ticket> = (0..5)
        .map(|n| {
            let ticket = timed_out_before(&mut world, TEXT + n);
            world
                .gate
                .scans
                .values_mut()
                .for_each(|scan| scan.request.timed_out_before = false);
            world.gate.pump(world.now);
            ticket
        })
        .collect();
    assert_eq!(world.started(), hangs, "law 4 is not what this is about");
    world
        .gate
        .scans
        .values_mut()
        .for_each(|scan| scan.request.timed_out_before = true);
    (0..1000).for_each(|_| world.gate.latencies.add(milliseconds(50)));
    let last = timed_out_before(&mut world, TEXT + 5);
    world.after(6000);
    assert_eq!(world.breaker(), BreakerState::Closed);
    world.after(5000);
    let refused = world.refused();
    assert!(
        matches!(&refused[..], [.., (ticket, GateRefusal::Parked(_))] if *ticket == last),
        "{refused:?}"
    );
    let mut world = World::new(32);
    world.divert(DiversionAct::Bypass, 7);
    timed_out_before(&mut world, 7);
    assert!(matches!(&world.refused()[..], [(_, GateRefusal::Open(_))]));
}

/// Law 2: hanging mail of unknown senders that comes at a fixed interval does not take each slot that the engine frees, even if
/// each scan hangs for a multiple of the interval. Other mail of unknown senders gets slots, and is not blamed.
#[tokio::test(start_paused = true)]
async fn hanging_mail_at_an_interval_is_not_in_step_with_the_slots() {
    for offset in [0, 300, 950] {
        let mut world = World::new(10);
        let (mut hanging, mut ends) = (Vec::new(), BTreeMap::<u64, Vec<Ticket>>::new());
        let mut parked = 0;
        for time in (0..1_200_000).step_by(50) {
            world.now += milliseconds(50);
            for ticket in ends.remove(&time).unwrap_or_default() {
                world.answered(ticket);
            }
            world.gate.tick(world.now);
            if time % 100 == 0 {
                world.unique(SenderReputation::Unknown);
            }
            if time % 10_000 == offset {
                hanging.push(world.unique(SenderReputation::Unknown));
            }
            for order in world.gate.orders() {
                match order {
                    GateOrder::Start(ticket, _) => {
                        let takes = if hanging.contains(&ticket) {
                            120_000
                        } else {
                            50
                        };
                        ends.entry(time + takes).or_default().push(ticket);
                    }
                    GateOrder::Refuse(_, GateRefusal::Parked(_)) => parked += 1,
                    GateOrder::Refuse(..) | GateOrder::Blocked(_) => {}
                }
            }
        }
        assert!(parked < 100, "{parked} of 12000 with offset {offset}");
    }
}

/// Law 3: the mail of unknown senders stays suspected from the end of hanging scans until the next scans in their slots would be
/// slow. Otherwise the mail that waits would be refused as `busy`, and a flood would be delivered on the answers of other
/// engines.
#[tokio::test(start_paused = true)]
async fn free_slots_do_not_excuse_a_flood() {
    for pause in [60_000, 800] {
        let mut world = World::new(3);
        let hanging: Vec<Ticket> = (0..3)
            .map(|_| world.unique(SenderReputation::Unknown))
            .collect();
        world.after(120_000);
        world.gate.orders();
        hanging.iter().for_each(|ticket| world.answered(*ticket));
        let end = world.now + milliseconds(pause);
        world.gate.pauses.fill(end);
        for _ in 0..4 {
            world.unique(SenderReputation::Unknown);
        }
        world.after(1100);
        let refused = world.refused();
        let is_parked =
            |(_, refusal): &(Ticket, GateRefusal)| matches!(refusal, GateRefusal::Parked(_));
        assert!(!refused.is_empty(), "more waits than there are slots");
        assert!(refused.iter().all(is_parked), "{pause} ms: {refused:?}");
    }
}

/// Law 5: the end of a hanging scan is news for mail that found no free slot, and the end of another scan is not.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_hanging_scan_is_a_return() {
    for (after, returns) in [(100, 0), (6000, 1)] {
        let mut world = World::new(3);
        let ticket = world.unique(SenderReputation::Known);
        world.after(after);
        world.answered(ticket);
        assert_eq!(world.gate.returns(), returns, "after {after} ms");
    }
}

/// The time since which a replica takes no mail is that of the first reason: neither a drain after its breaker opened nor the end
/// of a drain in which its breaker opened changes it.
#[tokio::test(start_paused = true)]
async fn a_drain_hides_no_outage() {
    let since = |world: &World| {
        world
            .gate
            .replicas()
            .next()
            .and_then(|replica| replica.since)
    };
    let mut world = World::new(6);
    for _ in 0..6 {
        world.unique(SenderReputation::Known);
    }
    world.after(3000);
    assert!(world.gate.is_out(0));
    let down = since(&world);
    assert!(down.is_some());
    for drain in [Some(Drain::plain()), None] {
        world.after(1000);
        world.gate.drain(world.now, 0, drain);
        assert_eq!(since(&world), down);
    }
    let mut world = World::new(6);
    world.gate.drain(world.now, 0, Some(Drain::plain()));
    let drained = Some(world.now);
    assert_eq!(since(&world), drained);
    for _ in 0..3 {
        world.after(1000);
        world.gate.probed(world.now, 0, false);
    }
    assert!(world.gate.is_out(0));
    world.gate.drain(world.now, 0, None);
    assert_eq!(since(&world), drained);
}
