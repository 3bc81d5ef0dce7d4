//! The causes for which the guard keeps a message.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::incident::Subject;

/// Why the guard keeps a message, where no finding is the reason. When the cause is gone, the relay scans the message again
/// ([`Store::recover`](super::Store::recover)). As text: `interceptor:ID` or `engine:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The interceptor with this id diverted the message.
    Interceptor(String),
    /// The engine with this name did not answer.
    Engine(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interceptor(id) => write!(f, "interceptor:{id}"),
            Self::Engine(name) => write!(f, "engine:{name}"),
        }
    }
}

impl Cause {
    /// The same as the subject of an incident.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Interceptor(id) => Subject::Interceptor(id.clone()),
            Self::Engine(name) => Subject::engine(name.clone()),
        }
    }
}

/// Maximum number of causes that [`Store::causes`](super::Store::causes) returns. Engines and interceptors together are fewer.
pub const CAUSES_MAX: usize = 4096;

/// The text is not a cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a cause; write engine:NAME or interceptor:ID")]
pub struct NotACause(String);

impl FromStr for Cause {
    type Err = NotACause;

    fn from_str(text: &str) -> Result<Self, NotACause> {
        match text.split_once(':') {
            Some(("interceptor", id)) if !id.is_empty() => Ok(Self::Interceptor(id.to_owned())),
            Some(("engine", name)) if !name.is_empty() => Ok(Self::Engine(name.to_owned())),
            _ => Err(NotACause(text.chars().take(80).collect())),
        }
    }
}
