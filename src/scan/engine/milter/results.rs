//! Reads the results in an Authentication-Results field (RFC 8601 section 2.2), such as `dkim=pass` and `spf=softfail`, for
//! rules.

/// Results that are kept: more than all methods with all their results.
const RESULTS_MAX: usize = 100;

/// Adds the method and result of each part of `value` to `known`. Equal results are added once, so that many of them do not
/// displace another result. Comments and quoted strings are skipped, so their content never counts as a result.
pub(super) fn gather(known: &mut Vec<String>, value: &str) {
    let plain = without_comments(value);
    for part in plain.split(';').skip(1) {
        if let Some(result) = result(part)
            && known.len() < RESULTS_MAX
            && !known.contains(&result)
        {
            known.push(result);
        }
    }
}

fn result(part: &str) -> Option<String> {
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
