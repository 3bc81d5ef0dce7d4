//! Reads the answers of an ICAP service.

use std::collections::HashSet;
use std::time::Duration;

use crate::message::header::Field;
use crate::scan::engine::head::{self, Malformed, first_line};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Findings of one answer, to bound the size of a report.
const NAMES_MAX: usize = 50;
/// Largest preview that the relay sends, even if the service asks for more. Above 64 KiB, sending the whole message costs
/// little more.
const PREVIEW_OCTETS_MAX: usize = 64 * 1024;

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The status line.
    pub line: String,
    /// ISTag: the tag of the service and its signatures (RFC 3507 section 4.7).
    pub istag: Option<String>,
    /// Whether the connection may be used again.
    pub keep: bool,
    /// Names of the encapsulated parts, in order (RFC 3507 section 4.4.1).
    parts: Vec<String>,
    /// Values of all X-Infection-Found fields.
    infections: Vec<String>,
    /// Values of all X-Virus-ID fields.
    viruses: Vec<String>,
    /// Lines of each X-Violations-Found field.
    violations: Vec<Vec<String>>,
}

/// The answer of a service to OPTIONS (RFC 3507 section 4.10.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Methods that the service supports.
    pub methods: Vec<String>,
    /// Octets of a preview; `None` if the service wants no preview.
    pub preview: Option<usize>,
    /// Connections that the service accepts at once.
    pub max_connections: Option<usize>,
    /// Time for which the options are valid.
    pub ttl: Option<Duration>,
    /// ISTag of the service.
    pub istag: Option<String>,
}

/// Reads the head of an answer, up to and including its empty line.
pub fn head(answer: &[u8]) -> Result<Head, Malformed> {
    let line = first_line(answer).ok_or_else(|| Malformed::garbage(answer))?;
    let status = status(line, "ICAP/").ok_or_else(|| Malformed::garbage(answer))?;
    // Some services send the 100 of RFC 3507 without any field.
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
        preview: fields
            .number("Preview")?
            .map(|most| most.min(PREVIEW_OCTETS_MAX)),
        max_connections: fields.number("Max-Connections")?.filter(|most| *most > 0),
        ttl: ttl.map(|seconds| Duration::from_secs(seconds as u64)),
        istag: istag(&fields),
    })
}

/// Reads the status of an encapsulated HTTP response.
pub fn encapsulated_status(http: &[u8]) -> Result<u16, Malformed> {
    let line = first_line(http).ok_or_else(|| Malformed::garbage(http))?;
    status(line, "HTTP/").ok_or_else(|| Malformed::garbage(http))
}

/// Reads the line before a chunk: the size in hexadecimal digits, with optional extensions after it (RFC 9112 section 7.1).
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
    /// Whether the answer encapsulates a part of this name.
    pub(super) fn has_part(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part == name)
    }

    /// Whether the answer has no body.
    pub(super) fn has_no_body(&self) -> bool {
        !self
            .parts
            .iter()
            .any(|part| part.ends_with("-body") && part != "null-body")
    }

    /// The findings in the header fields; `None` if the fields name no finding.
    pub fn findings(&self) -> Option<Answer> {
        let infections = self.infections.iter().map(|text| Infection::read(text));
        let mut infections: Vec<_> = infections.map(|i| (i.kind, i.threat)).collect();
        infections.sort_by_key(|(kind, _)| *kind);
        // A violation that no infection field names gets the gravest kind of the infection fields, unless that is the kind of
        // limits.
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
        found.truncate(NAMES_MAX);
        let (gravest, _) = *found.first()?;
        let mut findings: Vec<_> = found
            .into_iter()
            .map(|(kind, name)| Finding::new(kind, name, 0.0))
            .collect();
        if gravest == FindingKind::Info {
            // The only finding is a container that the service could not scan.
            return Some(Answer::None {
                reason: Reason::LimitsReached,
                detail: "the service could not scan every container in the message".to_owned(),
                findings,
            });
        }
        findings[0].score = 10.0;
        Some(Answer::Answered(findings))
    }
}

/// The value of an X-Infection-Found field: `Type=0; Resolution=2; Threat=Name;`
struct Infection<'a> {
    kind: FindingKind,
    threat: &'a str,
}

impl<'a> Infection<'a> {
    /// Reads the value. Type 0 is a virus, 1 a violation of a mail policy, 2 a violation of limits on containers.
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

/// The lines of a field, each trimmed. In X-Violations-Found, line breaks separate values.
fn lines(field: Field<'_>) -> Vec<String> {
    let text = String::from_utf8_lossy(field.body);
    let lines = text.split("\r\n");
    lines.map(|line| line.trim().to_owned()).collect()
}

/// The threats in the lines of an X-Violations-Found field. The field has a count, and then four lines for each violation:
/// file, threat, problem and resolution. A wrong count does not matter.
fn threats(lines: &[String]) -> impl Iterator<Item = &str> {
    let groups = lines.get(1..).unwrap_or_default().chunks(4);
    let threats = groups.filter_map(|group| group.get(1));
    threats
        .map(String::as_str)
        .filter(|threat| !threat.is_empty())
}

/// Whether an X-Violations-Found field says more than that there are no violations.
fn says_something(lines: &[String]) -> bool {
    !matches!(&*lines.concat(), "" | "0" | "-")
}
