//! What the admin surfaces ask of a running relay: status, engines, reload, drain.

use std::path::PathBuf;

use crate::admin::{Control, EngineAsked, InForce, ListenerStatus, Status, Stored, Tested, Waits};
use crate::config::{self, Config};
use crate::incident::{self, Incident, Subject};
use crate::pipeline::{Generation, ShadowView};
use crate::scan::{Guarded, Health, Passed};
use crate::store::Store;
use crate::whatif::Terms;

use super::Core;
use super::reload::{self, Files, Next};

impl Control for Core {
    async fn status(&self) -> Status {
        let config = self.lock().clone();
        let held = self.store.held(config.quarantine.max_bytes);
        let stored = Stored::from(self.store.stats(), self.store.oldest_outgoing(), held).await;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: config.relay.hostname.to_string(),
            config: config.version.to_string(),
            config_file: self.path.clone(),
            started: self.started,
            draining: self.closing.is_cancelled(),
            not_ready: self.ready().err(),
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
            engines: self.engines(),
            next_hops: self.pipeline.generation().delivery.status(),
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
        let mut applied = next.and_then(|next| self.apply(next));
        if let (Ok(difference), Some(shadow)) = (&mut applied, self.pipeline.shadow()) {
            let file = shadow.file.display();
            difference.push(format!(
                "the shadow {file} goes on, beside the new configuration"
            ));
        }
        match &applied {
            Ok(difference) => tracing::info!(?difference, "reloaded"),
            Err(problems) => tracing::error!(?problems, "reload refused, nothing changed"),
        }
        applied
    }

    fn config(&self) -> InForce {
        let config = self.lock();
        InForce {
            file: self.path.clone(),
            version: config.version.to_string(),
            settings: config.shown().to_vec(),
        }
    }

    async fn begin_shadow(&self, file: PathBuf) -> Result<Vec<String>, Vec<String>> {
        let check = |config: Config| {
            let problems = super::check(&config);
            match problems.is_empty() {
                true => Ok(config),
                false => Err(problems),
            }
        };
        let config = self.readings.read(Some(file.clone()), reload::read, check);
        let config = config.await?;
        let difference = config::diff(&self.lock(), &config);
        let terms = Terms::new(&config.policy, &config.engines, config.version.clone());
        self.pipeline.begin_shadow(file, config.version, terms);
        Ok(difference)
    }

    fn end_shadow(&self) -> Option<ShadowView> {
        self.pipeline.end_shadow()
    }

    fn shadow(&self) -> Option<ShadowView> {
        self.pipeline.shadow()
    }

    fn drain(&self) {
        self.drain.cancel();
    }

    fn wake(&self) {
        self.pipeline.wake();
    }

    async fn flush(&self) {
        self.pipeline.write_measures().await;
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
