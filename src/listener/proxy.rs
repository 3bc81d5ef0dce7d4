//! The PROXY protocol, versions 1 and 2, from peers that are configured to begin with it.
//!
//! Source: "The PROXY protocol Versions 1 & 2", haproxy.org, sections 2.1 and 2.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// So many octets more are needed at least. Nothing beyond them may be read: what follows the header belongs to
    /// the session, or to its TLS handshake.
    Incomplete(usize),
    /// A header of so many octets; the address is `None` for LOCAL and UNKNOWN (the balancer's own checks).
    Header(usize, Option<IpAddr>),
    /// Not a header, or one that says nothing usable.
    Bad,
}

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Shortest and longest version 1 line, CRLF included: `PROXY UNKNOWN` and two IPv6 addresses.
const V1_MIN: usize = 15;
const V1_MAX: usize = 107;
/// Version 2 up to its length, which is one octet more than the shortest version 1.
const V2_FIXED: usize = 16;
/// Longest version 2 header we read: addresses and a bounded set of TLVs.
const V2_MAX: usize = V2_FIXED + 2048;

/// Looks at the first octets of a session.
pub fn parse(input: &[u8]) -> Parsed {
    let seen = input.len().min(V2.len());
    if input[..seen] == V2[..seen] {
        return match input.len() {
            0 => Parsed::Incomplete(V1_MIN),
            octets if octets < V2_FIXED => Parsed::Incomplete(V2_FIXED - octets),
            _ => version_2(input),
        };
    }
    let seen = input.len().min(6);
    if input[..seen] != b"PROXY "[..seen] {
        return Parsed::Bad;
    }
    match input.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) if end + 2 <= V1_MAX => version_1(&input[..end], end + 2),
        Some(_) => Parsed::Bad,
        None if input.len() < V1_MAX => {
            Parsed::Incomplete(V1_MIN.saturating_sub(input.len()).max(1))
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
        Some("UNKNOWN") => return Parsed::Header(octets, None),
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
    // Destination address and both ports are of no use to us, but a header without them is malformed.
    match source {
        Some(address) if words.count() == 3 => Parsed::Header(octets, Some(address)),
        _ => Parsed::Bad,
    }
}

fn version_2(input: &[u8]) -> Parsed {
    let Some(fixed) = input.get(12..V2_FIXED) else {
        return Parsed::Bad;
    };
    let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let octets = V2_FIXED + length;
    if fixed[0] >> 4 != 2 || octets > V2_MAX {
        return Parsed::Bad;
    }
    let Some(addresses) = input.get(V2_FIXED..octets) else {
        return Parsed::Incomplete(octets - input.len());
    };
    let source = match (fixed[0] & 0x0f, fixed[1]) {
        (0, _) => None,
        (1, 0x11) => match addresses.first_chunk::<4>() {
            Some(octets) if length >= 12 => Some(IpAddr::from(*octets)),
            _ => return Parsed::Bad,
        },
        (1, 0x21) => match addresses.first_chunk::<16>() {
            Some(octets) if length >= 36 => Some(IpAddr::from(*octets)),
            _ => return Parsed::Bad,
        },
        (1, 0x00) => None,
        _ => return Parsed::Bad,
    };
    Parsed::Header(octets, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = V2.to_vec();
        header.extend([0x20 | command, family]);
        header.extend(u16::try_from(addresses.len()).expect("short").to_be_bytes());
        header.extend(addresses);
        header
    }

    /// Complete headers are read whole, every prefix of them waits for what is left of them at most, and everything else
    /// is refused.
    #[test]
    fn both_versions() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 1, 0, 0, 25];
        let cases: Vec<(Vec<u8>, Option<IpAddr>)> = vec![
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 1234 25\r\n".to_vec(),
                Some([192, 0, 2, 7].into()),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 1234 25\r\n".to_vec(),
                "2001:db8::7".parse().ok(),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (v2(1, 0x11, &v4), Some([192, 0, 2, 7].into())),
            (v2(0, 0x00, &[]), None),
        ];
        for (header, address) in cases {
            let mut input = header.clone();
            input.extend(b"EHLO x\r\n");
            assert_eq!(parse(&input), Parsed::Header(header.len(), address));
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
