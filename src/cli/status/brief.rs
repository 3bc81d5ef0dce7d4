//! The status in few lines, for a terminal that is too low for the whole of it: what matters most comes first.

use super::shown;
use crate::admin::Status;
use crate::cli::exit::CliError;
use crate::cli::terminal::{Terminal, cut, safe};
use crate::delivery::PaceState;

/// Writes at most `lines` lines, one for each thing: how long mail takes, whether new mail is accepted, what is late, what to do
/// about the oldest of it, and what is in trouble beside that. The last line says how many lines the whole status has.
pub(in crate::cli) fn brief(
    status: &Status,
    (lines, whole): (usize, usize),
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let clock = |at| terminal.clock(at);
    let age = |at| terminal.age(at);
    let width = terminal.width.map_or(usize::MAX, usize::from);
    let late = status.late_lines(&clock, &age);
    let mut page = vec![delay(status, terminal)];
    if status.draining {
        page.push("draining: no new mail is accepted".to_owned());
    }
    let after_first = page.len() + 1;
    match late.is_empty() {
        true => page.push("Nothing is late.".to_owned()),
        false => page.extend(late.iter().map(|line| line.text.clone())),
    }
    page.extend(troubled(status, terminal));
    let room = lines.saturating_sub(1).max(1);
    let advice = late.first().map(|first| format!("do: {}", first.advice));
    let advice = wrapped(&advice.unwrap_or_default(), width);
    // It is left out if something else would not be seen for it.
    if page.len() + advice.len() <= room {
        page.splice(after_first..after_first, advice);
    }
    page.truncate(room);
    for line in page {
        terminal.line(cut(&safe(&line), width))?;
    }
    terminal.line(cut(
        &format!("({whole} lines in all: `spillway status`)"),
        width,
    ))
}

/// The delay now, and the oldest that waits, within 40 columns.
fn delay(status: &Status, terminal: &Terminal<'_>) -> String {
    let now = &status.delay.now;
    let times = match now.messages {
        0 => "no mail now".to_owned(),
        _ => format!("p50 {}, p99 {}", shown(now.p50_ms), shown(now.p99_ms)),
    };
    match (&status.stored, status.oldest_waiting()) {
        (None, _) => format!("{times}, store: no answer"),
        (Some(_), None) => format!("{times}, none waiting"),
        (Some(_), Some(oldest)) => format!("{times}, oldest {}", terminal.age(oldest)),
    }
}

/// Engines and next hops that do not take all their mail.
fn troubled(status: &Status, terminal: &Terminal<'_>) -> Vec<String> {
    let clock = |at| terminal.clock(at);
    let engines = status.engines.iter().filter(|health| !health.is_well());
    let engines =
        engines.map(|health| format!("engine {}: {}", health.engine, health.words(clock)));
    let hops = status.next_hops.iter();
    let hops = hops.filter(|hop| hop.state != PaceState::Free);
    let hops = hops.map(|hop| format!("next hop {}: {}", hop.name, hop.words(clock)));
    engines.chain(hops).collect()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
