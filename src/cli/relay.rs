//! Commands about the relay itself: run, check-config, reload, drain.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::control::{self, Answer};
use super::exit::{CliError, Exit, Outcome};
use super::terminal::{Terminal, count, safe};
use super::{diff, engine, explain_key, person, settings};
use crate::admin::{Changes, Reloaded};
use crate::app;
use crate::config::Config;
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

    /// The configuration file that the person has named, or from which the socket is: not the default beside a given socket.
    fn named(&self, config: Option<&Path>) -> Option<PathBuf> {
        match &self.socket {
            Some(_) => config.map(Path::to_owned),
            None => settings::path(config),
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
    /// Explain the changes from the configuration in force to this one instead, or from the file OLD
    #[arg(long, value_name = "OLD", num_args = 0..=1)]
    diff: Option<Option<PathBuf>>,
    /// Explain a key (guard.canaries, engine.timeout) or a section instead: meaning, range, value in force
    #[arg(long, value_name = "KEY", conflicts_with = "diff")]
    explain: Option<String>,
}

/// Prints all problems of the configuration, or a summary if there are none; or explains its changes, or a key.
pub(super) fn check_config(
    command: &CheckConfig,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    if let Some(old) = &command.diff {
        return super::wait(diff::run(old.as_deref(), given, terminal));
    }
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
    let compared = engine::compare(config, terminal.now);
    warnings.extend(compared.warnings);
    if let Some(why) = compared.unread {
        terminal.note(format!("not compared with what was measured: {why}"))?;
    }
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
pub(super) async fn reload(
    socket: &Socket,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let mut path = by("/control/reload");
    if let Some(named) = socket.named(given) {
        // The relay has another working folder.
        let named = std::path::absolute(named)?;
        path.push_str("&file=");
        path.push_str(&control::encoded(&named.display().to_string()));
    }
    let socket = &socket.path(given)?;
    let answer = control::ask_for(app::RELOAD_DURATION_MAX, socket, "POST", &path).await?;
    let reloaded: Reloaded = parsed(socket, &answer)?;
    if terminal.json {
        terminal.json(&reloaded)?;
    }
    match &reloaded {
        Reloaded::Changes(Changes { changes, notes }) => {
            if !terminal.json {
                for line in changes.iter().chain(notes) {
                    terminal.line(safe(line))?;
                }
                terminal.line(format!("reloaded: {}", count(changes.len(), "change")))?;
            }
            Ok(Exit::Done)
        }
        Reloaded::Refused { problems } => {
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
