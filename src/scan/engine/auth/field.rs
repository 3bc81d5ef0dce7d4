//! The Authentication-Results field (RFC 8601).
//!
//! Written here and not by mail-auth, because every value in it is a sender's: only names and words that need no quoting are
//! let in, so that nobody can end a value and go on with results of his own.

/// Octets of one value: a domain name.
const VALUE: usize = 253;

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stated {
    /// `spf`, `dkim`, `dmarc`, `arc`.
    pub(super) method: &'static str,
    /// Its word.
    pub(super) result: &'static str,
    /// What it is about: property and value. A value that would have to be quoted is left out.
    pub(super) properties: Vec<(&'static str, String)>,
}

/// The field's value, one result on a line.
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
    (1..=VALUE).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8601 5: a value that a sender has chosen cannot become a result.
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
