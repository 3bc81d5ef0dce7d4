//! `spillway intercept`: interceptors that persons or the relay have made.

mod stored;

use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde_json::json;
use ulid::Ulid;

use super::exit::{self, CliError, Exit, Outcome};
use super::id::IdPrefix;
use super::record::{heading, show_audit};
use super::table::Column;
use super::terminal::{Terminal, count, safe};
use super::{control, incident, json_list, named, open_store, person};
use crate::config::{self, Config};
use crate::intercept::{Action, Interceptor, Origin};
use crate::message::pattern::{AttachmentHash, Pattern};
use crate::message::{AddressPattern, Glob, Trait};
use crate::store::{Audit, Cause, Object, Store, StoredInterceptor};

use stored::Caught;

/// Maximum number of audit entries shown: more than a person reads about one interceptor.
const AUDIT_ENTRIES_SHOWN: usize = 100;
/// Maximum length of a note in characters: a few sentences, so that `intercept show` stays readable.
const NOTE_CHARACTERS_MAX: usize = 500;

/// The commands of this family.
#[derive(Debug, Subcommand)]
pub(super) enum Intercept {
    /// Add an interceptor: matching mail goes to quarantine before an engine sees it
    ///
    /// A message matches if all given conditions hold. The running relay applies the interceptor at
    /// once.
    #[command(after_help = exit::HELP)]
    Add(Add),
    /// List interceptors, the newest first
    #[command(after_help = exit::HELP)]
    List,
    /// Show an interceptor: its origin, its evidence, and the messages that it matched
    #[command(after_help = exit::HELP)]
    Show(Show),
    /// Remove interceptors; mail held by a learned one is scanned again, other mail stays held
    #[command(after_help = exit::HELP)]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    conditions: Conditions,
    /// Lifetime of the interceptor: 30m, 2h, 7d [default: until it is removed]
    #[arg(long = "for", value_name = "AGE", value_parser = config::parse_duration)]
    lasts: Option<Duration>,
    /// Only count matching messages, and divert none
    #[arg(long)]
    dry_run: bool,
    /// The reason, for `intercept show`; at most 500 characters
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    note: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
#[command(next_help_heading = "Which messages (every condition must hold)")]
struct Conditions {
    /// An attachment with this SHA-256, as `quarantine show` prints it
    #[arg(long, value_name = "SHA256")]
    attachment_sha256: Option<AttachmentHash>,
    /// The whole subject; `*` stands for any characters: "*invoice*"
    #[arg(long, value_name = "PATTERN")]
    subject: Option<Glob>,
    /// The sender's whole address; `*` stands for any characters: "*@example.com"; "<>" for bounces
    #[arg(long, value_name = "PATTERN")]
    sender: Option<AddressPattern>,
    /// The client's address or network: 192.0.2.7, 192.0.2.0/24
    #[arg(long, value_name = "NETWORK", value_parser = config::parse_network)]
    client: Option<IpNet>,
    /// A shape, as `intercept show` prints it: skeleton:00c0ffee00c0ffee; may be given several times
    #[arg(long, value_name = "SHAPE")]
    shape: Vec<Trait>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The interceptor's id, or any beginning that no other interceptor has
    id: String,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The interceptors' ids; of each id, any beginning that no other interceptor has
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

pub(super) async fn run(
    command: &Intercept,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let store = open_store(config).await?;
    let store = &*store;
    match command {
        Intercept::Add(wanted) => add(wanted, config, store, terminal).await,
        Intercept::List => list(store, terminal).await,
        Intercept::Show(wanted) => show(&wanted.id, store, config, terminal).await,
        Intercept::Remove(wanted) => remove(&wanted.ids, config, store, terminal).await,
    }
}

async fn add(
    wanted: &Add,
    config: &Config,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let given = &wanted.conditions;
    let pattern = Pattern {
        traits: given.shape.clone(),
        attachment: given.attachment_sha256,
        subject: given.subject.clone(),
        sender: given.sender.clone(),
        client: given.client,
        near: Vec::new(),
    };
    if wanted.note.chars().count() > NOTE_CHARACTERS_MAX {
        return Err(CliError::Usage(format!(
            "--note takes at most {NOTE_CHARACTERS_MAX} characters; shorten the note"
        )));
    }
    let interceptor = Interceptor {
        id: Ulid::generate().to_string(),
        pattern,
        action: Action::Hold,
        origin: Origin::Person {
            who: person::actor(),
            note: wanted.note.clone(),
        },
        made: terminal.now,
        // An end beyond the range of timestamps counts as no end.
        expires: wanted
            .lasts
            .and_then(|lasts| terminal.now.checked_add(lasts).ok()),
        dry_run: wanted.dry_run,
        hits: 0,
        samples: Vec::new(),
    };
    keep(&interceptor, store, terminal).await?;
    let added = [&interceptor.id];
    control::acted(&config.admin.socket, "intercept-add", &added, 0).await;
    let caught = stored::catches(&interceptor.pattern, store).await?;
    if terminal.json {
        terminal.json(&json!({"added": interceptor, "stored": caught}))?;
        return Ok(Exit::Done);
    }
    terminal.line(format!("added {}", interceptor.id))?;
    tell(&interceptor, &caught, terminal)?;
    Ok(Exit::Done)
}

/// Adds the interceptor to the store, with its audit entry.
async fn keep(
    interceptor: &Interceptor,
    store: &dyn Store,
    terminal: &Terminal<'_>,
) -> Result<(), CliError> {
    let body = serde_json::to_string(interceptor)
        .map_err(|error| CliError::Internal(error.to_string()))?;
    let audit = audit("add", &interceptor.id, what(interceptor), terminal);
    let document = StoredInterceptor {
        id: interceptor.id.clone(),
        version: 0,
        body,
    };
    match store.keep_interceptor(document, Some(audit)).await? {
        Some(_) => Ok(()),
        None => {
            let what = format!("{} exists already", interceptor.id);
            Err(CliError::Internal(what))
        }
    }
}

/// The action and the pattern of an interceptor, in one line.
fn what(interceptor: &Interceptor) -> String {
    let dry = if interceptor.dry_run {
        " (dry run)"
    } else {
        ""
    };
    format!("{}{dry} {}", interceptor.action, interceptor.pattern)
}

fn audit(act: &str, id: &str, detail: String, terminal: &Terminal<'_>) -> Audit {
    Audit {
        at: terminal.now,
        actor: person::actor(),
        act: act.to_owned(),
        object: Object::Interceptor(id.to_owned()),
        detail,
    }
}

/// All readable interceptors, the newest first. A note on standard error names each unreadable one.
async fn all(store: &dyn Store, terminal: &mut Terminal<'_>) -> Result<Vec<Interceptor>, CliError> {
    let stored = store.interceptors(None).await?;
    let mut interceptors: Vec<Interceptor> = Vec::new();
    for document in stored.into_iter().flat_map(|stored| stored.all) {
        match serde_json::from_str(&document.body) {
            Ok(interceptor) => interceptors.push(interceptor),
            Err(error) => terminal.note(format!(
                "interceptor {} cannot be read: {error}",
                safe(&document.id)
            ))?,
        }
    }
    interceptors.sort_by(|a, b| (b.made, &b.id).cmp(&(a.made, &a.id)));
    Ok(interceptors)
}

async fn list(store: &dyn Store, terminal: &mut Terminal<'_>) -> Outcome {
    let interceptors = all(store, terminal).await?;
    if terminal.json {
        json_list::print(
            "interceptors",
            &interceptors,
            interceptors.len() as u64,
            terminal,
        )?;
        return Ok(Exit::Done);
    }
    let columns = [
        Column::id("ID"),
        Column::whole("ACTION"),
        Column::cut("BY"),
        Column::whole("AGE"),
        Column::whole("ENDS"),
        Column::whole("HITS"),
        Column::cut("PATTERN"),
    ];
    let row = |interceptor: &Interceptor| {
        vec![
            interceptor.id.clone(),
            action(interceptor),
            by(interceptor).to_owned(),
            terminal.age(interceptor.made),
            ends(interceptor, terminal),
            interceptor.hits.to_string(),
            interceptor.pattern.to_string(),
        ]
    };
    let rows: Vec<_> = interceptors.iter().map(row).collect();
    terminal.table(&columns, rows)?;
    Ok(Exit::Done)
}

fn action(interceptor: &Interceptor) -> String {
    match interceptor.dry_run {
        true => format!("{} (dry run)", interceptor.action),
        false => interceptor.action.to_string(),
    }
}

fn by(interceptor: &Interceptor) -> &str {
    match &interceptor.origin {
        Origin::Learned { .. } => "learned",
        Origin::Person { who, .. } => who,
    }
}

fn ends(interceptor: &Interceptor, terminal: &Terminal<'_>) -> String {
    match interceptor.expires {
        _ if interceptor.has_expired(terminal.now) => "ended".to_owned(),
        Some(end) => terminal.until(end),
        None => "-".to_owned(),
    }
}

async fn show(
    id: &str,
    store: &dyn Store,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let interceptors = all(store, terminal).await?;
    let id = whole(id, &interceptors)?;
    let found = interceptors.into_iter().find(|known| known.id == id);
    let object = Object::Interceptor(id.clone());
    let audit = store.audited(Some(object), AUDIT_ENTRIES_SHOWN).await?;
    let Some(interceptor) = found else {
        return gone(&id, &audit, terminal);
    };
    let samples = named::find(interceptor.samples.iter().copied(), store, config).await?;
    let caught = stored::catches(&interceptor.pattern, store).await?;
    if terminal.json {
        terminal.json(&json!({
            "interceptor": interceptor, "samples": samples, "stored": caught, "audit": audit,
        }))?;
        return Ok(Exit::Done);
    }
    tell(&interceptor, &caught, terminal)?;
    if let Origin::Learned { evidence, .. } = &interceptor.origin {
        incident::show_evidence(evidence, terminal)?;
    }
    named::show("First matching messages", &samples, terminal)?;
    show_audit(&audit, terminal)?;
    Ok(Exit::Done)
}

/// The id of the interceptor with this beginning. If there is none, the text itself: it may be the id of one that has ended.
fn whole(text: &str, known: &[Interceptor]) -> Result<String, CliError> {
    let Ok(id) = text.parse::<IdPrefix>() else {
        return Ok(text.to_owned());
    };
    let objects = known.iter().map(|known| (known.id.clone(), what(known)));
    match id.only(objects, "interceptor") {
        Err(CliError::NotFound(_)) => Ok(text.to_owned()),
        found => found,
    }
}

/// Shows the audit of an interceptor that no longer exists, if there is one.
fn gone(id: &str, audit: &[Audit], terminal: &mut Terminal<'_>) -> Outcome {
    if !audit.is_empty() && !terminal.json {
        show_audit(audit, terminal)?;
    }
    Err(CliError::NotFound(format!(
        "there is no interceptor {id}; it may have ended: see `spillway incident list --interceptor {id}`"
    )))
}

fn tell(
    interceptor: &Interceptor,
    caught: &Caught,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let mut fields = fields(interceptor, terminal);
    fields.push(("stored mail", caught.to_string()));
    terminal.fields(&fields)
}

/// The properties of an interceptor, without a comparison with stored messages.
fn fields(interceptor: &Interceptor, terminal: &Terminal<'_>) -> Vec<(&'static str, String)> {
    let note = match &interceptor.origin {
        Origin::Person { note, .. } => note.clone(),
        Origin::Learned { .. } => String::new(),
    };
    let made = terminal.time(interceptor.made);
    let hits = usize::try_from(interceptor.hits).unwrap_or(usize::MAX);
    let ending = match interceptor.expires {
        Some(end) => format!("{} ({})", terminal.time(end), ends(interceptor, terminal)),
        None => "when it is removed".to_owned(),
    };
    vec![
        ("id", interceptor.id.clone()),
        ("pattern", interceptor.pattern.to_string()),
        ("action", action(interceptor)),
        ("made by", by(interceptor).to_owned()),
        ("note", note),
        (
            "made",
            format!("{made} ({} ago)", terminal.age(interceptor.made)),
        ),
        ("ends", ending),
        ("matched", count(hits, "message")),
    ]
}

/// Shows the interceptor that keeps a message, as [`show`] does; shows nothing if there is none.
pub(super) fn show_cause(
    interceptor: Option<&Interceptor>,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let Some(interceptor) = interceptor else {
        return Ok(());
    };
    heading("Interceptor", terminal)?;
    let fields = fields(interceptor, terminal);
    terminal.fields(&fields)
}

/// The interceptor that is the cause of a stored message; none if the cause is an engine or the interceptor has ended.
pub(super) async fn of_cause(
    cause: Option<&Cause>,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Result<Option<Interceptor>, CliError> {
    let Some(Cause::Interceptor(id)) = cause else {
        return Ok(None);
    };
    let all = all(store, terminal).await?;
    Ok(all.into_iter().find(|known| known.id == *id))
}

async fn remove(
    ids: &[String],
    config: &Config,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let known = all(store, terminal).await?;
    let ids = ids.iter().map(|id| whole(id, &known));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let (mut removed, mut left) = (Vec::new(), Vec::new());
    for id in &ids {
        let interceptor = known.iter().find(|known| known.id == *id);
        let detail = interceptor.map_or(String::new(), what);
        let audit = audit("remove", id, detail, terminal);
        match store.drop_interceptor(id.clone(), Some(audit)).await? {
            true => removed.push(id),
            false => left.push(id),
        }
    }
    let socket = &config.admin.socket;
    control::acted(socket, "intercept-remove", &removed, left.len()).await;
    if terminal.json {
        terminal.json(&json!({"removed": removed, "left": left}))?;
    } else {
        for id in &left {
            terminal.note(format!(
                "there is no interceptor {}; it may have ended",
                safe(id)
            ))?;
        }
        for id in &removed {
            terminal.line(format!("removed {}", safe(id)))?;
        }
    }
    Ok(match left.is_empty() {
        true => Exit::Done,
        false => Exit::Found,
    })
}
