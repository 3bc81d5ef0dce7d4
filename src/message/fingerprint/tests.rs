//! Properties of fingerprints from outside the module.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::message::mime::{self, inspect};
use crate::message::{Content, Envelope, Mailbox, Message, MessageId, Origin};

fn from_client(client: &str, content: &[u8]) -> Fingerprint {
    let mailbox = Mailbox::parse("a@a.test").expect("a mailbox");
    let client: IpAddr = client.parse().expect("an address");
    let message = Message {
        id: MessageId::new(),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        envelope: Arc::new(Envelope {
            reverse_path: mailbox.clone().into(),
            recipients: vec![mailbox.into()],
            body: Default::default(),
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin {
                client,
                ..Origin::local("test")
            },
        }),
        trace: "".into(),
        content: Content::uncharged(content.to_vec()),
        times: None,
    };
    let inspection = inspect(message.content.bytes(), mime::Limits::default());
    Fingerprint::of(&message, &inspection)
}

fn identity(content: &[u8]) -> Identity {
    from_client("192.0.2.1", content).identity
}

/// Relays store these values and compare them with those of others, also of other versions: they are what they were. Words end at
/// white space; those with digits or signs of addresses, and names inside a sentence, do not count.
#[test]
fn the_traits_of_a_text_never_change() {
    let text = "Content-Transfer-Encoding: 8bit\r\n\r\nDear Bob, the HARBOUR is\u{c} closed on 3 May,\tand x@y.test\r\n\r\n said: \
                \u{e9}t\u{e9} (a<b) The  end.\r\n  Boats have to\u{b}be moved to the northern pier until the evening of that day at \
                the latest, or else they go=away. Yours Bob\r\n";
    let fingerprint = from_client("192.0.2.1", text.as_bytes());
    let near = fingerprint.broad.iter();
    let near = near.filter(|trait_| trait_.aspect == Aspect::Near);
    let of_text: Vec<String> = (fingerprint.exact.iter().chain(near))
        .map(Trait::to_string)
        .collect();
    let expected = [
        "text:215663d7a9a6ce05",
        "near:0b7d88948499a68b",
        "near:136ff6f087f6fd3f",
        "near:4da5c205d9169c47",
        "near:817087c30ea1aa81",
        "near:1843cb6697c6847d",
        "near:e3c235461699d419",
    ];
    assert_eq!(of_text, expected);
}

/// The end of the header section is part of the identity. If the same octets are a line of the header in one message and a
/// line of the body in another, the two messages differ. This includes the octets that mark the border inside the hash.
#[test]
fn a_line_of_the_header_and_of_the_body_have_different_identities() {
    let border = u64::MAX.to_le_bytes();
    let line = identity(&[b"X: a\r\n", &border[..], b"\r\n\r\nbody"].concat());
    let body = identity(&[b"X: a\r\n\r\n", &border[..], b"\r\nbody"].concat());
    assert_ne!(line, body, "a line like a border");

    // The empty line and six octets, which also are the length of a field, and a field of that length.
    let length = *b"\r\n\0\0\0\0\0\0";
    let field = format!(
        "X: {}\r\n",
        "a".repeat(u64::from_le_bytes(length) as usize - 5)
    );
    let header = identity(&[b"Y: b\r\n", field.as_bytes(), b"\r\nbody"].concat());
    let body = identity(&[b"Y: b\r\n", &length[..], field.as_bytes(), b"\r\nbody"].concat());
    assert_ne!(header, body, "a body like a field with its length");
}

/// A transport field with a line of white space inside is not a transport field to every parser: some parsers end the header
/// section there, and see a body that other copies do not have.
#[test]
fn a_line_of_white_space_makes_a_field_part_of_the_identity() {
    let with = |to: &str| identity(format!("{to}Subject: x\r\n\r\nbody").as_bytes());
    let folded = with("To: x,\r\n y\r\n");
    assert_eq!(folded, with("To: z\r\n"));
    for odd in [
        "To: x,\r\n \r\n y\r\n",
        "To: x,\r\n\t \t\r\n y\r\n",
        "To:\r\n \r\n y\r\n",
        "To: x,\r\n y\r\n \r\n",
    ] {
        assert_ne!(folded, with(odd), "{odd:?}");
    }
}

/// A sender with one address often has its neighbours, so the trait of a client is its network, in every form of the address.
#[test]
fn a_client_is_its_network() {
    let client = |address| {
        let fingerprint = from_client(address, b"Subject: x\r\n\r\nbody");
        let mut traits = fingerprint.traits().filter(|t| t.aspect == Aspect::Client);
        let one = traits.next().expect("a client");
        assert_eq!(traits.next(), None);
        one
    };
    assert_eq!(client("192.0.2.1"), client("192.0.2.200"));
    assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.7"));
    assert_ne!(client("192.0.2.1"), client("192.0.3.1"));
    assert_eq!(client("2001:db8:1:2::3"), client("2001:db8:1:ffff::"));
    assert_ne!(client("2001:db8:1::3"), client("2001:db8:2::3"));
}

/// The gate limits unproven copies of equal and of nearly equal content. Otherwise a flood that changes an octet in each copy
/// would not be limited. Shapes and origins are not among the keys, because valid mail shares them.
#[test]
fn the_canary_keys_are_the_content_and_its_bands() {
    let text = "The harbour is closed on thursday because of the regatta, so boats have to be moved to the northern pier \
                until the evening of that day at the latest.";
    let content = format!("From: a@a.test\r\nSubject: x\r\n\r\n{text}\r\n");
    let fingerprint = from_client("192.0.2.1", content.as_bytes());
    let keys: Vec<_> = fingerprint.canary_keys().collect();
    let of = |aspect| keys.iter().filter(move |key| key.aspect == aspect).count();
    assert_eq!(of(Aspect::Text), 1);
    assert!(of(Aspect::Near) > 0);
    assert_eq!(keys.len(), of(Aspect::Text) + of(Aspect::Near));
    let variant = content.replace("northern", "southern");
    let variant = from_client("192.0.2.1", variant.as_bytes());
    assert!(keys.iter().any(|key| variant.has(*key)));
}
