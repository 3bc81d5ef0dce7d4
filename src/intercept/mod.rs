//! Interceptors: they divert messages before an engine scans them. (A rule is a `[[rule]]` of the administrator.)

mod baseline;
mod blocking;
mod crash;
mod diversions;
mod episode;
mod interception;
mod key;
mod learned;
mod loss;
mod settings;
mod strikes;
#[cfg(test)]
mod tests;
mod trial;
mod weigh;

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::message::fingerprint::Aspect;
use crate::message::{MessageId, Pattern, Trait};
use key::Key;

pub use baseline::{Baseline, Unusable};
pub use diversions::CRASH_REASON;
pub use interception::{EngineState, Interception};
pub use settings::{Act, Mode, Settings};
pub use trial::{Exemption, Ruling};

/// An interceptor: which messages match, what happens to them, who made the interceptor, and when it ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interceptor {
    /// The interceptor's name: a ULID, 26 letters and digits.
    pub id: String,
    /// Which messages match.
    pub pattern: Pattern,
    /// What happens to a message that matches.
    pub action: Action,
    /// Who made the interceptor.
    pub origin: Origin,
    /// When the interceptor was made, by the wall clock.
    pub made: Timestamp,
    /// When the interceptor ends by itself; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Dry run: the interceptor counts messages that match, and diverts none.
    #[serde(default)]
    pub dry_run: bool,
    /// Messages that matched on arrival so far.
    #[serde(default)]
    pub hits: u64,
    /// The first messages that matched, at most [`Interceptor::SAMPLES_MAX`].
    #[serde(default)]
    pub samples: Vec<MessageId>,
}

impl Interceptor {
    /// Messages remembered by id for each interceptor: 5, because they are examples for a person to look at.
    pub const SAMPLES_MAX: usize = 5;

    /// Whether the interceptor has expired at `now`. An interceptor without an end never expires.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    /// Whether the learner made the interceptor for nearly the same content.
    pub fn is_near(&self) -> bool {
        self.is_learned() && !self.pattern.near.is_empty()
    }

    /// Whether the learner made the interceptor for a shape: neither the same content nor nearly the same.
    pub fn is_of_shape(&self) -> bool {
        let is_content = |t: &Trait| matches!(t.aspect, Aspect::Attachment | Aspect::Text);
        let pattern = &self.pattern;
        self.is_learned() && pattern.near.is_empty() && !pattern.traits.iter().any(is_content)
    }

    /// Whether the learner made the interceptor. When a learned interceptor has ended, recovery gives back the messages that
    /// it held.
    pub fn is_learned(&self) -> bool {
        matches!(self.origin, Origin::Learned { .. })
    }
}

/// What happens to a message that matches an interceptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The message waits, durable, while one message like it shows how the engine copes with such messages.
    Park {
        /// The engine that does not get the message for now.
        engine: String,
    },
    /// The message goes to quarantine.
    Hold,
    /// The engine does not get the message; the other engines judge it.
    Bypass {
        /// The engine that is bypassed.
        engine: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Park { engine } => write!(f, "park for {engine}"),
            Self::Hold => f.write_str("hold"),
            Self::Bypass { engine } => write!(f, "bypass {engine}"),
        }
    }
}

/// Who made an interceptor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The learner.
    Learned {
        /// The evidence for the decision: labels and values in the order in which a person should read them.
        evidence: Vec<(Cow<'static, str>, String)>,
        /// The engine whose scans were the evidence.
        #[serde(default)]
        engine: String,
        /// Whether good mail hardly ever matches (at most 0.1 % of it).
        #[serde(default)]
        narrow: bool,
        /// Whether the engine found something in a message that matches. Fast findings do not count unless `narrow`.
        #[serde(default)]
        bad: bool,
    },
    /// A person.
    Person {
        /// The login name.
        who: String,
        /// The person's note; empty if there is none.
        #[serde(default)]
        note: String,
    },
}
