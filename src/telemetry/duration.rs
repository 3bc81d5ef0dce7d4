//! How durations are written for people, in the output of commands and in notifications. Programs get milliseconds.

use std::time::Duration;

/// A duration with its two largest units, of which the smaller one is left out if it is 0: `250ms`, `3.2s`, `34s`, `2m 52s`,
/// `3h 12m`, `2d 4h`. Always rounded down.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    };
    match seconds {
        0 if time.is_zero() => "0s".to_owned(),
        0 => format!("{}ms", time.as_millis()),
        1..10 => match time.subsec_millis() / 100 {
            0 => format!("{seconds}s"),
            tenths => format!("{seconds}.{tenths}s"),
        },
        10..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two durations that differ by more than a sixtieth are written differently, and in few characters.
    #[test]
    fn a_duration_has_two_units() {
        for (milliseconds, shown) in [
            (0, "0s"),
            (7, "7ms"),
            (999, "999ms"),
            (1000, "1s"),
            (3299, "3.2s"),
            (9999, "9.9s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (172_000, "2m 52s"),
            (3_599_000, "59m 59s"),
            (7_200_000, "2h"),
            (11_579_000, "3h 12m"),
            (86_399_000, "23h 59m"),
            (259_199_000, "2d 23h"),
            (31_536_000_000, "365d"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), shown);
        }
    }
}
