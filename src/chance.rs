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
    use std::cell::RefCell;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::Rng;

    thread_local! {
        static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// Everything random on this thread follows from `seed`, until there is none again.
    pub fn seed(seed: Option<u64>) {
        SEEDED.set(seed.map(StdRng::seed_from_u64));
    }

    /// As the one for production, or a child of the thread's seed.
    pub fn rng() -> impl Rng {
        SEEDED.with_borrow_mut(|seeded| match seeded {
            Some(parent) => StdRng::from_rng(parent),
            None => StdRng::from_rng(&mut rand::rng()),
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt as _;

    use super::*;

    /// What is replayed must come out the same, and only while it is replayed.
    #[test]
    fn a_seed_decides_what_chance_brings() {
        let draw = || -> Vec<u64> { (0..9).map(|_| rng().random()).collect() };
        seed(Some(7));
        let first = draw();
        seed(Some(7));
        assert_eq!(draw(), first);
        seed(None);
        assert_ne!(draw(), first);
    }
}
