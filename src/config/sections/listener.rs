//! `[[listener]]` and `[limits]`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::reader::Section;
use crate::config::value::plain;
use crate::file;
use crate::listener::{
    Limits, LineEndings, Mode, Settings, Tls, TlsError, check_certificate_files,
};

use super::{DAY, HOUR, MINUTE, network, secs, socket_address};

/// Reads a `[[listener]]`.
pub(in crate::config) fn listener(mut section: Section<'_>) -> Settings {
    let name = section.name("\"smtp\"");
    section.require_items("address", "[\"127.0.0.1:2525\"]");
    let addresses = section.list("address", None, plain, socket_address);
    let modes = [("cut-through", Mode::CutThrough), ("queue", Mode::Queue)];
    let mode = section.choice("mode", Some(Mode::CutThrough), &modes);
    let tls = [
        ("off", Tls::Off),
        ("starttls", Tls::StartTls),
        ("required", Tls::Required),
        ("implicit", Tls::Implicit),
    ];
    let tls = section
        .choice("tls", Some(Tls::Off), &tls)
        .unwrap_or(Tls::Off);
    let certificate = section.optional_file("certificate");
    let key = section.optional_file("key");
    let client_ca = section.optional_file("client_ca");
    let local = ["127.0.0.0/8", "::1/128"];
    let local = local.iter().filter_map(|net| net.parse().ok()).collect();
    let relay_networks = section.list("relay_networks", Some(local), plain, network);
    let users_file = section.optional_file("users_file");
    let xclient_from = section.list("xclient_from", Some(Vec::new()), plain, network);
    let xforward_from = section.list("xforward_from", Some(Vec::new()), plain, network);
    let proxy_from = section.list("proxy_from", Some(Vec::new()), plain, network);
    let endings = [
        ("refuse", LineEndings::Refuse),
        ("normalise", LineEndings::Normalise),
    ];
    let line_endings = section.choice("line_endings", Some(LineEndings::Refuse), &endings);
    let settings = Settings {
        name: name.into(),
        addresses,
        mode: mode.unwrap_or(Mode::CutThrough),
        tls,
        certificate: certificate.zip(key),
        client_ca,
        relay_networks,
        users_file,
        xclient_from,
        xforward_from,
        proxy_from,
        line_endings: line_endings.unwrap_or(LineEndings::Refuse),
    };
    check_tls(&section, &settings);
    check_certificate(&section, &settings);
    check_open_relay(&section, &settings);
    section.finish();
    settings
}

/// TLS needs a certificate and its key; `users_file` and `client_ca` need TLS.
fn check_tls(section: &Section<'_>, settings: &Settings) {
    match (section.has("certificate"), section.has("key")) {
        (true, false) => section.complain("certificate", "is set without key", "add key = \"…\""),
        (false, true) => section.complain(
            "key",
            "is set without certificate",
            "add certificate = \"…\"",
        ),
        (false, false) if settings.tls != Tls::Off => {
            section.complain(
                "tls",
                "needs a certificate",
                "add certificate = \"…\" and key = \"…\"",
            );
        }
        _ => {}
    }
    if settings.tls == Tls::Off {
        for (key, why) in [
            (
                "users_file",
                "passwords are accepted over TLS only, and tls is off",
            ),
            ("client_ca", "client certificates need TLS, and tls is off"),
        ] {
            if section.has(key) {
                section.complain(
                    key,
                    why,
                    "write tls = \"starttls\", \"required\" or \"implicit\", or remove this key",
                );
            }
        }
    }
}

/// The certificate, its key and the authorities must be usable, and the key must be that of the certificate. Every user of the
/// machine who can read the key can be the server.
fn check_certificate(section: &Section<'_>, settings: &Settings) {
    let Some((certificate, key)) = &settings.certificate else {
        return;
    };
    section.warn_if_others_may_read("key", key);
    let files = [Some(certificate), Some(key), settings.client_ca.as_ref()];
    // A file that is not there is a problem already.
    if files
        .into_iter()
        .flatten()
        .any(|path| file::open(path).is_err())
    {
        return;
    }
    let Err(error) = check_certificate_files(certificate, key, settings.client_ca.as_deref())
    else {
        return;
    };
    let (at, what, fix) = match &error {
        TlsError::Mismatch(_, rustls::Error::InconsistentKeys(_)) => (
            "key",
            format!(
                "{} is not the key of the first certificate in {}",
                key.display(),
                certificate.display()
            ),
            "name the key for which that certificate was issued, and put the server's own certificate first in its file",
        ),
        TlsError::Mismatch(path, _) | TlsError::File(path, _) => {
            let keys = [
                ("key", Some(key)),
                ("client_ca", settings.client_ca.as_ref()),
            ];
            let found = keys.into_iter().find(|(_, file)| *file == Some(path));
            let at = found.map_or("certificate", |(at, _)| at);
            (
                at,
                error.to_string(),
                "name a file in PEM form that the TLS library accepts",
            )
        }
    };
    section.complain(at, what, fix);
}

/// The networks that may relay, or may name another client that relays, must be bounded: spammers find an open relay
/// within hours.
fn check_open_relay(section: &Section<'_>, settings: &Settings) {
    for net in too_wide(&settings.relay_networks) {
        section.complain(
            "relay_networks",
            format!("{net} lets unknown clients relay through this server (an open relay)"),
            "list only the networks of your own servers; other clients can log in (users_file)",
        );
    }
    for (key, nets) in [
        ("xclient_from", &settings.xclient_from),
        ("xforward_from", &settings.xforward_from),
        ("proxy_from", &settings.proxy_from),
    ] {
        for net in too_wide(nets) {
            section.complain(
                key,
                format!("{net} lets unknown peers claim to be any client, even one that may relay"),
                "list only the addresses of your own proxies and servers",
            );
        }
    }
}

/// Networks that are too wide to belong to one organisation: prefixes of at most 8 bits (IPv4) or 16 bits (IPv6), private
/// networks excepted. If no single network is too wide, the function checks their aggregate, because many narrow networks
/// can cover the whole Internet.
fn too_wide(nets: &[IpNet]) -> Vec<IpNet> {
    let canonical: Vec<IpNet> = nets.iter().map(unmapped).collect();
    let private = |net: &IpNet| match net {
        IpNet::V4(net) => PRIVATE_V4.iter().any(|own| own.contains(net)),
        IpNet::V6(net) => PRIVATE_V6.iter().any(|own| own.contains(net)),
    };
    let wide = |net: &IpNet| match net {
        IpNet::V4(net) => net.prefix_len() <= 8,
        IpNet::V6(net) => net.prefix_len() <= 16,
    };
    let mut found: Vec<IpNet> = canonical.clone();
    found.retain(|net| wide(net) && !private(net));
    if found.is_empty() {
        found = IpNet::aggregate(&canonical);
        found.retain(|net| wide(net) && !private(net));
    }
    found
}

/// The private /8 (RFC 1918) and loopback: the only private networks with a prefix of at most 8 bits.
const PRIVATE_V4: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8),
];

/// Unique local (RFC 4193) and link-local addresses.
const PRIVATE_V6: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

/// The IPv4 network for an IPv4-mapped one: `::ffff:0:0/96` and narrower (RFC 4291 2.5.5.2).
fn unmapped(net: &IpNet) -> IpNet {
    match (net.addr(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V6(address), Some(prefix)) => address
            .to_ipv4_mapped()
            .and_then(|address| Ipv4Net::new(address, prefix).ok())
            .map_or(*net, IpNet::V4),
        _ => *net,
    }
}

/// Reads `[limits]`.
pub(in crate::config) fn limits(mut section: Section<'_>) -> Limits {
    let default = Limits::default();
    let time = |seconds: u64| secs(1)..=secs(seconds);
    let limits = Limits {
        sessions: section.count("sessions", default.sessions, 1..=1_000_000),
        sessions_per_client: section.count(
            "sessions_per_client",
            default.sessions_per_client,
            1..=1_000_000,
        ),
        recipients: section.count("recipients", default.recipients, 1..=50_000),
        message_size: section
            .size("message_size", Some(default.message_size), 1024..=2 << 30)
            .unwrap_or(default.message_size),
        commands: section.count("commands", default.commands, 10..=100_000_000),
        errors: section.count("errors", default.errors, 1..=10_000),
        command_line: section
            .size(
                "command_line",
                Some(default.command_line as u64),
                512..=64 << 10,
            )
            .and_then(|octets| usize::try_from(octets).ok())
            .unwrap_or(default.command_line),
        hops: section.count("hops", default.hops, 10..=1000),
        in_flight_bytes: section
            .size(
                "in_flight_bytes",
                Some(default.in_flight_bytes),
                1024..=1 << 40,
            )
            .unwrap_or(default.in_flight_bytes),
        backlog: section.duration("backlog", default.backlog, secs(MINUTE)..=secs(DAY)),
        idle: section.duration("idle", default.idle, time(HOUR)),
        data_idle: section.duration("data_idle", default.data_idle, time(HOUR)),
        data_total: section.duration("data_total", default.data_total, time(DAY)),
        data_rate: section
            .size("data_rate", Some(default.data_rate), 0..=1 << 30)
            .unwrap_or_default(),
        session_total: section.duration("session_total", default.session_total, time(30 * DAY)),
    };
    section.finish();
    limits
}
