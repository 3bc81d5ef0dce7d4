//! The canonical form of addresses: the form in which rules, routes, limits and searches compare them.
//!
//! One mailbox has many spellings: quoted and escaped local-parts (RFC 5321 4.1.2), upper case, a dot at the end of the domain,
//! A-labels and U-labels (RFC 5890), decomposed letters. If rules compared spellings, a sender could evade a rule by another
//! spelling. The relay passes on every address as received; the canonical form is for comparison only.
//!
//! Two spellings that one common server takes for the same mailbox have one canonical form. The converse does not hold:
//! `Boss@` and `boss@` may be two mailboxes to their own domain (RFC 5321 2.4), and a rule covers both. Routing that only the
//! next hop knows (`boss%example.com@relay`, subaddresses, aliases) is no spelling.
//!
//! An address that is in canonical form already, as most are, costs a look at each octet and no allocation.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use icu_normalizer::ComposingNormalizerBorrowed;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

use super::{Glob, Mailbox, NotAGlob, ReversePath};

/// The characters that separate labels of a domain (UTS 46, 2.3).
const LABEL_SEPARATORS: [char; 4] = ['.', '\u{3002}', '\u{ff0e}', '\u{ff61}'];

/// The canonical form of a mailbox, or of the bare `postmaster`.
pub fn mailbox(text: &str) -> Cow<'_, str> {
    let Some((local, host)) = text.rsplit_once('@') else {
        return local_part(text);
    };
    let (local, host) = (local_part(local), domain(host));
    match (&local, &host) {
        // A borrowed part may still be shorter: without the dot at the end of the domain.
        (Cow::Borrowed(_), Cow::Borrowed(_)) if local.len() + 1 + host.len() == text.len() => {
            Cow::Borrowed(text)
        }
        _ => Cow::Owned(format!("{local}@{host}")),
    }
}

/// The canonical form of a pattern, or of a part of an address that a person searches. Without an `@` the part most likely ends
/// in a domain: `*.example.com`.
pub fn part(text: &str) -> Cow<'_, str> {
    match text.contains('@') {
        true => mailbox(text),
        false => domain(text),
    }
}

/// The canonical form of a local-part: without quotes, escapes and comments, in lower case, and composed (NFKC).
fn local_part(text: &str) -> Cow<'_, str> {
    let bare = unquoted(text);
    if bare.is_ascii() {
        return lower(bare);
    }
    // Upper case first: both forms of a small sigma, and ß and ss, have one upper-case form.
    let upper = composed(&bare).to_uppercase();
    Cow::Owned(composed(&upper.to_lowercase()).replace('ς', "σ"))
}

/// The canonical form of a domain: in lower case, with U-labels (RFC 5890 2.3.2.1), without a dot at its end. An address
/// literal has the shortest form of its IP address.
pub fn domain(text: &str) -> Cow<'_, str> {
    let text = text.trim_end_matches(LABEL_SEPARATORS);
    if text.starts_with('[') {
        return literal(text).map_or_else(|| lower(Cow::Borrowed(text)), Cow::Owned);
    }
    let bare = match unquoted(text) {
        // A comment may have hidden the dot at the end.
        Cow::Owned(bare) => Cow::Owned(bare.trim_end_matches(LABEL_SEPARATORS).to_owned()),
        bare => bare,
    };
    if bare.is_ascii() {
        let lower = lower(bare);
        return match memchr::memmem::find(lower.as_bytes(), b"xn--") {
            None => lower,
            Some(_) => Cow::Owned(unicode(&lower)),
        };
    }
    Cow::Owned(unicode(&bare))
}

/// The domain with U-labels. Each label is mapped on its own, so that a malformed label does not hide the others.
fn unicode(domain: &str) -> String {
    let labels = domain.split(LABEL_SEPARATORS).map(|label| {
        // A label with a wildcard stands in a pattern, and is part of a label at most.
        if !label.contains(['*', '?'])
            && let (mapped, Ok(())) =
                Uts46::new().to_unicode(label.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow)
        {
            return mapped.into_owned();
        }
        composed(&composed(label).to_lowercase()).into_owned()
    });
    let labels: Vec<String> = labels.collect();
    labels.join(".").trim_end_matches('.').to_owned()
}

/// The domain with A-labels, for a canonical domain outside ASCII.
pub(super) fn ascii(domain: &str) -> String {
    let labels = domain.split('.').map(|label| {
        let label = label.as_bytes();
        let deny = AsciiDenyList::EMPTY;
        let mapped = Uts46::new().to_ascii(label, deny, Hyphens::Allow, DnsLength::Ignore);
        mapped.unwrap_or_else(|_| String::from_utf8_lossy(label))
    });
    labels.collect::<Vec<_>>().join(".")
}

/// An address literal (RFC 5321 4.1.3) with its address in the shortest form; `None` if it has another form.
fn literal(text: &str) -> Option<String> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let six = inner
        .split_at_checked(5)
        .filter(|(tag, _)| tag.eq_ignore_ascii_case("IPv6:"));
    let address = match six {
        Some((_, address)) => address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)?,
        None => IpAddr::V4(inner.parse().ok()?),
    };
    Some(match address.to_canonical() {
        IpAddr::V4(v4) => format!("[{v4}]"),
        IpAddr::V6(v6) => format!("[ipv6:{v6}]"),
    })
}

/// Removes quotes, the backslashes of quoted pairs, and comments (RFC 5321 4.1.2, RFC 5322 3.2.2). Servers such as Postfix
/// remove them outside a quoted string as well. A malformed text does not change.
fn unquoted(text: &str) -> Cow<'_, str> {
    let has = |a, b, c| memchr::memchr3(a, b, c, text.as_bytes()).is_some();
    if !has(b'"', b'\\', b'(') {
        return Cow::Borrowed(text);
    }
    let mut bare = String::with_capacity(text.len());
    let (mut quoted, mut comments) = (false, 0_u32);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let kept = match c {
            '\\' => rest.next().or(Some(c)),
            '"' if comments == 0 => {
                quoted = !quoted;
                None
            }
            '(' if !quoted => {
                comments += 1;
                None
            }
            ')' if !quoted && comments > 0 => {
                comments -= 1;
                continue;
            }
            _ => Some(c),
        };
        bare.extend(kept.filter(|_| comments == 0));
    }
    match quoted || comments > 0 {
        true => Cow::Borrowed(text),
        false => Cow::Owned(bare),
    }
}

fn lower(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => text,
    }
}

/// Normalization form KC: one sequence of characters for each text, and the usual letters for full-width ones.
fn composed(text: &str) -> Cow<'_, str> {
    const { ComposingNormalizerBorrowed::new_nfkc() }.normalize(text)
}

/// An address of an envelope in the forms in which rules compare it. Made once for an address, however many rules there are.
#[derive(Debug, Clone)]
pub struct ComparedAddress<'a> {
    canonical: Cow<'a, str>,
    /// The same with A-labels, for a domain outside ASCII: a pattern such as `*@xn--*` is about A-labels.
    ascii: Option<String>,
}

impl<'a> ComparedAddress<'a> {
    /// The forms of a recipient.
    pub fn of(address: &'a Mailbox) -> Self {
        let canonical = mailbox(address.as_str());
        let ascii = canonical
            .rsplit_once('@')
            .filter(|(_, domain)| !domain.is_ascii())
            .map(|(local, domain)| format!("{local}@{}", ascii(domain)));
        Self { canonical, ascii }
    }

    /// The forms of a sender; `<>` stands for the null reverse-path.
    pub fn of_sender(path: &'a ReversePath) -> Self {
        path.mailbox().map_or(
            Self {
                canonical: Cow::Borrowed("<>"),
                ascii: None,
            },
            Self::of,
        )
    }

    /// Whether the whole address matches.
    pub fn matches(&self, pattern: &AddressPattern) -> bool {
        let ascii = self.ascii.as_deref();
        pattern.canonical.matches(&self.canonical)
            || ascii.is_some_and(|ascii| pattern.canonical.matches(ascii))
    }
}

/// A pattern of addresses: a [`Glob`] that is compared in canonical form. As text, and in JSON: the pattern as written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressPattern {
    written: String,
    canonical: Box<Glob>,
}

impl AddressPattern {
    /// Compiles a pattern; `None` if it is no [`Glob`].
    pub fn new(pattern: &str) -> Option<Self> {
        let written = Glob::new(pattern)?;
        Some(Self {
            // The canonical form of a strange pattern may be empty or too long.
            canonical: Glob::new(&part(pattern)).unwrap_or(written).into(),
            written: pattern.to_owned(),
        })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl FromStr for AddressPattern {
    type Err = NotAGlob;

    fn from_str(text: &str) -> Result<Self, NotAGlob> {
        Self::new(text).ok_or(NotAGlob)
    }
}

impl TryFrom<String> for AddressPattern {
    type Error = NotAGlob;

    fn try_from(text: String) -> Result<Self, NotAGlob> {
        text.parse()
    }
}

impl From<AddressPattern> for String {
    fn from(pattern: AddressPattern) -> Self {
        pattern.written
    }
}

impl fmt::Debug for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All spellings of one mailbox have one canonical form, which is the canonical form of itself.
    #[test]
    fn all_spellings_of_a_mailbox_have_one_form() {
        let spellings = [
            (
                "boss@example.com",
                &[
                    "Boss@EXAMPLE.com",
                    "\"boss\"@example.com",
                    "\"b\\oss\"@example.com",
                    "\"\\b\\o\\s\\s\"@example.com",
                    "b\\oss@example.com",
                    "\"bo\"\"ss\"@example.com",
                    "bo\"ss\"@example.com",
                    "boss@example.com.",
                    "boss@example.com..",
                    "boss@example.com\u{3002}",
                    "boss(the real one)@example.com",
                    "(a(b)\\))boss@(c)example.com",
                    "boss@example.com(x)",
                    "boss@example.com.(x)",
                    "boss@ex\\ample.com",
                    "boss@ｅｘａｍｐｌｅ.com",
                    "boss@example\u{ff0e}com",
                    "boss@exam\u{ad}ple.com",
                    "ｂｏｓｓ@example.com",
                ][..],
            ),
            (
                "michel@bücher.example",
                &[
                    "Michel@BÜCHER.example",
                    "michel@xn--bcher-kva.example",
                    "michel@XN--BCHER-KVA.Example.",
                    "michel@bu\u{308}cher.example",
                    "\"michel\"@xn--bcher-kva.example",
                ],
            ),
            (
                "rené@example.com",
                &["RENE\u{301}@example.com", "\"ren\\é\"@example.com"],
            ),
            (
                "νικοσ@example.com",
                &["ΝΙΚΟΣ@example.com", "Νικος@example.com"],
            ),
            (
                "a@[192.0.2.1]",
                &["A@[192.0.2.1]", "a@[IPv6:::ffff:192.0.2.1]"],
            ),
            (
                "a@[ipv6:2001:db8::1]",
                &["a@[IPv6:2001:DB8:0:0::1]", "a@[IPV6:2001:0db8::0001]"],
            ),
            ("postmaster", &["Postmaster", "POSTMASTER"]),
            (
                "a b@c.example",
                &["\"a b\"@c.example", "\"a\\ b\"@C.example"],
            ),
            ("a@x@c.example", &["\"a@x\"@c.example"]),
        ];
        for (canonical, others) in spellings {
            // Most addresses are such, and cost no allocation.
            let is_common = canonical.is_ascii() && !canonical.ends_with(']');
            assert_eq!(matches!(mailbox(canonical), Cow::Borrowed(_)), is_common);
            for spelling in others.iter().chain([&canonical]) {
                assert_eq!(mailbox(spelling), canonical, "{spelling}");
            }
        }
    }

    /// Another mailbox keeps another form, and malformed text stays as it is but for its case.
    #[test]
    fn other_mailboxes_keep_other_forms() {
        for text in [
            "bos@example.com",
            "boss+x@example.com",
            "boss@example.com.evil.test",
            "boss@notexample.com",
            "boss%example.com@relay.test",
            "\"boss@example.com\"@evil.test",
            "boss@xn--invalid-@.test",
        ] {
            assert_ne!(mailbox(text), "boss@example.com", "{text}");
        }
        for text in [
            "\"open@example.com",
            "open(@example.com",
            "a@[300.1.1.1]",
            "a@[tag:x]",
            "@",
            "",
            "a@xn--zzzzzzzzz.example",
        ] {
            assert_eq!(mailbox(text), text);
        }
    }

    /// A pattern matches every spelling of the addresses that it names, however the pattern itself is spelled, and a pattern
    /// about A-labels matches them.
    #[test]
    fn patterns_match_every_spelling() {
        let matches = |pattern: &str, address: &str| {
            let pattern = AddressPattern::new(pattern).expect(pattern);
            assert!(pattern.as_str().parse() == Ok(pattern.clone()));
            // The check of syntax is another part; here any text is an address.
            let address: Mailbox = serde_json::from_value(address.into()).expect("text");
            ComparedAddress::of(&address).matches(&pattern)
        };
        for (pattern, address, expected) in [
            ("*@example.com", "\"x\\y\"@EXAMPLE.COM.", true),
            ("*@Example.com.", "x@example.com", true),
            ("\"boss\"@example.com", "boss@example.com", true),
            ("\"b*\"@example.com", "\"boss\"@example.com", true),
            ("*@*.example.com", "x@a.example.com.", true),
            ("*.example.com", "x@a.EXAMPLE.com.", true),
            ("*@Bücher.example", "x@xn--bcher-kva.example", true),
            ("*@xn--bcher-kva.example", "x@bücher.example", true),
            ("*@büch*", "x@XN--bcher-kva.example", true),
            ("*@xn--*", "x@bücher.example", true),
            ("*@xn--*", "x@buecher.example", false),
            ("*@*.bücher.example", "x@xn--a-.xn--bcher-kva.example", true),
            ("*@[ipv6:2001:db8::1]", "x@[IPv6:2001:DB8:0::1]", true),
            ("<>", "x@example.com", false),
            ("postmaster", "Postmaster", true),
            ("*", "x@y", true),
            ("example.com", "x@example.com", false),
        ] {
            assert_eq!(matches(pattern, address), expected, "{pattern} {address}");
        }
        let null = ComparedAddress::of_sender(&ReversePath::NULL);
        assert!(null.matches(&AddressPattern::new("<>").expect("pattern")));
        assert_eq!(AddressPattern::new(""), None);
        assert!(AddressPattern::new("\"\"").is_some());
    }

    proptest::proptest! {
        /// No text panics, and no canonical form ends in a dot, which would be one more spelling.
        #[test]
        fn any_text_has_a_canonical_form(text in ".{0,40}|[\"\\\\()@.*xn\u{3002}\u{308}ß-]{0,40}") {
            let _ = (part(&text), AddressPattern::new(&text));
            proptest::prop_assert!(!domain(&text).ends_with('.'));
            let mailbox: Mailbox = serde_json::from_value(text.clone().into()).expect("text");
            let any = AddressPattern::new("*").expect("pattern");
            proptest::prop_assert!(ComparedAddress::of(&mailbox).matches(&any));
        }
    }
}
