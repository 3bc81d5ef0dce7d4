//! `spillway incident show`.

use serde_json::json;

use super::chosen::{Chosen, choose, choose_story};
use super::timeline::timeline;
use super::{ListedStory, Show, file, lasted, mail, markdown, messages, show_evidence};
use crate::cli::exit::{CliError, Exit, Outcome};
use crate::cli::named::{self, NamedMessage};
use crate::cli::open_store;
use crate::cli::record::heading;
use crate::cli::table::Column;
use crate::cli::terminal::Terminal;
use crate::config::Config;
use crate::incident::{Incident, Story, StoryState, Subject, Touch, advice_for};
use crate::store::incidents;

/// Messages that `show` lists: as many as fit below the rest.
const MESSAGES_SHOWN: usize = 10;

pub(super) async fn show(wanted: &Show, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    if wanted.markdown {
        let (state, told) = choose_story(&wanted.id, config).await?;
        let touched = touched(&state, config).await?;
        return markdown::print(&state, &told, &touched, config, terminal);
    }
    match choose(&wanted.id, wanted.event, config).await? {
        Chosen::Story(state, told) => {
            let touched = touched(&state, config).await?;
            show_story(&state, &told, &touched, terminal)
        }
        Chosen::Event(incident) => show_event(&incident, config, terminal).await,
    }
}

/// The first messages of a story, and the number of all in the log.
async fn touched(state: &StoryState, config: &Config) -> Result<(Vec<Touch>, u64), CliError> {
    let id = state.story.id;
    Ok(incidents::touched(&file(config), id, Vec::new(), MESSAGES_SHOWN).await?)
}

fn show_story(
    state: &StoryState,
    told: &[Incident],
    (touches, total): &(Vec<Touch>, u64),
    terminal: &mut Terminal<'_>,
) -> Outcome {
    if terminal.json {
        terminal.json(&json!({
            "incident": ListedStory::of(state), "events": told, "messages": touches, "messages_total": total,
        }))?;
        return Ok(Exit::Done);
    }
    let story = &state.story;
    let began = terminal.time(story.began);
    let ended = (story.ended).map_or_else(|| lasts(state), |at| terminal.time(at));
    terminal.fields(&[
        ("id", story.id.to_string()),
        ("cause", story.cause.to_string()),
        ("what", story.title.clone()),
        (
            "began",
            format!("{began} ({} ago)", terminal.age(story.began)),
        ),
        ("came back", came_back(story, terminal)),
        ("ended", ended),
        ("ended by", state.ended_by.clone()),
        ("lasted", lasted(story, terminal)),
        ("mail", mail(state)),
        ("to do", advice_for(story.kind, &story.cause)),
        ("waiting now", waiting(state)),
    ])?;
    heading("Timeline", terminal)?;
    let columns = [
        Column::whole("TIME"),
        Column::whole("KIND"),
        Column::below("SUMMARY"),
    ];
    let rows = timeline(state, told).into_iter().map(|entry| {
        let kind = entry.kind.as_str().to_owned();
        let summary = format!("{}{}", entry.times(|at| terminal.clock(at)), entry.summary);
        vec![terminal.clock(entry.first), kind, summary]
    });
    let rows: Vec<_> = rows.collect();
    terminal.table(&columns, rows)?;
    if let Some(main) = told.iter().find(|incident| incident.id == state.main) {
        show_evidence(&main.evidence, terminal)?;
    }
    if !touches.is_empty() {
        heading("Messages", terminal)?;
        messages::table(touches, terminal)?;
    }
    if (touches.len() as u64) < *total {
        let (shown, id) = (touches.len(), story.id);
        terminal.line(format!(
            "the first {shown} of {total}; all: spillway incident messages {id} --all"
        ))?;
    }
    Ok(Exit::Done)
}

/// When the trouble came back last, if the story had ended before.
pub(super) fn came_back(story: &Story, terminal: &Terminal<'_>) -> String {
    story.back.map_or_else(String::new, |back| {
        format!(
            "{}, after this incident had ended: it goes on",
            terminal.time(back)
        )
    })
}

/// The command that lists the mail that waits because of the cause, while the story lasts.
fn waiting(state: &StoryState) -> String {
    match &state.story.cause {
        Subject::Engine { name, .. } if state.story.ended.is_none() => {
            format!("spillway queue list --cause engine:{name}")
        }
        _ => String::new(),
    }
}

/// What lasts, in words.
pub(super) fn lasts(state: &StoryState) -> String {
    let lasts = state.lasts();
    match (lasts.is_empty(), state.lasted) {
        (false, _) => format!("not yet: {}", lasts.join("; ")),
        (true, true) => "not yet: it ends when the trouble stays away for half a minute".to_owned(),
        (true, false) => "not yet: it ends when nothing happens for ten minutes".to_owned(),
    }
}

async fn show_event(incident: &Incident, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let store = open_store(config).await?;
    let messages = named::find(incident.messages(), &*store, config).await?;
    if terminal.json {
        terminal.json(&json!({"event": incident, "messages": messages}))?;
        return Ok(Exit::Done);
    }
    tell(incident, &messages, terminal)?;
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
        (
            "part of",
            incident
                .story
                .map_or(String::new(), |story| story.to_string()),
        ),
        ("to do", incident.advice()),
    ])?;
    show_evidence(&incident.evidence, terminal)?;
    named::show("Messages", messages, terminal)
}
