//! The attachment engine: what a message is made of, against what the administrator allows.
//!
//! It reads names, declared types and first octets, in zip archives too. A limit that it meets is not an answer: it
//! reports `limits-reached`, with what it found so far.

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

/// Findings of one name. A million files with forbidden names are no better known by a million findings, and none may
/// be hidden behind a million that mean nothing.
const FINDINGS: usize = 50;
/// Octets of a file in an archive that are unpacked: enough to recognise its type.
const HEAD: u64 = 4096;

/// The engine.
#[derive(Debug)]
pub(super) struct Attachments {
    settings: AttachmentSettings,
}

impl Attachments {
    /// An engine with these settings.
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
            answer.await.map(EngineAnswer::local)
        })
    }
}

/// One look at one message.
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
        // The inspection is shared and may have gone further than we are asked to.
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
        if same < FINDINGS {
            let detail: String = detail.chars().take(300).collect();
            let finding = Finding::new(kind, name, score).with_detail(detail);
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    fn part(&mut self, part: &Part) {
        if part.is_ambiguous {
            let detail = format!("part {} is declared twice, differently", part.path);
            self.found(FindingKind::Suspicious, "ambiguous-mime", 3.0, &detail);
        }
        if part.declared == "message/partial" {
            // Pieces that only the reader's program puts together (RFC 2046 5.2.2): no engine sees the whole.
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

    /// A program that says it is something else.
    fn disguise(&mut self, sniffed: Sniffed, declared: Option<&str>, names: &[Name], what: &str) {
        if !sniffed.is_executable() {
            return;
        }
        let shown_as_other = match declared {
            // An archive has names only.
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
            wanted: HEAD,
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
                // Its name was seen, and that is what this engine judges by.
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

/// Text as it stands, without a name: mail readers show it and nobody opens it as a file. Most mail is only that, and
/// recognising types costs more than all the rest.
fn is_inline_text(part: &Part) -> bool {
    let is_plain = matches!(part.declared.as_str(), "text/plain" | "text/html");
    is_plain && !part.is_encoded && !part.is_attachment
}

/// Whether a media type is meant: exactly, or by `image/*`.
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
