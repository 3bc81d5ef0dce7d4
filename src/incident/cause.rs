//! The cause of an incident, and what the incident says about it: the beginning or the end of a condition, or a single event.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Incident, Kind, Subject};

/// Which trouble of a cause a story is about. Trouble of different topics has different causes, also in one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// Mail is not scanned, not delivered or not taken.
    Trouble,
    /// The signatures of an engine are old, or differ between replicas.
    Signatures,
    /// Something was found in delivered mail.
    Finding,
}

/// A condition that lasts from one incident to another. While one lasts, the story does not end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The breaker of this replica, or of the only one, is not closed.
    Out(Option<String>),
    /// A person has drained this replica, or the whole engine.
    Drained(Option<String>),
    /// This interceptor of the learner is in force.
    Intercepting(String),
    /// What was kept for this subject is scanned again.
    Recovering(String),
    /// The next hop is paced or dead.
    HeldBack,
    /// The relay refuses new mail.
    Refusing,
    /// The quarantine is nearly full.
    Filling,
    /// The store accepts no new mail.
    StoreTrouble,
    /// The signatures of this replica, or of the only one, are too old.
    Stale(Option<String>),
    /// The replicas have different signatures.
    Differing,
}

impl Condition {
    /// What to say if a look finds that the condition is over.
    pub(super) fn over(&self) -> &'static str {
        match self {
            Self::Stale(_) => "the signatures are new enough again",
            Self::Differing => "all replicas have the same signatures again",
            _ => "the trouble is not there any more",
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Out(None) => f.write_str("the engine does not get all its mail"),
            Self::Out(Some(replica)) => write!(f, "{replica} does not get all its mail"),
            Self::Drained(None) => f.write_str("the engine is drained"),
            Self::Drained(Some(replica)) => write!(f, "{replica} is drained"),
            Self::Intercepting(id) => write!(f, "interceptor {id} is in force"),
            Self::Recovering(what) => write!(f, "what was kept for {what} is scanned again"),
            Self::HeldBack => f.write_str("the next hop does not get all its mail"),
            Self::Refusing => f.write_str("new mail is refused"),
            Self::Filling => f.write_str("the quarantine is nearly full"),
            Self::StoreTrouble => f.write_str("new mail cannot be kept"),
            Self::Stale(None) => f.write_str("the signatures are too old"),
            Self::Stale(Some(replica)) => write!(f, "the signatures of {replica} are too old"),
            Self::Differing => f.write_str("the replicas have different signatures"),
        }
    }
}

/// What an incident does to the story of its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// A condition begins, or is seen again.
    Begins(Condition),
    /// A condition ends.
    Ends(Condition),
    /// Something happened once.
    Event,
}

impl Effect {
    /// The effect of an incident. `is_learned`: the learner made the interceptor that the incident is about.
    pub(super) fn of(incident: &Incident, is_learned: bool) -> Self {
        let replica = || match &incident.subject {
            Subject::Engine { replica, .. } => replica.clone(),
            _ => None,
        };
        let subject = || incident.subject.to_string();
        match incident.kind {
            Kind::BreakerOpened | Kind::BreakerProbing => Self::Begins(Condition::Out(replica())),
            Kind::BreakerClosed => Self::Ends(Condition::Out(replica())),
            Kind::Drained => Self::Begins(Condition::Drained(replica())),
            Kind::Resumed => Self::Ends(Condition::Drained(replica())),
            Kind::InterceptorMade if is_learned && !is_shadow(incident) => {
                Self::Begins(Condition::Intercepting(interceptor(incident)))
            }
            Kind::InterceptorLifted => Self::Ends(Condition::Intercepting(interceptor(incident))),
            Kind::RecoveryBegun => Self::Begins(Condition::Recovering(subject())),
            Kind::RecoveryEnded => Self::Ends(Condition::Recovering(subject())),
            Kind::NextHopPaced | Kind::NextHopDead => Self::Begins(Condition::HeldBack),
            Kind::NextHopAlive => Self::Ends(Condition::HeldBack),
            Kind::AdmissionRefuses => Self::Begins(Condition::Refusing),
            Kind::AdmissionAccepts => Self::Ends(Condition::Refusing),
            Kind::QuarantineFilling => Self::Begins(Condition::Filling),
            Kind::QuarantineRoomy => Self::Ends(Condition::Filling),
            Kind::StoreTrouble => Self::Begins(Condition::StoreTrouble),
            Kind::StoreWell => Self::Ends(Condition::StoreTrouble),
            Kind::SignaturesStale => Self::Begins(Condition::Stale(replica())),
            Kind::ReplicasDiffer => Self::Begins(Condition::Differing),
            Kind::Strike
            | Kind::LateAnswer
            | Kind::ScanLost
            | Kind::WorkersLost
            | Kind::InterceptorMade
            | Kind::InterceptorChanged
            | Kind::ProbeFailed
            | Kind::Drift
            | Kind::LateFinding => Self::Event,
        }
    }
}

/// The cause of an incident and its topic. `learned_for` is the engine because of which the learner made an interceptor.
pub(super) fn cause_of(
    incident: &Incident,
    learned_for: impl Fn(&str) -> Option<String>,
) -> (Subject, Topic) {
    let named = || incident.engine().map(Subject::engine);
    let topic = match incident.kind {
        Kind::SignaturesStale | Kind::ReplicasDiffer => Topic::Signatures,
        // A virus in delivered mail has a story of its own, and people are told of it, whatever else the engine does.
        Kind::LateFinding => Topic::Finding,
        _ => Topic::Trouble,
    };
    let cause = match (&incident.subject, incident.kind) {
        (Subject::Engine { name, .. }, _) => Subject::engine(name.clone()),
        (Subject::Interceptor(id), _) => {
            let of = named().or_else(|| learned_for(id).map(Subject::engine));
            of.unwrap_or_else(|| incident.subject.clone())
        }
        (Subject::Relay, Kind::QuarantineFilling | Kind::QuarantineRoomy) => Subject::Quarantine,
        (Subject::Relay, Kind::StoreTrouble | Kind::StoreWell) => Subject::Store,
        (Subject::Relay, _) => named().unwrap_or(Subject::Relay),
        (other, _) => other.clone(),
    };
    (cause, topic)
}

fn interceptor(incident: &Incident) -> String {
    match &incident.subject {
        Subject::Interceptor(id) => id.clone(),
        other => other.to_string(),
    }
}

/// Whether the incident is about an interceptor that only counts, so that it does nothing to mail.
fn is_shadow(incident: &Incident) -> bool {
    let mut evidence = incident.evidence.iter();
    evidence.any(|(what, value)| what == "mode" && value.starts_with("shadow"))
}

impl Kind {
    /// How much an incident of this kind says about the cause of a story: the story has the kind of the incident that says
    /// most. What people see (an engine gets no mail) comes before single signs of it.
    pub(super) fn weight(self) -> u8 {
        match self {
            Self::StoreTrouble | Self::BreakerOpened | Self::NextHopDead => 20,
            Self::Drained => 19,
            Self::QuarantineFilling | Self::NextHopPaced => 18,
            Self::AdmissionRefuses => 17,
            Self::LateFinding => 16,
            Self::WorkersLost => 15,
            Self::ProbeFailed => 14,
            Self::InterceptorMade => 13,
            Self::InterceptorChanged => 12,
            Self::ScanLost => 11,
            Self::SignaturesStale => 10,
            Self::ReplicasDiffer => 9,
            Self::Drift => 8,
            Self::BreakerProbing => 7,
            Self::Strike => 6,
            Self::LateAnswer => 5,
            Self::RecoveryBegun => 2,
            Self::BreakerClosed
            | Self::InterceptorLifted
            | Self::Resumed
            | Self::NextHopAlive
            | Self::RecoveryEnded
            | Self::AdmissionAccepts
            | Self::QuarantineRoomy
            | Self::StoreWell => 1,
        }
    }

    /// Whether a story of this kind is worth a person's attention at once. A strike, a late answer and a probe are not.
    pub(super) fn is_told(self) -> bool {
        self.weight() >= Self::Drift.weight()
    }

    /// Whether an incident of this kind begins a story, if its cause has none: it is a sign of trouble, or a person took an
    /// engine out.
    pub(super) fn begins_story(self) -> bool {
        self.is_trouble()
            || matches!(
                self,
                Self::LateAnswer | Self::Drained | Self::BreakerProbing
            )
    }
}
