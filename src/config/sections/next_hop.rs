//! `[[next_hop]]`.

use std::time::Duration;

use crate::config::reader::Section;
use crate::config::units::Wrong;
use crate::config::value::plain;
use crate::delivery::{Kind, Settings, SmtpSettings, TlsMode};
use crate::store;

use super::{DAY, HOUR, MINUTE, host_and_port, is_host, secs, unix_socket};

/// The kinds of next hops.
#[derive(Debug, Clone, Copy, PartialEq)]
enum KindName {
    Smtp,
    Lmtp,
    Maildir,
}

const KINDS: [(&str, KindName); 3] = [
    ("smtp", KindName::Smtp),
    ("lmtp", KindName::Lmtp),
    ("maildir", KindName::Maildir),
];

/// Reads a `[[next_hop]]`. `None` if its kind is unknown; that problem is in the log.
pub(in crate::config) fn next_hop(
    mut section: Section<'_>,
    hostname: &str,
    store: &store::Settings,
) -> Option<Settings> {
    let name = section.name("\"mailserver\"");
    section.require_items("domains", "[\"*\"]");
    let domains = section.list("domains", None, plain, domain);
    section.require("kind", "\"smtp\"");
    let kind = section.choice("kind", None, &KINDS)?;
    let read = |kind: KindName, section: &mut Section<'_>| match kind {
        KindName::Smtp => Kind::Smtp(server(section, false, hostname)),
        KindName::Lmtp => Kind::Smtp(server(section, true, hostname)),
        KindName::Maildir => maildir(section, store),
    };
    let kind = read(kind, &mut section);
    let range = secs(1)..=secs(365 * DAY);
    let settings = Settings {
        name: name.into(),
        domains,
        kind,
        retry_first: section.duration("retry_first", secs(MINUTE), range.clone()),
        retry_max: section.duration("retry_max", secs(HOUR), range.clone()),
        give_up: section.duration("give_up", secs(5 * DAY), range),
    };
    if settings.retry_first > settings.retry_max {
        section.complain(
            "retry_first",
            "is longer than retry_max",
            "write retry_first <= retry_max <= give_up",
        );
    }
    if settings.retry_max > settings.give_up {
        section.complain(
            "retry_max",
            "is longer than give_up",
            "write retry_first <= retry_max <= give_up",
        );
    }
    section.finish_kind(&KINDS, |kind, section| drop(read(kind, section)));
    Some(settings)
}

fn domain(text: &str) -> Result<String, Wrong> {
    let lower = text.to_lowercase();
    let host = lower.strip_prefix('.').unwrap_or(&lower);
    if lower == "*" || is_host(host) || (!host.is_ascii() && !host.contains(['*', '@', ' '])) {
        return Ok(lower);
    }
    let fix = match lower.strip_prefix("*.") {
        Some(rest) if is_host(rest) => format!("write \".{rest}\" for all domains below it"),
        _ => "write \"example.com\", \".example.com\" for all below it, or \"*\" for all others"
            .to_owned(),
    };
    Err(Wrong::new(format!("{text:?} is not a domain"), fix))
}

fn maildir(section: &mut Section<'_>, store: &store::Settings) -> Kind {
    let path = section.text("path", "maildir/{domain}/{local}");
    if path.is_empty() {
        section.complain(
            "path",
            "is empty",
            "write path = \"maildir/{domain}/{local}\"",
        );
    }
    Kind::Maildir {
        path: store.path.join(path).to_string_lossy().into_owned(),
    }
}

fn server(section: &mut Section<'_>, lmtp: bool, hostname: &str) -> SmtpSettings {
    section.require_items("address", "[\"mail.example.com:25\"]");
    let addresses = section.list("address", None, plain, |text| match unix_socket(text) {
        Some(path) if lmtp => path.map(|_| text.to_owned()),
        Some(_) => Err(Wrong::new(
            format!("{text:?} is not allowed here"),
            "write \"host:port\"; kind = \"lmtp\" also accepts \"unix:/absolute/path\"",
        )),
        None => host_and_port(text),
    });
    let modes = [
        ("off", TlsMode::Off),
        ("opportunistic", TlsMode::Opportunistic),
        ("required", TlsMode::Required),
        ("verified", TlsMode::Verified),
    ];
    let tls = section
        .choice("tls", Some(TlsMode::Opportunistic), &modes)
        .unwrap_or(TlsMode::Opportunistic);
    let shortest = Duration::from_millis(100);
    let settings = SmtpSettings {
        lmtp,
        addresses,
        tls,
        tls_ca: section.optional_file("tls_ca"),
        username: section.optional_text("username"),
        password_file: section.optional_file("password_file"),
        connections: section.count("connections", 20, 1..=10_000),
        pace: section.flag("pace", true),
        idle: section.duration("idle", secs(30), secs(0)..=secs(HOUR)),
        connect_timeout: section.duration("connect_timeout", secs(10), shortest..=secs(HOUR)),
        command_timeout: section.duration("command_timeout", secs(60), shortest..=secs(HOUR)),
        data_timeout: section.duration("data_timeout", secs(10 * MINUTE), shortest..=secs(HOUR)),
        hostname: hostname.to_owned(),
    };
    check_credentials(section, &settings);
    settings
}

/// A password needs a user name, and TLS that an attacker cannot disable (a downgrade of opportunistic TLS). Its file should
/// not be readable by other users.
fn check_credentials(section: &Section<'_>, settings: &SmtpSettings) {
    match (section.has("username"), section.has("password_file")) {
        (true, false) => section.complain(
            "username",
            "is set without password_file",
            "add password_file = \"…\"",
        ),
        (false, true) => section.complain(
            "password_file",
            "is set without username",
            "add username = \"…\"",
        ),
        (true, true) if matches!(settings.tls, TlsMode::Off | TlsMode::Opportunistic) => section
            .complain(
                "username",
                "the password could cross the network in the clear",
                "write tls = \"required\" or \"verified\"",
            ),
        _ => {}
    }
    if section.has("tls_ca") && settings.tls != TlsMode::Verified {
        section.complain(
            "tls_ca",
            "is used with tls = \"verified\" only",
            "write tls = \"verified\", or remove this key",
        );
    }
    if let Some(path) = &settings.password_file {
        section.warn_if_others_may_read("password_file", path);
    }
}
