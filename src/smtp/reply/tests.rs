//! Tests of the wire format of replies, whatever text they pass on.

use super::*;
use crate::smtp::RemoteReply;

/// The reply code and the enhanced status code always have the same class.
#[test]
fn code_and_enhanced_code_share_their_class() {
    let said = RemoteReply {
        code: 552,
        enhanced: Some((4, 2, 2)),
        text: "mailbox full".to_owned(),
    };
    let mut wire = Vec::new();
    Reply::refused("X", &said).write_to(&mut wire);
    assert_eq!(
        String::from_utf8_lossy(&wire),
        "552 5.0.0 X refused, next hop said: mailbox full\r\n"
    );
}

/// A message that the relay refuses for a next hop gets the status code of the reason, once (RFC 1870 6, RFC 6152 3).
#[test]
fn a_refusal_has_the_code_of_its_reason() {
    for (why, line) in [
        (
            "5.3.4 the message is larger than the 1000 octets that the next hop takes",
            "552 5.3.4 X cannot be delivered: the message is larger than the 1000 octets that the next hop takes",
        ),
        (
            "5.6.3 no 8BITMIME",
            "554 5.6.3 X cannot be delivered: no 8BITMIME",
        ),
        (
            "5.4.4 no route",
            "554 5.4.4 X cannot be delivered: no route",
        ),
        (
            "4.3.4 not now",
            "554 5.0.0 X cannot be delivered: 4.3.4 not now",
        ),
        ("why not", "554 5.0.0 X cannot be delivered: why not"),
    ] {
        assert_eq!(Reply::undeliverable("X", why).to_string(), line);
    }
}

/// Text from another system never becomes a reply line of its own.
#[test]
fn line_breaks_in_texts_stay_inside_the_line() {
    let mut wire = Vec::new();
    Reply::no_route("a\r\n250 2.0.0 b").write_to(&mut wire);
    assert_eq!(wire.iter().filter(|b| **b == b'\n').count(), 1);
}

/// RFC 5321 4.2 and 4.5.3.1.5: with any text of a next hop, the reply line is ASCII and has at most 512 octets.
#[test]
fn reply_lines_are_short_and_ascii() {
    let mut wire = Vec::new();
    Reply::delivered("X", "é".repeat(500)).write_to(&mut wire);
    assert!(wire.is_ascii() && wire.ends_with(b"?\r\n"));
    assert_eq!(wire.len(), 512);
}

/// Each line of a reply except the last has a hyphen after the code (RFC 5321 4.2.1).
#[test]
fn all_lines_but_the_last_have_a_hyphen() {
    let mut wire = Vec::new();
    Reply::ehlo("h", vec!["PIPELINING".into(), "SIZE 1".into()]).write_to(&mut wire);
    assert_eq!(wire, b"250-h\r\n250-PIPELINING\r\n250 SIZE 1\r\n");
}
