//! Incidents: automatic actions of the relay, and acts of persons on engines, with their reasons. Each incident is one entry of
//! the incident log, from which a post-mortem can be written (docs/GLOSSARY.md, "incident").
//!
//! A room that acts returns its incidents as values, and the pipeline records them. This module writes nothing.

mod advice;
mod cause;
mod story;
mod tracker;

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::deadline::wall_clock;
use crate::message::MessageId;

pub use advice::{advice, advice_for};
pub use cause::{Condition, Topic};
pub use story::{
    KindCount, Story, StoryListener, StoryPhase, StoryState, Touch, TouchOutcome, Touched,
};
pub use tracker::{
    ChangedStory, Phase, STORY_QUIET, StillWaiting, Tracker, WaitedFor, WaitingMail,
};

/// The kind of an incident. The log stores it as a word, so a word never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A breaker opened: the engine, or one of its replicas, gets no mail.
    BreakerOpened,
    /// A breaker became half-open (probes pass) or began a ramp (a growing part of the mail passes).
    BreakerProbing,
    /// A breaker closed: the engine gets all its mail again.
    BreakerClosed,
    /// A message failed expensively while the engine scanned other messages well.
    Strike,
    /// An answer came after its caller had stopped waiting. The summary says whether the relay keeps the answer.
    LateAnswer,
    /// A scan did not end within the engine's `limit`.
    ScanLost,
    /// Overdue messages that no interceptor covers hold at least half of an engine's workers.
    WorkersLost,
    /// The learner or a person made an interceptor.
    InterceptorMade,
    /// An interceptor changed its action (park, hold, bypass), or whether it holds the mail of known senders.
    InterceptorChanged,
    /// An interceptor ended: it was disproved, expired, or removed by a person.
    InterceptorLifted,
    /// An engine answered a probe wrongly, or not in time.
    ProbeFailed,
    /// The signatures of an engine are older than `signature_age`.
    SignaturesStale,
    /// Replicas of one engine have different signatures, or the signatures of one are behind the others.
    ReplicasDiffer,
    /// An engine finds much more or less than before, or its scans take much more or less time.
    Drift,
    /// A person drained an engine or a replica.
    Drained,
    /// A person resumed a drained engine or replica.
    Resumed,
    /// A next hop throttles the relay, and gets its mail at the rate that it accepts.
    NextHopPaced,
    /// A next hop does not work, and gets one delivery at a time as a probe.
    NextHopDead,
    /// A next hop works again.
    NextHopAlive,
    /// A later scan found something in mail that was delivered with less than full coverage.
    LateFinding,
    /// The relay began to scan again the mail that it had kept for a cause that has ended.
    RecoveryBegun,
    /// This recovery has ended.
    RecoveryEnded,
    /// The relay refuses new mail for now: the accepted mail fills the memory or the backlog.
    AdmissionRefuses,
    /// The relay accepts new mail again.
    AdmissionAccepts,
    /// The quarantine is nearly full, in total or for one client or sender. When it is full, the relay refuses new mail that it
    /// would hold.
    QuarantineFilling,
    /// The quarantine has room again.
    QuarantineRoomy,
    /// The store accepts no new mail: the disk is full or fails, or the files of the store were changed by other programs.
    StoreTrouble,
    /// The store accepts new mail again.
    StoreWell,
}

impl Kind {
    /// All kinds, for completions and filters.
    pub const ALL: [Self; 28] = [
        Self::BreakerOpened,
        Self::BreakerProbing,
        Self::BreakerClosed,
        Self::Strike,
        Self::LateAnswer,
        Self::ScanLost,
        Self::WorkersLost,
        Self::InterceptorMade,
        Self::InterceptorChanged,
        Self::InterceptorLifted,
        Self::ProbeFailed,
        Self::SignaturesStale,
        Self::ReplicasDiffer,
        Self::Drift,
        Self::Drained,
        Self::Resumed,
        Self::NextHopPaced,
        Self::NextHopDead,
        Self::NextHopAlive,
        Self::LateFinding,
        Self::RecoveryBegun,
        Self::RecoveryEnded,
        Self::AdmissionRefuses,
        Self::AdmissionAccepts,
        Self::QuarantineFilling,
        Self::QuarantineRoomy,
        Self::StoreTrouble,
        Self::StoreWell,
    ];

    /// The word in output and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BreakerOpened => "breaker-opened",
            Self::BreakerProbing => "breaker-probing",
            Self::BreakerClosed => "breaker-closed",
            Self::Strike => "strike",
            Self::LateAnswer => "late-answer",
            Self::ScanLost => "scan-lost",
            Self::WorkersLost => "workers-lost",
            Self::InterceptorMade => "interceptor-made",
            Self::InterceptorChanged => "interceptor-changed",
            Self::InterceptorLifted => "interceptor-lifted",
            Self::ProbeFailed => "probe-failed",
            Self::SignaturesStale => "signatures-stale",
            Self::ReplicasDiffer => "replicas-differ",
            Self::Drift => "drift",
            Self::Drained => "drained",
            Self::Resumed => "resumed",
            Self::NextHopPaced => "next-hop-paced",
            Self::NextHopDead => "next-hop-dead",
            Self::NextHopAlive => "next-hop-alive",
            Self::LateFinding => "late-finding",
            Self::RecoveryBegun => "recovery-begun",
            Self::RecoveryEnded => "recovery-ended",
            Self::AdmissionRefuses => "admission-refuses",
            Self::AdmissionAccepts => "admission-accepts",
            Self::QuarantineFilling => "quarantine-filling",
            Self::QuarantineRoomy => "quarantine-roomy",
            Self::StoreTrouble => "store-trouble",
            Self::StoreWell => "store-well",
        }
    }

    /// Whether an administrator should look at the incident: then its log line is a warning.
    pub fn is_trouble(self) -> bool {
        match self {
            Self::BreakerOpened
            | Self::Strike
            | Self::ScanLost
            | Self::WorkersLost
            | Self::InterceptorMade
            | Self::InterceptorChanged
            | Self::ProbeFailed
            | Self::SignaturesStale
            | Self::ReplicasDiffer
            | Self::Drift
            | Self::NextHopPaced
            | Self::NextHopDead
            | Self::LateFinding
            | Self::AdmissionRefuses
            | Self::QuarantineFilling
            | Self::StoreTrouble => true,
            Self::BreakerProbing
            | Self::BreakerClosed
            | Self::LateAnswer
            | Self::InterceptorLifted
            | Self::Drained
            | Self::Resumed
            | Self::NextHopAlive
            | Self::RecoveryBegun
            | Self::RecoveryEnded
            | Self::AdmissionAccepts
            | Self::QuarantineRoomy
            | Self::StoreWell => false,
        }
    }
}

/// The subject of an incident.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// An engine, or one of its replicas.
    Engine {
        /// The engine's name in the configuration.
        name: String,
        /// The replica's address; none for the whole engine.
        replica: Option<String>,
    },
    /// An interceptor, by its id.
    Interceptor(String),
    /// A next hop, by its name.
    NextHop(String),
    /// The quarantine, as the cause of a story.
    Quarantine,
    /// The store, as the cause of a story.
    Store,
    /// The relay as a whole.
    Relay,
}

impl Subject {
    /// The words of [`Self::word`].
    pub const WORDS: [&str; 6] = [
        "engine",
        "interceptor",
        "next-hop",
        "quarantine",
        "relay",
        "store",
    ];

    /// The engine of this name, with all its replicas.
    pub fn engine(name: impl Into<String>) -> Self {
        Self::Engine {
            name: name.into(),
            replica: None,
        }
    }

    /// The kind of the subject, in one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Engine { .. } => "engine",
            Self::Interceptor(_) => "interceptor",
            Self::NextHop(_) => "next-hop",
            Self::Quarantine => "quarantine",
            Self::Store => "store",
            Self::Relay => "relay",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine {
                name,
                replica: None,
            } => write!(f, "engine {name}"),
            Self::Engine {
                name,
                replica: Some(replica),
            } => write!(f, "engine {name} ({replica})"),
            Self::Interceptor(id) => write!(f, "interceptor {id}"),
            Self::NextHop(name) => write!(f, "next hop {name}"),
            Self::Quarantine | Self::Store | Self::Relay => f.write_str(self.word()),
        }
    }
}

/// One automatic action of the relay, or one act of a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// The id in the log.
    pub id: Ulid,
    /// The time of the incident.
    pub at: Timestamp,
    /// The kind.
    pub kind: Kind,
    /// The subject.
    pub subject: Subject,
    /// The story to which the incident belongs; none if it belongs to no trouble, and for incidents of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub story: Option<Ulid>,
    /// One line for people. The line may quote mail, so output escapes it.
    pub summary: String,
    /// The evidence of the decision: measured numbers and names, in the order of the output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<(Cow<'static, str>, String)>,
    /// The message that the incident is about; none if it is about no single message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
}

impl Incident {
    /// The name of the piece of evidence that names an engine.
    pub const ENGINE: &str = "engine";

    /// An incident with the present time and without evidence.
    pub fn new(kind: Kind, subject: Subject, summary: impl Into<String>) -> Self {
        Self {
            id: Ulid::generate(),
            at: wall_clock(),
            kind,
            subject,
            story: None,
            summary: summary.into(),
            evidence: Vec::new(),
            message: None,
        }
    }

    /// Adds a piece of evidence.
    #[must_use]
    pub fn with(mut self, what: &'static str, value: impl fmt::Display) -> Self {
        self.evidence.push((what.into(), value.to_string()));
        self
    }

    /// Sets the message that the incident is about.
    #[must_use]
    pub fn about(mut self, message: MessageId) -> Self {
        self.message = Some(message);
        self
    }

    /// The engine that the evidence names: the engine because of which an interceptor was made or mail is refused.
    pub fn engine(&self) -> Option<&str> {
        let mut evidence = self.evidence.iter();
        let (_, name) = evidence.find(|(what, _)| what == Self::ENGINE)?;
        Some(name)
    }

    /// The messages that the incident names: its own message, then those in the evidence, in order. An id may come twice.
    pub fn messages(&self) -> impl Iterator<Item = MessageId> {
        let words = self.evidence.iter().flat_map(|(_, value)| {
            value
                .split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|word| word.len() == MessageId::LENGTH)
        });
        let quoted = words.filter_map(|word| word.parse().ok());
        self.message.into_iter().chain(quoted)
    }
}
