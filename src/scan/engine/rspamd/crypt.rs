//! rspamd's encryption, HTTPCrypt: a request is sealed to the public key of a worker, and its answer opened.
//!
//! The construction is rspamd's own (its `src/libcryptobox/cryptobox.c`, `keypair.c` and
//! `src/libserver/http/http_connection.c`), so that no library has it as a whole. X25519 (RFC 7748) and HChaCha20 over
//! zeros make one key. XChaCha20 encrypts with it; the first 64 octets of its keystream encrypt nothing, and half of them are
//! the key of Poly1305 (RFC 8439 2.5) over the ciphertext alone, without the lengths that RFC 8439 2.8 adds. On the wire
//! are nonce, tag, ciphertext.
//!
//! Each request has a key pair of its own. An answer that opens was therefore sealed by the holder of the worker's private
//! key, for this very request: an earlier answer does not open. The request itself would, and is no HTTP answer.

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

/// Octets of a nonce, of a tag, and of the part of the keystream that encrypts nothing.
const NONCE: usize = 24;
const TAG: usize = 16;
const SKIPPED: usize = 64;
/// Octets of a key's fingerprint by which rspamd tells which of its keys is meant.
const SHORT_ID: usize = 5;

/// The public key of a worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// A text that is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no public key of an rspamd")]
pub struct NotAKey;

impl FromStr for PublicKey {
    type Err = NotAKey;

    /// Reads it as `rspamadm keypair` prints it. A point with which every exchange gives the same is refused.
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

/// There is no key for a request: the system has no random octets for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key can be made for a request")]
pub(super) struct NoExchange;

/// What one request and its answer are encrypted with. It holds a secret, so it is not shown.
pub(super) struct Exchange {
    secret: [u8; 32],
    field: String,
}

impl Exchange {
    /// A new exchange with that worker.
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
        let id = base32_encode(&id[..SHORT_ID]);
        let field = format!("{id}={}", base32_encode(public.as_ref()));
        Ok(Self { secret, field })
    }

    /// The field `Key`: which key of the worker is meant, and our public key.
    pub(super) fn field(&self) -> &str {
        &self.field
    }

    /// `head` and `body` as one sealed text.
    pub(super) fn seal(&self, head: &[u8], body: &[u8]) -> Result<Vec<u8>, NoExchange> {
        let mut nonce = [0; NONCE];
        let filled = SystemRandom::new().fill(&mut nonce);
        filled.map_err(|_| NoExchange)?;
        Ok(seal(&self.secret, nonce, head, body))
    }

    /// What was sealed by the worker for this exchange; none for anything else.
    pub(super) fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        open(&self.secret, sealed)
    }
}

/// The key of both directions, from what X25519 gives.
fn derived(shared: &[u8]) -> Option<[u8; 32]> {
    let shared: [u8; 32] = shared.try_into().ok()?;
    Some(hchacha::<R20>(&shared.into(), &[0; 16].into()).into())
}

fn seal(secret: &[u8; 32], nonce: [u8; NONCE], head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(NONCE + TAG + head.len() + body.len());
    sealed.extend(nonce);
    sealed.extend([0; TAG]);
    sealed.extend(head);
    sealed.extend(body);
    let (mut cipher, poly) = ciphers(secret, &nonce);
    let text = &mut sealed[NONCE + TAG..];
    cipher.apply_keystream(text);
    let tag: [u8; TAG] = poly.compute_unpadded(text).into();
    sealed[NONCE..NONCE + TAG].copy_from_slice(&tag);
    sealed
}

fn open(secret: &[u8; 32], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
    let (tag, text) = rest.split_first_chunk::<TAG>()?;
    let (mut cipher, poly) = ciphers(secret, nonce);
    let right: [u8; TAG] = poly.compute_unpadded(text).into();
    if !bool::from(right.ct_eq(tag)) {
        return None;
    }
    let mut text = text.to_vec();
    cipher.apply_keystream(&mut text);
    Some(text)
}

/// The cipher behind its skipped octets, and the authenticator that they are the key of.
fn ciphers(secret: &[u8; 32], nonce: &[u8; NONCE]) -> (XChaCha20, Poly1305) {
    let mut cipher = XChaCha20::new(secret.into(), nonce.into());
    let mut skipped = [0; SKIPPED];
    cipher.apply_keystream(&mut skipped);
    let mut key = [0; 32];
    key.copy_from_slice(&skipped[..32]);
    (cipher, Poly1305::new(&key.into()))
}

/// The alphabet of z-base-32. Unlike there, the first bit of a text is the lowest bit of the first octet.
const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

fn base32_encode(octets: &[u8]) -> String {
    let bit = |at: usize| {
        let octet = octets.get(at / 8).copied().unwrap_or_default();
        usize::from(octet >> (at % 8) & 1)
    };
    let letter = |at: usize| (0..5).map(|i| bit(at + i) << i).sum::<usize>();
    (0..octets.len() * 8)
        .step_by(5)
        .map(|at| char::from(ALPHABET[letter(at)]))
        .collect()
}

/// The octets of a text that encodes just so many, in the one way that [`base32_encode`] does.
fn base32_decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut octets = [0_u8; N];
    for (at, letter) in text.bytes().enumerate() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        for i in (0..5).filter(|i| value >> i & 1 == 1) {
            let bit = at * 5 + i;
            // A bit behind the last octet would be ignored by rspamd, and a mistake be missed by us.
            *octets.get_mut(bit / 8)? |= 1 << (bit % 8);
        }
    }
    Some(octets)
}

#[cfg(test)]
pub(super) mod tests;
