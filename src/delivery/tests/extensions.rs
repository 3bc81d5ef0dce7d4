//! Messages that need an extension, and next hops that refuse EHLO or do not offer the extension.

use super::*;

const TAKEN: &str = "delivered end of data: 250 2.0.0 taken";
const EIGHT_BIT: &[u8] = "Subject: s\r\n\r\n\u{e4}\r\n".as_bytes();

/// The server refuses EHLO in this session, and accepts HELO.
const HELO: &str = "
    S: 220 hi
    C: EHLO me
    S: 500 5.5.1 what
    C: HELO me
    S: 250 hi
";

/// The script for [`CONTENT`] to b@y without PIPELINING.
const ONE_MAIL_STEP_BY_STEP: &str = "
    C: MAIL FROM:<a@x>
    S: 250 m
    C: RCPT TO:<b@y>
    S: 250 r
    C: DATA
    S: 354 go
    C: X: y
    C: Subject: s
    C:
    C: ..dot
    C: end
    C: .
    S: 250 2.0.0 taken
";

/// The script for [`EIGHT_BIT`] to b@y in a session with EHLO and 8BITMIME.
const EIGHT_BIT_MAIL: &str = "
    S: 220 hi
    C: EHLO me
    S: 250-hi
    S: 250-PIPELINING
    S: 250 8BITMIME
    C: MAIL FROM:<a@x> BODY=8BITMIME
    C: RCPT TO:<b@y>
    C: DATA
    S: 250 m
    S: 250 r
    S: 354 go
    C: X: y
    C: Subject: s
    C:
    C: \u{e4}
    C: .
    S: 250 2.0.0 taken
";

/// RFC 5321 3.2: a server that refuses EHLO and accepts HELO offers no extensions in this session, and may offer them in the
/// next. 8-bit mail waits, with the reply to EHLO as the reason, and goes out in the next session with EHLO. Meanwhile mail
/// in ASCII goes out over HELO, and the hop is not called dead.
#[tokio::test]
async fn a_refused_ehlo_makes_no_eight_bit_mail_impossible() {
    let server = Server::start(&[
        HELO,
        &script(&[HELO, ONE_MAIL_STEP_BY_STEP]),
        EIGHT_BIT_MAIL,
    ])
    .await;
    let delivery = delivery(hop(&[server.address()]));
    let eight_bit = mail(&["b@y"], EIGHT_BIT);
    let outcome = delivery.deliver(&eight_bit, soon()).await.remove(0);
    let Outcome::Deferred(answer) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        answer.text,
        "4.6.3 the message needs 8BITMIME, and the next hop refused EHLO, so that it offered no extension: 500 5.5.1 what"
    );
    assert_eq!(answer.status(), Some((4, 6, 3)));
    assert!(
        !answer.held_back,
        "the retry schedule of the message applies"
    );
    let ascii = mail(&["b@y"], CONTENT);
    assert_eq!(outcomes(&delivery, &ascii, soon()).await, [TAKEN]);
    // The idle connection is one with HELO: the message gets a session of its own.
    assert_eq!(outcomes(&delivery, &eight_bit, soon()).await, [TAKEN]);
    assert_eq!(delivery.status()[0].state, PaceState::Free);
    server.finished().await;
}

/// Another address of the next hop may accept EHLO. If none does, the reason is the refused EHLO, whatever is wrong with the
/// addresses after it; and no recipient that needs no extension waits for one that does.
#[tokio::test]
async fn another_address_may_accept_ehlo() {
    let helo = Server::start(&[HELO]).await;
    let ehlo = Server::start(&[EIGHT_BIT_MAIL]).await;
    let both = delivery(hop(&[helo.address(), ehlo.address()]));
    let eight_bit = mail(&["b@y"], EIGHT_BIT);
    assert_eq!(outcomes(&both, &eight_bit, soon()).await, [TAKEN]);
    helo.finished().await;
    ehlo.finished().await;

    let helo = Server::start(&[&script(&[HELO, ONE_MAIL_STEP_BY_STEP])]).await;
    let refusing = Server::start(&["S: 554 go away"]).await;
    let both = delivery(hop(&[helo.address(), refusing.address()]));
    let got = outcomes(&both, &mail(&["\u{e4}@y", "b@y"], CONTENT), soon()).await;
    assert!(
        got[0].starts_with("deferred 4.6.7 the message needs SMTPUTF8"),
        "{got:?}"
    );
    assert_eq!(got[1], TAKEN);
    helo.finished().await;
    refusing.finished().await;
}

/// A server that answers EHLO without the extension cannot take the message: the sender learns it at once, with the code for
/// the reason (RFC 1870 6, RFC 6152 3, RFC 6531 3.7.4.2).
#[tokio::test]
async fn a_missing_extension_is_a_refusal_with_its_code() {
    let hello =
        |extension: &str| format!("S: 220 hi\nC: EHLO me\nS: 250-hi\nS: 250 {extension}\nHOLD");
    let part = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: a/b; name=\"\u{e4}\"\r\n\r\na\r\n";
    for (extension, content, utf8, text) in [
        (
            "SIZE 10",
            CONTENT,
            false,
            "5.3.4 the message is larger than the 10 octets that the next hop takes",
        ),
        (
            "SIZE",
            EIGHT_BIT,
            false,
            "5.6.3 the content has 8-bit octets and the next hop does not offer 8BITMIME",
        ),
        (
            "8BITMIME",
            part.as_bytes(),
            true,
            "5.6.7 the message needs SMTPUTF8 and the next hop does not offer it",
        ),
    ] {
        let server = Server::start(&[&hello(extension)]).await;
        let delivery = delivery(hop(&[server.address()]));
        let mail = mail(&["b@y"], content);
        let mut envelope = Envelope::clone(&mail.envelope);
        envelope.smtputf8 = utf8;
        let mail = Outbound {
            envelope: Arc::new(envelope),
            ..mail
        };
        let got = outcomes(&delivery, &mail, soon()).await;
        assert_eq!(got, [format!("failed {text}")]);
    }
}
