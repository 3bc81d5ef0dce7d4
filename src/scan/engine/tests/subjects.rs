//! The kinds of engines in the table of faults: the answers of a scripted server of each kind without a fault.

use std::net::SocketAddr;
use std::time::Duration;

use crate::scan::engine::{
    Address, HTTP, HttpSettings, ICAP, IcapSettings, Kind, Method, MilterSettings, Posted,
    ProbeWith, Reading, RspamdSettings, SpamdSettings, TempFail, Tls, Url, milter,
};
use crate::verdict::FindingKind;

/// The message that is scanned.
pub(super) const MAIL: &[u8] = b"From: a@example.com\r\nMessage-ID: <1@example.com>\r\n\r\nx\r\n";

/// Step of a server after the octets that it has got so far.
pub(super) enum Step {
    /// Wait for more octets.
    More,
    /// Send an intermediate answer.
    Aside(Vec<u8>),
    /// Send the final answer, without findings.
    Last(Vec<u8>),
}

/// A kind of engine.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) kind: fn(SocketAddr) -> Kind,
    /// The same over TLS, if the kind has TLS.
    pub(super) tls: Option<fn(SocketAddr) -> Kind>,
    pub(super) step: fn(&[u8]) -> Step,
    /// Whether the server closes after an answer.
    pub(super) closes: bool,
    /// End of a request, for kinds that detect a clean answer before this end.
    pub(super) end: Option<&'static [u8]>,
    /// Beginning of an answer that could go on forever.
    pub(super) endless: &'static [u8],
    /// An answer about another message, for kinds whose answers name the message.
    pub(super) other: Option<&'static [u8]>,
}

pub(super) const ALL: [Subject; 6] = [
    Subject {
        name: "clamd",
        kind: |at| Kind::Clamd {
            addresses: vec![Address::Socket(at)],
            connect_timeout: CONNECT_TIMEOUT,
        },
        tls: None,
        step: clamd,
        closes: true,
        end: Some(b"\0\0\0\0"),
        endless: b"stream: ",
        other: None,
    },
    Subject {
        name: "spamd",
        kind: |at| spamd_at(at, None),
        tls: Some(|at| spamd_at(at, Some(Tls::default()))),
        step: spamd,
        closes: true,
        end: Some(MAIL),
        endless: b"SPAMD/1.1 0 EX_OK\r\nContent-length: 5\r\nSpam: False ; 0.0 / 5.0\r\n\r\n",
        other: None,
    },
    Subject {
        name: "rspamd",
        kind: |at| rspamd_at("http", at),
        tls: Some(|at| rspamd_at("https", at)),
        step: rspamd,
        closes: false,
        end: None,
        endless: b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n{",
        other: Some(
            b"HTTP/1.1 200 OK\r\nContent-Length: 63\r\n\r\n\
              {\"score\":0.0,\"action\":\"no action\",\"message-id\":\"2@example.com\"}",
        ),
    },
    Subject {
        name: "http",
        kind: |at| http_at("http", at),
        tls: Some(|at| http_at("https", at)),
        step: http,
        closes: false,
        end: None,
        endless: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3b9aca00\r\n{",
        other: Some(
            b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n{\"verdict\":\"clean\",\"id\":\"other\"}",
        ),
    },
    Subject {
        name: "icap",
        kind: |at| icap_at("icap", at),
        tls: Some(|at| icap_at("icaps", at)),
        step: icap,
        closes: false,
        end: None,
        endless: b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\n\
                   HTTP/1.1 200 OK\r\n\r\n3b9aca00\r\n",
        other: None,
    },
    Subject {
        name: "milter",
        kind: milter_at,
        tls: None,
        step: filter,
        closes: false,
        end: None,
        endless: b"\0\0\0\x01p\x3b\x9a\xca\0h",
        other: None,
    },
];

/// Longer than any connection of a test takes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

fn ends(request: &[u8], with: &[u8], answer: &str) -> Step {
    match request.ends_with(with) {
        true => Step::Last(answer.into()),
        false => Step::More,
    }
}

fn clamd(request: &[u8]) -> Step {
    match request {
        b"zVERSION\0" => Step::Aside(b"ClamAV 1.4.3\0".to_vec()),
        _ => ends(request, b"\0\0\0\0", "stream: OK\0"),
    }
}

fn spamd_at(at: SocketAddr, tls: Option<Tls>) -> Kind {
    Kind::Spamd {
        addresses: vec![Address::Socket(at)],
        settings: SpamdSettings {
            user: None,
            tls,
            connect_timeout: CONNECT_TIMEOUT,
        },
    }
}

fn spamd(request: &[u8]) -> Step {
    let answer =
        "SPAMD/1.1 0 EX_OK\r\nContent-length: 12\r\nSpam: False ; 0.1 / 5.0\r\n\r\nNO_RELAYS,A\n";
    ends(request, MAIL, answer)
}

fn url(scheme: &str, at: SocketAddr) -> Url {
    Url::parse(&format!("{scheme}://{at}/"), &HTTP).expect("a URL")
}

fn rspamd_at(scheme: &str, at: SocketAddr) -> Kind {
    Kind::Rspamd {
        addresses: vec![url(scheme, at)],
        settings: RspamdSettings {
            hostname: "relay.test".to_owned(),
            tls_ca: None,
            key: None,
            connect_timeout: CONNECT_TIMEOUT,
        },
    }
}

/// Only the Content-Length marks the end of this answer.
fn rspamd(request: &[u8]) -> Step {
    let body = r#"{"score":0.0,"action":"no action","message-id":"1@example.com"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    ends(request, MAIL, &answer)
}

fn http_at(scheme: &str, at: SocketAddr) -> Kind {
    Kind::Http {
        addresses: vec![url(scheme, at)],
        settings: HttpSettings {
            hostname: "relay.test".to_owned(),
            send: Posted::Message,
            token_file: None,
            tls_ca: None,
            connect_timeout: CONNECT_TIMEOUT,
            reading: Reading {
                verdict_at: "/verdict".to_owned(),
                bad: vec!["bad".to_owned()],
                clean: vec!["clean".to_owned()],
                bad_kind: FindingKind::Malware,
                bad_score: 10.0,
                name_at: None,
                score_at: None,
                signatures_at: None,
                id_at: Some("/id".to_owned()),
            },
            probe_with: ProbeWith::Nothing,
        },
    }
}

/// The answer is chunked, and has the id of the message.
fn http(request: &[u8]) -> Step {
    let text = String::from_utf8_lossy(request);
    let id = text
        .split("x-spillway-queue-id: ")
        .nth(1)
        .unwrap_or_default();
    let id = id.split("\r\n").next().unwrap_or_default();
    let body = format!(r#"{{"verdict":"clean","id":"{id}"}}"#);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    ends(request, MAIL, &answer)
}

fn icap_at(scheme: &str, at: SocketAddr) -> Kind {
    Kind::Icap {
        addresses: vec![Url::parse(&format!("{scheme}://{at}/scan"), &ICAP).expect("a URL")],
        settings: IcapSettings {
            method: Method::Respmod,
            tls_ca: None,
            connect_timeout: CONNECT_TIMEOUT,
        },
    }
}

/// The service asks for a preview, and then for the rest.
fn icap(request: &[u8]) -> Step {
    let options = "ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nPreview: 4\r\nISTag: \"1\"\r\n\
                   Encapsulated: null-body=0\r\n\r\n";
    if request.starts_with(b"OPTIONS") {
        return match request.ends_with(b"\r\n\r\n") {
            true => Step::Aside(options.into()),
            false => Step::More,
        };
    }
    let ended = request.ends_with(b"\r\n0\r\n\r\n");
    match (ended, request.starts_with(b"RESPMOD")) {
        (false, _) => Step::More,
        (true, true) => Step::Aside(b"ICAP/1.0 100 Continue\r\n\r\n".to_vec()),
        (true, false) => Step::Last(b"ICAP/1.0 204 No Content\r\nISTag: \"1\"\r\n\r\n".to_vec()),
    }
}

fn milter_at(at: SocketAddr) -> Kind {
    Kind::Milter {
        addresses: vec![Address::Socket(at)],
        settings: MilterSettings {
            hostname: "relay.test".to_owned(),
            bad_kind: FindingKind::Policy,
            bad_score: 10.0,
            tempfail: TempFail::NoAnswer,
            probe_with: ProbeWith::Nothing,
            connect_timeout: CONNECT_TIMEOUT,
        },
    }
}

/// The filter answers the offer of terms, and after that only the end of the message.
fn filter(request: &[u8]) -> Step {
    let (mut rest, mut last) = (request, None);
    while let Ok(Some(packet)) = milter::split(rest) {
        (last, rest) = (Some(packet.command), &rest[packet.octets..]);
    }
    match last {
        // Version 6, no actions, no replies to any event but the last.
        Some(b'O') => Step::Aside(b"\0\0\0\x0dO\0\0\0\x06\0\0\0\0\0\x0f\xf0\x80".to_vec()),
        Some(b'E') => Step::Last(b"\0\0\0\x01c".to_vec()),
        _ => Step::More,
    }
}
