//! `spillway incident messages`: whom an incident touched, and how.

use super::chosen::choose_story;
use super::{Messages, file};
use crate::cli::exit::{CliError, Exit, Outcome};
use crate::cli::json_list;
use crate::cli::table::Column;
use crate::cli::terminal::Terminal;
use crate::config::Config;
use crate::incident::{Touch, TouchOutcome};
use crate::store::incidents;
use crate::telemetry::duration::duration;

pub(super) async fn list(
    wanted: &Messages,
    config: &Config,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let (state, _) = choose_story(&wanted.id, config).await?;
    let limit = match wanted.all {
        true => usize::MAX,
        false => wanted.limit,
    };
    let log = file(config);
    let (touches, total) =
        incidents::touched(&log, state.story.id, wanted.outcome.clone(), limit).await?;
    match terminal.json {
        true => json_list::print("messages", &touches, total, terminal)?,
        false => table(&touches, terminal)?,
    }
    if (touches.len() as u64) < total {
        let shown = touches.len();
        terminal.note(format!(
            "only the first {shown} of {total} are shown; --limit shows more, --all shows all"
        ))?;
    }
    let counted = counted(&state.story.touched, &wanted.outcome);
    if counted > total {
        terminal.note(format!(
            "{} more were only counted, or their rows have made room for later ones",
            counted - total
        ))?;
    }
    Ok(Exit::Done)
}

/// The number of messages with these outcomes, or with any if there are none.
fn counted(touched: &crate::incident::Touched, outcomes: &[TouchOutcome]) -> u64 {
    let of = |outcome: TouchOutcome| match outcome {
        TouchOutcome::Delayed => touched.delayed,
        TouchOutcome::Held => touched.held,
        TouchOutcome::Passed => touched.passed,
        TouchOutcome::Found => touched.found,
        TouchOutcome::Refused => touched.refused,
    };
    let wanted = |outcome: &TouchOutcome| outcomes.is_empty() || outcomes.contains(outcome);
    TouchOutcome::ALL.into_iter().filter(wanted).map(of).sum()
}

/// Prints a table with one line for each message.
pub(super) fn table(touches: &[Touch], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let columns = [
        Column::id("ID"),
        Column::whole("OUTCOME"),
        Column::whole("DELAY"),
        Column::address("SENDER"),
        Column::cut("SUBJECT"),
        // Whom it touched is what is asked most.
        Column::below("RECIPIENTS"),
    ];
    let row = |touch: &Touch| {
        vec![
            touch.message.to_string(),
            touch.outcome.as_str().to_owned(),
            delay(touch),
            touch.sender.clone(),
            touch.subject.clone(),
            recipients(touch),
        ]
    };
    terminal.table(&columns, touches.iter().map(row))
}

/// How much later the message was delivered; empty for one that was not.
pub(super) fn delay(touch: &Touch) -> String {
    match touch.outcome {
        TouchOutcome::Delayed => duration(touch.delay),
        _ => String::new(),
    }
}

/// The first recipients, and the number of the others.
pub(super) fn recipients(touch: &Touch) -> String {
    let shown = touch.recipients.join(", ");
    match touch
        .recipients_total
        .saturating_sub(touch.recipients.len() as u64)
    {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
