//! What the admin surfaces ask of a running relay: status, engines, reload, drain.

use crate::admin::{Control, EngineAsked, Late, ListenerStatus, Status, Stored, Tested, Waits};
use crate::deadline::wall_clock;
use crate::incident::{self, Incident, Subject};
use crate::pipeline::Generation;
use crate::scan::{Guarded, Health, Passed};
use crate::store::Store;

use super::Core;
use super::reload::{Files, Next};

impl Control for Core {
    async fn status(&self) -> Status {
        let config = self.lock().clone();
        let waits = self.waits();
        let late = self.store.late(Late::times(wall_clock()));
        let stored = Stored::from(
            self.store.stats(),
            self.store.oldest_outgoing(),
            self.store.held(config.quarantine.max_bytes),
            (late, &waits),
        );
        let mut stored = stored.await;
        if let Some(stored) = &mut stored {
            let stories = self.incidents.open_stories();
            Late::name_incidents(&mut stored.late, &stories, &waits.engines);
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: config.relay.hostname.to_string(),
            config: config.version.to_string(),
            config_file: self.path.clone(),
            started: self.started,
            draining: self.closing.is_cancelled(),
            not_ready: self.ready().err(),
            delay: self.pipeline.delays(),
            refused: self.admission.load().refusing,
            listeners: config
                .listeners
                .iter()
                .zip(&self.listeners)
                .map(|(settings, listener)| ListenerStatus {
                    name: settings.name.to_string(),
                    addresses: listener.addresses().to_vec(),
                })
                .collect(),
            sessions: self.sessions.open() as u64,
            memory_available: self.pipeline.memory().available(),
            stored,
            engines: waits.engines,
            next_hops: waits.next_hops,
            recovery: self.recovery.clone(),
        }
    }

    fn waits(&self) -> Waits {
        Waits {
            at_work: self.store.at_work().all(),
            engines: self.engines(),
            next_hops: self.pipeline.generation().delivery.status(),
        }
    }

    fn engines(&self) -> Vec<Health> {
        let generation = self.pipeline.generation();
        let engines = generation.scanner.engines().iter();
        engines.map(Guarded::health).collect()
    }

    fn drain_engine(&self, asked: &EngineAsked, drained: bool) -> Result<(), String> {
        let generation = self.pipeline.generation();
        let engine = named(&generation, asked)?;
        match engine.drain(asked.replica.as_deref(), drained) {
            Some(true) => {}
            Some(false) if drained => return Ok(()),
            Some(false) => return Err(not_drained(&engine.health())),
            None => {
                let replica = asked.replica.as_deref().unwrap_or_default();
                return Err(format!(
                    "engine {} has no replica {replica}; see: spillway engine show NAME",
                    asked.engine
                ));
            }
        }
        let subject = Subject::Engine {
            name: asked.engine.clone(),
            replica: asked.replica.clone(),
        };
        let (kind, what) = match drained {
            true => (incident::Kind::Drained, "was drained"),
            false => (incident::Kind::Resumed, "was resumed"),
        };
        let reason = match asked.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        let summary = format!("{subject} {what} by {}{reason}", asked.who);
        self.incidents.record(Incident::new(kind, subject, summary));
        Ok(())
    }

    async fn test_engine(&self, asked: &EngineAsked) -> Result<Vec<Tested>, String> {
        let generation = self.pipeline.generation();
        let shown = named(&generation, asked)?.test().await;
        let tested = |(replica, result)| {
            let (wrong, answered) = match result {
                Ok(Passed::Pair) => (None, None),
                Ok(Passed::Answered(names)) => (None, Some(names)),
                Err(wrong) => (Some(wrong), None),
            };
            Tested {
                replica,
                wrong,
                answered,
            }
        };
        Ok(shown.into_iter().map(tested).collect())
    }

    fn ready(&self) -> Result<(), String> {
        if self.closing.is_cancelled() {
            return Err("draining".to_owned());
        }
        self.store.accepts().map_err(|error| error.to_string())
    }

    async fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        let before = self.pipeline.generation();
        let build = move |files| Next::build(files, &before);
        let next = self.readings.read(self.path.clone(), Files::read, build);
        let next = next.await;
        let applied = next.and_then(|next| self.apply(next));
        match &applied {
            Ok(difference) => tracing::info!(?difference, "reloaded"),
            Err(problems) => tracing::error!(?problems, "reload refused, nothing changed"),
        }
        applied
    }

    fn drain(&self) {
        self.drain.cancel();
    }

    fn wake(&self) {
        self.pipeline.wake();
    }

    async fn flush(&self) {
        self.history.flush().await;
        self.incidents.flush().await;
    }
}

fn named<'a>(generation: &'a Generation, asked: &EngineAsked) -> Result<&'a Guarded, String> {
    let mut engines = generation.scanner.engines().iter();
    let named = engines.find(|engine| *engine.settings().name == *asked.engine);
    named.ok_or_else(|| {
        format!(
            "there is no engine {:?}; see: spillway engine list",
            asked.engine
        )
    })
}

/// The error for a resume of an engine that is not drained: its state, and what the administrator can do.
fn not_drained(health: &Health) -> String {
    let (engine, states) = (&health.engine, health.states());
    let why = match health.is_well() {
        true => "it gets all its mail".to_owned(),
        false => format!(
            "its state is {states}. The relay tries it again by itself, and its mail comes back step by step (ramp) once it \
             works; `spillway engine test {engine}` shows what is wrong"
        ),
    };
    format!("engine {engine} is not drained; {why}")
}
