//! Checks of the thresholds of `[guard]` and `[intercept]` against the engines: each is valid alone, but one makes the other
//! useless. A warning stands at the key that the file sets; keys at their defaults contradict nothing.

use std::time::Duration;

use crate::config::Config;
use crate::config::document::Log;
use crate::config::units::show_duration;
use crate::intercept::{Act, Mode};
use crate::scan::{GuardSettings, Settings};

/// Slow scans older than this are no evidence for the learner: 60 s. Of mail that hangs longer, an engine shows as many slow
/// scans as it has slots.
const SLOW_SCANS_KEPT: Duration = Duration::from_secs(60);
/// With one strike to block and a precision below this, accidents are enough evidence for a hold.
const PRECISION_FOR_ONE_STRIKE_MIN: f64 = 0.9;

/// One contradiction of keys of the guard.
struct Contradiction {
    /// The keys that may be the cause. The warning is about the first of them that the file sets.
    keys: &'static [&'static str],
    /// Whether a key in `[guard]` contradicts only if it does so for each engine that has no key of its own; else one engine is
    /// enough.
    in_all: bool,
    holds: fn(&Settings) -> bool,
    /// What is wrong for the engine, and the fix.
    tell: fn(&Settings) -> (String, String),
}

const CONTRADICTIONS: [Contradiction; 7] = [
    Contradiction {
        keys: &["canaries"],
        in_all: false,
        holds: |engine| engine.slots > 1 && engine.guard.canaries as usize >= engine.slots,
        tell: |engine| {
            let Settings { name, slots, .. } = engine;
            let what = format!(
                "{} copies fill the slots = {slots} of engine {name}: a flood of one message that hangs takes all of it",
                engine.guard.canaries
            );
            (what, format!("write {} or less", slots - 1))
        },
    },
    Contradiction {
        keys: &["reserve_known"],
        in_all: false,
        holds: |engine| {
            let kept = engine.guard.reserve_known.slots(engine.slots);
            engine.slots > 2 && engine.slots.saturating_sub(kept) <= 1
        },
        tell: |engine| {
            let what = format!(
                "leaves unknown senders one of the slots = {} of engine {}: one message that hangs keeps all their mail waiting",
                engine.slots, engine.name
            );
            (what, "write a smaller share, or raise slots".to_owned())
        },
    },
    Contradiction {
        keys: &["recovery_max"],
        in_all: true,
        holds: |engine| engine.guard.recovery_max > recovery_width(engine),
        tell: |engine| {
            let what = format!(
                "is never reached: recovery_per_slot = {} for the {} slots of engine {} are {} messages",
                engine.guard.recovery_per_slot,
                all_slots(engine),
                engine.name,
                recovery_width(engine)
            );
            (what, "leave it out, or raise recovery_per_slot".to_owned())
        },
    },
    Contradiction {
        keys: &["recovery_max"],
        in_all: true,
        holds: |engine| engine.guard.recovery_max < all_slots(engine),
        tell: |engine| {
            let slots = all_slots(engine);
            let what = format!(
                "is less than the {slots} slots of engine {}: while its backlog is scanned, some of them are idle",
                engine.name
            );
            (what, format!("write {slots} or more"))
        },
    },
    Contradiction {
        keys: &["failure_outcomes", "failure_window"],
        in_all: true,
        holds: |engine| {
            // With the defaults the same holds for engines of a few slots, and is meant so.
            let (guard, default) = (&engine.guard, GuardSettings::default());
            let needs_more = guard.failure_outcomes > default.failure_outcomes
                || guard.failure_window < default.failure_window;
            needs_more && f64::from(guard.failure_outcomes) > timeouts_in_window(engine)
        },
        tell: |engine| {
            let what = format!(
                "failure_outcomes = {} are more than the {:.0} timeouts that engine {} can show in failure_window = \"{}\": if all \
                 its scans hang, only failures_in_a_row opens its breaker",
                engine.guard.failure_outcomes,
                timeouts_in_window(engine),
                engine.name,
                show_duration(engine.guard.failure_window)
            );
            (what, "write fewer outcomes, or a longer window".to_owned())
        },
    },
    Contradiction {
        keys: &["stall_factor"],
        in_all: false,
        holds: |engine| engine.slow.mul_f64(engine.guard.stall_factor) >= engine.timeout,
        tell: |engine| {
            let what = format!(
                "{:?} times slow = \"{}\" is not less than timeout = \"{}\" of engine {}: its scans run into their timeout before \
                 it counts as stalled",
                engine.guard.stall_factor,
                show_duration(engine.slow),
                show_duration(engine.timeout),
                engine.name
            );
            (what, "write a smaller factor".to_owned())
        },
    },
    Contradiction {
        keys: &["open_first"],
        in_all: false,
        holds: |engine| engine.guard.open_first > engine.wait,
        tell: |engine| {
            let wait = show_duration(engine.wait);
            let what = format!(
                "\"{}\" is longer than wait = \"{wait}\" of engine {}: mail that arrives while its breaker is open is deferred, \
                 even if the engine is back at once",
                show_duration(engine.guard.open_first),
                engine.name
            );
            (what, format!("write \"{wait}\" or less, or raise wait"))
        },
    },
];

/// The slots of all replicas.
fn all_slots(engine: &Settings) -> usize {
    engine.slots * engine.kind.replicas()
}

/// Messages that recovery scans at once if `recovery_max` allows it.
fn recovery_width(engine: &Settings) -> usize {
    all_slots(engine) * engine.guard.recovery_per_slot
}

/// The outcomes in the window of the breaker if every scan runs into its timeout.
fn timeouts_in_window(engine: &Settings) -> f64 {
    let rounds = engine.guard.failure_window.div_duration_f64(engine.timeout);
    rounds.max(1.0) * engine.slots as f64
}

/// Warns of thresholds that contradict each other.
pub(super) fn thresholds(config: &Config, log: &mut Log) {
    for contradiction in &CONTRADICTIONS {
        let own_key = |engine: &Settings, log: &Log| {
            let keys = contradiction.keys.iter();
            let mut keys = keys.map(|key| format!("engine.{}.{key}", engine.name));
            keys.find(|key| log.is_changed(key))
        };
        let mut others = Vec::new();
        for engine in &config.engines {
            match own_key(engine, log) {
                Some(key) if (contradiction.holds)(engine) => {
                    let (what, fix) = (contradiction.tell)(engine);
                    log.warn(&key, what, fix);
                }
                Some(_) => {}
                None => others.push(engine),
            }
        }
        let keys = contradiction.keys.iter().map(|key| format!("guard.{key}"));
        let key = keys.into_iter().find(|key| log.is_changed(key));
        let first = others.iter().find(|engine| (contradiction.holds)(engine));
        let is_all = || others.iter().all(|engine| (contradiction.holds)(engine));
        if let (Some(key), Some(engine)) = (key, first)
            && (!contradiction.in_all || is_all())
        {
            let (what, fix) = (contradiction.tell)(engine);
            log.warn(&key, what, fix);
        }
    }
    learner(config, log);
}

/// Warns of contradictions of the learner's keys.
fn learner(config: &Config, log: &mut Log) {
    let settings = &config.intercept;
    if settings.mode == Mode::Off {
        for key in [
            "act",
            "strikes",
            "min_precision",
            "min_slow_scans",
            "expiry",
        ] {
            let key = format!("intercept.{key}");
            if log.is_changed(&key) {
                log.warn(
                    &key,
                    "has no effect with mode = \"off\"",
                    "remove it, or write mode = \"on\"",
                );
            }
        }
        return;
    }
    let key = "intercept.min_slow_scans";
    let hangs = |engine: &&Settings| engine.limit >= SLOW_SCANS_KEPT;
    let most = config
        .engines
        .iter()
        .filter(hangs)
        .max_by_key(|engine| all_slots(engine));
    if let Some(engine) = most.filter(|engine| settings.min_slow_scans > all_slots(engine))
        && log.is_changed(key)
    {
        let slots = all_slots(engine);
        let what = format!(
            "is more than the {slots} slots of engine {}, the most of all engines: so many scans never hang at once, and the \
             learner finds nothing in mail that hangs",
            engine.name
        );
        log.warn(key, what, format!("write {} or less", slots.max(2)));
    }
    if settings.strikes == 1
        && settings.act == Act::Hold
        && settings.min_precision < PRECISION_FOR_ONE_STRIKE_MIN
        && log.is_changed("intercept.strikes")
    {
        let what = format!(
            "with 1 strike, and min_precision = {:?}, single accidents are enough to hold good mail",
            settings.min_precision
        );
        let fix = "write 2 or more, a higher min_precision, or act = \"park\"";
        log.warn("intercept.strikes", what, fix);
    }
    expiry(config, log);
}

/// Warns of interceptors that end before the scans for which they were made.
fn expiry(config: &Config, log: &mut Log) {
    let settings = &config.intercept;
    let longest = config.engines.iter().max_by_key(|engine| engine.limit);
    if let Some(engine) = longest.filter(|engine| settings.expiry < engine.limit)
        && log.is_changed("intercept.expiry")
    {
        let (expiry, limit) = (show_duration(settings.expiry), show_duration(engine.limit));
        let what = format!(
            "\"{expiry}\" is shorter than limit = \"{limit}\" of engine {}: an interceptor ends while the scans for which it was \
             made still hang, and the next such messages are let in",
            engine.name
        );
        log.warn(
            "intercept.expiry",
            what,
            format!("write \"{limit}\" or more"),
        );
    }
}
