//! What an engine loses although interceptors are in force: workers that are busy with messages that no interceptor covers,
//! and the whole engine where one message makes it go away.

use std::sync::Arc;

use tokio::time::Instant;

use super::Mode;
use super::interception::{EngineState, Interception};
use super::learned::Active;
use crate::incident::{Incident, Kind, Subject};
use crate::measure::SizeClass;
use crate::message::{Fingerprint, MessageId};
use crate::observation::{Evidence, Observed, ScanReason};

/// Messages that an incident names: 5, because a person looks at each of them.
const MESSAGES_NAMED_MAX: usize = 5;

impl Interception {
    /// Reports that messages without an interceptor hang in at least half of an engine's workers (and in two at least): from
    /// half on, mail of unknown senders waits. Reports once, and again only after such messages held fewer than a quarter of
    /// the workers.
    pub(super) fn loss_incident(&mut self, engine: &EngineState<'_>) -> Option<Incident> {
        let suspected = self.active.values().filter_map(Active::suspects);
        let suspected: Vec<_> = suspected.filter(|(of, _)| ***of == *engine.name).collect();
        let is_explained = |f: &Fingerprint| suspected.iter().any(|(_, like)| like.matches(f));
        let overdue = self.trials.overdue(engine.name);
        let lost: Vec<MessageId> = overdue
            .filter(|(_, fingerprint)| !is_explained(fingerprint))
            .map(|(message, _)| message)
            .collect();
        if lost.len() * 4 < engine.slots {
            self.losing.remove(engine.name);
        }
        let is_loss = lost.len() >= 2 && lost.len() * 2 >= engine.slots;
        if !is_loss || !self.losing.insert(engine.name.into()) {
            return None;
        }
        let subject = subject(engine.name);
        let (count, slots) = (lost.len(), engine.slots);
        let summary = format!(
            "{subject}: {count} of {slots} workers are busy with messages that no interceptor covers"
        );
        let named: Vec<String> = lost
            .iter()
            .take(MESSAGES_NAMED_MAX)
            .map(MessageId::to_string)
            .collect();
        let advice = "look at them with `spillway explain ID`; lower the engine's own time limit for one scan; give it more \
                      workers, and `slots`";
        let incident = Incident::new(Kind::WorkersLost, subject, summary)
            .with("messages", named.join(", "))
            .with("what helps", advice);
        Some(incident)
    }

    /// The engine went away while it scanned all messages of `in_flight`. Returns incidents once the message at fault is
    /// known. Does nothing unless the mode is [`Mode::On`].
    pub fn crashed(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        in_flight: &[(MessageId, Arc<Fingerprint>)],
    ) -> Vec<Incident> {
        if self.settings.mode != Mode::On {
            return Vec::new();
        }
        self.version += 1;
        let Some(culprit) = self.crashes.crashed(now, engine, in_flight) else {
            return Vec::new();
        };
        let subject = subject(engine);
        let summary = format!("{subject} goes away on one message, which is held");
        let incident = Incident::new(Kind::Strike, subject, summary)
            .with("crashes that it met", culprit.met)
            .with("in flight at the last one", in_flight.len())
            .about(culprit.message);
        // A crash with several messages in flight is no strike. This crash is one, because the message at fault is known.
        let evidence = Evidence {
            message: culprit.message,
            reputation: self.reputation(&culprit.fingerprint),
            fingerprint: culprit.fingerprint,
            scan_reason: ScanReason::Again,
            size: SizeClass::Tiny,
            arrived: now,
            started: now,
            at: now,
            what: Observed::Broken,
        };
        let mut incidents = vec![incident];
        incidents.extend(self.observe(now, engine, &evidence));
        incidents
    }

    /// The engine that goes away on this message, if there is one. Always `None` unless the mode is [`Mode::On`].
    pub fn goes_away_on(&self, message: MessageId) -> Option<Arc<str>> {
        let is_on = self.settings.mode == Mode::On;
        self.crashes.barred_from(message).filter(|_| is_on).cloned()
    }
}

fn subject(engine: &str) -> Subject {
    Subject::Engine {
        name: engine.to_owned(),
        replica: None,
    }
}
