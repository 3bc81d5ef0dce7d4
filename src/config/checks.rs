//! Checks of combinations: settings that are valid alone, but cannot work together.

mod guard;
mod notify;
mod rules;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::delivery;
use crate::listener::Mode;
use crate::message::{MemoryBudget, canonical};
use crate::store::Capacity;

use super::Config;
use super::document::Log;
use super::units::{show_duration, show_size};

/// Reports every problem that involves more than one section.
pub(super) fn check(config: &Config, log: &mut Log) {
    unique_names(config, log);
    addresses(config, log);
    times(config, log);
    late_verdicts(config, log);
    rules::for_everybody(config, log);
    guard::thresholds(config, log);
    memory(config, log);
    routes(config, log);
    loops(config, log);
    notify::ways(config, log);
}

/// Logs, rules and commands identify a section by its name, so a name may occur once in a list.
fn unique_names(config: &Config, log: &mut Log) {
    let listeners = config.listeners.iter().map(|l| l.name.to_string());
    let engines = config.engines.iter().map(|e| e.name.to_string());
    let rules = config.policy.rules.iter().map(|r| r.name.clone());
    let next_hops = config.next_hops.iter().map(|n| n.name.to_string());
    let ways = config.notify.iter().map(|way| way.name.to_string());
    let lists: [(&str, Vec<String>); 5] = [
        ("listener", listeners.collect()),
        ("engine", engines.collect()),
        ("rule", rules.collect()),
        ("next_hop", next_hops.collect()),
        ("notify", ways.collect()),
    ];
    for (list, names) in lists {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for name in names.iter().filter(|name| !name.is_empty()) {
            *seen.entry(name).or_default() += 1;
        }
        for (name, times) in seen.into_iter().filter(|(_, times)| *times > 1) {
            let what = format!("{times} [[{list}]] sections have this name");
            log.complain(
                &format!("{list}.{name}.name"),
                what,
                "give each section a name of its own",
            );
        }
    }
}

/// Two sockets cannot listen on one address. Also: there is at least one listener, and `/metrics` is not public.
fn addresses(config: &Config, log: &mut Log) {
    if config.listeners.is_empty() {
        log.complain(
            "listener",
            "the list is empty, so the relay could accept no mail",
            "add a [[listener]] with a name and an address",
        );
    }
    let mut taken: Vec<(SocketAddr, String)> = Vec::new();
    let of_listeners = config.listeners.iter().flat_map(|listener| {
        let key = format!("listener.{}.address", listener.name);
        listener
            .addresses
            .iter()
            .map(move |address| (*address, key.clone()))
    });
    let all = of_listeners.chain(
        config
            .admin
            .http
            .map(|http| (http, "admin.http".to_owned())),
    );
    for (address, key) in all {
        if let Some((_, other)) = taken.iter().find(|(other, _)| same_socket(*other, address)) {
            // The problem names the address that stands in the file, not the default that conflicts with it.
            let (at, other) = match log.is_written(&key) {
                true => (&key, other),
                false => (other, &key),
            };
            let what = format!("{address} is already in use by {other}");
            log.complain(at, what, "choose another address or port");
        }
        taken.push((address, key));
    }
    if let Some(http) = config.admin.http.filter(|http| !http.ip().is_loopback()) {
        let what = format!(
            "{http} is reachable from other machines, and anyone there can read the status"
        );
        log.warn(
            "admin.http",
            what,
            "use a loopback address unless a firewall protects it",
        );
    }
}

/// Whether two addresses conflict. Port 0 never does: the system chooses a free port.
fn same_socket(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |address: SocketAddr| address.ip().is_unspecified();
    let family = one.is_ipv4() == other.is_ipv4();
    let ip = one.ip() == other.ip() || (family && (all(one) || all(other)));
    ip && one.port() == other.port() && one.port() != 0
}

/// The timeout of a part must not be longer than the timeout of the whole.
fn times(config: &Config, log: &mut Log) {
    let total = config.budget.total;
    let limits = &config.limits;
    let mut pairs = vec![
        (
            "budget.session".to_owned(),
            config.budget.session,
            "budget.total",
            total,
        ),
        (
            "limits.data_idle".to_owned(),
            limits.data_idle,
            "limits.data_total",
            limits.data_total,
        ),
        (
            "limits.idle".to_owned(),
            limits.idle,
            "limits.session_total",
            limits.session_total,
        ),
        (
            "limits.data_total".to_owned(),
            limits.data_total,
            "limits.session_total",
            limits.session_total,
        ),
    ];
    for engine in &config.engines {
        let key = format!("engine.{}.timeout", engine.name);
        pairs.push((key, engine.timeout, "budget.total", total));
    }
    for (key, part, whole, limit) in pairs {
        if part <= limit {
            continue;
        }
        let (part, limit) = (show_duration(part), show_duration(limit));
        if log.is_written(whole) && !log.is_written(&key) {
            let what = format!("\"{limit}\" is shorter than {key} = \"{part}\", which it includes");
            let fix = format!("write \"{part}\" or more, or lower {key}");
            log.complain(whole, what, fix);
        } else {
            let what =
                format!("\"{part}\" is longer than {whole} = \"{limit}\", which includes it");
            let fix = format!("write \"{limit}\" or less, or raise {whole}");
            log.complain(&key, what, fix);
        }
    }
}

/// If an engine may take longer than the sender waits for a reply, its verdict comes after the 250. The message is then safe,
/// but no longer refused in the session.
fn late_verdicts(config: &Config, log: &mut Log) {
    let session = config.budget.session;
    let mut listeners = config.listeners.iter();
    if !listeners.any(|listener| listener.mode == Mode::CutThrough) {
        return;
    }
    for engine in &config.engines {
        if engine.timeout <= session || engine.timeout > config.budget.total {
            continue;
        }
        let key = format!("engine.{}.timeout", engine.name);
        let (timeout, session) = (show_duration(engine.timeout), show_duration(session));
        let late = "a message that this engine scans for longer is stored and answered 250 before its verdict, \
                    and can be held, but not refused";
        if log.is_written("budget.session") && !log.is_written(&key) {
            let what = format!("\"{session}\" is shorter than {key} = \"{timeout}\": {late}");
            let fix = format!("write \"{timeout}\" or more, or lower {key}");
            log.warn("budget.session", what, fix);
        } else {
            let what =
                format!("\"{timeout}\" is longer than budget.session = \"{session}\": {late}");
            let fix = format!("write \"{session}\" or less, or raise budget.session");
            log.warn(&key, what, fix);
        }
    }
}

/// The largest allowed message must find room. Otherwise each attempt gets a temporary reply, and the sender tries again
/// until it gives up.
fn memory(config: &Config, log: &mut Log) {
    let limits = &config.limits;
    let mebi = 1u64 << 20;
    // Each octet of a message counts `MemoryBudget::OCTETS_PER_CONTENT_OCTET` times, and large messages may use three quarters of
    // the memory.
    let charge = limits
        .message_size
        .saturating_mul(MemoryBudget::OCTETS_PER_CONTENT_OCTET as u64);
    let least = charge.div_ceil(3).saturating_mul(4).div_ceil(mebi) * mebi;
    if limits.in_flight_bytes < least {
        let size = show_size(limits.message_size);
        let what = format!(
            "\"{}\" has no room for one message of message_size = \"{size}\", which needs \"{}\"",
            show_size(limits.in_flight_bytes),
            show_size(least)
        );
        let fix = format!(
            "write \"{}\" or more, or lower message_size",
            show_size(least)
        );
        log.complain("limits.in_flight_bytes", what, fix);
    }
    // A held message needs room for its content and its record, so twice the content is required.
    let least = limits.message_size.saturating_mul(2);
    if let Capacity::Octets(octets) = config.quarantine.max_bytes
        && octets < least
    {
        let (size, least) = (show_size(limits.message_size), show_size(least));
        let what = format!(
            "\"{}\" has no room for one message of limits.message_size = \"{size}\", which needs \"{least}\"",
            show_size(octets)
        );
        let fix = format!("write \"{least}\" or more, or lower limits.message_size");
        log.complain("quarantine.max_bytes", what, fix);
    }
    if limits.sessions_per_client > limits.sessions {
        let what = format!("is more than sessions = {}", limits.sessions);
        log.complain(
            "limits.sessions_per_client",
            what,
            format!("write {} or less", limits.sessions),
        );
    }
}

/// Mail needs a next hop, and each domain has exactly one.
fn routes(config: &Config, log: &mut Log) {
    if config.next_hops.is_empty() {
        log.complain(
            "next_hop",
            "the list is empty, so the relay could deliver no mail",
            "add a [[next_hop]] with domains = [\"*\"]",
        );
    }
    let mut domains = config.next_hops.iter().flat_map(|hop| &hop.domains);
    if !config.next_hops.is_empty() && !domains.any(|domain| domain == "*") {
        log.warn(
            "next_hop",
            "no next hop takes all domains: bounces to other domains are held in quarantine (bounce-undeliverable)".to_owned(),
            "add a [[next_hop]] with domains = [\"*\"], so that bounces reach senders in other domains",
        );
    }
    let mut taken: BTreeMap<Cow<'_, str>, &str> = BTreeMap::new();
    for next_hop in &config.next_hops {
        for domain in &next_hop.domains {
            let spelling = canonical::domain(domain);
            if let Some(other) = taken.insert(spelling, &next_hop.name) {
                let key = format!("next_hop.{}.domains", next_hop.name);
                let what = format!("\"{domain}\" already goes to next_hop.{other}");
                log.complain(
                    &key,
                    what,
                    "write each domain in one next hop, and list further servers in its address",
                );
            }
        }
    }
}

/// If the relay is its own next hop, every message loops until it reaches `limits.hops`.
fn loops(config: &Config, log: &mut Log) {
    for next_hop in &config.next_hops {
        let delivery::Kind::Smtp(server) = &next_hop.kind else {
            continue;
        };
        for address in &server.addresses {
            let Some((host, port)) = address.rsplit_once(':') else {
                continue;
            };
            let ours = config.listeners.iter().find(|listener| {
                let mut sockets = listener.addresses.iter();
                sockets.any(|own| {
                    own.port() != 0
                        && port == own.port().to_string()
                        && reaches(host, own.ip(), &config.relay.hostname)
                })
            });
            if let Some(listener) = ours {
                let key = format!("next_hop.{}.address", next_hop.name);
                let what = format!(
                    "\"{address}\" is the relay's own listener \"{}\": mail would loop",
                    listener.name
                );
                log.complain(
                    &key,
                    what,
                    "write the address of the server behind the relay",
                );
            }
        }
    }
}

/// Whether a connection to `host` can reach a socket that listens on `own`. Names are not resolved, because a check must
/// not depend on the network: only `localhost` and the relay's own name count as this machine.
fn reaches(host: &str, own: IpAddr, hostname: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip == own || (own.is_unspecified() && (ip.is_loopback() || ip.is_unspecified())),
        Err(_) if bare.eq_ignore_ascii_case("localhost") => {
            own.is_loopback() || own.is_unspecified()
        }
        Err(_) => bare.eq_ignore_ascii_case(hostname),
    }
}
