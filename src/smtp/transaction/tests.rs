//! Tests of the state machine without a session.

use super::*;

fn server() -> Server {
    Server::new(Offer {
        hostname: "h".into(),
        message_size: 1000,
        recipients: 2,
        starttls: false,
        tls_required: false,
        auth: false,
        encrypted: false,
        xclient: false,
        xforward: false,
    })
}

/// The reply of a step. Recipients are accepted, as the session does for an allowed recipient.
fn said(server: &mut Server, line: &str) -> String {
    let reply = match server.command(line.as_bytes()) {
        Step::Reply(reply) => reply,
        Step::Recipient(recipient) => server.add_recipient(recipient),
        other => return format!("{other:?}"),
    };
    reply.to_string()
}

/// RFC 5321 4.1.4: commands out of sequence are refused and change nothing.
#[test]
fn commands_out_of_sequence_are_refused() {
    let mut s = server();
    for (line, expected) in [
        ("MAIL FROM:<a@b>", "503 5.5.1 Send EHLO first"),
        ("EHLO c", "250 h / PIPELINING"),
        ("RCPT TO:<a@b>", "503 5.5.1 Send MAIL first"),
        ("DATA", "503 5.5.1 Send MAIL first"),
        ("MAIL FROM:<>", "250 2.1.0"),
        ("MAIL FROM:<a@b>", "503 5.5.1 A transaction is open already"),
        ("DATA", "554 5.5.1 No valid recipients"),
        ("RCPT TO:<a@b>", "250 2.1.5"),
        ("RCPT TO:<postmaster>", "250 2.1.5"),
        ("RCPT TO:<c@b>", "452 4.5.3"),
        ("DATA", "Content"),
        ("RSET", "250 2.0.0"),
        ("DATA", "503 5.5.1 Send MAIL first"),
        ("FROB", "500 5.5.2"),
        ("STARTTLS", "502 5.5.1"),
        ("AUTH PLAIN AAA=", "502 5.5.1"),
        ("XCLIENT ADDR=1.2.3.4", "502 5.5.1"),
        ("QUIT", "221 2.0.0"),
    ] {
        let got = said(&mut s, line);
        assert!(got.starts_with(expected), "{line}: {got}");
    }
}

/// Addresses are passed on unchanged, including quotes. A source route is not part of the address.
#[test]
fn addresses_are_kept_as_given() {
    for (line, expected) in [
        ("RCPT TO:<\"john doe\"@b.example>", "\"john doe\"@b.example"),
        ("RCPT TO:<\"a>b\"@b.example>", "\"a>b\"@b.example"),
        ("RCPT TO:joe@b.example", "joe@b.example"),
        ("RCPT TO:<a@b>X=1", "refused"),
        (
            "RCPT TO:<@x,@y:joe@b.example> NOTIFY=NEVER",
            "joe@b.example",
        ),
        ("RCPT TO: <joe@b.example>", "joe@b.example"),
        ("rcpt to:<Postmaster>", "Postmaster"),
        ("RCPT TO:<>", "refused"),
        ("RCPT TO:<a@b> X=1", "refused"),
    ] {
        let mut s = server();
        said(&mut s, "EHLO c");
        said(&mut s, "MAIL FROM:<a@b>");
        let got = match s.command(line.as_bytes()) {
            Step::Recipient(recipient) => recipient.mailbox.to_string(),
            _ => "refused".to_owned(),
        };
        assert_eq!(got, expected, "{line}");
    }
}

/// Parameters are stored in the transaction. Parameters of extensions that are not offered are refused (RFC 5321 4.1.1.11).
#[test]
fn parameters_are_stored_or_refused() {
    for (line, expected) in [
        ("MAIL FROM:<a@b> SIZE=1001", "552 5.3.4"),
        ("MAIL FROM:<a@b> SIZE=1000 BODY=8BITMIME", "250"),
        ("MAIL FROM:<a@b> BODY=BINARYMIME", "555 5.5.4"),
        ("MAIL FROM:<a@b> REQUIRETLS", "555 5.5.4"),
        ("MAIL FROM:<a@b> FROB=1", "555 5.5.4"),
        ("MAIL FROM:<a@b> AUTH=<>", "555 5.5.4"),
        ("MAIL FROM:<ü@b>", "553 5.6.7"),
        ("MAIL FROM:<ü@b> SMTPUTF8", "250"),
        ("MAIL FROM:<a@b> RET=HDRS ENVID=x+2By", "250"),
        ("MAIL FROM:<a@b> ENVID=x+0Ay", "501 5.5.4"),
        ("MAIL FROM:<a b@c>", "5"),
        ("MAIL FROM:a@b SIZE=3", "250"),
        ("MAIL FROM:<a@b>SIZE=3", "501 5.5.4"),
        (
            "MAIL FROM:<a@b> RET=HDRS RET=HDRS",
            "501 5.5.4 RET is given twice",
        ),
        ("MAIL FROM:", "501 5.5.4 Syntax: MAIL FROM:<reverse-path>"),
    ] {
        let mut s = server();
        said(&mut s, "EHLO c");
        let got = said(&mut s, line);
        assert!(got.starts_with(expected), "{line}: {got}");
    }
    let mut s = server();
    said(&mut s, "EHLO c");
    said(
        &mut s,
        "MAIL FROM:<a@b> RET=HDRS ENVID=x+2By SMTPUTF8 SIZE=7",
    );
    said(
        &mut s,
        "RCPT TO:<c@d> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;e+40f",
    );
    let transaction = s.finish().expect("a transaction");
    assert_eq!(transaction.envid.as_deref(), Some("x+y"));
    assert_eq!(transaction.ret, Some(Ret::Headers));
    assert_eq!(transaction.declared_size, 7);
    assert_eq!(
        transaction.recipients[0].orcpt.as_deref(),
        Some("rfc822;e@f")
    );
    let notify = transaction.recipients[0].notify.expect("notify");
    assert!(notify.success && notify.delay && !notify.failure);
}

/// RFC 6533 3: an original recipient outside ASCII is accepted in its ASCII form, and after SMTPUTF8 also in UTF-8. An invalid
/// address is refused.
#[test]
fn original_recipients_outside_ascii_are_checked() {
    for (mail, orcpt, expected) in [
        ("", r"utf-8;\x{F6}@b.example", true),
        ("", r"UTF-8;\x{F6}@b.example", true),
        ("", r"utf-8;\x{1F4E7}\x{2B}a@b.example", true),
        ("", "utf-8;a@b.example", true),
        ("", "utf-8;\u{f6}@b.example", false),
        (" SMTPUTF8", "utf-8;\u{f6}\\x{20AC}@b\u{e4}.example", true),
        ("", r"utf-8;\x{D800}@b.example", false),
        ("", r"utf-8;\x{0A}@b.example", false),
        ("", r"utf-8;\x{F6@b.example", false),
        ("", "utf-8;a+40b.example", false),
        ("", "utf-8;", false),
        ("", r"utf-8;\x{F6}@b.example ORCPT=rfc822;a@b", false),
    ] {
        let mut s = server();
        said(&mut s, "EHLO c");
        said(&mut s, &format!("MAIL FROM:<a@b>{mail}"));
        let line = format!("RCPT TO:<c@d> NOTIFY=FAILURE ORCPT={orcpt} ");
        let got = said(&mut s, &line);
        let refused = match expected {
            true => "250",
            false => "501 5.5.4",
        };
        assert!(got.starts_with(refused), "{orcpt}: {got}");
        let Some(recipient) = s.finish().and_then(|t| t.recipients.into_iter().next()) else {
            assert!(!expected);
            continue;
        };
        let (_, address) = orcpt.split_once(';').expect("a type");
        assert_eq!(recipient.orcpt, Some(format!("utf-8;{address}")));
        assert!(recipient.notify.expect("notify").failure);
    }
    let mut s = server();
    said(&mut s, "EHLO c");
    said(&mut s, "MAIL FROM:<a@b>");
    let quoted = "RCPT TO:<\"x> ORCPT=utf-8;y@z\"@d>";
    assert!(said(&mut s, quoted).starts_with("250"));
    assert_eq!(
        s.finish().expect("a transaction").recipients[0].orcpt,
        None,
        "the text is part of the address, not a parameter"
    );
}

/// RFC 6531 3.4 and 3.6: a recipient outside ASCII needs the SMTPUTF8 parameter on MAIL, because the relay must then require
/// the extension of the next hop. A recipient in ASCII does not need it.
#[test]
fn recipients_outside_ascii_need_smtputf8() {
    for (mail, rcpt, expected) in [
        ("MAIL FROM:<a@b>", "RCPT TO:<\u{fc}@b>", "553 5.6.7"),
        (
            "MAIL FROM:<a@b>",
            "RCPT TO:<a@b\u{fc}cher.example>",
            "553 5.6.7",
        ),
        ("MAIL FROM:<a@b>", "RCPT TO:<u@b>", "250"),
        ("MAIL FROM:<a@b> SMTPUTF8", "RCPT TO:<\u{fc}@b>", "250"),
    ] {
        let mut s = server();
        said(&mut s, "EHLO c");
        said(&mut s, mail);
        let got = said(&mut s, rcpt);
        assert!(got.starts_with(expected), "{mail} {rcpt}: {got}");
    }
}

/// RFC 3030: the octets of a chunk follow even a refused command. DATA is out of sequence after BDAT.
#[test]
fn chunks_out_of_sequence_are_read_and_refused() {
    let mut s = server();
    said(&mut s, "EHLO c");
    assert!(matches!(
        s.command(b"BDAT 5 LAST"),
        Step::Chunk {
            octets: 5,
            last: true,
            refusal: Some(_)
        }
    ));
    said(&mut s, "MAIL FROM:<a@b>");
    said(&mut s, "RCPT TO:<a@b>");
    assert!(matches!(
        s.command(b"BDAT 5"),
        Step::Chunk {
            octets: 5,
            last: false,
            refusal: None
        }
    ));
    assert!(said(&mut s, "DATA").starts_with("503"));
    assert!(said(&mut s, "RCPT TO:<a@b>").starts_with("503"));
}

/// RFC 5321 4.1.1, RFC 3207 4: a command that has no arguments gets none; white space at its end is none.
#[test]
fn commands_without_arguments_get_none() {
    let mut s = server();
    s.offer.starttls = true;
    for (line, expected) in [
        ("RSET x", "501 5.5.4"),
        ("DATA x", "501 5.5.4"),
        ("QUIT x", "501 5.5.4"),
        ("STARTTLS x", "501 5.5.4"),
        ("VRFY", "501 5.5.4"),
        ("EHLO", "501 5.5.4"),
        ("EHLO  c d ", "250"),
        (" rset \t", "250"),
        ("NOOP x y", "250"),
        ("NOOPx", "500 5.5.2"),
        ("EXPN x", "502 5.5.1"),
        ("", "500 5.5.2"),
    ] {
        let got = said(&mut s, line);
        assert!(got.starts_with(expected), "{line}: {got}");
    }
    assert!(matches!(s.command(b"STARTTLS "), Step::StartTls));
}

/// RFC 3030: what begins with BDAT is BDAT, or the octets after it would be read as commands.
#[test]
fn no_form_of_bdat_is_another_command() {
    for line in [
        "BDAT\t5",
        "BDAT",
        "BDAT5",
        " bdat 5 LAST x",
        "BDAT:5",
        "BDAT 5\tLAST",
        "BDAT 5\u{a0}",
        "BDAT 5\0",
        "BDAT 5\n",
    ] {
        let got = said(&mut server(), line);
        assert!(got.starts_with("421 4.5.4"), "{line:?}: {got}");
    }
    assert!(said(&mut server(), "BDATA 5").starts_with("500"));
}

/// A command with a bare CR, a bare LF or a NUL is refused.
#[test]
fn control_characters_in_commands_are_refused() {
    let mut s = server();
    for line in ["EHLO a\rb", "EHLO a\nb", "EHLO a\0b"] {
        assert!(said(&mut s, line).starts_with("500 5.5.2"), "{line:?}");
    }
}

/// AUTH is allowed only over TLS, only after EHLO, only once, and never in a transaction (RFC 4954 3 and 4).
#[test]
fn auth_is_allowed_only_in_its_place() {
    let mut s = server();
    s.offer.auth = true;
    s.offer.starttls = true;
    assert!(!said(&mut s, "EHLO c").contains("AUTH"));
    assert!(said(&mut s, "AUTH PLAIN").starts_with("538"));
    assert!(matches!(s.command(b"STARTTLS"), Step::StartTls));
    s.reset_for_tls();
    assert!(said(&mut s, "AUTH PLAIN").starts_with("503"));
    assert!(said(&mut s, "EHLO c").contains("AUTH PLAIN LOGIN"));
    assert!(said(&mut s, "AUTH CRAM-MD5").starts_with("504"));
    assert!(said(&mut s, "AUTH PLAIN AAA= x").starts_with("501 5.5.4"));
    assert!(said(&mut s, "AUTH").starts_with("501 5.5.4"));
    // The owner of the mail must not change within a transaction.
    for line in ["MAIL FROM:<a@b>", "RCPT TO:<a@b>"] {
        said(&mut s, line);
        assert!(
            said(&mut s, "AUTH LOGIN").starts_with("503"),
            "after {line}"
        );
    }
    said(&mut s, "RSET");
    assert!(matches!(
        s.command(b"AUTH LOGIN"),
        Step::Auth {
            mechanism: Mechanism::Login,
            initial: None
        }
    ));
    s.set_user("u".to_owned());
    assert!(said(&mut s, "AUTH PLAIN").starts_with("503"));
}
