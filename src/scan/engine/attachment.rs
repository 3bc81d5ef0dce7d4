//! The attachment engine compares the structure of a message with what the administrator allows.
//!
//! The engine reads names, declared types and the first octets of files, also in zip archives. If the engine reaches one of its
//! limits, it has no complete answer: it reports `limits-reached` and the findings so far (promise P4).

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::archive::{self, Member, Trouble, Walk};
use super::name::Name;
use super::{
    AttachmentSettings, Engine, EngineAnswer, Sample, ScanError, compute, encrypted, is_short,
};
use crate::deadline::Deadline;
use crate::message::mime::{self, Exceeded, Inspection, Part, Sniffed};
use crate::verdict::{Answer, Finding, FindingKind, Reason};

/// Bounds the report: a million findings say no more about a million forbidden files than 50 do. The bound counts each finding
/// name for itself, so that findings of one name cannot hide a finding of another name (promise P4).
const FINDINGS_PER_NAME_MAX: usize = 50;
/// Octets of a file in an archive that the engine unpacks: enough to recognise the type of the file.
const SNIFFED_OCTETS_MAX: u64 = 4096;

/// The attachment engine.
#[derive(Debug)]
pub(super) struct Attachments {
    settings: AttachmentSettings,
}

impl Attachments {
    /// Makes an engine with these settings.
    pub(super) fn new(settings: AttachmentSettings) -> Self {
        Self { settings }
    }
}

impl Engine for Attachments {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let inspection = sample.inspection().await;
            let short = is_short(sample.content(), &inspection);
            let deadline = sample.deadline();
            let answer = compute(short, move || {
                let _content = sample;
                Look::new(&self.settings).message(&inspection, deadline)
            });
            answer.await.map(EngineAnswer::new)
        })
    }
}

/// One examination of one message.
struct Look<'a> {
    settings: &'a AttachmentSettings,
    findings: Vec<Finding>,
    unseen: Vec<String>,
}

impl<'a> Look<'a> {
    fn new(settings: &'a AttachmentSettings) -> Self {
        Self {
            settings,
            findings: Vec::new(),
            unseen: Vec::new(),
        }
    }

    fn message(mut self, inspection: &Inspection, deadline: Deadline) -> Answer {
        self.structure(inspection);
        for part in &inspection.parts {
            self.part(part);
        }
        self.archives(inspection, deadline);
        if self.unseen.is_empty() {
            return Answer::Answered(self.findings);
        }
        Answer::None {
            reason: match deadline.passed() {
                true => Reason::Timeout,
                false => Reason::LimitsReached,
            },
            detail: self.unseen.join("; "),
            findings: self.findings,
        }
    }

    fn structure(&mut self, inspection: &Inspection) {
        let mut exceeded = inspection.exceeded.clone();
        // All engines share the inspection, and its limits may be wider than those of this engine.
        if inspection.depth > self.settings.max_depth && !exceeded.contains(&Exceeded::Depth) {
            exceeded.push(Exceeded::Depth);
        }
        if inspection.parts.len() > self.settings.max_parts && !exceeded.contains(&Exceeded::Parts)
        {
            exceeded.push(Exceeded::Parts);
        }
        self.unseen
            .extend(exceeded.iter().map(|limit| limit.as_str().to_owned()));
    }

    fn found(&mut self, kind: FindingKind, name: &str, score: f64, detail: &str) {
        let same = self.findings.iter().filter(|f| f.name == name).count();
        if same < FINDINGS_PER_NAME_MAX {
            let detail: String = detail.chars().take(300).collect();
            let finding = Finding::new(kind, name, score).with_detail(detail);
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    fn part(&mut self, part: &Part) {
        if part.is_ambiguous {
            let detail = format!(
                "part {} declares its type or encoding twice, with different values",
                part.path
            );
            self.found(FindingKind::Suspicious, "ambiguous-mime", 3.0, &detail);
        }
        if part.declared == "message/partial" {
            // The mail program of the recipient joins the fragments (RFC 2046 5.2.2), so no engine sees the whole message.
            self.found(FindingKind::Suspicious, "message-fragment", 5.0, &part.path);
        }
        if part.is_encrypted {
            let detail = format!("part {}", part.path);
            self.found(FindingKind::Info, "encrypted-message", 0.0, &detail);
        }
        for name in &part.names {
            self.name(name, &part.path);
        }
        let what = format!("{} {}", part.path, part.name().unwrap_or("(no name)"));
        if part.is_container || is_inline_text(part) {
            return self.types(&[&part.declared], &what);
        }
        let sniffed = part.sniffed();
        self.types(&[&part.declared, sniffed.media_type()], &what);
        let names: Vec<Name> = part.names.iter().map(|name| Name::read(name)).collect();
        self.disguise(sniffed, Some(&part.declared), &names, &what);
        if let Some(kind) = encrypted::kind(&part.bytes) {
            self.encrypted(&format!("{what}: {kind}"));
        }
    }

    fn name(&mut self, raw: &str, place: &str) {
        let name = Name::read(raw);
        let detail = format!("{place} {raw}");
        let blocked = |extension: &str| {
            let list = &self.settings.block_extensions;
            list.iter().any(|blocked| blocked == extension)
        };
        if name.extensions().any(blocked) {
            self.found(FindingKind::Policy, "blocked-extension", 5.0, &detail);
        }
        if name.has_double_extension() {
            self.found(FindingKind::Suspicious, "double-extension", 5.0, &detail);
        }
        if name.is_disguised {
            self.found(FindingKind::Suspicious, "disguised-name", 5.0, &detail);
        }
    }

    fn types(&mut self, types: &[&str], what: &str) {
        let blocked = types
            .iter()
            .find(|kind| self.settings.block_types.iter().any(|b| matches(b, kind)));
        if let Some(kind) = blocked {
            let detail = format!("{what}: {kind}");
            self.found(FindingKind::Policy, "blocked-type", 5.0, &detail);
        }
    }

    /// Reports a program whose name or declared type says that it is something else.
    fn disguise(&mut self, sniffed: Sniffed, declared: Option<&str>, names: &[Name], what: &str) {
        if !sniffed.is_executable() {
            return;
        }
        let shown_as_other = match declared {
            // A name decides, if there is one. Nothing declares a type for a file in an archive.
            _ if !names.is_empty() => !names.iter().any(Name::runs),
            Some(declared) => !declared.starts_with("application/"),
            None => false,
        };
        if shown_as_other {
            let detail = format!("{what}: {}", sniffed.media_type());
            self.found(
                FindingKind::Suspicious,
                "disguised-executable",
                8.0,
                &detail,
            );
        }
    }

    fn encrypted(&mut self, detail: &str) {
        let (kind, score) = match self.settings.block_encrypted {
            true => (FindingKind::Policy, 5.0),
            false => (FindingKind::Info, 0.0),
        };
        self.found(kind, "encrypted-archive", score, detail);
    }

    fn archives(&mut self, inspection: &Inspection, deadline: Deadline) {
        let limits = archive::Limits {
            depth: self.settings.max_depth,
            files: self.settings.max_archive_files,
            ratio: self.settings.max_ratio,
            wanted: SNIFFED_OCTETS_MAX,
        };
        let mut visit = |member: &Member<'_>| {
            self.name(member.name, member.path);
            if !member.bytes.is_empty() {
                let sniffed = mime::sniff(member.bytes);
                self.types(&[sniffed.media_type()], member.path);
                self.disguise(sniffed, None, &[Name::read(member.name)], member.path);
                if let Some(kind) = encrypted::kind(member.bytes) {
                    self.encrypted(&format!("{}: {kind}", member.path));
                }
            }
        };
        let mut walk = Walk::new(limits, deadline, &mut visit);
        for part in inspection.parts.iter().filter(|part| !part.is_container) {
            let path = format!("{} {}", part.path, part.name().unwrap_or("(no name)"));
            walk.archive(&path, &part.bytes);
        }
        for trouble in walk.troubles {
            match trouble {
                Trouble::Encrypted(_) => self.encrypted(&trouble.to_string()),
                // The name of the file is known, and this engine judges by names.
                Trouble::Unreadable(_) => {
                    self.found(
                        FindingKind::Info,
                        "unreadable-archive",
                        0.0,
                        &trouble.to_string(),
                    );
                }
                Trouble::Unopened(_)
                | Trouble::Twice(_)
                | Trouble::Depth(_)
                | Trouble::Files(_)
                | Trouble::Bomb(_)
                | Trouble::Deadline => self.unseen.push(trouble.to_string()),
            }
        }
    }
}

/// Whether a part is plain or HTML text without encoding and without a name. Mail programs display such a part and do not open
/// it as a file. Most mail consists only of such parts, and recognising types costs more than all other work of this engine.
fn is_inline_text(part: &Part) -> bool {
    let is_plain = matches!(part.declared.as_str(), "text/plain" | "text/html");
    is_plain && !part.is_encoded && !part.is_attachment
}

/// Whether a media type matches a pattern: the whole type, or a prefix as in `image/*`.
fn matches(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => kind
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
        None => kind.eq_ignore_ascii_case(pattern),
    }
}

#[cfg(test)]
mod tests;
