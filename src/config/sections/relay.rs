//! `[relay]`, `[budget]`, `[store]`, `[quarantine]`, `[intercept]`, `[admin]`.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::config::reader::Section;
use crate::config::units::{self, Wrong};
use crate::config::value::plain;
use crate::deadline::Budget;
use crate::store::Capacity;
use crate::{admin, intercept, quarantine, store};

pub use crate::telemetry::log::{LogFormat, LogOutput};

use super::{DAY, HOUR, MINUTE, is_host, secs, socket_address};

/// Settings of `[relay]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySettings {
    /// Name of the relay in greetings, EHLO and `Received`; never empty.
    pub hostname: String,
    /// Filter of the log, which [`EnvFilter`] has parsed without error.
    pub log_level: String,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Where log lines go.
    pub log_output: LogOutput,
    /// Time that sessions in flight have to finish after SIGTERM.
    pub drain_timeout: Duration,
}

/// Reads `[relay]`.
pub(in crate::config) fn relay(mut section: Section<'_>) -> RelaySettings {
    let hostname = section.parsed("hostname", String::new(), plain, |text| {
        let literal =
            text.starts_with('[') && text.ends_with(']') && !text.contains(char::is_whitespace);
        match text.is_empty() || is_host(text) || literal {
            true => Ok(text.to_owned()),
            false => Err(Wrong::new(
                format!("{text:?} is not a host name"),
                "write \"mail.example.com\", or \"\" for the system's host name",
            )),
        }
    });
    let log_level = section.parsed("log_level", "info".to_owned(), plain, |text| match EnvFilter::try_new(text) {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(Wrong::new(
            format!("{text:?} is not a log level"),
            "write error, warn, info, debug, trace, or a filter such as \"info,spillway::scan=debug\"",
        )),
    });
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log_format = section.choice("log_format", Some(LogFormat::Text), &formats);
    let outputs = [("stderr", LogOutput::Stderr), ("syslog", LogOutput::Syslog)];
    let log_output = section.choice("log_output", Some(LogOutput::Stderr), &outputs);
    let drain_timeout = section.duration("drain_timeout", secs(30), secs(0)..=secs(HOUR));
    section.finish();
    RelaySettings {
        hostname: match hostname.is_empty() {
            true => system_hostname(),
            false => hostname,
        },
        log_level,
        log_format: log_format.unwrap_or(LogFormat::Text),
        log_output: log_output.unwrap_or(LogOutput::Stderr),
        drain_timeout,
    }
}

/// The system's host name; `localhost` if that name is not valid in an EHLO.
fn system_hostname() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    match is_host(&name) {
        true => name.into_owned(),
        false => "localhost".to_owned(),
    }
}

/// Reads `[budget]`.
pub(in crate::config) fn budget(mut section: Section<'_>) -> Budget {
    let default = Budget::default();
    let range = secs(1)..=secs(HOUR);
    let budget = Budget {
        session: section.duration("session", default.session, range.clone()),
        total: section.duration("total", default.total, range),
        deferral: section.duration("deferral", default.deferral, secs(MINUTE)..=secs(30 * DAY)),
    };
    section.finish();
    budget
}

/// Reads `[store]`.
pub(in crate::config) fn store(mut section: Section<'_>) -> store::Settings {
    let default = store::Settings::default();
    let path = section.text("path", &default.path.to_string_lossy());
    if path.is_empty() {
        section.complain(
            "path",
            "is empty",
            "write the folder of the store, for example path = \"/var/lib/spillway\"",
        );
    }
    let settings = store::Settings {
        path: section.resolve(&path),
        inline_limit: section
            .size("inline_limit", Some(default.inline_limit), 0..=16 << 20)
            .unwrap_or_default(),
        disk_reserve: section
            .size("disk_reserve", Some(default.disk_reserve), 0..=1 << 50)
            .unwrap_or_default(),
        rescan_bytes: section
            .size("rescan_bytes", Some(default.rescan_bytes), 0..=1 << 50)
            .unwrap_or_default(),
        history: section.duration("history", default.history, secs(0)..=secs(3650 * DAY)),
        incidents: section.duration("incidents", default.incidents, secs(DAY)..=secs(3650 * DAY)),
    };
    section.finish();
    settings
}

/// Reads `[quarantine]`.
pub(in crate::config) fn quarantine(mut section: Section<'_>) -> quarantine::Settings {
    let default = quarantine::Settings::default();
    let retention = section.duration(
        "retention",
        default.retention,
        secs(MINUTE)..=secs(3650 * DAY),
    );
    let max_bytes = section.parsed("max_bytes", default.max_bytes, show_capacity, capacity);
    section.takes("size or percentage", Some(CAPACITY_RANGE.to_owned()));
    section.finish();
    quarantine::Settings {
        retention,
        max_bytes,
    }
}

/// The range of a capacity.
const CAPACITY_RANGE: &str = "\"1%\" to \"100%\", or \"64KiB\" to \"1024TiB\"";

/// Parses a size, or a percentage of the file system: `20GiB`, `50%`.
fn capacity(text: &str) -> Result<Capacity, Wrong> {
    let out_of_range = || {
        Wrong::new(
            format!("{text:?} is out of range"),
            format!("write {CAPACITY_RANGE}"),
        )
    };
    if let Some(number) = text.strip_suffix('%') {
        let percent = number.parse().map_err(|_| out_of_range())?;
        let percent = Some(percent).filter(|percent| (1..=100).contains(percent));
        return percent.map(Capacity::Percent).ok_or_else(out_of_range);
    }
    let octets = Some(units::size(text)?);
    let octets = octets.filter(|octets| (64 << 10..=1 << 50).contains(octets));
    octets.map(Capacity::Octets).ok_or_else(out_of_range)
}

fn show_capacity(capacity: &Capacity) -> String {
    match capacity {
        Capacity::Octets(octets) => units::show_size(*octets),
        Capacity::Percent(percent) => format!("{percent}%"),
    }
}

/// Reads `[intercept]`.
pub(in crate::config) fn intercept(mut section: Section<'_>) -> intercept::Settings {
    let default = intercept::Settings::default();
    let modes = [
        ("on", intercept::Mode::On),
        ("shadow", intercept::Mode::Shadow),
        ("off", intercept::Mode::Off),
    ];
    let mode = section.choice("mode", Some(default.mode), &modes);
    let acts = [
        ("hold", intercept::Act::Hold),
        ("park", intercept::Act::Park),
    ];
    let act = section.choice("act", Some(default.act), &acts);
    let expiry = section.duration("expiry", default.expiry, secs(MINUTE)..=secs(DAY));
    let strikes = section.count("strikes", default.strikes as usize, 1..=20);
    let precision = section.number("min_precision", Some(default.min_precision), 0.5..=1.0);
    let min_slow_scans = section.count("min_slow_scans", default.min_slow_scans, 2..=100);
    section.finish();
    intercept::Settings {
        mode: mode.unwrap_or(default.mode),
        act: act.unwrap_or(default.act),
        expiry,
        strikes: u32::try_from(strikes).unwrap_or(default.strikes),
        min_precision: precision.unwrap_or(default.min_precision),
        min_slow_scans,
    }
}

/// Reads `[admin]`.
pub(in crate::config) fn admin(
    mut section: Section<'_>,
    store: &store::Settings,
) -> admin::Settings {
    let default = SocketAddr::from(([127, 0, 0, 1], 8025));
    let show = |http: &Option<SocketAddr>| http.as_ref().map_or(String::new(), plain);
    let http = section.parsed("http", Some(default), show, |text| match text {
        "" => Ok(None),
        text => socket_address(text).map(Some),
    });
    let socket = section.text("socket", "control.sock");
    if socket.is_empty() {
        section.complain("socket", "is empty", "write socket = \"control.sock\"");
    }
    let settings = admin::Settings {
        http,
        socket: store.path.join(socket),
    };
    section.finish();
    settings
}
