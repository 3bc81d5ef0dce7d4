//! The differences between two configurations, and which of them need a restart.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::{Config, effect};

/// Keys of the lists of named sections (`[[listener]]` and so on).
pub(super) const SECTION_LISTS: [&str; 5] = ["listener", "engine", "rule", "next_hop", "notify"];

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

/// A key with one of these words in its name has a secret as its value, unless it is the name of a file.
const SECRET_KEY_WORDS: [&str; 3] = ["password", "secret", "token"];

/// Every key of a configuration with its value as TOML, in the order of reading ([`Config::shown`]).
pub type Shown = [(String, String)];

/// One difference between two configurations, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What is different: `limits.recipients: 1000 -> 500`, `engine clamd: added`. Secrets are not shown.
    pub what: String,
    /// What follows for mail, where the numbers do not say it themselves; one line each.
    pub effects: Vec<String>,
    /// Whether only a restart puts it in force: a reload is then refused as a whole.
    pub needs_restart: bool,
}

/// One line for people for each difference: `limits.recipients: 1000 -> 500`, `engine clamd: added`, and one line for each
/// list whose order has changed.
pub fn diff(old: &Config, new: &Config) -> Vec<String> {
    let differences = differences(&old.shown, &new.shown).into_iter();
    differences.map(|difference| difference.what).collect()
}

/// The differences between two configurations, with what follows for mail.
pub fn differences(old: &Shown, new: &Shown) -> Vec<Difference> {
    let mut effects = effect::Effects::new(old, new);
    let difference = |change: Change| Difference {
        effects: effects.of(&change.key),
        needs_restart: at_start(&change.key),
        what: change.line,
    };
    let mut differences: Vec<Difference> = changes(old, new).into_iter().map(difference).collect();
    for list in SECTION_LISTS {
        if let Some(what) = order(list, old, new) {
            let effects = match list {
                "rule" => {
                    vec!["of several rules that match, the first in this order decides".to_owned()]
                }
                _ => Vec::new(),
            };
            differences.push(Difference {
                what,
                effects,
                needs_restart: false,
            });
        }
    }
    differences
}

/// The lines of [`diff`] that need a restart. If there is one, the reload is refused as a whole and nothing changes.
pub fn settings_that_need_restart(old: &Config, new: &Config) -> Vec<String> {
    let changes = changes(&old.shown, &new.shown).into_iter();
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

fn changes(old: &Shown, new: &Shown) -> Vec<Change> {
    let (before, after) = (map(old), map(new));
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
            let shown = |value: Option<&&str>| match value {
                None => "not set".to_owned(),
                Some(value) => presentable(key, value),
            };
            changes.push(Change {
                key: key.to_owned(),
                line: format!("{key}: {} -> {}", shown(one), shown(other)),
            });
        }
    }
    changes
}

/// The value of a key without secrets: the value of a key that names one, and the login in a URL. Files that contain secrets
/// are only named.
pub(super) fn presentable(key: &str, value: &str) -> String {
    let name = key.rsplit('.').next().unwrap_or_default();
    // The path of a webhook is often the secret that opens it.
    if key.starts_with("notify.")
        && name == "url"
        && let Some((scheme, rest)) = value.split_once("://")
    {
        let host = rest.split(['/', '?', '"']).next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        return format!("{scheme}://{host}/…\"");
    }
    let is_secret = SECRET_KEY_WORDS.iter().any(|word| name.contains(word));
    if is_secret && !name.ends_with("_file") {
        return "(not shown)".to_owned();
    }
    let mut shown = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(['/', '"', ' ', ',']).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                shown.push('…');
                &after[at..]
            }
            None => after,
        };
    }
    shown + rest
}

/// The settings by their keys.
pub(super) fn map(shown: &Shown) -> BTreeMap<&str, &str> {
    let settings = shown.iter();
    settings.map(|(key, value)| (&**key, &**value)).collect()
}

/// `("engine", "clamd")` of `engine.clamd.timeout`.
pub(super) fn section_of(key: &str) -> Option<(&str, &str)> {
    let (list, rest) = key.split_once('.')?;
    let (name, _) = rest.split_once('.')?;
    SECTION_LISTS.contains(&list).then_some((list, name))
}

fn named(shown: &Shown) -> BTreeSet<(&str, &str)> {
    let sections = shown.iter().filter_map(|(key, _)| section_of(key));
    sections.collect()
}

/// A line if the sections that are in both configurations have another order. The order matters for rules: the first rule
/// that matches wins.
fn order(list: &str, old: &Shown, new: &Shown) -> Option<String> {
    let (was, is) = (names(list, old), names(list, new));
    let (old, new): (HashSet<&str>, HashSet<&str>) =
        (was.iter().copied().collect(), is.iter().copied().collect());
    let before = was.iter().filter(|name| new.contains(*name));
    let after = is.iter().filter(|name| old.contains(*name));
    before
        .ne(after)
        .then(|| format!("{list}: the order is now {}", is.join(", ")))
}

/// The names of the sections of a list, in their order.
fn names<'a>(list: &str, shown: &'a Shown) -> Vec<&'a str> {
    let keys = shown.iter().filter(|(key, _)| key.ends_with(".name"));
    let sections = keys.filter_map(|(key, _)| section_of(key));
    let of_list = sections.filter(|(of, _)| *of == list);
    of_list.map(|(_, name)| name).collect()
}

pub(super) fn at_start(key: &str) -> bool {
    RESTART_KEY_PREFIXES
        .iter()
        .any(|prefix| match prefix.split_once('*') {
            Some((list, last)) => key.starts_with(list) && key.ends_with(last),
            None => key.starts_with(prefix),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No secret is shown: neither the value of a key that names one, nor a login in an address. Everything else is shown as it
    /// is.
    #[test]
    fn secrets_are_not_shown() {
        for (key, value, shown) in [
            ("notify.secret", "\"hunter2\"", "(not shown)"),
            ("next_hop.out.password", "\"hunter2\"", "(not shown)"),
            ("next_hop.out.password_file", "\"/etc/p\"", "\"/etc/p\""),
            ("engine.h.token_file", "\"/etc/t\"", "\"/etc/t\""),
            (
                "engine.h.address",
                "[\"http://ann:hunter2@a.test/x@y\", \"https://b.test:1/\"]",
                "[\"http://…@a.test/x@y\", \"https://b.test:1/\"]",
            ),
            ("rule.r.sender", "[\"*@a.test\"]", "[\"*@a.test\"]"),
            (
                "notify.hook.url",
                "\"https://hooks.test:1/T0/B0?token=hunter2\"",
                "\"https://hooks.test:1/…\"",
            ),
        ] {
            assert_eq!(presentable(key, value), shown);
        }
    }
}
