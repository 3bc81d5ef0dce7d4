//! The configuration: turns the text of the administrator into the Settings of each room, or into a list of all problems.
//!
//! There are three layers. [`reader`] knows TOML, types, units and places in the file. `sections` knows the keys, and turns
//! each section into the Settings of its room. `checks` knows which combinations cannot work. Reading never stops at a
//! problem, so an administrator sees all problems at once ([`Problems`]).
//!
//! `config/spillway.toml` is the reference. It provides each list of sections that a file does not have, and a test
//! compares it with the code in both directions.

mod change;
mod checks;
mod document;
mod effect;
mod explain;
mod other_servers;
mod problem;
mod reader;
mod reference;
mod sections;
#[cfg(test)]
mod tests;
mod units;
mod value;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::deadline::Budget;
use crate::{admin, delivery, intercept, listener, notify, policy, quarantine, scan, store};

pub use change::{Difference, Shown, diff, differences, settings_that_need_restart};
pub use explain::{DefaultValue, ExplainedKey, Explanation, NotExplained, ValueInForce, explain};
pub use problem::{Problem, Problems, SourceLocation};
pub use sections::{LogFormat, RelaySettings};

use document::{Document, Log};

/// The annotated reference configuration, with every key at its default.
pub const REFERENCE: &str = include_str!("../../config/spillway.toml");

/// Maximum size of a configuration file: 4 MiB. The reference has about 33 KiB; the limit stops the read of a device or of a
/// wrong file.
const FILE_OCTETS_MAX: u64 = 4 << 20;

/// A complete configuration without problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[relay]`.
    pub relay: RelaySettings,
    /// `[[listener]]`, at least one.
    pub listeners: Vec<listener::Settings>,
    /// `[limits]`.
    pub limits: listener::Limits,
    /// `[budget]`.
    pub budget: Budget,
    /// `[[engine]]`; `[guard]` is in each of them.
    pub engines: Vec<scan::Settings>,
    /// `[coverage]`, `[policy]`, `[[rule]]`.
    pub policy: policy::Settings,
    /// `[[next_hop]]`, at least one.
    pub next_hops: Vec<delivery::Settings>,
    /// `[store]`.
    pub store: store::Settings,
    /// `[quarantine]`.
    pub quarantine: quarantine::Settings,
    /// `[intercept]`.
    pub intercept: intercept::Settings,
    /// `[[notify]]`.
    pub notify: Vec<notify::Settings>,
    /// `[admin]`.
    pub admin: admin::Settings,
    /// Identifies this configuration in decisions and in `status`: the first 12 hexadecimal digits of the SHA-256 of the file,
    /// or `default` without a file.
    pub version: Arc<str>,
    /// Settings that are allowed but probably not intended, one line each, in the form of [`Problems`].
    pub warnings: Vec<String>,
    /// Every key with its value as TOML, in the order of reading, for [`diff`].
    shown: Vec<(String, String)>,
}

impl Config {
    /// Every key with its value as TOML, in the order of reading, for [`explain`].
    pub fn shown(&self) -> &Shown {
        &self.shown
    }
}

/// Reads and checks a configuration. Without a path, returns the built-in defaults.
///
/// Relative paths in the configuration start at the folder of the file, or at the current folder without a file. The
/// function opens the files that the configuration names, to check that they are readable. It blocks on the disk: within a
/// runtime, call it from a blocking thread.
///
/// # Errors
/// All problems at once.
pub fn load(path: Option<&Path>) -> Result<Config, Problems> {
    let Some(path) = path else {
        return read("", "default configuration", Path::new(""), "default".into());
    };
    let file = path.display().to_string();
    let text = file_text(path).map_err(|what| Problems::of_file(path, what))?;
    let version = Sha256::digest(text.as_bytes());
    let version: String = version.iter().take(6).map(|b| format!("{b:02x}")).collect();
    let folder = path.parent().unwrap_or(Path::new(""));
    read(&text, &file, folder, version.into())
}

/// Parses a duration of the configuration, such as `150ms`, `5s`, `2d`.
///
/// # Errors
/// The problem and the fix.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    units::duration(text).map_err(|wrong| format!("{}; {}", wrong.what, wrong.fix))
}

/// Parses a size of the configuration, such as `64KiB`, `50MiB`, into octets.
///
/// # Errors
/// The problem and the fix.
pub fn parse_size(text: &str) -> Result<u64, String> {
    units::size(text).map_err(|wrong| format!("{}; {}", wrong.what, wrong.fix))
}

/// Parses a network or an address of the configuration, such as `192.0.2.0/24`, `192.0.2.7`.
///
/// # Errors
/// The problem and the fix.
pub fn parse_network(text: &str) -> Result<ipnet::IpNet, String> {
    sections::network(text).map_err(|wrong| format!("{}; {}", wrong.what, wrong.fix))
}

/// The text of a file of at most [`FILE_OCTETS_MAX`] octets in UTF-8; else the problem and the fix.
fn file_text(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let cannot = |error: std::io::Error| {
        format!("cannot be read: {error}; correct the path, or let this user read the file")
    };
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut octets = Vec::new();
    file.take(FILE_OCTETS_MAX + 1)
        .read_to_end(&mut octets)
        .map_err(cannot)?;
    if octets.len() as u64 > FILE_OCTETS_MAX {
        return Err(
            "is larger than 4 MiB: not a configuration; name the configuration file".to_owned(),
        );
    }
    String::from_utf8(octets).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        format!("line {} is not UTF-8; save the file as UTF-8", line + 1)
    })
}

/// Reads a text. `file` is its name in problems; relative paths start at `base`.
fn read(text: &str, file: &str, base: &Path, version: Arc<str>) -> Result<Config, Problems> {
    let log = RefCell::new(Log::at(base));
    let config = build(text, version, &log);
    let mut log = log.into_inner();
    match config {
        Some(config) if log.problems.is_empty() => {
            let warnings =
                Problems::new(file.to_owned(), std::mem::take(&mut log.warnings)).lines();
            let shown = log.into_settings().into_iter();
            let shown = shown.filter_map(|setting| Some((setting.key, setting.value?)));
            Ok(Config {
                warnings,
                shown: shown.collect(),
                ..config
            })
        }
        _ => Err(Problems::new(file.to_owned(), log.problems)),
    }
}

/// Names of the sections of a file, in the order of the reference.
const SECTION_NAMES: [&str; 15] = [
    "relay",
    "listener",
    "limits",
    "budget",
    "engine",
    "guard",
    "coverage",
    "policy",
    "rule",
    "next_hop",
    "store",
    "quarantine",
    "intercept",
    "notify",
    "admin",
];

/// Builds as much of the configuration as possible; the problems are in the log. `None` if the text is not TOML: the rest
/// of such a text would only produce misleading problems.
fn build(text: &str, version: Arc<str>, log: &RefCell<Log>) -> Option<Config> {
    let written = Document::parse(text, true, log);
    let reference = Document::parse(REFERENCE, false, log);
    if !log.borrow().problems.is_empty() {
        return None;
    }
    written.finish(&SECTION_NAMES, log);
    let section = |name| written.section(name, log);
    let list = |name| {
        let own = written.sections(name, log);
        own.or_else(|| reference.sections(name, log))
            .unwrap_or_default()
    };
    let relay = sections::relay(section("relay"));
    let listeners: Vec<_> = list("listener")
        .into_iter()
        .map(sections::listener)
        .collect();
    let limits = sections::limits(section("limits"));
    let budget = sections::budget(section("budget"));
    let guard = sections::guard(section("guard"));
    let engines: Vec<_> = list("engine")
        .into_iter()
        .filter_map(|section| sections::engine(section, &relay.hostname, &guard))
        .collect();
    let policy = sections::policy(sections::PolicySections {
        coverage: section("coverage"),
        policy: section("policy"),
        rules: written.sections("rule", log).unwrap_or_default(),
        engines: &engines,
        listeners: &listeners,
    });
    let store = sections::store(section("store"));
    let next_hop = |section| sections::next_hop(section, &relay.hostname, &store);
    let next_hops: Vec<_> = list("next_hop").into_iter().filter_map(next_hop).collect();
    let quarantine = sections::quarantine(section("quarantine"));
    let intercept = sections::intercept(section("intercept"));
    let ways = written.sections("notify", log).unwrap_or_default();
    let notify = ways.into_iter().filter_map(sections::notify).collect();
    let admin = sections::admin(section("admin"), &store);
    let config = Config {
        relay,
        listeners,
        limits,
        budget,
        engines,
        policy,
        next_hops,
        store,
        quarantine,
        intercept,
        notify,
        admin,
        version,
        warnings: Vec::new(),
        shown: Vec::new(),
    };
    checks::check(&config, &mut log.borrow_mut());
    Some(config)
}
