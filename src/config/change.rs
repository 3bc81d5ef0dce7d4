//! What a reload changes, and what it cannot change.

use std::collections::{BTreeMap, BTreeSet};

use super::Config;

/// The lists of named sections.
const LISTS: [&str; 4] = ["listener", "engine", "rule", "next_hop"];

/// Settings that are taken up at the start alone: sockets that listen, the store that is open, the memory that is
/// shared out, and the log that is being written. A prefix of keys; `*` stands for a section's name.
const AT_START: [&str; 6] = [
    "listener.*.address",
    "store.",
    "admin.",
    "limits.in_flight_bytes",
    "relay.log_level",
    "relay.log_format",
];

/// What differs, one line for people each: `limits.recipients: 1000 -> 500`, `engine clamd: added`.
pub fn diff(old: &Config, new: &Config) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for change in changes(old, new) {
        lines.push(change.line);
    }
    lines.extend(LISTS.iter().filter_map(|list| order(list, old, new)));
    lines
}

/// The lines of [`diff`] that a reload cannot bring about. If there is one, the reload is refused as a whole and nothing
/// changes.
pub fn settings_that_need_restart(old: &Config, new: &Config) -> Vec<String> {
    let changes = changes(old, new).into_iter();
    changes
        .filter(|change| at_start(&change.key))
        .map(|change| change.line)
        .collect()
}

struct Change {
    /// The key, or `listener.smtp.address` for a listener that comes or goes (its address does).
    key: String,
    line: String,
}

fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let before: BTreeMap<&str, &str> = map(old);
    let after: BTreeMap<&str, &str> = map(new);
    let (was, is) = (named(old), named(new));
    let mut changes = Vec::new();
    let comes_or_goes = was.symmetric_difference(&is);
    for (list, name) in comes_or_goes {
        let what = if is.contains(&(*list, *name)) {
            "added"
        } else {
            "removed"
        };
        changes.push(Change {
            key: format!("{list}.{name}.address"),
            line: format!("{list} {name}: {what}"),
        });
    }
    let keys: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    for key in keys {
        // Of a section that is in one of the two only, its coming or going is all there is to say.
        if section_of(key).is_some_and(|section| was.contains(&section) != is.contains(&section)) {
            continue;
        }
        let (one, other) = (before.get(key), after.get(key));
        if one != other {
            let shown = |value: Option<&&str>| value.map_or("not set", |value| value).to_owned();
            changes.push(Change {
                key: key.to_owned(),
                line: format!("{key}: {} -> {}", shown(one), shown(other)),
            });
        }
    }
    changes
}

fn map(config: &Config) -> BTreeMap<&str, &str> {
    config
        .shown
        .iter()
        .map(|(key, value)| (&**key, &**value))
        .collect()
}

/// `("engine", "clamd")` of `engine.clamd.timeout`.
fn section_of(key: &str) -> Option<(&str, &str)> {
    let (list, rest) = key.split_once('.')?;
    let (name, _) = rest.split_once('.')?;
    LISTS.contains(&list).then_some((list, name))
}

fn named(config: &Config) -> BTreeSet<(&str, &str)> {
    config
        .shown
        .iter()
        .filter_map(|(key, _)| section_of(key))
        .collect()
}

/// A line if sections that are in both come in another order: the first rule that matches wins.
fn order(list: &str, old: &Config, new: &Config) -> Option<String> {
    let names = |config: &'_ Config| -> Vec<String> {
        let keys = config
            .shown
            .iter()
            .filter(|(key, _)| key.ends_with(".name"));
        let sections = keys.filter_map(|(key, _)| section_of(key));
        sections
            .filter(|(of, _)| *of == list)
            .map(|(_, name)| name.to_owned())
            .collect()
    };
    let (was, is) = (names(old), names(new));
    let common = |names: &[String], others: &[String]| -> Vec<String> {
        names
            .iter()
            .filter(|name| others.contains(name))
            .cloned()
            .collect()
    };
    let (before, after) = (common(&was, &is), common(&is, &was));
    (before != after).then(|| format!("{list}: the order is now {}", is.join(", ")))
}

fn at_start(key: &str) -> bool {
    AT_START.iter().any(|prefix| match prefix.split_once('*') {
        Some((list, last)) => key.starts_with(list) && key.ends_with(last),
        None => key.starts_with(prefix),
    })
}
