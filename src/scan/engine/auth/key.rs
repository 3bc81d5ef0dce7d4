//! Restrictions on the use of a domain's key.
//!
//! mail-auth parses these tags of a key record and does not check them. So a signature that mail-auth accepts is valid only if
//! its key record does not forbid the use.

use std::collections::HashSet;

use hickory_resolver::proto::rr::{Name, RData};
use mail_auth::common::crypto::Algorithm;
use mail_auth::common::parse::TxtRecordParser as _;
use mail_auth::common::verify::{DomainKey, VerifySignature};
use mail_auth::{DnsError, Error, MessageAuthenticator};

/// Checks whether the key of a signature that verifies may be used for this signature. The answer to the question for the key
/// record is still in the cache.
///
/// Cancel safety: safe.
pub(super) async fn usable(
    authenticator: &MessageAuthenticator,
    signature: &impl VerifySignature,
) -> Result<(), Unusable> {
    let unknown = |why: String| Unusable::Unknown(Error::Dns(DnsError::Resolver(why)));
    let name = Name::from_str_relaxed(signature.domain_key().to_lowercase());
    let name = name.map_err(|error| unknown(error.to_string()))?;
    let lookup = authenticator.resolver().txt_lookup(name).await;
    let lookup = lookup.map_err(|error| unknown(error.to_string()))?;
    let texts = lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::TXT(text) => Some(text.txt_data.concat()),
            _ => None,
        });
    // Of several records, mail-auth takes the first one that is a valid key.
    let mut keys = texts.filter(|text| DomainKey::parse(text).is_ok());
    let Some(key) = keys.next() else {
        return Err(unknown("the key record no longer exists".to_owned()));
    };
    match objection(&key, signature.algorithm()) {
        None => Ok(()),
        Some(why) => Err(Unusable::Never(Error::Dns(DnsError::Resolver(
            why.to_owned(),
        )))),
    }
}

/// Why a key may not be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// The key record forbids the use.
    Never(Error),
    /// The key record is not available now.
    Unknown(Error),
}

/// Why a key record forbids the use of its key for an e-mail signature with this algorithm (RFC 6376 3.6.1, 6.1.2); `None` if
/// the record allows the use.
fn objection(record: &[u8], algorithm: Algorithm) -> Option<&'static str> {
    let mut names = HashSet::new();
    for tag in record.split(|octet| *octet == b';') {
        let mut halves = tag.splitn(2, |octet| *octet == b'=');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else {
            continue;
        };
        let (name, value) = (name.trim_ascii(), value.trim_ascii());
        // RFC 6376 3.2: a tag list with a repeated tag is invalid.
        if !names.insert(name) {
            return Some("the key record repeats a tag");
        }
        let names_one_of = |wanted: &[&str]| {
            let mut items = value.split(|octet| *octet == b':').map(<[u8]>::trim_ascii);
            items.any(|item| {
                wanted
                    .iter()
                    .any(|w| item.eq_ignore_ascii_case(w.as_bytes()))
            })
        };
        match name {
            b"v" if value != b"DKIM1" => {
                return Some("the key record has a version other than DKIM1");
            }
            b"h" if !names_one_of(&[hash(algorithm)]) => {
                return Some("the key record forbids this hash (h=)");
            }
            b"s" if !names_one_of(&["*", "email"]) => {
                return Some("the key record forbids e-mail (s=)");
            }
            _ => {}
        }
    }
    None
}

fn hash(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RsaSha1 => "sha1",
        Algorithm::RsaSha256 | Algorithm::Ed25519Sha256 => "sha256",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6376 3.6.1: unknown tags, spaces and the order of tags have no effect; version, hashes and services have.
    #[test]
    fn a_key_is_used_only_for_what_its_record_allows() {
        for good in [
            "p=AA",
            "v=DKIM1; p=AA",
            " v=DKIM1 ; k = rsa ; p = AA",
            "v=DKIM1;; k=rsa; p=AA; ",
            "k=rsa; v=DKIM1; p=AA",
            "v=DKIM1; h=sha1:SHA256; p=AA",
            "v=DKIM1; s=other : email; p=AA",
            "v=DKIM1; s=*; p=AA",
            "v=DKIM1; n=h=sha1, s=other; x=y; t=y; g=; p=AA==",
        ] {
            assert_eq!(
                objection(good.as_bytes(), Algorithm::RsaSha256),
                None,
                "{good}"
            );
        }
        for bad in [
            "v=dkim1; p=AA",
            "v=DKIM2; p=AA",
            "v=; p=AA",
            "v=DKIM1; h=sha1; p=AA",
            "v=DKIM1; h=; p=AA",
            "v=DKIM1; s=other; p=AA",
            "v=DKIM1; s=; p=AA",
            "v=DKIM1; s=tlsrpt:other; p=AA",
            "v=DKIM1; s=other; s=*; p=AA",
            "v=DKIM1; p=AA; p=BB",
        ] {
            assert!(
                objection(bad.as_bytes(), Algorithm::RsaSha256).is_some(),
                "{bad}"
            );
        }
    }
}
