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
/// Crashes of a message alone that convict it. One may have been a restart of the engine by a person; and before the last of
/// them the engine must have been well with other mail, or it goes away on everything.
const ALONE: u32 = 2;
/// A culprit is kept from the engine for so long, twice as long each time that it is found again, up to so many times: chance
/// may have convicted it, and an engine can bear to go away twice in half an hour.
const BARRED: Duration = Duration::from_secs(1800);
const DOUBLED: u32 = 6;
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
    /// Crashes that it met, and those without another suspect.
    met: u32,
    alone: u32,
    /// How often it was its turn and nothing is clear: then it is the turn of others.
    behind: u32,
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

/// A culprit that is kept from its engine, and how often it was found.
#[derive(Debug)]
struct Barred {
    message: MessageId,
    until: Instant,
    times: u32,
}

/// The search in one engine.
#[derive(Debug)]
struct Search {
    suspects: Vec<Suspect>,
    /// Who may be scanned now, and since when. Empty only if there are no suspects.
    round: Vec<MessageId>,
    began: Instant,
    /// Suspects that met the last crash: one of those that are left of them made it.
    group: Vec<MessageId>,
    /// How many may be scanned together.
    size: usize,
    /// Something was scanned well since the last crash.
    is_well: bool,
    culprits: VecDeque<Barred>,
    /// Those of them that are kept from it now.
    barred: Vec<MessageId>,
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
            group: Vec::new(),
            size: 0,
            is_well: true,
            culprits: VecDeque::new(),
            barred: Vec::new(),
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

    /// An engine that the message is kept from, as it goes away on it.
    pub(super) fn barred_from(&self, message: MessageId) -> Option<&Arc<str>> {
        let mut all = self.0.iter();
        let found = all.find(|(_, search)| search.barred.contains(&message));
        found.map(|(engine, _)| engine)
    }

    /// What the gate of an engine has to know.
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
                // Others go first, to show whether the engine is well with them.
                suspect.alone += u32::from(tested == 1);
                suspect.behind += u32::from(tested == 1);
            }
        }
        let is_first = self.suspects.is_empty();
        for (message, fingerprint) in in_flight {
            let is_known = self.suspects.iter().any(|s| s.message == *message);
            if is_known || self.barred.contains(message) || self.suspects.len() >= SUSPECTS {
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
        let is_culprit = |s: &Suspect| s.alone >= ALONE && ids.contains(&s.message) && self.is_well;
        let culprit = self.suspects.iter().position(is_culprit);
        let culprit = culprit.map(|at| self.suspects.remove(at));
        if let Some(culprit) = &culprit {
            self.bar(now, culprit.message);
        }
        self.is_well = false;
        // Where all of it was fresh mail the search goes on as it was.
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
        if self.culprits.len() >= CULPRITS {
            self.culprits.pop_front();
        }
        self.culprits.push_back(Barred {
            message,
            until: now + BARRED.saturating_mul(1 << times.min(DOUBLED)),
            times,
        });
        self.look_at_barred(now);
    }

    /// Whether that changes whom the engine is kept from.
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
            // None of them was it: half of the others that may be, or, if there are none, more than before.
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
        self.suspects.retain(|s| now < s.last + FORGOTTEN);
        let is_over = !self.round.is_empty() && now >= self.began + ROUND;
        if is_over {
            for suspect in &mut self.suspects {
                suspect.behind += u32::from(self.round.contains(&suspect.message));
            }
            self.next_round(now);
        }
        let is_free = self.look_at_barred(now);
        is_over || is_free || self.suspects.len() < before
    }

    /// In the order in which they met their first crash, but for those that had their turn.
    fn next_round(&mut self, now: Instant) {
        self.suspects.sort_by_key(|s| s.behind);
        // One that met a crash alone is scanned without other suspects: with them it would only make them suspect.
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

    /// An engine that goes away on everything convicts nobody, however often it meets the same message; nor is a convicted one
    /// kept from it for ever, but for longer each time.
    #[tokio::test(start_paused = true)]
    async fn an_engine_that_goes_away_on_everything_convicts_nobody() {
        let mut world = World::new(1);
        let (engine, first) = (world.engine.clone(), MessageId::new());
        let only = [(first, fingerprint())];
        for _ in 0..10 {
            assert!(world.crashes.crashed(world.now, &engine, &only).is_none());
            world.now += ROUND;
        }
        let mut lasted = Vec::new();
        for _ in 0..2 {
            while world.crashes.of(&engine).barred.is_empty() {
                let other = MessageId::new();
                world.crashes.ended_well(world.now, &engine, other);
                world.crashes.crashed(world.now, &engine, &only);
            }
            let since = world.now;
            let end = since + BARRED * 10;
            while !world.crashes.of(&engine).barred.is_empty() && world.now < end {
                world.now += ROUND;
                world.crashes.tick(world.now);
            }
            lasted.push(world.now - since);
        }
        assert_eq!(lasted, [BARRED, BARRED * 2]);
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
