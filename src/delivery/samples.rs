//! Samples of next hops, for the tests of all rooms that use them.

use std::time::Duration;

use jiff::Timestamp;

use super::{HopStatus, Kind, PaceState, Settings};

impl HopStatus {
    /// A next hop that takes mail freely.
    pub(crate) fn sample(name: &str) -> Self {
        Self {
            name: name.into(),
            state: PaceState::Free,
            per_minute: None,
            at_once: None,
            until: None,
            dead_since: None,
            probing: false,
            said: None,
            login_refused: false,
        }
    }

    /// A next hop that is dead since this time.
    pub(crate) fn sample_dead(name: &str, since: Timestamp) -> Self {
        Self {
            state: PaceState::Dead,
            dead_since: Some(since),
            ..Self::sample(name)
        }
    }
}

impl Settings {
    /// A next hop for these domains that retries after a minute, at most an hour apart, and gives up after a day.
    pub(crate) fn sample(name: &str, domains: &[&str], kind: Kind) -> Self {
        Self {
            name: name.into(),
            domains: domains.iter().map(|&domain| domain.to_owned()).collect(),
            kind,
            retry_first: Duration::from_secs(60),
            retry_max: Duration::from_secs(3600),
            give_up: Duration::from_secs(86_400),
        }
    }
}

impl Kind {
    /// Maildirs in which nothing can be delivered, for tests that deliver nothing.
    pub(crate) fn sample() -> Self {
        Self::Maildir {
            path: "/nonexistent/{local}".to_owned(),
        }
    }
}
