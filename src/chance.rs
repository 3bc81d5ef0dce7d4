//! Chance: the one place that randomness comes from, so that a simulation can replay it from one seed.

use rand::Rng;

/// A source of randomness for jitter and choices; not for secrets.
#[cfg(not(test))]
pub fn rng() -> impl Rng {
    rand::rng()
}

#[cfg(test)]
pub use seeded::{rng, seed};

/// In tests a thread can be told what chance will bring.
#[cfg(test)]
mod seeded {
    use std::cell::Cell;
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::Rng;
    use crate::deadline::wall_clock;

    thread_local! {
        static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Everything random on this thread follows from `seed` and the time, until there is none again. Not from what was
    /// drawn before: what the runtime does at one moment it does in no order that could be replayed.
    pub fn seed(seed: Option<u64>) {
        SEED.set(seed);
    }

    /// As the one for production, or what this thread's seed brings now.
    pub fn rng() -> impl Rng {
        let Some(seed) = SEED.get() else {
            return StdRng::from_rng(&mut rand::rng());
        };
        let mut hasher = DefaultHasher::new();
        (seed, wall_clock().as_nanosecond()).hash(&mut hasher);
        StdRng::seed_from_u64(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::RngExt as _;

    use super::*;
    use crate::deadline::set_wall_clock;

    /// What is replayed must come out the same, and only while it is replayed.
    #[tokio::test(start_paused = true)]
    async fn a_seed_decides_what_chance_brings() {
        set_wall_clock(Some(jiff::Timestamp::UNIX_EPOCH));
        let draw = || -> u64 { rng().random() };
        seed(Some(7));
        let first = draw();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_ne!(draw(), first, "time goes on");
        set_wall_clock(Some(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(draw(), first);
        seed(None);
        assert_ne!(draw(), first);
        set_wall_clock(None);
    }
}
