//! What each fuzz target does with any octets: it reads them with one parser of what comes from outside, and holds the
//! result to that parser's law. The targets in `fuzz_targets` call these functions, and `tests/it/fuzz.rs` calls them with
//! the kept corpus.

mod syntax;

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use spillway::deadline::Deadline;
use spillway::message::edit::{self, RequestedEdit, Rights};
use spillway::message::{header, mime};
use spillway::scan::engine::head::Malformed;
use spillway::scan::engine::{
    archive, auth, clamd, command, dns, http, icap, milter, rspamd, spamd,
};
use spillway::smtp::content::Decoder;
use spillway::smtp::reply_parser::{REPLY_LINE_OCTETS_MAX, REPLY_LINES_MAX, RawReply};
use spillway::verdict::{Answer, Finding, FindingKind};

pub use syntax::{parameters, path};

/// What a target does with its input; it panics where a law is broken.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 15] = [
    ("clamd", clamd),
    ("spamd", spamd),
    ("rspamd", rspamd),
    ("http", http),
    ("icap", icap),
    ("command", command),
    ("milter", milter),
    ("dns", dns),
    ("auth", auth),
    ("mime", mime),
    ("archive", archive),
    ("reply", reply),
    ("content", content),
    ("path", path),
    ("parameters", parameters),
];

/// An answer of clamd to INSTREAM.
pub fn clamd(octets: &[u8]) {
    match clamd::parse(octets) {
        Ok(clamd::ClamdAnswer::Ok) => assert_eq!(octets, b"stream: OK\0"),
        Ok(clamd::ClamdAnswer::Found(text) | clamd::ClamdAnswer::Failed(text)) => {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        Err(malformed) => is_short(&malformed),
    }
}

/// An answer of spamd to SYMBOLS.
pub fn spamd(octets: &[u8]) {
    match spamd::parse(octets) {
        Ok(spamd::SpamdAnswer::Judged {
            score,
            required,
            rules,
            ..
        }) => {
            assert!(score.is_finite() && required.is_finite());
            assert!(rules.len() <= 200);
        }
        Ok(spamd::SpamdAnswer::Failed(code, _)) => assert_ne!(code, 0),
        Err(malformed) => is_short(&malformed),
    }
}

/// An answer of rspamd to `/checkv2`.
pub fn rspamd(octets: &[u8]) {
    let Ok(reply) = rspamd::parse(octets) else {
        return;
    };
    match reply.judged() {
        // The whole score, the action, and the symbols that are shown.
        Answer::Answered(findings) => are_showable(&findings, 202),
        Answer::None { findings, .. } => are_showable(&findings, 1),
    }
}

/// An answer of a service in JSON, with everything read that can be read; and the field `Retry-After`.
pub fn http(octets: &[u8]) {
    let at = |pointer: &str| Some(pointer.to_owned());
    let reading = http::Reading {
        verdict_at: "/verdict".to_owned(),
        bad: vec!["bad".to_owned(), "1".to_owned(), "true".to_owned()],
        clean: vec!["clean".to_owned(), "0".to_owned()],
        bad_kind: FindingKind::Malware,
        bad_score: 10.0,
        name_at: at("/names"),
        score_at: None,
        signatures_at: at("/version/0"),
        id_at: None,
    };
    let scored = http::Reading {
        score_at: at("/score"),
        signatures_at: None,
        id_at: at("/id"),
        ..reading.clone()
    };
    for reading in [reading, scored] {
        if let Ok(said) = http::read(octets, &reading) {
            are_showable(&said.findings, 50);
        }
    }
    if let Ok(text) = std::str::from_utf8(octets) {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let _ = spillway::scan::engine::retry_after(text, now);
    }
}

/// Heads and lines of an ICAP service.
pub fn icap(octets: &[u8]) {
    match icap::head(octets) {
        Ok(head) => match head.findings() {
            Some(Answer::Answered(findings) | Answer::None { findings, .. }) => {
                assert!(!findings.is_empty());
                are_showable(&findings, 200);
            }
            None => {}
        },
        Err(malformed) => is_short(&malformed),
    }
    if let Ok(options) = icap::options(octets) {
        assert!(options.methods.len() <= 10);
        assert_ne!(options.max_connections, Some(0));
    }
    if let Ok(status) = icap::encapsulated_status(octets) {
        assert!(status < 1000);
    }
    // What can be read as a size is one, however it is written.
    if let (Ok(size), Ok(text)) = (icap::chunk_size(octets), std::str::from_utf8(octets)) {
        let digits = text.split(';').next().expect("a first one").trim();
        assert_eq!(u128::from_str_radix(digits, 16), Ok(size as u128));
    }
}

/// What a program prints.
pub fn command(octets: &[u8]) {
    static PATTERNS: LazyLock<[command::Lines; 3]> = LazyLock::new(|| {
        let patterns = [
            "^(?<name>.+) FOUND$",
            "(?<score>[-+0-9.eEinfa]+)",
            r"^(?<name>\w*)\s*:?(?<score>.*)$",
        ];
        patterns.map(|pattern| command::Lines::new(pattern).expect("a pattern"))
    });
    for lines in &*PATTERNS {
        if let Ok(judged) = command::read(octets, lines) {
            assert!(judged.names.len() <= 50);
            assert!(
                judged
                    .names
                    .iter()
                    .all(|name| !name.contains('\n') && name.len() < 20_000)
            );
            assert!(judged.score.is_none_or(f64::is_finite));
        }
    }
}

/// What a milter sends, one packet behind the other. Whatever it wants done to a header section, that stays one: no field of
/// it ends it, or begins another one that nobody was asked about.
pub fn milter(octets: &[u8]) {
    let (mut rest, mut wanted) = (octets, Vec::new());
    while let Ok(Some(packet)) = milter::split(rest) {
        assert_eq!(packet.octets, packet.data.len() + 5);
        rest = &rest[packet.octets..];
        match milter::terms(packet.command, packet.data) {
            Ok(terms) => {
                assert!((2..=6).contains(&terms.version));
                assert!(
                    terms
                        .macros
                        .iter()
                        .flatten()
                        .all(|names| names.len() <= 100)
                );
            }
            Err(malformed) => is_short(&malformed),
        }
        match milter::parse(packet.command, packet.data) {
            Ok(milter::MilterReply::Wants(edit)) => edit::want(&mut wanted, edit),
            Ok(milter::MilterReply::Reply(text)) => assert!(text.starts_with(['4', '5'])),
            Ok(_) => {}
            Err(malformed) => is_short(&malformed),
        }
    }
    let requested_edits = edit::grant(wanted, Rights::Fields, true);
    assert!(requested_edits.len() <= 65);
    let edits: Vec<_> = requested_edits
        .iter()
        .filter_map(RequestedEdit::granted)
        .cloned()
        .collect();
    let section = b"From: a@a.test\r\nSubject: a\r\n\tb\r\nFrom: b@b.test\r\n";
    let rewritten = edit::rewrite(section, &edits);
    let fields = |section| header::fields(section).count();
    let added = edits.iter().filter(|edit| match edit {
        edit::Edit::Add { .. } => true,
        // One of a name that is not there, or not so often, is added.
        edit::Edit::Change { .. } => true,
        edit::Edit::Remove { .. }
        | edit::Edit::RemoveSome { .. }
        | edit::Edit::RemoveResults { .. } => false,
    });
    let most = fields(section) + added.count();
    assert!(fields(&rewritten.top) + fields(&rewritten.section) <= most);
    for part in [&rewritten.top, &rewritten.section] {
        let text = std::str::from_utf8(part).expect("UTF-8");
        assert!(text.is_empty() || text.ends_with("\r\n"));
        for line in text.split_terminator("\r\n") {
            assert!(!line.is_empty() && line.len() <= 998, "{line:?}");
            assert!(
                !line.contains(|c: char| c.is_control() && c != '\t'),
                "{line:?}"
            );
        }
    }
}

/// A message whose URLs are looked for: what a list is asked about is a name, and there are not too many.
pub fn dns(octets: &[u8]) {
    let content = Bytes::copy_from_slice(octets);
    let seen = mime::inspect(&content, mime::Limits::default());
    let found = dns::in_text(&seen, 10);
    assert!(found.domains.len() <= 10 && found.domains.len() + found.left_out <= 1000);
    for domain in &found.domains {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        assert!(domain.len() <= 253 && domain.contains('.') && domain.bytes().all(allowed));
    }
}

/// A message whose signatures are read: no more than are verified, and none that covers more than honest ones do.
pub fn auth(octets: &[u8]) {
    if auth::too_much(header::section(octets)).is_some() {
        return;
    }
    if let Some((message, _)) = auth::read(octets, 5) {
        assert!(message.dkim_headers.len() <= 5 && message.errors.len() <= 5);
        assert!(message.dkim_headers.iter().all(|s| s.header.h.len() <= 200));
    }
}

/// A message: its structure is walked with work linear in its octets.
pub fn mime(octets: &[u8]) {
    let content = Bytes::copy_from_slice(octets);
    let limits = mime::Limits::default();
    let seen = mime::inspect(&content, limits);
    assert!(seen.parts.len() <= limits.parts && seen.depth <= limits.depth);
    // Each level once, and what is decoded on it: twice the content at most (`Exceeded::Decoded`).
    let most = (octets.len() as u64 + 1) * (limits.depth as u64 + 2) * 2
        + 2 * mime::INLINE_OCTETS_MAX as u64;
    assert!(seen.work <= most, "{} > {most}", seen.work);
    let _ = seen.attachments();
    assert!(!mime::has_eight_bit_headers(octets, limits) || !octets.is_ascii());
    for field in header::fields(header::section(octets)) {
        assert!(!field.unfolded().contains("\r\n"));
    }
}

/// A zip archive: no more is shown than its limits allow.
pub fn archive(octets: &[u8]) {
    let limits = archive::Limits {
        depth: 4,
        files: 100,
        ratio: 200,
        wanted: u64::MAX,
    };
    let (mut files, mut shown) = (0, 0);
    let mut visit = |member: &archive::Member<'_>| {
        files += 1;
        shown += member.bytes.len() as u64;
    };
    let deadline = Deadline::after(Duration::from_secs(3600));
    let mut walk = archive::Walk::new(limits, deadline, &mut visit);
    walk.archive("a.zip", octets);
    assert!(walk.troubles.len() <= 24);
    // The files of the last archive that was opened may be as many again.
    assert!(files <= 2 * limits.files, "{files} files");
    assert!(shown <= 320 << 20, "{shown} octets");
}

/// A reply of a next hop. One that is cut off is never taken for a whole one, as the rest would be the next reply.
pub fn reply(octets: &[u8]) {
    let Ok(Some(reply)) = RawReply::parse(octets) else {
        return;
    };
    let used = reply.used();
    assert!(used <= octets.len() && used <= (REPLY_LINE_OCTETS_MAX + 1) * REPLY_LINES_MAX);
    assert!((200..600).contains(&reply.code()));
    let kept = reply.to_remote().to_string();
    assert!(!kept.contains(char::is_control) && kept.len() < 1100);
    for cut in [used - 1, used / 2, 3] {
        assert_eq!(RawReply::parse(&octets[..cut.min(used - 1)]), Ok(None));
    }
}

/// Content as it comes over the wire: where the pieces end changes nothing, and only `<CRLF>.<CRLF>` ends it.
pub fn content(octets: &[u8]) {
    let Some((&first, wire)) = octets.split_first() else {
        return;
    };
    let (normalise, dots) = (first & 1 == 1, first & 2 == 0);
    let decoder = || match dots {
        true => Decoder::data(normalise),
        false => Decoder::chunks(normalise),
    };
    let decode = |pieces: &[&[u8]]| {
        let (mut decoder, mut out, mut used, mut ended) = (decoder(), Vec::new(), 0, false);
        for piece in pieces {
            let (here, end) = decoder.decode(piece, |octets| out.extend_from_slice(octets));
            used += here;
            ended = end;
            if ended {
                break;
            }
        }
        if !ended {
            decoder.finish(|octets| out.extend_from_slice(octets));
        }
        (out, used, ended, decoder.saw_bare_line_end())
    };
    let whole = decode(&[wire]);
    let (a, b) = wire.split_at((first as usize / 4).min(wire.len()));
    assert_eq!(whole, decode(&[a, b]));
    assert_eq!(whole, decode(&wire.chunks(1).collect::<Vec<_>>()));
    let (out, used, ended, bare) = whole;
    assert!(used <= wire.len() && (ended || used == wire.len()));
    if ended {
        let taken = &wire[..used];
        assert!(dots && (taken == b".\r\n" || taken.ends_with(b"\r\n.\r\n")));
    }
    if normalise || !bare {
        let text = out.iter().enumerate();
        for (at, octet) in text {
            assert!(*octet != b'\n' || (at > 0 && out[at - 1] == b'\r'));
            assert!(*octet != b'\r' || out.get(at + 1).is_none_or(|next| *next == b'\n'));
        }
    }
}

/// What goes into logs and reports has an end and no control characters.
fn is_short(malformed: &Malformed) {
    if let Malformed::Garbage(text) = malformed {
        let control = text.contains(char::is_control);
        assert!(text.chars().count() <= 200 && !control, "{text:?}");
    }
}

fn are_showable(findings: &[Finding], most: usize) {
    assert!(findings.len() <= most, "{} findings", findings.len());
    for finding in findings {
        assert!(finding.name.len() <= 200 && !finding.name.contains(char::is_control));
        assert!(finding.score.is_finite(), "{finding:?}");
    }
}
