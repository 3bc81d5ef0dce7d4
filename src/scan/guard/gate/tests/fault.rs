//! Whose fault a scan that is slow or fails is.

use super::*;
use crate::scan::guard::breaker::Cause;

/// Makes scans of so many different messages end so, each after that time, one at a time.
fn one_by_one(world: &mut World, count: usize, end: ScanEnd, after: u64) {
    for _ in 0..count {
        let ticket = world.unique(Standing::Known);
        world.after(after);
        world.gate.end(world.now, ticket, end);
        world.gate.orders();
    }
}

/// Copies wait for each other as long as one of them may still be quick: only if all that are scanned are slow no more is sent.
#[tokio::test(start_paused = true)]
async fn one_slow_copy_of_two_convicts_nothing() {
    let mut world = World::new(12);
    world.enter(7, Standing::Known);
    world.after(400);
    world.enter(7, Standing::Known);
    world.gate.orders();
    world.after(200);
    let third = world.enter(7, Standing::Known);
    assert_eq!(world.refused(), [], "the second is not slow yet");
    world.after(300);
    let refused = world.refused();
    assert!(
        matches!(&refused[..], [(ticket, GateRefusal::Parked(_))] if *ticket == third),
        "{refused:?}"
    );
}

/// A scan that ran past its timeout is one failure, whatever becomes of it afterwards.
#[tokio::test(start_paused = true)]
async fn a_scan_fails_once() {
    let mut world = World::new(12);
    let ticket = world.unique(Standing::Known);
    world.after(5000);
    world.gate.end(world.now, ticket, ScanEnd::Lost);
    let counts = world.gate.replicas[0].breaker.counts(world.now);
    assert_eq!(counts, (0, 1));
}

/// An answer that nobody would wait for is a failure; one that is slow is not, nor is one about large content until ten times that.
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
        ..entrant(world.now, TEXT, Standing::Known)
    };
    let large = world.gate.enter(world.now, large);
    world.after(4900);
    assert!(!world.gate.scans[&large].is_slow, "ten times 500 ms");
    world.answered(large);
    assert_eq!(world.gate.replicas[0].breaker.counts(world.now), (1, 0));
}

/// Two failures of one fingerprint count against its engine in ten seconds, and two more in the next: an engine that fails at
/// everything must be seen to although all mail is a flood of one message.
#[tokio::test(start_paused = true)]
async fn failures_of_one_fingerprint_count_again_later() {
    let mut world = World::new(12);
    for _ in 0..2 {
        for _ in 0..5 {
            let ticket = world.enter(7, Standing::Known);
            world.gate.end(world.now, ticket, ScanEnd::Failed);
        }
        let (_, bad) = world.gate.replicas[0].breaker.counts(world.now);
        assert_eq!(bad, 2);
        world.after(10_000);
    }
}

/// What an interceptor explains is not the engine's fault: neither what becomes slow of it, nor what fails.
#[tokio::test(start_paused = true)]
async fn what_an_interceptor_explains_is_not_the_engines_fault() {
    for explained in [false, true] {
        let mut world = World::new(12);
        let one = world.enter(7, Standing::Known);
        world.after(600);
        if explained {
            world.divert(DiversionAct::Hold, 7);
        }
        world.gate.end(world.now, one, ScanEnd::Failed);
        let (_, bad) = world.gate.replicas[0].breaker.counts(world.now);
        assert_eq!(bad, u32::from(!explained));
    }
}

/// A message that a bypass let through to find out is forgotten with the bypass.
#[tokio::test(start_paused = true)]
async fn a_bypass_that_has_ended_leaves_nothing() {
    let mut world = World::new(12);
    world.divert(DiversionAct::Bypass, 7);
    world.enter(7, Standing::Known);
    assert_eq!(world.gate.shadowed.len(), 1);
    world.gate.divert(world.now, Arc::new([]));
    assert!(world.gate.shadowed.is_empty());
}

/// Proof is an answer in time, lasts for an hour at most, and makes what a known sender attaches proven.
#[tokio::test(start_paused = true)]
async fn proof_is_an_answer_in_time() {
    let proven = |world: &World| {
        let entrant = entrant(world.now, 7, Standing::Known);
        world.gate.level(&entrant) == Level::Proven
    };
    for (took, proves) in [(4900, true), (5100, false)] {
        let mut world = World::new(12);
        let ticket = world.enter(7, Standing::Known);
        assert!(!proven(&world));
        world.after(took);
        world.answered(ticket);
        assert_eq!(proven(&world), proves, "after {took} ms");
        // What is proven later ends what was proven before, generation by generation.
        for _ in 0..2 {
            world.now += Duration::from_secs(1801);
            let other = world.unique(Standing::Known);
            world.answered(other);
        }
        assert!(!proven(&world));
    }
}

/// Known senders' new attachments leave a sixth to what is proven once one of them is slow.
#[tokio::test(start_paused = true)]
async fn what_is_unproven_leaves_a_sixth() {
    let mut world = World::new(12);
    let first = world.enter(1, Standing::Known);
    world.after(600);
    for at in 2..20 {
        world.enter(at, Standing::Known);
    }
    assert_eq!(world.started().len(), 10, "{first} and nine");
    for _ in 0..3 {
        world.unique(Standing::Known);
    }
    assert_eq!(world.started().len(), 2);
}

/// What is scanned again waits ten times as long for a slot: no session waits with it.
#[tokio::test(start_paused = true)]
async fn what_is_scanned_again_waits_longer() {
    let mut world = World::new(1);
    world.unique(Standing::Known);
    let again = GateRequest {
        scan_reason: ScanReason::Again,
        ..entrant(world.now, TEXT, Standing::Known)
    };
    let again = world.gate.enter(world.now, again);
    world.gate.orders();
    world.after(4000);
    assert_eq!(world.refused(), []);
    world.after(6000);
    let refused = world.refused();
    assert_eq!(refused.first().map(|(ticket, _)| *ticket), Some(again));
}

/// An engine that hangs on the one message that it has been given is asked with a probe at once, however well it did before; if that
/// hangs too it is out, for whoever waits. If the probe is answered it was the message.
#[tokio::test(start_paused = true)]
async fn where_there_is_little_mail_a_probe_shows_a_stall() {
    for answered in [false, true] {
        let mut world = World::new(10);
        (0..1000).for_each(|_| world.gate.latencies.add(milliseconds(50)));
        let before = world.unique(Standing::Known);
        world.after(100);
        world.answered(before);
        world.after(1000);
        world.unique(Standing::Unknown);
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

/// Large content that takes an engine long has half of what strangers may hold, and small mail the rest; what strangers have sent of
/// it takes nothing from known senders' large mail.
#[tokio::test(start_paused = true)]
async fn large_mail_that_is_slow_leaves_room_for_small_mail() {
    let mut world = World::new(10);
    let large = |world: &mut World, standing| {
        world.next += 1;
        let entrant = GateRequest {
            large: true,
            ..entrant(world.now, world.next, standing)
        };
        world.gate.enter(world.now, entrant)
    };
    for _ in 0..3 {
        large(&mut world, Standing::Unknown);
    }
    assert_eq!(world.started().len(), 3);
    world.after(5000);
    large(&mut world, Standing::Unknown);
    assert!(world.started().is_empty(), "half of seven are large");
    let small = world.unique(Standing::Unknown);
    let known = large(&mut world, Standing::Known);
    assert_eq!(world.started(), [small, known]);
    let again = GateRequest {
        large: true,
        struck: true,
        scan_reason: ScanReason::Again,
        ..entrant(world.now, TEXT, Standing::Known)
    };
    world.gate.enter(world.now, again);
    assert!(world.started().is_empty(), "it may not be its own fault");
}

/// A message that hung before says nothing about the engine when it hangs once more; it is no sample for a bypass, or it would be held
/// for what the bypass is there for; and others do not make up for an engine that it waits for.
#[tokio::test(start_paused = true)]
async fn what_hung_before_is_nobody_elses_fault() {
    let struck = |world: &mut World, attachment: u64| {
        let entrant = GateRequest {
            scan_reason: ScanReason::Again,
            struck: true,
            ..entrant(world.now, attachment, Standing::Known)
        };
        world.gate.enter(world.now, entrant)
    };
    let mut world = World::new(32);
    let hangs: Vec<Ticket> = (0..5)
        .map(|n| {
            let ticket = struck(&mut world, TEXT + n);
            world
                .gate
                .scans
                .values_mut()
                .for_each(|scan| scan.entrant.struck = false);
            world.gate.pump(world.now);
            ticket
        })
        .collect();
    assert_eq!(world.started(), hangs, "law 4 is not what this is about");
    world
        .gate
        .scans
        .values_mut()
        .for_each(|scan| scan.entrant.struck = true);
    (0..1000).for_each(|_| world.gate.latencies.add(milliseconds(50)));
    let last = struck(&mut world, TEXT + 5);
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
    struck(&mut world, 7);
    assert!(matches!(&world.refused()[..], [(_, GateRefusal::Open(_))]));
}
