//! `spillway incident`: what went wrong, because of what, and what it did to the mail; and the automatic actions of the relay with
//! their evidence.

mod chosen;
mod markdown;
mod messages;
mod show;
mod timeline;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{self, CliError, Exit, Outcome};
use super::id::IdPrefix;
use super::json_list::{self, note_more};
use super::record::heading;
use super::table::Column;
use super::terminal::{Terminal, span};
use crate::config::{self, Config};
use crate::incident::{Incident, Kind, Story, StoryState, Subject, TouchOutcome, advice_for};
use crate::store::incidents::{self, Filter};
use crate::telemetry::duration::duration;

/// Default of `--limit`: 50 incidents, about one screen.
const LIST_LIMIT_DEFAULT: usize = 50;
/// Width of the list where there is no terminal: 80 columns.
const LIST_WIDTH: u16 = 80;

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Incidents {
    /// List what went wrong, by cause: first what lasts, then the newest
    #[command(after_help = exit::HELP)]
    List(List),
    /// Show an incident: since when, because of what, what it did to the mail, what to do
    #[command(after_help = exit::HELP)]
    Show(Show),
    /// List the messages that an incident delayed, held, let pass or refused
    #[command(after_help = exit::HELP)]
    Messages(Messages),
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// List every single event, not one line for each cause
    #[arg(long)]
    events: bool,
    /// Only incidents that lasted or happened within this time: 30m, 2h, 7d
    #[arg(long, value_name = "AGE", value_parser = config::parse_duration)]
    since: Option<Duration>,
    /// Only incidents with an event of this kind; may be given several times (breaker-probing: the breaker is
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
    /// The incident's id, as `incident list` prints it, or that of a single event, or any
    /// beginning that no other has
    id: IdPrefix,
    /// Print a post-mortem in Markdown
    #[arg(long, conflicts_with = "event")]
    markdown: bool,
    /// Show the single event of this id, also where a whole incident has its id
    #[arg(long)]
    event: bool,
}

#[derive(Debug, Args)]
pub(super) struct Messages {
    /// The incident's id, as `incident list` prints it, or any beginning that no other has
    id: IdPrefix,
    /// Only messages with this outcome; may be given several times
    #[arg(long, value_name = "OUTCOME", value_parser = outcome())]
    outcome: Vec<TouchOutcome>,
    /// Maximum number of messages, the first ones
    #[arg(long, value_name = "NUMBER", default_value_t = LIST_LIMIT_DEFAULT)]
    limit: usize,
    /// List all messages, not only the first 50
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

fn kind() -> impl TypedValueParser<Value = Kind> {
    let of = |word: String| Kind::ALL.into_iter().find(|kind| kind.as_str() == word);
    PossibleValuesParser::new(Kind::ALL.map(Kind::as_str))
        .try_map(move |word| of(word).ok_or("no such kind"))
}

fn outcome() -> impl TypedValueParser<Value = TouchOutcome> {
    let of = |word: String| TouchOutcome::ALL.into_iter().find(|o| o.as_str() == word);
    PossibleValuesParser::new(TouchOutcome::ALL.map(TouchOutcome::as_str))
        .try_map(move |word| of(word).ok_or("no such outcome"))
}

pub(super) async fn run(
    command: &Incidents,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    match command {
        Incidents::List(wanted) if wanted.events => list_events(wanted, config, terminal).await,
        Incidents::List(wanted) => list(wanted, config, terminal).await,
        Incidents::Show(wanted) => show::show(wanted, config, terminal).await,
        Incidents::Messages(wanted) => messages::list(wanted, config, terminal).await,
    }
}

/// The incident log of the relay of `config`.
pub(super) fn file(config: &Config) -> PathBuf {
    config.store.path.join(incidents::FILE_NAME)
}

impl List {
    fn filter(&self, terminal: &Terminal<'_>) -> Filter {
        Filter {
            since: self
                .since
                .and_then(|age| terminal.now.checked_sub(age).ok()),
            kinds: self.kind.clone(),
            engine: self.engine.clone(),
            interceptor: self.interceptor.clone(),
            ..Filter::default()
        }
    }
}

async fn list_events(wanted: &List, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    // All are read to count them; the log keeps at most 100,000.
    let mut incidents = incidents::search(&file(config), wanted.filter(terminal)).await?;
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

async fn list(wanted: &List, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let filter = wanted.filter(terminal);
    let mut stories = incidents::stories(&file(config)).await?;
    stories.retain(|state| is_wanted(state, &filter));
    // Trouble that an earlier version recorded has no story.
    let alone = incidents::search(&file(config), filter).await?;
    let alone = alone
        .iter()
        .filter(|i| i.story.is_none() && i.kind.is_trouble());
    stories.extend(alone.filter(|i| !is_by_hand(i)).map(StoryState::of_one));
    stories.sort_by_key(|state| {
        let story = &state.story;
        (story.ended.is_some(), Reverse((story.began, story.id)))
    });
    let total = stories.len() as u64;
    if !wanted.all {
        stories.truncate(wanted.limit);
    }
    match terminal.json {
        true => {
            let items: Vec<_> = stories.iter().map(ListedStory::of).collect();
            json_list::print("incidents", &items, total, terminal)?;
        }
        false => story_table(&stories, terminal)?,
    }
    note_more(stories.len(), total, terminal)?;
    Ok(Exit::Done)
}

/// Whether the event is an interceptor that a person made: no trouble, and announced again at each start.
fn is_by_hand(incident: &Incident) -> bool {
    matches!(incident.subject, Subject::Interceptor(_))
        && incident.engine().is_none()
        && matches!(
            incident.kind,
            Kind::InterceptorMade | Kind::InterceptorChanged
        )
}

fn is_wanted(state: &StoryState, filter: &Filter) -> bool {
    let story = &state.story;
    let of_engine = |name: &String| story.cause == Subject::engine(name);
    let of_interceptor = |id: &String| {
        let mut learned = state.interceptors.iter();
        let begins = |known: &String| known.starts_with(id.as_str());
        learned.any(begins) || matches!(&story.cause, Subject::Interceptor(known) if begins(known))
    };
    let happened = |kind: &Kind| state.kinds.iter().any(|known| known.kind == *kind);
    filter
        .since
        .is_none_or(|since| story.ended.is_none() || state.last >= since)
        && (filter.kinds.is_empty() || filter.kinds.iter().any(happened))
        && filter.engine.as_ref().is_none_or(of_engine)
        && filter.interceptor.as_ref().is_none_or(of_interceptor)
}

/// A story as JSON shows it.
#[derive(Debug, Serialize)]
struct ListedStory<'a> {
    #[serde(flatten)]
    story: &'a Story,
    /// The number of its events.
    events: u64,
    /// What lasts, in words.
    lasts: Vec<String>,
    /// What ended it, in words.
    #[serde(skip_serializing_if = "str::is_empty")]
    ended_by: &'a str,
    /// What to do.
    advice: String,
}

impl<'a> ListedStory<'a> {
    fn of(state: &'a StoryState) -> Self {
        Self {
            story: &state.story,
            events: state.incidents(),
            lasts: state.lasts(),
            ended_by: &state.ended_by,
            advice: advice_for(state.story.kind, &state.story.cause),
        }
    }
}

/// Prints a table with one line for each story, and one for the mail that it touched if the terminal is narrow. Where there is
/// no terminal, the table fits into [`LIST_WIDTH`] columns, too: people paste it into mails, and programs have `--json`.
fn story_table(stories: &[StoryState], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let columns = [
        Column::id("ID"),
        Column::whole("BEGAN"),
        Column::whole("LASTED"),
        Column::cut("CAUSE"),
        Column::whole("KIND"),
        Column::below("MAIL"),
    ];
    let row = |state: &StoryState| {
        let story = &state.story;
        vec![
            story.id.to_string(),
            terminal.minute(story.began),
            lasted(story, terminal),
            story.cause.to_string(),
            story.kind.as_str().to_owned(),
            mail(state),
        ]
    };
    let rows: Vec<_> = stories.iter().map(row).collect();
    let width = terminal.width;
    terminal.width = Some(width.unwrap_or(LIST_WIDTH));
    let shown = terminal.table(&columns, rows);
    terminal.width = width;
    shown
}

/// How long a story lasted, or lasts.
fn lasted(story: &Story, terminal: &Terminal<'_>) -> String {
    match story.ended {
        Some(ended) => span(story.began, ended),
        None => format!("open {}", terminal.age(story.began)),
    }
}

/// The mail that a story touched, and what waits for its cause, in one line.
fn mail(state: &StoryState) -> String {
    let touched = &state.story.touched;
    let late = match touched.delayed {
        0 => String::new(),
        late => format!(
            "{late} late (half {}, 99 % {}, all within {})",
            duration(touched.delay_median),
            duration(touched.delay_p99),
            duration(touched.delay_max)
        ),
    };
    let of = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("{count} {what}"),
    };
    let all = [
        late,
        of(touched.held, "held"),
        of(touched.passed, "passed"),
        of(touched.found, "delivered and found bad later"),
        of(touched.refused, "refused"),
        state.waits().unwrap_or_default(),
    ];
    let told: Vec<_> = all.into_iter().filter(|text| !text.is_empty()).collect();
    match told.is_empty() {
        true => "none touched".to_owned(),
        false => told.join(", "),
    }
}

/// Prints a table with one line for each incident.
pub(super) fn table(incidents: &[Incident], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let columns = [
        Column::id("ID"),
        Column::whole("TIME"),
        Column::whole("KIND"),
        Column::address("SUBJECT"),
        Column::below("SUMMARY"),
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
