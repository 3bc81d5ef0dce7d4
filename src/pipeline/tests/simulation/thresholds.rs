//! Worlds with other thresholds than the defaults: the promises do not depend on them. What each key changes is shown by the tests
//! of the part that uses it: `breaker/tests.rs`, `gate/tests/thresholds.rs`,
//! `intercept/tests/thresholds.rs`, `recovery/width.rs`.

use std::time::Duration;

use super::plan::Plan;
use super::{hold_in, number};
use crate::intercept::Act;
use crate::scan::SlotShare;

/// A change of one threshold.
type Change = fn(&mut Plan);

const fn share(parts: u32, of: u32) -> SlotShare {
    SlotShare { parts, of }
}

/// Three other settings of each key, the least and the largest that the configuration allows among them; of `act` the only other.
const CHANGES: [Change; 53] = [
    |plan| plan.guard.stall_factor = 0.1,
    |plan| plan.guard.stall_factor = 2.0,
    |plan| plan.guard.stall_factor = 20.0,
    |plan| plan.guard.stall_senders = 1,
    |plan| plan.guard.stall_senders = 5,
    |plan| plan.guard.stall_senders = 100,
    |plan| plan.guard.failure_share = 0.05,
    |plan| plan.guard.failure_share = 0.8,
    |plan| plan.guard.failure_share = 1.0,
    |plan| plan.guard.failure_window = Duration::from_secs(1),
    |plan| plan.guard.failure_window = Duration::from_secs(60),
    |plan| plan.guard.failure_window = Duration::from_secs(600),
    |plan| plan.guard.failure_outcomes = 2,
    |plan| plan.guard.failure_outcomes = 60,
    |plan| plan.guard.failure_outcomes = 10_000,
    |plan| plan.guard.failures_in_a_row = 3,
    |plan| plan.guard.failures_in_a_row = 20,
    |plan| plan.guard.failures_in_a_row = 1000,
    |plan| plan.guard.open_first = Duration::from_millis(100),
    |plan| plan.guard.open_first = Duration::from_secs(5),
    |plan| {
        plan.guard.open_first = Duration::from_secs(600);
        plan.guard.open_max = Duration::from_secs(600);
    },
    |plan| plan.guard.open_max = Duration::from_secs(1),
    |plan| plan.guard.open_max = Duration::from_secs(120),
    |plan| plan.guard.open_max = Duration::from_secs(3600),
    |plan| plan.guard.canaries = 1,
    |plan| plan.guard.canaries = 4,
    |plan| plan.guard.canaries = 64,
    |plan| plan.guard.reserve_known = share(1, 6),
    |plan| plan.guard.reserve_known = share(1, 2),
    |plan| plan.guard.reserve_known = share(9, 10),
    |plan| plan.guard.reserve_proven = share(1, 100),
    |plan| plan.guard.reserve_proven = share(1, 4),
    |plan| plan.guard.reserve_proven = share(1, 3),
    |plan| plan.guard.recovery_per_slot = 1,
    |plan| plan.guard.recovery_per_slot = 4,
    |plan| plan.guard.recovery_per_slot = 16,
    |plan| plan.guard.recovery_max = 2,
    |plan| plan.guard.recovery_max = 5,
    |plan| plan.guard.recovery_max = 1024,
    |plan| plan.intercept.act = Act::Park,
    |plan| plan.intercept.strikes = 1,
    |plan| plan.intercept.strikes = 4,
    |plan| plan.intercept.strikes = 20,
    |plan| plan.intercept.min_precision = 0.5,
    |plan| plan.intercept.min_precision = 0.75,
    |plan| plan.intercept.min_precision = 1.0,
    |plan| plan.intercept.min_slow_scans = 4,
    |plan| plan.intercept.min_slow_scans = 12,
    |plan| plan.intercept.min_slow_scans = 100,
    |plan| plan.intercept.expiry = Duration::from_secs(60),
    |plan| plan.intercept.expiry = Duration::from_secs(3600),
    |plan| plan.intercept.expiry = Duration::from_secs(86_400),
    // All at once, on the side that lets trouble go on for longest.
    |plan| {
        plan.guard.stall_factor = 20.0;
        plan.guard.failure_share = 1.0;
        plan.guard.failures_in_a_row = 1000;
        plan.guard.canaries = 64;
        plan.guard.reserve_known = share(1, 100);
        plan.guard.reserve_proven = share(1, 100);
        plan.intercept.strikes = 20;
        plan.intercept.min_slow_scans = 100;
    },
];

/// Worlds of each setting in an ordinary run: ten seconds of work for all of them without optimisation.
const WORLDS_EACH: u64 = 1;

/// Every promise holds with every setting: a threshold decides when the relay protects what, not whether mail is lost.
/// `SPILLWAY_SEEDS=5000` plays as many worlds.
#[test]
fn the_promises_hold_with_other_thresholds() {
    let changes = CHANGES.len() as u64;
    let worlds = number("SPILLWAY_SEEDS").unwrap_or(WORLDS_EACH * changes);
    hold_in(worlds, |seed| {
        let mut plan = Plan::new(seed);
        CHANGES[(seed % changes) as usize](&mut plan);
        plan
    });
}
