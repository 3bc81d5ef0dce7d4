//! Numbers and durations in the reasons of proposals.

use std::time::Duration;

/// The shortest duration of 1, 2, 3, 5 or 8 in its decade that is not shorter; from a minute on, of 1, 1.5, 2, 3, 5, 10, 15, 20,
/// 30, 60 minutes; beyond that, whole hours.
pub(super) fn nice(duration: Duration) -> Duration {
    const SHORT_STEPS: [u64; 5] = [1, 2, 3, 5, 8];
    const LONG_STEPS_SECONDS: [u64; 10] = [60, 90, 120, 180, 300, 600, 900, 1200, 1800, 3600];
    let decades = [1, 10, 100, 1000, 10_000];
    let short = decades
        .iter()
        .flat_map(|ten| SHORT_STEPS.map(|step| Duration::from_millis(step * ten)));
    let short = short.filter(|step| step.as_secs() < 60);
    let mut steps = short.chain(LONG_STEPS_SECONDS.map(Duration::from_secs));
    let hours = || {
        let hours = duration.as_millis().div_ceil(3_600_000);
        Duration::from_secs(u64::try_from(hours).unwrap_or(u64::MAX / 3600) * 3600)
    };
    steps.find(|step| *step >= duration).unwrap_or_else(hours)
}

/// A duration as in the configuration.
pub fn text(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0ms".to_owned(),
        all if all % 60_000 == 0 => format!("{}m", all / 60_000),
        all if all % 1000 == 0 => format!("{}s", all / 1000),
        all => format!("{all}ms"),
    }
}

/// A measured duration for people, with two or three digits: `840 µs`, `12 ms`, `3.1 s`, `240 s`.
pub fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        0.0..0.001 => format!("{:.0} µs", seconds * 1e6),
        0.001..0.01 => format!("{:.1} ms", seconds * 1e3),
        0.01..1.0 => format!("{:.0} ms", seconds * 1e3),
        1.0..100.0 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

pub(super) fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        percent @ ..10.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

/// A number with its noun, with commas: `12,345 answers`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// A number with a comma before each three digits: `12,345`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
