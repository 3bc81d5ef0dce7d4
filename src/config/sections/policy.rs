//! `[coverage]`, `[policy]` and `[[rule]]`.

use std::collections::BTreeMap;

use crate::config::problem::nearest;
use crate::config::reader::Section;
use crate::config::units::Wrong;
use crate::config::value::plain;
use crate::message::{AddressPattern, Glob};
use crate::policy::{Rule, Settings};
use crate::verdict::{Disposition, EngineClass, FindingKind, Reason};
use crate::{listener, scan};

use super::network;

/// The three kinds of sections, and the engines and listeners that rules may name.
pub(in crate::config) struct Sections<'a> {
    pub(in crate::config) coverage: Section<'a>,
    pub(in crate::config) policy: Section<'a>,
    pub(in crate::config) rules: Vec<Section<'a>>,
    pub(in crate::config) engines: &'a [scan::Settings],
    pub(in crate::config) listeners: &'a [listener::Settings],
}

/// Reads `[policy]`, `[coverage]` and all `[[rule]]`.
pub(in crate::config) fn policy(sections: Sections<'_>) -> Settings {
    let Sections {
        coverage,
        mut policy,
        rules,
        engines,
        listeners,
    } = sections;
    let dispositions = dispositions();
    let kinds = [
        FindingKind::Malware,
        FindingKind::Phishing,
        FindingKind::Policy,
    ];
    let kinds = kinds.into_iter().filter_map(|kind| {
        let read = policy.choice(kind.as_str(), Some(Disposition::Quarantine), &dispositions);
        Some((kind, read?))
    });
    let kinds: BTreeMap<FindingKind, Disposition> = kinds.collect();
    let mut score = |key, default| {
        let read = policy.number(key, Some(default), -1e6..=1e6);
        read.unwrap_or(default)
    };
    let tag_score = score("tag_score", 5.0);
    let quarantine_score = score("quarantine_score", 10.0);
    let reject_score = score("reject_score", 1000.0);
    if tag_score > quarantine_score {
        policy.complain(
            "tag_score",
            "is above quarantine_score",
            "write tag_score <= quarantine_score <= reject_score",
        );
    }
    if quarantine_score > reject_score {
        policy.complain(
            "quarantine_score",
            "is above reject_score",
            "write tag_score <= quarantine_score <= reject_score",
        );
    }
    let missing = missing(policy.below("missing"));
    policy.finish();
    let rule = |section| rule(section, engines, listeners);
    Settings {
        rules: rules.into_iter().filter_map(rule).collect(),
        kinds,
        tag_score,
        quarantine_score,
        reject_score,
        coverage: required(coverage, engines),
        missing,
        weights: engines
            .iter()
            .map(|engine| (engine.name.clone(), engine.weight))
            .collect(),
    }
}

fn dispositions() -> [(&'static str, Disposition); 5] {
    Disposition::ALL.map(|disposition| (disposition.as_str(), disposition))
}

/// Reads `[policy.missing]`.
fn missing(mut section: Section<'_>) -> BTreeMap<Reason, Disposition> {
    let dispositions = dispositions();
    let all = Reason::ALL.into_iter().filter_map(|reason| {
        let default = match reason {
            Reason::TooLarge | Reason::LimitsReached | Reason::Encrypted => Disposition::Quarantine,
            // A further scan of the same message would fail in the same way, so a person should decide.
            Reason::BudgetSpent | Reason::Panicked | Reason::Suspect => Disposition::Quarantine,
            _ => Disposition::Defer,
        };
        let read = section.choice(reason.as_str(), Some(default), &dispositions);
        Some((reason, read?))
    });
    let all = all.collect();
    section.finish();
    all
}

/// Reads `[coverage]`.
fn required(mut section: Section<'_>, engines: &[scan::Settings]) -> BTreeMap<EngineClass, usize> {
    let mut coverage = BTreeMap::new();
    for class in EngineClass::ALL {
        let configured = engines
            .iter()
            .filter(|engine| engine.class == class)
            .count();
        let required = section.count(class.as_str(), configured.min(1), 0..=1000);
        if required > configured {
            let class = class.as_str();
            section.complain(
                class,
                format!("{required} required, but only {configured} of class {class} configured: no mail would be delivered"),
                format!("write {configured}, or add an [[engine]] with class = \"{class}\""),
            );
        }
        coverage.insert(class, required);
    }
    section.finish();
    coverage
}

fn rule(
    mut section: Section<'_>,
    engines: &[scan::Settings],
    listeners: &[listener::Settings],
) -> Option<Rule> {
    let name = section.name("\"executives\"");
    let engine_names: Vec<&str> = engines.iter().map(|engine| &*engine.name).collect();
    let listener_names: Vec<&str> = listeners.iter().map(|listener| &*listener.name).collect();
    let kinds = FindingKind::ALL.map(|kind| (kind.as_str(), kind));
    let reasons = Reason::ALL.map(|reason| (reason.as_str(), reason));
    let globs = |section: &mut Section<'_>, key| {
        section.list(key, None, |glob: &Glob| glob.as_str().to_owned(), glob)
    };
    let addresses = |section: &mut Section<'_>, key| {
        let show = |pattern: &AddressPattern| pattern.as_str().to_owned();
        section.list(key, None, show, address_pattern)
    };
    let mut rule = Rule::new(name, Disposition::Quarantine);
    rule.sender = addresses(&mut section, "sender");
    rule.recipient = addresses(&mut section, "recipient");
    advise_addresses(&section, "sender", &rule.sender);
    advise_addresses(&section, "recipient", &rule.recipient);
    rule.client = section.list("client", None, plain, network);
    rule.user = globs(&mut section, "user");
    rule.listener = section.list("listener", None, plain, |text| {
        known("listener", text, &listener_names)
    });
    rule.size_over = section.size("size_over", None, 0..=1 << 40);
    rule.attachment_name = globs(&mut section, "attachment_name");
    rule.attachment_type = globs(&mut section, "attachment_type");
    rule.finding = globs(&mut section, "finding");
    rule.kind = section.choices("kind", &kinds);
    rule.engine = section.list("engine", None, plain, |text| {
        known("engine", text, &engine_names)
    });
    rule.missing = section.choices("missing", &reasons);
    rule.score_over = section.number("score_over", None, -1e6..=1e6);
    section.require("then", "\"quarantine\"");
    let then = section.choice("then", None, &dispositions());
    check_conditions(&section, &rule);
    section.finish();
    rule.then = then?;
    Some(rule)
}

/// Warns of patterns that match no address. A pattern covers a whole address; other servers take a domain for all addresses in it.
fn advise_addresses(section: &Section<'_>, key: &'static str, patterns: &[AddressPattern]) {
    for (at, pattern) in patterns.iter().enumerate() {
        let text = pattern.as_str();
        let bare = text.trim_matches(['.', '@']);
        let fix = if text.starts_with("@") && text.len() > 1 {
            format!("write \"*{text}\"")
        } else if text == "<>" && key == "recipient" {
            "write sender = [\"<>\"] for bounces".to_owned()
        } else if text.contains(['@', '*', '?'])
            || text == "<>"
            || text.eq_ignore_ascii_case("postmaster")
        {
            continue;
        } else if text.starts_with('.') {
            format!("write \"*@*.{bare}\"")
        } else if text.contains('.') {
            format!("write \"*@{bare}\"")
        } else {
            format!("write \"{text}@*\"")
        };
        let what =
            format!("{text:?} matches no address, because a pattern covers the whole address");
        section.warn_item(key, at, what, fix);
    }
}

/// A rule for all mail must say so explicitly, and an empty condition is a mistake.
fn check_conditions(section: &Section<'_>, rule: &Rule) {
    let lists = [
        "sender",
        "recipient",
        "client",
        "user",
        "listener",
        "attachment_name",
        "attachment_type",
        "finding",
        "kind",
        "engine",
        "missing",
    ];
    let given = lists.into_iter().filter(|key| section.has(key)).count();
    if given == 0 && !section.has("size_over") && !section.has("score_over") {
        section.complain(
            "then",
            "applies to every message, because the rule has no condition",
            "add a condition, or recipient = [\"*\"] for all mail",
        );
    }
    for key in lists {
        if section.is_empty_list(key) {
            section.complain(
                key,
                "is empty, so it is not a condition",
                "write at least one entry, or remove the key",
            );
        }
    }
    if section.has("engine")
        && rule.finding.is_empty()
        && rule.kind.is_empty()
        && rule.missing.is_empty()
    {
        section.complain(
            "engine",
            "restricts finding, kind or missing, and the rule has none of them",
            "add one of them, for example kind = [\"malware\"]",
        );
    }
}

fn glob(text: &str) -> Result<Glob, Wrong> {
    Glob::new(text).ok_or_else(not_a_pattern)
}

fn address_pattern(text: &str) -> Result<AddressPattern, Wrong> {
    AddressPattern::new(text).ok_or_else(not_a_pattern)
}

fn not_a_pattern() -> Wrong {
    Wrong::new(
        "contains an empty pattern or one of more than 500 characters",
        "write a pattern such as \"*@example.com\" or \"*.xlsm\"",
    )
}

fn known(what: &str, text: &str, names: &[&str]) -> Result<String, Wrong> {
    match names.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            format!("no {what} has the name {text:?}"),
            match nearest(text, names.iter().copied()) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("the {what}s are {}", names.join(", ")),
            },
        )),
    }
}
