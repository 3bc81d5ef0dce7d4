//! Commands about the relay itself: run, check-config, reload, drain, status.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::control::{self, Answer};
use super::exit::{CliError, Exit, Outcome};
use super::terminal::{Terminal, count, safe, size};
use super::{explain_key, person, settings};
use crate::admin::{Reloaded, Status, Stored};
use crate::app;
use crate::config::Config;
use crate::store::{Held, LaneStats};
use crate::telemetry;

#[derive(Debug, Args)]
pub(super) struct Socket {
    /// The relay's control socket [default: admin.socket of the configuration]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Socket {
    /// The given socket, else that of the configuration. A given socket reaches the relay also while its configuration cannot
    /// be read.
    pub(super) fn path(&self, config: Option<&Path>) -> Result<PathBuf, CliError> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(settings::load(config)?.admin.socket),
        }
    }
}

/// Runs the relay until a signal or `drain` ends it.
pub(super) fn run(given: Option<&Path>) -> Outcome {
    let path = settings::path(given);
    let config = settings::read(path.as_deref())?;
    let relay = &config.relay;
    telemetry::log::init(&relay.log_level, relay.log_format, relay.log_output)
        .map_err(|error| CliError::Usage(error.to_string()))?;
    telemetry::metrics::install();
    for warning in config.warnings.iter().chain(&app::advice(&config)) {
        tracing::warn!(warning, "configuration");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Internal(format!("cannot start the runtime: {error}")))?;
    let finished = runtime.block_on(app::run(config, path))?;
    // Mail that did not finish in time is durable or unanswered, so the exit does not wait for its threads, nor for threads
    // that hang at files.
    runtime.shutdown_background();
    Ok(match finished {
        true => Exit::Done,
        false => Exit::Temporary,
    })
}

#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// Explain a key (guard.canaries, engine.timeout) or a section instead: meaning, range, value in force
    #[arg(long, value_name = "KEY")]
    explain: Option<String>,
}

/// Prints all problems of the configuration, or a summary if there are none; or explains a key.
pub(super) fn check_config(
    command: &CheckConfig,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    if let Some(key) = &command.explain {
        return explain_key::run(key, given, terminal);
    }
    let path = settings::path(given);
    let file = path.as_ref().map(|path| path.display().to_string());
    let (config, problems) = match settings::read(path.as_deref()) {
        Ok(config) => {
            let problems = app::check(&config);
            (Some(config), problems)
        }
        Err(problems) => {
            let lines = problems.to_string();
            (None, lines.lines().map(str::to_owned).collect())
        }
    };
    match config {
        Some(config) if problems.is_empty() => {
            fine(&config, file.as_deref(), terminal)?;
            Ok(Exit::Done)
        }
        _ => {
            wrong(file.as_deref(), &problems, terminal)?;
            Ok(Exit::Usage)
        }
    }
}

fn fine(config: &Config, file: Option<&str>, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let mut warnings = config.warnings.clone();
    warnings.extend(app::advice(config));
    if terminal.json {
        return terminal.json(&json!({
            "ok": true, "file": file, "version": config.version, "warnings": warnings, "problems": [],
        }));
    }
    for warning in &warnings {
        terminal.line(format!("warning: {warning}"))?;
    }
    let names = |names: Vec<&str>| names.join(", ");
    terminal.fields(&[
        ("file", file.unwrap_or("none: built-in defaults").to_owned()),
        ("version", config.version.to_string()),
        ("hostname", config.relay.hostname.clone()),
        (
            "listeners",
            names(config.listeners.iter().map(|l| &*l.name).collect()),
        ),
        (
            "engines",
            names(config.engines.iter().map(|e| &*e.name).collect()),
        ),
        ("rules", config.policy.rules.len().to_string()),
        (
            "next hops",
            names(config.next_hops.iter().map(|n| &*n.name).collect()),
        ),
        ("store", config.store.path.display().to_string()),
    ])?;
    match warnings.len() {
        0 => terminal.line("ok"),
        warnings => terminal.line(format!("ok, with {}", count(warnings, "warning"))),
    }
}

fn wrong(
    file: Option<&str>,
    problems: &[String],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if terminal.json {
        return terminal.json(&json!({"ok": false, "file": file, "problems": problems}));
    }
    for problem in problems {
        terminal.line(safe(problem))?;
    }
    terminal.line(count(problems.len(), "problem"))
}

/// Reloads the configuration, and prints the changes, or the problems that prevent them.
pub(super) async fn reload(socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let answer = control::ask_for(
        app::RELOAD_DURATION_MAX,
        socket,
        "POST",
        &by("/control/reload"),
    )
    .await?;
    let reloaded: Reloaded = parsed(socket, &answer)?;
    if terminal.json {
        terminal.json(&reloaded)?;
    }
    match &reloaded {
        Reloaded::Changes(changes) => {
            if !terminal.json {
                for change in changes {
                    terminal.line(change)?;
                }
                terminal.line(format!("reloaded: {}", count(changes.len(), "change")))?;
            }
            Ok(Exit::Done)
        }
        Reloaded::Problems(problems) => {
            if !terminal.json {
                for problem in problems {
                    terminal.line(problem)?;
                }
                terminal.line("not reloaded: nothing has changed")?;
            }
            Ok(Exit::Usage)
        }
    }
}

/// The path of a request that names the person who asks, for the log.
fn by(path: &str) -> String {
    format!("{path}?who={}", control::encoded(&person::actor()))
}

/// Returns when the drain has begun. It does not wait for its end.
pub(super) async fn drain(socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let answer = control::ask(socket, "POST", &by("/control/drain")).await?;
    expect(socket, &answer, 202)?;
    match terminal.json {
        true => terminal.json(&json!({"draining": true}))?,
        false => terminal.line("draining: the relay accepts no new mail, and exits when the mail in flight is finished")?,
    }
    Ok(Exit::Done)
}

/// Prints the status. Exits with [`Exit::Temporary`] if the relay accepts no new mail.
pub(super) async fn status(socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let answer = control::ask(socket, "GET", "/status").await?;
    let status: Status = parsed(socket, &answer)?;
    match terminal.json {
        true => terminal.json(&status)?,
        false => show(&status, terminal)?,
    }
    Ok(match status.not_ready {
        None => Exit::Done,
        Some(_) => Exit::Temporary,
    })
}

fn show(status: &Status, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let mail = match &status.not_ready {
        None => "accepted".to_owned(),
        Some(reason) => format!("not accepted: {reason}"),
    };
    let mut config = status.config.clone();
    if let Some(file) = &status.config_file {
        config.push_str(&format!(" ({})", file.display()));
    }
    let mut fields = vec![
        ("new mail", mail),
        (
            "draining",
            if status.draining { "yes" } else { "" }.to_owned(),
        ),
        ("sessions", status.sessions.to_string()),
        ("memory free", size(status.memory_available)),
    ];
    match &status.stored {
        Some(stored) => fields.extend(stored_fields(stored, terminal)),
        None => fields.push(("stored messages", Stored::UNKNOWN_TEXT.to_owned())),
    }
    fields.extend([
        ("hostname", status.hostname.clone()),
        ("configuration", config),
        (
            "running since",
            format!(
                "{} ({})",
                terminal.time(status.started),
                terminal.age(status.started)
            ),
        ),
        ("version", status.version.clone()),
    ]);
    terminal.fields(&fields)?;
    terminal.fields(&parts(status, terminal))
}

/// Engines, next hops and listeners, each with its state.
fn parts(status: &Status, terminal: &Terminal<'_>) -> Vec<(String, String)> {
    let clock = |at| terminal.clock(at);
    let engines = status.engines.iter().map(|health| {
        let (words, running, slots) = (health.words(clock), health.running, health.slots);
        let state = format!("{words}, {running} of {slots} slots taken");
        (format!("engine {}", health.engine), state)
    });
    let next_hops = status.next_hops.iter().map(|hop| {
        let mut state = hop.words(clock);
        if let Some(said) = &hop.said {
            state.push_str(&format!(": {said}"));
        }
        (format!("next hop {}", hop.name), state)
    });
    let listeners = status.listeners.iter().map(|listener| {
        let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
        (format!("listener {}", listener.name), addresses.join(", "))
    });
    engines.chain(next_hops).chain(listeners).collect()
}

fn stored_fields(stored: &Stored, terminal: &Terminal<'_>) -> [(&'static str, String); 5] {
    let lane = |stats: &LaneStats| lane(stats, terminal);
    [
        ("to be scanned", lane(&stored.scan)),
        ("to be delivered", lane(&stored.delivery)),
        ("quarantine", lane(&stored.held)),
        ("quarantine room", room(&stored.quarantine)),
        ("to be rescanned", lane(&stored.rescan)),
    ]
}

fn room(held: &Held) -> String {
    let mut text = format!("{} of {} taken", size(held.octets), size(held.limit));
    if let Some(holder) = &held.largest {
        text.push_str(&format!(
            ", {} by {}",
            size(holder.octets),
            safe(&holder.name)
        ));
    }
    text
}

fn lane(stats: &LaneStats, terminal: &Terminal<'_>) -> String {
    let messages = usize::try_from(stats.messages).unwrap_or(usize::MAX);
    let mut text = format!("{}, {}", count(messages, "message"), size(stats.octets));
    if let Some(oldest) = stats.oldest {
        text.push_str(&format!(", the oldest {} old", terminal.age(oldest)));
    }
    text
}

pub(super) fn parsed<T: serde::de::DeserializeOwned>(
    socket: &Path,
    answer: &Answer,
) -> Result<T, CliError> {
    serde_json::from_slice(&answer.body).map_err(|error| {
        let what = format!("the answer ({}) cannot be read: {error}", answer.code);
        CliError::Relay(socket.to_owned(), what)
    })
}

fn expect(socket: &Path, answer: &Answer, code: u16) -> Result<(), CliError> {
    if answer.code == code {
        return Ok(());
    }
    let what = format!("the answer is HTTP {}", answer.code);
    Err(CliError::Relay(socket.to_owned(), what))
}
