//! Shapes: valid mail has shapes too.

use super::*;

/// The shape of all messages of a flood.
const SHAPE: [(Aspect, u64); 2] = [(Aspect::Type, 99), (Aspect::Size, 15)];

/// A message of that shape. Each band of its text equals the band of the rest of the flood in `of_ten` of ten cases.
fn alike(rng: &mut StdRng, of_ten: u32) -> Arc<Fingerprint> {
    let bands = (0..8).map(|at| match rng.random_ratio(of_ten, 10) {
        true => (Aspect::Near, at << 1 | 1),
        false => (Aspect::Near, rng.random::<u64>() | 1),
    });
    let broad: Vec<(Aspect, u64)> = bands.chain(SHAPE).collect();
    fingerprint(rng.random(), &broad)
}

/// Law 3: if the messages of a flood are alike in their content, a message that shares only their shape is not held, and
/// gates do not see that shape. Only messages with some of that content are blamed.
#[tokio::test(start_paused = true)]
async fn what_shares_only_its_shape_with_a_flood_of_texts_is_not_held() {
    for seed in 0..3 {
        let mut world = World::new();
        world.rng = StdRng::seed_from_u64(seed);
        world.minute(|rng| alike(rng, 6));
        assert!(world.holds());
        let letter = fingerprint(4711, &SHAPE);
        let ruling = world.learner.judge(world.now, MessageId::new(), &letter);
        assert_eq!(ruling.exemption, Exemption::Shape, "seed {seed}");
        assert!(!ruling.shown.has(letter.broad[0]));
        let of_flood = alike(&mut world.rng, 6);
        let ruling = world.learner.judge(world.now, MessageId::new(), &of_flood);
        assert_eq!(ruling.exemption, Exemption::None, "seed {seed}");
        assert!(ruling.shown.has(letter.broad[0]));
    }
}

/// If only a part of a flood shares its text, the rest has nothing in common but its shape, and is blamed for the shape.
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
