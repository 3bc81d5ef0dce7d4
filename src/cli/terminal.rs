//! Where output goes, and how text from mail is made fit for it.
//!
//! Every command writes through a [`Terminal`], never to the standard streams, so that tests see exactly what people
//! see. Text that comes from mail goes through [`safe`] first, wherever it is shown.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::exit::CliError;
use crate::telemetry::escape::{self, Escaped};

/// Columns between two columns of a table.
const COLUMN_GAP: u16 = 2;
/// A column is not cut to less than this, even if the table gets wider than the terminal.
const COLUMN_WIDTH_MIN: usize = 8;

/// The streams of a command.
pub struct Terminal<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Progress, questions and complaints.
    pub err: &'a mut dyn Write,
    /// Answers, passwords, messages.
    pub input: &'a mut dyn BufRead,
    /// Columns; none where output goes to a file or a program, which gets everything uncut.
    pub width: Option<u16>,
    /// Whether somebody is there to be asked.
    pub interactive: bool,
    /// For people's times.
    pub zone: TimeZone,
    /// The present, for ages.
    pub now: Timestamp,
    /// JSON rather than text.
    pub json: bool,
}

/// Runs `work` with the process's own streams.
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
    /// One line of the result.
    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        Ok(writeln!(self.out, "{}", text.as_ref())?)
    }

    /// One line beside the result.
    pub(super) fn note(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        Ok(writeln!(self.err, "{}", text.as_ref())?)
    }

    /// A value as JSON, indented.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::Internal(error.to_string()))?;
        self.line(escape::json(&text))
    }

    /// A time for people, to the second.
    pub(super) fn time(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.zone.clone());
        zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// How long ago, in the largest unit that says something: `5s`, `12m`, `3h`, `9d`.
    pub(super) fn age(&self, at: Timestamp) -> String {
        span(at, self.now)
    }

    /// How long until then, likewise: `in 12m`.
    pub(super) fn until(&self, at: Timestamp) -> String {
        format!("in {}", span(self.now, at))
    }

    /// Asks whether to go on. Where nobody can be asked the answer is an error that says what to add.
    pub(super) fn confirm(&mut self, question: &str) -> Result<bool, CliError> {
        if !self.interactive {
            let how = "Add --yes to do it, or --dry-run to see what it would do.";
            return Err(CliError::Usage(format!("{question} {how}")));
        }
        write!(self.err, "{question} [y/N] ")?;
        self.err.flush()?;
        let mut answer = String::new();
        (&mut *self.input).take(1024).read_line(&mut answer)?;
        let answer = answer.trim().to_lowercase();
        Ok(answer == "y" || answer == "yes")
    }

    /// A table, one line a row; cells are made safe here. On a terminal, columns that may be cut share what room there is.
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

    /// `name  value`, the values in one column, made safe; those that are empty are left out.
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
    /// A column that is cut where there is no room.
    pub(super) const fn cut(name: &'static str) -> Self {
        Self { name, whole: false }
    }

    /// A column that is never cut: ids, times, words of ours.
    pub(super) const fn whole(name: &'static str) -> Self {
        Self { name, whole: true }
    }
}

/// How wide each column may be: whole ones as wide as they are; the others get what they need, or an equal share of what
/// is left, whichever is less.
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
    // The modest first: what they do not need is for the others.
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

/// Columns that a text takes.
fn wide(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Text that can be shown: everything that acts on a terminal is a visible escape, runs of spaces are one space.
pub(super) fn safe(text: &str) -> String {
    let text = Escaped(text).to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// At most `width` columns of a safe text, with `…` where something is missing.
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

/// Octets for people: `312 B`, `4.0 KiB`, `17.3 MiB`.
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

/// A count with its noun: `1 message`, `2 messages`.
pub(super) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subject cannot move the cursor, forge a row or turn a file name around.
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

    /// Cutting counts columns, not characters: a wide one takes two, a combining one none.
    #[test]
    fn cutting_counts_columns() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("你好吗", 6), "你好吗");
        assert_eq!(cut("你好吗", 5), "你好…");
        assert_eq!(cut("你好吗", 4), "你…");
        assert_eq!(cut("e\u{301}e\u{301}", 2), "e\u{301}e\u{301}");
    }

    /// Sizes are read at a glance.
    #[test]
    fn sizes_are_for_people() {
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
