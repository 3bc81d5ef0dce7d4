//! What people see of it; programs get one JSON value at the end.

use serde_json::json;

use super::play::Act;
use super::scene::Scene;
use super::stage::{FRAGILE, Stage};
use crate::cli::exit::CliError;
use crate::cli::record::{HELD, WAITING, heading, held_row, show_reports, waiting_row};
use crate::cli::terminal::Terminal;
use crate::store::{Lane, Record};

/// Who is who.
pub(super) fn introduction(stage: &Stage, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    if terminal.json {
        return Ok(());
    }
    let address = stage.address().map(|address| address.to_string());
    for line in [
        "A relay with three engines, and a mail server behind it. All of it runs in this process and in a",
        "temporary folder; no other mail and no other machine is touched. The engine called \"fragile\" has a",
        "bug that real scanners have now and then: it answers at once, but hangs on one particular message.",
        "",
    ] {
        terminal.line(line)?;
    }
    terminal.fields(&[
        ("relay", address.unwrap_or_default()),
        ("mail server", stage.mail_server().address().to_string()),
        (FRAGILE, stage.engine().address().to_string()),
    ])
}

/// What is about to happen; shown before it does.
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

/// What happened last.
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
        ("   sender was told", act.reply.clone().unwrap_or_default()),
        ("   after", wait),
        (
            "   it is now",
            format!("{}: {}", act.end.event(), act.end.place()),
        ),
        ("   because", because.unwrap_or_default()),
        (
            "   BUT",
            match act.as_expected {
                true => String::new(),
                false => format!(
                    "it should have been {}, as the headline says",
                    act.expected.event()
                ),
            },
        ),
    ])?;
    show_reports(&act.reports, terminal)
}

/// What an administrator sees of the messages that are kept.
pub(super) fn stored(
    lane: Lane,
    records: &[Record],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if terminal.json {
        return Ok(());
    }
    if lane == Lane::Held {
        heading(
            "What an administrator sees now with `spillway quarantine list`:",
            terminal,
        )?;
        let rows: Vec<_> = records.iter().map(|r| held_row(r, terminal)).collect();
        return terminal.table(&HELD, rows);
    }
    heading("… and with `spillway queue list`:", terminal)?;
    let rows: Vec<_> = records.iter().map(|r| waiting_row(r, terminal)).collect();
    terminal.table(&WAITING, rows)
}

/// The result; everything is cleaned up by now.
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
        [] => format!("All {} ended as they should.", acts.len()),
        names => format!("Not as it should be: {}.", names.join(", ")),
    };
    heading(&result, terminal)?;
    terminal.line("Everything is stopped, and the temporary folder is removed.")
}
