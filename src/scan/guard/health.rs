//! The state of an engine, for status output.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::drain::DrainHealth;
use crate::verdict::EngineClass;

/// State of an engine at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Name of the engine.
    pub engine: Arc<str>,
    /// Class of the engine, for coverage.
    pub class: EngineClass,
    /// Time that a caller waits for an answer.
    #[serde(default)]
    pub timeout: Duration,
    /// Slots of all replicas together: the maximum number of concurrent scans.
    pub slots: usize,
    /// Scans under way, zombies included.
    pub running: usize,
    /// Scans past `timeout` that still hold a slot.
    pub zombies: usize,
    /// Messages in the queue for a slot.
    pub waiting: usize,
    /// How long the oldest message that waits for a slot or for the answer has been here; none without such a message.
    #[serde(default)]
    pub oldest_call_age: Option<Duration>,
    /// Median duration of the last 1,024 answered scans; none before the first.
    pub half_within: Option<Duration>,
    /// 99th percentile of the same durations.
    pub most_within: Option<Duration>,
    /// State of each replica.
    pub replicas: Vec<ReplicaHealth>,
}

impl Health {
    /// The distinct states of the replicas: `closed`, `closed, open (failing)`, `drained`, `resting`.
    pub fn states(&self) -> String {
        let mut states: Vec<&str> = self.replicas.iter().map(ReplicaHealth::state).collect();
        states.sort_unstable();
        states.dedup();
        states.join(", ")
    }

    /// The distinct signature versions of the replicas.
    pub fn signatures(&self) -> String {
        let replicas = self.replicas.iter();
        let mut versions: Vec<&str> = replicas.filter_map(|r| r.signatures.as_deref()).collect();
        versions.sort_unstable();
        versions.dedup();
        versions.join(", ")
    }

    /// Whether no replica takes mail: each is drained, pauses, or has an open or half-open breaker.
    pub fn is_out(&self) -> bool {
        self.replicas.iter().all(ReplicaHealth::is_out)
    }

    /// Time since which no replica takes mail; none while one does, or if a replica only pauses.
    pub fn out_since(&self) -> Option<Timestamp> {
        let since = self.replicas.iter().filter_map(|replica| replica.since);
        since.max().filter(|_| self.is_out())
    }

    /// The state for people: `healthy`, or the states of the replicas. If no replica takes mail, the time since when stands
    /// first, as `time` writes it: `down since 12:26:05 (open (failing)), next probe in 2 s`.
    pub fn words(&self, time: impl Fn(Timestamp) -> String) -> String {
        match (self.is_well(), self.is_out()) {
            (true, _) => "healthy".to_owned(),
            (false, false) => self.state_words(time),
            (false, true) => {
                let since = self
                    .out_since()
                    .map(|since| format!(" since {}", time(since)));
                let states = self.state_words(time);
                let next = self.next_probe_words();
                format!("down{} ({states}){next}", since.unwrap_or_default())
            }
        }
    }

    /// The next probe, to follow the state: `, next probe in 2 s`; empty if a person or a pause keeps mail from the engine.
    fn next_probe_words(&self) -> String {
        let probed = self.replicas.iter().filter(|r| !r.drained && !r.resting);
        match probed.clone().filter_map(|r| r.next_probe_in).min() {
            Some(left) => format!(", next probe in {} s", left.as_secs() + 1),
            None if probed.clone().any(|r| r.breaker == "half-open") => {
                ", a probe is under way".to_owned()
            }
            None => String::new(),
        }
    }

    /// The state and the load for people: `healthy, 12 of 12 slots taken, 56 messages wait, the oldest message there for 71 s`.
    pub fn load(&self, time: impl Fn(Timestamp) -> String) -> String {
        let (running, slots) = (self.running, self.slots);
        let mut text = format!("{}, {running} of {slots} slots taken", self.words(time));
        match self.waiting {
            0 => {}
            1 => text.push_str(", 1 message waits"),
            waiting => text.push_str(&format!(", {waiting} messages wait")),
        }
        if let Some(age) = self.oldest_call_age.filter(|age| !age.is_zero()) {
            text.push_str(&format!(
                ", the oldest message there for {} s",
                age.as_secs()
            ));
        }
        text
    }

    /// The distinct states of the replicas for people, drained ones with the end and the reason of their drain.
    fn state_words(&self, time: impl Fn(Timestamp) -> String) -> String {
        let words = |replica: &ReplicaHealth| match &replica.drain {
            Some(drain) => drain.words(&time),
            None => replica.state().to_owned(),
        };
        let mut words: Vec<String> = self.replicas.iter().map(words).collect();
        words.sort_unstable();
        words.dedup();
        words.join(", ")
    }

    /// Whether a person has drained a replica.
    pub fn is_drained(&self) -> bool {
        self.replicas.iter().any(|replica| replica.drained)
    }

    /// Whether every replica takes mail without restriction.
    pub fn is_well(&self) -> bool {
        self.replicas
            .iter()
            .all(|replica| replica.state() == "closed")
    }
}

impl ReplicaHealth {
    /// Whether the replica takes no mail.
    pub fn is_out(&self) -> bool {
        let breaker = ["open", "half-open"];
        self.drained || self.resting || breaker.iter().any(|state| self.breaker.starts_with(state))
    }

    /// `drained`, `resting`, or the state of the breaker.
    pub fn state(&self) -> &str {
        match (self.drained, self.resting) {
            (true, _) => "drained",
            (false, true) => "resting",
            (false, false) => &self.breaker,
        }
    }
}

/// State of one replica at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaHealth {
    /// Address of the replica; none for an engine in process.
    pub address: Option<String>,
    /// State of the breaker: `closed`, `open (failing)`, `half-open`, `ramp (3 at once)`.
    pub breaker: String,
    /// Scans under way, zombies and probes included.
    pub running: usize,
    /// A person has drained the replica.
    pub drained: bool,
    /// The end and the reason of the drain; none if the replica is not drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainHealth>,
    /// The replica has asked for a pause (RFC 6585 section 4), and the pause has not passed.
    pub resting: bool,
    /// Time since which the replica gets no mail, or only a part of it: it was drained, or its breaker opened. None otherwise.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Time until the next probe, if the breaker is open and the engine has probes.
    #[serde(default)]
    pub next_probe_in: Option<Duration>,
    /// Signature version that the replica reported last.
    pub signatures: Option<String>,
    /// Time at which these signatures were made, if the version contains it.
    pub signed: Option<Timestamp>,
}
