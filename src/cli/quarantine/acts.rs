//! Acts of a reviewer on one or several messages: release, delete, export.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use super::{Export, Format, Release};
use crate::cli::exit::{CliError, Exit, Outcome};
use crate::cli::list::RecordList;
use crate::cli::select::{Selected, Selection};
use crate::cli::terminal::{Terminal, count};
use crate::cli::{control, person};
use crate::config::Config;
use crate::message::MessageId;
use crate::quarantine::{self, Act, QuarantineError, export::Format as ExportFormat};
use crate::store::{Lane, Record, Store};

/// From 20 messages on, a bar shows the progress; fewer are done before a person reads the bar.
const PROGRESS_BAR_MESSAGES_MIN: usize = 20;

/// An act in words.
struct Verb {
    /// `release`
    present: &'static str,
    /// `released`
    past: &'static str,
}

/// Releases the selected messages to delivery, and wakes the relay.
pub(super) async fn release(
    wanted: &Release,
    config: &Config,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let verb = Verb {
        present: "release",
        past: "released",
    };
    let to = Some(wanted.to.clone()).filter(|to| !to.is_empty());
    // A message should be retried for the `give_up` of its own next hop, but only its record names that next hop. So the
    // longest `give_up` of all next hops applies to every released message: none is given up too early.
    let give_ups = config.next_hops.iter().map(|hop| hop.give_up);
    let give_up = give_ups.max().unwrap_or_default();
    let actor = actor_and_time(terminal);
    let act_on_one = async |id| {
        let released = quarantine::release(store, id, to.clone(), give_up, &actor).await;
        released.map(drop).map_err(CliError::from)
    };
    act_on_all(
        &wanted.selection,
        &verb,
        config,
        store,
        act_on_one,
        terminal,
    )
    .await
}

/// Deletes the selected messages for good.
pub(super) async fn delete(
    wanted: &Selection,
    config: &Config,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let verb = Verb {
        present: "delete",
        past: "deleted",
    };
    let actor = actor_and_time(terminal);
    let act_on_one = async |id| {
        let deleted = quarantine::delete(store, id, &actor).await;
        deleted.map_err(CliError::from)
    };
    act_on_all(wanted, &verb, config, store, act_on_one, terminal).await
}

/// Exports the selected messages to a file, to a folder (one file a message), or to standard output.
pub(super) async fn export(
    wanted: &Export,
    config: &Config,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let verb = Verb {
        present: "export",
        past: "exported",
    };
    let actor = actor_and_time(terminal);
    if wanted.output == Path::new("-") {
        return export_to_output(wanted, config, store, &actor, terminal).await;
    }
    let format = export_format(wanted.format);
    let into_folder = wanted.format == Format::Eml && is_folder(wanted);
    let act_on_one = async |id: MessageId| {
        let file = match into_folder {
            true => wanted.output.join(format!("{id}.eml")),
            false => wanted.output.clone(),
        };
        let name = file.display().to_string();
        let octets = quarantine::export::export(store, id, format, &name, &actor).await?;
        let append = wanted.format == Format::Mbox;
        let folder = into_folder.then(|| wanted.output.clone());
        let write = move || {
            if let Some(folder) = folder {
                make_folder(&folder)?;
            }
            let written = write_private(&file, append, &octets);
            written.map_err(|error| CliError::File(file, error))
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| CliError::Internal(error.to_string()))?
    };
    act_on_all(
        &wanted.selection,
        &verb,
        config,
        store,
        act_on_one,
        terminal,
    )
    .await
}

/// Whether the output is a folder: it is one, is written as one, or must be one because it may get several messages.
fn is_folder(wanted: &Export) -> bool {
    let is_written_as_one = wanted.output.as_os_str().as_bytes().ends_with(b"/");
    wanted.output.is_dir() || is_written_as_one || !wanted.selection.is_of_one()
}

/// Makes a folder, and the folders above it, that only its owner may read. Does nothing if it exists.
fn make_folder(folder: &Path) -> Result<(), CliError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| {
        CliError::Usage(format!(
            "cannot make the folder {}: {error}; make it, or name another one with --output",
            folder.display()
        ))
    })
}

/// Writes the messages one after the other to standard output. No other text goes there.
async fn export_to_output(
    wanted: &Export,
    config: &Config,
    store: &dyn Store,
    actor: &Act,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let selected = wanted
        .selection
        .resolve("Export", store, &[Lane::Held], terminal);
    let ids = match selected.await? {
        Selected::Go(ids) => ids,
        Selected::Declined => return Ok(Exit::Done),
        Selected::DryRun(number, shown) => return dry_run("export", number, &shown, terminal),
    };
    if wanted.format == Format::Eml && ids.len() > 1 {
        let what = "eml cannot separate several messages on standard output; use --format mbox or a folder";
        return Err(CliError::Usage(what.to_owned()));
    }
    for id in &ids {
        let format = export_format(wanted.format);
        let octets =
            quarantine::export::export(store, *id, format, "standard output", actor).await?;
        terminal.out.write_all(&octets)?;
    }
    control::acted(&config.admin.socket, "export", &ids, 0).await;
    Ok(Exit::Done)
}

/// The format of the export that the option names.
fn export_format(format: Format) -> ExportFormat {
    match format {
        Format::Eml => ExportFormat::Eml,
        Format::Mbox => ExportFormat::Mbox,
    }
}

/// Writes a file that only its owner may read, because a held message may contain anything. An existing file is appended to
/// (`append`) or is an error, and never overwritten. An incomplete write is undone, so that a repeated export leaves no
/// message twice or in part.
fn write_private(file: &Path, append: bool, octets: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    match append {
        true => options.append(true).create(true),
        false => options.write(true).create_new(true),
    };
    let mut out = options.mode(0o600).open(file)?;
    let before = out.metadata()?.len();
    let written = out.write_all(octets).and_then(|()| out.sync_all());
    if written.is_err() {
        // A failure to undo is not reported: the caller reports the failed write.
        let _ = match append {
            true => out.set_len(before),
            false => std::fs::remove_file(file),
        };
    }
    written
}

/// Selects the messages, asks for confirmation, does `act_on_one` for each of them and reports the results. A failure for one
/// message does not stop the others.
async fn act_on_all(
    selection: &Selection,
    verb: &Verb,
    config: &Config,
    store: &dyn Store,
    act_on_one: impl AsyncFn(MessageId) -> Result<(), CliError>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let mut capital = verb.present.to_owned();
    capital[..1].make_ascii_uppercase();
    let selected = selection.resolve(&capital, store, &[Lane::Held], terminal);
    let ids = match selected.await? {
        Selected::Go(ids) => ids,
        Selected::Declined => {
            terminal.note(format!("nothing {}", verb.past))?;
            return Ok(Exit::Done);
        }
        Selected::DryRun(number, shown) => return dry_run(verb.present, number, &shown, terminal),
    };
    let bar = bar(ids.len(), terminal);
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for id in ids {
        match act_on_one(id).await {
            Ok(()) => done.push(id),
            Err(error) => failed.push((id, error)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    // The relay is notified even if the report cannot be written: released messages wait for delivery.
    control::acted(&config.admin.socket, verb.present, &done, failed.len()).await;
    report(verb, &done, &failed, terminal)?;
    let exits = failed.iter().map(|(_, error)| match error.exit() {
        // An error may have the exit code of a success (a closed pipe). Here it is still a message on which the act was not
        // done, and the command must not exit as if it were: a part of the request failed.
        Exit::Done => Exit::Found,
        other => other,
    });
    Ok(exits.max().unwrap_or(Exit::Done))
}

/// A progress bar on the terminal; hidden if the output is no terminal or the messages are few.
fn bar(length: usize, terminal: &Terminal<'_>) -> ProgressBar {
    let target = match terminal.interactive && length >= PROGRESS_BAR_MESSAGES_MIN {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    ProgressBar::with_draw_target(Some(length as u64), target)
}

/// Reports on which messages the act was done and on which it failed.
fn report(
    verb: &Verb,
    done: &[MessageId],
    failed: &[(MessageId, CliError)],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if terminal.json {
        let failed: Vec<_> = failed
            .iter()
            .map(|(id, error)| json!({"id": id, "error": error.to_string()}))
            .collect();
        return terminal.json(&json!({verb.past: done, "failed": failed}));
    }
    for (id, error) in failed {
        for line in error.lines() {
            terminal.note(format!("{id}: {line}"))?;
        }
    }
    match done {
        [] => terminal.line(format!("nothing {}", verb.past)),
        [one] => terminal.line(format!("{} {one}", verb.past)),
        several => terminal.line(format!("{} {}", verb.past, count(several.len(), "message"))),
    }
}

/// Shows which messages the act would change.
fn dry_run(verb: &str, number: usize, shown: &[Record], terminal: &mut Terminal<'_>) -> Outcome {
    if terminal.json {
        terminal.json(&json!({"dry_run": verb, "messages": number, "first": shown}))?;
        return Ok(Exit::Done);
    }
    RecordList::Held.table(shown, terminal)?;
    terminal.line(format!("would {verb} {}", count(number, "message")))?;
    Ok(Exit::Done)
}

/// Who acts and when, for the audit.
fn actor_and_time(terminal: &Terminal<'_>) -> Act {
    Act {
        actor: person::actor(),
        at: terminal.now,
    }
}

impl From<QuarantineError> for CliError {
    fn from(error: QuarantineError) -> Self {
        match error {
            QuarantineError::NotHeld(_) => Self::NotFound(error.to_string()),
            QuarantineError::NoRecipients => Self::Usage(error.to_string()),
            QuarantineError::Store(error) => Self::Store(error),
        }
    }
}
