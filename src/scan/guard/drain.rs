//! Drains: an engine or a replica that a person has taken out of service, until when, why, and whether mail passes without it.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Guarded;
use super::gate::Gate;
use crate::deadline::wall_clock;

/// Time for which mail passes without an engine if the person names none: 1 h.
const PASS_TERM_DEFAULT: Duration = Duration::from_secs(3600);
/// Maximum of that time: 12 h, half of the time for which a copy of such mail is kept to be scanned. So the first copy is still
/// there, with 12 h left for its scan, when the engine is back. A night has eight hours.
const PASS_TERM_MAX: Duration = Duration::from_secs(12 * 3600);
/// Maximum time of another drain with an end: 30 days. A drain without an end lasts until a person resumes the engine.
const DRAIN_TERM_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Maximum length of the reason and of the name of the person, in characters: they become part of the decision about each message.
const DRAIN_TEXT_CHARACTERS_MAX: usize = 200;

/// What a person orders with a drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainTerms {
    /// Mail passes without the engine: for coverage, its missing answer counts as an answer.
    pub passes: bool,
    /// Time after which the drain ends by itself; always present if mail passes.
    pub term: Option<Duration>,
    /// The reason; never empty if mail passes.
    pub reason: String,
    /// The person.
    pub who: String,
}

/// Why terms are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTerms {
    /// Mail would pass without a reason.
    #[error("--pass needs a reason, which each message that passes names: add --reason TEXT")]
    NoReason,
    /// The drain would end at once.
    #[error("--for 0 would end the drain at once: give a time such as 1h")]
    NoTime,
    /// The drain would last too long.
    #[error("--for may be at most {limit:#}{advice}", limit = friendly(*.0), advice = .1)]
    TooLong(Duration, &'static str),
    /// The reason is too long.
    #[error("--reason may have at most {DRAIN_TEXT_CHARACTERS_MAX} characters: shorten it")]
    LongReason,
}

impl DrainTerms {
    /// Checks what a person ordered. Control characters become spaces.
    ///
    /// # Errors
    /// The first of the arguments that is wrong.
    pub fn new(
        passes: bool,
        term: Option<Duration>,
        reason: &str,
        who: &str,
    ) -> Result<Self, BadTerms> {
        let clean = |text: &str| {
            let shown = |c: char| if c.is_control() { ' ' } else { c };
            let text: String = text.chars().map(shown).collect();
            text.trim().to_owned()
        };
        let (reason, who) = (clean(reason), clean(who));
        let (most, advice) = match passes {
            true => (
                PASS_TERM_MAX,
                " with --pass: before it ends, give the command again",
            ),
            false => (
                DRAIN_TERM_MAX,
                ": leave --for out for a drain that lasts until `spillway engine resume`",
            ),
        };
        let term = term.or(passes.then_some(PASS_TERM_DEFAULT));
        if passes && reason.is_empty() {
            return Err(BadTerms::NoReason);
        }
        if reason.chars().count() > DRAIN_TEXT_CHARACTERS_MAX {
            return Err(BadTerms::LongReason);
        }
        match term {
            Some(Duration::ZERO) => return Err(BadTerms::NoTime),
            Some(term) if term > most => return Err(BadTerms::TooLong(most, advice)),
            _ => {}
        }
        let who = who.chars().take(DRAIN_TEXT_CHARACTERS_MAX).collect();
        Ok(Self {
            passes,
            term,
            reason,
            who,
        })
    }

    /// The reason and the person: `upgrade, by root`.
    pub fn why(&self) -> String {
        why(&self.reason, &self.who)
    }

    /// The time and the kind of the drain, to follow "drained": ` for 1h, mail passes without it`.
    pub fn extent(&self) -> String {
        let passes = match self.passes {
            true => ", mail passes without it",
            false => "",
        };
        format!("{}{passes}", self.lasting())
    }

    /// The time of the drain, to follow its name: ` for 1h`; empty for a drain without an end.
    pub fn lasting(&self) -> String {
        let term = self.term.map(|term| format!(" for {:#}", friendly(term)));
        term.unwrap_or_default()
    }
}

fn why(reason: &str, who: &str) -> String {
    match reason {
        "" => format!("by {who}"),
        reason => format!("{reason}, by {who}"),
    }
}

/// A duration that prints as `1h 30m` with `{:#}`.
fn friendly(time: Duration) -> SignedDuration {
    SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)
}

/// A drain in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// What the person ordered.
    pub terms: DrainTerms,
    /// Its end; none if it lasts until a person ends it.
    pub until: Option<Instant>,
}

impl Drain {
    /// A drain that begins now.
    pub fn begin(terms: DrainTerms) -> Arc<Self> {
        let left = terms.term;
        Self::with_left(terms, left)
    }

    /// A drain of which this time is left.
    pub fn with_left(terms: DrainTerms, left: Option<Duration>) -> Arc<Self> {
        let until = left.map(|left| Instant::now() + left);
        Arc::new(Self { terms, until })
    }

    /// A drain that lasts until a person ends it.
    #[cfg(test)]
    pub(crate) fn plain() -> Arc<Self> {
        Self::begin(DrainTerms::new(false, None, "", "a test").expect("right terms"))
    }

    /// A drain for so long, without which mail passes.
    #[cfg(test)]
    pub(crate) fn passing(term: Duration) -> Arc<Self> {
        let terms = DrainTerms::new(true, Some(term), "it hangs", "a test");
        Self::begin(terms.expect("right terms"))
    }

    fn has_ended(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// A drained replica, or a whole engine (`replica` is `None`).
#[derive(Debug, Clone)]
pub struct Drained {
    /// Address of the replica; `None` if all replicas were drained together.
    pub replica: Option<String>,
    /// Time at which it was drained first.
    pub since: Instant,
    /// The drain.
    pub drain: Arc<Drain>,
}

/// Why an engine is not drained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDrained {
    /// No replica has this address.
    #[error("engine {0} has no replica {1}; see: spillway engine show {0}")]
    NoReplica(Arc<str>, String),
    /// Other replicas take mail, so no mail has to pass without the engine.
    #[error(
        "engine {0} has other replicas that take mail ({1}), so no mail has to pass without it: leave --pass out, or drain \
         the whole engine without --replica"
    )]
    OthersTakeMail(Arc<str>, String),
}

impl Guarded {
    /// Drains a replica, or all replicas if `replica` is `None`: it gets no mail until the drain ends. Scans under way go on. A
    /// further drain replaces the end, the reason, and whether mail passes.
    ///
    /// # Errors
    /// No replica has that address, or mail would pass while another replica takes mail. Nothing has changed then.
    pub fn drain(&self, replica: Option<&str>, drain: &Arc<Drain>) -> Result<(), NotDrained> {
        let name = || self.settings().name.clone();
        let chosen = self.replicas_named(replica);
        if chosen.is_empty() {
            let replica = replica.unwrap_or_default().to_owned();
            return Err(NotDrained::NoReplica(name(), replica));
        }
        self.state.work(|gate, now| {
            let mut others = gate.replicas().enumerate();
            let other = others.find(|(at, one)| !chosen.contains(at) && one.drain.is_none());
            if let Some((at, _)) = other.filter(|_| drain.terms.passes) {
                let other = self.state.engines[at].replica().unwrap_or_default();
                return Err(NotDrained::OthersTakeMail(name(), other.to_owned()));
            }
            drop(others);
            for at in &chosen {
                gate.drain(now, *at, Some(drain.clone()));
            }
            Ok(())
        })
    }

    /// Puts a drain of an earlier process in force, which began at `since`. Unlike [`drain`](Self::drain), it takes the replicas
    /// one after the other, so it does not ask what the other replicas do. Returns whether a replica has that address.
    pub fn restore(&self, replica: Option<&str>, drain: &Arc<Drain>, since: Instant) -> bool {
        let chosen = self.replicas_named(replica);
        for at in &chosen {
            self.state.work(|gate, now| {
                gate.drain(now, *at, Some(drain.clone()));
                gate.drained_since(*at, since);
            });
        }
        !chosen.is_empty()
    }

    /// Puts a replica back into service; all replicas if `replica` is `None`. Returns whether any of them was drained, and
    /// `None` if no replica has that address.
    pub fn resume(&self, replica: Option<&str>) -> Option<bool> {
        let chosen = self.replicas_named(replica);
        let mut was_drained = None;
        for at in chosen {
            let before = self.state.work(|gate, now| gate.drain(now, at, None));
            was_drained = Some(was_drained.unwrap_or(false) | before.is_some());
        }
        was_drained
    }

    fn replicas_named(&self, replica: Option<&str>) -> Vec<usize> {
        let named = |at: &usize| replica.is_none() || self.state.engines[*at].replica() == replica;
        (0..self.state.engines.len()).filter(named).collect()
    }

    /// The drain with which mail passes without the engine; `None` if a replica takes mail, or if mail waits for the engine.
    pub fn passes(&self) -> Option<Arc<Drain>> {
        self.state.look(Gate::passes)
    }

    /// Whether all replicas are drained.
    pub fn is_drained(&self) -> bool {
        let all = |gate: &Gate| gate.replicas().all(|replica| replica.drain.is_some());
        self.state.look(all)
    }

    /// The drains in force. A drain of all replicas together is one.
    pub fn drains(&self) -> Vec<Drained> {
        self.state.look(|gate| {
            let engines = self.state.engines.iter().zip(gate.replicas());
            let drains: Vec<Drained> = engines
                .filter_map(|(engine, replica)| {
                    Some(Drained {
                        replica: engine.replica().map(str::to_owned),
                        since: replica.drained_at?,
                        drain: replica.drain?.clone(),
                    })
                })
                .collect();
            self.together(drains)
        })
    }

    /// Puts the replicas whose drain has ended by itself back into service, and returns them.
    pub fn end_drains(&self) -> Vec<Drained> {
        let now = Instant::now();
        let mut ended = self.drains();
        ended.retain(|one| one.drain.has_ended(now));
        for one in &ended {
            for at in self.replicas_named(one.replica.as_deref()) {
                self.state.work(|gate, now| {
                    let drain = gate.replicas().nth(at).and_then(|replica| replica.drain);
                    // A person may have renewed it meanwhile.
                    if drain.is_some_and(|drain| Arc::ptr_eq(drain, &one.drain)) {
                        gate.drain(now, at, None);
                    }
                });
            }
        }
        ended
    }

    /// One entry for the whole engine, if one drain holds for all of its replicas.
    fn together(&self, mut drains: Vec<Drained>) -> Vec<Drained> {
        let is_one = |two: &[Drained]| Arc::ptr_eq(&two[0].drain, &two[1].drain);
        if drains.len() == self.state.engines.len() && drains.windows(2).all(is_one) {
            drains.truncate(1);
            drains.iter_mut().for_each(|one| one.replica = None);
        }
        drains
    }
}

/// A drain, for status output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainHealth {
    /// When it ends by itself; none if a person has to end it.
    pub until: Option<Timestamp>,
    /// Mail passes without the engine.
    pub passes: bool,
    /// The reason that the person gave; may be empty.
    pub reason: String,
    /// The person.
    pub who: String,
}

impl DrainHealth {
    /// `passes`: mail passes without the engine, because no replica takes mail.
    pub(super) fn of(drain: &Drain, passes: bool) -> Self {
        let DrainTerms { reason, who, .. } = &drain.terms;
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        Self {
            until: drain.until.map(|until| wall_clock() + left(until)),
            passes: passes && drain.terms.passes,
            reason: reason.clone(),
            who: who.clone(),
        }
    }

    /// The state for people: `drained until 14:30:00, mail passes without it: upgrade, by root`. `time` writes the end.
    pub fn words(&self, time: impl Fn(Timestamp) -> String) -> String {
        let until = self.until.map(|until| format!(" until {}", time(until)));
        let until = until.unwrap_or_default();
        let why = why(&self.reason, &self.who);
        match (self.passes, self.reason.is_empty()) {
            (true, _) => format!("drained{until}, mail passes without it: {why}"),
            (false, false) => format!("drained{until}: {why}"),
            (false, true) => format!("drained{until} {why}"),
        }
    }
}
