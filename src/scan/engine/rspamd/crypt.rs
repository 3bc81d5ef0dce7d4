//! rspamd's encryption, HTTPCrypt: the relay encrypts a request to the public key of a worker, and decrypts the answer.
//!
//! The construction is rspamd's own (its `src/libcryptobox/cryptobox.c`, `keypair.c` and
//! `src/libserver/http/http_connection.c`), so no library has all of it. X25519 (RFC 7748) and HChaCha20 over zeros make one
//! key. XChaCha20 encrypts with this key. The first 64 octets of its keystream encrypt nothing, and the first half of them is
//! the key of Poly1305 (RFC 8439 section 2.5). Poly1305 covers the ciphertext alone, without the lengths that RFC 8439
//! section 2.8 adds. The order on the wire is nonce, tag, ciphertext.
//!
//! Each request has its own key pair. So an answer that opens was sealed by the holder of the worker's private key, for this
//! request: an earlier answer does not open. The relay's own request would open, but it is not an HTTP answer.

use std::fmt;
use std::str::FromStr;

use blake2::{Blake2b512, Digest};
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20::{R20, XChaCha20, hchacha};
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

/// Octets of a nonce of XChaCha20.
const NONCE_OCTETS: usize = 24;
/// Octets of a tag of Poly1305.
const TAG_OCTETS: usize = 16;
/// Octets at the beginning of the keystream that encrypt nothing.
const SKIPPED_OCTETS: usize = 64;
/// Octets of a key's fingerprint. rspamd finds the right one of its keys by it.
const SHORT_ID_OCTETS: usize = 5;

/// The public key of a worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// The text is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a public key of rspamd")]
pub struct NotAKey;

impl FromStr for PublicKey {
    type Err = NotAKey;

    /// Reads a key in the form that `rspamadm keypair` prints. Refuses a point with which every exchange gives the same
    /// secret (RFC 7748 section 6.1).
    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let key = Self(base32_decode(text).ok_or(NotAKey)?);
        Exchange::with(&key).map_err(|_| NotAKey)?;
        Ok(key)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32_encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// No key could be made for a request: the system has no random octets, or the worker's key gives no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no encryption key could be made for the request")]
pub(super) struct NoExchange;

/// The secret for one request and its answer. It is not shown, so the type has no `Debug`.
pub(super) struct Exchange {
    secret: [u8; 32],
    field: String,
}

impl Exchange {
    /// Makes a new exchange with the worker that has this key.
    pub(super) fn with(worker: &PublicKey) -> Result<Self, NoExchange> {
        let random = SystemRandom::new();
        let ours = EphemeralPrivateKey::generate(&X25519, &random).map_err(|_| NoExchange)?;
        let public = ours.compute_public_key().map_err(|_| NoExchange)?;
        let theirs = UnparsedPublicKey::new(&X25519, worker.0);
        let secret = agree_ephemeral(ours, &theirs, derived)
            .ok()
            .flatten()
            .ok_or(NoExchange)?;
        let id = Blake2b512::digest(worker.0);
        let id = base32_encode(&id[..SHORT_ID_OCTETS]);
        let field = format!("{id}={}", base32_encode(public.as_ref()));
        Ok(Self { secret, field })
    }

    /// Value of the field `Key`: the fingerprint of the worker's key, and the public key of this request.
    pub(super) fn field(&self) -> &str {
        &self.field
    }

    /// Encrypts `head` and `body` as one sealed text.
    pub(super) fn seal(&self, head: &[u8], body: &[u8]) -> Result<Vec<u8>, NoExchange> {
        let mut nonce = [0; NONCE_OCTETS];
        let filled = SystemRandom::new().fill(&mut nonce);
        filled.map_err(|_| NoExchange)?;
        Ok(seal(&self.secret, nonce, head, body))
    }

    /// Decrypts a text that the worker sealed for this exchange; `None` for any other text.
    pub(super) fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        open(&self.secret, sealed)
    }
}

/// The key for both directions, from the shared secret of X25519.
fn derived(shared: &[u8]) -> Option<[u8; 32]> {
    let shared: [u8; 32] = shared.try_into().ok()?;
    Some(hchacha::<R20>(&shared.into(), &[0; 16].into()).into())
}

fn seal(secret: &[u8; 32], nonce: [u8; NONCE_OCTETS], head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(NONCE_OCTETS + TAG_OCTETS + head.len() + body.len());
    sealed.extend(nonce);
    sealed.extend([0; TAG_OCTETS]);
    sealed.extend(head);
    sealed.extend(body);
    let (mut cipher, poly) = ciphers(secret, &nonce);
    let text = &mut sealed[NONCE_OCTETS + TAG_OCTETS..];
    cipher.apply_keystream(text);
    let tag: [u8; TAG_OCTETS] = poly.compute_unpadded(text).into();
    sealed[NONCE_OCTETS..NONCE_OCTETS + TAG_OCTETS].copy_from_slice(&tag);
    sealed
}

fn open(secret: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_OCTETS>()?;
    let (tag, text) = rest.split_first_chunk::<TAG_OCTETS>()?;
    let (mut cipher, poly) = ciphers(secret, nonce);
    let right: [u8; TAG_OCTETS] = poly.compute_unpadded(text).into();
    if !bool::from(right.ct_eq(tag)) {
        return None;
    }
    let mut text = text.to_vec();
    cipher.apply_keystream(&mut text);
    Some(text)
}

/// The cipher after its skipped octets, and the authenticator, whose key the first of these octets are.
fn ciphers(secret: &[u8; 32], nonce: &[u8; NONCE_OCTETS]) -> (XChaCha20, Poly1305) {
    let mut cipher = XChaCha20::new(secret.into(), nonce.into());
    let mut skipped = [0; SKIPPED_OCTETS];
    cipher.apply_keystream(&mut skipped);
    let mut key = [0; 32];
    key.copy_from_slice(&skipped[..32]);
    (cipher, Poly1305::new(&key.into()))
}

/// The alphabet of z-base-32. Unlike in z-base-32, the first bit of a text is the lowest bit of the first octet.
const BASE32_ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

fn base32_encode(octets: &[u8]) -> String {
    let bit = |at: usize| {
        let octet = octets.get(at / 8).copied().unwrap_or_default();
        usize::from(octet >> (at % 8) & 1)
    };
    let letter = |at: usize| (0..5).map(|i| bit(at + i) << i).sum::<usize>();
    (0..octets.len() * 8)
        .step_by(5)
        .map(|at| char::from(BASE32_ALPHABET[letter(at)]))
        .collect()
}

/// Decodes a text of exactly `N` octets, in the only form that [`base32_encode`] writes.
fn base32_decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut octets = [0_u8; N];
    for (at, letter) in text.bytes().enumerate() {
        let value = BASE32_ALPHABET.iter().position(|known| *known == letter)?;
        for i in (0..5).filter(|i| value >> i & 1 == 1) {
            let bit = at * 5 + i;
            // rspamd would ignore a bit after the last octet. The relay refuses it, to detect a mistake in the text.
            *octets.get_mut(bit / 8)? |= 1 << (bit % 8);
        }
    }
    Some(octets)
}

#[cfg(test)]
pub(super) mod tests;
