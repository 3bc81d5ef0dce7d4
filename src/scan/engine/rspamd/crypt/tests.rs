//! Tests with a request of rspamd's own client, and with damaged texts.

use super::*;

/// Public key of the worker to which [`SEALED_REQUEST`] is sealed.
const WORKER_KEY: &str = "i1iy1oapr8qeq9zbzw7rhixii3tdkd4hcshwooyp1zes464hcqay";
/// Fingerprint of [`WORKER_KEY`] in the field `Key`.
const WORKER_SHORT_ID: &str = "pdop1d6i";
/// Public key of the client that made [`SEALED_REQUEST`].
const CLIENT_KEY: &str = "wtrxr5fdz8ds5b7qprtjid8bd1ahduqpcjg5y5eo5rdq5zjpdkry";
/// Shared secret of the worker and the client, from X25519.
const SHARED_SECRET: &str = "3ad236a594af9f1ce29401f11a62a41c7b6394dd2fd1bbb4feb152004f5d401f";
/// The body of a request of rspamc 3.4 (`rspamc --key`). The client's private key is not known. Another implementation
/// computed [`SHARED_SECRET`] from the worker's private key.
const SEALED_REQUEST: &str = "\
    80deff5ad737ed7bd75eacdb426b5be68fe176b96daa4a4d98a78cb8e2e8ffac05b0dd017899a2a7587020f3e5c81c9e3547f5993f919b1e00c1\
    f50a52e6d1192415444b65bf609f86e3a4163d40b0da582c940bfa5e932cab912cd257c37a3a8e215e73791a930d3aa2f7cdeb02acaff7a2a3a5\
    15bb162312f33a19f6f895826806ba37057b4364d3bc1c138c8234003c8c5ced33d474bc5c46ed61de697763a6a4b67c44bc5e818add3d38bcf8\
    d51f485c6edcc756";
/// Head and body inside [`SEALED_REQUEST`].
const REQUEST_HEAD: &str = "POST /checkv2 HTTP/1.0\r\nContent-Length: 14\r\nContent-Type: text/plain\r\n\
    User-Agent: rspamc\r\nFilename: stdin\r\nFlags: body_block\r\n\r\n";
const REQUEST_BODY: &str = "Subject: x\n\nx\n";

fn octets(hex: &str) -> Vec<u8> {
    let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(pair).collect()
}

fn secret() -> [u8; 32] {
    derived(&octets(SHARED_SECRET)).expect("32 octets")
}

/// The worker's side of one exchange.
pub(in crate::scan::engine::rspamd) struct Worker {
    private: EphemeralPrivateKey,
    public: PublicKey,
}

impl Worker {
    pub(in crate::scan::engine::rspamd) fn new() -> Self {
        let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).expect("a key");
        let public = private.compute_public_key().expect("a key");
        let public = PublicKey(public.as_ref().try_into().expect("32 octets"));
        Self { private, public }
    }

    pub(in crate::scan::engine::rspamd) fn key(&self) -> PublicKey {
        self.public
    }

    /// The exchange with the client that sent this field `Key`.
    pub(in crate::scan::engine::rspamd) fn exchange(self, field: &str) -> Exchange {
        let client = field.split_once('=').expect("a field").1;
        let client: PublicKey = client.parse().expect("a key");
        let theirs = UnparsedPublicKey::new(&X25519, client.0);
        let secret = agree_ephemeral(self.private, &theirs, derived).expect("a secret");
        Exchange {
            secret: secret.expect("32 octets"),
            field: field.to_owned(),
        }
    }
}

fn exchange() -> Exchange {
    Exchange::with(&WORKER_KEY.parse().expect("a key")).expect("random octets")
}

/// Wire format: a text that rspamd's own client sealed opens, and the same text with the same nonce gives the same octets.
#[test]
fn the_wire_format_is_that_of_rspamd() {
    let sealed = octets(SEALED_REQUEST);
    let opened = open(&secret(), &sealed).expect("authentic");
    assert_eq!(
        String::from_utf8_lossy(&opened),
        format!("{REQUEST_HEAD}{REQUEST_BODY}")
    );
    let nonce = *sealed.first_chunk().expect("a nonce");
    assert_eq!(
        seal(
            &secret(),
            nonce,
            REQUEST_HEAD.as_bytes(),
            REQUEST_BODY.as_bytes()
        ),
        sealed
    );
}

/// The field `Key` names the worker's key, and a public key of the relay that is used for nothing else.
#[test]
fn each_exchange_has_its_own_keys() {
    let (one, other) = (exchange(), exchange());
    let (id, public) = one.field().split_once('=').expect("a field");
    assert_eq!(id, WORKER_SHORT_ID);
    public.parse::<PublicKey>().expect("a public key");
    assert_ne!(one.field(), other.field());
    assert_ne!(one.secret, other.secret);
    let answer = one.seal(b"HTTP/1.1 200 OK\r\n\r\n", b"{}").expect("sealed");
    assert_ne!(
        answer,
        one.seal(b"HTTP/1.1 200 OK\r\n\r\n", b"{}").expect("sealed")
    );
    assert!(one.open(&answer).is_some());
    // A valid answer to another request of the relay does not open.
    assert_eq!(other.open(&answer), None);
}

/// A sealed text does not open if any octet is changed, removed or added. Short, empty and large texts do not open, and do no
/// harm.
#[test]
fn a_changed_text_does_not_open() {
    let sealed = octets(SEALED_REQUEST);
    for at in 0..sealed.len() {
        for bit in [1, 0x80] {
            let mut changed = sealed.clone();
            changed[at] ^= bit;
            assert_eq!(open(&secret(), &changed), None, "octet {at}");
        }
        assert_eq!(open(&secret(), &sealed[..at]), None, "{at} octets");
    }
    let longer = [&*sealed, b"\0"].concat();
    assert_eq!(open(&secret(), &longer), None);
    for junk in [
        vec![0; 1 << 20],
        vec![0xff; NONCE_OCTETS + TAG_OCTETS],
        b"{}".to_vec(),
    ] {
        assert_eq!(exchange().open(&junk), None);
    }
}

/// A text of any length comes back, also an empty one.
#[test]
fn a_sealed_text_opens() {
    let exchange = exchange();
    for length in [0, 1, 15, 16, 17, 63, 64, 65, 1000, 1 << 20] {
        let text: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let (head, body) = text.split_at(length / 3);
        let sealed = exchange.seal(head, body).expect("sealed");
        assert_eq!(sealed.len(), length + NONCE_OCTETS + TAG_OCTETS);
        assert_eq!(exchange.open(&sealed), Some(text));
    }
}

/// A key is read in the form in which it is printed. A text with a mistake is not a key, nor is a point that gives no secret
/// (RFC 7748 section 6.1).
#[test]
fn a_text_with_a_mistake_is_not_a_key() {
    for text in [WORKER_KEY, CLIENT_KEY] {
        assert_eq!(text.parse::<PublicKey>().expect(text).to_string(), text);
    }
    let zeros = "y".repeat(52);
    let one = format!("b{}", &zeros[1..]);
    for text in [
        "",
        "i1iy1oapr8qeq9zbzw7rhixii3tdkd4hcshwooyp1zes464hcqa",
        "i1iy1oapr8qeq9zbzw7rhixii3tdkd4hcshwooyp1zes464hcqayy",
        // Another last letter, which rspamd would read as the same key; a letter outside the alphabet; upper case; an octet
        // outside ASCII.
        "i1iy1oapr8qeq9zbzw7rhixii3tdkd4hcshwooyp1zes464hcqan",
        "i1iy1oapr8qeq9zbzw7rhixii3tdkd4hcshwooyp1zes464hcqal",
        "I1IY1OAPR8QEQ9ZBZW7RHIXII3TDKD4HCSHWOOYP1ZES464HCQAY",
        "i1iy1oapr8qeq9zbzw7rhixii3tdkd4hcshwooyp1zes464hcqä",
        &zeros,
        &one,
    ] {
        assert_eq!(text.parse::<PublicKey>(), Err(NotAKey), "{text:?}");
    }
}
