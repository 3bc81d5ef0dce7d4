//! Worlds in which valid mail has something in common with what an engine cannot do, by accident or because it has good
//! reason to.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::plan::{Arrival, Event, Nature, Plan, RECIPIENTS, SENDERS};

/// Words of a letter: some 5 KiB.
const LETTER_WORDS: usize = 800;
/// Words of a flood's message: some 40 KiB. With a letter it has 3 % of its shingles in common, and in one of 140 letters a
/// band of its near fingerprint.
const FLOOD_WORDS: usize = 6000;
/// Messages in flight when an engine goes away on one of them.
const TOGETHER: u32 = 12;

impl Plan {
    /// Letters of known senders, and from twenty seconds on a flood of long texts of the same vocabulary that the first engine
    /// cannot do: copies of one, or each with other words.
    pub(super) fn of_words(seed: u64, is_other: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::still(seed, 3, 2);
        let same = rng.random();
        for (nature, from, rate) in [(Nature::Valid, 0, 8), (Nature::Poison, 20_000, 4)] {
            for _ in 0..(60_000 - from) * rate / 1000 {
                let body = rng.random();
                let arrival = match nature {
                    Nature::Valid => {
                        let sender = SENDERS[rng.random_range(0..2)];
                        letter(&mut rng, sender, (body, LETTER_WORDS), &[])
                    }
                    _ => {
                        let words = if is_other { body } else { same };
                        letter(&mut rng, SENDERS[2], (words, FLOOD_WORDS), &[])
                    }
                };
                let arrival = Arrival { nature, ..arrival };
                let at = Duration::from_millis(rng.random_range(from..60_000));
                plan.events.push((at, Event::Arrival(arrival)));
            }
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    /// 150 good messages; four of strangers with one document beside a part that hangs, the same in all or another in each;
    /// then ten of known senders with the document alone, two at a time, and a second and a half after each two one of a
    /// stranger.
    pub(super) fn beside(seed: u64, is_same: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::still(seed, 1, 1);
        let (document, part) = (rng.random(), rng.random());
        let mut add = |at: u64, arrival| {
            let at = Duration::from_millis(at);
            plan.events.push((at, Event::Arrival(arrival)));
        };
        for _ in 0..150 {
            let (sender, body) = (SENDERS[rng.random_range(0..2)], rng.random());
            let at = rng.random_range(0..30_000);
            add(at, letter(&mut rng, sender, (body, 40), &[]));
        }
        for _ in 0..4 {
            let part = if is_same { part } else { rng.random() };
            let attached = [(document, false), (part, true)];
            let words = (rng.random(), 40);
            let bad = letter(&mut rng, SENDERS[2], words, &attached);
            let nature = Nature::Poison;
            add(rng.random_range(40_000..41_000), Arrival { nature, ..bad });
        }
        let mut alone = |at: u64, sender| {
            let words = (rng.random(), 40);
            add(at, letter(&mut rng, sender, words, &[(document, false)]));
        };
        for nth in 0..5 {
            let at = 42_000 + nth * 3000 + seed * 37 % 1000;
            alone(at, SENDERS[0]);
            alone(at, SENDERS[1]);
            // One of those may be slow by accident, and what was cleared is open again until the next.
            if nth < 4 {
                alone(at + 1500, SENDERS[3]);
            }
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    /// 150 good messages; then twelve at once, on one of which the engine goes away each time, and good mail meanwhile.
    pub(super) fn of_killer(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::still(seed, 1, 1);
        let mut add = |at: u64, nature, rng: &mut StdRng| {
            let words = (rng.random(), 40);
            let sender = match nature {
                Nature::Valid => SENDERS[rng.random_range(0..3)],
                _ => SENDERS[2],
            };
            let arrival = letter(rng, sender, words, &[]);
            let event = Event::Arrival(Arrival { nature, ..arrival });
            plan.events.push((Duration::from_millis(at), event));
        };
        for _ in 0..150 {
            let at = rng.random_range(0..30_000);
            add(at, Nature::Valid, &mut rng);
        }
        let killer = rng.random_range(0..TOGETHER);
        for nth in 0..TOGETHER {
            let nature = match nth == killer {
                true => Nature::Killer,
                false => Nature::Valid,
            };
            add(31_000, nature, &mut rng);
        }
        for _ in 0..30 {
            let at = rng.random_range(31_000..60_000);
            add(at, Nature::Valid, &mut rng);
        }
        plan.events.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Nothing happens yet.
    fn still(seed: u64, engines: usize, coverage: usize) -> Self {
        Self {
            seed,
            engines,
            slots: 12,
            coverage,
            attempts: 1,
            events: Vec::new(),
            ..Self::new(seed)
        }
    }
}

fn letter(
    rng: &mut StdRng,
    sender: Option<&'static str>,
    words: (u64, usize),
    attached: &[(u64, bool)],
) -> Arrival {
    Arrival {
        nature: Nature::Valid,
        body: rng.random(),
        alike: None,
        words: Some(words),
        attached: attached.to_vec(),
        sender,
        recipients: vec![RECIPIENTS[rng.random_range(0..4)]],
        queued: false,
    }
}
