//! Durations and sizes of the configuration: a whole number and a unit.

use std::time::Duration;

/// The problem of a value, and the fix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) what: String,
    pub(super) fix: String,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }
}

/// Units of durations, with their milliseconds; the largest first.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Units of sizes, with their octets; the largest first.
const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Parses a duration: `150ms`, `5s`, `5m`, `2h`, `30d`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    let (number, unit) = split(text);
    let factor = DURATION_UNITS.iter().find(|(name, _)| *name == unit);
    match (number, factor) {
        (Some(number), Some((_, factor))) => number
            .checked_mul(*factor)
            .map(Duration::from_millis)
            .ok_or_else(|| Wrong::new(format!("{text:?} is too long"), "write a shorter duration")),
        (Some(number), None) if unit.is_empty() => Err(Wrong::new(
            format!("{text:?} has no unit"),
            format!("write \"{number}s\""),
        )),
        _ => Err(Wrong::new(
            format!("{text:?} is not a duration"),
            "write a whole number and ms, s, m, h or d: \"150ms\", \"5s\", \"30d\"",
        )),
    }
}

/// Parses a size into octets: `256B`, `64KiB`, `50MiB`, `1GiB`. A plain `0` needs no unit.
pub(super) fn size(text: &str) -> Result<u64, Wrong> {
    let (number, unit) = split(text);
    let factor = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
    match (number, factor) {
        (Some(0), None) if unit.is_empty() => Ok(0),
        (Some(number), Some((_, factor))) => number
            .checked_mul(*factor)
            .ok_or_else(|| Wrong::new(format!("{text:?} is too large"), "write a smaller size")),
        (Some(number), None) if unit.is_empty() => Err(Wrong::new(
            format!("{text:?} has no unit"),
            match number {
                ..1024 => format!("write \"{number}B\", \"{number}KiB\" or \"{number}MiB\""),
                _ => format!("write \"{}\" if it is in octets", show_size(number)),
            },
        )),
        (Some(number), None) => {
            let upper = unit.to_ascii_uppercase();
            let meant = SIZE_UNITS
                .iter()
                .find(|(name, _)| name.chars().next() == upper.chars().next());
            let unit = meant.map_or("MiB", |(name, _)| name);
            Err(Wrong::new(
                format!("{text:?} is not a size"),
                format!("write \"{number}{unit}\" (units are B, KiB, MiB, GiB, TiB)"),
            ))
        }
        (None, _) => Err(Wrong::new(
            format!("{text:?} is not a size"),
            "write a whole number and B, KiB, MiB, GiB or TiB: \"64KiB\", \"50MiB\"",
        )),
    }
}

fn split(text: &str) -> (Option<u64>, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    (number.parse().ok(), unit.trim_start())
}

/// Writes a duration in the largest unit that needs no fraction, so that [`duration`] reads it back.
pub(super) fn show_duration(value: Duration) -> String {
    let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    show(millis, &DURATION_UNITS, "s")
}

/// Writes a size in the largest unit that needs no fraction, so that [`size`] reads it back.
pub(super) fn show_size(value: u64) -> String {
    show(value, &SIZE_UNITS, "B")
}

fn show(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    let fits = |(_, factor): &&(&str, u64)| value.is_multiple_of(*factor);
    match units.iter().find(fits) {
        Some((unit, factor)) if value > 0 => format!("{}{unit}", value / factor),
        _ => format!("0{zero}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number without a unit is an error, and the fix names a value with a unit. The code never guesses a unit.
    #[test]
    fn a_missing_unit_is_an_error_with_a_fix() {
        assert_eq!(duration("150ms"), Ok(Duration::from_millis(150)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("30").expect_err("unit").fix, "write \"30s\"");
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("0"), Ok(0));
        let wrong = size("50MB").expect_err("decimal unit");
        assert!(wrong.fix.starts_with("write \"50MiB\""), "{}", wrong.fix);
        for text in [
            "",
            "s",
            "-5s",
            "1.5s",
            "5 minutes",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text:?}");
            assert!(size(text).is_err(), "{text:?}");
        }
    }

    /// A shown value can be read back and has the same meaning.
    #[test]
    fn shown_values_read_back() {
        for text in ["150ms", "5s", "90m", "2h", "30d", "0s"] {
            let value = duration(text).expect(text);
            assert_eq!(show_duration(value), text);
        }
        for text in ["1B", "64KiB", "50MiB", "1GiB", "0B"] {
            let value = size(text).expect(text);
            assert_eq!(show_size(value), text);
        }
    }
}
