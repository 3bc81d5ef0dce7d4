//! The relay under test, and what its command line tells about its books.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::Value;

use crate::options::Options;
use crate::process::Spillway;
use crate::scene::{Scene, Senders};

/// The annotated reference: every key at its default.
const REFERENCE: &str = include_str!("../../config/spillway.toml");

/// Where all mail comes from that has one client address.
pub const ONE_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 1, 250, 1);

/// Lines for the listener.
pub fn listener(options: &Options, scene: &Scene) -> String {
    let mut text = format!("mode = \"{}\"\n", options.mode);
    if scene.senders == (Senders::OneClient { xforward: true }) {
        text += &format!("xforward_from = [\"{ONE_CLIENT}/32\"]\n");
    }
    text
}

/// Configuration: the engines and two next hops.
pub fn config(options: &Options, scene: &Scene, engines: &[u16], hops: [u16; 2]) -> String {
    let mut text = format!("[coverage]\nav = {}\n", scene.coverage);
    for (at, port) in engines.iter().enumerate() {
        text += &format!(
            "[[engine]]\nname = \"e{at}\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"127.0.0.1:{port}\"]\n{}",
            scene.engine
        );
        for line in &options.engine {
            text += line;
            text.push('\n');
        }
    }
    for ((name, domain), port) in [("first", "*"), ("second", "second.test")]
        .into_iter()
        .zip(hops)
    {
        text += &format!(
            "[[next_hop]]\nname = \"{name}\"\ndomains = [\"{domain}\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\ntls = \"off\"\n"
        );
    }
    if let Some(more) = &options.with {
        text += &std::fs::read_to_string(more).expect("the file named by --with");
    }
    text
}

/// What the first of these lines that sets a key sets it to; the reference has optional ones behind a "#".
fn value<'a>(mut lines: impl Iterator<Item = &'a str>, key: &str) -> Option<&'a str> {
    lines.find_map(|line| {
        let (name, value) = line.trim_start_matches('#').split_once(" = ")?;
        (name == key).then_some(value)
    })
}

/// What a run is configured with, in one line: of each engine what it was told, and what it has by default.
pub fn used(options: &Options, scene: &Scene) -> String {
    const KEYS: [&str; 7] = [
        "slots", "timeout", "limit", "slow", "wait", "probe", "attempts",
    ];
    let told = scene.engine.lines();
    let told: Vec<&str> = told
        .chain(options.engine.iter().map(String::as_str))
        .collect();
    let defaults = REFERENCE
        .split("#kind = \"clamd\"")
        .nth(1)
        .and_then(|rest| rest.split("[[engine]]").next())
        .unwrap_or_default();
    let setting = |key: &&str| {
        let told = value(told.iter().rev().copied(), key);
        let (value, mark) = match told {
            Some(told) => (told, ""),
            None => (value(defaults.lines(), key)?, " (default)"),
        };
        Some(format!("{key} {}{mark}", value.trim_matches('"')))
    };
    let settings: Vec<String> = KEYS.iter().filter_map(setting).collect();
    let listener = listener(options, scene).replace('\n', " ");
    format!(
        "{} clamd of {} workers, {} ms a scan; av = {}; {}; listener {}",
        scene.engines,
        scene.slots,
        scene.usual.as_millis(),
        scene.coverage,
        settings.join(", "),
        listener.trim_end()
    )
}

/// What the relay still has, and what it did by itself, after it was stopped.
#[derive(Debug, Default)]
pub struct Books {
    /// Ids of held messages, with the rule and the cause.
    pub held: BTreeMap<String, String>,
    /// Ids of messages that wait, with their status.
    pub pending: BTreeMap<String, String>,
    pub incidents: Vec<Incident>,
}

/// An entry of the incident log.
#[derive(Debug, Clone)]
pub struct Incident {
    pub at: jiff::Timestamp,
    pub kind: String,
    pub subject: String,
    pub summary: String,
}

impl Books {
    /// Reads them from the relay's store.
    pub fn read(relay: &Spillway) -> Self {
        let many = ["--limit", "10000000"];
        let told = |words: &[&str]| ask(relay, &[words, &many].concat());
        Self {
            held: told(&["quarantine", "list"]).iter().map(row).collect(),
            pending: told(&["queue", "list"]).iter().map(row).collect(),
            incidents: told(&["incident", "list"])
                .iter()
                .rev()
                .filter_map(incident)
                .collect(),
        }
    }
}

/// Whether it has anything that waits; it may run meanwhile.
pub fn waits(relay: &Spillway) -> bool {
    !ask(relay, &["queue", "list", "--limit", "1"]).is_empty()
}

/// What a command answers, if there is such a command.
fn ask(relay: &Spillway, words: &[&str]) -> Vec<Value> {
    let output = Command::new(relay.program())
        .arg("--config")
        .arg(relay.config())
        .arg("--json")
        .args(words)
        .output()
        .expect("spillway runs");
    if !output.status.success() {
        eprintln!(
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        return Vec::new();
    }
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    // A list is an object with its items in one member; in earlier versions it is the items.
    let member = ["messages", "incidents"]
        .iter()
        .find_map(|name| told.get(name));
    let items = member.unwrap_or(&told).as_array();
    items.cloned().unwrap_or_default()
}

fn text(value: &Value, at: &str) -> String {
    match value.pointer(at) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// The id that the sender was told, and why the relay has the message still.
fn row(value: &Value) -> (String, String) {
    let id = match text(value, "/message") {
        of if of.is_empty() => text(value, "/id"),
        of => of,
    };
    let why = [
        "/decision/rule",
        "/decision/reason",
        "/cause",
        "/lane",
        "/status",
    ]
    .map(|at| text(value, at));
    (id, why.join(" | "))
}

fn incident(value: &Value) -> Option<Incident> {
    Some(Incident {
        at: text(value, "/at").parse().ok()?,
        kind: text(value, "/kind"),
        subject: text(value, "/subject"),
        summary: text(value, "/summary"),
    })
}
