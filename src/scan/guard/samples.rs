//! Samples of what the guard shows, for the tests of all rooms that show it.

use std::time::Duration;

use jiff::Timestamp;

use super::{Health, ReplicaHealth};
use crate::verdict::EngineClass;

impl Health {
    /// A healthy engine with four slots and one replica. Nothing runs, and nothing was measured.
    pub(crate) fn sample(engine: &str) -> Self {
        Self {
            engine: engine.into(),
            class: EngineClass::Av,
            timeout: Duration::from_secs(5),
            slots: 4,
            running: 0,
            zombies: 0,
            waiting: 0,
            oldest_call_age: None,
            half_within: None,
            most_within: None,
            replicas: vec![ReplicaHealth {
                address: None,
                breaker: "closed".to_owned(),
                running: 0,
                drained: false,
                drain: None,
                resting: false,
                since: None,
                next_probe_in: None,
                signatures: None,
                signed: None,
            }],
        }
    }

    /// The same engine, with the breaker of its replica in this state since this time: `open (failing)`.
    pub(crate) fn sample_in(engine: &str, breaker: &str, since: Timestamp) -> Self {
        let mut health = Self::sample(engine);
        health.replicas[0].breaker = breaker.to_owned();
        health.replicas[0].since = Some(since);
        health
    }
}
