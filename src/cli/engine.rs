//! `spillway engine`: how the engines of the running relay are doing, and taking one out or putting it back.

use std::path::Path;

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::control::{self, Answer, encoded};
use super::exit::{self, CliError, Exit, Outcome};
use super::person;
use super::relay::Socket;
use super::terminal::{Column, Terminal};
use crate::admin::Tested;
use crate::scan::{Health, ReplicaHealth};

/// The family.
#[derive(Debug, Subcommand)]
pub(super) enum Engines {
    /// List the engines: breaker, slots, zombies, latency, signatures
    #[command(after_help = exit::HELP)]
    List(Socket),
    /// Show one engine and its replicas
    #[command(after_help = exit::HELP)]
    Show(Named),
    /// Send an engine a message that it must find and one that it must let pass, and tell what it said
    #[command(after_help = exit::HELP)]
    Test(Named),
    /// Take an engine, or one replica of it, out: it gets no mail until it is resumed or the relay restarted
    ///
    /// Scans under way end by themselves. Mail is judged by the other engines as [coverage] allows,
    /// else deferred.
    #[command(after_help = exit::HELP)]
    Drain(Drain),
    /// Put a drained engine, or one replica of it, back
    #[command(after_help = exit::HELP)]
    Resume(Resume),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The engine's name
    engine: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The engine's name
    engine: String,
    /// Only this replica, by its address
    #[arg(long, value_name = "ADDRESS")]
    replica: Option<String>,
    /// Why, for the incident log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The engine's name
    engine: String,
    /// Only this replica, by its address
    #[arg(long, value_name = "ADDRESS")]
    replica: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

/// Asks the running relay.
pub(super) async fn run(
    command: &Engines,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    match command {
        Engines::List(socket) => list(&socket.path(given)?, terminal).await,
        Engines::Show(wanted) => show(&wanted.engine, &wanted.socket.path(given)?, terminal).await,
        Engines::Test(wanted) => test(&wanted.engine, &wanted.socket.path(given)?, terminal).await,
        Engines::Drain(wanted) => {
            let query = query(
                "drain",
                &wanted.engine,
                wanted.replica.as_deref(),
                &wanted.reason,
            );
            act(&wanted.socket.path(given)?, &query, "drained", terminal).await
        }
        Engines::Resume(wanted) => {
            let query = query("resume", &wanted.engine, wanted.replica.as_deref(), "");
            act(&wanted.socket.path(given)?, &query, "resumed", terminal).await
        }
    }
}

async fn engines(socket: &Path) -> Result<Vec<Health>, CliError> {
    let answer = control::ask(socket, "GET", "/engines").await?;
    read(socket, &answer)
}

async fn list(socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let engines = engines(socket).await?;
    if terminal.json {
        terminal.json(&engines)?;
        return Ok(Exit::Done);
    }
    let columns = [
        Column::whole("ENGINE"),
        Column::whole("CLASS"),
        Column::whole("BREAKER"),
        Column::whole("SCANS"),
        Column::whole("ZOMBIES"),
        Column::whole("WAITING"),
        Column::whole("P50"),
        Column::whole("P99"),
        Column::cut("SIGNATURES"),
    ];
    let row = |health: &Health| {
        vec![
            health.engine.to_string(),
            health.class.as_str().to_owned(),
            health.states(),
            format!("{}/{}", health.running, health.slots),
            health.zombies.to_string(),
            health.waiting.to_string(),
            milliseconds(health.half_within),
            milliseconds(health.most_within),
            health.signatures(),
        ]
    };
    let rows: Vec<_> = engines.iter().map(row).collect();
    terminal.table(&columns, rows)?;
    Ok(Exit::Done)
}

async fn show(name: &str, socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let engines = engines(socket).await?;
    let Some(health) = engines.iter().find(|health| *health.engine == *name) else {
        return Err(unknown(name));
    };
    if terminal.json {
        terminal.json(health)?;
        return Ok(Exit::Done);
    }
    terminal.fields(&[
        ("engine", health.engine.to_string()),
        ("class", health.class.as_str().to_owned()),
        (
            "scans under way",
            format!("{} of {} slots", health.running, health.slots),
        ),
        ("past their timeout", health.zombies.to_string()),
        ("mail waiting for it", health.waiting.to_string()),
        ("half of the scans within", milliseconds(health.half_within)),
        ("99 of 100 within", milliseconds(health.most_within)),
    ])?;
    let columns = [
        Column::cut("REPLICA"),
        Column::whole("BREAKER"),
        Column::whole("SCANS"),
        Column::whole("SIGNED"),
        Column::cut("SIGNATURES"),
    ];
    let row = |replica: &ReplicaHealth| {
        vec![
            replica
                .address
                .clone()
                .unwrap_or_else(|| "in process".to_owned()),
            replica.state().to_owned(),
            replica.running.to_string(),
            replica
                .signed
                .map(|at| terminal.age(at))
                .unwrap_or_default(),
            replica.signatures.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = health.replicas.iter().map(row).collect();
    terminal.table(&columns, rows)?;
    Ok(Exit::Done)
}

async fn test(name: &str, socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let path = format!("/control/engine?{}", query("test", name, None, ""));
    let answer = control::ask(socket, "POST", &path).await?;
    let tested: Vec<Tested> = read(socket, &answer)?;
    let wrong = tested.iter().any(|t| t.wrong.is_some());
    if terminal.json {
        terminal.json(&tested)?;
    } else {
        for one in &tested {
            let replica = one.replica.as_deref().unwrap_or(name);
            terminal.line(match (&one.wrong, &one.answered) {
                (Some(why), _) => format!("{replica}: {why}"),
                (None, Some(names)) => {
                    let found = match names.is_empty() {
                        true => "nothing".to_owned(),
                        false => names.join(", "),
                    };
                    format!(
                        "{replica}: answers: it found {found} in the known-clean message; nothing says what it must find"
                    )
                }
                (None, None) => format!(
                    "{replica}: works: the known-bad message was found, the known-clean one passed"
                ),
            })?;
        }
    }
    Ok(match wrong {
        true => Exit::Found,
        false => Exit::Done,
    })
}

async fn act(socket: &Path, query: &str, done: &str, terminal: &mut Terminal<'_>) -> Outcome {
    let answer = control::ask(socket, "POST", &format!("/control/engine?{query}")).await?;
    if answer.code != 202 {
        return Err(refused(&answer));
    }
    match terminal.json {
        true => terminal.json(&json!({ done: true }))?,
        false => terminal.line(done)?,
    }
    Ok(Exit::Done)
}

fn query(act: &str, engine: &str, replica: Option<&str>, reason: &str) -> String {
    let mut query = format!(
        "act={act}&engine={}&who={}&reason={}",
        encoded(engine),
        encoded(&person::actor()),
        encoded(reason)
    );
    if let Some(replica) = replica {
        query.push_str(&format!("&replica={}", encoded(replica)));
    }
    query
}

fn read<T: DeserializeOwned>(socket: &Path, answer: &Answer) -> Result<T, CliError> {
    if answer.code == 404 {
        return Err(refused(answer));
    }
    super::relay::parsed(socket, answer)
}

/// What the relay says is one line for people.
fn refused(answer: &Answer) -> CliError {
    CliError::NotFound(String::from_utf8_lossy(&answer.body).into_owned())
}

fn unknown(name: &str) -> CliError {
    CliError::NotFound(format!(
        "there is no engine {name:?}; see: spillway engine list"
    ))
}

fn milliseconds(time: Option<std::time::Duration>) -> String {
    time.map_or_else(String::new, |time| {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    })
}
