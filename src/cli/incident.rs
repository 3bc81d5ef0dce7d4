//! `spillway incident`: automatic actions of the relay, and their evidence.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::json;

use super::exit::{self, CliError, Exit, Outcome};
use super::id::IdPrefix;
use super::json_list::{self, note_more};
use super::named::{self, NamedMessage};
use super::open_store;
use super::record::heading;
use super::table::Column;
use super::terminal::Terminal;
use crate::config::{self, Config};
use crate::incident::{Incident, Kind};
use crate::store::incidents::{self, Filter};

/// Default of `--limit`: 50 incidents, about one screen.
const LIST_LIMIT_DEFAULT: usize = 50;

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Incidents {
    /// List incidents, the newest first
    #[command(after_help = exit::HELP)]
    List(List),
    /// Show an incident: its evidence, and the messages that it names
    #[command(after_help = exit::HELP)]
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only incidents newer than this: 30m, 2h, 7d
    #[arg(long, value_name = "AGE", value_parser = config::parse_duration)]
    since: Option<Duration>,
    /// Only incidents of this kind; may be given several times (breaker-probing: the breaker is
    /// half-open, or in a ramp)
    #[arg(long, value_name = "KIND", value_parser = kind())]
    kind: Vec<Kind>,
    /// Only incidents of this engine
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Only incidents of this interceptor
    #[arg(long, value_name = "ID")]
    interceptor: Option<String>,
    /// Maximum number of incidents, the newest first
    #[arg(long, value_name = "NUMBER", default_value_t = LIST_LIMIT_DEFAULT)]
    limit: usize,
    /// List all incidents, not only the newest 50
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The incident's id, as `incident list` prints it, or any beginning that no other incident has
    id: IdPrefix,
}

fn kind() -> impl TypedValueParser<Value = Kind> {
    let of = |word: String| Kind::ALL.into_iter().find(|kind| kind.as_str() == word);
    PossibleValuesParser::new(Kind::ALL.map(Kind::as_str))
        .try_map(move |word| of(word).ok_or("no such kind"))
}

pub(super) async fn run(
    command: &Incidents,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    match command {
        Incidents::List(wanted) => list(wanted, config, terminal).await,
        Incidents::Show(wanted) => show(&wanted.id, config, terminal).await,
    }
}

/// The incident log of the relay of `config`.
pub(super) fn file(config: &Config) -> PathBuf {
    config.store.path.join(incidents::FILE_NAME)
}

async fn list(wanted: &List, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let now = terminal.now;
    let filter = Filter {
        since: wanted.since.and_then(|age| now.checked_sub(age).ok()),
        kinds: wanted.kind.clone(),
        engine: wanted.engine.clone(),
        interceptor: wanted.interceptor.clone(),
        ..Filter::default()
    };
    // All are read to count them; the log keeps at most 100,000.
    let mut incidents = incidents::search(&file(config), filter).await?;
    let total = incidents.len() as u64;
    if !wanted.all {
        incidents.truncate(wanted.limit);
    }
    match terminal.json {
        true => json_list::print("incidents", &incidents, total, terminal)?,
        false => table(&incidents, terminal)?,
    }
    note_more(incidents.len(), total, terminal)?;
    Ok(Exit::Done)
}

/// Prints a table with one line for each incident.
pub(super) fn table(incidents: &[Incident], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let columns = [
        Column::id("ID"),
        Column::whole("TIME"),
        Column::whole("KIND"),
        Column::cut("SUBJECT"),
        Column::cut("SUMMARY"),
    ];
    let row = |incident: &Incident| {
        vec![
            incident.id.to_string(),
            terminal.time(incident.at),
            incident.kind.as_str().to_owned(),
            incident.subject.to_string(),
            incident.summary.clone(),
        ]
    };
    let rows: Vec<_> = incidents.iter().map(row).collect();
    terminal.table(&columns, rows)
}

async fn show(id: &IdPrefix, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let prefix = id.as_str().to_owned();
    let found = incidents::with_id_prefix(&file(config), prefix).await?;
    if found.is_empty() {
        let (id, days) = (id.as_str(), config.store.incidents.as_secs() / 86_400);
        return Err(CliError::NotFound(format!(
            "there is no incident {id}: the id is wrong, or the incident is more than {days} days old (store.incidents)"
        )));
    }
    let line = |incident: &Incident| format!("{}  {}", incident.kind.as_str(), incident.summary);
    let id = id.only(found.iter().map(|i| (i.id, line(i))), "incident")?;
    let Some(incident) = found.into_iter().find(|incident| incident.id == id) else {
        return Err(CliError::Internal(format!("incident {id} is gone")));
    };
    let store = open_store(config).await?;
    let messages = named::find(incident.messages(), &*store, config).await?;
    if terminal.json {
        terminal.json(&json!({"incident": incident, "messages": messages}))?;
        return Ok(Exit::Done);
    }
    tell(&incident, &messages, terminal)?;
    Ok(Exit::Done)
}

fn tell(
    incident: &Incident,
    messages: &[NamedMessage],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let at = terminal.time(incident.at);
    terminal.fields(&[
        ("id", incident.id.to_string()),
        ("time", format!("{at} ({} ago)", terminal.age(incident.at))),
        ("kind", incident.kind.as_str().to_owned()),
        ("subject", incident.subject.to_string()),
        ("summary", incident.summary.clone()),
    ])?;
    show_evidence(&incident.evidence, terminal)?;
    named::show("Messages", messages, terminal)
}

/// Prints a table of the evidence; prints nothing if there is none.
pub(super) fn show_evidence(
    evidence: &[(Cow<'static, str>, String)],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if evidence.is_empty() {
        return Ok(());
    }
    heading("Evidence", terminal)?;
    let columns = [Column::whole("FACT"), Column::whole("VALUE")];
    let row = |(what, value): &(Cow<'static, str>, String)| vec![what.to_string(), value.clone()];
    terminal.table(&columns, evidence.iter().map(row))
}
