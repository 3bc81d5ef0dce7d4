//! What the admin surfaces ask of a running relay: status, engines, reload, drain.

use std::path::{Path, PathBuf};

use crate::admin::{
    Changes, Control, EngineAsked, InForce, Late, ListenerStatus, Status, Stored, Tested, Waits,
};
use crate::config::{self, Config};
use crate::deadline::wall_clock;
use crate::incident::{self, Incident, Subject};
use crate::notify;
use crate::pipeline::{Generation, ShadowView};
use crate::scan::{Drain, DrainTerms, Guarded, Health, NotDrained, Passed};
use crate::store::{LogTrouble, Store};
use crate::whatif::Terms;

use super::Core;
use super::reload::{self, Files, Next};

impl Control for Core {
    async fn status(&self) -> Status {
        let config = self.lock().clone();
        let waits = self.waits();
        let late = async {
            let mut late = self.store.late(Late::times(wall_clock())).await?;
            late.extend(self.pipeline.late_in_session());
            Ok(late)
        };
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
        let admission = self.admission.load();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: config.relay.hostname.to_string(),
            config: config.version.to_string(),
            config_file: self.path.clone(),
            started: self.started,
            draining: self.closing.is_cancelled(),
            not_ready: self.ready().err(),
            delay: self.pipeline.delays(),
            refused: admission.refusing,
            refused_for: admission.shortage,
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
            not_recorded: self.not_recorded(),
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

    async fn drain_engine(&self, asked: &EngineAsked) -> Result<Vec<String>, String> {
        let terms = asked.terms().map_err(|error| error.to_string())?;
        let generation = self.pipeline.generation();
        let engine = named(&generation, asked)?;
        let drain = Drain::begin(terms.clone());
        let drained = engine.drain(asked.replica.as_deref(), &drain);
        drained.map_err(|error| error.to_string())?;
        self.report(asked, incident::Kind::Drained, Some(&terms));
        let mut notes: Vec<String> = note(&generation, engine).into_iter().collect();
        if let Err(why) = self.drains.write().await {
            notes.push(format!(
                "a restart of the relay would not know this drain: {why}"
            ));
        }
        Ok(notes)
    }

    async fn resume_engine(&self, asked: &EngineAsked) -> Result<Vec<String>, String> {
        let generation = self.pipeline.generation();
        let engine = named(&generation, asked)?;
        match engine.resume(asked.replica.as_deref()) {
            Some(true) => {}
            Some(false) => return Err(not_drained(&engine.health())),
            None => {
                let name = engine.settings().name.clone();
                let replica = asked.replica.clone().unwrap_or_default();
                return Err(NotDrained::NoReplica(name, replica).to_string());
            }
        }
        self.report(asked, incident::Kind::Resumed, None);
        let kept = self.drains.write().await.err();
        let note = |why| format!("a restart of the relay would drain it again: {why}");
        Ok(kept.map(note).into_iter().collect())
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

    async fn test_notify(&self, way: Option<&str>) -> Result<Vec<notify::Tested>, String> {
        self.notifier.test(way).await
    }

    fn ready(&self) -> Result<(), String> {
        if self.closing.is_cancelled() {
            return Err("draining".to_owned());
        }
        self.store.accepts().map_err(|error| error.to_string())
    }

    async fn reload(&self, named: Option<PathBuf>) -> Result<Changes, Vec<String>> {
        let before = self.pipeline.generation();
        let in_force = self.lock().clone();
        let build = move |files| Next::build(files, (&before, &in_force));
        let read = move |file: Option<&Path>| {
            reload::refuse_another(file, named.as_deref())?;
            Files::read(file)
        };
        let next = self.readings.read(self.path.clone(), read, build);
        let next = next.await;
        let applied = next.map(|next| self.apply(next));
        match &applied {
            Ok(difference) => tracing::info!(?difference, "reloaded"),
            Err(problems) => tracing::error!(?problems, "reload refused, nothing changed"),
        }
        let shadow = self.pipeline.shadow().map(|shadow| {
            let file = shadow.file.display();
            format!("the shadow {file} goes on, beside the new configuration")
        });
        applied.map(|changes| Changes {
            changes,
            notes: shadow.into_iter().collect(),
        })
    }

    fn config(&self) -> InForce {
        let config = self.lock();
        InForce {
            file: self.path.clone(),
            version: config.version.to_string(),
            settings: config.shown().to_vec(),
            started: Some(self.started),
        }
    }

    async fn begin_shadow(&self, file: PathBuf) -> Result<Changes, Vec<String>> {
        let in_force = self.lock().clone();
        let check = move |config: Config| {
            let problems = super::check(&config);
            match problems.is_empty() {
                true => {
                    let version = config.version.clone();
                    let terms = Terms::new(&config.policy, &config.engines, version.clone());
                    Ok((config::diff(&in_force, &config), version, terms))
                }
                false => Err(problems),
            }
        };
        let checked = self.readings.read(Some(file.clone()), reload::read, check);
        let (changes, version, terms) = checked.await?;
        self.pipeline.begin_shadow(file, version, terms);
        Ok(Changes {
            notes: not_shadowed(&changes),
            changes,
        })
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

    async fn flush(&self) -> Vec<LogTrouble> {
        self.pipeline.write_measures().await;
        self.history.flush().await;
        self.incidents.flush().await;
        self.not_recorded()
    }
}

impl Core {
    fn not_recorded(&self) -> Vec<LogTrouble> {
        let troubles = [self.history.trouble(), self.incidents.trouble()];
        troubles.into_iter().flatten().collect()
    }

    /// Records that a person has drained an engine or a replica on these terms, or has resumed it.
    fn report(&self, asked: &EngineAsked, kind: incident::Kind, terms: Option<&DrainTerms>) {
        let subject = Subject::Engine {
            name: asked.engine.clone(),
            replica: asked.replica.clone(),
        };
        let reason = match asked.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        let (done, extent) = match terms {
            Some(terms) => ("drained", terms.extent()),
            None => ("resumed", String::new()),
        };
        let summary = format!("{subject} was {done} by {}{extent}{reason}", asked.who);
        let mut incident = Incident::new(kind, subject, summary).with("by", &asked.who);
        if let Some(terms) = terms {
            if let Some(term) = terms.term {
                incident = incident.with("until", wall_clock() + term);
            }
            let passes = if terms.passes { "yes" } else { "no" };
            incident = incident
                .with("reason", &terms.reason)
                .with("mail passes", passes);
        }
        self.incidents.record(incident);
    }
}

/// What a shadow cannot show of these changes: it takes the answers of the engines as they run.
fn not_shadowed(changes: &[String]) -> Vec<String> {
    let is_timing = |key: &&str| {
        let (section, setting) = key.rsplit_once('.').unwrap_or_default();
        section.starts_with("engine.") && ["timeout", "slow", "slots", "wait"].contains(&setting)
    };
    let keys = changes.iter().filter_map(|change| change.split(':').next());
    let timing: Vec<&str> = keys.filter(is_timing).collect();
    if timing.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "not shown by the shadow: {}. It takes the answers of the engines as they run, and has no timeouts, slots and waits of its \
         own; `spillway what-if --config FILE --slots` replays timeout and slots",
        timing.join(", ")
    )]
}

/// What follows from the drain of an engine for its mail; `None` while a replica takes mail.
fn note(generation: &Generation, engine: &Guarded) -> Option<String> {
    let (name, class) = (&engine.settings().name, engine.settings().class);
    if !engine.is_drained() {
        return None;
    }
    let required = generation.policy.required(class);
    let others = generation.scanner.engines().iter().filter(|other| {
        let settings = other.settings();
        settings.class == class && settings.name != *name && !other.is_out()
    });
    let (class, passes) = (class.as_str(), engine.passes().is_some());
    Some(if required == 0 {
        format!("no mail waits for it: [coverage] needs no engine of class {class}")
    } else if others.count() >= required {
        format!("no mail waits for it: other engines of class {class} meet [coverage]")
    } else if passes {
        "mail is delivered without it, marked as undetermined (rule coverage.passed), and so is the mail that waits for it now; \
         it scans copies of this mail when it is back (store.rescan_bytes); only mail at which it may have hung stays"
            .to_owned()
    } else {
        format!(
            "mail waits for it, because [coverage] {class} = {required} is not met. To let mail pass without it, marked and \
             scanned later: spillway engine drain {name} --pass --reason TEXT"
        )
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A shadow that cannot show a change says so when it begins: later, its zeros would look like the effect of the change.
    #[test]
    fn a_shadow_says_what_it_cannot_show() {
        let lines = [
            "engine.clamd.timeout: \"2s\" -> \"8s\"",
            "engine.clamd.weight: 1.0 -> 2.0",
            "engine.a.b.slots: 4 -> 8",
            "rule.slow: added",
            "guard.wait: \"1s\" -> \"2s\"",
        ];
        let changes = lines.map(str::to_owned);
        let notes = not_shadowed(&changes);
        let begins = "not shown by the shadow: engine.clamd.timeout, engine.a.b.slots. It";
        assert!(
            notes.len() == 1 && notes[0].starts_with(begins),
            "{notes:?}"
        );
        assert_eq!(not_shadowed(&changes[1..2]), Vec::<String>::new());
        assert_eq!(not_shadowed(&changes[3..]), Vec::<String>::new());
    }
}
