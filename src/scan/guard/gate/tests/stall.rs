//! Tests: when an engine has stalled, and on whose mail it hangs.

use super::*;
use crate::scan::guard::breaker::Cause;

/// The stall detector takes out an engine with scans of 50 ms a few tenths of a second after the engine stops. Hanging mail
/// of unknown senders alone, of one known sender, or of two is not a stall.
#[tokio::test(start_paused = true)]
async fn an_engine_has_stalled_if_too_much_is_late_at_once() {
    let stalls = |parties: &[(u64, SenderReputation)]| {
        let mut world = World::new(10);
        (0..1000).for_each(|_| world.gate.latencies.add(milliseconds(50)));
        for (party, reputation) in parties {
            world.next += 1;
            let request = GateRequest {
                fairness_key: fairness_key(*party),
                ..gate_request(world.now, world.next, *reputation)
            };
            world.gate.enter(world.now, request);
        }
        (1..50).find(|_| {
            world.after(100);
            matches!(world.breaker(), BreakerState::Open { .. })
        })
    };
    let (known, unknown) = (SenderReputation::Known, SenderReputation::Unknown);
    let many = |reputation| (0..6).map(|party| (party, reputation)).collect::<Vec<_>>();
    let of_many = stalls(&many(known));
    assert!(of_many.is_some_and(|tenths| tenths <= 3), "{of_many:?}");
    assert_eq!(stalls(&many(unknown)), None, "strangers");
    assert_eq!(stalls(&[(1, known); 6]), None, "one sender");
    assert_eq!(stalls(&many(known)[..2]), None, "two of them");
}

/// If mail of known senders hangs in a stalled engine, all mail hangs there. If only mail of unknown senders does, their mail
/// may be the cause. The gate forgets the distinction when the breaker opens for another reason.
#[tokio::test(start_paused = true)]
async fn it_is_known_what_a_stalled_engine_hangs_on() {
    let (known, unknown) = (SenderReputation::Known, SenderReputation::Unknown);
    for (reputation, is_text, on_known) in [
        (known, true, true),
        (known, false, true),
        (unknown, true, false),
    ] {
        let mut world = World::new(6);
        for n in 0..10 {
            match is_text {
                true => world.unique(reputation),
                false => world.enter(n, reputation),
            };
        }
        world.after(1000);
        assert!(world.gate.is_out(0), "{reputation:?} {is_text}");
        assert_eq!(
            world.gate.hangs_on_known(),
            on_known,
            "{reputation:?} {is_text}"
        );
        let (now, opened) = (world.now, Change::Opened(Cause::Failing));
        world.gate.changed(now, 0, Some(opened));
        assert!(!world.gate.hangs_on_known());
    }
}

/// An engine that takes all scans and ends none is out after a second, and no message waits for the engine any longer.
#[tokio::test(start_paused = true)]
async fn a_stalled_engine_is_out_within_a_second_or_two() {
    let mut world = World::new(3);
    for _ in 0..10 {
        world.unique(SenderReputation::Known);
    }
    world.gate.orders();
    world.after(1000);
    assert!(world.gate.is_out(0), "{:?}", world.breaker());
    let refused = world.refused();
    let open = |(_, refusal): &(Ticket, GateRefusal)| matches!(refusal, GateRefusal::Open(_));
    assert!(
        !refused.is_empty() && refused.iter().all(open),
        "{refused:?}"
    );
    let next = world.unique(SenderReputation::Known);
    assert_eq!(world.refused()[0].0, next);
}
