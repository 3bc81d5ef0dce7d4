//! What an Authentication-Results field says (RFC 8601 2.2), for rules: `dkim=pass`, `spf=softfail`.

/// Results that are taken from one field.
const MOST: usize = 20;

/// The method and result of each part of the field's value. Comments and quoted strings are passed over, so nothing that they
/// hold is taken for a result.
pub(super) fn results(value: &str) -> Vec<String> {
    let plain = without_comments(value);
    let parts = plain.split(';').skip(1);
    let result = |part: &str| {
        let first = part.split_whitespace().next()?;
        let (method, result) = first.split_once('=')?;
        let keyword = |text: &str| {
            !text.is_empty()
                && text.len() <= 30
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/'))
        };
        (keyword(method) && keyword(result)).then(|| first.to_ascii_lowercase())
    };
    parts.filter_map(result).take(MOST).collect()
}

fn without_comments(value: &str) -> String {
    let (mut plain, mut depth, mut quoted) = (String::new(), 0_usize, false);
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match (c, depth, quoted) {
            ('\\', 1.., _) | ('\\', _, true) => {
                rest.next();
            }
            ('"', 0, _) => quoted = !quoted,
            (_, _, true) => {}
            ('(', ..) => depth += 1,
            (')', 1.., _) => depth -= 1,
            (c, 0, _) => plain.push(c),
            _ => {}
        }
    }
    plain
}
