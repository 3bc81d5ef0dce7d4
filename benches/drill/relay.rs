//! The relay under test, and what its command line tells about its books.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::options::Options;
use crate::process::Spillway;

/// Configuration: three engines, two next hops.
pub fn config(options: &Options, engines: &[u16], hops: [u16; 2]) -> String {
    let mut text = String::from("[coverage]\nav = 2\n");
    for (at, port) in engines.iter().enumerate() {
        text += &format!(
            "[[engine]]\nname = \"e{at}\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"127.0.0.1:{port}\"]\n\
             slots = 12\ntimeout = \"5s\"\nattempts = 2\n"
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

/// What a command answers, if there is such a command.
fn ask(relay: &Spillway, words: &[&str]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_spillway"))
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
    serde_json::from_slice(&output.stdout).unwrap_or_default()
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
