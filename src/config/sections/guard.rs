//! `[guard]`: the thresholds of the guard around each engine, and the same keys in an `[[engine]]`, which go before those of
//! `[guard]` for that engine.

use std::time::Duration;

use toml::de::DeValue;

use crate::config::reader::Section;
use crate::config::units::{Wrong, show_duration};
use crate::config::value::expected;
use crate::scan::{GuardSettings, SlotShare};

use super::{HOUR, MINUTE, secs};

/// Shortest time that a breaker stays open: 100 ms, the interval at which the guard looks at the clock.
const OPEN_PAUSE_MIN: Duration = Duration::from_millis(100);

/// What a share of the slots looks like.
const SHARE_TEXT: &str = "a fraction of the slots in quotes, \"1/100\" to \"9/10\": \"1/3\"";

/// Reads `[guard]`.
pub(in crate::config) fn guard(mut section: Section<'_>) -> GuardSettings {
    let settings = read(&mut section, &GuardSettings::default(), Whose::All);
    section.finish();
    settings
}

/// Reads the keys of the guard in an `[[engine]]`. A missing key has the value of `[guard]`, which `all` has.
pub(super) fn guard_of_engine(section: &mut Section<'_>, all: &GuardSettings) -> GuardSettings {
    read(section, all, Whose::OneEngine)
}

/// Whose settings a section has.
#[derive(Clone, Copy, PartialEq)]
enum Whose {
    /// Those of all engines: each key has a default.
    All,
    /// Those of one engine: no key has a default of its own.
    OneEngine,
}

/// Reads the keys. A missing one has the value of `before`.
fn read(section: &mut Section<'_>, before: &GuardSettings, whose: Whose) -> GuardSettings {
    let is_all = whose == Whose::All;
    let mut settings = *before;
    shares(section, &mut settings, is_all);
    counts(section, &mut settings, is_all);
    times(section, &mut settings, is_all);
    reserves(section, &mut settings, is_all);
    settings
}

/// Reads the keys that are numbers with a fraction.
fn shares(section: &mut Section<'_>, settings: &mut GuardSettings, is_all: bool) {
    let share = |section: &mut Section<'_>, key, value: f64, range| {
        let read = section.number(key, is_all.then_some(value), range);
        read.unwrap_or(value)
    };
    settings.stall_factor = share(section, "stall_factor", settings.stall_factor, 0.1..=20.0);
    settings.failure_share = share(section, "failure_share", settings.failure_share, 0.05..=1.0);
}

/// Reads the keys that are whole numbers.
fn counts(section: &mut Section<'_>, settings: &mut GuardSettings, is_all: bool) {
    let count = |section: &mut Section<'_>, key, value: usize, range| {
        let read = section.optional_count(key, is_all.then_some(value), range);
        read.unwrap_or(value)
    };
    let count_32 = |section: &mut Section<'_>, key, value: u32, range| {
        let read = count(section, key, value as usize, range);
        u32::try_from(read).unwrap_or(value)
    };
    let now = *settings;
    settings.stall_senders = count(section, "stall_senders", now.stall_senders, 1..=100);
    let (outcomes, in_a_row) = (now.failure_outcomes, now.failures_in_a_row);
    settings.failure_outcomes = count_32(section, "failure_outcomes", outcomes, 2..=10_000);
    settings.failures_in_a_row = count_32(section, "failures_in_a_row", in_a_row, 3..=1000);
    settings.canaries = count_32(section, "canaries", now.canaries, 1..=64);
    let per_slot = now.recovery_per_slot;
    settings.recovery_per_slot = count(section, "recovery_per_slot", per_slot, 1..=16);
    settings.recovery_max = count(section, "recovery_max", now.recovery_max, 2..=1024);
}

/// Reads the keys that are durations.
fn times(section: &mut Section<'_>, settings: &mut GuardSettings, is_all: bool) {
    let duration = |section: &mut Section<'_>, key, value: Duration, range| {
        let read = section.optional_duration(key, is_all.then_some(value), range);
        read.unwrap_or(value)
    };
    let (now, ten_minutes) = (*settings, secs(10 * MINUTE));
    let window = secs(1)..=ten_minutes;
    settings.failure_window = duration(section, "failure_window", now.failure_window, window);
    let first = OPEN_PAUSE_MIN..=ten_minutes;
    settings.open_first = duration(section, "open_first", now.open_first, first);
    let longest = OPEN_PAUSE_MIN..=secs(HOUR);
    settings.open_max = duration(section, "open_max", now.open_max, longest);
    if settings.open_max >= settings.open_first {
        return;
    }
    let shown = |value| format!("\"{}\"", show_duration(value));
    let (first, longest) = (shown(settings.open_first), shown(settings.open_max));
    let mut written = ["open_max", "open_first"].into_iter();
    if let Some(key) = written.find(|key| section.has(key)) {
        section.complain(
            key,
            format!("makes open_max = {longest} shorter than open_first = {first}, with which the pauses begin"),
            format!("write an open_max of at least {first}, or an open_first of at most {longest}"),
        );
    }
}

/// Reads the shares of the slots that are kept free. Each is a fraction, as a third has no exact decimal.
fn reserves(section: &mut Section<'_>, settings: &mut GuardSettings, is_all: bool) {
    let share = |section: &mut Section<'_>, key, value: SlotShare| {
        let shown = |share: &SlotShare| format!("\"{}\"", show_share(share));
        let read = section.read(
            key,
            is_all.then_some(value),
            shown,
            |written| match written {
                DeValue::String(text) => slot_share(text),
                other => Err(expected(other, SHARE_TEXT)),
            },
        );
        let range = "\"1/100\" to \"9/10\"".to_owned();
        section.takes("fraction of the slots", Some(range));
        read.unwrap_or(value)
    };
    settings.reserve_known = share(section, "reserve_known", settings.reserve_known);
    settings.reserve_proven = share(section, "reserve_proven", settings.reserve_proven);
    let (known, proven) = (settings.reserve_known, settings.reserve_proven);
    if u64::from(proven.parts) * u64::from(known.of) > u64::from(known.parts) * u64::from(proven.of)
    {
        let written = ["reserve_proven", "reserve_known"]
            .into_iter()
            .find(|key| section.has(key));
        if let Some(key) = written {
            let what = format!(
                "makes reserve_proven = \"{}\" larger than reserve_known = \"{}\", which includes it",
                show_share(&proven),
                show_share(&known)
            );
            let fix = format!(
                "write a reserve_proven of at most \"{}\", or a larger reserve_known",
                show_share(&known)
            );
            section.complain(key, what, fix);
        }
    }
}

/// Parses a share of the slots: `1/3`.
fn slot_share(text: &str) -> Result<SlotShare, Wrong> {
    let numbers = text.split_once('/').and_then(|(parts, of)| {
        let number = |text: &str| text.trim().parse::<u8>().ok().map(u32::from);
        Some((number(parts)?, number(of)?))
    });
    let Some((parts, of)) = numbers else {
        return Err(Wrong::new(
            format!("{text:?} is not a fraction"),
            format!("write {SHARE_TEXT}"),
        ));
    };
    match (1..=100).contains(&of) && 100 * parts >= of && 10 * parts <= 9 * of {
        true => Ok(SlotShare { parts, of }),
        false => Err(Wrong::new(
            format!("{text:?} is out of range"),
            "write \"1/100\" to \"9/10\"",
        )),
    }
}

fn show_share(share: &SlotShare) -> String {
    format!("{}/{}", share.parts, share.of)
}
