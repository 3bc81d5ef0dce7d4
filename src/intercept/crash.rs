//! Crashes: which of the messages that an engine looked at made it go away. All its connections close at once, and each of
//! those messages may be the one. Those that end well afterwards are cleared; of the others half are scanned together at a
//! time, then half of those that met the next crash, until one is left that the engine goes away on by itself. Group testing
//! by binary splitting (Hwang, JASA 1972): the culprit of `k` messages is scanned `log2(k) + 2` times, and `2 log2(k) + 2`
//! times at most while other mail, and another culprit, is there as well.
//!
//! Mail that has just come in goes on meanwhile. What of it meets a crash is looked at last: the culprit was there before.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::message::{Fingerprint, MessageId};

/// Messages that are suspected at once, for each engine: more than are in flight at a crash where all slots were taken, and
/// their mail's next copies. What met a crash beyond that is not suspected; it may meet another.
const SUSPECTS: usize = 512;
/// Crashes of a message alone that convict it. One may have been a restart of the engine by a person.
const ALONE: u32 = 2;
/// A round ends after this long without all of its messages: those that did not come are tried later. The scan lane comes back
/// to deferred mail after 5, 10, 20 s.
const ROUND: Duration = Duration::from_secs(60);
/// A suspect that met no crash for so long is none any more: it went another way, or ended without anybody telling.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Culprits that are remembered, for each engine; the oldest go first. Each is one held message.
const CULPRITS: usize = 256;

/// A message that was in flight when its engine went away.
#[derive(Debug)]
struct Suspect {
    message: MessageId,
    fingerprint: Arc<Fingerprint>,
    /// Crashes that it met, those without another suspect, and rounds to which it did not come.
    met: u32,
    alone: u32,
    missed: u32,
    last: Instant,
}

/// One that makes its engine go away.
#[derive(Debug)]
pub(super) struct Culprit {
    pub(super) message: MessageId,
    pub(super) fingerprint: Arc<Fingerprint>,
    /// Crashes that it met.
    pub(super) met: u32,
}

/// The search in one engine.
#[derive(Debug)]
struct Search {
    suspects: Vec<Suspect>,
    /// Who may be scanned now, and since when. Empty only if there are no suspects.
    round: Vec<MessageId>,
    began: Instant,
    /// How many may be scanned together.
    size: usize,
    culprits: VecDeque<MessageId>,
}

/// What gates have to know.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Crashed {
    /// Suspects whose turn it is not.
    pub waits: Vec<MessageId>,
    /// Culprits.
    pub barred: Vec<MessageId>,
}

/// The searches in all engines.
#[derive(Debug, Default)]
pub(super) struct Crashes(HashMap<Arc<str>, Search>);

impl Crashes {
    /// The engine went away while it looked at these. The culprit, if that is clear now.
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
            size: 0,
            culprits: VecDeque::new(),
        });
        search.crashed(now, in_flight)
    }

    /// A scan has ended well. Whether that changes who may be scanned.
    pub(super) fn ended_well(&mut self, now: Instant, engine: &str, message: MessageId) -> bool {
        let search = self.0.get_mut(engine);
        search.is_some_and(|search| search.clear(now, message))
    }

    /// Lets time pass. Whether that changes who may be scanned.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        let mut changes = false;
        for search in self.0.values_mut() {
            changes |= search.tick(now);
        }
        changes
    }

    /// What the gate of an engine has to know.
    pub(super) fn of(&self, engine: &str) -> Crashed {
        let Some(search) = self.0.get(engine) else {
            return Crashed::default();
        };
        let suspects = search.suspects.iter().map(|s| s.message);
        Crashed {
            waits: suspects.filter(|m| !search.round.contains(m)).collect(),
            barred: search.culprits.iter().copied().collect(),
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
        let tested = self
            .suspects
            .iter()
            .filter(|s| ids.contains(&s.message))
            .count();
        for suspect in &mut self.suspects {
            if ids.contains(&suspect.message) {
                suspect.met += 1;
                suspect.alone += u32::from(tested == 1);
                (suspect.last, suspect.missed) = (now, 0);
            }
        }
        let is_first = self.suspects.is_empty();
        for (message, fingerprint) in in_flight {
            let is_known = self.suspects.iter().any(|s| s.message == *message);
            if is_known || self.culprits.contains(message) || self.suspects.len() >= SUSPECTS {
                continue;
            }
            self.suspects.push(Suspect {
                message: *message,
                fingerprint: fingerprint.clone(),
                met: 1,
                alone: u32::from(ids.len() == 1),
                missed: 0,
                last: now,
            });
        }
        let culprit = self.suspects.iter().position(|s| s.alone >= ALONE);
        let culprit = culprit.map(|at| self.suspects.remove(at));
        if let Some(culprit) = &culprit {
            if self.culprits.len() >= CULPRITS {
                self.culprits.pop_front();
            }
            self.culprits.push_back(culprit.message);
        }
        self.size = match (is_first, tested) {
            (true, _) => ids.len() / 2,
            // All of it was fresh mail: the search goes on as it was.
            (false, 0) => self.size,
            (false, tested) => tested / 2,
        };
        self.next_round(now);
        culprit.map(|suspect| Culprit {
            message: suspect.message,
            fingerprint: suspect.fingerprint,
            met: suspect.met,
        })
    }

    fn clear(&mut self, now: Instant, message: MessageId) -> bool {
        let before = self.suspects.len();
        self.suspects.retain(|s| s.message != message);
        if self.suspects.len() == before {
            return false;
        }
        self.round.retain(|m| *m != message);
        if self.round.is_empty() {
            // None of them was it: the others need not wait as long.
            self.size = self.size.saturating_mul(2);
            self.next_round(now);
        }
        true
    }

    fn tick(&mut self, now: Instant) -> bool {
        let before = self.suspects.len();
        self.suspects.retain(|s| now < s.last + FORGOTTEN);
        let is_over = !self.round.is_empty() && now >= self.began + ROUND;
        if is_over {
            for suspect in &mut self.suspects {
                suspect.missed += u32::from(self.round.contains(&suspect.message));
            }
            self.next_round(now);
        }
        is_over || self.suspects.len() < before
    }

    /// Those that met their first crash first, but for those that did not come when it was their turn.
    fn next_round(&mut self, now: Instant) {
        self.suspects.sort_by_key(|s| s.missed);
        let next = self.suspects.iter().take(self.size.max(1));
        self.round = next.map(|s| s.message).collect();
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

    /// An engine that goes away whenever it gets one of some messages, and mail that comes in meanwhile.
    struct World {
        rng: StdRng,
        now: Instant,
        engine: Arc<str>,
        crashes: Crashes,
        culprits: HashSet<MessageId>,
        scans: HashMap<MessageId, u32>,
        /// Deferred: to be scanned as soon as the search lets them.
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

        /// Those are in flight together.
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

        /// What may go is scanned, with some mail that has just come in.
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

    /// Law 7: of up to 64 messages in flight the one or two that the engine goes away on are found by halving, each in
    /// 2 log2(k) + 2 scans at most, whoever else is met by their crashes; everybody else is scanned well in the end.
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

    /// A restart of an engine meets innocent mail only: none is held, and a few rounds later nobody is suspected.
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

    /// Suspects that never come back keep nobody waiting for ever, and are forgotten; there are never too many.
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
        assert!(waits.len() < SUSPECTS, "{} wait", waits.len());
        world.now += ROUND;
        assert!(world.crashes.tick(world.now));
        let later = world.crashes.of(&engine).waits;
        let has_turn = |m: &MessageId| waits.contains(m) && !later.contains(m);
        assert!(waits.iter().any(has_turn), "it is the turn of others");
        world.now += FORGOTTEN;
        world.crashes.tick(world.now);
        assert_eq!(world.crashes.of(&engine), Crashed::default());
    }
}
