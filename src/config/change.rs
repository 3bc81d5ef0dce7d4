//! The differences between two configurations, and which of them need a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::Config;

/// Keys of the lists of named sections (`[[listener]]` and so on).
pub(super) const SECTION_LISTS: [&str; 4] = ["listener", "engine", "rule", "next_hop"];

/// Prefixes of the keys that are read at the start only: a running relay cannot replace its listening sockets, its open
/// store, the memory that it has shared out, and its log. `*` stands for the name of a section.
const RESTART_KEY_PREFIXES: [&str; 7] = [
    "listener.*.address",
    "store.",
    "admin.",
    "limits.in_flight_bytes",
    "relay.log_level",
    "relay.log_format",
    "relay.log_output",
];

/// One line for people for each difference: `limits.recipients: 1000 -> 500`, `engine clamd: added`, and one line for each
/// list whose order has changed.
pub fn diff(old: &Config, new: &Config) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for change in changes(old, new) {
        lines.push(change.line);
    }
    lines.extend(
        SECTION_LISTS
            .iter()
            .filter_map(|list| order(list, old, new)),
    );
    lines
}

/// The lines of [`diff`] that need a restart. If there is one, the reload is refused as a whole and nothing changes.
pub fn settings_that_need_restart(old: &Config, new: &Config) -> Vec<String> {
    let changes = changes(old, new).into_iter();
    changes
        .filter(|change| at_start(&change.key))
        .map(|change| change.line)
        .collect()
}

struct Change {
    /// The key. For an added or removed section `LIST.NAME.address`, so that a listener counts as a change of its address.
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
        // An added or removed section has a line already; its keys need none.
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
    SECTION_LISTS.contains(&list).then_some((list, name))
}

fn named(config: &Config) -> BTreeSet<(&str, &str)> {
    config
        .shown
        .iter()
        .filter_map(|(key, _)| section_of(key))
        .collect()
}

/// A line if the sections that are in both configurations have another order. The order matters for rules: the first rule
/// that matches wins.
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

pub(super) fn at_start(key: &str) -> bool {
    RESTART_KEY_PREFIXES
        .iter()
        .any(|prefix| match prefix.split_once('*') {
            Some((list, last)) => key.starts_with(list) && key.ends_with(last),
            None => key.starts_with(prefix),
        })
}
