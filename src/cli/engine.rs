//! `spillway engine`: the state of the engines of the running relay, and commands that test, drain or resume one.

mod chart;
mod measured;
mod warnings;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::control::{self, Answer, encoded};
use super::diff;
use super::exit::{self, CliError, Exit, Outcome};
use super::person;
use super::relay::Socket;
use super::settings;
use super::table::Column;
use super::terminal::{Terminal, safe};
use crate::admin::{EngineActed, Tested};
use crate::config::{self, Config};
use crate::measure::proposal::{Known, Out};
use crate::scan::{DrainTerms, Health, ReplicaHealth};
use crate::store::{history, measures};
use measured::EngineMeasured;
pub(super) use warnings::compare;

/// The end of the result of a drain, for people.
const DRAINED_TEXT: &str = "it gets no mail until the drain ends (--for, or `spillway engine resume`), also after a restart of the relay";
/// The end of the result of a resume, for people. An engine does not always get all its mail at once, so the text names the ramp.
const RESUMED_TEXT: &str = "a healthy engine gets all its mail at once, after an outage it comes back step by step (half-open, \
                            then a ramp)";

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Engines {
    /// List the engines: breaker, scans, zombies, latency, signatures
    ///
    /// BREAKER: `closed` while the engine gets all its mail, `open` while it gets none, `half-open`
    /// while it gets probes, `ramp` while it gets a growing part of its mail; also `drained`, and
    /// `resting` if it asked for a pause. SCANS: running scans, and the slots of all replicas.
    /// ZOMBIES: scans past their timeout that still hold a slot. WAITING: messages that wait for a
    /// slot. P50 and P99: the time within which 50 % and 99 % of the last 1024 answers came.
    #[command(after_help = exit::HELP)]
    List(Socket),
    /// Show one engine and its replicas, its measured scan times, and proposals for its settings
    ///
    /// The distribution has a row for each step of the scan time: `up to 5 ms` are the scans that took
    /// 2 to 5 ms. `p50` and `p99` mark the rows up to which 50 % and 99 % of the scans lie; `slow` and
    /// `timeout` those of the settings. LATE: scans longer than `timeout`. Proposals leave out outages,
    /// that is, periods in which more than 5 % of the answers were missing. While the relay is down, the
    /// command shows what was measured before.
    #[command(after_help = exit::HELP)]
    Show(Show),
    /// Test an engine: send it a known-bad and a known-clean message, and check its answers
    #[command(after_help = exit::HELP)]
    Test(EngineName),
    /// Drain an engine or one of its replicas: it gets no mail until the drain ends
    ///
    /// The drain ends after --for, or with `engine resume`. A restart of the relay does not end it. A
    /// second drain replaces the end and the reason. Running scans continue to their end. If
    /// [coverage] allows it, the relay decides on the answers of the other engines; otherwise it
    /// defers the mail.
    ///
    /// With --pass, mail does not wait for the engine: it is delivered without it, marked as
    /// undetermined (rule coverage.passed), and scanned when the engine is back; a finding is then an
    /// incident. Mail that waits for the engine now leaves at once. Findings of other engines still
    /// decide, and mail that timed out in an engine or that an interceptor holds stays.
    #[command(after_help = exit::HELP)]
    Drain(Drain),
    /// Resume a drained engine or one of its replicas
    ///
    /// If the breaker is closed, the engine gets all its mail at once. After an outage its mail comes
    /// back step by step: the breaker is half-open until a probe passes, then in a ramp, then closed.
    /// `engine list` shows its state.
    #[command(after_help = exit::HELP)]
    Resume(Resume),
}

#[derive(Debug, Args)]
pub(super) struct EngineName {
    /// The engine's name
    engine: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The engine's name
    engine: String,
    /// Measured scan times since this age: 2h, 1d, 7d; at most 15d are kept. They are kept in periods
    /// of ten minutes, so the output begins with the period in which that age lies, and says when
    #[arg(long, value_name = "AGE", value_parser = config::parse_duration, default_value = "1d")]
    since: Duration,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The engine's name
    engine: String,
    /// Only the replica with this address
    #[arg(long, value_name = "ADDRESS")]
    replica: Option<String>,
    /// Let mail pass without the engine; needs --reason
    #[arg(long, requires = "reason")]
    pass: bool,
    /// End the drain after this time, such as 1h (default with --pass: 1h, at most 12h)
    #[arg(long = "for", value_name = "AGE", value_parser = config::parse_duration)]
    term: Option<Duration>,
    /// The reason, shown with the state and kept in the incident log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The engine's name
    engine: String,
    /// Only the replica with this address
    #[arg(long, value_name = "ADDRESS")]
    replica: Option<String>,
    #[command(flatten)]
    socket: Socket,
}

/// Runs a command of the family against the running relay.
pub(super) async fn run(
    command: &Engines,
    given: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    match command {
        Engines::List(socket) => list(&socket.path(given)?, terminal).await,
        Engines::Show(wanted) => show(wanted, given, terminal).await,
        Engines::Test(wanted) => test(&wanted.engine, &wanted.socket.path(given)?, terminal).await,
        Engines::Drain(wanted) => {
            let reason = wanted.reason.as_deref().unwrap_or_default();
            let terms = DrainTerms::new(wanted.pass, wanted.term, reason, &person::actor());
            let terms = terms.map_err(|error| CliError::Usage(error.to_string()))?;
            let mut query = query("drain", &wanted.engine, wanted.replica.as_deref(), reason);
            query.push_str(&format!("&pass={}", terms.passes));
            if let Some(term) = terms.term {
                query.push_str(&format!("&for_seconds={}", term.as_secs().max(1)));
            }
            let socket = wanted.socket.path(given)?;
            act(&socket, &query, "drained", DRAINED_TEXT, terminal).await
        }
        Engines::Resume(wanted) => {
            let query = query("resume", &wanted.engine, wanted.replica.as_deref(), "");
            let socket = wanted.socket.path(given)?;
            act(&socket, &query, "resumed", RESUMED_TEXT, terminal).await
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
            latency(health.half_within),
            latency(health.most_within),
            health.signatures(),
        ]
    };
    let rows: Vec<_> = engines.iter().map(row).collect();
    terminal.table(&columns, rows)?;
    for health in engines
        .iter()
        .filter(|health| health.is_drained() || health.is_out())
    {
        let words = health.words(|at| terminal.clock(at));
        terminal.line(format!("{} is {}", safe(&health.engine), safe(&words)))?;
    }
    Ok(Exit::Done)
}

async fn show(wanted: &Show, given: Option<&Path>, terminal: &mut Terminal<'_>) -> Outcome {
    let name = &*wanted.engine;
    let socket = wanted.socket.path(given)?;
    // The relay writes what it has measured first. If it does not answer, the next question says so.
    control::note_troubles(&control::flush(&socket).await, terminal)?;
    let health = health(name, &socket).await;
    let measured = match settings::load(given) {
        Ok(config) => {
            // Only a relay that runs knows when it began.
            let in_force = diff::in_force(&socket).await;
            let started = in_force.ok().and_then(|in_force| in_force.started);
            let present = (out(health.as_ref().ok()), started);
            match read_measured(wanted, &config, present, terminal).await {
                Err(error) if health.is_ok() => {
                    terminal.note(format!("what was measured cannot be read: {error}"))?;
                    None
                }
                measured => Some(measured?),
            }
        }
        // A given socket needs no configuration.
        Err(_) if health.is_ok() => {
            terminal.note("without the configuration, what was measured cannot be found")?;
            None
        }
        Err(error) => return Err(error),
    };
    let health = match (health, &measured) {
        (Ok(health), _) => Some(health),
        (Err(error @ CliError::NotRunning(..)), Some(measured)) if measured.is_known() => {
            terminal.note(format!("{error}: only what was measured before is shown"))?;
            None
        }
        (Err(error), _) => return Err(error),
    };
    if terminal.json {
        let shown = Shown {
            engine: health.is_none().then_some(name),
            health: health.as_ref(),
            members: measured.map(|measured| measured.members(terminal.now)),
        };
        terminal.json(&shown)?;
        return Ok(Exit::Done);
    }
    match health {
        Some(health) => show_health(&health, terminal)?,
        None => terminal.fields(&[("engine", name.to_owned())])?,
    }
    if let Some(measured) = measured {
        measured.show(terminal)?;
    }
    Ok(Exit::Done)
}

/// The JSON output of `engine show`: the state of the engine, if the relay runs, and what was measured.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<&'a str>,
    #[serde(flatten)]
    health: Option<&'a Health>,
    #[serde(flatten)]
    members: Option<measured::Members>,
}

async fn health(name: &str, socket: &Path) -> Result<Health, CliError> {
    let mut engines = engines(socket).await?.into_iter();
    let health = engines.find(|health| *health.engine == *name);
    health.ok_or_else(|| unknown(name))
}

/// Whether a replica gets no mail because its breaker is open, as the relay says. A drain says nothing about the engine.
fn out(health: Option<&Health>) -> Out {
    let Some(health) = health.filter(|health| !health.is_drained()) else {
        return Out::Unknown;
    };
    let out = health.replicas.iter().filter(|r| r.is_out() && !r.resting);
    let since = out.filter_map(|replica| replica.since).min();
    since.map_or(Out::No, |at| Out::Since {
        at,
        period: measures::period(at),
    })
}

async fn read_measured(
    wanted: &Show,
    config: &Config,
    (out, started): (Out, Option<Timestamp>),
    terminal: &Terminal<'_>,
) -> Result<EngineMeasured, CliError> {
    let since = terminal
        .now
        .checked_sub(wanted.since)
        .unwrap_or(Timestamp::MIN);
    let path = config.store.path.join(history::FILE_NAME);
    let known = Known {
        found_late: 0,
        out,
        now: terminal.now,
        began: match started {
            Some(started) => Some(measured::began(&path, started).await?),
            None => None,
        },
    };
    Ok(EngineMeasured::read(&wanted.engine, config, since, known).await?)
}

fn show_health(health: &Health, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    terminal.fields(&[
        ("engine", health.engine.to_string()),
        ("class", health.class.as_str().to_owned()),
        ("state", health.words(|at| terminal.clock(at))),
        (
            "running scans",
            format!("{} of {} slots", health.running, health.slots),
        ),
        ("scans past timeout", health.zombies.to_string()),
        ("waiting messages", health.waiting.to_string()),
        ("50 % of scans within", latency(health.half_within)),
        ("99 % of scans within", latency(health.most_within)),
    ])?;
    let columns = [
        Column::whole("REPLICA"),
        Column::whole("BREAKER"),
        Column::whole("SINCE").optional(),
        Column::whole("SCANS"),
        Column::whole("SIGNED"),
        Column::below("SIGNATURES"),
    ];
    let row = |replica: &ReplicaHealth| {
        vec![
            replica
                .address
                .clone()
                .unwrap_or_else(|| "in process".to_owned()),
            replica.state().to_owned(),
            replica
                .since
                .map(|since| terminal.clock(since))
                .unwrap_or_default(),
            replica.running.to_string(),
            replica
                .signed
                .map(|at| terminal.age(at))
                .unwrap_or_default(),
            replica.signatures.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = health.replicas.iter().map(row).collect();
    terminal.table(&columns, rows)
}

async fn test(name: &str, socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let health = health(name, socket).await?;
    // The replicas are tested one after the other, each with a pair of messages.
    let replicas = u32::try_from(health.replicas.len()).unwrap_or(u32::MAX);
    let longest = health.timeout.saturating_mul(replicas.saturating_mul(2));
    let path = format!("/control/engine?{}", query("test", name, None, ""));
    let answer = control::ask_for(longest, socket, "POST", &path).await?;
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
                        "{replica}: answers: it found {found} in the known-clean message; this engine has no known-bad message"
                    )
                }
                (None, None) => format!(
                    "{replica}: works: it found the known-bad message and passed the known-clean one"
                ),
            })?;
        }
    }
    Ok(match wrong {
        true => Exit::Found,
        false => Exit::Done,
    })
}

/// Drains or resumes, and shows the state after that. `done` is the key of the JSON result, `text` the result for people.
async fn act(
    socket: &Path,
    query: &str,
    done: &str,
    text: &str,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let answer = control::ask(socket, "POST", &format!("/control/engine?{query}")).await?;
    let EngineActed {
        engine: health,
        notes,
    } = read(socket, &answer)?;
    if terminal.json {
        terminal.json(&json!({ done: true, "engine": health, "notes": notes }))?;
        return Ok(Exit::Done);
    }
    let state = health.words(|at| terminal.clock(at));
    terminal.line(format!(
        "{done}: engine {} is {}; {text}",
        safe(&health.engine),
        safe(&state)
    ))?;
    for note in notes {
        terminal.line(safe(&note))?;
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

/// The refusal of the relay: its answer is one line for people.
fn refused(answer: &Answer) -> CliError {
    CliError::NotFound(String::from_utf8_lossy(&answer.body).into_owned())
}

fn unknown(name: &str) -> CliError {
    CliError::NotFound(format!(
        "there is no engine {name:?}; see: spillway engine list"
    ))
}

/// A latency for people: `12.3 ms` below one second, `29.7 s` from one second on.
fn latency(time: Option<std::time::Duration>) -> String {
    time.map_or_else(String::new, |time| match time.as_secs() {
        0 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", time.as_secs_f64()),
    })
}
