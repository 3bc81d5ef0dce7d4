//! The output of commands, and the escaping of text from mail.
//!
//! Every command writes through a [`Terminal`], never to the standard streams, so that tests see the same output as people.
//! Text from mail always passes through [`safe`] before it is shown.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::time::Duration;

use comfy_table::Table;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::exit::CliError;
use crate::telemetry::duration::duration;
use crate::telemetry::escape::{self, Escaped};

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

    /// Writes safe text after `first`, wrapped at the width of the terminal, with `next` before each further line. Without a
    /// terminal it is one line.
    pub(super) fn wrapped(&mut self, first: &str, next: &str, text: &str) -> Result<(), CliError> {
        let room = self.width.map_or(usize::MAX, usize::from);
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in text.split(' ') {
            if !is_empty && wide(&line) + 1 + wide(word) > room {
                self.line(&line)?;
                next.clone_into(&mut line);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
            is_empty = false;
        }
        self.line(line)
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

    /// A time in the zone of the terminal, to the second, without its date if that is today.
    pub(super) fn clock(&self, at: Timestamp) -> String {
        let [then, today] = [at, self.now].map(|at| at.to_zoned(self.zone.clone()));
        match then.date() == today.date() {
            true => then.strftime("%H:%M:%S").to_string(),
            false => self.time(at),
        }
    }

    /// A time in the zone of the terminal, to the second, with the offset of the zone: for readers elsewhere.
    pub(super) fn time_and_zone(&self, at: Timestamp) -> String {
        let zoned = at.to_zoned(self.zone.clone());
        zoned.strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
    }

    /// A time in the zone of the terminal, to the minute, as short as it is clear: without its date if that is today.
    pub(super) fn minute(&self, at: Timestamp) -> String {
        let [then, today] = [at, self.now].map(|at| at.to_zoned(self.zone.clone()));
        let format = match (then.date() == today.date(), then.year() == today.year()) {
            (true, _) => "%H:%M",
            (false, true) => "%m-%d %H:%M",
            (false, false) => "%Y-%m-%d",
        };
        then.strftime(format).to_string()
    }

    /// The time since `at`: `5s`, `2m 52s`, `3h 12m`, `9d`.
    pub(super) fn age(&self, at: Timestamp) -> String {
        span(at, self.now)
    }

    /// The time until `at`, written as [`Self::age`] does: `in 12m`.
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

    /// Writes `name  value` lines with the values in one column, escaped. Empty values are left out.
    pub(super) fn fields(&mut self, fields: &[(impl AsRef<str>, String)]) -> Result<(), CliError> {
        let shown = || fields.iter().filter(|(_, value)| !value.is_empty());
        let name = |name: &str| Escaped(name).to_string();
        let names = shown().map(|(text, _)| wide(&name(text.as_ref())));
        let columns = names.max().unwrap_or(0);
        for (text, value) in shown() {
            let name = pad(&name(text.as_ref()), columns);
            self.line(format!("{name}  {}", safe(value)).trim_end())?;
        }
        Ok(())
    }
}

/// The time between two times in whole seconds, written as all [durations](duration) are; 0 if `to` is earlier.
pub(super) fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).as_secs();
    duration(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// The width of a text in columns.
pub(super) fn wide(text: &str) -> usize {
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

/// Cuts the middle out of a safe text that is wider than `width` columns: an address differs from others at both ends.
pub(super) fn cut_middle(text: &str, width: usize) -> String {
    if wide(text) <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let (mut used, end_room) = (0, room / 2);
    let mut end: Vec<char> = text
        .chars()
        .rev()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= end_room
        })
        .collect();
    // A character without width belongs to the character before it, which is cut.
    while end.last().is_some_and(|c| c.width().unwrap_or(0) == 0) {
        end.pop();
    }
    end.reverse();
    let end: String = end.into_iter().collect();
    // The cut that marks the beginning ends with the mark.
    format!("{}{end}", cut(text, width - wide(&end)))
}

/// Appends spaces to a text up to `width` columns.
pub(super) fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(wide(text))))
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

    /// Values stand in one column, however wide the names are: a wide character takes two columns.
    #[test]
    fn values_of_fields_line_up() {
        let mut out = Vec::new();
        let mut terminal = Terminal {
            out: &mut out,
            err: &mut io::sink(),
            input: &mut io::empty(),
            width: Some(80),
            interactive: false,
            zone: TimeZone::UTC,
            now: Timestamp::UNIX_EPOCH,
            json: false,
        };
        let names = ["engine av", "engine 引擎", "a\u{202e}"];
        let mut fields = names.map(|name| (name, "x".to_owned())).to_vec();
        fields.push(("a long name without a value", String::new()));
        terminal.fields(&fields).expect("writes");
        let shown = String::from_utf8(out).expect("UTF-8");
        assert_eq!(shown, "engine av    x\nengine 引擎  x\na\\u{202e}    x\n");
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

    /// Of an address both ends are left: who it is, and where. The width is never exceeded.
    #[test]
    fn the_middle_is_cut_by_columns() {
        for (text, width, shown) in [
            ("mallory@evil.example", 20, "mallory@evil.example"),
            ("mallory@evil.example", 13, "mallor…xample"),
            ("mallory@evil.example", 12, "mallor…ample"),
            ("你好吗@例え.test", 9, "你好…test"),
            ("你好吗你好吗", 6, "你…吗"),
            ("ab\u{301}cde\u{301}f", 3, "a…f"),
        ] {
            let cut = cut_middle(text, width);
            assert_eq!(cut, shown, "{text} in {width}");
            assert!(wide(&cut) <= width);
        }
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
