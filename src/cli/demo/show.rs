//! The output of the demo: text while it runs, or one JSON value at the end.

use serde_json::json;

use super::play::Act;
use super::scene::Scene;
use super::stage::{FRAGILE_ENGINE, Stage};
use crate::admin::Waits;
use crate::cli::exit::CliError;
use crate::cli::list::RecordList;
use crate::cli::record::{heading, show_reports};
use crate::cli::terminal::Terminal;
use crate::cli::waits::Relay;
use crate::store::{Lane, Record};

/// Prints the parts of the demo, with their addresses.
pub(super) fn introduction(stage: &Stage, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    if terminal.json {
        return Ok(());
    }
    let address = stage.address().map(|address| address.to_string());
    for line in [
        "The demo runs a relay with three engines, and a mail server behind the relay, in this process and in a",
        "temporary folder. It touches no other mail and no other machine. The engine \"fragile\" has a bug that",
        "real scanners have as well: it answers most messages at once, but hangs on one particular message.",
        "",
    ] {
        terminal.line(line)?;
    }
    terminal.fields(&[
        ("relay", address.unwrap_or_default()),
        ("mail server", stage.mail_server().address().to_string()),
        (FRAGILE_ENGINE, stage.engine().address().to_string()),
    ])
}

/// Prints the headline of a scene, before the scene begins.
pub(super) fn headline(
    number: usize,
    scene: &Scene,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if terminal.json {
        return Ok(());
    }
    heading(&format!("{}. {}", number + 1, scene.headline), terminal)?;
    Ok(terminal.out.flush()?)
}

/// Prints the last result.
pub(super) fn last(acts: &[Act], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let Some(act) = acts.last().filter(|_| !terminal.json) else {
        return Ok(());
    };
    let because = act.decision.as_ref();
    let because = because.map(|decision| format!("{} ({})", decision.reason, decision.rule));
    let wait = match (act.answered_in_ms, act.overtook_by_ms) {
        (None, _) => String::new(),
        (Some(ms), None) => format!("{ms} ms"),
        (Some(ms), Some(by)) => format!("{ms} ms, and {by} ms before the message above"),
    };
    terminal.fields(&[
        ("   reply", act.reply.clone().unwrap_or_default()),
        ("   after", wait),
        (
            "   now",
            format!("{}: {}", act.end.event(), act.end.place()),
        ),
        ("   because", because.unwrap_or_default()),
        (
            "   BUT",
            match act.as_expected {
                true => String::new(),
                false => format!("expected: {}, as the headline says", act.expected.event()),
            },
        ),
    ])?;
    show_reports(&act.reports, terminal)
}

/// Prints the lists of stored messages as an administrator sees them.
pub(super) fn stored(
    lane: Lane,
    records: &[Record],
    waits: Waits,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if terminal.json {
        return Ok(());
    }
    if lane == Lane::Held {
        heading(
            "An administrator now sees with `spillway quarantine list`:",
            terminal,
        )?;
        return RecordList::Held.table(records, terminal);
    }
    heading("… and with `spillway queue list`:", terminal)?;
    RecordList::Waiting(Relay::Running(waits)).table(records, terminal)
}

/// Prints the result of the demo, after everything has been removed.
pub(super) fn end(acts: &[Act], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let wrong: Vec<&str> = acts
        .iter()
        .filter(|act| !act.as_expected)
        .map(|act| act.name)
        .collect();
    if terminal.json {
        return terminal.json(&json!({"as_expected": wrong.is_empty(), "messages": acts}));
    }
    let result = match wrong.as_slice() {
        [] => format!("All {} results are as expected.", acts.len()),
        names => format!("Not as expected: {}.", names.join(", ")),
    };
    heading(&result, terminal)?;
    terminal.line("Everything is stopped, and the temporary folder is removed.")
}
