//! Interceptors: what diverts mail before an engine sees it.

mod baseline;
mod conviction;
mod crash;
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

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::message::fingerprint::Aspect;
use crate::message::{MessageId, Pattern, Trait};
use key::Key;

pub use baseline::{Baseline, Unusable};
pub use crash::Crashed;
pub use interception::{EngineState, Evidence, Interception, Seen};
pub use settings::{Mode, Settings};
pub use trial::{Mercy, Ruling};

/// Mail of a pattern that is diverted, why, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interceptor {
    /// Its name: 26 letters and digits.
    pub id: String,
    /// The mail.
    pub pattern: Pattern,
    /// What becomes of it.
    pub action: Action,
    /// Who made it.
    pub origin: Origin,
    /// When.
    pub made: Timestamp,
    /// When it ends by itself; never, if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// It only counts what it would catch.
    #[serde(default)]
    pub dry_run: bool,
    /// Messages caught so far.
    #[serde(default)]
    pub hits: u64,
    /// The first of them, at most [`Interceptor::SAMPLES`].
    #[serde(default)]
    pub samples: Vec<MessageId>,
}

impl Interceptor {
    /// Messages that are remembered by id.
    pub const SAMPLES: usize = 5;

    /// Whether it has ended by itself.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    /// Whether the learner made it for content that is nearly the same.
    pub fn is_near(&self) -> bool {
        self.is_learned() && !self.pattern.near.is_empty()
    }

    /// Whether the learner made it for something else than content.
    pub fn is_of_shape(&self) -> bool {
        let is_content = |t: &Trait| matches!(t.aspect, Aspect::Attachment | Aspect::Text);
        let pattern = &self.pattern;
        self.is_learned() && pattern.near.is_empty() && !pattern.traits.iter().any(is_content)
    }

    /// Whether the learner made it: what it has held is given back when it has ended.
    pub fn is_learned(&self) -> bool {
        matches!(self.origin, Origin::Learned { .. })
    }
}

/// What becomes of mail that is caught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It waits, durable, while one message of the kind tells how the engine fares with it.
    Park {
        /// The engine that is spared.
        engine: String,
    },
    /// It goes to quarantine.
    Hold,
    /// It is not shown to the engine; the others judge it.
    Bypass {
        /// The engine that is spared.
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
        /// What it was decided on, in the order in which it should be read.
        evidence: Vec<(Cow<'static, str>, String)>,
        /// The engine whose scans it was decided on.
        #[serde(default)]
        engine: String,
        /// Whether good mail hardly ever matches.
        #[serde(default)]
        narrow: bool,
        /// Whether something was found in mail that matches.
        #[serde(default)]
        bad: bool,
    },
    /// A person.
    Person {
        /// The login name.
        who: String,
        /// What the person wrote about it; empty for nothing.
        #[serde(default)]
        note: String,
    },
}
