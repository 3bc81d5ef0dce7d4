//! The log: one line for each event on standard error, as text for people or as JSON for programs.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::util::SubscriberInitExt;

use super::escape::{self, Escaping};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `time level module: message key=value …`, coloured on a terminal.
    Text,
    /// One JSON object on each line.
    Json,
}

/// The error for text that is not a log level or filter.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a log level or filter; write a level (error, warn, info, debug, trace) or one such as \"info,spillway::scan=debug\""
)]
pub struct NotAFilter(String);

/// Starts logging to standard error. `filter` is a level, or directives such as `info,spillway::scan=debug`. If this process
/// has a log already, that log stays.
pub fn init(filter: &str, format: LogFormat) -> Result<(), NotAFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|_| NotAFilter(filter.to_owned()))?;
    let ansi = io::stderr().is_terminal();
    let already_set = match format {
        LogFormat::Text => text(filter, ansi, io::stderr).try_init(),
        LogFormat::Json => json(filter, io::stderr).try_init(),
    };
    // Tests start several relays in one process, which share the first log.
    drop(already_set);
    Ok(())
}

/// Builds the text log with a formatter of its own: that of the subscriber writes fields that are recorded with `%` unchanged,
/// line breaks included.
fn text<W>(filter: EnvFilter, ansi: bool, out: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let fields = |writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        if field.name() == "message" {
            return write!(Escaping(writer), "{value:?}");
        }
        write!(writer, "{field}={}", Value(value))
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .fmt_fields(format::debug_fn(fields).delimited(" "))
        .with_writer(out)
        .finish()
}

/// A field's value: bare if it is one word, else quoted, so that no value can look like another field.
struct Value<'a>(&'a dyn fmt::Debug);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        write!(Escaping(&mut text), "{:?}", self.0)?;
        let inner = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let quoted = inner.is_some_and(|inner| !inner.replace("\\\"", "").contains('"'));
        if quoted || !text.contains([' ', '"', '=']) {
            return f.write_str(&text);
        }
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        write!(f, "\"{text}\"")
    }
}

fn json<W>(filter: EnvFilter, out: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(EscapedJson(out))
        .finish()
}

/// A writer that escapes the unsafe characters that JSON itself does not escape ([`escape::json`]).
struct EscapedJson<W>(W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for EscapedJson<W> {
    type Writer = EscapedJson<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapedJson(self.0.make_writer())
    }
}

impl<W: Write> Write for EscapedJson<W> {
    /// The subscriber calls this with one whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let safe = escape::json(&String::from_utf8_lossy(line));
        self.0.write_all(safe.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects the log.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("sink").extend_from_slice(octets);
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("sink").clone()).expect("UTF-8")
        }
    }

    const HOSTILE: &str = "x\" verdict=\"clean\" y=\"\nERROR forged\x1b[2J\u{9b}31m\u{202e}\u{7f}";

    fn log_hostile() {
        tracing::info!(
            detail = %HOSTILE,
            text = HOSTILE,
            error = &io::Error::other(HOSTILE) as &dyn std::error::Error,
            "{HOSTILE}"
        );
    }

    fn lines(text: &str) -> usize {
        assert!(text.ends_with('\n'));
        let mut unsafe_chars = text.chars().filter(|c| escape::is_unsafe(*c) && *c != '\n');
        assert_eq!(unsafe_chars.next(), None, "{text:?}");
        text.lines().count()
    }

    /// Text from mail cannot forge a log line or act on a terminal, however a field is recorded.
    #[test]
    fn text_from_mail_stays_inside_its_field() {
        let sink = Sink::default();
        let out = sink.clone();
        let subscriber = text(EnvFilter::new("info"), false, move || out.clone());
        tracing::subscriber::with_default(subscriber, log_hostile);
        let line = sink.text();
        assert_eq!(lines(&line), 1, "{line}");
        let fields = line.split_once(" detail=").expect("fields").1;
        assert!(!fields.contains(" verdict=\"clean"), "{fields}");
    }

    /// The same holds for JSON: each line stays valid JSON, and keeps the value.
    #[test]
    fn json_lines_stay_json() {
        let sink = Sink::default();
        let out = sink.clone();
        let subscriber = json(EnvFilter::new("info"), move || out.clone());
        tracing::subscriber::with_default(subscriber, log_hostile);
        assert_eq!(lines(&sink.text()), 1);
        let line: serde_json::Value = serde_json::from_str(&sink.text()).expect("JSON");
        assert_eq!(line["detail"], HOSTILE);
    }

    /// An error in a filter is reported with the text of the filter, and not ignored.
    #[test]
    fn wrong_filters_are_refused() {
        let error = init("info,spillway=lots", LogFormat::Text).expect_err("no such level");
        assert!(error.to_string().contains("lots"));
    }
}
