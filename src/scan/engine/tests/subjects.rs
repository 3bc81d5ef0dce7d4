//! The kinds of engines in the table of faults: how a scripted server of each speaks when nothing is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use crate::scan::engine::{Address, HTTP, Kind, RspamdSettings, SpamdSettings, Tls, Url};

/// What is scanned.
pub(super) const MAIL: &[u8] = b"From: a@example.com\r\nMessage-ID: <1@example.com>\r\n\r\nx\r\n";

/// What a server says to what it has got so far.
pub(super) enum Step {
    /// Nothing yet.
    More,
    /// Something on the way to the answer.
    Aside(Vec<u8>),
    /// The answer: nothing is found.
    Last(Vec<u8>),
}

/// A kind of engine.
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) kind: fn(SocketAddr) -> Kind,
    /// The same over TLS, where it can.
    pub(super) tls: Option<fn(SocketAddr) -> Kind>,
    pub(super) step: fn(&[u8]) -> Step,
    /// Whether the server closes after an answer.
    pub(super) closes: bool,
    /// How an answer begins that could go on for ever.
    pub(super) endless: &'static [u8],
    /// An answer about another message, where an answer tells.
    pub(super) other: Option<&'static [u8]>,
}

pub(super) const ALL: [Subject; 3] = [
    Subject {
        name: "clamd",
        kind: |at| Kind::Clamd {
            addresses: vec![Address::Socket(at)],
            connect_timeout: CONNECT,
        },
        tls: None,
        step: clamd,
        closes: true,
        endless: b"stream: ",
        other: None,
    },
    Subject {
        name: "spamd",
        kind: |at| spamd_at(at, None),
        tls: Some(|at| spamd_at(at, Some(Tls::default()))),
        step: spamd,
        closes: true,
        endless: b"SPAMD/1.1 0 EX_OK\r\nContent-length: 5\r\nSpam: False ; 0.0 / 5.0\r\n\r\n",
        other: None,
    },
    Subject {
        name: "rspamd",
        kind: |at| rspamd_at("http", at),
        tls: Some(|at| rspamd_at("https", at)),
        step: rspamd,
        closes: false,
        endless: b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n{",
        other: Some(
            b"HTTP/1.1 200 OK\r\nContent-Length: 63\r\n\r\n\
              {\"score\":0.0,\"action\":\"no action\",\"message-id\":\"2@example.com\"}",
        ),
    },
];

const CONNECT: Duration = Duration::from_secs(60);

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
            connect_timeout: CONNECT,
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
            tls_ca: None,
            connect_timeout: CONNECT,
        },
    }
}

/// With an answer whose end only its length tells.
fn rspamd(request: &[u8]) -> Step {
    let body = r#"{"score":0.0,"action":"no action","message-id":"1@example.com"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    ends(request, MAIL, &answer)
}
