//! The diversions at the gate of an engine: one for each interceptor that the gate applies, and those for the suspects of a
//! crash.

use std::sync::Arc;

use super::crash::Crashed;
use super::{Action, Interception, Interceptor, Mode};
use crate::message::MessageId;
use crate::observation::{Diversion, DiversionAct};

/// The reason for holding a message that makes an engine go away, and the id of the diversion at the gate.
pub const CRASH_REASON: &str = "it made the engine go away, alone, more than once";

impl Interception {
    /// The diversions at the gate of an engine.
    pub fn diversions(&self, engine: &str) -> Arc<[Diversion]> {
        let of_interceptors = self.list().filter_map(|i| diversion(i, engine));
        crash_diversions(self.suspects_of_crashes(engine))
            .into_iter()
            .chain(of_interceptors)
            .collect()
    }

    /// The messages that the gate of an engine must keep back because of its crashes. Empty unless the mode is [`Mode::On`].
    pub(super) fn suspects_of_crashes(&self, engine: &str) -> Crashed {
        match self.settings.mode {
            Mode::On => self.crashes.of(engine),
            Mode::Shadow | Mode::Off => Crashed::default(),
        }
    }
}

/// The diversions at the gate of an engine that went away, for the suspected messages.
fn crash_diversions(suspects: Crashed) -> [Diversion; 2] {
    let diversion = |id: &str, messages: Vec<MessageId>, act| Diversion {
        id: id.into(),
        traits: Box::new([]),
        near: Box::new([]),
        messages: messages.into(),
        act,
        known: act,
    };
    let turn = "it was in the engine with others when that went away";
    [
        diversion(CRASH_REASON, suspects.barred, DiversionAct::Bar),
        diversion(turn, suspects.waits, DiversionAct::Wait),
    ]
}

/// The diversion for an interceptor at an engine's gate. A gate only knows patterns of traits; other patterns are matched when
/// a message arrives.
fn diversion(interceptor: &Interceptor, engine: &str) -> Option<Diversion> {
    let act = match &interceptor.action {
        Action::Hold => DiversionAct::Hold,
        Action::Park { engine: of } if of == engine => DiversionAct::Park,
        Action::Bypass { engine: of } if of == engine => DiversionAct::Bypass,
        Action::Park { .. } | Action::Bypass { .. } => return None,
    };
    // A learned interceptor parks mail from known senders only while other matching mail is in the engine. If the match is
    // near and not exact, other engines decide.
    let known = match act {
        DiversionAct::Park | DiversionAct::Hold if interceptor.is_near() => DiversionAct::Bypass,
        DiversionAct::Park | DiversionAct::Hold if interceptor.is_learned() => DiversionAct::Park,
        act => act,
    };
    let pattern = &interceptor.pattern;
    (pattern.is_of_traits() && !interceptor.dry_run).then(|| Diversion {
        id: interceptor.id.as_str().into(),
        traits: pattern.traits.as_slice().into(),
        near: pattern.near.as_slice().into(),
        messages: Box::new([]),
        act,
        known,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::wall_clock;
    use crate::intercept::Origin;
    use crate::message::Pattern;

    /// An interceptor in dry run changes nothing at a gate, whatever its action; nor does an interceptor for another engine.
    #[test]
    fn a_dry_run_diverts_nothing() {
        let diverts = |action: Action, dry_run, engine| {
            let interceptor = Interceptor {
                id: "one".to_owned(),
                pattern: Pattern::of(["skeleton:00c0ffee00c0ffee".parse().expect("a trait")]),
                action,
                origin: Origin::Person {
                    who: "root".to_owned(),
                    note: String::new(),
                },
                made: wall_clock(),
                expires: None,
                dry_run,
                hits: 0,
                samples: Vec::new(),
            };
            diversion(&interceptor, engine).is_some()
        };
        let engine = || "clamd".to_owned();
        for action in [
            Action::Hold,
            Action::Park { engine: engine() },
            Action::Bypass { engine: engine() },
        ] {
            assert!(diverts(action.clone(), false, "clamd"), "{action:?}");
            assert!(!diverts(action.clone(), true, "clamd"), "{action:?}");
            let others = diverts(action.clone(), false, "rspamd");
            assert_eq!(others, action == Action::Hold, "{action:?}");
        }
    }

    /// A learned interceptor does not hold a known sender's mail at a gate: the mail waits, or other engines decide if the match
    /// is only near. An interceptor made by a person applies to all senders.
    #[test]
    fn what_was_learned_holds_no_known_sender_at_a_gate() {
        let band = "near:00c0ffee00c0ffee".parse().expect("a trait");
        let learned = Origin::Learned {
            evidence: Vec::new(),
            engine: "clamd".to_owned(),
            narrow: true,
            bad: false,
        };
        let person = Origin::Person {
            who: "root".to_owned(),
            note: String::new(),
        };
        let known = |origin: &Origin, pattern: Pattern| {
            let interceptor = Interceptor {
                id: "one".to_owned(),
                pattern,
                action: Action::Hold,
                origin: origin.clone(),
                made: wall_clock(),
                expires: None,
                dry_run: false,
                hits: 0,
                samples: Vec::new(),
            };
            diversion(&interceptor, "clamd").map(|diversion| (diversion.act, diversion.known))
        };
        assert_eq!(
            known(&learned, Pattern::of([band])),
            Some((DiversionAct::Hold, DiversionAct::Park))
        );
        assert_eq!(
            known(&learned, Pattern::nearly([band; 8])),
            Some((DiversionAct::Hold, DiversionAct::Bypass))
        );
        assert_eq!(
            known(&person, Pattern::of([band])),
            Some((DiversionAct::Hold, DiversionAct::Hold))
        );
    }
}
