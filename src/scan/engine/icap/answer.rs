//! What an ICAP service says.

use std::collections::HashSet;
use std::time::Duration;

use crate::message::header::Field;
use crate::scan::engine::head::{self, Malformed, first_line};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Names of one answer.
const NAMES: usize = 50;
/// The largest preview that is sent, whatever is asked for: more can as well be the whole message.
const PREVIEW: usize = 64 * 1024;

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The status line.
    pub line: String,
    /// The tag of the service and its signatures (RFC 3507 4.7).
    pub istag: Option<String>,
    /// Whether the connection may be used again.
    pub keep: bool,
    /// The parts of what is encapsulated, in order (RFC 3507 4.4.1).
    parts: Vec<String>,
    /// X-Infection-Found, X-Virus-ID, X-Violations-Found: each of them, the last ones in lines.
    infections: Vec<String>,
    viruses: Vec<String>,
    violations: Vec<Vec<String>>,
}

/// What a service wants (RFC 3507 4.10.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The methods that it knows.
    pub methods: Vec<String>,
    /// Octets of a preview; none: it wants none.
    pub preview: Option<usize>,
    /// Connections that it takes at most.
    pub max_connections: Option<usize>,
    /// How long this holds.
    pub ttl: Option<Duration>,
    /// Its tag.
    pub istag: Option<String>,
}

/// Reads the head of an answer, up to and with its empty line.
pub fn head(answer: &[u8]) -> Result<Head, Malformed> {
    let line = first_line(answer).ok_or_else(|| Malformed::garbage(answer))?;
    let status = status(line, "ICAP/").ok_or_else(|| Malformed::garbage(answer))?;
    // The 100 of RFC 3507 has no fields at all in some services.
    let fields = head::Head::split(answer)?.ok_or(Malformed::CutOff)?.0;
    let close = fields.get("Connection");
    let close = close.is_some_and(|value| value.to_ascii_lowercase().contains("close"));
    let parts = fields.only("Encapsulated")?.unwrap_or_default();
    let part = |part: &str| {
        let name = part.split('=').next().unwrap_or_default();
        name.trim().to_ascii_lowercase()
    };
    let all = |name: &str| {
        let values = fields.all(name).map(|field| field.unfolded());
        values.filter(|value| !value.is_empty()).collect()
    };
    Ok(Head {
        status,
        line: line.to_owned(),
        istag: istag(&fields),
        keep: !close,
        parts: parts.split(',').take(10).map(part).collect(),
        infections: all("X-Infection-Found"),
        viruses: all("X-Virus-ID"),
        violations: fields.all("X-Violations-Found").map(lines).collect(),
    })
}

/// Reads an answer to OPTIONS.
pub fn options(answer: &[u8]) -> Result<Options, Malformed> {
    let fields = head::Head::split(answer)?.ok_or(Malformed::CutOff)?.0;
    let methods = fields.get("Methods").unwrap_or_default();
    let method = |method: &str| method.trim().to_ascii_uppercase();
    let ttl = fields.number("Options-TTL")?;
    Ok(Options {
        methods: methods.split(',').take(10).map(method).collect(),
        preview: fields.number("Preview")?.map(|most| most.min(PREVIEW)),
        max_connections: fields.number("Max-Connections")?.filter(|most| *most > 0),
        ttl: ttl.map(|seconds| Duration::from_secs(seconds as u64)),
        istag: istag(&fields),
    })
}

/// The status of an HTTP response that is part of an answer.
pub fn encapsulated_status(http: &[u8]) -> Result<u16, Malformed> {
    let line = first_line(http).ok_or_else(|| Malformed::garbage(http))?;
    status(line, "HTTP/").ok_or_else(|| Malformed::garbage(http))
}

/// The size in the line before a chunk: hexadecimal, perhaps with extensions behind it (RFC 9112 7.1).
pub fn chunk_size(line: &[u8]) -> Result<usize, Malformed> {
    let text = std::str::from_utf8(line).map_err(|_| Malformed::garbage(line))?;
    let digits = text.split(';').next().unwrap_or_default().trim();
    let hexadecimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let size = usize::from_str_radix(digits, 16)
        .ok()
        .filter(|_| hexadecimal);
    size.ok_or_else(|| Malformed::garbage(line))
}

fn status(line: &str, protocol: &str) -> Option<u16> {
    let rest = line.strip_prefix(protocol)?;
    let code = rest.split(' ').nth(1)?;
    let three = code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit());
    code.parse().ok().filter(|_| three)
}

fn istag(fields: &head::Head<'_>) -> Option<String> {
    let text = fields.get("ISTag")?;
    let bare = text.trim_matches('"');
    let plain = !bare.is_empty() && bare.len() <= 200 && !bare.contains(char::is_control);
    plain.then(|| bare.to_owned())
}

impl Head {
    /// Whether something of that name is encapsulated.
    pub(super) fn has_part(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part == name)
    }

    /// Whether no body follows.
    pub(super) fn has_no_body(&self) -> bool {
        !self
            .parts
            .iter()
            .any(|part| part.ends_with("-body") && part != "null-body")
    }

    /// What the service says that it has found, if it says so.
    pub fn findings(&self) -> Option<Answer> {
        let infections = self.infections.iter().map(|text| Infection::read(text));
        let mut infections: Vec<_> = infections.map(|i| (i.kind, i.threat)).collect();
        infections.sort_by_key(|(kind, _)| *kind);
        // Violations that no infection is about are of the gravest kind told, unless that is the one of limits.
        let gravest = infections.first().map(|(kind, _)| *kind);
        let gravest = gravest.filter(|kind| *kind != FindingKind::Info);
        let kind = gravest.unwrap_or(FindingKind::Malware);
        let violations = self.violations.iter().flat_map(|lines| threats(lines));
        let viruses = self.viruses.iter().map(String::as_str);
        let viruses = viruses.map(|name| (FindingKind::Malware, name));
        let others = viruses.chain(violations.map(|name| (kind, name)));
        let mut named = HashSet::new();
        let mut found: Vec<_> = infections.into_iter().chain(others).collect();
        found.retain(|(_, name)| named.insert(*name));
        if found.is_empty() && self.violations.iter().any(|lines| says_something(lines)) {
            found.push((kind, "violation"));
        }
        found.sort_by_key(|(kind, _)| *kind);
        found.truncate(NAMES);
        let (gravest, _) = *found.first()?;
        let mut findings: Vec<_> = found
            .into_iter()
            .map(|(kind, name)| Finding::new(kind, name, 0.0))
            .collect();
        if gravest == FindingKind::Info {
            // A container that it could not look into, and nothing else.
            return Some(Answer::None {
                reason: Reason::LimitsReached,
                detail: "the service could not look into everything".to_owned(),
                findings,
            });
        }
        findings[0].score = 10.0;
        Some(Answer::Answered(findings))
    }
}

/// `Type=0; Resolution=2; Threat=Name;`
struct Infection<'a> {
    kind: FindingKind,
    threat: &'a str,
}

impl<'a> Infection<'a> {
    /// Types: 0 is a virus, 1 a violation of a mail policy, 2 of limits on containers.
    fn read(text: &'a str) -> Self {
        let part = |name: &str| {
            let mut parts = text.split(';').map(str::trim);
            parts.find_map(|part| part.strip_prefix(name))
        };
        let kind = match part("Type=") {
            Some("1") => FindingKind::Policy,
            Some("2") => FindingKind::Info,
            _ => FindingKind::Malware,
        };
        let threat = part("Threat=").filter(|threat| !threat.is_empty());
        Self {
            kind,
            threat: threat.unwrap_or(text),
        }
    }
}

/// The lines of a field, each trimmed: here folding means something.
fn lines(field: Field<'_>) -> Vec<String> {
    let text = String::from_utf8_lossy(field.body);
    let lines = text.split("\r\n");
    lines.map(|line| line.trim().to_owned()).collect()
}

/// A count, and then in lines of their own file, threat, problem and resolution of each: the threats, whatever the count.
fn threats(lines: &[String]) -> impl Iterator<Item = &str> {
    let groups = lines.get(1..).unwrap_or_default().chunks(4);
    let threats = groups.filter_map(|group| group.get(1));
    threats
        .map(String::as_str)
        .filter(|threat| !threat.is_empty())
}

/// Whether a field about violations is there for more than to say that there are none.
fn says_something(lines: &[String]) -> bool {
    !matches!(&*lines.concat(), "" | "0" | "-")
}
