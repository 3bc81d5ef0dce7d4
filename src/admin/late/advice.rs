//! What to do about late mail: one sentence for each thing that it waits for. docs/OPERATIONS.md has the same sentences in its
//! section "What is late"; a test compares them. Sentences about engines, next hops and interceptors in trouble are those of the
//! incidents.

use crate::admin::waits::slow;
use crate::admin::{WaitsFor, What};
use crate::incident::{Kind, advice};
use crate::scan::Health;
use crate::store::{Lane, LateMail};

/// A sentence. `NAME` in it is the name of the engine or next hop, `ID` the id of an interceptor or of one of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::admin) enum Advice {
    /// That of an incident.
    Of(Kind),
    /// An engine fails on mail that waits.
    Failing,
    /// An engine fails on mail that is held for it.
    FailingHeld,
    /// All slots of an engine are taken.
    Slots,
    /// An engine takes long for a message.
    Slow,
    /// The engine is no longer configured.
    Removed,
    /// No next hop takes the domain.
    Route,
    /// The next hop is no longer configured.
    Rerouted,
    /// A next hop puts messages off.
    PutOff,
    /// Mail is being delivered.
    Delivering,
    /// Senders wait for the reply.
    InSession,
    /// Mail is scanned again by itself.
    Again,
    /// There is more than is shown.
    More,
}

impl Advice {
    /// All sentences that are not those of an incident.
    #[cfg(test)]
    pub(in crate::admin) const OWN_SENTENCES: [Self; 12] = [
        Self::Failing,
        Self::FailingHeld,
        Self::Slots,
        Self::Slow,
        Self::Removed,
        Self::Route,
        Self::Rerouted,
        Self::PutOff,
        Self::Delivering,
        Self::InSession,
        Self::Again,
        Self::More,
    ];

    pub(in crate::admin) fn text(self) -> &'static str {
        match self {
            Self::Of(kind) => advice(kind),
            Self::Failing => {
                "Engine NAME works, but not for this mail: `spillway queue show ID` shows a message and the error. Correct the engine (its log, its limits), or let mail pass without it for a while: `spillway engine drain NAME --pass --for 10m --reason test`; otherwise the mail goes to quarantine."
            }
            Self::FailingHeld => {
                "Engine NAME works, but not for this mail: `spillway quarantine show ID` shows a message and the error. Correct the engine (its log, its limits), or deliver the message without it: `spillway quarantine release ID`."
            }
            Self::Slots => {
                "All slots of engine NAME are taken: give it more capacity and raise its `slots`; `spillway engine show NAME` shows its load, and what was measured."
            }
            Self::Slow => {
                "Engine NAME takes long: look at its log and its load; `spillway engine show NAME` shows its scan times, and proposes `timeout` and `slots`."
            }
            Self::Removed => "Nothing: mail for an engine that was removed is scanned without it.",
            Self::Route => {
                "Add the domain to `domains` of a `[[next_hop]]`, then `spillway reload`; `spillway queue show ID` shows the recipients of a message."
            }
            Self::Rerouted => {
                "Nothing: mail for a next hop that was removed goes to the one that takes its domain now; if none does, add the domain to a `[[next_hop]]`, then `spillway reload`."
            }
            Self::PutOff => {
                "`spillway queue show ID` shows the last reply about a message; `spillway queue retry ID` tries that message now."
            }
            Self::Delivering => {
                "Nothing, if the number falls: the mail is being delivered; otherwise the next hop is slow: look at its log, or raise its `connections`."
            }
            Self::InSession => {
                "Nothing: when `budget.session` has passed, the relay stores the message, its sender gets 250, and the work goes on."
            }
            Self::Again => {
                "Nothing: the relay scans it again by itself; `spillway explain ID` shows why a message waits."
            }
            Self::More => "`spillway queue list` shows what each message waits for.",
        }
    }

    /// The sentence with names and ids, so that its commands can be copied.
    pub(super) fn about(
        self,
        mail: &LateMail,
        waits_for: &WaitsFor,
        engine: Option<&str>,
    ) -> String {
        let name = engine.or(waits_for.name.as_deref()).unwrap_or("NAME");
        let id = match (waits_for.what, &waits_for.name, mail.example) {
            (What::Interceptor, Some(id), _) => id.clone(),
            (_, _, Some(id)) => id.to_string(),
            (_, _, None) => "ID".to_owned(),
        };
        // A name may contain "ID", and an id "NAME".
        let parts = self
            .text()
            .split("NAME")
            .map(|part| part.replace("ID", &id));
        parts.collect::<Vec<_>>().join(name)
    }
}

/// What to do about late mail, and the engine that it is about, if that is not what the mail waits for.
pub(super) fn advised<'a>(
    mail: &LateMail,
    waits_for: &WaitsFor,
    engines: &'a [Health],
) -> (Advice, Option<&'a str>) {
    let is = |state: &str| waits_for.state.as_deref() == Some(state);
    let of_delivery = mail.lane == Lane::Delivery;
    let text = match waits_for.what {
        What::Engine => {
            let named = |health: &&Health| Some(&*health.engine) == waits_for.name.as_deref();
            about_engine(engines.iter().find(named))
        }
        What::Failing if mail.lane == Lane::Held => Advice::FailingHeld,
        What::Failing => Advice::Failing,
        What::NextHop => Advice::Of(Kind::NextHopDead),
        What::Interceptor => Advice::Of(Kind::InterceptorMade),
        What::Route if waits_for.name.is_some() => Advice::Rerouted,
        What::Route => Advice::Route,
        What::Turn if of_delivery && is("paced") => Advice::Of(Kind::NextHopPaced),
        What::Retry if of_delivery => Advice::PutOff,
        What::Turn | What::Work if of_delivery => Advice::Delivering,
        What::Relay | What::Work | What::Retry | What::Turn => match troubled(engines) {
            Some(engine) => return (about_engine(Some(engine)), Some(&engine.engine)),
            None if mail.in_session => Advice::InSession,
            None => Advice::Again,
        },
    };
    (text, None)
}

/// The engine that is most in trouble: one that takes no mail, else one that takes a part, else one whose slots are all taken
/// while mail waits, else one that is slow.
pub(super) fn troubled(engines: &[Health]) -> Option<&Health> {
    let find = |is: fn(&Health) -> bool| engines.iter().find(|health| is(health));
    find(Health::is_out)
        .or_else(|| find(|health| !health.is_well()))
        .or_else(|| find(is_full))
        .or_else(|| slow(engines))
}

fn is_full(health: &Health) -> bool {
    health.waiting > 0 && health.running >= health.slots
}

fn about_engine(health: Option<&Health>) -> Advice {
    let Some(health) = health else {
        return Advice::Removed;
    };
    let is_slow = slow(std::slice::from_ref(health)).is_some();
    match (health.is_out(), health.is_drained()) {
        (true, true) => Advice::Of(Kind::Drained),
        (true, false) => Advice::Of(Kind::BreakerOpened),
        (false, _) if is_full(health) => Advice::Slots,
        (false, _) if is_slow => Advice::Slow,
        (false, _) => Advice::Of(Kind::RecoveryBegun),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sentence says what to do, in the program and in the manual alike: whoever reads it in a status finds its row.
    #[test]
    fn the_manual_gives_the_same_advice() {
        let manual = include_str!("../../../docs/OPERATIONS.md");
        for advice in Advice::OWN_SENTENCES {
            let cell = format!("| {} |\n", advice.text());
            assert!(manual.contains(&cell), "docs/OPERATIONS.md needs: {cell}");
        }
    }
}
