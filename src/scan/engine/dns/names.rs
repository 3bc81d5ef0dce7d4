//! Names for questions to a list: reversed addresses, and registered domains.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::message::mime::Inspection;

/// Octets of text of one message that are searched for URLs: 4 MiB. Valid mail seldom has more, which matters because text
/// beyond the limit makes the answer incomplete. Searching hostile text of this size takes a few tenths of a second.
/// A report in `dns.rs` contains this number.
const TEXT_OCTETS_MAX: usize = 4 << 20;
/// Most different domains that are collected from one message. Further domains are not even counted: `max_names` is always
/// smaller.
const DOMAINS_MAX: usize = 1000;

/// The domains of the URLs in a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Domains {
    /// Registered domains, each once, in the order in which they come.
    pub domains: Vec<String>,
    /// Number of further domains.
    pub left_out: usize,
    /// Whether the message has more text than was searched.
    pub cut: bool,
}

/// Whether an address is public. Lists know nothing about other addresses: they belong to private networks.
pub(in crate::scan::engine) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            // RFC 6598: addresses behind a carrier-grade NAT.
            let shared = a == 100 && (64..128).contains(&b);
            !(a == 0
                || shared
                || v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local())
        }
    }
}

/// The octets or nibbles of an address, the last one first (RFC 5782 2.1 and 2.4).
pub(super) fn reversed(address: IpAddr) -> String {
    let v4 = |v4: Ipv4Addr| {
        let [a, b, c, d] = v4.octets();
        format!("{d}.{c}.{b}.{a}")
    };
    let v6 = |v6: Ipv6Addr| {
        let nibbles = v6.octets().into_iter().rev();
        let each = nibbles.flat_map(|octet| [octet & 15, octet >> 4]);
        each.map(|nibble| format!("{nibble:x}"))
            .collect::<Vec<_>>()
            .join(".")
    };
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    }
}

/// The registered domain of a host, by the public suffix list; `None` for addresses and unknown suffixes. Lists contain
/// registered domains, because further names below a registered domain cost a spammer nothing.
pub(super) fn registered(host: &str) -> Option<String> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    if host.len() > 253 || !host.split('.').all(label) {
        return None;
    }
    let domain = psl::domain(host.as_bytes())?;
    let known = domain.suffix().is_known();
    let text = std::str::from_utf8(domain.as_bytes()).ok()?;
    known.then(|| text.to_owned())
}

/// The registered domains of the URLs in text parts, at most `most`.
pub fn in_text(inspection: &Inspection, most: usize) -> Domains {
    let mut found = Domains::default();
    let mut seen = std::collections::HashSet::new();
    let mut left = TEXT_OCTETS_MAX;
    let texts = inspection.parts.iter();
    for part in texts.filter(|p| !p.is_container && p.declared.starts_with("text/")) {
        let text = &part.bytes[..part.bytes.len().min(left)];
        left -= text.len();
        found.cut |= text.len() < part.bytes.len();
        for host in hosts(text) {
            let Some(domain) = registered(host).filter(|domain| !seen.contains(domain)) else {
                continue;
            };
            if seen.len() == DOMAINS_MAX {
                return found;
            }
            match found.domains.len() < most {
                true => found.domains.push(domain.clone()),
                false => found.left_out += 1,
            }
            seen.insert(domain);
        }
    }
    found
}

/// Hosts of URLs: the text after `://` and any credentials, or a word that begins with `www.`.
fn hosts(text: &[u8]) -> impl Iterator<Item = &str> {
    let is_host = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let rest = &text[at..];
            let word = at == 0 || !is_host(&text[at - 1]);
            let begins = if rest.starts_with(b"://") {
                3
            } else if word && rest.len() > 4 && rest[..4].eq_ignore_ascii_case(b"www.") {
                0
            } else {
                at += 1;
                continue;
            };
            let rest = &rest[begins..];
            let ends = |b: &u8| b.is_ascii_whitespace() || b"/?#<>\"'\\".contains(b);
            // A host has at most 253 octets, and credentials may precede it.
            let window = &rest[..rest.len().min(512)];
            let authority = &window[..window.iter().position(ends).unwrap_or(window.len())];
            let after = authority
                .iter()
                .rposition(|b| *b == b'@')
                .map_or(0, |p| p + 1);
            let host = &authority[after..];
            let host = &host[..host.iter().position(|b| !is_host(b)).unwrap_or(host.len())];
            at += begins + after + host.len().max(1);
            if let Some(host) = std::str::from_utf8(host).ok().filter(|h| !h.is_empty()) {
                return Some(host);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::mime;

    fn domains(text: &str, most: usize) -> Domains {
        let content = format!("Content-Type: text/html\r\n\r\n{text}");
        in_text(
            &mime::inspect(&content.into(), mime::Limits::default()),
            most,
        )
    }

    /// RFC 5782 2.1 and 2.4: the example addresses of the RFC are reversed correctly.
    #[test]
    fn addresses_are_reversed() {
        assert_eq!(reversed([192, 0, 2, 99].into()), "99.2.0.192");
        let v6: IpAddr = "2001:db8:1:2:3:4:567:89ab".parse().expect("an address");
        assert_eq!(
            reversed(v6),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2"
        );
    }

    /// The relay asks no list about addresses of private networks, however the addresses are written.
    #[test]
    fn private_addresses_are_not_public() {
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ];
        for address in private {
            assert!(!is_public(address.parse().expect(address)), "{address}");
        }
        for address in ["8.8.8.8", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(is_public(address.parse().expect(address)), "{address}");
        }
    }

    /// The engine asks about the registered domain: not about hosts below it, and not about a public suffix.
    #[test]
    fn the_registered_domain_of_a_host_is_found() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(registered("a.b.Example.COM."), some("example.com"));
        assert_eq!(registered("mail.example.co.uk"), some("example.co.uk"));
        assert_eq!(registered("evil.blogspot.com"), some("evil.blogspot.com"));
        for none in ["co.uk", "com", "host.notasuffix", "192.0.2.1", "a..com", ""] {
            assert_eq!(registered(none), None, "{none}");
        }
    }

    /// URLs are found where mail programs find them. Each domain is reported once, up to the limit.
    #[test]
    fn urls_are_found_in_text() {
        let text = "see http://a.example.com/x, HTTPS://user:pw@b.example.org:8080?q=http://c.example.net \
                    <a href='http://a.example.com'>www.example.info</a> notwww.example.edu https://[::1]/ :// www.";
        let found = domains(text, 10);
        let all = ["example.com", "example.org", "example.net", "example.info"];
        assert_eq!(found.domains, all);
        assert_eq!(found.left_out, 0);
        let found = domains(text, 3);
        assert_eq!((found.domains.len(), found.left_out), (3, 1));
    }
}
