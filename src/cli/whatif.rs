//! `spillway what-if`: what another configuration would have done with recorded mail, or does with new mail as a shadow.

mod shown;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::exit::{CliError, Exit, Outcome};
use super::terminal::{Terminal, count, safe};
use super::{control, diff, person, relay, settings};
use crate::admin::{Changes, InForce, Reloaded};
use crate::app;
use crate::config::{self, Config};
use crate::pipeline::ShadowView;
use crate::store::history;
use crate::whatif::{Replayed, Terms, Wanted, replay};

/// Interval of the notes about the progress of a replay: 3 s, in which a person begins to wonder.
const PROGRESS_NOTE_INTERVAL: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct WhatIf {
    /// Replay decisions newer than this: 2h, 7d
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = config::parse_duration)]
    since: Duration,
    /// Number of examples of each kind of change
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    examples: usize,
    /// Replay the scans of every engine through its slots, not only of engines whose slots change
    #[arg(long)]
    slots: bool,
    /// Folder of the store with the recorded decisions [default: store.path of the configuration]
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
    /// Have the running relay decide about each new message under the configuration FILE too;
    /// nothing else changes. Without FILE: show what that shadow has decided so far
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    shadow: Option<Option<PathBuf>>,
    /// End the shadow, and show what it has decided
    #[arg(long, conflicts_with = "shadow")]
    shadow_off: bool,
    #[command(flatten)]
    socket: relay::Socket,
}

pub(super) async fn run(
    wanted: &WhatIf,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    match &wanted.shadow {
        Some(Some(file)) => begin_shadow(file, &wanted.socket.path(given)?, terminal).await,
        Some(None) => show_shadow("GET", &wanted.socket.path(given)?, terminal).await,
        None if wanted.shadow_off => {
            show_shadow("POST", &wanted.socket.path(given)?, terminal).await
        }
        None => of_the_past(wanted, given, terminal).await,
    }
}

/// Replays what the history has.
async fn of_the_past(
    wanted: &WhatIf,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let path = settings::path(given);
    let config = settings::read(path.as_deref())?;
    let socket = wanted.socket.path(given)?;
    // A relay that runs writes what it has recorded first. A replay needs no relay.
    control::note_troubles(&control::flush(&socket).await, terminal)?;
    let folder = wanted.store.as_ref().unwrap_or(&config.store.path);
    let file = folder.join(history::FILE_NAME);
    if !file.exists() {
        return Err(CliError::NotFound(format!(
            "there is no history {}: write --store FOLDER with the store.path of the relay whose mail is to be replayed",
            file.display()
        )));
    }
    let terms = Terms::new(&config.policy, &config.engines, config.version.clone());
    // No relay, no comparison.
    let in_force = diff::in_force(&socket).await.unwrap_or_default();
    let slots = match wanted.slots {
        true => config.engines.iter().map(|e| e.name.clone()).collect(),
        false => with_other(&config, &in_force, &["slots", "address"]),
    };
    let mut waits = with_other(&config, &in_force, &["wait"]);
    waits.retain(|engine| {
        let key = format!("engine.{engine}.wait");
        in_force.settings.iter().any(|(name, _)| *name == key)
    });
    let period = Wanted {
        history: &file,
        since: terminal.now.checked_sub(wanted.since).unwrap_or_default(),
        terms: &terms,
        examples: wanted.examples,
        slots,
    };
    let replayed = with_progress(&period, terminal).await?;
    let name = path.map(|path| path.display().to_string());
    let name = name.as_deref().unwrap_or("built-in defaults");
    match terminal.json {
        true => print_json((name, &config), &replayed, &waits, terminal)?,
        false => shown::replayed((name, &config.version), &replayed, &waits, terminal)?,
    }
    Ok(Exit::Done)
}

/// The engines of which one of these settings differs from that in force; none if no relay told what is in force.
fn with_other(config: &Config, in_force: &InForce, settings: &[&str]) -> Vec<Arc<str>> {
    if in_force.settings.is_empty() {
        return Vec::new();
    }
    let value = |settings: &[(String, String)], key: &str| {
        let found = settings.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone())
    };
    let differs = |engine: &str| {
        let mut keys = settings.iter().map(|key| format!("engine.{engine}.{key}"));
        keys.any(|key| value(&in_force.settings, &key) != value(config.shown(), &key))
    };
    let engines = config.engines.iter().map(|engine| engine.name.clone());
    engines.filter(|name| differs(name)).collect()
}

/// Replays, with a note on standard error every few seconds.
async fn with_progress(
    period: &Wanted<'_>,
    terminal: &mut Terminal<'_>,
) -> Result<Replayed, CliError> {
    let mut told = Instant::now();
    let progress = |read: u64, all: u64| {
        if told.elapsed() >= PROGRESS_NOTE_INTERVAL {
            told = Instant::now();
            // If standard error is closed, nobody waits for the note.
            let _ = terminal.note(format!("{read} of {all} entries of the history are read"));
        }
    };
    Ok(replay(period, progress).await?)
}

fn print_json(
    (name, config): (&str, &Config),
    replayed: &Replayed,
    waits: &[Arc<str>],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let answers = replayed.answers.iter().map(|(engine, counts)| {
        let timeout = u64::try_from(engine.timeout.as_millis()).unwrap_or(u64::MAX);
        json!({"engine": engine.name, "timeout_ms": timeout, "counts": counts})
    });
    let not_asked = replayed.not_asked.iter();
    let not_asked = not_asked.map(|(engine, messages)| (engine.to_string(), json!(messages)));
    terminal.json(&json!({
        "config": name, "version": config.version,
        "comparison": replayed.comparison,
        "later_decisions": replayed.again,
        "not_asked": not_asked.collect::<serde_json::Map<_, _>>(),
        "answers": answers.collect::<Vec<_>>(),
        "removed_engines": replayed.removed, "new_engines": replayed.added,
        "slots": replayed.slots,
        "wait_not_replayed": waits,
    }))
}

async fn begin_shadow(file: &Path, socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    // The relay has another working folder.
    let file = std::path::absolute(file)?;
    let path = format!(
        "/control/shadow?who={}&file={}",
        control::encoded(&person::actor()),
        control::encoded(&file.display().to_string())
    );
    let answer = control::ask_for(app::RELOAD_DURATION_MAX, socket, "POST", &path).await?;
    let begun: Reloaded = relay::parsed(socket, &answer)?;
    if terminal.json {
        terminal.json(&begun)?;
    }
    match &begun {
        Reloaded::Changes(Changes { changes, notes }) => {
            if !terminal.json {
                for line in changes.iter().chain(notes) {
                    terminal.line(safe(line))?;
                }
                terminal.line(format!(
                    "the shadow has begun: {} to the configuration in force; see: spillway what-if --shadow",
                    count(changes.len(), "difference")
                ))?;
            }
            Ok(Exit::Done)
        }
        Reloaded::Refused { problems } => {
            if !terminal.json {
                for problem in problems {
                    terminal.line(problem)?;
                }
                terminal.line("no shadow has begun, and nothing has changed")?;
            }
            Ok(Exit::Usage)
        }
    }
}

/// Shows the shadow; with `POST` it ends.
async fn show_shadow(method: &str, socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let path = match method {
        "POST" => format!("/control/shadow?who={}", control::encoded(&person::actor())),
        _ => "/shadow".to_owned(),
    };
    let answer = control::ask(socket, method, &path).await?;
    let shadow: Option<ShadowView> = relay::parsed(socket, &answer)?;
    match (shadow, terminal.json) {
        (shadow, true) => terminal.json(&shadow)?,
        (Some(shadow), false) => shown::shadow(&shadow, terminal)?,
        (None, false) => {
            let none = "there is no shadow; begin one with: spillway what-if --shadow FILE";
            return Err(CliError::NotFound(none.to_owned()));
        }
    }
    Ok(Exit::Done)
}
