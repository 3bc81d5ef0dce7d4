use std::fmt::Write as _;

use super::*;

fn look(content: &str) -> Inspection {
    inspect(
        &Bytes::copy_from_slice(content.replace('\n', "\r\n").as_bytes()),
        Limits::default(),
    )
}

fn shape(inspection: &Inspection) -> Vec<(&str, &str)> {
    let parts = inspection.parts.iter();
    parts
        .map(|p| (p.path.as_str(), p.declared.as_str()))
        .collect()
}

const NESTED_MULTIPARTS: &str = "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
Content-Type: multipart/mixed; boundary=\"outer\"

preamble
--outer
Content-Type: multipart/alternative;
 boundary=\"outer-inner\"

--outer-inner

plain
--outer-inner
Content-Type: text/html
Content-Transfer-Encoding: quoted-printable

caf=C3=A9 =
soft
--outer-inner--
epilogue
--outer
Content-Type: application/pdf; name=other.pdf
Content-Disposition: attachment; filename*0*=utf-8''%E2%82%AC%20; filename*1=rates.pdf
Content-Transfer-Encoding: base64

JVBERi0xLjcK
--outer
Content-Type: message/rfc822

Subject: inner

inside
--outer--
";

/// Parts are in document order, with decoded bodies, names and subject. A longer boundary is not mistaken for a shorter one.
#[test]
fn structure_names_and_bodies_are_found() {
    let seen = look(NESTED_MULTIPARTS);
    assert_eq!(
        shape(&seen),
        [
            ("1", "multipart/mixed"),
            ("1.1", "multipart/alternative"),
            ("1.1.1", "text/plain"),
            ("1.1.2", "text/html"),
            ("1.2", "application/pdf"),
            ("1.3", "message/rfc822"),
            ("1.3.1", "text/plain"),
        ]
    );
    assert_eq!(seen.subject.as_deref(), Some("Grüße"));
    assert_eq!(&seen.parts[2].bytes[..], b"plain");
    assert_eq!(&seen.parts[3].bytes[..], "café soft".as_bytes());
    assert_eq!(seen.parts[4].names, ["€ rates.pdf", "other.pdf"]);
    assert!(seen.parts[4].is_attachment);
    assert_eq!(seen.parts[4].sniffed().media_type(), "application/pdf");
    assert_eq!(&seen.parts[6].bytes[..], b"inside");
    assert_eq!((seen.depth, seen.exceeded.len()), (2, 0));
}

/// A body that is not encoded is a slice of the content, not a copy, so that the memory stays within the charge.
#[test]
fn identity_bodies_are_not_copied() {
    let content = Bytes::from_static(b"Subject: x\r\n\r\nbody");
    let seen = inspect(&content, Limits::default());
    assert_eq!(
        seen.parts[0].bytes.as_ptr(),
        content.slice(14..).as_ptr(),
        "same memory"
    );
}

/// Malformed parts are read as mail readers read them: stray characters in base64, stray equals signs in quoted-printable, no
/// final delimiter, LF alone, encoded words in file names, parts after the closing delimiter.
#[test]
fn broken_encodings_are_read_as_mail_readers_do() {
    let seen = inspect(
        &Bytes::from_static(
            b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: base64\n\naGV*s\nbG8=\n\
            --b--\n--b\nContent-Transfer-Encoding: quoted-printable\n\
            Content-Disposition: attachment; filename=\"=?utf-8?B?YS5leGU=?=\"\n\na=b=ZZ=41",
        ),
        Limits::default(),
    );
    assert_eq!(&seen.parts[1].bytes[..], b"hello");
    assert_eq!(&seen.parts[2].bytes[..], b"a=b=ZZA");
    assert_eq!(seen.parts[2].names, ["a.exe"]);
}

/// A field is found with any white space before its colon (RFC 5322 4.5.8). A field that is too long to be read is reported,
/// because it may contain the boundary.
#[test]
fn the_form_of_a_field_cannot_hide_parts() {
    let mail = |before: usize, within: usize| {
        let (before, within) = (" ".repeat(before), " ".repeat(within));
        look(&format!(
            "Content-Type{before}: multipart/mixed;{within} boundary=b\n\n--b\n\nx\n--b--\n"
        ))
    };
    for before in [0, 60, 20_000] {
        let seen = mail(before, 0);
        let parts = seen.parts.iter().filter(|part| !part.is_container);
        let bodies: Vec<&[u8]> = parts.map(|part| &*part.bytes).collect();
        assert_eq!(bodies, [b"x"], "{before}");
        assert_eq!(seen.exceeded, []);
    }
    assert_eq!(mail(0, 20_000).exceeded, [Exceeded::HeaderSection]);
}

/// A part with two different types can be read in two ways, and is reported as ambiguous.
#[test]
fn contradicting_fields_are_ambiguous() {
    let twice = |second: &str| {
        look(&format!(
            "Content-Type: text/plain\nContent-Type: {second}\n\nx"
        ))
    };
    assert!(twice("multipart/mixed; boundary=b").parts[0].is_ambiguous);
    assert!(!twice("TEXT/plain").parts[0].is_ambiguous);
}

/// Work is linear in the content and parts are bounded, for any content (the module documentation has the measured reasons).
#[test]
fn bombs_cost_bounded_work() {
    let mut bombs: Vec<(&str, String, Option<Exceeded>)> = Vec::new();
    let mut text = String::new();
    for i in 0..10_000 {
        let _ = write!(
            text,
            "Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n"
        );
    }
    bombs.push(("nested multiparts", text, Some(Exceeded::Depth)));
    let head = "Content-Type: multipart/mixed; boundary=b\n\n";
    let text = format!("{head}{}", "--b\n\nx\n".repeat(100_000));
    bombs.push(("parts", text, Some(Exceeded::Parts)));
    let text = format!("{}\nx", "X-Field: y\n".repeat(100_000));
    bombs.push(("header fields", text, Some(Exceeded::HeaderSection)));
    let text = format!("Subject: x\n\n{}", "a".repeat(50_000_000));
    bombs.push(("one line", text, None));
    let text = format!("Subject: {}", "a".repeat(50_000_000));
    bombs.push(("one field", text, Some(Exceeded::HeaderSection)));
    let text = "Content-Type: message/rfc822\n\n".repeat(50_000);
    bombs.push(("nested messages", text, Some(Exceeded::Depth)));
    let open = "--b\nContent-Type: multipart/mixed; boundary=zz\n\nx\n".repeat(20_000);
    let text = format!("{head}{open}");
    bombs.push(("delimiters that never come", text, Some(Exceeded::Parts)));
    let params: String = (1..20_000).fold(String::new(), |mut all, i| {
        let _ = write!(all, ";\n a{i}*1=x");
        all
    });
    bombs.push((
        "parameters",
        format!("Content-Type: text/plain{params}\n\nx"),
        Some(Exceeded::HeaderSection),
    ));
    for (name, text, exceeded) in bombs {
        let content = Bytes::from(text);
        let limits = Limits::default();
        let seen = inspect(&content, limits);
        assert_eq!(seen.exceeded.first().copied(), exceeded, "{name}");
        assert!(seen.parts.len() <= limits.parts, "{name}");
        let most = content.len() as u64 * (limits.depth as u64 + 2);
        assert!(seen.work <= most, "{name}: {} > {most}", seen.work);
    }
}

/// Puts the content, in base64, into a message, `times` times over.
fn wrapped(mut content: String, times: usize) -> String {
    use base64::Engine as _;
    for _ in 0..times {
        content = format!(
            "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n{}",
            base64::engine::general_purpose::STANDARD.encode(content)
        );
    }
    content
}

/// Messages inside encodings are bounded like all others, although a count before decoding would not see them.
#[test]
fn encoded_messages_are_bounded() {
    let seen = look(&wrapped(
        "Content-Type: message/rfc822\n\n".repeat(5_000),
        3,
    ));
    assert_eq!(seen.exceeded, [Exceeded::Depth]);
    assert_eq!(seen.depth, Limits::default().depth);
}

/// Encodings inside encodings cannot grow beyond twice the content. A part that is therefore not decoded is reported, because
/// no engine can examine it.
#[test]
fn nested_encodings_are_bounded_and_reported() {
    let text = format!("Subject: x\n\n{}", "x".repeat(300_000));
    for (times, whole) in [(2, true), (8, false)] {
        let content = wrapped(text.clone(), times);
        let octets = content.len();
        let seen = look(&content);
        assert_eq!(seen.exceeded.contains(&Exceeded::Decoded), !whole);
        let decoded = seen.parts.iter().filter(|part| part.is_encoded);
        let decoded: usize = decoded.map(|part| part.bytes.len()).sum();
        assert!(
            decoded <= 2 * octets + INLINE_OCTETS_MAX,
            "{decoded} of {octets}"
        );
        let innermost = seen.parts.last().expect("a part");
        assert_eq!(innermost.bytes.starts_with(b"xxxx"), whole, "{times}");
    }
}

/// A header section has bounded fields and octets. Anything beyond is not read, and is reported.
#[test]
fn a_header_section_is_bounded_in_fields_and_octets() {
    let look = |limits: Limits| {
        let content = "X-A: a\r\nX-B: b\r\n folded\r\nSubject: s\r\n\r\nbody";
        let seen = inspect(&Bytes::from_static(content.as_bytes()), limits);
        (seen.subject, seen.exceeded)
    };
    let read = (Some("s".to_owned()), vec![]);
    let not_read = (None, vec![Exceeded::HeaderSection]);
    let fields = |header_fields| Limits {
        header_fields,
        ..Limits::default()
    };
    assert_eq!(look(fields(3)), read);
    assert_eq!(look(fields(2)), not_read);
    let octets = |header_octets| Limits {
        header_octets,
        ..Limits::default()
    };
    assert_eq!(look(octets(100)), read);
    assert_eq!(look(octets(20)), not_read);
}

/// A delimiter is a line of its own (RFC 2046 5.1.1). A delimiter at the end of a longer line would add parts that no reader
/// sees, and hide the part around it.
#[test]
fn a_delimiter_begins_its_line() {
    let seen = look(
        "Content-Type: multipart/mixed; boundary=b\n\nno --b\nno\n--b\n\none --b\n\nstill one --b--\nand this\n--b--\n",
    );
    assert_eq!(
        shape(&seen),
        [("1", "multipart/mixed"), ("1.1", "text/plain")]
    );
    assert_eq!(
        &seen.parts[1].bytes[..],
        b"one --b\r\n\r\nstill one --b--\r\nand this"
    );
}

/// Encrypted parts are reported in every form: S/MIME, PGP/MIME, and PGP in plain text, encoded or not. Signed parts can be
/// examined.
#[test]
fn encrypted_parts_are_reported() {
    let pgp = "-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n";
    let encoded =
        "Content-Transfer-Encoding: base64\n\nLS0tLS1CRUdJTiBQR1AgTUVTU0FHRS0tLS0tCgpoUUVNQQo=\n";
    for (content, expected) in [
        (format!("Subject: x\n\n{pgp}"), true),
        (encoded.to_owned(), true),
        (
            "Content-Type: application/pkcs7-mime; smime-type=enveloped-data\n\nx".to_owned(),
            true,
        ),
        (
            "Content-Type: multipart/encrypted; boundary=b\n\n--b\n\nx\n--b--\n".to_owned(),
            true,
        ),
        (
            "Content-Type: application/pkcs7-mime; smime-type=signed-data\n\nx".to_owned(),
            false,
        ),
        (
            "Subject: x\n\n-----BEGIN PGP SIGNED MESSAGE-----\n\nx\n".to_owned(),
            false,
        ),
        (format!("Subject: x\n\nHe wrote:\n> {pgp}"), false),
    ] {
        assert_eq!(look(&content).parts[0].is_encrypted, expected, "{content}");
    }
}

/// A part with two names is two attachments to policy, because readers differ in the name that they use, and the second one
/// may be that of a program. A part without a name is one attachment, unless it is text.
#[test]
fn each_name_of_a_part_is_an_attachment() {
    let names = |content: &str| -> Vec<Option<String>> {
        let facts = look(content);
        facts.attachments().map(|fact| fact.name).collect()
    };
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(
        names(NESTED_MULTIPARTS),
        [named("\u{20ac} rates.pdf"), named("other.pdf")]
    );
    assert_eq!(
        names("Content-Type: a/b; name=x.pdf\nContent-Disposition: inline; filename=x.pdf\n\nx"),
        [named("x.pdf")]
    );
    assert_eq!(names("Content-Type: a/b\n\nx"), [None]);
    assert_eq!(names("Content-Type: text/html\n\nx"), []);
}

/// All callers share one inspection.
#[tokio::test]
async fn inspection_is_made_once() {
    let content = Content::uncharged(vec![b'a'; INLINE_OCTETS_MAX + 1]);
    let shared = SharedInspection::new(Limits::default(), Arc::new(Semaphore::new(1)));
    let (a, b) = tokio::join!(shared.get(&content), shared.get(&content));
    assert!(Arc::ptr_eq(&a, &b));
}

proptest::proptest! {
    /// No content makes the inspection panic, or report more parts or octets than exist.
    #[test]
    fn no_content_makes_the_inspection_panic(pieces in proptest::collection::vec(0_usize..CONTENT_PIECES.len(), 0..60)) {
        let content: Vec<u8> = pieces.iter().flat_map(|piece| CONTENT_PIECES[*piece]).copied().collect();
        let content = Bytes::from(content);
        let limits = Limits { depth: 4, parts: 20, ..Limits::default() };
        let seen = inspect(&content, limits);
        proptest::prop_assert!(seen.parts.len() <= limits.parts && seen.depth <= limits.depth);
        proptest::prop_assert!(seen.parts.iter().all(|part| part.bytes.len() <= content.len()));
        let in_header = has_eight_bit_headers(&content, limits);
        proptest::prop_assert!(!in_header || !content.is_ascii());
    }
}

/// Pieces of content for random messages.
const CONTENT_PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"--b",
    b"--b\r\n",
    b"--b--\r\n",
    b"--",
    b"Content-Type: multipart/mixed; boundary=b\r\n",
    b"Content-Type: multipart/digest; boundary=\"b\"\r\n",
    b"Content-Type: message/rfc822\r\n",
    b"Content-Type: a/b; name*0*=utf-8''%e2%82; name*1=x; =; \"\r\n",
    b"Content-Type:\r\n ",
    b"Content-Disposition: attachment; filename=\"=?utf-8?b?/w==?=\"\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Content-Transfer-Encoding: quoted-printable\r\n",
    b"Subject: =?utf-8?q?=C3?= =?x?\r\n",
    b"aGVsbG8=",
    b"=",
    b"=4",
    b" \t",
    b"\0\xff\x80",
    b"x:",
];
