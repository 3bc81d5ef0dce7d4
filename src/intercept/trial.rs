//! Trials: blame needs an experiment. What slow scans have in common is suspected, and that is all: a document beside a part
//! that hangs is in every message that hung. Mail of unknown senders waits on a suspicion; that of known senders not before
//! a message with the suspected trait, and with no other one, was scanned by itself and was slow. If it was quick, the trait
//! is cleared. That is the isolating step of delta debugging (Zeller, Hildebrandt, IEEE TSE 2002), with the mail that comes
//! in anyway as its test cases, one at a time for each trait.
//!
//! Gates see traits and not reasons: a message on trial, and what is cleared, is shown to them without the traits in question
//! ([`Ruling::shown`]), also a stranger's message where it is cleared for everybody; what they see of it is put together again
//! here ([`Trials::whole`]).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use super::key::Likeness;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, MessageId, Trait};

/// Slow scans that have not ended: more than engines have slots in all.
const HANGING: usize = 512;
/// One whose end nobody told is forgotten after this: twice what engines are allowed for a scan where nothing is configured
/// (150 s), so that it is no shorter than what holds a slot.
const UNENDED: Duration = Duration::from_secs(300);
/// Trials at once, and conclusions of trials that are remembered; the oldest go first. Each takes one slot of an engine or
/// took one, so there are hardly ever more than slots.
const TRIALS: usize = 256;
/// A trial that has not begun to be slow by then never reached its engine: it waits for a slot for 10 s at most, and is
/// called slow after 5 s at most.
const UNBEGUN: Duration = Duration::from_secs(15);
/// What was concluded holds as long as an interceptor does that is made for the first time: then things may have changed.
const CONCLUDED: Duration = Duration::from_secs(600);
/// Messages whose whole fingerprint is remembered, in each of two generations: so many are in the engines at once at most.
const WHOLE: usize = 2048;

/// What becomes of a message in which something is suspected.
#[derive(Debug)]
pub struct Ruling {
    /// What it is to be held for.
    pub mercy: Mercy,
    /// What gates may blame it for.
    pub shown: Arc<Fingerprint>,
}

/// Which interceptors that were learned hold a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mercy {
    /// All: nothing speaks for its sender.
    None,
    /// Those for content: it shares a shape with what is slow, and not what that is alike in.
    Shape,
    /// All but those for content that is nearly the same: others of the engine's class decide.
    Near,
    /// None.
    All,
}

/// What follows from what is known of a set of suspected traits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stand {
    /// Nothing is suspected.
    Free,
    /// It is the experiment.
    Tried,
    /// It waits for the end of another one.
    Waits,
    /// An experiment was slow.
    Accused,
}

/// A slow scan.
#[derive(Debug)]
struct Hanging {
    at: Instant,
    engine: Arc<str>,
    message: MessageId,
    fingerprint: Arc<Fingerprint>,
    is_overdue: bool,
}

/// A message that is scanned to find out.
#[derive(Debug)]
struct Trial {
    at: Instant,
    engine: Arc<str>,
    message: MessageId,
    suspects: BTreeSet<Key>,
    is_slow: bool,
}

/// What a message has of what is suspected.
#[derive(Debug, Default)]
struct Suspicion {
    keys: BTreeSet<Key>,
    /// All that the gates could blame it for, by accident included.
    traits: Vec<Trait>,
}

/// All trials.
#[derive(Debug, Default)]
pub(super) struct Trials {
    hanging: VecDeque<Hanging>,
    open: VecDeque<Trial>,
    /// Those that were slow.
    slow: VecDeque<Trial>,
    cleared: HashMap<(Arc<str>, Key), Instant>,
    whole: [HashMap<MessageId, Arc<Fingerprint>>; 2],
}

impl Trials {
    /// What becomes of a known sender's message. `rules` are the interceptors that were learned, each with its engine.
    pub(super) fn judge<'a>(
        &mut self,
        now: Instant,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
        rules: impl Iterator<Item = (&'a Arc<str>, &'a Likeness)> + Clone,
    ) -> Ruling {
        self.forget(now);
        let hanging = self.hanging.iter().map(|h| &h.engine);
        let engines: BTreeSet<Arc<str>> = hanging
            .chain(rules.clone().map(|(e, _)| e))
            .cloned()
            .collect();
        let mut stand = Stand::Free;
        let (mut trials, mut hidden) = (Vec::new(), Vec::new());
        for engine in engines {
            let of = rules
                .clone()
                .filter(|(e, _)| **e == engine)
                .map(|(_, like)| like);
            let Suspicion { mut keys, traits } = self.suspicion(&engine, message, fingerprint, of);
            keys.retain(|key| !self.is_cleared(now, &engine, *key));
            let here = self.stand(&engine, message, &keys);
            stand = stand.max(here);
            hidden.extend(traits);
            if here == Stand::Tried {
                trials.push((engine, keys));
            }
        }
        let mercy = match stand {
            Stand::Accused => Mercy::Near,
            Stand::Free | Stand::Tried | Stand::Waits => Mercy::All,
        };
        if hidden.is_empty() || stand >= Stand::Waits {
            let shown = fingerprint.clone();
            return Ruling { mercy, shown };
        }
        for (engine, suspects) in trials {
            let trial = Trial {
                at: now,
                engine,
                message,
                suspects,
                is_slow: false,
            };
            self.open
                .retain(|t| t.engine != trial.engine || t.message != message);
            push(&mut self.open, trial, TRIALS);
        }
        self.remember(message, fingerprint);
        let shown = Arc::new(fingerprint.without(&hidden));
        Ruling { mercy, shown }
    }

    /// What gates may blame a stranger's message for: all but content that a trial has cleared, which is cleared for
    /// everybody. A gate sees that it is in the scans that hang, and not that it hangs for what stands beside it.
    pub(super) fn shown<'a>(
        &mut self,
        now: Instant,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
        rules: impl Iterator<Item = (&'a Arc<str>, &'a Likeness)> + Clone,
    ) -> Arc<Fingerprint> {
        if self.cleared.is_empty() {
            return fingerprint.clone();
        }
        let is_free = |one: &&Trait| {
            let key = Key(**one, None);
            let cleared = |engine: &Arc<str>| self.cleared_at(now, engine, key);
            // What hangs alone since then has nothing else to blame.
            let hangs = |h: &Hanging| {
                let may_be_why = |at: Instant| h.at > at && is_alone(key, &h.fingerprint);
                h.fingerprint.has(**one) && cleared(&h.engine).is_none_or(may_be_why)
            };
            let is_suspected = |(engine, like): (&Arc<str>, &Likeness)| {
                like.key == key && cleared(engine).is_none()
            };
            self.cleared
                .keys()
                .any(|(engine, of)| *of == key && cleared(engine).is_some())
                && !self.hanging.iter().any(hangs)
                && !rules.clone().any(is_suspected)
        };
        let free: Vec<Trait> = fingerprint.exact.iter().filter(is_free).copied().collect();
        if free.is_empty() {
            return fingerprint.clone();
        }
        let hidden: Vec<Trait> = fingerprint
            .bands_within(&free)
            .chain(free.iter().copied())
            .collect();
        self.remember(message, fingerprint);
        Arc::new(fingerprint.without(&hidden))
    }

    /// What the message has in common with slow scans, and with what interceptors were made for. Bands that are equal by
    /// accident are no suspicion, but a gate would not know.
    fn suspicion<'a>(
        &self,
        engine: &str,
        message: MessageId,
        fingerprint: &Fingerprint,
        rules: impl Iterator<Item = &'a Likeness>,
    ) -> Suspicion {
        let mut found = Suspicion::default();
        let here = |h: &&Hanging| *h.engine == *engine && h.message != message;
        for slow in self.hanging.iter().filter(here) {
            let other = &slow.fingerprint;
            for one in fingerprint.canary_keys() {
                if !other.has(one) {
                    continue;
                }
                found.traits.push(one);
                let like = Likeness::of(Key(one, None), other);
                if like.matches(fingerprint) {
                    found.keys.insert(like.key);
                }
            }
        }
        for like in rules.filter(|like| like.matches(fingerprint)) {
            found.keys.insert(like.key);
            found.traits.extend(like.traits());
        }
        found
    }

    fn stand(&self, engine: &str, message: MessageId, suspects: &BTreeSet<Key>) -> Stand {
        if suspects.is_empty() {
            return Stand::Free;
        }
        let of = |t: &&Trial| *t.engine == *engine && t.message != message;
        let tried = |h: &Hanging| self.slow.iter().any(|t| t.message == h.message);
        // A whole copy of what hangs, and nothing else, is no different experiment.
        let is_copy = |h: &Hanging| {
            let exact = h.fingerprint.exact.iter();
            let suspected = exact
                .map(|one| Key(*one, None))
                .all(|key| suspects.contains(&key));
            *h.engine == *engine
                && h.message != message
                && !h.fingerprint.exact.is_empty()
                && suspected
                && !tried(h)
        };
        // Its own trial counts as any other's does: it hung.
        let mut slow = self.slow.iter().filter(|t| *t.engine == *engine);
        if slow.any(|t| t.suspects.is_subset(suspects)) || self.hanging.iter().any(is_copy) {
            return Stand::Accused;
        }
        // While one is in the engine only a message goes there as well in which less is suspected.
        let says_more = |t: &Trial| {
            t.is_slow && t.suspects.len() > suspects.len() && t.suspects.is_superset(suspects)
        };
        let mut others = self.open.iter().filter(of);
        let waits = others.any(|t| !t.suspects.is_disjoint(suspects) && !says_more(t));
        match waits {
            true => Stand::Waits,
            false => Stand::Tried,
        }
    }

    /// A scan has become slow. What a trial has shown by that, if it was one.
    pub(super) fn became_slow<'a>(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        (fingerprint, is_known): (&Arc<Fingerprint>, bool),
        rules: impl Iterator<Item = &'a Likeness>,
    ) -> Option<BTreeSet<Key>> {
        let suspects = match self.trial(engine, message) {
            Some(trial) => {
                trial.is_slow = true;
                Some(trial.suspects.clone())
            }
            None => None,
        };
        match &suspects {
            Some(suspects) => {
                let shown = Trial {
                    at: now,
                    engine: engine.clone(),
                    message,
                    suspects: suspects.clone(),
                    is_slow: true,
                };
                push(&mut self.slow, shown, TRIALS);
            }
            // What was cleared is slow without anything else to blame: it is open again.
            None if is_known => {
                let keys = self.suspicion(engine, message, fingerprint, rules).keys;
                if let [key] = keys.into_iter().collect::<Vec<_>>()[..]
                    && is_alone(key, fingerprint)
                {
                    self.cleared.remove(&(engine.clone(), key));
                }
            }
            None => {}
        }
        let hanging = Hanging {
            at: now,
            engine: engine.clone(),
            message,
            fingerprint: fingerprint.clone(),
            is_overdue: false,
        };
        push(&mut self.hanging, hanging, HANGING);
        suspects
    }

    /// A scan that was slow has run into its timeout.
    pub(super) fn timed_out(&mut self, engine: &str, message: MessageId) {
        let mut hanging = self.hanging.iter_mut();
        let slow = hanging.find(|h| h.message == message && *h.engine == *engine);
        if let Some(slow) = slow {
            slow.is_overdue = true;
        }
    }

    /// Slow scans of that engine that have not ended.
    pub(super) fn hanging(&self, engine: &str) -> impl Iterator<Item = (MessageId, &Fingerprint)> {
        let here = self.hanging.iter().filter(move |h| *h.engine == *engine);
        here.map(|h| (h.message, &*h.fingerprint))
    }

    /// Scans past their timeout that hold a worker of that engine.
    pub(super) fn overdue(&self, engine: &str) -> impl Iterator<Item = (MessageId, &Fingerprint)> {
        let overdue = self.hanging.iter().filter(|h| h.is_overdue);
        overdue
            .filter(move |h| *h.engine == *engine)
            .map(|h| (h.message, &*h.fingerprint))
    }

    /// A scan has ended. If it was a trial, what that has cleared: nothing if it was not quick.
    pub(super) fn ended(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        quick: bool,
    ) -> Option<BTreeSet<Key>> {
        self.hanging
            .retain(|h| h.message != message || h.engine != *engine);
        let mut open = self.open.iter();
        let at = open.position(|t| t.message == message && t.engine == *engine)?;
        let trial = self.open.remove(at)?;
        if !quick {
            return Some(BTreeSet::new());
        }
        for key in &trial.suspects {
            self.cleared.insert((engine.clone(), *key), now);
        }
        Some(trial.suspects)
    }

    /// It was slow and in time: that convicts nothing.
    pub(super) fn withdraw(&mut self, engine: &str, message: MessageId) {
        self.slow
            .retain(|t| t.message != message || *t.engine != *engine);
    }

    /// Whether a trial has cleared it.
    pub(super) fn is_cleared(&self, now: Instant, engine: &Arc<str>, key: Key) -> bool {
        self.cleared_at(now, engine, key).is_some()
    }

    fn cleared_at(&self, now: Instant, engine: &Arc<str>, key: Key) -> Option<Instant> {
        let at = self.cleared.get(&(engine.clone(), key)).copied();
        at.filter(|at| now < *at + CONCLUDED)
    }

    /// Content that a trial has cleared: it is held for nobody.
    pub(super) fn cleared(&self, now: Instant, engine: &str) -> HashSet<Key> {
        let here = self
            .cleared
            .iter()
            .filter(|((e, key), at)| **e == *engine && key.is_exact() && now < **at + CONCLUDED);
        here.map(|((_, key), _)| *key).collect()
    }

    /// What a message is like of which gates were shown a part.
    pub(super) fn whole(&self, message: MessageId) -> Option<&Arc<Fingerprint>> {
        let [new, old] = &self.whole;
        new.get(&message).or(old.get(&message))
    }

    pub(super) fn remember(&mut self, message: MessageId, fingerprint: &Arc<Fingerprint>) {
        if self.whole[0].len() >= WHOLE {
            self.whole.swap(0, 1);
            self.whole[0].clear();
        }
        self.whole[0].insert(message, fingerprint.clone());
    }

    fn trial(&mut self, engine: &str, message: MessageId) -> Option<&mut Trial> {
        let mut open = self.open.iter_mut();
        open.find(|t| t.message == message && *t.engine == *engine)
    }

    /// How many of each thing are remembered.
    #[cfg(test)]
    pub(super) fn counts(&self) -> [usize; 4] {
        let (hanging, open) = (self.hanging.len(), self.open.len());
        [hanging, open, self.slow.len(), self.cleared.len()]
    }

    fn forget(&mut self, now: Instant) {
        self.hanging.retain(|h| now < h.at + UNENDED);
        self.slow.retain(|t| now < t.at + CONCLUDED);
        self.open.retain(|t| match t.is_slow {
            true => now < t.at + UNENDED,
            false => now < t.at + UNBEGUN,
        });
        if self.cleared.len() >= TRIALS {
            self.cleared.retain(|_, at| now < *at + CONCLUDED);
        }
        if self.cleared.len() >= TRIALS * 4 {
            self.cleared.clear();
        }
    }
}

/// Whether there is no other attachment that could be to blame instead of that content.
fn is_alone(key: Key, fingerprint: &Fingerprint) -> bool {
    let mut exact = fingerprint.exact.iter();
    let is_other = |one: &Trait| one.aspect == Aspect::Attachment && Key(*one, None) != key;
    !key.is_exact() || !exact.any(is_other)
}

/// Adds one; the oldest goes where there are too many.
fn push<T>(to: &mut VecDeque<T>, one: T, most: usize) {
    if to.len() >= most {
        to.pop_front();
    }
    to.push_back(one);
}
