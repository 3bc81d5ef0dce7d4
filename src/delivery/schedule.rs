//! Schedule of the attempts for a deferred message.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use super::Settings;

/// Interval between attempts for a recipient whose domain no next hop takes. Such an attempt is only a look into the
/// configuration.
pub const UNROUTED_RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Time after which a recipient without a next hop is bounced: 5 days. RFC 5321 4.5.4.1 asks for at least 4 to 5 days.
pub const UNROUTED_GIVE_UP: Duration = Duration::from_secs(5 * 86_400);

/// Wait before the next attempt: `retry_first` after the first attempt, doubled after each further one, at most
/// `retry_max`.
///
/// Jitter shortens the wait by up to a quarter, so that messages deferred together do not return together. Jitter never
/// lengthens the wait, so `retry_max` stays an upper limit.
pub fn next_attempt(settings: &Settings, attempts: u32, rng: &mut impl Rng) -> Duration {
    let doublings = attempts.saturating_sub(1).min(31);
    let wait = settings
        .retry_first
        .saturating_mul(1 << doublings)
        .min(settings.retry_max);
    wait.mul_f64(rng.random_range(0.75..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Kind;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    fn settings() -> Settings {
        Settings::sample("hop", &[], Kind::sample())
    }

    /// Waits double, stay at most a quarter below the full wait, and never exceed the maximum, for every attempt count.
    #[test]
    fn waits_double_up_to_the_maximum() {
        let mut rng = StdRng::seed_from_u64(1);
        for (attempts, whole) in [
            (0, 60),
            (1, 60),
            (2, 120),
            (3, 240),
            (7, 3600),
            (u32::MAX, 3600),
        ] {
            for _ in 0..200 {
                let wait = next_attempt(&settings(), attempts, &mut rng).as_secs_f64();
                let whole = f64::from(whole);
                assert!((whole * 0.75..=whole).contains(&wait), "{attempts}: {wait}");
            }
        }
    }

    /// Messages deferred together return at different times.
    #[test]
    fn waits_differ() {
        let mut rng = StdRng::seed_from_u64(1);
        let waits: std::collections::HashSet<Duration> = (0..100)
            .map(|_| next_attempt(&settings(), 3, &mut rng))
            .collect();
        assert!(waits.len() > 90, "{}", waits.len());
    }
}
