//! Tests: each key of `[guard]` that the gate uses changes what the reference says it changes, also by a reload.

use super::*;
use crate::scan::SlotShare;

const KNOWN: SenderReputation = SenderReputation::Known;
const UNKNOWN: SenderReputation = SenderReputation::Unknown;

/// A gate whose engine has answered in 50 ms so far, with changed settings.
fn tuned(slots: usize, change: impl FnOnce(&mut GuardSettings)) -> World {
    let mut world = World::new(slots);
    let mut settings = GuardSettings::default();
    change(&mut settings);
    world.gate.retune(world.now, TIMES, (slots, settings));
    (0..1000).for_each(|_| world.gate.latencies.add(milliseconds(50)));
    world
}

/// `canaries`: so many copies of one content are in the engine at once, and twice as many after one was answered in time.
#[tokio::test(start_paused = true)]
async fn as_many_copies_are_tried_as_the_setting_says() {
    for canaries in [1, 2, 4] {
        let mut world = tuned(12, |guard| guard.canaries = canaries);
        for _ in 0..12 {
            world.enter(1, KNOWN);
        }
        let first = world.started();
        assert_eq!(first.len(), canaries as usize);
        world.answered(first[0]);
        let more = world.started().len();
        assert_eq!(more, canaries as usize + 1, "{canaries}");
    }
}

/// The scans that begin while one of them is slow, of more messages than the engine has slots.
fn starts(world: &mut World, reputation: SenderReputation, is_text: bool) -> usize {
    let enter = |world: &mut World, n| match is_text {
        true => world.unique(reputation),
        false => world.enter(n, reputation),
    };
    enter(world, 0);
    world.after(600);
    for n in 1..30 {
        enter(world, n);
    }
    world.started().len()
}

/// `reserve_known`: a larger one leaves more slots to known senders while mail of unknown senders is slow.
#[tokio::test(start_paused = true)]
async fn a_larger_reserve_leaves_unknown_senders_less() {
    for (parts, of, left) in [(1, 12, 11), (1, 3, 8), (3, 4, 3)] {
        let share = SlotShare { parts, of };
        let mut world = tuned(12, |guard| guard.reserve_known = share);
        assert_eq!(starts(&mut world, UNKNOWN, true), left, "{share:?}");
        for _ in 0..30 {
            world.unique(KNOWN);
        }
        assert_eq!(world.started().len(), 12 - left, "{share:?}");
    }
}

/// `reserve_proven`: the same for known senders' mail with new attachments, for the benefit of mail without.
#[tokio::test(start_paused = true)]
async fn a_larger_reserve_leaves_new_attachments_less() {
    for (parts, of, left) in [(1, 12, 11), (1, 6, 10), (1, 3, 8)] {
        let share = SlotShare { parts, of };
        let mut world = tuned(12, |guard| guard.reserve_proven = share);
        assert_eq!(starts(&mut world, KNOWN, false), left, "{share:?}");
    }
}

/// After how many tenths of a second the engine is out, if mail of so many known senders hangs in it.
fn stalls(world: &mut World, senders: u64) -> Option<u64> {
    for _ in 0..senders {
        world.unique(KNOWN);
    }
    (1..45).find(|_| {
        world.after(100);
        matches!(world.breaker(), BreakerState::Open { .. })
    })
}

/// `stall_factor`: with a larger one an engine that has stopped is noticed later.
#[tokio::test(start_paused = true)]
async fn a_larger_factor_notices_a_stop_later() {
    let after = [0.1, 0.5, 2.0, 4.0].map(|factor| {
        let mut world = tuned(12, |guard| guard.stall_factor = factor);
        stalls(&mut world, 6).expect("it has stopped")
    });
    assert_eq!(after, [1, 3, 10, 20]);
}

/// `stall_senders`: mail of fewer senders does not take the engine out.
#[tokio::test(start_paused = true)]
async fn as_many_senders_are_needed_as_the_setting_says() {
    for needed in [1, 3, 6] {
        let fewest = (1..10).find(|senders| {
            let mut world = tuned(12, |guard| guard.stall_senders = needed);
            stalls(&mut world, *senders).is_some()
        });
        assert_eq!(fewest, Some(needed as u64));
    }
}

/// What holds the slots is told apart: mail, probes, and scans past their timeout.
#[tokio::test(start_paused = true)]
async fn what_holds_the_slots_is_told_apart() {
    let mut world = tuned(2, |_| ());
    world.unique(KNOWN);
    world.unique(KNOWN);
    assert_eq!(world.started().len(), 2);
    let taken = world.gate.taken(0);
    assert_eq!(
        (taken.slots, taken.running, taken.probes, taken.overdue),
        (2, 2, 0, 0)
    );
    assert!(world.gate.probe(world.now, 0).is_none(), "no slot is free");
    world.after(TIMES.timeout.as_millis() as u64 + 200);
    assert_eq!(world.gate.taken(0).overdue, 2);
}
