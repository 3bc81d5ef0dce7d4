//! The output of commands, and the escaping of text from mail.
//!
//! Every command writes through a [`Terminal`], never to the standard streams, so that tests see the same output as people.
//! Text from mail always passes through [`safe`] before it is shown.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::exit::CliError;
use crate::telemetry::escape::{self, Escaped};

/// Spaces between two columns of a table: with two, a single space inside a cell is no column border.
const COLUMN_GAP: u16 = 2;
/// Minimum width of a column that is cut: less is unreadable, so the table rather gets wider than the terminal.
const COLUMN_WIDTH_MIN: usize = 8;

/// The streams of a command.
pub struct Terminal<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Progress, questions, notes and errors.
    pub err: &'a mut dyn Write,
    /// Answers to questions, passwords, and messages to scan.
    pub input: &'a mut dyn BufRead,
    /// Width in columns; none if the output goes to a file or a program. Such output is never cut.
    pub width: Option<u16>,
    /// Whether a person at a terminal can answer questions.
    pub interactive: bool,
    /// Time zone of the times in text output.
    pub zone: TimeZone,
    /// The present, from which ages are computed.
    pub now: Timestamp,
    /// Whether the output is JSON instead of text.
    pub json: bool,
}

/// Runs `work` with the standard streams of the process.
pub(super) fn with_standard<T>(work: impl FnOnce(&mut Terminal<'_>) -> T) -> T {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr());
    let on_terminal = io::stdout().is_terminal();
    let width = on_terminal.then(|| Table::new().width()).flatten();
    work(&mut Terminal {
        out: &mut out,
        err: &mut err,
        input: &mut io::stdin().lock(),
        width,
        interactive: io::stdin().is_terminal() && io::stderr().is_terminal(),
        zone: TimeZone::system(),
        now: Timestamp::now(),
        json: false,
    })
}

impl Terminal<'_> {
    /// Writes one line of the result to standard output.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        Ok(writeln!(self.out, "{}", text.as_ref())?)
    }

    /// Writes one line to standard error, beside the result.
    pub(super) fn note(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        Ok(writeln!(self.err, "{}", text.as_ref())?)
    }

    /// Writes a value as indented JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::Internal(error.to_string()))?;
        self.line(escape::json(&text))
    }

    /// A time in the zone of the terminal, to the second.
    pub(super) fn time(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.zone.clone());
        zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// The time since `at`, in a unit that gives two significant digits where possible: `5s`, `12m`, `3h`, `9d`.
    pub(super) fn age(&self, at: Timestamp) -> String {
        span(at, self.now)
    }

    /// The time until `at`, in the units of [`Self::age`]: `in 12m`.
    pub(super) fn until(&self, at: Timestamp) -> String {
        format!("in {}", span(self.now, at))
    }

    /// Asks for confirmation. Without a terminal, returns an error that names the flags to use.
    pub(super) fn confirm(&mut self, question: &str) -> Result<bool, CliError> {
        if !self.interactive {
            let how = "Add --yes to confirm, or --dry-run to see the selected messages.";
            return Err(CliError::Usage(format!("{question} {how}")));
        }
        write!(self.err, "{question} [y/N] ")?;
        self.err.flush()?;
        let mut answer = String::new();
        (&mut *self.input).take(1024).read_line(&mut answer)?;
        let answer = answer.trim().to_lowercase();
        Ok(answer == "y" || answer == "yes")
    }

    /// Writes a table with one line for each row, with unsafe characters in cells escaped. On a terminal, columns that may be
    /// cut share the available width.
    pub(super) fn table(
        &mut self,
        columns: &[Column],
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Result<(), CliError> {
        let head = columns.iter().map(|column| column.name.to_owned());
        let mut lines = vec![head.collect::<Vec<_>>()];
        let safe_row = |row: Vec<String>| row.iter().map(|text| safe(text)).collect();
        lines.extend(rows.into_iter().map(safe_row));
        let widths = match self.width {
            Some(width) => widths(columns, &lines, usize::from(width)),
            None => vec![usize::MAX; columns.len()],
        };
        let mut table = Table::new();
        table.load_style(NOTHING).force_no_tty();
        table.set_content_arrangement(ContentArrangement::Disabled);
        for line in lines {
            let cells = line.iter().zip(&widths);
            table.add_row(cells.map(|(text, width)| cut(text, *width)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, COLUMN_GAP));
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Writes `name  value` lines with the values in one column, escaped. Empty values are left out.
    pub(super) fn fields(&mut self, fields: &[(&str, String)]) -> Result<(), CliError> {
        let wide = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            self.line(format!("{name:wide$}  {}", safe(value)))?;
        }
        Ok(())
    }
}

fn span(from: Timestamp, to: Timestamp) -> String {
    let Ok(span) = to.since((Unit::Second, from)) else {
        return String::new();
    };
    match span.get_seconds() {
        ..0 => "0s".to_owned(),
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// A column of a table.
pub(super) struct Column {
    name: &'static str,
    whole: bool,
}

impl Column {
    /// A column that is cut if the terminal is too narrow.
    pub(super) const fn cut(name: &'static str) -> Self {
        Self { name, whole: false }
    }

    /// A column that is never cut: ids, times, fixed words.
    pub(super) const fn whole(name: &'static str) -> Self {
        Self { name, whole: true }
    }
}

/// The width of each column. Whole columns have the width of their longest cell. Each other column gets the width that it
/// needs, or an equal share of the remaining width, whichever is less.
fn widths(columns: &[Column], lines: &[Vec<String>], room: usize) -> Vec<usize> {
    let needs = (0..columns.len()).map(|index| {
        let cells = lines.iter().filter_map(|line| line.get(index));
        cells.map(|text| wide(text)).max().unwrap_or(0)
    });
    let mut widths: Vec<usize> = needs.collect();
    let gaps = columns.len().saturating_sub(1) * usize::from(COLUMN_GAP);
    let mut left = room.saturating_sub(gaps);
    let mut shared: Vec<usize> = Vec::new();
    for (index, column) in columns.iter().enumerate() {
        match column.whole {
            true => left = left.saturating_sub(widths[index]),
            false => shared.push(index),
        }
    }
    // Columns with the least need come first: the width that they leave is shared by the others.
    shared.sort_by_key(|index| widths[*index]);
    let mut sharers = shared.len();
    for index in shared {
        let share = (left / sharers).max(COLUMN_WIDTH_MIN);
        widths[index] = widths[index].min(share);
        left = left.saturating_sub(widths[index]);
        sharers -= 1;
    }
    widths
}

/// The width of a text in columns.
fn wide(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Makes text safe to show: characters that act on a terminal become visible escapes, and runs of spaces become one space.
pub(super) fn safe(text: &str) -> String {
    let text = Escaped(text).to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Cuts a safe text to `width` columns; `…` at the end marks a cut.
pub(super) fn cut(text: &str, width: usize) -> String {
    if wide(text) <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used < width
    };
    let mut kept: String = text.chars().take_while(fits).collect();
    kept.push('…');
    kept
}

/// A size in octets as text: `312 B`, `4.0 KiB`, `17.3 MiB`.
pub(super) fn size(octets: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if octets < 1024 {
        return format!("{octets} B");
    }
    let mut value = octets as f64 / 1024.0;
    let mut units = UNITS.iter().peekable();
    let mut unit = units.next().unwrap_or(&"");
    while let Some(larger) = units.next_if(|_| value >= 1024.0) {
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// A number with its noun: `1 message`, `2 messages`.
pub(super) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subject cannot move the cursor, forge a row or reverse a file name.
    #[test]
    fn mail_text_is_made_safe() {
        for (text, shown) in [
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("two\r\nrows", "two\\r\\nrows"),
            ("x\u{9b}31m", "x\\u{9b}31m"),
            ("fdp\u{202e}exe", "fdp\\u{202e}exe"),
            ("far     away", "far away"),
        ] {
            assert_eq!(safe(text), shown);
        }
    }

    /// Cutting counts columns, not characters: a wide character takes two columns, a combining one none.
    #[test]
    fn cutting_counts_columns() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("你好吗", 6), "你好吗");
        assert_eq!(cut("你好吗", 5), "你好…");
        assert_eq!(cut("你好吗", 4), "你…");
        assert_eq!(cut("e\u{301}e\u{301}", 2), "e\u{301}e\u{301}");
    }

    /// A size has a unit that keeps its number short.
    #[test]
    fn sizes_have_a_unit_that_fits() {
        for (octets, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (18_140_365, "17.3 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(octets), shown);
        }
    }
}
