//! `[[notify]]`.

use std::path::Path;
use std::sync::Arc;

use crate::config::reader::Section;
use crate::config::units::Wrong;
use crate::config::value::{chosen, is_name, plain};
use crate::incident::{self, Subject};
use crate::message::Mailbox;
use crate::notify::{
    Cause, Kind, MailSettings, NEXT_HOPS_MAX, Settings, TIMEOUT_MAX, WebhookSettings,
};
use crate::scan::engine::{HTTP, Url};

use super::{HOUR, MINUTE, arguments, check_program, secs};

/// The kinds of ways.
#[derive(Debug, Clone, Copy, PartialEq)]
enum KindName {
    Command,
    Mail,
    Webhook,
}

const KINDS: [(&str, KindName); 3] = [
    ("command", KindName::Command),
    ("mail", KindName::Mail),
    ("webhook", KindName::Webhook),
];

/// The parts of a story that can be told.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Begin,
    End,
}

/// Reads a `[[notify]]`. `None` if its kind is unknown; that problem is in the log.
pub(in crate::config) fn notify(mut section: Section<'_>) -> Option<Settings> {
    let name = section.name("\"oncall\"");
    section.require("kind", "\"command\"");
    let kind = section.choice("kind", None, &KINDS)?;
    let read = |kind: KindName, section: &mut Section<'_>| match kind {
        KindName::Command => Kind::Command(command(section)),
        KindName::Mail => Kind::Mail(mail(section)),
        KindName::Webhook => webhook(section),
    };
    let kind = read(kind, &mut section);
    let (begin, end) = told(&mut section);
    let settings = Settings {
        name: name.into(),
        kind,
        begin,
        end,
        causes: section.list("causes", Some(Vec::new()), plain, cause),
        kinds: kinds(&mut section),
        begin_after: section.duration("begin_after", secs(0), secs(0)..=secs(HOUR)),
        end_after: section.duration("end_after", secs(2 * MINUTE), secs(0)..=secs(HOUR)),
        max_per_hour: section.count("max_per_hour", 10, 1..=1000),
        attempts: u32::try_from(section.count("attempts", 6, 1..=20)).unwrap_or(1),
        timeout: section.duration("timeout", secs(10), secs(1)..=TIMEOUT_MAX),
    };
    section.finish_kind(&KINDS, |kind, section| drop(read(kind, section)));
    Some(settings)
}

/// Whether beginnings and ends are told.
fn told(section: &mut Section<'_>) -> (bool, bool) {
    let words = [("begin", Part::Begin), ("end", Part::End)];
    let word = |part: &Part| match part {
        Part::Begin => "begin".to_owned(),
        Part::End => "end".to_owned(),
    };
    let both = Some(vec![Part::Begin, Part::End]);
    let tell = section.list("tell", both, word, |text| chosen(text, &words));
    if section.is_empty_list("tell") {
        section.complain(
            "tell",
            "is empty: nothing would be told",
            "write tell = [\"begin\", \"end\"]",
        );
    }
    (tell.contains(&Part::Begin), tell.contains(&Part::End))
}

/// The kinds of trouble. A kind that is no trouble never begins a story.
fn kinds(section: &mut Section<'_>) -> Vec<incident::Kind> {
    let trouble = incident::Kind::ALL
        .into_iter()
        .filter(|kind| kind.is_trouble());
    let words: Vec<_> = trouble.map(|kind| (kind.as_str(), kind)).collect();
    let word = |kind: &incident::Kind| kind.as_str().to_owned();
    section.list("kinds", Some(Vec::new()), word, |text| chosen(text, &words))
}

fn cause(text: &str) -> Result<Cause, Wrong> {
    let (word, name) = match text.split_once(':') {
        Some((word, name)) => (word, Some(name)),
        None => (text, None),
    };
    let known = Subject::WORDS.into_iter().find(|known| *known == word);
    let is_name = |name: &str| matches!(word, "engine" | "next-hop") && is_name(name);
    match known {
        Some(word) if name.is_none_or(is_name) => Ok(Cause {
            word,
            name: name.map(str::to_owned),
        }),
        _ => Err(Wrong::new(
            format!("{text:?} is not a cause"),
            format!(
                "write one of {}, or \"engine:NAME\", \"next-hop:NAME\"",
                Subject::WORDS.join(", ")
            ),
        )),
    }
}

fn command(section: &mut Section<'_>) -> Vec<String> {
    let command = arguments(section, "[\"/usr/local/bin/page\"]");
    if let Some(program) = command.first() {
        check_program(section, program);
    }
    command
}

fn mail(section: &mut Section<'_>) -> MailSettings {
    section.require_items("to", "[\"noc@example.net\"]");
    let to = section.list("to", None, plain, mailbox);
    let from = section.optional_text("from");
    let from = from.and_then(|text| match mailbox(&text) {
        Ok(from) => Some(from),
        Err(wrong) => {
            section.complain("from", wrong.what, wrong.fix);
            None
        }
    });
    section.require("next_hop", "\"mailserver\"");
    let first = section.optional_text("next_hop");
    let fallback = section.list("fallback", Some(Vec::new()), plain, |text| {
        Ok(text.to_owned())
    });
    let mut next_hops: Vec<Arc<str>> = Vec::new();
    for name in first.into_iter().chain(fallback) {
        if next_hops.iter().any(|known| **known == *name) {
            section.complain(
                "fallback",
                format!("names {name:?} twice, or as well as next_hop"),
                "write each next hop once",
            );
        }
        next_hops.push(name.into());
    }
    if next_hops.len() > NEXT_HOPS_MAX {
        section.complain(
            "fallback",
            format!("has {} next hops", next_hops.len() - 1),
            format!("write at most {}", NEXT_HOPS_MAX - 1),
        );
    }
    MailSettings {
        to,
        from,
        next_hops,
    }
}

fn mailbox(text: &str) -> Result<Mailbox, Wrong> {
    Mailbox::parse(text)
        .map_err(|wrong| Wrong::new(format!("{text:?}: {wrong}"), "write \"noc@example.net\""))
}

fn webhook(section: &mut Section<'_>) -> Kind {
    let example = "https://hooks.example.net/spillway";
    section.require("url", &format!("{example:?}"));
    let url = section.optional_text("url").and_then(|text| {
        let url = Url::parse(&text, &HTTP);
        if url.is_err() {
            section.complain(
                "url",
                "the value is not a URL of a host and a path; a login (user:password@) has no place in it".to_owned(),
                format!("write {example:?}"),
            );
        }
        url.ok()
    });
    section.require("secret_file", "\"/etc/spillway/hook.secret\"");
    let secret_file = section.optional_file("secret_file");
    let tls_ca = section.optional_file("tls_ca");
    if let Some(path) = &secret_file {
        section.warn_if_others_may_read("secret_file", path);
    }
    if let Some(url) = &url {
        check_url(section, url, tls_ca.as_deref());
    }
    match (url, secret_file) {
        (Some(url), Some(secret_file)) => Kind::Webhook(WebhookSettings {
            url,
            secret_file,
            tls_ca,
        }),
        // The problem is in the log, so this configuration is not used.
        _ => Kind::Command(Vec::new()),
    }
}

/// A notification may quote mail, and whoever can change it on its way can hide trouble.
fn check_url(section: &Section<'_>, url: &Url, tls_ca: Option<&Path>) {
    let is_tls = url.is_tls(&HTTP);
    if !is_tls && !url.is_loopback() {
        section.warn(
            "url",
            format!("notifications would go to {url} in the clear"),
            "write https://",
        );
    }
    if tls_ca.is_some() && !is_tls {
        section.complain(
            "tls_ca",
            "is used with https:// only",
            "write https:// in url, or remove this key",
        );
    }
}
