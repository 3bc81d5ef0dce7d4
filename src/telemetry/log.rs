//! The log: one line for each event, as text for people or as JSON for programs, on standard error or to syslog.

use std::cell::Cell;
use std::env;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process;

use jiff::Zoned;
use tracing::field::Field;
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::escape::{self, Escaping};
use super::syslog::{self, Syslog};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `time level module: message key=value …`, coloured on a terminal.
    Text,
    /// One JSON object on each line.
    Json,
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error. If that is the journal of systemd, each line begins with its priority.
    Stderr,
    /// The syslog daemon of this machine, with the facility `mail`.
    Syslog,
}

/// The error for text that is not a log level or filter.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is not a log level or filter; write a level (error, warn, info, debug, trace) or one such as \"info,spillway::scan=debug\""
)]
pub struct NotAFilter(String);

/// Starts logging. `filter` is a level, or directives such as `info,spillway::scan=debug`. If this process has a log already,
/// that log stays.
pub fn init(filter: &str, format: LogFormat, output: LogOutput) -> Result<(), NotAFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|_| NotAFilter(filter.to_owned()))?;
    let log = match output {
        LogOutput::Stderr => {
            let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
            let (lead, ansi) = match is_stream(&stream, io::stderr()) {
                true => (Lead::Journal, false),
                false => (Lead::None, io::stderr().is_terminal()),
            };
            build(filter, format, (lead, ansi), io::stderr)
        }
        LogOutput::Syslog => {
            let (daemon, error) = Syslog::new(Path::new(syslog::SOCKET_PATH));
            if let Some(error) = error {
                // There is no other place for this line; it does no harm if standard error is closed.
                let _ = writeln!(
                    io::stderr(),
                    "spillway: cannot reach the syslog daemon at {}: {error}; log lines are lost until a daemon listens there",
                    syslog::SOCKET_PATH
                );
            }
            let daemon: &'static Syslog = Box::leak(Box::new(daemon));
            build(filter, format, (Lead::Syslog, false), move || daemon)
        }
    };
    // Tests start several relays in one process, which share the first log.
    drop(log.try_init());
    Ok(())
}

/// Whether `stream`, the value of `JOURNAL_STREAM` (systemd.exec(5)), names this file. A child whose standard error was
/// redirected inherits the variable, too.
fn is_stream(stream: &str, file: impl AsFd) -> bool {
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let is = |text: &str, number: u64| text.parse() == Ok(number);
    rustix::fs::fstat(file).is_ok_and(|found| is(device, found.st_dev) && is(inode, found.st_ino))
}

/// What stands before each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    None,
    /// The priority (sd-daemon(3)). The journal has its own time.
    Journal,
    /// Facility and priority, local time, and name and id of the process, as syslog(3) sends them.
    Syslog,
}

impl Lead {
    /// The facility `mail` (RFC 3164 4.1.1), in the place where it is in a priority.
    const FACILITY_MAIL: u8 = 2 << 3;

    fn write(self, out: &mut impl fmt::Write, level: Level) -> fmt::Result {
        let priority = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        match self {
            Self::None => Ok(()),
            Self::Journal => write!(out, "<{priority}>"),
            Self::Syslog => write!(
                out,
                "<{}>{} spillway[{}]: ",
                Self::FACILITY_MAIL | priority,
                Zoned::now().strftime("%b %e %H:%M:%S"),
                process::id()
            ),
        }
    }
}

/// A format with a lead before each line.
struct Led<F>(Lead, F);

impl<S, N, F> FormatEvent<S, N> for Led<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        self.0.write(&mut writer, *event.metadata().level())?;
        self.1.format_event(context, writer, event)
    }
}

fn build<W>(filter: EnvFilter, format: LogFormat, (lead, ansi): (Lead, bool), out: W) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => text(filter, (lead, ansi), out),
        LogFormat::Json => json(filter, lead, out),
    }
}

/// Builds the text log with a formatter of its own: that of the subscriber writes fields that are recorded with `%` unchanged,
/// line breaks included.
fn text<W>(filter: EnvFilter, (lead, ansi): (Lead, bool), out: W) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let fields = |writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        if field.name() == "message" {
            return write!(Escaping(writer), "{value:?}");
        }
        write!(writer, "{field}={}", Value(value))
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .fmt_fields(format::debug_fn(fields).delimited(" "))
        .with_writer(out);
    match lead {
        Lead::None => log.finish().into(),
        // The journal and the syslog daemon have a time of their own.
        lead => log
            .without_time()
            .map_event_format(|format| Led(lead, format))
            .finish()
            .into(),
    }
}

thread_local! {
    /// The text of the value that this thread writes now; kept, so that a line of many fields needs no allocation for each.
    static VALUE_TEXT: Cell<String> = const { Cell::new(String::new()) };
}

/// A field's value: bare if it is one word, else quoted, so that no value can look like another field.
struct Value<'a>(&'a dyn fmt::Debug);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = VALUE_TEXT.take();
        text.clear();
        let written = write!(Escaping(&mut text), "{:?}", self.0).and_then(|()| quote(&text, f));
        VALUE_TEXT.set(text);
        written
    }
}

/// Writes the text bare or quoted.
fn quote(text: &str, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    if let Some(word) = inner.filter(|word| is_word(word)) {
        return out.write_str(word);
    }
    if inner.is_some_and(is_escaped) || is_word(text) {
        return out.write_str(text);
    }
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    write!(out, "\"{text}\"")
}

/// Whether the text between quotes has its own quotes and backslashes escaped.
fn is_escaped(inner: &str) -> bool {
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        if c == '"' || c == '\\' && rest.next().is_none() {
            return false;
        }
    }
    true
}

/// Whether the text needs no quotes.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains([' ', '"', '=', '\\'])
}

fn json<W>(filter: EnvFilter, lead: Lead, out: W) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(EscapedJson(out))
        .map_event_format(|format| Led(lead, format))
        .finish()
        .into()
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
        let subscriber = text(EnvFilter::new("info"), (Lead::None, false), move || {
            out.clone()
        });
        tracing::dispatcher::with_default(&subscriber, log_hostile);
        let line = sink.text();
        assert_eq!(lines(&line), 1, "{line}");
        let fields = line.split_once(" detail=").expect("fields").1;
        assert!(!fields.contains(" verdict=\"clean"), "{fields}");
    }

    /// A value that looks quoted is quoted again unless it has its own quotes escaped: it could bring fields of its own.
    #[test]
    fn a_value_cannot_end_its_quotes() {
        struct Quoted(&'static str);
        impl fmt::Display for Quoted {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                quote(self.0, f)
            }
        }
        for (value, shown) in [
            ("word", "word"),
            ("two words", r#""two words""#),
            (r#""two words""#, r#""two words""#),
            (r#""a \"b\" c""#, r#""a \"b\" c""#),
            (
                r#""x\\" injected=1 z=\"y""#,
                r#""\"x\\\\\" injected=1 z=\\\"y\"""#,
            ),
            (r#""x\""#, r#""\"x\\\"""#),
        ] {
            assert_eq!(Quoted(value).to_string(), shown, "{value}");
        }
    }

    /// The same holds for JSON: each line stays valid JSON, and keeps the value.
    #[test]
    fn json_lines_stay_json() {
        let sink = Sink::default();
        let out = sink.clone();
        let subscriber = json(EnvFilter::new("info"), Lead::None, move || out.clone());
        tracing::dispatcher::with_default(&subscriber, log_hostile);
        assert_eq!(lines(&sink.text()), 1);
        let line: serde_json::Value = serde_json::from_str(&sink.text()).expect("JSON");
        assert_eq!(line["detail"], HOSTILE);
    }

    fn led(lead: Lead, format: LogFormat, level: &str) -> String {
        let sink = Sink::default();
        let out = sink.clone();
        let log = build(EnvFilter::new(level), format, (lead, false), move || {
            out.clone()
        });
        tracing::dispatcher::with_default(&log, || {
            tracing::error!("e");
            tracing::warn!("w");
            tracing::info!(id = 1, "i");
            tracing::debug!("d");
            tracing::trace!("t");
        });
        sink.text()
    }

    /// The journal files each line under its own priority (sd-daemon(3)), whatever the format.
    #[test]
    fn lines_for_the_journal_begin_with_their_priority() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = led(Lead::Journal, format, "trace");
            let leads: Vec<&str> = lines.lines().map(|line| &line[..3]).collect();
            assert_eq!(leads, ["<3>", "<4>", "<6>", "<7>", "<7>"], "{lines}");
        }
        let line = led(Lead::Journal, LogFormat::Json, "info");
        let last = line.lines().last().expect("a line");
        let parsed: serde_json::Value = serde_json::from_str(&last[3..]).expect("JSON");
        assert_eq!(parsed["message"], "i");
        assert!(!led(Lead::None, LogFormat::Text, "info").contains('<'));
    }

    /// A line for syslog has facility mail, the priority of its level, a time and a tag, as libc writes them: 22 is mail.info.
    #[test]
    fn lines_for_syslog_have_facility_time_and_tag() {
        let lines = led(Lead::Syslog, LogFormat::Text, "info");
        let heads: Vec<&str> = lines.lines().map(|line| &line[..4]).collect();
        assert_eq!(heads, ["<19>", "<20>", "<22>"], "{lines}");
        let last = lines.lines().last().expect("a line");
        let (time, rest) = last[4..].split_at("Nov 30 12:34:56".len());
        let parsed = jiff::fmt::strtime::parse("%b %e %H:%M:%S", time);
        assert!(parsed.is_ok(), "{time:?}");
        let tag = format!(" spillway[{}]: ", process::id());
        assert!(rest.starts_with(&tag) && rest.ends_with("i id=1"), "{rest}");
    }

    /// A relay whose standard error is a file writes no priorities, also if systemd started the shell that started the relay.
    #[test]
    fn only_the_journal_itself_gets_priorities() {
        let file = tempfile::tempfile().expect("a file");
        let found = rustix::fs::fstat(&file).expect("stat");
        let (device, inode) = (found.st_dev, found.st_ino);
        assert!(is_stream(&format!("{device}:{inode}"), &file));
        for other in [
            String::new(),
            "nonsense".to_owned(),
            format!("{device}:{}", inode + 1),
            format!("{}:{inode}", device + 1),
        ] {
            assert!(!is_stream(&other, &file), "{other:?}");
        }
    }

    /// An error in a filter is reported with the text of the filter, and not ignored.
    #[test]
    fn wrong_filters_are_refused() {
        let error = init("info,spillway=lots", LogFormat::Text, LogOutput::Stderr)
            .expect_err("no such level");
        assert!(error.to_string().contains("lots"));
    }
}
