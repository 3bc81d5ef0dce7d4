use memchr::memmem;
use proptest::prelude::*;
use proptest::sample::Index;

use super::frame::{LINE_OCTETS_MAX, lines};
use super::*;
use crate::delivery::Outcome;
use crate::message::{Mailbox, Notify, Ret};
use crate::smtp::RemoteReply;
use crate::smtp::dot_stuff::has_bare_line_end;
use crate::store::Extent;

const BOUNCE_ID: &str = "01JZZZZZZZZZZZZZZZZZZZZZZZ";

fn recipient(text: &str) -> Recipient {
    Mailbox::parse(text).expect("mailbox").into()
}

fn envelope(from: Option<&str>) -> Envelope {
    Envelope {
        reverse_path: from.map_or(ReversePath::NULL, |from| {
            Mailbox::parse(from).expect("mailbox").into()
        }),
        recipients: vec![recipient("b@example.org")],
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin::local("test"),
    }
}

fn answer(code: u16, enhanced: Option<(u16, u16, u16)>, text: &str) -> Answer {
    let reply = RemoteReply {
        code,
        enhanced,
        text: text.to_owned(),
    };
    Answer {
        server: Some(([192, 0, 2, 1], 25).into()),
        text: format!("RCPT: {reply}"),
        reply: Some(reply),
        ..Answer::of(&"hop".into())
    }
}

fn report(
    action: Action,
    envelope: &Envelope,
    content: &[u8],
    recipients: &[(Recipient, Answer)],
) -> Option<(Envelope, Vec<u8>)> {
    let original = Original {
        reporting_mta: "relay.example.com",
        id: "01J00000000000000000000000".parse().expect("id"),
        envelope,
        arrived: "2026-11-20T10:00:00Z".parse().expect("time"),
        content,
    };
    let now = "2026-11-21T10:00:00Z".parse().expect("time");
    let (envelope, content) =
        original.report(action, recipients, BOUNCE_ID.parse().expect("id"), now)?;
    Some((envelope, content.to_vec()))
}

const CONTENT: &[u8] =
    b"From: a@example.com\r\nMessage-ID: <1@example.com>\r\nSubject: hi\r\n\r\nbody\r\n";

/// The complete notification in the form of RFC 3464.
#[test]
fn a_failure_notification_has_the_expected_text() {
    let mut message = envelope(Some("a@example.com"));
    message.envid = Some("batch 7".to_owned());
    let mut asked = recipient("b@example.org");
    asked.orcpt = Some("rfc822;bob@example.org".to_owned());
    let said = "no such user here, and if you do not believe it ask the postmaster of example.org";
    let failed = [
        (asked, answer(550, Some((5, 1, 1)), said)),
        (
            recipient("c@example.net"),
            Answer {
                text: "5.4.4 no next hop takes this domain".to_owned(),
                ..Answer::of(&"".into())
            },
        ),
    ];
    let (envelope, content) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
    assert!(envelope.reverse_path.is_null());
    assert_eq!(envelope.recipients, [recipient("a@example.com")]);
    let golden = include_str!("failure.golden").replace('\n', "\r\n");
    assert_eq!(String::from_utf8(content).expect("ASCII"), golden);
}

/// RFC 3461 6.3: what the sender gave comes back letter by letter, whatever the type of the address, its length and its spaces; and
/// an address with quotes, brackets and spaces stays one address.
#[test]
fn what_the_sender_gave_comes_back_unchanged() {
    let mut message = envelope(Some("\"a <b>, c\"@example.com"));
    message.envid = Some("two  spaces".to_owned());
    let long = format!("x400;/PN={}/O=two  spaces/", "x".repeat(477));
    let mut asked = recipient("\"<>, ;  @\"@[192.0.2.1]");
    asked.orcpt = Some(long.clone());
    let failed = [(asked, answer(550, Some((5, 1, 1)), "no"))];
    let (envelope, content) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
    assert_eq!(envelope.recipients, [recipient("\"a <b>, c\"@example.com")]);
    let text = String::from_utf8(content).expect("ASCII");
    for line in [
        "To: <\"a <b>, c\"@example.com>",
        "Original-Envelope-Id: two  spaces",
        &format!("Original-Recipient: {long}"),
        "Final-Recipient: rfc822; \"<>, ;  @\"@[192.0.2.1]",
    ] {
        assert!(text.contains(&format!("\r\n{line}\r\n")), "{line}: {text}");
    }
}

/// A message with the null reverse-path gets no notification; otherwise bounces of bounces would never end (RFC 5321
/// 4.5.5).
#[test]
fn the_null_reverse_path_is_never_answered() {
    let failed = [(recipient("b@example.org"), answer(550, None, "no"))];
    assert_eq!(
        report(Action::Failed, &envelope(None), CONTENT, &failed),
        None
    );
}

/// The sender receives the notifications that it asked for, for each recipient, and no others.
#[test]
fn notify_is_respected() {
    let wanting = |success, failure, delay| {
        let mut recipient = recipient("b@example.org");
        recipient.notify = Some(Notify {
            success,
            failure,
            delay,
        });
        recipient
    };
    let message = envelope(Some("a@example.com"));
    for (action, recipient, told) in [
        (Action::Failed, recipient("b@example.org"), true),
        (Action::Failed, wanting(false, true, false), true),
        (Action::Failed, wanting(true, false, true), false),
        (Action::Failed, wanting(false, false, false), false),
        (Action::Relayed, recipient("b@example.org"), false),
        (Action::Relayed, wanting(true, false, false), true),
        (Action::Delivered, wanting(false, true, true), false),
        (Action::Delayed, recipient("b@example.org"), false),
        (Action::Delayed, wanting(false, false, true), true),
    ] {
        let list = [(recipient.clone(), answer(250, None, "ok"))];
        let got = report(action, &message, CONTENT, &list);
        assert_eq!(got.is_some(), told, "{action:?} {:?}", recipient.notify);
    }
    let mixed = [
        (wanting(false, false, false), answer(550, None, "never")),
        (recipient("c@example.org"), answer(550, None, "told")),
    ];
    let (_, content) = report(Action::Failed, &message, CONTENT, &mixed).expect("report");
    let content = String::from_utf8(content).expect("ASCII");
    assert!(content.contains("c@example.org") && !content.contains("b@example.org"));
}

/// A message that was refused for its form, or a large message, returns only its header section, and the whole bounce
/// is ASCII: the complete message would be refused again. RET and other reasons do not change that.
#[test]
fn a_message_refused_for_its_form_is_not_returned_whole() {
    let size = || answer(552, Some((5, 3, 4)), "too b\u{ef}g");
    let eight_bit = || Answer {
        text: "5.6.3 no 8BITMIME".to_owned(),
        ..Answer::of(&"hop".into())
    };
    let other = || answer(550, Some((5, 1, 1)), "who");
    let content = "From: a@example.com\r\nSubject: h\u{e4}\r\n\r\nb\u{f6}dy\r\n".as_bytes();
    let large = [CONTENT, &b"0123456789abcde\r\n".repeat(3000)].concat();
    let small = [CONTENT, &b"0123456789abcde\r\n".repeat(2900)].concat();
    assert!(large.len() > MAX_RETURNED_OCTETS && small.len() < MAX_RETURNED_OCTETS);
    for (said, smtputf8, content, brief) in [
        (size(), false, content, true),
        (size(), true, content, true),
        (eight_bit(), false, content, true),
        (eight_bit(), true, content, true),
        (other(), false, content, false),
        (other(), true, content, false),
        (other(), true, &large[..], true),
        (other(), false, &small[..], false),
    ] {
        let case = format!("{said:?} {smtputf8}");
        let mut message = envelope(Some("a@example.com"));
        message.smtputf8 = smtputf8;
        message.ret = Some(Ret::Full);
        let to = recipient(match smtputf8 {
            true => "\u{f6}+x@example.org",
            false => "b@example.org",
        });
        let (envelope, report) =
            report(Action::Failed, &message, content, &[(to, said)]).expect("report");
        let has = |text: &str| memmem::find(&report, text.as_bytes()).is_some();
        assert!(has("\r\nSubject: h"), "{case}");
        assert_eq!(has("dy\r\n") || has("0123456789abcde"), !brief, "{case}");
        if brief {
            assert!(report.is_ascii(), "{case}");
            assert_eq!(
                (envelope.body, envelope.smtputf8),
                (BodyKind::SevenBit, false)
            );
            assert!(has("Content-Type: text/rfc822-headers\r\n"), "{case}");
            let to = match smtputf8 {
                true => "Final-Recipient: utf-8; \\x{F6}\\x{2B}x@example.org\r\n",
                false => "Final-Recipient: rfc822; b@example.org\r\n",
            };
            assert!(has(to), "{case}");
        }
    }
}

/// The id of the notifications in these tests.
fn id() -> MessageId {
    BOUNCE_ID.parse().expect("id")
}

fn less(written: &[u8], extent: Extent) -> Vec<u8> {
    reduced(&Bytes::copy_from_slice(written), id(), extent).to_vec()
}

/// A bounce whose form was refused is reduced: first to the header section, then to no part of the message.
#[test]
fn a_reduced_bounce_says_the_same_about_the_recipients() {
    let failed = [(
        recipient("b@example.org"),
        answer(550, Some((5, 1, 1)), "who"),
    )];
    let message = envelope(Some("a@example.com"));
    let (_, whole) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
    assert_eq!(less(&whole, Extent::Whole), whole);
    let begin = memmem::find(&whole, b"Content-Type: message/rfc822").expect("the message");
    let end = format!("\r\n--=_{BOUNCE_ID}--\r\n");
    let fields = "From: a@example.com\r\nMessage-ID: <1@example.com>\r\nSubject: hi\r\n";
    let headers = format!("Content-Type: text/rfc822-headers\r\n\r\n{fields}{end}");
    let expected = [&whole[..begin], headers.as_bytes()].concat();
    assert_eq!(less(&whole, Extent::Headers), expected);
    let delimiter = format!("\r\n--=_{BOUNCE_ID}\r\n");
    let bare = [&whole[..begin - delimiter.len()], end.as_bytes()].concat();
    assert_eq!(less(&whole, Extent::Bare), bare);
    assert_eq!(less(&expected, Extent::Headers), expected, "nothing less");
}

/// A bounce in UTF-8 becomes ASCII and keeps the recipient readable. A bounce to a mailbox outside ASCII stays UTF-8,
/// because ASCII cannot address that mailbox.
#[test]
fn a_reduced_bounce_is_ascii_where_its_sender_is() {
    let failed = [(
        recipient("\u{f6}@example.org"),
        answer(550, None, "n\u{f6}"),
    )];
    let mut message = envelope(Some("a@example.com"));
    message.smtputf8 = true;
    let (_, whole) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
    assert!(!whole.is_ascii());
    let bare = String::from_utf8(less(&whole, Extent::Bare)).expect("UTF-8");
    assert!(bare.is_ascii(), "{bare}");
    for line in [
        "Content-Type: text/plain; charset=us-ascii",
        "Content-Type: message/delivery-status",
        "Final-Recipient: utf-8; \\x{F6}@example.org",
        "Diagnostic-Code: smtp; 550 n?",
    ] {
        assert!(bare.contains(&format!("\r\n{line}\r\n")), "{line}: {bare}");
    }
    message.reverse_path = Mailbox::parse("\u{e4}@example.com")
        .expect("mailbox")
        .into();
    let (_, whole) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
    let bare = String::from_utf8(less(&whole, Extent::Bare)).expect("UTF-8");
    assert!(
        bare.contains("To: <\u{e4}@example.com>") && bare.contains("utf-8; \u{f6}@example.org")
    );
    assert!(!bare.contains("Subject: hi"));
}

proptest! {
    /// For any message, recipients and reply text: a reduced notification is smaller, or ASCII where the original was
    /// not; it is well-formed, contains the same machine-readable status, and contains nothing of the removed parts.
    #[test]
    fn reducing_leaves_a_notification(
        section in "(X: [ -~\u{e4}\u{20ac}]{0,90}\r\n){0,5}",
        content in "[\\PC\r\n=_-]{0,200}",
        words in "\\PC{0,80}",
        local in "[a-z\u{e4}\u{1f600}+=]{1,12}",
        (smtputf8, hdrs, unicode) in any::<(bool, bool, bool)>(),
    ) {
        let mut message = envelope(Some(if unicode { "\u{e4}@example.com" } else { "a@example.com" }));
        message.smtputf8 = smtputf8;
        message.ret = hdrs.then_some(Ret::Headers);
        message.envid = Some(words.clone());
        let content = format!("{section}Subject: hi\r\n\r\nUNIQUE {content}\r\n--=_{BOUNCE_ID}");
        let content = content.replace(BOUNCE_ID, "01JYYYYYYYYYYYYYYYYYYYYYYY");
        let to = recipient(&format!("{local}@example.org"));
        let failed = [(to, answer(550, Some((5, 1, 1)), &words))];
        let (_, whole) = report(Action::Failed, &message, content.as_bytes(), &failed).expect("report");
        let headers = less(&whole, Extent::Headers);
        let bare = less(&whole, Extent::Bare);
        prop_assert_eq!(less(&headers, Extent::Bare), bare.clone());
        for (reduced, parts) in [(&headers, 4), (&bare, 3)] {
            prop_assert!(unicode || reduced.is_ascii());
            prop_assert!(!has_bare_line_end(reduced));
            prop_assert!(lines(reduced).all(|line| line.len() <= LINE_OCTETS_MAX));
            prop_assert!(memmem::find(reduced, b"UNIQUE").is_none());
            let parsed = mail_parser::MessageParser::default().parse(reduced).expect("a message");
            prop_assert_eq!(parsed.parts.len(), parts);
            let text = String::from_utf8_lossy(reduced);
            prop_assert!(text.contains("\r\nAction: failed\r\nStatus: 5.1.1\r\n"));
            prop_assert!(text.contains("\r\nFinal-Recipient: "));
        }
        prop_assert!(memmem::find(&bare, b"Subject: hi").is_none());
    }

    /// Content that this module did not write under this id stays unchanged.
    #[test]
    fn foreign_content_is_not_changed(octets in any::<Vec<u8>>(), cut in any::<Index>()) {
        let failed = [(recipient("b@example.org"), answer(550, None, "no"))];
        let message = envelope(Some("a@example.com"));
        let (_, whole) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
        let other = Bytes::from(whole.clone());
        prop_assert_eq!(reduced(&other, MessageId::new(), Extent::Bare), other);
        prop_assert_eq!(less(&octets, Extent::Bare), octets);
        let part = &whole[..cut.index(whole.len())];
        prop_assert_eq!(less(part, Extent::Headers), part);
    }
}

/// RET=HDRS returns the header section. So does a large message, and a message that cannot be a MIME part.
#[test]
fn returned_content_is_bounded() {
    let failed = [(recipient("b@example.org"), answer(550, None, "no"))];
    let mut headers_only = envelope(Some("a@example.com"));
    headers_only.ret = Some(Ret::Headers);
    let mut full = envelope(Some("a@example.com"));
    full.ret = Some(Ret::Full);
    let large = [CONTENT, &b"0123456789abcde\r\n".repeat(1 << 16)].concat();
    let long = [CONTENT, &[b'x'; 1000], b"\r\n"].concat();
    for (message, content, whole) in [
        (&full, CONTENT, true),
        (&headers_only, CONTENT, false),
        (&full, &large[..], false),
        (&full, &long[..], false),
        (&full, b"Subject: x\r\n\r\na\nb\r\n", false),
    ] {
        let (_, report) = report(Action::Failed, message, content, &failed).expect("report");
        let text = String::from_utf8(report).expect("ASCII");
        assert_eq!(
            text.contains("Content-Type: message/rfc822"),
            whole,
            "{text:.2000}"
        );
        assert_eq!(text.contains("Content-Type: text/rfc822-headers"), !whole);
        assert!(text.contains("Subject:"));
    }
}

/// With any untrusted text, a notification has CRLF line ends, lines within the limit, and no injected header field.
#[test]
fn hostile_text_stays_in_its_line() {
    let mut message = envelope(Some("a@example.com"));
    message.envid = Some("x\r\nBcc: y".to_owned());
    let mut asked = recipient("b@example.org");
    asked.orcpt = Some("rfc822;\r\n\r\n--=_ä".to_owned());
    let said = format!("{} \x1b[2J ä", "w".repeat(990));
    let failed = [(asked, answer(550, None, &said))];
    let header = format!("Subject: {}\r\nX: \x01ä\r\n", "s".repeat(5000));
    let many = header.repeat(100);
    let content = [many.as_bytes(), b"\r\nbody\r\n"].concat();
    let (envelope, report) = report(Action::Failed, &message, &content, &failed).expect("report");
    assert!(report.is_ascii());
    assert_eq!(envelope.body, BodyKind::SevenBit);
    assert!(!has_bare_line_end(&report));
    assert!(lines(&report).all(|line| line.len() <= LINE_OCTETS_MAX));
    assert!(lines(&report).all(|line| !line.starts_with(b"Bcc")));
    assert!(report.len() < MAX_RETURNED_OCTETS + 8192);
    assert!(!report.contains(&0x1b) && !report.contains(&1));
}

/// A message that arrived with SMTPUTF8 gets a notification with the types of RFC 6533.
#[test]
fn smtputf8_is_reported_in_utf8() {
    let mut message = envelope(Some("ä@example.com"));
    message.smtputf8 = true;
    let failed = [(recipient("ö@example.org"), answer(550, None, "nö"))];
    let (envelope, report) = report(Action::Failed, &message, CONTENT, &failed).expect("report");
    let text = String::from_utf8(report).expect("UTF-8");
    assert!(envelope.smtputf8);
    assert_eq!(envelope.body, BodyKind::EightBitMime);
    for part in [
        "To: <ä@example.com>",
        "Content-Type: message/global-delivery-status",
        "Final-Recipient: utf-8; ö@example.org",
        "Diagnostic-Code: smtp; 550 nö",
        "Content-Type: message/global\r\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// This relay reports success only if no later server does.
#[test]
fn success_is_reported_once() {
    let passed = Answer {
        dsn_passed: true,
        ..answer(250, None, "ok")
    };
    let local = Answer::of(&"local".into());
    assert_eq!(Action::for_success(&Outcome::Delivered(passed)), None);
    assert_eq!(
        Action::for_success(&Outcome::Delivered(answer(250, None, "ok"))),
        Some(Action::Relayed)
    );
    assert_eq!(
        Action::for_success(&Outcome::Delivered(local)),
        Some(Action::Delivered)
    );
    assert_eq!(
        Action::for_success(&Outcome::Failed(answer(550, None, "no"))),
        None
    );
}

/// An independent MIME parser reads the notification as intended.
#[test]
fn a_mime_parser_reads_the_notification() {
    let failed = [(
        recipient("b@example.org"),
        answer(550, Some((5, 1, 1)), "no"),
    )];
    let (_, content) = report(
        Action::Failed,
        &envelope(Some("a@example.com")),
        CONTENT,
        &failed,
    )
    .expect("report");
    let parsed = mail_parser::MessageParser::default()
        .parse(&content)
        .expect("a message");
    assert_eq!(parsed.parts.len(), 4, "multipart, text, status, message");
    assert!(
        parsed
            .body_text(0)
            .expect("text")
            .contains("<b@example.org>")
    );
    let returned = parsed
        .attachments()
        .find_map(|part| part.message())
        .expect("the message");
    assert_eq!(returned.subject(), Some("hi"));
}
