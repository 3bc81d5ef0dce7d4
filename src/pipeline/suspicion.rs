//! The pipeline's interface to the interceptors: looks up a message before its scan, and passes the evidence of scans on.
//!
//! A crash is here what the evidence of one round of the watch shows of an engine that closed connections during scans: one
//! connection or several.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::incident::Incident;
use crate::intercept::{self, CRASH_REASON, EngineState, Interception, Ruling};
use crate::message::ComparedAddress;
use crate::message::pattern::Facts;
use crate::message::{Fingerprint, Message, MessageId, SenderReputation};
use crate::observation::{Evidence, Observed, ScanReason};
use crate::policy::Policy;
use crate::scan::Scanner;
use crate::verdict::EngineClass;

/// The rule that holds a message that makes an engine go away. A reviewer decides, because each further scan would cost the
/// engine all scans under way.
pub(super) const CRASH_RULE: &str = "guard.crashes";

/// The result of the look-up for one message ([`SharedInterception::look`]).
pub(super) struct LookedUp {
    /// The fingerprint for the gates of the engines, without the traits that are on trial or cleared (see
    /// [`Interception::judge`]).
    pub(super) fingerprint: Arc<Fingerprint>,
    /// The whole fingerprint.
    whole: Arc<Fingerprint>,
    /// Reputation of the sender.
    pub(super) reputation: SenderReputation,
    /// The rule that holds the message, and the reason.
    pub(super) held: Option<(String, String)>,
}

/// The interceptors and the learner, shared by all messages.
#[derive(Debug)]
pub(super) struct SharedInterception {
    interception: Mutex<Interception>,
    /// The version of the interceptors that the gates of the engines have as diversions, and the names of these engines.
    diverted: Mutex<Option<(u64, Vec<Arc<str>>)>>,
}

impl SharedInterception {
    pub(super) fn new(settings: intercept::Settings) -> Self {
        Self {
            interception: Mutex::new(Interception::new(Instant::now(), settings)),
            diverted: Mutex::default(),
        }
    }

    /// The state machine itself. No lock of a gate may be held: [`tick`](Self::tick) takes this lock first, then those of gates.
    pub(super) fn lock(&self) -> MutexGuard<'_, Interception> {
        lock(&self.interception)
    }

    /// Looks up a message before any engine gets it, once in each pass: what gates see of it, the reputation of its sender, and
    /// what holds it. Learned interceptors do not hold a message that was held before and is scanned to test its cause
    /// ([`ScanReason::Redrive`]).
    pub(super) fn look(
        &self,
        message: &Message,
        fingerprint: Arc<Fingerprint>,
        subject: &str,
        scan_reason: ScanReason,
    ) -> LookedUp {
        let facts = Facts {
            envelope: &message.envelope,
            sender: &ComparedAddress::of_sender(&message.envelope.reverse_path),
            subject,
            fingerprint: &fingerprint,
        };
        let mut interception = self.lock();
        let (now, id) = (Instant::now(), message.id);
        let Ruling { exemption, shown } = interception.judge(now, id, &fingerprint);
        let held = match scan_reason {
            ScanReason::Fresh => interception.arrived(now, id, &facts, &fingerprint, exemption),
            ScanReason::Again => interception.holds(&facts, exemption),
            ScanReason::Redrive => interception.person_holds(&facts),
        };
        let held = held.map(|(interceptor, why)| (format!("interceptor.{interceptor}"), why));
        let crashes = interception.goes_away_on(id);
        let crashes =
            crashes.map(|engine| (CRASH_RULE.to_owned(), format!("{engine}: {CRASH_REASON}")));
        let held = crashes.or(held);
        let reputation = interception.reputation(&fingerprint);
        drop(interception);
        LookedUp {
            fingerprint: shown,
            whole: fingerprint,
            reputation,
            held,
        }
    }

    /// Adds a message to the baseline. Call this when all engines have scanned the message and found it clean.
    pub(super) fn scanned_well(&self, looked: &LookedUp) {
        self.lock().scanned_well(Instant::now(), &looked.whole);
    }

    /// One round of the watch, four times a second: tells each gate whether other engines cover for its engine, updates the
    /// interceptors from the evidence since the last round, and sets the resulting diversions at the gates. Returns the
    /// incidents.
    pub(super) fn tick(
        &self,
        scanner: &Scanner,
        policy: &Policy,
        seen: Vec<(Arc<str>, Evidence)>,
    ) -> Vec<Incident> {
        let now = Instant::now();
        let engines = states(scanner, policy);
        for (engine, state) in scanner.engines().iter().zip(&engines) {
            // While the breaker of a covered engine is open, fresh mail does not wait for that engine.
            engine.cover(state.covered);
        }
        let mut interception = self.lock();
        let mut incidents = Vec::new();
        let crashes = crashes(&seen);
        for (engine, mut evidence) in seen {
            // Of several messages in flight at a crash, most had no part in it. `Broken` would be a strike against each of
            // them, so they count as `Lost`, which is none. `crashed` below then searches for the message at fault.
            let is_one_of_many = crashes.get(&engine).is_some_and(|all| all.len() > 1);
            if evidence.what == Observed::Broken && is_one_of_many {
                evidence.what = Observed::Lost;
            }
            incidents.extend(interception.observe(now, &engine, &evidence));
        }
        for (engine, in_flight) in &crashes {
            incidents.extend(interception.crashed(now, engine, in_flight));
        }
        incidents.extend(interception.tick(now, &engines));
        let names: Vec<Arc<str>> = scanner.settings().map(|s| s.name.clone()).collect();
        let current = Some((interception.version(), names));
        let mut diverted = lock(&self.diverted);
        if *diverted != current {
            for settings in scanner.settings() {
                scanner.divert(&settings.name, interception.diversions(&settings.name));
            }
            *diverted = current;
        }
        incidents
    }

    /// Ids of interceptors whose mail may be scanned again: interceptors that have ended or no longer hold, and learned
    /// interceptors that hold.
    pub(super) fn recoverable(&self) -> (Vec<String>, Vec<String>) {
        self.lock().recoverable()
    }
}

/// The state of each engine, and whether the other engines of its class give the required coverage.
fn states<'a>(scanner: &'a Scanner, policy: &Policy) -> Vec<EngineState<'a>> {
    let engines = scanner.engines();
    let facts = engines.iter().map(|engine| {
        let settings = engine.settings();
        (settings.class, &*settings.name, engine.is_out())
    });
    let facts: Vec<(EngineClass, &str, bool)> = facts.collect();
    let state = |engine: &'a crate::scan::Guarded| {
        let (settings, is_out) = (engine.settings(), engine.is_out());
        let (class, name) = (settings.class, &*settings.name);
        EngineState {
            name,
            is_out,
            covered: others_in(&facts, class, name) >= policy.required(class),
            slots: engine.health().slots,
        }
    };
    engines.iter().map(state).collect()
}

/// The number of other engines of that class that take mail; an engine that is out covers nothing.
fn others_in(engines: &[(EngineClass, &str, bool)], class: EngineClass, name: &str) -> usize {
    let others = engines.iter().filter(|(of, other, is_out)| {
        let is_other = *of == class && *other != name;
        is_other && !is_out
    });
    others.count()
}

/// For each engine that has crashed, the messages that were in flight. A crash ends all scans of an engine at once, so all
/// connections that the engine closed in one round count as one crash; with one message in flight, one connection is a crash.
/// Each message is listed once, even if its scan was retried and met the next crash.
fn crashes(
    seen: &[(Arc<str>, Evidence)],
) -> BTreeMap<Arc<str>, Vec<(MessageId, Arc<Fingerprint>)>> {
    let mut crashes: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
    for (engine, evidence) in seen {
        if evidence.what == Observed::Broken {
            let one = (evidence.message, evidence.fingerprint.clone());
            let all = crashes.entry(engine.clone()).or_default();
            if all.iter().all(|(message, _)| *message != evidence.message) {
                all.push(one);
            }
        }
    }
    crashes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pipeline::tests::engine as scripted_engine;
    use crate::scan::Drain;
    use crate::verdict::EngineClass;

    /// An engine is covered by other engines of its class that take mail, as many as coverage requires. An engine that is out
    /// covers no other; otherwise the class would be bypassed and no engine would scan its mail.
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
                match at < out {
                    true => other.drain(None, &Drain::plain()).expect("drained"),
                    false => drop(other.resume(None)),
                }
            }
            let states = states(&scanner, &policy);
            assert!(!states[0].is_out);
            assert_eq!(states[0].covered, covered, "{out} out, {required} required");
        }
    }
}
