//! `spillway status --watch`: the status again and again, until a signal.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use unicode_width::UnicodeWidthChar as _;

use super::exit::{CliError, Exit, Outcome};
use super::status;
use super::terminal::{Terminal, wide};
use crate::admin::Status;
use crate::deadline::{Deadline, wall_clock};
use crate::telemetry::escape;

/// Moves the cursor to the first line, without clearing: what stays the same does not flicker.
const CURSOR_HOME: &str = "\x1b[H";
/// Clears from the cursor to the end of its line.
const CLEAR_LINE_END: &str = "\x1b[K";
/// Clears from the cursor to the end of the screen.
const CLEAR_SCREEN_END: &str = "\x1b[J";

/// Shows the status every `seconds`, until SIGINT or SIGTERM. Returns the exit code of the last status. A relay that does not
/// answer is shown as such, and asked again.
pub(super) async fn watch(seconds: u64, socket: &Path, terminal: &mut Terminal<'_>) -> Outcome {
    let handler = |kind| signal(kind).map_err(|error| CliError::Internal(error.to_string()));
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut terminate = handler(SignalKind::terminate())?;
    let rounds = async {
        let mut last = Exit::Done;
        let mut is_first = true;
        loop {
            let next = Deadline::after(Duration::from_secs(seconds));
            let ended = tokio::select! {
                asked = status::ask(socket) => {
                    last = print(asked, is_first, terminal)?;
                    is_first = false;
                    false
                }
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
            };
            let ended = ended
                || tokio::select! {
                    () = next.wait() => false,
                    _ = interrupt.recv() => true,
                    _ = terminate.recv() => true,
                };
            if ended {
                // What the terminal shows of Ctrl-C stays on a line of its own.
                if terminal.width.is_some() {
                    terminal.line("")?;
                }
                return Ok(last);
            }
        }
    };
    rounds.await
}

/// Prints one round, and returns its exit code.
fn print(asked: Result<Status, CliError>, is_first: bool, terminal: &mut Terminal<'_>) -> Outcome {
    terminal.now = wall_clock();
    if terminal.json {
        return print_json(asked, terminal);
    }
    let size = terminal.width.map(screen);
    let mut text = Vec::new();
    let shown = match asked {
        Ok(status) => {
            text = page(&status, size, terminal)?;
            status::exit(&status)
        }
        Err(error) => {
            for line in error.lines() {
                writeln!(text, "{line}")?;
            }
            error.exit()
        }
    };
    let text = String::from_utf8_lossy(&text);
    match size {
        Some((width, height)) => {
            let frame = frame(&text, usize::from(width), usize::from(height), is_first);
            terminal.out.write_all(frame.as_bytes())?;
        }
        None => {
            let gap = if is_first { "" } else { "\n" };
            write!(terminal.out, "{gap}{text}")?;
        }
    }
    terminal.out.flush()?;
    Ok(shown)
}

/// The status as text: the whole of it, or what matters most if the terminal of this width and height has too few lines.
fn page(
    status: &Status,
    size: Option<(u16, u16)>,
    terminal: &Terminal<'_>,
) -> Result<Vec<u8>, CliError> {
    let written = |write: &dyn Fn(&mut Terminal<'_>) -> Result<(), CliError>| {
        let mut text = Vec::new();
        write(&mut Terminal {
            out: &mut text,
            err: &mut io::sink(),
            input: &mut io::empty(),
            width: size.map(|(width, _)| width),
            zone: terminal.zone.clone(),
            ..*terminal
        })?;
        Ok::<_, CliError>(text)
    };
    let text = written(&|page| status::show(status, page))?;
    let lines = text.iter().filter(|octet| **octet == b'\n').count();
    match size.map(|(_, height)| usize::from(height).saturating_sub(1)) {
        Some(room) if lines > room => written(&|page| status::brief(status, (room, lines), page)),
        _ => Ok(text),
    }
}

fn print_json(asked: Result<Status, CliError>, terminal: &mut Terminal<'_>) -> Outcome {
    let (text, exit) = match &asked {
        Ok(status) => (serde_json::to_string(status), status::exit(status)),
        Err(error) => {
            let told = serde_json::json!({"error": error.lines().join("\n")});
            (serde_json::to_string(&told), error.exit())
        }
    };
    let text = text.map_err(|error| CliError::Internal(error.to_string()))?;
    terminal.line(escape::json(&text))?;
    terminal.out.flush()?;
    Ok(exit)
}

/// The present width and height of the terminal: a person may change them while the status is shown. `width` is the width at the
/// start.
fn screen(width: u16) -> (u16, u16) {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 1 => (size.ws_col, size.ws_row),
        // As old as terminals are: no terminal has fewer lines.
        _ => (width, 24),
    }
}

/// The text as it replaces the one before on a terminal of this size. The last line stays free for the cursor. Lines that do not
/// fit are cut, and at the end a line says how many there are more.
fn frame(text: &str, width: usize, height: usize, is_first: bool) -> String {
    let mut frame = CURSOR_HOME.to_owned();
    if is_first {
        frame.push_str(CLEAR_SCREEN_END);
    }
    let room = height.saturating_sub(1).max(1);
    let lines: Vec<&str> = text.lines().collect();
    let fits = lines.len() <= room;
    let shown = if fits { lines.len() } else { room - 1 };
    let more = format!("({} more lines)", lines.len() - shown);
    let rest = (!fits).then_some(&*more);
    for line in lines[..shown].iter().copied().chain(rest) {
        let shown = begin(line, width);
        frame.push_str(shown);
        // After a full line the cursor is still on its last column, which would be cleared.
        if wide(shown) < width {
            frame.push_str(CLEAR_LINE_END);
        }
        frame.push('\n');
    }
    frame.push_str(CLEAR_SCREEN_END);
    frame
}

/// The beginning of a line, at most `width` columns.
fn begin(line: &str, width: usize) -> &str {
    let mut used = 0;
    let end = line.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > width
    });
    end.map_or(line, |(at, _)| &line[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame never scrolls: it has fewer lines than the terminal and no line is wider, and it leaves nothing of the frame before.
    #[test]
    fn a_frame_fits_the_terminal() {
        let text = "one 引擎 engine\ntwo\nthree\nfour\n";
        for (width, height, expected) in [
            (80, 24, &["one 引擎 engine", "two", "three", "four"][..]),
            (80, 5, &["one 引擎 engine", "two", "three", "four"]),
            (7, 4, &["one 引", "two", "(2 more"]),
            (80, 1, &["(4 more lines)"]),
        ] {
            let frame = frame(text, width, height, false);
            let inner = frame.strip_prefix(CURSOR_HOME).expect("begins at home");
            let inner = inner
                .strip_suffix(CLEAR_SCREEN_END)
                .expect("clears the rest");
            let lines = inner.lines().map(|line| {
                let begun = line.strip_suffix(CLEAR_LINE_END);
                let begun = begun.or(Some(line).filter(|line| wide(line) == width));
                begun.expect("clears the rest of the line, and no more")
            });
            assert_eq!(lines.collect::<Vec<_>>(), expected, "{width} x {height}");
        }
        assert!(frame(text, 80, 24, true).starts_with("\x1b[H\x1b[J"));
    }
}
