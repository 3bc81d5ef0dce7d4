//! Keys of engines that the relay reaches over a connection.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::reader::Section;
use crate::config::sections::{HOUR, host_and_port, secs, unix_socket};
use crate::config::units::Wrong;
use crate::config::value::plain;
use crate::scan::engine::{
    Address, HTTP, HttpSettings, ICAP, IcapSettings, Kind, Method, MilterSettings, NotAKey, Posted,
    ProbeWith, PublicKey, Reading, RspamdSettings, Schemes, SpamdSettings, TempFail, Tls, Url,
};

use crate::verdict::FindingKind;

use super::DURATION_MIN;

pub(super) fn clamd(section: &mut Section<'_>, timeout: Duration) -> Kind {
    Kind::Clamd {
        addresses: addresses(section, "unix:/run/clamav/clamd.ctl"),
        connect_timeout: connect_timeout(section, timeout),
    }
}

pub(super) fn spamd(section: &mut Section<'_>, timeout: Duration) -> Kind {
    let addresses = addresses(section, "127.0.0.1:783");
    Kind::Spamd {
        settings: SpamdSettings {
            user: user(section),
            tls: tls(section, &addresses),
            connect_timeout: connect_timeout(section, timeout),
        },
        addresses,
    }
}

pub(super) fn rspamd(section: &mut Section<'_>, timeout: Duration, hostname: &str) -> Kind {
    let addresses = urls(section, &HTTP, "http://127.0.0.1:11333");
    Kind::Rspamd {
        settings: RspamdSettings {
            hostname: hostname.to_owned(),
            tls_ca: authorities(section, &addresses, &HTTP),
            key: public_key(section),
            connect_timeout: connect_timeout(section, timeout),
        },
        addresses,
    }
}

/// Reads the public key. A problem does not repeat the value, because it might be the private key.
fn public_key(section: &mut Section<'_>) -> Option<PublicKey> {
    let text = section.optional_text("key")?;
    match text.parse() {
        Ok(key) => Some(key),
        Err(NotAKey) => {
            section.complain(
                "key",
                NotAKey.to_string(),
                "write the pubkey that \"rspamadm keypair\" prints: 52 letters and digits",
            );
            None
        }
    }
}

pub(super) fn milter(section: &mut Section<'_>, timeout: Duration, hostname: &str) -> Kind {
    let addresses = addresses(section, "unix:/run/opendkim/opendkim.sock");
    let tempfails = [("no-answer", TempFail::NoAnswer), ("info", TempFail::Info)];
    let tempfail = section.choice("tempfail", Some(TempFail::NoAnswer), &tempfails);
    let (bad_kind, bad_score) = objection(section, FindingKind::Policy);
    Kind::Milter {
        settings: MilterSettings {
            hostname: hostname.to_owned(),
            bad_kind,
            bad_score,
            tempfail: tempfail.unwrap_or(TempFail::NoAnswer),
            probe_with: probe_with(section),
            connect_timeout: connect_timeout(section, timeout),
        },
        addresses,
    }
}

pub(super) fn http(section: &mut Section<'_>, timeout: Duration, hostname: &str) -> Kind {
    let addresses = urls(section, &HTTP, "https://scanner.example.com/v1/scan");
    let sends = [("message", Posted::Message), ("metadata", Posted::Metadata)];
    let send = section.choice("send", Some(Posted::Message), &sends);
    let settings = HttpSettings {
        hostname: hostname.to_owned(),
        send: send.unwrap_or(Posted::Message),
        token_file: token_file(section, &addresses),
        tls_ca: authorities(section, &addresses, &HTTP),
        connect_timeout: connect_timeout(section, timeout),
        reading: reading(section),
        probe_with: probe_with(section),
    };
    if settings.send == Posted::Metadata && settings.probe_with != ProbeWith::Nothing {
        section.complain(
            "probe_with",
            "a probe needs the content, which send = \"metadata\" does not send",
            "write send = \"message\", or probe_with = \"none\"",
        );
    }
    Kind::Http {
        addresses,
        settings,
    }
}

/// Reads the known-bad content of the engine's probes.
pub(super) fn probe_with(section: &mut Section<'_>) -> ProbeWith {
    let words = [
        ("none", ProbeWith::Nothing),
        ("eicar", ProbeWith::Eicar),
        ("gtube", ProbeWith::Gtube),
    ];
    let chosen = section.choice("probe_with", Some(ProbeWith::Nothing), &words);
    chosen.unwrap_or(ProbeWith::Nothing)
}

/// Reads the kind and the score of a finding by which the engine objects to a message.
pub(super) fn objection(section: &mut Section<'_>, usual: FindingKind) -> (FindingKind, f64) {
    let objections = FindingKind::ALL
        .into_iter()
        .filter(|kind| kind.is_objection());
    let kinds: Vec<_> = objections.map(|kind| (kind.as_str(), kind)).collect();
    let kind = section.choice("bad_kind", Some(usual), &kinds);
    let score = section.number("bad_score", Some(10.0), 0.0..=1000.0);
    (kind.unwrap_or(usual), score.unwrap_or(10.0))
}

/// Reads the keys of answers in JSON. A verdict must have one meaning.
pub(super) fn reading(section: &mut Section<'_>) -> Reading {
    let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    let word = |text: &str| Ok(text.to_owned());
    let bad = section.list("bad", list(&["malicious", "true"]), plain, word);
    let clean = section.list("clean", list(&["clean", "false"]), plain, word);
    if let Some(both) = bad.iter().find(|verdict| clean.contains(verdict)) {
        section.complain(
            "clean",
            format!("{both:?} is in bad as well"),
            "write each verdict in only one of the lists",
        );
    }
    if bad.is_empty() || clean.is_empty() {
        section.complain(
            if bad.is_empty() { "bad" } else { "clean" },
            "is empty: the engine could report only one verdict",
            "write the verdicts of the engine, such as [\"true\"]",
        );
    }
    let (bad_kind, bad_score) = objection(section, FindingKind::Malware);
    Reading {
        verdict_at: section.parsed("verdict_at", "/verdict".to_owned(), String::clone, pointer),
        bad,
        clean,
        bad_kind,
        bad_score,
        name_at: pointed(section, "name_at"),
        score_at: pointed(section, "score_at"),
        signatures_at: pointed(section, "signatures_at"),
        id_at: pointed(section, "id_at"),
    }
}

/// Reads an optional JSON pointer.
fn pointed(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let text = section.optional_text(key)?;
    match pointer(&text) {
        Ok(text) => Some(text),
        Err(wrong) => {
            section.complain(key, wrong.what, wrong.fix);
            None
        }
    }
}

/// Parses a JSON pointer (RFC 6901): empty for the whole answer, or with a slash at its start.
fn pointer(text: &str) -> Result<String, Wrong> {
    match text.is_empty() || text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            format!("{text:?} is not a JSON pointer"),
            format!("write \"/{}\"", text.replace('.', "/")),
        )),
    }
}

/// Reads the file of the token. A token must not cross a network in the clear.
fn token_file(section: &mut Section<'_>, addresses: &[Url]) -> Option<PathBuf> {
    let file = section.optional_file("token_file")?;
    let in_the_clear = |url: &&Url| !url.is_tls(&HTTP) && !url.is_loopback();
    if let Some(url) = addresses.iter().find(in_the_clear) {
        section.complain(
            "token_file",
            format!("the token would go to {url} in the clear"),
            "write https:// in address",
        );
    }
    section.warn_if_others_may_read("token_file", &file);
    Some(file)
}

pub(super) fn icap(section: &mut Section<'_>, timeout: Duration) -> Kind {
    let addresses = urls(section, &ICAP, "icap://127.0.0.1:1344/avscan");
    let methods = [("respmod", Method::Respmod), ("reqmod", Method::Reqmod)];
    let method = section.choice("method", Some(Method::Respmod), &methods);
    Kind::Icap {
        settings: IcapSettings {
            method: method.unwrap_or(Method::Respmod),
            tls_ca: authorities(section, &addresses, &ICAP),
            connect_timeout: connect_timeout(section, timeout),
        },
        addresses,
    }
}

/// Reads the URLs of services with one of these schemes. `example` is shown in problems.
fn urls(section: &mut Section<'_>, schemes: &Schemes, example: &str) -> Vec<Url> {
    section.require_items("address", &format!("[{example:?}]"));
    section.list("address", None, plain, |text| {
        Url::parse(text, schemes).map_err(|wrong| {
            Wrong::new(
                format!("{text:?} {wrong}"),
                format!(
                    "write {example:?} or \"{}://host.example.com/path\"",
                    schemes[1].0
                ),
            )
        })
    })
}

/// Reads the authorities for TLS. Without an address over TLS they would have no use, which is a problem.
fn authorities(section: &mut Section<'_>, addresses: &[Url], schemes: &Schemes) -> Option<PathBuf> {
    let ca = section.optional_file("tls_ca");
    if ca.is_some() && !addresses.iter().any(|url| url.is_tls(schemes)) {
        let secure = schemes[1].0;
        section.complain(
            "tls_ca",
            format!("is used with {secure}:// only"),
            format!("write {secure}:// in address, or remove this key"),
        );
    }
    ca
}

/// Reads a user: the one whose preferences spamd applies, or the one as whom a command runs.
pub(super) fn user(section: &mut Section<'_>) -> Option<String> {
    let user = section.optional_text("user")?;
    if user.contains(char::is_control) {
        section.complain(
            "user",
            "is not a user name",
            "write a name without control characters",
        );
        return None;
    }
    Some(user)
}

/// Reads the keys of TLS. Verification needs a host name to compare with the certificate.
fn tls(section: &mut Section<'_>, addresses: &[Address]) -> Option<Tls> {
    let words = [("off", false), ("verified", true)];
    let verified = section.choice("tls", Some(false), &words) == Some(true);
    let ca = section.optional_file("tls_ca");
    if verified && addresses.iter().any(|at| matches!(at, Address::Unix(_))) {
        section.complain(
            "tls",
            "a certificate cannot be verified for a unix socket, which has no host name",
            "write \"host:port\", or tls = \"off\"",
        );
    }
    if ca.is_some() && !verified {
        section.complain(
            "tls_ca",
            "is used with tls = \"verified\" only",
            "write tls = \"verified\", or remove this key",
        );
    }
    verified.then_some(Tls { ca })
}

fn connect_timeout(section: &mut Section<'_>, timeout: Duration) -> Duration {
    let connect_timeout = section.duration("connect_timeout", secs(1), DURATION_MIN..=secs(HOUR));
    if connect_timeout > timeout {
        section.complain(
            "connect_timeout",
            "is longer than timeout, which includes it",
            "write timeout or less",
        );
    }
    connect_timeout
}

/// Reads the addresses of the replicas. `example` is shown in problems.
fn addresses(section: &mut Section<'_>, example: &str) -> Vec<Address> {
    section.require_items("address", &format!("[{example:?}]"));
    section.list("address", None, plain, address)
}

fn address(text: &str) -> Result<Address, Wrong> {
    if let Some(path) = unix_socket(text) {
        return path.map(|path| Address::Unix(path.into()));
    }
    match text.parse() {
        Ok(address) => Ok(Address::Socket(address)),
        Err(_) => host_and_port(text).map(Address::Tcp),
    }
}
