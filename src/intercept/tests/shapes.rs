//! What is blamed first: content, and a shape only for what no content explains. Valid mail has shapes too.

use super::*;

/// The shape of all of a flood.
const SHAPE: [(Aspect, u64); 2] = [(Aspect::Type, 99), (Aspect::Size, 15)];

/// A message of that shape whose text has so much in common with all others of the flood that a band is equal in so many of ten.
fn alike(rng: &mut StdRng, of_ten: u32) -> Arc<Fingerprint> {
    let bands = (0..8).map(|at| match rng.random_ratio(of_ten, 10) {
        true => (Aspect::Near, at << 1 | 1),
        false => (Aspect::Near, rng.random::<u64>() | 1),
    });
    let broad: Vec<(Aspect, u64)> = bands.chain(SHAPE).collect();
    fingerprint(rng.random(), &broad)
}

/// Law 3: a flood of texts that are nearly the same is blamed for its text, as soon as three of its scans are slow. Nothing is
/// held for the shape that it has, which a letter of somebody else may have as well.
#[tokio::test(start_paused = true)]
async fn a_flood_that_shares_its_text_is_not_blamed_for_its_shape() {
    for seed in 0..3 {
        let mut world = World::new();
        world.rng = StdRng::seed_from_u64(seed);
        world.minute(|rng| alike(rng, 6));
        let rules = world.made.iter().map(|(_, i)| i.pattern.to_string());
        let of_shape: Vec<String> = rules.filter(|of| !of.starts_with("nearly")).collect();
        assert_eq!(of_shape, [""; 0], "seed {seed}");
        let letter = fingerprint(4711, &SHAPE);
        assert!(!world.is_parked(&letter) && !world.arrives(&letter, false));
        let held = world.held.get(&true).copied().unwrap_or(0);
        assert!(held > 100, "seed {seed}: {held} of the flood are held");
    }
}

/// Where only a part of a flood shares its text, the rest has nothing in common but its shape, and is blamed for that.
#[tokio::test(start_paused = true)]
async fn what_no_content_explains_is_blamed_for_its_shape() {
    let mut world = World::new();
    world.minute(|rng| {
        let of_ten = if rng.random_bool(0.6) { 10 } else { 0 };
        alike(rng, of_ten)
    });
    assert!(
        world.arrives(&fingerprint(4711, &SHAPE), true),
        "{:?}",
        world.made
    );
    assert!(world.slow.len() <= 12, "{} scans", world.slow.len());
    assert!(world.held[&true] > 400, "the flood is held");
}
