//! The only source of randomness in the crate, so that a simulation can replay all random choices from one seed.

use rand::Rng;

/// A random number generator for jitter and choices; not for secrets.
#[cfg(not(test))]
pub fn rng() -> impl Rng {
    rand::rng()
}

#[cfg(test)]
pub use seeded::{rng, seed};

/// In tests, a thread can have a seed that determines all random numbers.
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

    /// From now on, `seed` and the time determine all random numbers on this thread; `None` ends this. Earlier draws have no
    /// influence, because the runtime runs the tasks of one moment in an order that cannot be replayed.
    pub fn seed(seed: Option<u64>) {
        SEED.set(seed);
    }

    /// The generator of production, or a generator from the seed of this thread and the time.
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

    /// A replay draws the same random numbers, but only while the seed is set.
    #[tokio::test(start_paused = true)]
    async fn a_seed_determines_random_numbers() {
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
