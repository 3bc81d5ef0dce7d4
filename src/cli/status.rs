//! `spillway status`: how long mail takes, what is late and why, and the state of the relay.

mod brief;

use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::control;
use super::exit::{CliError, Exit, Outcome};
use super::relay::{Socket, parsed};
use super::table::Column;
use super::terminal::{Terminal, count, safe, size};
use super::watch;
use crate::admin::{Status, Stored};
use crate::measure::{DELAY_WINDOW, DelayTimes};
use crate::store::{Held, LATE_AFTER, LaneStats};
use crate::telemetry::duration::duration;
pub(super) use brief::brief;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    socket: Socket,
    /// Show the status again every so many seconds (2 if none are given) until Ctrl-C; on a terminal in place
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    watch: Option<u64>,
}

/// Prints the status, once or again and again. Exits with [`Exit::Temporary`] if the relay accepts no new mail.
pub(super) async fn run(
    wanted: &Arguments,
    config: Option<&Path>,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let socket = wanted.socket.path(config)?;
    match wanted.watch {
        Some(seconds) => watch::watch(seconds, &socket, terminal).await,
        None => {
            let status = ask(&socket).await?;
            match terminal.json {
                true => terminal.json(&status)?,
                false => show(&status, terminal)?,
            }
            Ok(exit(&status))
        }
    }
}

/// Asks the relay for its status.
pub(super) async fn ask(socket: &Path) -> Result<Status, CliError> {
    let answer = control::ask(socket, "GET", "/status").await?;
    parsed(socket, &answer)
}

pub(super) fn exit(status: &Status) -> Exit {
    match status.not_ready {
        None => Exit::Done,
        Some(_) => Exit::Temporary,
    }
}

/// Prints a status for people.
pub(super) fn show(status: &Status, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    delays(status, terminal)?;
    late(status, terminal)?;
    not_recorded(status, terminal)?;
    let mail = match &status.not_ready {
        None => "accepted".to_owned(),
        Some(reason) => format!("not accepted: {reason}"),
    };
    let mut config = status.config.clone();
    if let Some(file) = &status.config_file {
        config.push_str(&format!(" ({})", file.display()));
    }
    let mut fields = vec![
        ("new mail", mail),
        (
            "draining",
            if status.draining { "yes" } else { "" }.to_owned(),
        ),
        ("sessions", status.sessions.to_string()),
        ("memory free", size(status.memory_available)),
    ];
    match &status.stored {
        Some(stored) => fields.extend(stored_fields(stored, terminal)),
        None => fields.push(("stored messages", Stored::UNKNOWN_TEXT.to_owned())),
    }
    fields.extend([
        ("hostname", status.hostname.clone()),
        ("configuration", config),
        (
            "running since",
            format!(
                "{} ({})",
                terminal.time(status.started),
                terminal.age(status.started)
            ),
        ),
        ("version", status.version.clone()),
    ]);
    terminal.fields(&fields)?;
    terminal.fields(&parts(status, terminal))
}

/// The delays of valid mail. The oldest message that still waits stands beside them: no percentile contains it.
fn delays(status: &Status, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let oldest = match (&status.stored, status.oldest_waiting()) {
        (None, _) => "not known".to_owned(),
        (Some(_), None) => "none".to_owned(),
        (Some(_), Some(oldest)) => terminal.age(oldest),
    };
    let minutes = DELAY_WINDOW.as_secs() / 60;
    let delay = &status.delay;
    let row = |name: String, times: &DelayTimes, oldest: String| match times.messages {
        0 => vec![
            name,
            "no mail".to_owned(),
            String::new(),
            "0".to_owned(),
            oldest,
        ],
        n => vec![
            name,
            shown(times.p50_ms),
            shown(times.p99_ms),
            n.to_string(),
            oldest,
        ],
    };
    let rows = [
        row(format!("now ({minutes} min)"), &delay.now, oldest),
        row("last hour".to_owned(), &delay.last_hour, String::new()),
        row(
            "same hour last week".to_owned(),
            &delay.week_ago,
            String::new(),
        ),
    ];
    let columns = [
        Column::whole("DELAY OF VALID MAIL"),
        Column::whole("P50"),
        Column::whole("P99"),
        Column::whole("MESSAGES"),
        Column::whole("OLDEST WAITING"),
    ];
    terminal.table(&columns, rows)?;
    terminal.line("")
}

/// A delay for people.
fn shown(milliseconds: Option<u64>) -> String {
    let delay = milliseconds.map(Duration::from_millis);
    delay.map_or_else(String::new, duration)
}

/// What is late: how much, what it waits for, since when, and what to do.
fn late(status: &Status, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    let clock = |at| terminal.clock(at);
    let age = |at| terminal.age(at);
    let lines = status.late_lines(&clock, &age);
    if lines.is_empty() {
        let seconds = LATE_AFTER.as_secs();
        terminal.line(format!(
            "Nothing is late: no message has waited for {seconds} s."
        ))?;
        return terminal.line("");
    }
    terminal.line("LATE")?;
    for line in lines {
        terminal.wrapped("", "  ", &safe(&line.text))?;
        if !line.advice.is_empty() {
            terminal.wrapped("  do: ", "      ", &safe(&line.advice))?;
        }
    }
    let more = "more: `spillway queue list`, `spillway incident list`; docs/OPERATIONS.md, \"What is late\"";
    terminal.wrapped("", "  ", more)?;
    terminal.line("")
}

/// The logs that record nothing: since when, why, and what to do.
fn not_recorded(status: &Status, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    for trouble in &status.not_recorded {
        let since = terminal.clock(trouble.since);
        let (log, text) = (safe(&trouble.log), safe(&trouble.text()).to_string());
        terminal.line("NOT RECORDED")?;
        terminal.wrapped("", "  ", &format!("{log} since {since}: {text}"))?;
        terminal.wrapped("  do: ", "      ", &safe(&trouble.advice))?;
        terminal.line("")?;
    }
    Ok(())
}

/// Engines, next hops and listeners, each with its state.
fn parts(status: &Status, terminal: &Terminal<'_>) -> Vec<(String, String)> {
    let clock = |at| terminal.clock(at);
    let engines = status
        .engines
        .iter()
        .map(|health| (format!("engine {}", health.engine), health.load(clock)));
    let next_hops = status.next_hops.iter().map(|hop| {
        let mut state = hop.words(clock);
        if let Some(said) = &hop.said {
            state.push_str(&format!(": {said}"));
        }
        (format!("next hop {}", hop.name), state)
    });
    let listeners = status.listeners.iter().map(|listener| {
        let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
        (format!("listener {}", listener.name), addresses.join(", "))
    });
    engines.chain(next_hops).chain(listeners).collect()
}

fn stored_fields(stored: &Stored, terminal: &Terminal<'_>) -> [(&'static str, String); 5] {
    let lane = |stats: &LaneStats| lane(stats, terminal);
    [
        ("to be scanned", lane(&stored.scan)),
        ("to be delivered", lane(&stored.delivery)),
        ("quarantine", lane(&stored.held)),
        ("quarantine room", room(&stored.quarantine)),
        ("to be rescanned", lane(&stored.rescan)),
    ]
}

fn room(held: &Held) -> String {
    let mut text = format!("{} of {} taken", size(held.octets), size(held.limit));
    if let Some(holder) = &held.largest {
        text.push_str(&format!(
            ", {} by {}",
            size(holder.octets),
            safe(&holder.name)
        ));
    }
    text
}

fn lane(stats: &LaneStats, terminal: &Terminal<'_>) -> String {
    let messages = usize::try_from(stats.messages).unwrap_or(usize::MAX);
    let mut text = format!("{}, {}", count(messages, "message"), size(stats.octets));
    if let Some(oldest) = stats.oldest {
        text.push_str(&format!(", the oldest {} old", terminal.age(oldest)));
    }
    text
}

#[cfg(test)]
mod tests;
