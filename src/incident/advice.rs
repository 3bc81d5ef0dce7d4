//! What to do about an incident: one sentence for each kind. docs/OPERATIONS.md has the same sentences in the table of its
//! section "Incidents"; a test compares them.

use super::{Incident, Kind, Subject};

/// What a person should do about an incident of this kind, in one sentence. The sentence holds for the whole story whose most
/// telling incident has this kind.
pub fn advice(kind: Kind) -> &'static str {
    match kind {
        Kind::BreakerOpened | Kind::BreakerProbing => {
            "Repair the engine (`spillway engine test NAME` probes it now), or if `spillway engine show NAME` calls it slow, raise its `timeout`, `slow` and `slots` as proposed there; if mail cannot wait for that, let it pass: `spillway engine drain NAME --pass --for 1h --reason outage`. It gets mail again by itself, and what it missed is scanned then."
        }
        Kind::BreakerClosed | Kind::Resumed => "Nothing: the engine gets all its mail again.",
        Kind::Strike => "Nothing: a second strike by similar mail holds such mail back by itself.",
        Kind::LateAnswer => {
            "If this happens every day, raise `timeout` of the engine or give it more capacity."
        }
        Kind::ScanLost => {
            "If this lasts, restart the engine, and set `limit` above the engine's own time limit for one scan."
        }
        Kind::WorkersLost => {
            "Run `spillway explain ID` for the messages that the incident names; lower the engine's own time limit for one scan and `limit`, or give it more workers and raise `slots`."
        }
        Kind::InterceptorMade | Kind::InterceptorChanged => {
            "Look at its evidence with `spillway intercept show ID`; if it holds good mail, `spillway intercept remove ID`."
        }
        Kind::InterceptorLifted => "Nothing: the held mail is scanned again by itself.",
        Kind::ProbeFailed => {
            "Look at the engine and its signatures, then `spillway engine test NAME`; it gets mail again after two correct answers."
        }
        Kind::SignaturesStale => {
            "Repair the update of the engine's signatures (for ClamAV: freshclam)."
        }
        Kind::ReplicasDiffer => {
            "Update the signatures of the replica that is behind, or `spillway engine drain NAME` for this replica."
        }
        Kind::Drift => {
            "Compare the engine's signatures and rules with those of the day before: it finds much more or less, or scans much slower or faster."
        }
        Kind::Drained => "`spillway engine resume NAME` when the engine is repaired.",
        Kind::NextHopPaced => {
            "Nothing: the relay adapts its rate; if the rate stays too low, ask the administrator of the next hop for more."
        }
        Kind::NextHopDead => {
            "Repair the next hop, or its password; `spillway queue retry --all` probes it now."
        }
        Kind::NextHopAlive => "Nothing: the delayed mail is being delivered.",
        Kind::LateFinding => {
            "Run `spillway explain ID` and tell the recipients: this mail was delivered before the engine found something in it."
        }
        Kind::RecoveryBegun => {
            "Nothing: the relay scans what it kept; `spillway status` shows how much is left."
        }
        Kind::RecoveryEnded => "Nothing: what the relay kept has been scanned.",
        Kind::AdmissionRefuses => {
            "If one sender floods, nothing: the others are accepted; otherwise repair the engine that mail waits for (`spillway engine show NAME`), or give it more slots."
        }
        Kind::QuarantineFilling => {
            "Review with `spillway quarantine list`, then `release` or `delete`; or raise `quarantine.max_bytes` or lower `retention`."
        }
        Kind::QuarantineRoomy => "Nothing: the quarantine has room again.",
        Kind::StoreTrouble => {
            "Free space on the disk of `store.path`, or repair it; if files were moved away, do not stop the relay and put them back."
        }
        Kind::AdmissionAccepts | Kind::StoreWell => "Nothing: the relay accepts mail again.",
    }
}

/// [`advice`] with the name of the engine that is the cause, so that its commands can be copied.
pub fn advice_for(kind: Kind, cause: &Subject) -> String {
    match cause {
        Subject::Engine { name, .. } => advice(kind).replace("NAME", name),
        _ => advice(kind).to_owned(),
    }
}

impl Incident {
    /// [`advice_for`] this incident: about its engine, or the engine that its evidence names.
    pub fn advice(&self) -> String {
        let named = self.engine().map(Subject::engine);
        match &self.subject {
            Subject::Engine { .. } => advice_for(self.kind, &self.subject),
            other => advice_for(self.kind, named.as_ref().unwrap_or(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sentence says what to do about a kind, in the program and in the manual alike.
    #[test]
    fn the_manual_gives_the_same_advice() {
        let manual = include_str!("../../docs/OPERATIONS.md");
        for kind in Kind::ALL {
            let row = format!("| `{}` | {} |", kind.as_str(), advice(kind));
            assert!(manual.contains(&row), "docs/OPERATIONS.md needs: {row}");
        }
    }
    /// The advice about a refusal of mail names the engine that the mail waits for, so that the command can be copied.
    #[test]
    fn the_advice_about_a_refusal_names_the_engine() {
        let incident = Incident::new(Kind::AdmissionRefuses, Subject::Relay, "x");
        assert!(incident.advice().contains("engine show NAME"));
        let named = incident.with(Incident::ENGINE, "clamd");
        assert!(named.advice().contains("`spillway engine show clamd`"));
    }
}
