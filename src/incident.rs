//! Incidents: what the relay did by itself, and why. Each is one entry of the incident log, so that the post-mortem
//! writes itself (docs/GLOSSARY.md, "incident").
//!
//! A room that acts returns its incidents as values; the path above it records them. So nothing here writes anything.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::deadline::wall_clock;
use crate::message::MessageId;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A breaker opened: the engine, or a replica of it, is not asked any more.
    BreakerOpened,
    /// A breaker lets probes through, or a part of the mail again.
    BreakerProbing,
    /// A breaker closed: the engine has all its mail again.
    BreakerClosed,
    /// A fingerprint failed expensively while the engine was fine with others.
    Strike,
    /// A scan ended after its caller had stopped waiting, and its answer was used.
    LateAnswer,
    /// A scan never ended within the engine's own limit.
    ScanLost,
    /// An engine's workers are busy with messages that have nothing in common.
    WorkersLost,
    /// An interceptor was made, by the learner or by a person.
    InterceptorMade,
    /// An interceptor acts differently than before: it parked and now holds, or the other way round.
    InterceptorChanged,
    /// An interceptor ended: refuted, expired, or removed by a person.
    InterceptorLifted,
    /// A probe had the wrong answer, or none.
    ProbeFailed,
    /// Signatures are too old.
    SignaturesStale,
    /// Replicas of one engine have different signatures, or one lags behind.
    ReplicasDiffer,
    /// An engine finds, or takes, much more or much less than it used to.
    Drift,
    /// A person took an engine, a replica or a next hop out.
    Drained,
    /// A person put it back.
    Resumed,
    /// A next hop throttles us and gets its mail at the pace it allows.
    NextHopPaced,
    /// A next hop does not work at all and gets one probing delivery at a time.
    NextHopDead,
    /// A next hop works again.
    NextHopAlive,
    /// Mail that was delivered with less than full coverage turned out to be bad.
    LateFinding,
    /// What was held or deferred for a cause that is gone is being scanned again.
    RecoveryBegun,
    /// That is done.
    RecoveryEnded,
    /// New mail is refused for now, because what is accepted already could not be handled in time.
    AdmissionRefuses,
    /// New mail is accepted again.
    AdmissionAccepts,
    /// What may be held is nearly used up, in all or by one party; beyond it new mail that would be held is refused.
    QuarantineFilling,
    /// There is room in quarantine again.
    QuarantineRoomy,
    /// The store takes no new mail: no room, a disk that fails, or files that are not what they were.
    StoreTrouble,
    /// It does again.
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

    /// The word in output.
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

    /// Whether somebody should look at it: a warning in the log, while good news and plain facts are not.
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

/// Whom it happened to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// An engine, or one replica of it.
    Engine {
        /// Its name in the configuration.
        name: String,
        /// The replica's address, where one alone is meant.
        replica: Option<String>,
    },
    /// An interceptor, by its id.
    Interceptor(String),
    /// A next hop, by its name.
    NextHop(String),
    /// The relay as a whole.
    Relay,
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
            Self::Relay => f.write_str("relay"),
        }
    }
}

/// One thing that the relay did by itself, or that a person made it do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Its name in the log.
    pub id: Ulid,
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: Kind,
    /// To whom.
    pub subject: Subject,
    /// One line for people. May quote mail; shown escaped.
    pub summary: String,
    /// What it was decided on: measured numbers and names, in the order in which they should be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<(Cow<'static, str>, String)>,
    /// The message it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
}

impl Incident {
    /// An incident of this moment, without evidence yet.
    pub fn new(kind: Kind, subject: Subject, summary: impl Into<String>) -> Self {
        Self {
            id: Ulid::generate(),
            at: wall_clock(),
            kind,
            subject,
            summary: summary.into(),
            evidence: Vec::new(),
            message: None,
        }
    }

    /// The same with one more piece of evidence.
    #[must_use]
    pub fn with(mut self, what: &'static str, value: impl fmt::Display) -> Self {
        self.evidence.push((what.into(), value.to_string()));
        self
    }

    /// The same about one message.
    #[must_use]
    pub fn about(mut self, message: MessageId) -> Self {
        self.message = Some(message);
        self
    }
    /// The messages it names: the one it is about, then those in its evidence, in order; one may come twice.
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
