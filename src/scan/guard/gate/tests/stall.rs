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

/// Lets two copies of a message hang, takes the engine out `outages` times, and lets it be back for `back` ms. Returns the number of
/// stranded scans, and whether a third copy may be scanned then.
fn stranded(reputation: SenderReputation, outages: usize, back: u64) -> (usize, bool) {
    let mut world = World::new(6);
    for _ in 0..2 {
        world.enter(1, reputation);
    }
    for _ in 0..outages {
        // More scans of known senders, so that the engine has stalled; they end during the outage.
        let others: Vec<_> = (0..4)
            .map(|_| world.unique(SenderReputation::Known))
            .collect();
        while !world.gate.is_out(0) {
            world.after(100);
        }
        others.into_iter().for_each(|ticket| world.answered(ticket));
        while world.breaker() != BreakerState::Closed {
            world.after(100);
            if let BreakerState::HalfOpen { .. } = world.breaker() {
                world.gate.probed(world.now, 0, true);
            }
            let other = world.unique(SenderReputation::Known);
            world.answered(other);
        }
    }
    world.gate.orders();
    world.after(back);
    let orders = world.gate.orders().into_iter();
    let stranded = orders.filter(|order| matches!(order, GateOrder::Stranded(_)));
    let stranded = stranded.count();
    let third = GateRequest {
        fairness_key: fairness_key(3),
        ..gate_request(world.now, 1, reputation)
    };
    let third = world.gate.enter(world.now, third);
    (stranded, world.started().contains(&third))
}

/// A scan of a known sender's message is stranded when the engine has gone out during the scan, has been back for `timeout`, and
/// has not ended it. Stranded copies are evidence against no other copy. Without an outage, and for unknown senders, the
/// message may be the cause, and slow copies keep further ones out.
#[tokio::test(start_paused = true)]
async fn a_scan_is_stranded_by_an_outage_only() {
    let (known, unknown) = (SenderReputation::Known, SenderReputation::Unknown);
    assert_eq!(stranded(known, 1, 5000), (2, true));
    assert_eq!(
        stranded(known, 1, 4900).0,
        0,
        "the engine may still end them"
    );
    assert_eq!(stranded(known, 0, 10_000), (0, false), "no outage");
    assert_eq!(stranded(unknown, 1, 10_000), (0, false), "unknown sender");
}
