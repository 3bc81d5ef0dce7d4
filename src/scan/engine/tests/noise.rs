//! Random answers: every parser accepts any octets, and returns a result.

use proptest::prelude::*;

use crate::scan::engine::{clamd, http, icap, milter, rspamd, spamd};
use crate::verdict::FindingKind;

/// A valid beginning, so that the noise reaches the inner parts of the parsers, and then random octets.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let beginnings = [
        "",
        "stream: ",
        "SPAMD/1.1 0 EX_OK\r\n",
        "SPAMD/1.1 0 EX_OK\r\nContent-length: 3\r\nSpam: True ; ",
        "ICAP/1.0 200 OK\r\nX-Violations-Found: ",
        "ICAP/1.0 200 OK\r\nEncapsulated: ",
        "HTTP/1.1 ",
        "{\"score\":1,\"action\":\"",
        "{\"verdict\":",
        "\0\0\0\x10h",
        "\0\0\0\x20m\0\0\0\x01",
        "\0\0\0\x11O\0\0\0\x06\0\0\0\0\0\0\0\0\0\0\0\x01",
    ];
    let rests = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[\\r\\n\\t0-9A-Za-z:;/=. -]{0,200}".prop_map(String::into_bytes),
    ];
    let ends = prop::sample::select(vec!["", "\r\n", "\r\n\r\n", "\"}", " FOUND\0"]);
    (prop::sample::select(beginnings.to_vec()), rests, ends)
        .prop_map(|(begin, rest, end)| [begin.as_bytes(), &rest, end.as_bytes()].concat())
}

proptest! {
    /// No answer may end a scan in a panic.
    #[test]
    fn any_octets_can_be_read(octets in noise()) {
        let reading = http::Reading {
            verdict_at: "/verdict".to_owned(),
            bad: vec!["1".to_owned()],
            clean: vec!["0".to_owned()],
            bad_kind: FindingKind::Malware,
            bad_score: 1.0,
            name_at: Some("/names".to_owned()),
            score_at: None,
            signatures_at: None,
            id_at: None,
        };
        let _ = clamd::parse(&octets);
        let _ = spamd::parse(&octets);
        let _ = rspamd::parse(&octets).map(|reply| reply.judged());
        let _ = http::read(&octets, &reading);
        let _ = icap::head(&octets).map(|head| head.findings());
        let _ = icap::options(&octets);
        let _ = icap::encapsulated_status(&octets);
        let _ = icap::chunk_size(&octets);
        if let Ok(Some(packet)) = milter::split(&octets) {
            let _ = milter::terms(packet.command, packet.data);
            let _ = milter::parse(packet.command, packet.data);
        }
    }
}
