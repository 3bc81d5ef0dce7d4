//! Replays and shadows as text for people.

use std::sync::Arc;

use crate::cli::exit::CliError;
use crate::cli::record::heading;
use crate::cli::table::Column;
use crate::cli::terminal::{Terminal, count, cut, safe};
use crate::pipeline::ShadowView;
use crate::whatif::{Comparison, Example, Replayed, Ruling};

/// Prints a replay.
pub(super) fn replayed(
    (file, version): (&str, &str),
    replayed: &Replayed,
    waits: &[Arc<str>],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let comparison = &replayed.comparison;
    let mut fields = vec![("configuration", format!("{file} (version {version})"))];
    fields.extend(summary(comparison, terminal));
    fields.extend(replayed.not_asked.iter().map(|(engine, messages)| {
        let messages = count_u64(*messages, "message");
        let text = format!(
            "{messages}: {engine} gave no scan then (out, busy or parked); decided as then"
        );
        ("nobody knows", text)
    }));
    let later = match replayed.again {
        0 => String::new(),
        again => format!(
            "{} about mail judged before; not replayed",
            count_u64(again, "decision")
        ),
    };
    fields.push(("later", later));
    let waits = match waits {
        [] => String::new(),
        engines => format!(
            "wait of {}: mail that got no slot is decided as then; --slots counts it",
            engines.join(", ")
        ),
    };
    fields.push(("not replayed", waits));
    terminal.fields(&fields)?;
    changes(comparison, terminal)?;
    answers(replayed, terminal)?;
    slots(replayed, terminal)?;
    examples(comparison, terminal)
}

/// Prints a shadow.
pub(super) fn shadow(shadow: &ShadowView, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let since = terminal.time(shadow.since);
    let file = format!("{} (version {})", shadow.file.display(), shadow.config);
    let mut fields = vec![
        ("shadow", file),
        (
            "since",
            format!("{since} ({} ago)", terminal.age(shadow.since)),
        ),
    ];
    fields.extend(summary(&shadow.comparison, terminal));
    let left_out = shadow.missed + shadow.failed;
    let left_out = match left_out {
        0 => String::new(),
        _ => format!(
            "{} ({} while too many came at once, {} because the comparison failed)",
            count_u64(left_out, "message"),
            shadow.missed,
            shadow.failed
        ),
    };
    fields.push(("left out", left_out));
    terminal.fields(&fields)?;
    changes(&shadow.comparison, terminal)?;
    examples(&shadow.comparison, terminal)?;
    terminal.line("")?;
    terminal
        .line("Answers are those of the engines as they run: a shadow has no timeouts of its own.")
}

fn count_u64(number: u64, noun: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), noun)
}

fn summary(comparison: &Comparison, terminal: &Terminal<'_>) -> Vec<(&'static str, String)> {
    let period = match (comparison.first, comparison.last) {
        (Some(first), Some(last)) => {
            format!(", {} to {}", terminal.time(first), terminal.time(last))
        }
        _ => String::new(),
    };
    let some = |number: u64, what: &str| match number {
        0 => String::new(),
        _ => format!("{}{what}", count_u64(number, "message")),
    };
    let unknown = comparison.cannot_say.values().sum();
    vec![
        (
            "decided",
            format!("{}{period}", count_u64(comparison.messages, "message")),
        ),
        ("would change", count_u64(comparison.changed, "message")),
        (
            "other rule",
            some(comparison.other_rule, "; what is done stays the same"),
        ),
        (
            "held before",
            some(
                comparison.by_guard,
                " by an interceptor or the guard; no rule decides",
            ),
        ),
        ("cannot say", some(unknown, "")),
    ]
}

/// The tables of changes, and of what nobody can say.
fn changes(comparison: &Comparison, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    if !comparison.changes.is_empty() {
        heading("Changes", terminal)?;
        let columns = [
            Column::whole("WAS"),
            Column::cut("BY"),
            Column::whole("WOULD BE"),
            Column::cut("BY"),
            Column::whole("MESSAGES"),
            Column::whole("RECIPIENTS"),
        ];
        let mut changes: Vec<_> = comparison.changes.iter().collect();
        changes.sort_by_key(|change| std::cmp::Reverse(change.messages));
        let rows = changes.into_iter().map(|change| {
            vec![
                change.from.act().to_owned(),
                change.from.rule.clone(),
                change.to.act().to_owned(),
                change.to.rule.clone(),
                change.messages.to_string(),
                change.recipients.to_string(),
            ]
        });
        terminal.table(&columns, rows)?;
    }
    if comparison.cannot_say.is_empty() {
        return Ok(());
    }
    heading("Cannot say", terminal)?;
    let columns = [Column::whole("MESSAGES"), Column::cut("BECAUSE")];
    let row = |(why, messages): (&String, &u64)| vec![messages.to_string(), why.clone()];
    terminal.table(&columns, comparison.cannot_say.iter().map(row))
}

fn answers(replayed: &Replayed, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    heading("Answers with these timeouts", terminal)?;
    let columns = [
        Column::cut("ENGINE"),
        Column::whole("ANSWERED"),
        Column::whole("LONGEST"),
        Column::whole("MISSING"),
        Column::whole("TIMEOUT"),
        Column::whole("MISSED"),
        Column::whole("WON"),
        Column::whole("NOT KNOWN"),
    ];
    let rows = replayed.answers.iter().map(|(engine, counts)| {
        let timeout = u64::try_from(engine.timeout.as_millis()).unwrap_or(u64::MAX);
        vec![
            engine.name.to_string(),
            counts.answered.to_string(),
            seconds(counts.longest_ms),
            counts.missing.to_string(),
            seconds(timeout),
            counts.missed.to_string(),
            counts.won.to_string(),
            counts.unknown.to_string(),
        ]
    });
    terminal.table(&columns, rows)?;
    for engine in &replayed.removed {
        terminal.line(format!(
            "{engine} is not configured; its answers are left out"
        ))?;
    }
    for engine in &replayed.added {
        let assumed = "it has no recorded answers, and is assumed to find nothing";
        terminal.line(format!("{engine} is new: {assumed}"))?;
    }
    Ok(())
}

fn slots(replayed: &Replayed, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    if replayed.slots.is_empty() {
        return Ok(());
    }
    heading("Scans with these slots", terminal)?;
    let columns = [
        Column::cut("ENGINE"),
        Column::whole("SCANS"),
        Column::whole("NOT RUN"),
        Column::whole("SLOTS"),
        Column::whole("WAIT P99"),
        Column::whole("LONGEST"),
        Column::whole("NO SLOT"),
        Column::whole("ENOUGH"),
    ];
    let rows = replayed.slots.iter().map(|replay| {
        vec![
            replay.engine.clone(),
            replay.scans.to_string(),
            replay.not_run.to_string(),
            replay.slots.to_string(),
            seconds(replay.waits.p99_ms),
            seconds(replay.waits.longest_ms),
            replay.waits.refused.to_string(),
            replay
                .enough
                .map_or("-".to_owned(), |slots| slots.to_string()),
        ]
    });
    terminal.table(&columns, rows)?;
    for replay in replayed.slots.iter().filter(|replay| replay.is_cut) {
        terminal.line(format!(
            "{}: only the first scans are replayed",
            replay.engine
        ))?;
    }
    terminal
        .line("Assumed: first come, first served; each scan as long as it was, and that of mail")?;
    terminal.line("that got none (NOT RUN) as long as the one before. No turns, no retries.")
}

fn examples(comparison: &Comparison, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    if comparison.examples.is_empty() {
        return Ok(());
    }
    heading("Examples", terminal)?;
    let mut examples: Vec<&Example> = comparison.examples.iter().collect();
    examples.sort_by(|a, b| (&a.from, &a.to, &a.message).cmp(&(&b.from, &b.to, &b.message)));
    for example in examples {
        show(example, terminal)?;
    }
    Ok(())
}

fn show(example: &Example, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let more = match example.more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let ruling = |ruling: &Ruling, score: f64, reason: &str| {
        let by = match reason {
            "" => ruling.rule.clone(),
            reason => format!("{}: {reason}", ruling.rule),
        };
        format!("{} with score {score:.2} by {by}", ruling.act())
    };
    let width = terminal.width.map_or(usize::MAX, usize::from);
    let who = format!("{} to {}{more}", example.sender, example.recipient);
    let first = format!("{}  {}", example.message, safe(&who));
    terminal.line(cut(&first, width))?;
    for (name, text) in [
        ("subject", example.subject.clone()),
        (
            "was",
            ruling(&example.from, example.score_then, &example.then),
        ),
        ("now", ruling(&example.to, example.score_now, &example.now)),
    ] {
        let line = format!("  {name:7}  {}", safe(&text));
        terminal.line(cut(line.trim_end(), width))?;
    }
    Ok(())
}

/// Milliseconds as seconds: `0.012 s`, `1.5 s`, `40 s`.
fn seconds(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..20_000 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        _ => format!("{} s", milliseconds / 1000),
    }
}
