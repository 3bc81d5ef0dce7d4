//! `spillway explain`: the reasons why a message was delayed, held, rejected or delivered (promise P7).

use std::cmp::Reverse;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::exit::{CliError, Exit, Outcome};
use super::id::IdPrefix;
use super::record::{heading, show, show_audit, show_decision, show_reports};
use super::terminal::{Terminal, safe, size};
use super::{control, incident, intercept, open_store};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::incident::Incident;
use crate::intercept::Interceptor;
use crate::message::MessageId;
use crate::store::history::{self, HistoryEntry, RESCANNED_EVENT};
use crate::store::incidents::{self, Filter};
use crate::store::{Audit, Cause, Record, Store};
use crate::verdict::{Decision, Report};

/// Maximum number of audit entries shown: more than a person reads about one message.
const AUDIT_ENTRIES_SHOWN: usize = 100;
/// Maximum number of incidents shown that name the message.
const INCIDENTS_SHOWN: usize = 100;
/// Maximum number of incidents shown about the cause that keeps the message: the newest ones show its present state.
const CAUSE_INCIDENTS_SHOWN: usize = 10;
/// How long to wait before a second look for a message that is nowhere: 250 ms, far longer than the relay needs between two
/// steps.
const SECOND_LOOK_WAIT: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The message id, as in the reply to the sender, in the log, and in X-Spillway-Result; or any
    /// beginning that no other message has
    id: IdPrefix,
}

/// All stored information about a message.
struct Story {
    record: Option<Record>,
    history: Vec<HistoryEntry>,
    audit: Vec<Audit>,
    /// The interceptor that keeps the message, if one does.
    interceptor: Option<Interceptor>,
    /// Incidents that name the message, and the newest ones about the cause that keeps it; the newest first.
    incidents: Vec<Incident>,
    /// Whether a relay runs and has written all that it had recorded; the error if it does not answer.
    relay: Result<bool, CliError>,
}

impl Story {
    fn is_empty(&self) -> bool {
        self.record.is_none()
            && self.history.is_empty()
            && self.audit.is_empty()
            && self.incidents.is_empty()
    }
}

pub(super) async fn run(wanted: &Explain, config: &Config, terminal: &mut Terminal<'_>) -> Outcome {
    let store = open_store(config).await?;
    let mut found = look(wanted, &*store, config, terminal).await;
    let is_unknown = match &found {
        Ok((_, story)) => story.is_empty() && matches!(story.relay, Ok(true)),
        Err(error) => matches!(error, CliError::NotFound(_)),
    };
    if is_unknown {
        // A running relay records the end of a message an instant after it has removed the record.
        Deadline::after(SECOND_LOOK_WAIT).wait().await;
        found = look(wanted, &*store, config, terminal).await;
    }
    let (id, story) = found?;
    if let Err(silent) = &story.relay {
        terminal.note(format!(
            "the relay does not answer, so its last events may be missing here: {silent}"
        ))?;
    }
    if story.is_empty() {
        let days = config.store.history.as_secs() / 86_400;
        return Err(CliError::NotFound(format!(
            "message {} is unknown: the id is wrong, or the message left more than {days} days ago (store.history)",
            id
        )));
    }
    if terminal.json {
        let Story {
            record,
            history,
            audit,
            interceptor,
            incidents,
            relay: _,
        } = &story;
        terminal.json(&json!({
            "record": record, "history": history, "audit": audit,
            "interceptor": interceptor, "incidents": incidents,
        }))?;
        return Ok(Exit::Done);
    }
    tell(id, &story, terminal)?;
    Ok(Exit::Done)
}

/// Finds the message and all that is stored about it. A message that is not in the store any more has its end in the history,
/// which a running relay writes a little later, so the relay is asked to write it first.
async fn look(
    wanted: &Explain,
    store: &dyn Store,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Result<(MessageId, Story), CliError> {
    let relay = control::flush(&config.admin.socket).await;
    control::note_troubles(&relay, terminal)?;
    let relay = relay.map(|runs| runs.is_some());
    let history = config.store.path.join(history::FILE_NAME);
    let id = wanted.id.known_message(store, &history).await?;
    let story = find(id, relay, store, config, terminal).await?;
    Ok((id, story))
}

async fn find(
    id: MessageId,
    relay: Result<bool, CliError>,
    store: &dyn Store,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Result<Story, CliError> {
    let record = store.get(id).await?;
    // The history uses the id that the sender knows. A record of one group of recipients has an id of its own. When that
    // record is gone, its history entry names the message that it was a part of.
    let file = config.store.path.join(history::FILE_NAME);
    let mut history = match history::read(&file, id).await {
        // What is stored can be explained without it.
        Err(error) if record.is_some() => {
            terminal.note(format!("spillway: the history cannot be read: {error}"))?;
            Vec::new()
        }
        history => history?,
    };
    let part_of = history.iter().find_map(|entry| entry.part_of);
    let message = record.as_ref().map(|record| record.message).or(part_of);
    let message = message.unwrap_or(id);
    if message != id {
        history = history::read(&file, message).await.unwrap_or_default();
    }
    let audit = store.audited(Some(id.into()), AUDIT_ENTRIES_SHOWN).await?;
    let cause = record.as_ref().and_then(|record| record.cause.as_ref());
    let interceptor = intercept::of_cause(cause, store, terminal).await?;
    let incidents = happened(&[id, message], cause, config).await?;
    Ok(Story {
        record,
        history,
        audit,
        interceptor,
        incidents,
        relay,
    })
}

/// Finds the incidents about these messages, or about the cause that keeps them.
async fn happened(
    messages: &[MessageId],
    cause: Option<&Cause>,
    config: &Config,
) -> Result<Vec<Incident>, CliError> {
    let file = incident::file(config);
    let named = Filter {
        messages: messages.to_vec(),
        limit: INCIDENTS_SHOWN,
        ..Filter::default()
    };
    let mut found = incidents::search(&file, named).await?;
    let of_cause = cause.map(|cause| match cause.clone() {
        Cause::Engine(name) => Filter {
            engine: Some(name),
            limit: CAUSE_INCIDENTS_SHOWN,
            ..Filter::default()
        },
        Cause::Interceptor(id) => Filter {
            interceptor: Some(id),
            limit: CAUSE_INCIDENTS_SHOWN,
            ..Filter::default()
        },
    });
    if let Some(filter) = of_cause {
        for incident in incidents::search(&file, filter).await? {
            if found.iter().all(|known| known.id != incident.id) {
                found.push(incident);
            }
        }
    }
    found.sort_by_key(|incident| Reverse(incident.at));
    Ok(found)
}

fn tell(id: MessageId, story: &Story, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    match (&story.record, story.history.first()) {
        (Some(record), _) => {
            show(record, None, attachments(&story.history), terminal)?;
        }
        (None, Some(first)) => gone(id, first, &story.history, terminal)?,
        (None, None) => terminal.line(format!("message {id} has left the relay"))?,
    }
    if !story.history.is_empty() {
        timeline(&story.history, terminal)?;
    }
    decisions(story, terminal)?;
    intercept::show_cause(story.interceptor.as_ref(), terminal)?;
    if !story.incidents.is_empty() {
        heading("Incidents", terminal)?;
        incident::table(&story.incidents, terminal)?;
    }
    show_audit(&story.audit, terminal)
}

/// Shows each decision once with its outcome, below the answers of the engines; the decision in force comes last.
fn decisions(story: &Story, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let mut told: Vec<&Decision> = Vec::new();
    let mut said: &[Report] = &[];
    for entry in &story.history {
        if let Some(decision) = entry.decision.as_ref().filter(|new| !told.contains(new)) {
            said = engines(&entry.reports, said, terminal)?;
            let title = format!("Decision at {}: {}", terminal.time(entry.at), entry.event);
            show_decision(&safe(&title), decision, terminal)?;
            told.push(decision);
        }
    }
    // Reports of later scans that led to the same decision.
    let latest = story.history.iter().rev().map(|entry| &entry.reports[..]);
    let in_force = story.record.iter().map(|record| &record.reports[..]);
    if let Some(reports) = in_force.chain(latest).find(|said| !said.is_empty()) {
        engines(reports, said, terminal)?;
    }
    match story
        .record
        .as_ref()
        .and_then(|record| record.decision.as_ref())
    {
        Some(decision) if !told.contains(&decision) => {
            show_decision("Decision in force", decision, terminal)
        }
        _ => Ok(()),
    }
}

/// Shows the reports of the engines unless they equal `told`, the reports shown last. Returns the reports shown last.
fn engines<'a>(
    reports: &'a [Report],
    told: &'a [Report],
    terminal: &mut Terminal<'_>,
) -> Result<&'a [Report], CliError> {
    if reports.is_empty() || reports == told {
        return Ok(told);
    }
    show_reports(reports, terminal)?;
    Ok(reports)
}

/// Shows what the history says about a message that has left the store.
fn gone(
    id: MessageId,
    first: &HistoryEntry,
    history: &[HistoryEntry],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    // The last event of a message may be one of another part of it.
    let (part_of, state) = match first.message == id {
        true => {
            // A scan after the delivery changes no state.
            let mut events = history.iter().rev().map(|entry| &*entry.event);
            let last = events.find(|event| *event != RESCANNED_EVENT);
            (String::new(), last.unwrap_or_default())
        }
        false => (first.message.to_string(), ""),
    };
    let fields = [
        ("id", id.to_string()),
        ("part of", part_of),
        ("state", state.to_owned()),
        ("sender", first.sender.to_string()),
        (
            "subject",
            described(history).map_or(String::new(), |entry| entry.subject.clone()),
        ),
        ("attached", attachments(history)),
        (
            "client",
            format!("{} on listener {}", first.client, first.listener),
        ),
        ("first seen", terminal.time(first.at)),
        (
            "size",
            format!("{} ({} octets)", size(first.size), first.size),
        ),
    ];
    terminal.fields(&fields)
}

/// The entry of the first pass that inspected the message.
fn described(history: &[HistoryEntry]) -> Option<&HistoryEntry> {
    let is_described =
        |entry: &&HistoryEntry| !entry.subject.is_empty() || !entry.attachments.is_empty();
    history.iter().find(is_described)
}

/// The names of the attachments; empty if there are none or they are unknown.
fn attachments(history: &[HistoryEntry]) -> String {
    described(history).map_or(String::new(), |entry| entry.attachments.join(", "))
}

fn timeline(history: &[HistoryEntry], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    heading("Timeline", terminal)?;
    for entry in history {
        let at = terminal.time(entry.at);
        let recipients: Vec<&str> = entry.recipients.iter().map(|r| r.as_str()).collect();
        let (event, detail) = (safe(&entry.event), safe(&entry.detail));
        terminal.line(format!("  {at}  {event:9}  {}", safe(&recipients.join(", "))).trim_end())?;
        if !detail.is_empty() {
            terminal.line(format!("      {detail}"))?;
        }
    }
    Ok(())
}
