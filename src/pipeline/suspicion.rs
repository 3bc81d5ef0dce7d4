//! What is known of a message before it is scanned, and what its scans teach: the path's side of the interceptors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::incident::Incident;
use crate::intercept::{self, Action, EngineState, Interception, Interceptor, Seen};
use crate::message::pattern::Facts;
use crate::message::{Fingerprint, Message, Standing};
use crate::policy::Policy;
use crate::scan::{Act, Detour, Errand, Evidence, Observed, Scanner};

/// What is known of a message.
pub(super) struct Looked {
    /// What it is the same as.
    pub(super) fingerprint: Arc<Fingerprint>,
    /// What speaks for its sender.
    pub(super) standing: Standing,
    /// The interceptor that holds it, and why.
    pub(super) held: Option<(String, String)>,
}

/// The interceptors, shared by all messages.
#[derive(Debug)]
pub(super) struct Suspicion {
    interception: Mutex<Interception>,
    /// The version of the interceptors that the engines have as detours, and the engines.
    diverted: Mutex<Option<(u64, Vec<Arc<str>>)>>,
}

impl Suspicion {
    pub(super) fn new(settings: intercept::Settings) -> Self {
        Self {
            interception: Mutex::new(Interception::new(Instant::now(), settings)),
            diverted: Mutex::default(),
        }
    }

    /// The state machine itself.
    pub(super) fn lock(&self) -> MutexGuard<'_, Interception> {
        lock(&self.interception)
    }

    /// Looks at a message that is about to be scanned. One that was held, and is scanned to find out, is held
    /// by none that was learned.
    pub(super) fn look(
        &self,
        message: &Message,
        fingerprint: Arc<Fingerprint>,
        subject: &str,
        errand: Errand,
    ) -> Looked {
        let facts = Facts {
            envelope: &message.envelope,
            subject,
            fingerprint: &fingerprint,
        };
        let mut interception = self.lock();
        let held = match errand {
            Errand::Fresh => interception.arrived(Instant::now(), message.id, &facts, &fingerprint),
            Errand::Again => interception.holds(&facts),
            Errand::Redrive => interception.person_holds(&facts),
        };
        let standing = interception.standing(&fingerprint);
        drop(interception);
        Looked {
            fingerprint,
            standing,
            held,
        }
    }

    /// It was scanned well by everybody.
    pub(super) fn scanned_well(&self, looked: &Looked) {
        self.lock()
            .judged_clean(Instant::now(), &looked.fingerprint);
    }

    /// Concludes from evidence, and puts the conclusions in force at the engines. What was done.
    pub(super) fn tick(
        &self,
        scanner: &Scanner,
        policy: &Policy,
        seen: Vec<(Arc<str>, Evidence)>,
    ) -> Vec<Incident> {
        let now = Instant::now();
        let engines = states(scanner, policy);
        for (engine, state) in scanner.engines().iter().zip(&engines) {
            engine.cover(state.covered);
        }
        let mut interception = self.lock();
        let mut incidents = Vec::new();
        for (engine, evidence) in seen {
            if let Some(evidence) = translated(evidence) {
                incidents.extend(interception.observe(now, &engine, &evidence));
            }
        }
        incidents.extend(interception.tick(now, &engines));
        let names: Vec<Arc<str>> = scanner.settings().map(|s| s.name.clone()).collect();
        let current = Some((interception.version(), names));
        let mut diverted = lock(&self.diverted);
        if *diverted != current {
            for settings in scanner.settings() {
                let detours = interception
                    .list()
                    .filter_map(|i| detour(i, &settings.name));
                scanner.divert(&settings.name, detours.collect());
            }
            *diverted = current;
        }
        incidents
    }

    /// Interceptors whose mail may be scanned again: those that have ended, and those of the learner that hold.
    pub(super) fn recoverable(&self) -> (Vec<String>, Vec<String>) {
        self.lock().recoverable()
    }
}

/// How the engines are, and which of them mail can be judged without.
fn states<'a>(scanner: &'a Scanner, policy: &Policy) -> Vec<EngineState<'a>> {
    let engines = scanner.engines();
    let state = |engine: &'a crate::scan::Guarded| {
        let settings = engine.settings();
        let others = engines.iter().filter(|other| {
            let of = other.settings();
            of.class == settings.class && of.name != settings.name && !other.is_out()
        });
        EngineState {
            name: &settings.name,
            is_out: engine.is_out(),
            covered: others.count() >= policy.required(settings.class),
        }
    };
    engines.iter().map(state).collect()
}

/// What an interceptor means at an engine's gate. Only patterns of traits have a meaning there; others are looked at when
/// a message comes in.
fn detour(interceptor: &Interceptor, engine: &str) -> Option<Detour> {
    let act = match &interceptor.action {
        Action::Hold => Act::Hold,
        Action::Park { engine: of } if of == engine => Act::Park,
        Action::Bypass { engine: of } if of == engine => Act::Bypass,
        Action::Park { .. } | Action::Bypass { .. } => return None,
    };
    let traits = interceptor.pattern.only_traits()?;
    (!interceptor.dry_run).then(|| Detour {
        id: interceptor.id.as_str().into(),
        traits: traits.into(),
        act,
    })
}

/// An engine that could not be asked, and scans that never ended, are evidence of nothing here.
fn translated(evidence: Evidence) -> Option<intercept::Evidence> {
    let (seen, found) = match evidence.what {
        Observed::Fast { found } => (Seen::Fast, found),
        Observed::Slow => (Seen::Slow, false),
        Observed::TimedOut => (Seen::TimedOut, false),
        Observed::Ended { found } => (Seen::InTime, found),
        Observed::Late { found } => (Seen::Late, found),
        Observed::Broken => (Seen::Broken, false),
        Observed::Failed | Observed::Lost => return None,
    };
    Some(intercept::Evidence {
        message: evidence.message,
        fingerprint: evidence.fingerprint,
        fresh: evidence.errand == Errand::Fresh,
        started: evidence.started,
        seen,
        found,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::deadline::wall_clock;
    use crate::intercept::Origin;
    use crate::message::Pattern;
    use crate::pipeline::tests::engine as scripted_engine;
    use crate::verdict::EngineClass;

    /// An interceptor in dry run changes nothing at a gate, whatever it would do; one for another engine neither.
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
            detour(&interceptor, engine).is_some()
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

    /// An engine is made up for by others of its class that take mail, as many as coverage asks for: one that is out makes up for
    /// nobody, or its class would be bypassed and no engine would look at it.
    #[tokio::test(start_paused = true)]
    async fn an_engine_that_is_out_makes_up_for_nobody() {
        let engine = |name: &'static str| scripted_engine(name, Duration::from_secs(5), |_| None);
        let engines = vec![
            engine("one").await,
            engine("other").await,
            engine("third").await,
        ];
        let scanner = Scanner::new(engines, None).expect("engines");
        for (required, out, covered) in [
            (1, 0, true),
            (1, 1, true),
            (1, 2, false),
            (2, 0, true),
            (2, 1, false),
        ] {
            let mut settings = crate::config::load(None)
                .unwrap_or_else(|problems| panic!("{problems}"))
                .policy;
            settings.coverage = [(EngineClass::Av, required)].into_iter().collect();
            let policy = Policy::new(settings, "test".into());
            for (at, other) in scanner.engines().iter().skip(1).enumerate() {
                other.drain(None, at < out);
            }
            let states = states(&scanner, &policy);
            assert!(!states[0].is_out);
            assert_eq!(states[0].covered, covered, "{out} out, {required} required");
        }
    }
}
