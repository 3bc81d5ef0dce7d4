use super::*;
use crate::message::{BodyKind, Mailbox, Notify, Origin, Recipient, Ret};

fn envelope(from: &str, to: &[&str]) -> Envelope {
    let mailbox = |text: &&str| Recipient::from(Mailbox::parse(text).expect("mailbox"));
    Envelope {
        reverse_path: Mailbox::parse(from).expect("mailbox").into(),
        recipients: to.iter().map(mailbox).collect(),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin::local("test"),
    }
}

const PLAIN: Facts = Facts {
    octets: 100,
    eight_bit: false,
    header_eight_bit: false,
};

fn pipelining() -> Capabilities {
    Capabilities {
        pipelining: true,
        ..Capabilities::default()
    }
}

/// Result of one transaction with a list of replies: the commands sent, with `<content>` for the content; the fate of each
/// recipient in short; and the last result.
struct Run {
    sent: String,
    fates: Vec<String>,
    end: Result<Next, Interruption>,
    needs_reset: bool,
}

fn run(
    envelope: &Envelope,
    offered: &Capabilities,
    lmtp: bool,
    facts: Facts,
    replies: &str,
) -> Run {
    let all: Vec<usize> = (0..envelope.recipients.len()).collect();
    let mut machine = Transaction::new(envelope, &all, facts, offered, lmtp, false);
    let mut sent = Vec::new();
    let mut end = Ok(machine.start(&mut sent));
    for line in replies.split('|').filter(|line| !line.is_empty()) {
        assert!(
            matches!(end, Ok(Next::Reply | Next::Content)),
            "over before {line}"
        );
        sent.extend_from_slice(b"/ ");
        let text = format!("{line}\r\n");
        let reply = RawReply::parse(text.as_bytes())
            .expect("reply")
            .expect("whole");
        end = machine.on_reply(&reply, &mut sent);
        if end == Ok(Next::Content) {
            sent.extend_from_slice(b"<content>");
        }
    }
    let needs_reset = machine.needs_reset();
    let fates = machine
        .into_fates()
        .into_iter()
        .map(|(_, fate)| match fate {
            Fate::Open => "open".to_owned(),
            Fate::Accepted => "accepted".to_owned(),
            Fate::NeedsEhlo(why) => format!("needs EHLO: {}", why.for_now()),
            Fate::Settled(Settled::Replied(stage, reply)) => format!("{stage}: {reply}"),
            Fate::Settled(Settled::Unsupported(why)) => why.to_string()[..5].to_owned(),
        });
    Run {
        sent: String::from_utf8(sent).expect("UTF-8").replace("\r\n", " "),
        fates: fates.collect(),
        end,
        needs_reset,
    }
}

/// With PIPELINING the client writes all commands up to DATA together. Without it, each command waits for the reply to the
/// one before.
#[test]
fn commands_are_pipelined_where_offered() {
    let envelope = envelope("a@x", &["b@y", "c@y"]);
    let replies = "250 m|250 r|250 r|354 go|250 done";
    let got = run(&envelope, &pipelining(), false, PLAIN, replies);
    assert_eq!(
        got.sent,
        "MAIL FROM:<a@x> RCPT TO:<b@y> RCPT TO:<c@y> DATA / / / / <content>/ "
    );
    assert_eq!(got.fates, ["end of data: 250 done"; 2]);
    assert_eq!((got.end, got.needs_reset), (Ok(Next::Done), false));

    let got = run(&envelope, &Capabilities::default(), false, PLAIN, replies);
    assert_eq!(
        got.sent,
        "MAIL FROM:<a@x> / RCPT TO:<b@y> / RCPT TO:<c@y> / DATA / <content>/ "
    );
    assert_eq!(got.fates, ["end of data: 250 done"; 2]);
}

/// The fate of each recipient follows from the replies that concern this recipient.
#[test]
fn fates_follow_replies() {
    let envelope = envelope("a@x", &["b@y", "c@y", "d@y"]);
    let slow = Capabilities::default();
    for (offered, replies, fates, reset) in [
        (
            pipelining(),
            "250 m|550 no|450 later|250 r|354 go|250 done",
            ["RCPT: 550 no", "RCPT: 450 later", "end of data: 250 done"],
            false,
        ),
        (
            pipelining(),
            "250 m|250 r|550 no|250 r|354 go|554 spam",
            [
                "end of data: 554 spam",
                "RCPT: 550 no",
                "end of data: 554 spam",
            ],
            false,
        ),
        (
            pipelining(),
            "250 m|250 r|550 no|250 r|451 disk",
            ["DATA: 451 disk", "RCPT: 550 no", "DATA: 451 disk"],
            true,
        ),
        (
            pipelining(),
            "550 no|503 seq|503 seq|503 seq|503 seq",
            ["MAIL: 550 no"; 3],
            false,
        ),
        (slow.clone(), "450 no", ["MAIL: 450 no"; 3], false),
        (
            slow,
            "250 m|550 a|550 b|550 c",
            ["RCPT: 550 a", "RCPT: 550 b", "RCPT: 550 c"],
            true,
        ),
        (
            pipelining(),
            "250 m|550 a|550 b|550 c|554 none",
            ["RCPT: 550 a", "RCPT: 550 b", "RCPT: 550 c"],
            true,
        ),
    ] {
        let got = run(&envelope, &offered, false, PLAIN, replies);
        assert_eq!(got.fates, fates, "{replies}");
        assert_eq!(
            (got.end, got.needs_reset),
            (Ok(Next::Done), reset),
            "{replies}"
        );
    }
}

/// If the server refuses all recipients and still replies 354, the client sends the dot without content (RFC 2920 3.1).
/// The server would drop content without recipients, or deliver it to a wrong recipient.
#[test]
fn a_go_ahead_without_recipients_gets_the_dot_alone() {
    let envelope = envelope("a@x", &["b@y"]);
    for replies in [
        "250 m|550 no|354 go|554 none",
        "550 m|503 no|354 go|250 what",
    ] {
        let got = run(&envelope, &pipelining(), false, PLAIN, replies);
        assert!(got.sent.ends_with("/ . / "), "{}", got.sent);
        assert!(got.fates[0].contains("550"), "{:?}", got.fates);
        assert_eq!((got.end, got.needs_reset), (Ok(Next::Done), false));
    }
    let got = run(&envelope, &pipelining(), true, PLAIN, "250 m|550 no|354 go");
    assert!(matches!(
        got.end,
        Err(Interruption::Unexpected(Stage::Data, _))
    ));
}

/// An LMTP server replies once for each accepted recipient, in order (RFC 2033 4.2).
#[test]
fn lmtp_answers_for_each_recipient() {
    let envelope = envelope("a@x", &["b@y", "c@y", "d@y"]);
    let replies = "250 m|250 r|550 no|250 r|354 go|250 done|452 full";
    let got = run(&envelope, &pipelining(), true, PLAIN, replies);
    assert_eq!(
        got.fates,
        [
            "end of data: 250 done",
            "RCPT: 550 no",
            "end of data: 452 full"
        ]
    );
    assert_eq!(got.end, Ok(Next::Done));
}

/// 421 and unexpected replies end the session. Recipients that were settled before stay settled; the others stay open.
#[test]
fn interruptions_keep_settled_recipients() {
    let envelope = envelope("a@x", &["b@y", "c@y"]);
    let got = run(
        &envelope,
        &pipelining(),
        false,
        PLAIN,
        "250 m|550 no|421 bye",
    );
    assert_eq!(got.fates, ["RCPT: 550 no", "open"]);
    assert!(matches!(
        got.end,
        Err(Interruption::Closing(Stage::Rcpt, _))
    ));
    let got = run(
        &envelope,
        &pipelining(),
        false,
        PLAIN,
        "250 m|550 no|250 r|354 go|421 bye",
    );
    assert_eq!(got.fates, ["RCPT: 550 no", "end of data: 421 bye"]);
    for replies in [
        "354 go",
        "250 m|354 go",
        "250 m|250 r|250 r|250 no",
        "250 m|250 r|250 r|354 go|354 go",
    ] {
        let got = run(&envelope, &pipelining(), false, PLAIN, replies);
        assert!(
            matches!(got.end, Err(Interruption::Unexpected(..))),
            "{replies}"
        );
    }
}

/// A message that needs an extension is not sent to a server that does not offer it. The client does not transcode.
#[test]
fn unsupported_messages_are_not_offered() {
    let ascii = envelope("a@x", &["b@y"]);
    let eight = Facts {
        eight_bit: true,
        ..PLAIN
    };
    let header = Facts {
        header_eight_bit: true,
        ..eight
    };
    let got = run(&ascii, &pipelining(), false, eight, "");
    assert_eq!(
        (got.fates, got.end),
        (vec!["5.6.3".to_owned()], Ok(Next::Done))
    );
    assert_eq!(got.sent, "");

    let mut declared = ascii.clone();
    declared.smtputf8 = true;
    let mime = Capabilities {
        eight_bit_mime: true,
        ..pipelining()
    };
    assert_eq!(run(&declared, &mime, false, header, "").fates, ["5.6.7"]);
    let got = run(
        &declared,
        &mime,
        false,
        eight,
        "250 m|250 r|354 go|250 done",
    );
    assert!(
        got.sent.starts_with("MAIL FROM:<a@x> BODY=8BITMIME RCPT"),
        "{}",
        got.sent
    );
    let got = run(
        &declared,
        &pipelining(),
        false,
        PLAIN,
        "250 m|250 r|354 go|250 done",
    );
    assert!(
        got.sent.starts_with("MAIL FROM:<a@x> RCPT"),
        "declared but not needed: {}",
        got.sent
    );

    let mixed = envelope("a@x", &["ä@y", "b@y"]);
    let got = run(
        &mixed,
        &pipelining(),
        false,
        PLAIN,
        "250 m|250 r|354 go|250 done",
    );
    assert_eq!(got.fates, ["5.6.7", "end of data: 250 done"]);
    let utf8 = Capabilities {
        smtputf8: true,
        ..pipelining()
    };
    let got = run(
        &mixed,
        &utf8,
        false,
        PLAIN,
        "250 m|250 r|250 r|354 go|250 done",
    );
    assert!(
        got.sent
            .starts_with("MAIL FROM:<a@x> SMTPUTF8 RCPT TO:<ä@y> RCPT"),
        "{}",
        got.sent
    );

    let small = Capabilities {
        size: Some(99),
        ..pipelining()
    };
    assert_eq!(run(&ascii, &small, false, PLAIN, "").fates, ["5.3.4"]);
    let any = Capabilities {
        size: Some(0),
        ..pipelining()
    };
    let got = run(&ascii, &any, false, PLAIN, "250 m|250 r|354 go|250 done");
    assert!(
        got.sent.starts_with("MAIL FROM:<a@x> SIZE=100 RCPT"),
        "{}",
        got.sent
    );
}

/// The client passes DSN parameters on in xtext, and only to a server that offers DSN (RFC 3461).
#[test]
fn dsn_parameters_are_passed_on() {
    let mut message = envelope("a@x", &["b@y", "c@y"]);
    message.ret = Some(Ret::Headers);
    message.envid = Some("id+1 =".to_owned());
    message.recipients[0].notify = Some(Notify {
        success: true,
        delay: true,
        failure: false,
    });
    message.recipients[0].orcpt = Some("rfc822;b b+1@y".to_owned());
    message.recipients[1].notify = Some(Notify::default());
    message.recipients[1].orcpt = Some("no address type".to_owned());
    let dsn = Capabilities {
        dsn: true,
        ..pipelining()
    };
    let replies = "250 m|250 r|250 r|354 go|250 done";
    let got = run(&message, &dsn, false, PLAIN, replies);
    assert!(
        got.sent.starts_with(
            "MAIL FROM:<a@x> RET=HDRS ENVID=id+2B1+20+3D \
             RCPT TO:<b@y> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b+20b+2B1@y RCPT TO:<c@y> NOTIFY=NEVER DATA"
        ),
        "{}",
        got.sent
    );
    let got = run(&message, &pipelining(), false, PLAIN, replies);
    assert!(
        got.sent
            .starts_with("MAIL FROM:<a@x> RCPT TO:<b@y> RCPT TO:<c@y> DATA"),
        "{}",
        got.sent
    );
}

/// The client passes on an original recipient outside ASCII, encoded so that every server accepts it (RFC 6533 3).
#[test]
fn original_recipients_outside_ascii_are_passed_on() {
    let mut message = envelope("a@x", &["b@y", "c@y"]);
    message.recipients[0].orcpt = Some(r"utf-8;\x{F6}@z".to_owned());
    message.recipients[1].orcpt = Some("utf-8;\u{f6}\\x{2B}@z".to_owned());
    let dsn = Capabilities {
        dsn: true,
        ..pipelining()
    };
    let replies = "250 m|250 r|250 r|354 go|250 done";
    let got = run(&message, &dsn, false, PLAIN, replies);
    assert!(
        got.sent.starts_with(
            r"MAIL FROM:<a@x> RCPT TO:<b@y> ORCPT=utf-8;\x{F6}@z RCPT TO:<c@y> ORCPT=utf-8;\x{F6}\x{2B}@z DATA"
        ),
        "{}",
        got.sent
    );
}

/// A thousand RCPT commands are written in groups of limited size, so that the two sides cannot wait for each other.
#[test]
fn groups_of_commands_are_bounded() {
    let to: Vec<String> = (0..1000).map(|n| format!("u{n}@y")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let replies = format!("250 m|{}354 go|250 done", "250 r|".repeat(1000));
    let got = run(&envelope("a@x", &to), &pipelining(), false, PLAIN, &replies);
    let longest = got
        .sent
        .split("/ ")
        .map(|group| group.matches("RCPT").count())
        .max();
    assert_eq!(longest, Some(PIPELINED_COMMANDS_MAX));
    assert_eq!(got.end, Ok(Next::Done));
    assert!(got.fates.iter().all(|fate| fate == "end of data: 250 done"));
}

/// After a transaction that was not completed, RSET precedes the next MAIL in the same write and costs no round trip.
#[test]
fn reset_precedes_the_next_mail() {
    let envelope = envelope("a@x", &["b@y"]);
    let offered = pipelining();
    let mut machine = Transaction::new(&envelope, &[0], PLAIN, &offered, false, true);
    let mut sent = Vec::new();
    machine.start(&mut sent);
    assert_eq!(
        sent,
        b"RSET\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n"
    );
    assert_eq!(machine.stage(), Stage::Reset);
}

/// A session that HELO opened has no extensions, because the server refused EHLO this time (RFC 5321 3.2). That refuses no
/// message for good: recipients of a message that needs an extension stay open, and the others get it.
#[test]
fn a_refused_ehlo_refuses_no_message_for_good() {
    let reply = RawReply::parse(b"500 5.5.1 what\r\n");
    let helo = Capabilities {
        ehlo_refused: Some(reply.expect("reply").expect("whole").to_remote()),
        ..Capabilities::default()
    };
    let eight = Facts {
        eight_bit: true,
        ..PLAIN
    };
    let header = Facts {
        header_eight_bit: true,
        ..eight
    };
    let ascii = envelope("a@x", &["b@y"]);
    let mut declared = ascii.clone();
    declared.smtputf8 = true;
    let eight_bit = "needs EHLO: 4.6.3 the message needs 8BITMIME";
    let utf8 = "needs EHLO: 4.6.7 the message needs SMTPUTF8";
    for (envelope, facts, fate) in [
        (&ascii, eight, eight_bit),
        (&declared, eight, eight_bit),
        (&declared, header, utf8),
        (&envelope("\u{e4}@x", &["b@y"]), PLAIN, utf8),
        (&envelope("a@x", &["\u{e4}@y"]), PLAIN, utf8),
    ] {
        let got = run(envelope, &helo, false, facts, "");
        assert_eq!(
            (got.fates, got.end),
            (vec![fate.to_owned()], Ok(Next::Done))
        );
        assert_eq!(got.sent, "");
    }
    let replies = "250 m|250 r|354 go|250 done";
    let got = run(&ascii, &helo, false, PLAIN, replies);
    assert_eq!(got.fates, ["end of data: 250 done"]);
    let mixed = envelope("a@x", &["\u{e4}@y", "b@y"]);
    let got = run(&mixed, &helo, false, PLAIN, replies);
    assert_eq!(got.fates, [utf8, "end of data: 250 done"]);
}

/// The size, the need for extensions and the check for bare line ends depend on all octets that will be sent.
#[test]
fn facts_cover_the_octets_to_send() {
    let facts = Facts::of(b"X: y\r\n", b"A: b\r\n\r\n\xc3\xa4\r\n", true).expect("sound");
    assert_eq!(
        (facts.octets, facts.eight_bit, facts.header_eight_bit),
        (18, true, false)
    );
    let facts = Facts::of(b"", b"A: \xc3\xa4\r\n\r\n", false).expect("sound");
    assert!(facts.header_eight_bit);
    assert_eq!(Facts::of(b"", b"a\n.\r\n", false), Err(BareLineEnd));
    assert_eq!(Facts::of(b"a\r", b"\nb", false), Err(BareLineEnd));
}

/// RFC 6531 3.2, RFC 6532 3.2: the header section of a part counts as header, as a file name in UTF-8 shows, but only in a
/// message that its client declared to need SMTPUTF8: other mail goes through as it always did.
#[test]
fn the_header_of_a_part_needs_smtputf8_where_it_was_declared() {
    let content = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
        Content-Disposition: attachment; filename=\"\u{e4}\"\r\n\r\na\r\n--b--\r\n";
    for (declared, prefix, needs) in [
        (true, "", true),
        (false, "", false),
        (true, "X: y\r\n", true),
    ] {
        let facts = Facts::of(prefix.as_bytes(), content.as_bytes(), declared).expect("sound");
        assert_eq!(facts.header_eight_bit, needs, "{declared}");
    }
    let body = content
        .replace('\u{e4}', "a")
        .replace("\r\na\r\n", "\r\n\u{e4}\r\n");
    let facts = Facts::of(b"", body.as_bytes(), true).expect("sound");
    assert_eq!((facts.eight_bit, facts.header_eight_bit), (true, false));
}
