//! Crashes: which message made an engine go away. All connections of the engine close at once, and each message in flight
//! may be the culprit. Messages that end well afterwards are cleared. Of the others half are scanned together at a time,
//! then half of those that met the next crash, until one is left that the engine goes away on by itself. Group testing by
//! binary splitting (Hwang, JASA 1972): the culprit of `k` messages is scanned `log2(k) + 2` times, and `2 log2(k) + 2`
//! times at most while other mail, and another culprit, is there as well.
//!
//! Messages that arrive meanwhile are scanned as usual. If they meet a crash they are tested last, because the culprit was
//! there before them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Fingerprint, MessageId};

/// Suspects of one engine at once: more than the messages in flight at a crash with all slots taken, and the next copies of
/// these messages. A message beyond that is not suspected; it may meet another crash.
const SUSPECTS_MAX: usize = 512;
/// Crashes without another suspect in flight that bar a message: 2, because one may have been a restart of the engine by a
/// person. Before the last of them the engine must have been well with another message; otherwise it goes away on
/// everything.
const LONE_CRASHES_TO_BAR: u32 = 2;
/// A culprit is barred from the engine for 30 min, and for twice as long each time that it is found again, with 6 doublings
/// at most (32 h). The bar ends because the culprit may have been found by chance, and an engine can bear to go away twice
/// in half an hour.
const BAR_DURATION: Duration = Duration::from_secs(1800);
const BAR_DOUBLINGS_MAX: u32 = 6;
/// A round ends after 60 s, also without all of its messages: the missing ones are tried later. The scan lane comes back to
/// deferred messages after 5, 10, 20 s.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);
/// A suspect that met no crash for 1 h is no longer suspected: it left by another path, or its end was not reported.
const SUSPECT_AGE_MAX: Duration = Duration::from_secs(3600);
/// Culprits remembered for each engine; the oldest go first. Each culprit is one held message.
const CULPRITS_MAX: usize = 256;

/// A message that was in flight when its engine went away.
#[derive(Debug)]
struct Suspect {
    message: MessageId,
    fingerprint: Arc<Fingerprint>,
    /// Crashes that the message met, and those of them without another suspect in flight.
    met: u32,
    alone: u32,
    /// Turns of this message that brought no result. Suspects with fewer such turns go first.
    behind: u32,
    last: Instant,
}

/// A message that makes its engine go away.
#[derive(Debug)]
pub(super) struct Culprit {
    pub(super) message: MessageId,
    pub(super) fingerprint: Arc<Fingerprint>,
    /// Crashes that the message met.
    pub(super) met: u32,
}

/// A culprit that is barred from its engine. `times` counts how often the culprit was found again.
#[derive(Debug)]
struct Barred {
    message: MessageId,
    until: Instant,
    times: u32,
}

/// The search for culprits in one engine.
#[derive(Debug)]
struct Search {
    suspects: Vec<Suspect>,
    /// Suspects that may be scanned now, and since when. Empty only if there are no suspects.
    round: Vec<MessageId>,
    began: Instant,
    /// Suspects that met the last crash: one of those that are left caused it.
    group: Vec<MessageId>,
    /// Suspects that may be scanned together.
    size: usize,
    /// Whether a scan has ended well since the last crash.
    is_well: bool,
    culprits: VecDeque<Barred>,
    /// Those of the culprits that are barred now.
    barred: Vec<MessageId>,
}

/// The messages that a gate must keep back because of crashes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Crashed {
    /// Suspects whose turn it is not.
    pub(super) waits: Vec<MessageId>,
    /// Culprits, which are barred from the engine.
    pub(super) barred: Vec<MessageId>,
}

/// The searches in all engines.
#[derive(Debug, Default)]
pub(super) struct Crashes(HashMap<Arc<str>, Search>);

impl Crashes {
    /// The engine went away while it scanned these messages. Returns the culprit if this crash makes it known.
    pub(super) fn crashed(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        in_flight: &[(MessageId, Arc<Fingerprint>)],
    ) -> Option<Culprit> {
        let search = self.0.entry(engine.clone()).or_insert_with(|| Search {
            suspects: Vec::new(),
            round: Vec::new(),
            began: now,
            group: Vec::new(),
            size: 0,
            is_well: true,
            culprits: VecDeque::new(),
            barred: Vec::new(),
        });
        search.crashed(now, in_flight)
    }

    /// A scan has ended well. Returns whether that changes which messages may be scanned.
    pub(super) fn ended_well(&mut self, now: Instant, engine: &str, message: MessageId) -> bool {
        let search = self.0.get_mut(engine);
        search.is_some_and(|search| search.clear(now, message))
    }

    /// Ends rounds, bars and suspicions that are over. Returns whether that changes which messages may be scanned.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        let mut changes = false;
        for search in self.0.values_mut() {
            changes |= search.tick(now);
        }
        changes
    }

    /// The engine that the message is barred from, because the engine goes away on it.
    pub(super) fn barred_from(&self, message: MessageId) -> Option<&Arc<str>> {
        let mut all = self.0.iter();
        let found = all.find(|(_, search)| search.barred.contains(&message));
        found.map(|(engine, _)| engine)
    }

    /// The messages that the gate of the engine must keep back.
    pub(super) fn of(&self, engine: &str) -> Crashed {
        let Some(search) = self.0.get(engine) else {
            return Crashed::default();
        };
        let suspects = search.suspects.iter().map(|s| s.message);
        Crashed {
            waits: suspects.filter(|m| !search.round.contains(m)).collect(),
            barred: search.barred.clone(),
        }
    }
}

impl Search {
    fn crashed(
        &mut self,
        now: Instant,
        in_flight: &[(MessageId, Arc<Fingerprint>)],
    ) -> Option<Culprit> {
        let ids: Vec<MessageId> = in_flight.iter().map(|(message, _)| *message).collect();
        let before: Vec<MessageId> = self.suspects.iter().map(|s| s.message).collect();
        let tested = before.iter().filter(|m| ids.contains(m)).count();
        for suspect in &mut self.suspects {
            if ids.contains(&suspect.message) {
                suspect.met += 1;
                suspect.last = now;
                // Other suspects go first, to show whether the engine is well with them.
                suspect.alone += u32::from(tested == 1);
                suspect.behind += u32::from(tested == 1);
            }
        }
        let is_first = self.suspects.is_empty();
        for (message, fingerprint) in in_flight {
            let is_known = self.suspects.iter().any(|s| s.message == *message);
            if is_known || self.barred.contains(message) || self.suspects.len() >= SUSPECTS_MAX {
                continue;
            }
            self.suspects.push(Suspect {
                message: *message,
                fingerprint: fingerprint.clone(),
                met: 1,
                alone: u32::from(ids.len() == 1),
                behind: 0,
                last: now,
            });
        }
        let is_culprit = |s: &Suspect| {
            s.alone >= LONE_CRASHES_TO_BAR && ids.contains(&s.message) && self.is_well
        };
        let culprit = self.suspects.iter().position(is_culprit);
        let culprit = culprit.map(|at| self.suspects.remove(at));
        if let Some(culprit) = &culprit {
            self.bar(now, culprit.message);
        }
        self.is_well = false;
        // If only messages that were no suspects before were in flight, the search goes on as before.
        if is_first || tested > 0 {
            let was_there = |m: &MessageId| is_first || before.contains(m);
            self.group = ids.into_iter().filter(was_there).collect();
            self.size = self.group.len() / 2;
        }
        self.next_round(now);
        culprit.map(|suspect| Culprit {
            message: suspect.message,
            fingerprint: suspect.fingerprint,
            met: suspect.met,
        })
    }

    fn bar(&mut self, now: Instant, message: MessageId) {
        let before = self.culprits.iter().position(|c| c.message == message);
        let before = before.and_then(|at| self.culprits.remove(at));
        let times = before.map_or(0, |before| before.times + 1);
        if self.culprits.len() >= CULPRITS_MAX {
            self.culprits.pop_front();
        }
        self.culprits.push_back(Barred {
            message,
            until: now + BAR_DURATION.saturating_mul(1 << times.min(BAR_DOUBLINGS_MAX)),
            times,
        });
        self.look_at_barred(now);
    }

    /// Updates which culprits are barred now. Returns whether that has changed.
    fn look_at_barred(&mut self, now: Instant) -> bool {
        let kept = self.culprits.iter().filter(|c| now < c.until);
        let kept: Vec<MessageId> = kept.map(|c| c.message).collect();
        let changes = kept != self.barred;
        self.barred = kept;
        changes
    }

    fn clear(&mut self, now: Instant, message: MessageId) -> bool {
        self.is_well = true;
        let before = self.suspects.len();
        self.suspects.retain(|s| s.message != message);
        if self.suspects.len() == before {
            return false;
        }
        self.round.retain(|m| *m != message);
        if self.round.is_empty() {
            // The round held no culprit. Next come half of the suspects left in the group, or twice as many as before if
            // none is left.
            let is_left = |s: &&Suspect| s.alone == 0 && self.group.contains(&s.message);
            let left = self.suspects.iter().filter(is_left).count();
            self.size = match left {
                0 => self.size.saturating_mul(2),
                left => left / 2,
            };
            self.next_round(now);
        }
        true
    }

    fn tick(&mut self, now: Instant) -> bool {
        let before = self.suspects.len();
        self.suspects.retain(|s| now < s.last + SUSPECT_AGE_MAX);
        let is_over = !self.round.is_empty() && now >= self.began + ROUND_TIMEOUT;
        if is_over {
            for suspect in &mut self.suspects {
                suspect.behind += u32::from(self.round.contains(&suspect.message));
            }
            self.next_round(now);
        }
        let is_free = self.look_at_barred(now);
        is_over || is_free || self.suspects.len() < before
    }

    /// Begins the next round, in the order in which suspects met their first crash. Suspects that had a turn without a
    /// result come later.
    fn next_round(&mut self, now: Instant) {
        self.suspects.sort_by_key(|s| s.behind);
        // A suspect that met a crash alone is scanned without other suspects: beside it they would only look more suspect.
        let is_single = self.suspects.first().is_some_and(|s| s.alone > 0);
        let size = if is_single { 1 } else { self.size.max(1) };
        let next = self.suspects.iter().filter(|s| is_single || s.alone == 0);
        self.round = next.take(size).map(|s| s.message).collect();
        self.began = now;
        if self.suspects.is_empty() {
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::message::Identity;

    fn fingerprint() -> Arc<Fingerprint> {
        Arc::new(Fingerprint {
            identity: Identity([0; 32]),
            exact: Box::new([]),
            broad: Box::new([]),
            attachments: Box::new([]),
        })
    }

    /// An engine that goes away on certain messages, and other messages that arrive meanwhile.
    struct World {
        rng: StdRng,
        now: Instant,
        engine: Arc<str>,
        crashes: Crashes,
        culprits: HashSet<MessageId>,
        scans: HashMap<MessageId, u32>,
        /// Deferred messages, which are scanned as soon as the search allows.
        waiting: Vec<MessageId>,
        convicted: Vec<MessageId>,
    }

    impl World {
        fn new(seed: u64) -> Self {
            Self {
                rng: StdRng::seed_from_u64(seed),
                now: Instant::now(),
                engine: "clamd".into(),
                crashes: Crashes::default(),
                culprits: HashSet::new(),
                scans: HashMap::new(),
                waiting: Vec::new(),
                convicted: Vec::new(),
            }
        }

        /// Scans these messages together.
        fn scan(&mut self, messages: Vec<MessageId>) {
            self.now += Duration::from_secs(1);
            for message in &messages {
                *self.scans.entry(*message).or_default() += 1;
            }
            if !messages.iter().any(|m| self.culprits.contains(m)) {
                for message in messages {
                    self.crashes.ended_well(self.now, &self.engine, message);
                    self.waiting.retain(|m| *m != message);
                }
                return;
            }
            let in_flight: Vec<_> = messages.iter().map(|m| (*m, fingerprint())).collect();
            let engine = self.engine.clone();
            let culprit = self.crashes.crashed(self.now, &engine, &in_flight);
            let new = messages.iter().filter(|m| !self.waiting.contains(m));
            self.waiting.extend(new.copied().collect::<Vec<_>>());
            if let Some(culprit) = culprit {
                self.waiting.retain(|m| *m != culprit.message);
                self.convicted.push(culprit.message);
            }
        }

        /// Scans the waiting messages that the search allows, together with some fresh messages.
        fn goes_on(&mut self, fresh: Vec<MessageId>) {
            let stays = self.crashes.of(&self.engine);
            let is_kept = |m: &MessageId| stays.waits.contains(m) || stays.barred.contains(m);
            let mut messages: Vec<MessageId> = self.waiting.clone();
            messages.retain(|m| !is_kept(m));
            messages.extend(fresh);
            self.scan(messages);
            self.crashes.tick(self.now);
        }
    }

    fn messages(count: usize) -> Vec<MessageId> {
        std::iter::repeat_with(MessageId::new).take(count).collect()
    }

    /// Law 7: of up to 64 messages in flight, the search finds the one or two that the engine goes away on by halving, each
    /// in 2 log2(k) + 2 scans at most, whatever other messages meet their crashes. All other messages are scanned well in
    /// the end.
    #[tokio::test(start_paused = true)]
    async fn culprits_are_found_by_halving_and_nobody_else_is_held() {
        for seed in 0..2000 {
            let mut world = World::new(seed);
            let k = world.rng.random_range(1..=64);
            let first = messages(k);
            world.culprits.insert(first[world.rng.random_range(0..k)]);
            // The other one is in flight as well, or comes in later.
            let mut late = None;
            match seed % 3 {
                0 => {}
                1 => {
                    world.culprits.insert(first[world.rng.random_range(0..k)]);
                }
                _ => {
                    let message = MessageId::new();
                    world.culprits.insert(message);
                    late = Some((world.rng.random_range(0..10), message));
                }
            }
            world.scan(first);
            for round in 0..500 {
                let fresh = world.rng.random_range(0..4);
                let mut fresh = messages(fresh);
                if let Some((_, message)) = late.take_if(|(at, _)| *at == round) {
                    fresh.push(message);
                }
                world.goes_on(fresh);
                if world.waiting.is_empty() && late.is_none() {
                    break;
                }
            }
            assert_eq!(world.waiting, [], "seed {seed}: all others were scanned");
            let convicted: HashSet<MessageId> = world.convicted.iter().copied().collect();
            assert_eq!(convicted, world.culprits, "seed {seed}");
            // As many as were in flight with it at most: fresh mail is in flight too.
            let most = 2 * (k + 3).next_power_of_two().ilog2() + 2;
            for culprit in &world.culprits {
                let scans = world.scans[culprit];
                assert!(
                    scans <= most,
                    "seed {seed}: {scans} of {most} scans, k = {k}"
                );
            }
        }
    }

    /// A restart of an engine meets innocent messages only: none is held, and a few rounds later none is suspected.
    #[tokio::test(start_paused = true)]
    async fn a_restart_convicts_nobody() {
        let mut world = World::new(1);
        let first = messages(1);
        let only = [(first[0], fingerprint())];
        let engine = world.engine.clone();
        assert!(world.crashes.crashed(world.now, &engine, &only).is_none());
        world.waiting = first;
        world.goes_on(Vec::new());
        assert_eq!(world.waiting, []);
        assert_eq!(world.crashes.of(&engine), Crashed::default());
    }

    /// If an engine goes away on everything, no message is blamed, however often it meets a crash. A message that was blamed
    /// is not barred from the engine for ever, but longer each time.
    #[tokio::test(start_paused = true)]
    async fn an_engine_that_goes_away_on_everything_convicts_nobody() {
        let mut world = World::new(1);
        let (engine, first) = (world.engine.clone(), MessageId::new());
        let only = [(first, fingerprint())];
        for _ in 0..10 {
            assert!(world.crashes.crashed(world.now, &engine, &only).is_none());
            world.now += ROUND_TIMEOUT;
        }
        let mut lasted = Vec::new();
        for _ in 0..2 {
            while world.crashes.of(&engine).barred.is_empty() {
                let other = MessageId::new();
                world.crashes.ended_well(world.now, &engine, other);
                world.crashes.crashed(world.now, &engine, &only);
            }
            let since = world.now;
            let end = since + BAR_DURATION * 10;
            while !world.crashes.of(&engine).barred.is_empty() && world.now < end {
                world.now += ROUND_TIMEOUT;
                world.crashes.tick(world.now);
            }
            lasted.push(world.now - since);
        }
        assert_eq!(lasted, [BAR_DURATION, BAR_DURATION * 2]);
    }

    /// Suspects that never come back do not keep others waiting for ever, and are forgotten. Their number is bounded.
    #[tokio::test(start_paused = true)]
    async fn suspects_that_do_not_come_are_passed_over() {
        let mut world = World::new(1);
        let engine = world.engine.clone();
        for _ in 0..20 {
            let messages = messages(64);
            let all: Vec<_> = messages.iter().map(|m| (*m, fingerprint())).collect();
            world.crashes.crashed(world.now, &engine, &all);
        }
        let waits = world.crashes.of(&engine).waits;
        assert!(waits.len() < SUSPECTS_MAX, "{} wait", waits.len());
        world.now += ROUND_TIMEOUT;
        assert!(world.crashes.tick(world.now));
        let later = world.crashes.of(&engine).waits;
        let has_turn = |m: &MessageId| waits.contains(m) && !later.contains(m);
        assert!(waits.iter().any(has_turn), "it is the turn of others");
        world.now += SUSPECT_AGE_MAX;
        world.crashes.tick(world.now);
        assert_eq!(world.crashes.of(&engine), Crashed::default());
    }
}
