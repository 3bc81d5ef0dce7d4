//! The laws of snapshots: a snapshot restores the baseline whatever happened to the clock, and nothing else is read as a
//! snapshot.

use rand::rngs::StdRng;
use rand::{Rng, RngExt as _, SeedableRng};

use super::*;
use crate::intercept::baseline::tests::message;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, SenderReputation, Trait};

const DAY: Duration = Duration::from_secs(86_400);

fn wall(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

/// A message of one sender through one client's network.
fn mail(rng: &mut StdRng, sender: u64) -> Fingerprint {
    let mut fingerprint = message(rng, 2);
    let mut broad = fingerprint.broad.to_vec();
    for (aspect, value) in [(Aspect::SenderDomain, sender), (Aspect::Client, 7)] {
        broad.push(Trait { aspect, value });
    }
    fingerprint.broad = broad.into();
    fingerprint
}

/// Adds two messages of each sender, after which the sender is known.
fn meet(baseline: &mut Baseline, now: Instant, senders: std::ops::Range<u64>) {
    let mut rng = StdRng::seed_from_u64(senders.start);
    for sender in senders {
        for _ in 0..2 {
            baseline.add(now, &mail(&mut rng, sender));
        }
    }
}

fn is_known(baseline: &Baseline, sender: u64) -> bool {
    let mail = mail(&mut StdRng::seed_from_u64(99), sender);
    baseline.reputation(&mail) == SenderReputation::Known
}

/// A snapshot restores senders, counts, and the noise of the sketch.
#[tokio::test(start_paused = true)]
async fn what_was_known_is_known_after() {
    let now = Instant::now();
    let mut before = Baseline::new(now);
    meet(&mut before, now, 0..50);
    before.noise = 0.25;
    let octets = before.encode(now, wall(1000));
    let after = Baseline::decode(&octets, now, wall(1000)).expect("a snapshot");
    assert_eq!(after.rows, before.rows);
    assert_eq!(after.senders, before.senders);
    assert_eq!(
        (after.messages, after.noise),
        (before.messages, before.noise)
    );
    assert_eq!((after.halves, after.turns), (before.halves, before.turns));
    assert!(is_known(&after, 0) && !is_known(&after, 50));
    assert_eq!(after.encode(now, wall(1000)), octets);
}

/// Generations last as long as without a restart: time with and without a running relay counts.
#[tokio::test(start_paused = true)]
async fn generations_go_on_over_a_restart() {
    let now = Instant::now();
    for (away, turns) in [(2 * DAY, false), (4 * DAY, true)] {
        let mut before = Baseline::new(now);
        meet(&mut before, now, 0..1);
        before.turns = now;
        meet(&mut before, now, 1..2);
        let later = now + 4 * DAY;
        let octets = before.encode(later, wall(0));
        let back = wall(0) + away;
        let mut after = Baseline::decode(&octets, later, back).expect("a snapshot");
        meet(&mut after, later, 2..3);
        assert!(is_known(&after, 1), "the newer generation");
        assert_eq!(is_known(&after, 0), !turns, "{away:?} later, the older one");
    }
}

/// A clock that went back neither shortens nor prolongs the time that is left. A clock that leapt ahead by years ends only
/// the periods that have begun: the newer generation stays known for one whole generation.
#[tokio::test(start_paused = true)]
async fn no_clock_keeps_senders_for_ever_or_forgets_them() {
    let now = Instant::now();
    let mut before = Baseline::new(now);
    meet(&mut before, now, 0..1);
    let later = now + DAY;
    let octets = before.encode(later, wall(2_000_000_000));
    let at = |seconds| Baseline::decode(&octets, later, wall(seconds)).expect("a snapshot");
    for back in [1_999_999_999, 0, -1_000_000_000] {
        let after = at(back);
        assert_eq!(after.turns, later + 6 * DAY);
        assert_eq!(after.halves, later, "it was overdue");
    }
    let mut after = at(200_000_000_000);
    assert_eq!((after.turns, after.halves), (later, later));
    meet(&mut after, later, 1..2);
    assert!(is_known(&after, 0), "it has become the older generation");
    meet(&mut after, later + 6 * DAY, 2..3);
    assert!(is_known(&after, 0), "for as long as one lasts");
    meet(&mut after, later + 7 * DAY, 3..4);
    assert!(!is_known(&after, 0), "and no longer");
}

/// An age beyond any possible value is no error, and keeps nothing longer than its period.
#[tokio::test(start_paused = true)]
async fn a_snapshot_from_the_future_ends_in_time() {
    let now = Instant::now();
    let mut before = Baseline::new(now);
    before.turns = now + 1000 * DAY;
    let octets = before.encode(now, Timestamp::MAX);
    let after = Baseline::decode(&octets, now, Timestamp::MIN).expect("a snapshot");
    assert_eq!(after.turns, now + GENERATION_DURATION);
}

fn small() -> Vec<u8> {
    let now = Instant::now();
    let mut baseline = Baseline::new(now);
    meet(&mut baseline, now, 0..1);
    baseline.encode(now, wall(1000))
}

fn decoded(octets: &[u8]) -> Result<Baseline, Unusable> {
    Baseline::decode(octets, Instant::now(), wall(1000))
}

/// The octets with the right checksum in place of the last ones.
fn sealed(mut octets: Vec<u8>) -> Vec<u8> {
    octets.truncate(octets.len().saturating_sub(CHECKSUM_OCTETS));
    let checksum = Sha256::digest(&octets);
    octets.extend_from_slice(&checksum);
    octets
}

/// A snapshot that was cut anywhere, or changed in any octet, is refused.
#[tokio::test(start_paused = true)]
async fn what_is_not_whole_is_not_read() {
    let whole = small();
    assert!(decoded(&whole).is_ok());
    let mut rng = StdRng::seed_from_u64(1);
    for at in 0..whole.len() {
        let cut = decoded(&whole[..at]).expect_err("it was cut");
        assert!(matches!(cut, Unusable::Foreign | Unusable::Damaged), "{at}");
        let mut changed = whole.clone();
        changed[at] ^= rng.random_range(1..=255_u8);
        assert!(decoded(&changed).is_err(), "octet {at} was changed");
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert_eq!(decoded(&longer).err(), Some(Unusable::Damaged));
    assert_eq!(decoded(&sealed(longer)).err(), Some(Unusable::Damaged));
}

/// Any octets with the right checksum are read as far as they make sense, and never beyond the bounds.
#[tokio::test(start_paused = true)]
async fn nothing_that_is_written_makes_the_reader_panic() {
    let whole = small();
    let mut rng = StdRng::seed_from_u64(2);
    for at in HEAD_OCTETS..whole.len() - CHECKSUM_OCTETS {
        let cut = sealed(whole[..at + CHECKSUM_OCTETS].to_vec());
        assert_eq!(decoded(&cut).err(), Some(Unusable::Damaged), "cut at {at}");
        let mut changed = whole.clone();
        rng.fill_bytes(&mut changed[at..]);
        if let Ok(read) = decoded(&sealed(changed)) {
            assert!(
                read.senders
                    .iter()
                    .all(|senders| senders.len() <= SENDERS_PER_GENERATION)
            );
        }
    }
}

/// A snapshot of this number of messages, this noise and the numbers after them, with the right checksum.
fn written(messages: u64, noise: f64, rest: &[u64]) -> Vec<u8> {
    let mut octets = SNAPSHOT_MAGIC.to_vec();
    octets.push(SNAPSHOT_VERSION);
    for value in [1000, 0, 0, messages] {
        number(&mut octets, value);
    }
    octets.extend(noise.to_le_bytes());
    for value in rest {
        number(&mut octets, *value);
    }
    octets.extend([0; CHECKSUM_OCTETS]);
    sealed(octets)
}

/// Values that no baseline has are refused, whoever wrote them, and no value allocates memory before it is checked.
#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_not_read() {
    const ALL: u64 = (SKETCH_ROWS * SKETCH_WIDTH) as u64;
    const NONE: [u64; 4] = [0, ALL, 0, 0];
    assert!(decoded(&written(1, 0.0, &NONE)).is_ok());
    assert!(decoded(&written(1, 0.0, &[0, ALL, 2, 7, 1, 9, 1, 0])).is_ok());
    for (messages, noise, rest, what) in [
        (u64::MAX, 0.0, &NONE[..], "messages"),
        (1, f64::NAN, &NONE, "noise that is no number"),
        (1, -1.0, &NONE, "noise below none"),
        (1, 0.0, &[0, 0, 0, ALL, 0, 0], "a run of none"),
        (1, 0.0, &[0, ALL + 1, 0, 0], "a run beyond the last counter"),
        (1, 0.0, &[1 << 32, 0, ALL - 1, 0, 0], "a counter"),
        (1, 0.0, &[0, ALL, u64::MAX], "senders without end"),
        (1, 0.0, &[0, ALL, 2, 7, 1, 0, 1, 0], "a sender twice"),
        (
            1,
            0.0,
            &[0, ALL, 2, u64::MAX, 1, 1, 1, 0],
            "a sender beyond the last",
        ),
        (1, 0.0, &[0, ALL, 1, 7, 1 << 32, 0], "a sender's messages"),
        (1, 0.0, &[0, ALL, 0, 0, 0], "more behind it"),
    ] {
        let read = decoded(&written(messages, noise, rest));
        assert_eq!(read.err(), Some(Unusable::Damaged), "{what}");
    }
    let whole = written(1, 0.0, &NONE);
    for first in [&[0xff; 11][..], &[&[0xff; 9][..], &[0x02]].concat()] {
        // In place of the 1000, which has two octets.
        let long = [&whole[..HEAD_OCTETS], first, &whole[HEAD_OCTETS + 2..]].concat();
        let read = decoded(&sealed(long));
        assert_eq!(
            read.err(),
            Some(Unusable::Damaged),
            "a number of {first:x?}"
        );
    }
}

/// Foreign files and files of a later version are distinguished from damaged ones: a later version's file can be used again.
#[tokio::test(start_paused = true)]
async fn what_another_program_wrote_is_told_apart() {
    let mut newer = small();
    newer[SNAPSHOT_MAGIC.len()] = SNAPSHOT_VERSION + 1;
    let unknown = Unusable::OtherVersion(SNAPSHOT_VERSION + 1);
    assert_eq!(decoded(&newer).err(), Some(unknown));
    for foreign in [&b""[..], b"SPWYBAS", b"SQLite format 3\0 and more of it"] {
        assert_eq!(decoded(foreign).err(), Some(Unusable::Foreign));
    }
}

/// The largest possible snapshot can be read again, and is within the limit.
#[tokio::test(start_paused = true)]
async fn a_full_one_is_bounded() {
    let now = Instant::now();
    let mut rng = StdRng::seed_from_u64(3);
    let mut full = Baseline::new(now);
    full.rows
        .as_flattened_mut()
        .fill_with(|| rng.random_range(1..20_000));
    for generation in &mut full.senders {
        *generation = std::iter::repeat_with(|| (rng.next_u64(), rng.random_range(1..500)))
            .take(SENDERS_PER_GENERATION)
            .collect();
    }
    let clock = std::time::Instant::now;
    let began = clock();
    let octets = full.encode(now, wall(1000));
    let encoded = began.elapsed();
    assert!(
        octets.len() <= Baseline::SNAPSHOT_OCTETS_MAX,
        "{}",
        octets.len()
    );
    let began = clock();
    let after = Baseline::decode(&octets, now, wall(1000)).expect("a snapshot");
    println!(
        "full: {} octets (at most {}), encoded in {encoded:?}, decoded in {:?}",
        octets.len(),
        Baseline::SNAPSHOT_OCTETS_MAX,
        began.elapsed()
    );
    assert_eq!(after.senders, full.senders);
    full.rows.as_flattened_mut().fill(u32::MAX);
    let octets = full.encode(now, wall(1000));
    assert!(
        octets.len() <= Baseline::SNAPSHOT_OCTETS_MAX,
        "{}",
        octets.len()
    );
}
