//! Engines that are reached over a connection.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::reader::Section;
use crate::config::sections::{HOUR, host_and_port, secs};
use crate::config::units::Wrong;
use crate::config::value::plain;
use crate::scan::engine::{Address, HTTP, Kind, RspamdSettings, SpamdSettings, Tls, Url};

use super::SHORTEST;

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

pub(super) fn rspamd(section: &mut Section<'_>, timeout: Duration) -> Kind {
    let addresses = urls(section, "http://127.0.0.1:11333");
    Kind::Rspamd {
        settings: RspamdSettings {
            tls_ca: authorities(section, &addresses),
            connect_timeout: connect_timeout(section, timeout),
        },
        addresses,
    }
}

/// HTTP services; `example` is the usual one.
fn urls(section: &mut Section<'_>, example: &str) -> Vec<Url> {
    section.require_items("address", &format!("[{example:?}]"));
    section.list("address", None, plain, |text| {
        Url::parse(text, &HTTP).map_err(|wrong| {
            Wrong::new(
                format!("{text:?} {wrong}"),
                format!("write {example:?} or \"https://host.example.com/path\""),
            )
        })
    })
}

/// Authorities for https; without any address that is https they would be used for nothing.
fn authorities(section: &mut Section<'_>, addresses: &[Url]) -> Option<PathBuf> {
    let ca = section.optional_file("tls_ca");
    if ca.is_some() && !addresses.iter().any(|url| url.is_tls(&HTTP)) {
        section.complain(
            "tls_ca",
            "is used with https:// only",
            "write https:// in address, or remove this key",
        );
    }
    ca
}

/// A user whose preferences spamd is to use.
fn user(section: &mut Section<'_>) -> Option<String> {
    let user = section.optional_text("user")?;
    if user.contains(char::is_control) {
        section.complain("user", "is no user name", "write one line");
        return None;
    }
    Some(user)
}

/// TLS where it is asked for; a certificate can be checked against a name only.
fn tls(section: &mut Section<'_>, addresses: &[Address]) -> Option<Tls> {
    let words = [("off", false), ("verified", true)];
    let verified = section.choice("tls", Some(false), &words) == Some(true);
    let ca = section.optional_file("tls_ca");
    if verified && addresses.iter().any(|at| matches!(at, Address::Unix(_))) {
        section.complain(
            "tls",
            "a unix socket has no name that a certificate could be checked against",
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
    let connect_timeout = section.duration("connect_timeout", secs(1), SHORTEST..=secs(HOUR));
    if connect_timeout > timeout {
        section.complain(
            "connect_timeout",
            "is longer than timeout, which includes it",
            "write less than timeout",
        );
    }
    connect_timeout
}

/// The replicas; `example` is the usual one.
fn addresses(section: &mut Section<'_>, example: &str) -> Vec<Address> {
    section.require_items("address", &format!("[{example:?}]"));
    section.list("address", None, plain, address)
}

fn address(text: &str) -> Result<Address, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return match path.starts_with('/') {
            true => Ok(Address::Unix(path.into())),
            false => Err(Wrong::new(
                format!("{text:?} is not an absolute path"),
                "write \"unix:/run/clamav/clamd.ctl\"",
            )),
        };
    }
    if text.starts_with('/') {
        return Err(Wrong::new(
            format!("{text:?} is not a host with a port"),
            format!("write \"unix:{text}\""),
        ));
    }
    match text.parse() {
        Ok(address) => Ok(Address::Socket(address)),
        Err(_) => host_and_port(text).map(Address::Tcp),
    }
}
