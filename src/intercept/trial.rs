//! Trials: blame needs an experiment. A trait that slow scans have in common is only suspected: a document beside a part
//! that hangs is in every message that hung. A suspicion alone makes messages of unknown senders wait. For messages of known
//! senders it does not, until a trial was slow: a message with the suspected trait, and with no other suspected trait, is
//! scanned by itself. If the trial was quick, the trait is cleared. That is the isolating step of delta debugging (Zeller,
//! Hildebrandt, IEEE TSE 2002). Its test cases are the messages that arrive anyway, one at a time for each trait.
//!
//! Gates see traits and not reasons. So gates see a message on trial without the traits on trial, and any message without
//! cleared content: an unknown sender's message too, if the content is cleared for everybody ([`Ruling::shown`]).
//! [`Trials::whole`] restores the whole fingerprint when gates report on such a message.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use super::key::Likeness;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, MessageId, Trait};

/// Slow scans that have not ended, of all engines together: more than the engines have slots.
const HANGING_MAX: usize = 512;
/// A slow scan whose end is never reported is forgotten after 300 s. That is twice the limit of an engine for one scan where
/// none is configured (150 s), so a scan is not forgotten before its slot is free.
const HANGING_AGE_MAX: Duration = Duration::from_secs(300);
/// Open trials remembered, and slow trials; the oldest go first. Each trial takes or took one slot of an engine, so there
/// are hardly ever more trials than slots. Four times as many cleared keys are remembered; beyond that all of them are
/// dropped.
const TRIALS_MAX: usize = 256;
/// A trial that is not slow after 15 s never reached its engine: a message waits for a slot for 10 s at most, and its scan
/// is called slow after 5 s at most.
const TRIAL_START_TIMEOUT: Duration = Duration::from_secs(15);
/// A conclusion of a trial lasts 600 s, as long as a key's first interceptor does by default. After that the engine may have
/// changed.
const CONCLUSION_AGE_MAX: Duration = Duration::from_secs(600);
/// Whole fingerprints remembered in each of two generations: the engines never have more messages than that at once.
const WHOLE_FINGERPRINTS_MAX: usize = 2048;

/// The decision about a message in which something may be suspected.
#[derive(Debug)]
pub struct Ruling {
    /// Which learned interceptors do not hold the message.
    pub exemption: Exemption,
    /// The fingerprint that gates see: the traits that gates may blame the message for. Traits on trial and cleared content are
    /// left out.
    pub shown: Arc<Fingerprint>,
}

/// Which learned interceptors do not hold a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exemption {
    /// No exemption: the sender is unknown.
    None,
    /// Interceptors for a shape do not hold the message. It has the shape of slow messages, and none of the content in which
    /// those are alike.
    Shape,
    /// Interceptors for nearly the same content do not hold the message: other engines of the class decide.
    Near,
    /// No learned interceptor holds the message.
    All,
}

/// What the trials say about the suspected keys of a message. With several engines the last of these states counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum TrialState {
    /// Nothing is suspected.
    Unsuspected,
    /// The message is the trial.
    OnTrial,
    /// The message waits for the end of another trial.
    Waiting,
    /// A trial was slow, which confirms the suspicion.
    Confirmed,
}

/// A slow scan that has not ended.
#[derive(Debug)]
struct Hanging {
    at: Instant,
    engine: Arc<str>,
    message: MessageId,
    fingerprint: Arc<Fingerprint>,
    is_overdue: bool,
}

/// A message that is scanned as a test of the keys suspected in it.
#[derive(Debug)]
struct Trial {
    at: Instant,
    engine: Arc<str>,
    message: MessageId,
    suspects: BTreeSet<Key>,
    is_slow: bool,
}

/// What is suspected in a message.
#[derive(Debug, Default)]
struct Suspicion {
    keys: BTreeSet<Key>,
    /// All traits that gates could blame the message for, also those that are equal by accident.
    traits: Vec<Trait>,
}

/// The trials in all engines.
#[derive(Debug, Default)]
pub(super) struct Trials {
    hanging: VecDeque<Hanging>,
    open: VecDeque<Trial>,
    /// Trials that were slow.
    slow: VecDeque<Trial>,
    cleared: HashMap<(Arc<str>, Key), Instant>,
    whole: [HashMap<MessageId, Arc<Fingerprint>>; 2],
}

impl Trials {
    /// Decides about a known sender's message. `suspected` has one entry for each learned interceptor that holds or parks: its
    /// engine, and what it holds or parks.
    pub(super) fn judge<'a>(
        &mut self,
        now: Instant,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
        suspected: impl Iterator<Item = (&'a Arc<str>, &'a Likeness)> + Clone,
    ) -> Ruling {
        self.forget(now);
        let hanging = self.hanging.iter().map(|h| &h.engine);
        let engines: BTreeSet<Arc<str>> = hanging
            .chain(suspected.clone().map(|(e, _)| e))
            .cloned()
            .collect();
        let mut state = TrialState::Unsuspected;
        let (mut trials, mut hidden) = (Vec::new(), Vec::new());
        for engine in engines {
            let of = suspected
                .clone()
                .filter(|(e, _)| **e == engine)
                .map(|(_, like)| like);
            let Suspicion { mut keys, traits } = self.suspicion(&engine, message, fingerprint, of);
            keys.retain(|key| !self.is_cleared(now, &engine, *key));
            let here = self.trial_state(&engine, message, &keys);
            state = state.max(here);
            hidden.extend(traits);
            if here == TrialState::OnTrial {
                trials.push((engine, keys));
            }
        }
        let exemption = match state {
            TrialState::Confirmed => Exemption::Near,
            TrialState::Unsuspected | TrialState::OnTrial | TrialState::Waiting => Exemption::All,
        };
        if hidden.is_empty() || state >= TrialState::Waiting {
            let shown = fingerprint.clone();
            return Ruling { exemption, shown };
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
            push(&mut self.open, trial, TRIALS_MAX);
        }
        self.remember(message, fingerprint);
        let shown = Arc::new(fingerprint.without(&hidden));
        Ruling { exemption, shown }
    }

    /// The fingerprint of an unknown sender's message that gates see: all traits but content that a trial has cleared, because
    /// content is cleared for all senders. Without this, a gate would see cleared content in scans that hang and blame the
    /// message for it; a gate does not know that those scans hang because of the content beside it.
    pub(super) fn shown<'a>(
        &mut self,
        now: Instant,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
        suspected: impl Iterator<Item = (&'a Arc<str>, &'a Likeness)> + Clone,
    ) -> Arc<Fingerprint> {
        if self.cleared.is_empty() {
            return fingerprint.clone();
        }
        let is_free = |one: &&Trait| {
            let key = Key(**one, None);
            let cleared = |engine: &Arc<str>| self.cleared_at(now, engine, key);
            // If the content has hung alone since it was cleared, there is nothing else to blame.
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
                && !suspected.clone().any(is_suspected)
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

    /// What the message has in common with slow scans and with interceptors. Bands that are equal by accident are not
    /// suspected, but a gate does not know that: they are among `traits` only.
    fn suspicion<'a>(
        &self,
        engine: &str,
        message: MessageId,
        fingerprint: &Fingerprint,
        suspected: impl Iterator<Item = &'a Likeness>,
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
        for like in suspected.filter(|like| like.matches(fingerprint)) {
            found.keys.insert(like.key);
            found.traits.extend(like.traits());
        }
        found
    }

    fn trial_state(
        &self,
        engine: &str,
        message: MessageId,
        suspects: &BTreeSet<Key>,
    ) -> TrialState {
        if suspects.is_empty() {
            return TrialState::Unsuspected;
        }
        let of = |t: &&Trial| *t.engine == *engine && t.message != message;
        let tried = |h: &Hanging| self.slow.iter().any(|t| t.message == h.message);
        // A message with all exact traits of a scan that hangs would be no new experiment.
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
        // The message's own slow trial counts like any other.
        let mut slow = self.slow.iter().filter(|t| *t.engine == *engine);
        if slow.any(|t| t.suspects.is_subset(suspects)) || self.hanging.iter().any(is_copy) {
            return TrialState::Confirmed;
        }
        // Beside an open trial that shares a key, another message goes only if that trial is slow already, and if the
        // message has fewer suspected keys, all of them on trial.
        let says_more = |t: &Trial| {
            t.is_slow && t.suspects.len() > suspects.len() && t.suspects.is_superset(suspects)
        };
        let mut others = self.open.iter().filter(of);
        let waits = others.any(|t| !t.suspects.is_disjoint(suspects) && !says_more(t));
        match waits {
            true => TrialState::Waiting,
            false => TrialState::OnTrial,
        }
    }

    /// A scan has become slow. Returns the suspected keys if the scan was a trial: the trial has confirmed them together.
    pub(super) fn became_slow<'a>(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        (fingerprint, is_known): (&Arc<Fingerprint>, bool),
        suspected: impl Iterator<Item = &'a Likeness>,
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
                let slow_trial = Trial {
                    at: now,
                    engine: engine.clone(),
                    message,
                    suspects: suspects.clone(),
                    is_slow: true,
                };
                push(&mut self.slow, slow_trial, TRIALS_MAX);
            }
            // A cleared key is in a slow scan with nothing else to blame: the key is open to suspicion again.
            None if is_known => {
                let keys = self.suspicion(engine, message, fingerprint, suspected).keys;
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
        push(&mut self.hanging, hanging, HANGING_MAX);
        suspects
    }

    /// A slow scan has run into its timeout.
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

    /// A scan has ended. If it was a trial, returns the keys that it has cleared: none if the scan was not quick.
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

    /// The trial was slow but ended in time: it confirms no suspicion.
    pub(super) fn withdraw(&mut self, engine: &str, message: MessageId) {
        self.slow
            .retain(|t| t.message != message || *t.engine != *engine);
    }

    /// Whether a trial has cleared the key.
    pub(super) fn is_cleared(&self, now: Instant, engine: &Arc<str>, key: Key) -> bool {
        self.cleared_at(now, engine, key).is_some()
    }

    fn cleared_at(&self, now: Instant, engine: &Arc<str>, key: Key) -> Option<Instant> {
        let at = self.cleared.get(&(engine.clone(), key)).copied();
        at.filter(|at| now < *at + CONCLUSION_AGE_MAX)
    }

    /// Content that a trial has cleared: it is held for no sender.
    pub(super) fn cleared(&self, now: Instant, engine: &str) -> HashSet<Key> {
        let here = self.cleared.iter().filter(|((e, key), at)| {
            **e == *engine && key.is_exact() && now < **at + CONCLUSION_AGE_MAX
        });
        here.map(|((_, key), _)| *key).collect()
    }

    /// The whole fingerprint of a message of which gates saw a part.
    pub(super) fn whole(&self, message: MessageId) -> Option<&Arc<Fingerprint>> {
        let [new, old] = &self.whole;
        new.get(&message).or(old.get(&message))
    }

    pub(super) fn remember(&mut self, message: MessageId, fingerprint: &Arc<Fingerprint>) {
        if self.whole[0].len() >= WHOLE_FINGERPRINTS_MAX {
            self.whole.swap(0, 1);
            self.whole[0].clear();
        }
        self.whole[0].insert(message, fingerprint.clone());
    }

    fn trial(&mut self, engine: &str, message: MessageId) -> Option<&mut Trial> {
        let mut open = self.open.iter_mut();
        open.find(|t| t.message == message && *t.engine == *engine)
    }

    /// Number of hanging scans, open trials, slow trials and cleared keys.
    #[cfg(test)]
    pub(super) fn counts(&self) -> [usize; 4] {
        let (hanging, open) = (self.hanging.len(), self.open.len());
        [hanging, open, self.slow.len(), self.cleared.len()]
    }

    fn forget(&mut self, now: Instant) {
        self.hanging.retain(|h| now < h.at + HANGING_AGE_MAX);
        self.slow.retain(|t| now < t.at + CONCLUSION_AGE_MAX);
        self.open.retain(|t| match t.is_slow {
            true => now < t.at + HANGING_AGE_MAX,
            false => now < t.at + TRIAL_START_TIMEOUT,
        });
        if self.cleared.len() >= TRIALS_MAX {
            self.cleared.retain(|_, at| now < *at + CONCLUSION_AGE_MAX);
        }
        if self.cleared.len() >= TRIALS_MAX * 4 {
            self.cleared.clear();
        }
    }
}

/// Whether the message has no other attachment that could be to blame instead of this content. Always true for a key that is
/// not exact.
fn is_alone(key: Key, fingerprint: &Fingerprint) -> bool {
    let mut exact = fingerprint.exact.iter();
    let is_other = |one: &Trait| one.aspect == Aspect::Attachment && Key(*one, None) != key;
    !key.is_exact() || !exact.any(is_other)
}

/// Adds an entry. Drops the oldest if there are `most` already.
fn push<T>(to: &mut VecDeque<T>, one: T, most: usize) {
    if to.len() >= most {
        to.pop_front();
    }
    to.push_back(one);
}
