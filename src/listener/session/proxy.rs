//! Parses the headers of the PROXY protocol, versions 1 and 2, which the peers in `proxy_from` must send first.
//!
//! Source: "The PROXY protocol Versions 1 & 2", haproxy.org, sections 2.1 and 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Result of [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The header needs at least this many octets more. The caller must not read further, because the octets after the
    /// header belong to the session or to its TLS handshake.
    Incomplete(usize),
    /// The length of the header in octets, and whose connection it is.
    Header(usize, ProxiedClient),
    /// The input is not a header, or a header without a usable address.
    Bad,
}

/// The client of a connection that a proxy makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProxiedClient {
    /// The client with this address.
    At(IpAddr),
    /// The proxy itself, for example with a health check: LOCAL of version 2, for which section 2.2 demands the addresses of
    /// the connection.
    Proxy,
    /// A client whose address the proxy cannot tell: UNKNOWN of version 1, UNSPEC of version 2. Sections 2.1 and 2.2 allow a
    /// receiver to use the address of the proxy. The relay does not, because that address may have permissions that the
    /// client does not have.
    Unknown,
}

/// The first octets of every version 2 header.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Shortest and longest version 1 line in octets, including CRLF: `PROXY UNKNOWN`, and a line with two IPv6 addresses.
const V1_OCTETS_MIN: usize = 15;
const V1_OCTETS_MAX: usize = 107;
/// Octets of a version 2 header up to and including its length field: one octet more than the shortest version 1 line.
const V2_FIXED_OCTETS: usize = 16;
/// Longest accepted version 2 header in octets: 2 KiB for the addresses and the TLVs, so that a peer cannot fill memory.
const V2_OCTETS_MAX: usize = V2_FIXED_OCTETS + 2048;

/// Parses the first octets of a session.
pub(super) fn parse(input: &[u8]) -> Parsed {
    let seen = input.len().min(V2_SIGNATURE.len());
    if input[..seen] == V2_SIGNATURE[..seen] {
        return match input.len() {
            0 => Parsed::Incomplete(V1_OCTETS_MIN),
            octets if octets < V2_FIXED_OCTETS => Parsed::Incomplete(V2_FIXED_OCTETS - octets),
            _ => version_2(input),
        };
    }
    let seen = input.len().min(6);
    if input[..seen] != b"PROXY "[..seen] {
        return Parsed::Bad;
    }
    match input.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) if end + 2 <= V1_OCTETS_MAX => version_1(&input[..end], end + 2),
        Some(_) => Parsed::Bad,
        None if input.len() < V1_OCTETS_MAX => {
            Parsed::Incomplete(V1_OCTETS_MIN.saturating_sub(input.len()).max(1))
        }
        None => Parsed::Bad,
    }
}

fn version_1(line: &[u8], octets: usize) -> Parsed {
    let Ok(line) = std::str::from_utf8(line) else {
        return Parsed::Bad;
    };
    let mut words = line.split(' ').skip(1);
    let source = match words.next() {
        Some("UNKNOWN") => return Parsed::Header(octets, ProxiedClient::Unknown),
        Some("TCP4") => words
            .next()
            .and_then(|w| w.parse::<Ipv4Addr>().ok())
            .map(IpAddr::V4),
        Some("TCP6") => words
            .next()
            .and_then(|w| w.parse::<Ipv6Addr>().ok())
            .map(IpAddr::V6),
        _ => None,
    };
    // The relay does not use the destination address and the ports, but a header without them is malformed.
    match source {
        Some(address) if words.count() == 3 => Parsed::Header(octets, ProxiedClient::At(address)),
        _ => Parsed::Bad,
    }
}

fn version_2(input: &[u8]) -> Parsed {
    let Some(fixed) = input.get(12..V2_FIXED_OCTETS) else {
        return Parsed::Bad;
    };
    let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let octets = V2_FIXED_OCTETS + length;
    if fixed[0] >> 4 != 2 || octets > V2_OCTETS_MAX {
        return Parsed::Bad;
    }
    let Some(addresses) = input.get(V2_FIXED_OCTETS..octets) else {
        return Parsed::Incomplete(octets - input.len());
    };
    let client = match (fixed[0] & 0x0f, fixed[1]) {
        (0, _) => ProxiedClient::Proxy,
        (1, 0x11) => match addresses.first_chunk::<4>() {
            Some(octets) if length >= 12 => ProxiedClient::At(IpAddr::from(*octets)),
            _ => return Parsed::Bad,
        },
        (1, 0x21) => match addresses.first_chunk::<16>() {
            Some(octets) if length >= 36 => ProxiedClient::At(IpAddr::from(*octets)),
            _ => return Parsed::Bad,
        },
        (1, 0x00) => ProxiedClient::Unknown,
        _ => return Parsed::Bad,
    };
    Parsed::Header(octets, client)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = V2_SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(addresses.len()).expect("short").to_be_bytes());
        header.extend(addresses);
        header
    }

    /// Complete headers of both versions are parsed. A prefix of a header asks for at most the missing octets. Any other
    /// input is refused.
    #[test]
    fn headers_of_both_versions_are_parsed() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 1, 0, 0, 25];
        let at = |text: &str| ProxiedClient::At(text.parse().expect(text));
        let cases: Vec<(Vec<u8>, ProxiedClient)> = vec![
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 25\r\n".to_vec(),
                at("192.0.2.7"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 1234 25\r\n".to_vec(),
                at("2001:db8::7"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), ProxiedClient::Unknown),
            (v2(1, 0x00, &[]), ProxiedClient::Unknown),
            (v2(1, 0x11, &v4), at("192.0.2.7")),
            (v2(0, 0x00, &[]), ProxiedClient::Proxy),
            (v2(0, 0x11, &v4), ProxiedClient::Proxy),
        ];
        for (header, client) in cases {
            let mut input = header.clone();
            input.extend(b"EHLO x\r\n");
            assert_eq!(parse(&input), Parsed::Header(header.len(), client));
            for cut in 0..header.len() {
                match parse(&header[..cut]) {
                    Parsed::Incomplete(more) => assert!(more <= header.len() - cut, "cut at {cut}"),
                    other => panic!("cut at {cut}: {other:?}"),
                }
            }
        }
        for bad in [
            &b"EHLO x\r\n"[..],
            b"PROXY TCP4 1.2.3 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4\r\n",
            &v2(1, 0x11, &v4[..8]),
            &v2(1, 0x31, &v4),
            &[b'P'; 200],
        ] {
            assert_eq!(parse(bad), Parsed::Bad, "{bad:?}");
        }
    }
}
