//! The sections of the file. Each is read into the Settings of its room.

mod engine;
mod guard;
mod listener;
mod next_hop;
mod notify;
mod policy;
mod relay;

pub(super) use engine::engine;
pub(super) use guard::guard;
pub(super) use listener::{limits, listener};
pub(super) use next_hop::next_hop;
pub(super) use notify::notify;
pub(super) use policy::{Sections as PolicySections, policy};
pub use relay::{LogFormat, RelaySettings};
pub(super) use relay::{admin, budget, intercept, quarantine, relay, store};

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::reader::Section;
use super::units::Wrong;
use super::value::plain;
use crate::process::runnable;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// Seconds in a minute, an hour and a day.
const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const DAY: u64 = 86_400;

/// Parses an address and a port to listen on.
fn socket_address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        Wrong::new(
            format!("{text:?} is not an IP address with a port"),
            "write \"192.0.2.1:25\", \"[2001:db8::1]:25\", or \"0.0.0.0:25\" and \"[::]:25\" for all addresses",
        )
    })
}

/// Parses `unix:` and the path of a socket; `None` for a text that is no path.
fn unix_socket(text: &str) -> Option<Result<&Path, Wrong>> {
    let path = text.strip_prefix("unix:");
    let is_path = path.is_some() || text.contains('/') && !text.contains("://");
    let example = "write \"unix:\" and the whole path, which begins with \"/\": \"unix:/run/clamav/clamd.ctl\"";
    let wrong = |what: &str, fix| Some(Err(Wrong::new(format!("{text:?} {what}"), fix)));
    match path {
        _ if !is_path => None,
        Some(path) if path.starts_with('/') => Some(Ok(Path::new(path))),
        Some(_) => wrong(
            "is not an absolute path: it would depend on the folder in which the relay is started",
            example.to_owned(),
        ),
        None if text.starts_with('/') => wrong(
            "is not a host with a port",
            format!("write \"unix:{text}\""),
        ),
        None => wrong(
            "is neither a host with a port nor an absolute path",
            example.to_owned(),
        ),
    }
}

/// Parses the address of a server: `host:port`.
fn host_and_port(text: &str) -> Result<String, Wrong> {
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let wrong = || {
        Wrong::new(
            format!("{text:?} is not a host with a port"),
            "write \"mail.example.com:25\" or \"[2001:db8::1]:25\"",
        )
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    match port.parse::<u16>() {
        Ok(1..) if is_host(host) => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

/// Whether a text is a host name: letters, digits, hyphens and dots (RFC 1123 2.1), and underscores, which some networks
/// use. A name has at most 253 octets, a label at most 63 (RFC 1035 2.3.4).
fn is_host(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    text.len() <= 253 && text.split('.').all(label)
}

/// Reads `command`: a program and its arguments, for which no shell is used.
fn arguments(section: &mut Section<'_>, example: &str) -> Vec<String> {
    section.require_items("command", example);
    section.list("command", None, plain, |text| {
        match text.contains(char::is_control) {
            true => Err(Wrong::new(
                format!("{text:?} contains control characters"),
                "write one argument, without control characters",
            )),
            false => Ok(text.to_owned()),
        }
    })
}

/// Adds a problem unless the program of `command` has an absolute path, exists and is executable.
fn check_program(section: &Section<'_>, program: &str) {
    if !program.starts_with('/') {
        section.complain(
            "command",
            format!("{program:?} is not an absolute path"),
            "write an absolute path: no shell and no search path is used; write each argument as an item of its own",
        );
    } else if let Err(wrong) = runnable(Path::new(program)) {
        section.complain(
            "command",
            format!("{program} {wrong}"),
            "install it, or correct the path",
        );
    }
}

/// Parses a network: `192.0.2.0/24`. A bare address is the network of that address.
pub(super) fn network(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let net: IpNet = text.parse().map_err(|_| {
        Wrong::new(
            format!("{text:?} is not a network"),
            "write \"192.0.2.0/24\" or \"2001:db8::/32\"",
        )
    })?;
    match net.trunc() == net {
        true => Ok(net),
        false => Err(Wrong::new(
            format!("{text:?} has address bits after its prefix"),
            format!("write \"{}\"", net.trunc()),
        )),
    }
}
