//! The Authentication-Results field (RFC 8601).
//!
//! The relay writes the field itself and does not use mail-auth for this, because senders choose the values in it. Only values
//! that need no quoting are written, so that no sender can end a value and append forged results.

/// Largest value in octets: the longest domain name (255 octets in a DNS message, RFC 1035 2.3.4).
const VALUE_OCTETS_MAX: usize = 253;

/// One result in the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stated {
    /// `spf`, `dkim`, `dmarc`, `arc`.
    pub(super) method: &'static str,
    /// The result word of RFC 8601 2.7.
    pub(super) result: &'static str,
    /// Property and value, as in `header.d` and a domain. A value that would need quoting is left out.
    pub(super) properties: Vec<(&'static str, String)>,
}

/// The value of the field, with one result per line.
pub(super) fn value(authserv_id: &str, stated: &[Stated]) -> String {
    let mut text = authserv_id.to_owned();
    for Stated {
        method,
        result,
        properties,
    } in stated
    {
        text.push_str(&format!(";\r\n\t{method}={result}"));
        for (property, value) in properties.iter().filter(|(_, value)| is_plain(value)) {
            text.push_str(&format!(" {property}={value}"));
        }
    }
    if stated.is_empty() {
        text.push_str("; none");
    }
    text
}

fn is_plain(value: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=VALUE_OCTETS_MAX).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8601 5: a value that a sender has chosen cannot add a result.
    #[test]
    fn no_value_ends_its_result() {
        let stated = |value: &str| Stated {
            method: "spf",
            result: "fail",
            properties: vec![("smtp.mailfrom", value.to_owned())],
        };
        assert_eq!(
            value("mx.test", &[stated("a.test")]),
            "mx.test;\r\n\tspf=fail smtp.mailfrom=a.test"
        );
        let long = "a".repeat(254);
        for hostile in [
            "a; dmarc=pass",
            "a\r\n\tdmarc=pass",
            "\"a\"",
            "(",
            "é",
            "",
            &*long,
        ] {
            assert_eq!(
                value("mx.test", &[stated(hostile)]),
                "mx.test;\r\n\tspf=fail"
            );
        }
        assert_eq!(value("mx.test", &[]), "mx.test; none");
    }
}
