//! The rules engine: YARA rules in process, by boreal.
//!
//! The engine scans the decoded parts, the files in zip archives among them, and the content without decoding, which covers
//! header sections and everything between the parts. The latter also covers parts of plain text that are not encoded.
//!
//! The metadata of a rule gives the meaning of a match: `kind` (a [`FindingKind`] in lower case; `malware` if absent, as in
//! other scanners with signatures), `score` (a number, 10 if absent), `description` (shown as detail) and `name` (shown
//! instead of the rule's name, in which YARA does not allow hyphens). Rules may use the usual external variables `filename`,
//! `filepath`, `extension` and `filetype`; a variable is empty if there is no name or type.
//!
//! The engine reads rule files again when they change ([`reload`]). The version of the rules, shown as that of the
//! signatures, is a hash of all rules, so answers of other rules are not used again.
//!
//! Known limits: the engine does not watch files that a rule file includes. It unpacks only zip archives; it scans other
//! archives, and content that is packed in documents, without unpacking. An encrypted zip archive gives the reason
//! `encrypted`, and is not clean.

mod reload;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use boreal::compiler::CompilerBuilder;
use boreal::scanner::{ScanError as Stopped, ScanResult};
use boreal::{Compiler, Metadata, MetadataValue, Scanner};
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::archive::{self, Member, Trouble, Walk};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError, compute, is_short};
use crate::deadline::Deadline;
use crate::file;
use crate::message::mime::{Inspection, Part};
use crate::verdict::{Answer, Finding, FindingKind, Reason};
use reload::Sources;

/// The namespace of the built-in rules.
const BUILTIN_NAMESPACE: &str = "spillway";
/// The built-in rules.
const BUILTIN_RULES: [&str; 4] = [
    include_str!("rules/test.yar"),
    include_str!("rules/programs.yar"),
    include_str!("rules/documents.yar"),
    include_str!("rules/web.yar"),
];
/// External variables that rules may use besides the content.
const EXTERNAL_VARIABLES: [&str; 4] = ["filename", "filepath", "extension", "filetype"];
/// Octets of a rule file: ten times those of the largest public collections.
const RULE_FILE_OCTETS_MAX: u64 = 64 << 20;
/// Limits of unpacking archives. Each file in an archive is scanned completely.
const ARCHIVE_LIMITS: archive::Limits = archive::Limits {
    depth: 8,
    files: 10_000,
    ratio: 1100,
    wanted: u64::MAX,
};

/// The engine. New rules replace the old ones when rule files change; a scan keeps the rules with which it began.
#[derive(Debug)]
pub(super) struct Rules {
    sources: Sources,
    set: ArcSwap<Set>,
    is_watched: AtomicBool,
}

/// The rules of one load.
#[derive(Debug)]
struct Set {
    scanner: Scanner,
    meanings: HashMap<(String, String), Meaning>,
    version: String,
    /// Whether all rules are built-in ones.
    is_ours: bool,
}

/// The meaning of a match of a rule.
#[derive(Debug, Clone, PartialEq)]
struct Meaning {
    kind: FindingKind,
    score: f64,
    name: Option<String>,
    description: Option<String>,
}

impl Rules {
    /// Compiles the built-in rules if `builtin` is true, and those of all `paths`. Blocks.
    pub(super) fn compile(builtin: bool, paths: &[PathBuf]) -> Result<Self, BuildError> {
        let (sources, set) = Sources::read(builtin, paths)?;
        Ok(Self {
            sources,
            set: ArcSwap::from_pointee(set),
            is_watched: AtomicBool::new(false),
        })
    }
}

impl Set {
    fn compile(builtin: bool, files: &[PathBuf]) -> Result<Self, BuildError> {
        let mut compiler = CompilerBuilder::new().build();
        for variable in EXTERNAL_VARIABLES {
            compiler.define_symbol(variable, "");
        }
        let mut digest = Sha256::new();
        if builtin {
            for text in BUILTIN_RULES {
                let added = compiler.add_rules_str_in_namespace(text, BUILTIN_NAMESPACE);
                added.map_err(|error| BuildError::Rule(error.to_string()))?;
                digest.update(text);
            }
        }
        if !builtin && files.is_empty() {
            return Err(BuildError::NoRules);
        }
        for file in files {
            digest.update(add_file(&mut compiler, file)?);
        }
        let scanner = compiler.finalize();
        let meanings = meanings(&scanner)?;
        let version = digest.finalize();
        let version = version.iter().take(6).map(|octet| format!("{octet:02x}"));
        Ok(Self {
            version: format!("{} rules, {}", meanings.len(), version.collect::<String>()),
            scanner,
            meanings,
            is_ours: files.is_empty(),
        })
    }

    fn look(&self, sample: &Sample, inspection: &Inspection, only_ours: bool) -> Answer {
        let mut hunt = Hunt {
            rules: self,
            scanner: self.scanner.clone(),
            deadline: sample.deadline(),
            matched: HashSet::new(),
            findings: Vec::new(),
            is_late: false,
            only_ours,
        };
        for part in inspection.parts.iter().filter(|part| is_hidden(part)) {
            hunt.part(part);
        }
        let troubles = hunt.archives(inspection);
        // The whole content comes last, so that a rule that matches a part too is shown with that part.
        hunt.scan(sample.content().bytes(), "the undecoded message");
        hunt.answer(inspection, troubles)
    }
}

impl Engine for Rules {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let inspection = sample.inspection().await;
            let set = self.set.load_full();
            // The cost of the built-in rules is known. Other rules may take any time, so they must not run on a thread of the
            // runtime.
            let short = set.is_ours && is_short(sample.content(), &inspection);
            let version = self.sources.version(&set.version);
            // A rule of the administrator may match every message, and then a match in a probe is correct. So it does not
            // count against the engine.
            let only_ours = self.sources.builtin && sample.probe().is_some();
            let answer = compute(short, move || set.look(&sample, &inspection, only_ours)).await?;
            Ok(EngineAnswer {
                signatures: Some(version),
                ..EngineAnswer::new(answer)
            })
        })
    }

    fn signatures(&self) -> Option<String> {
        Some(self.sources.version(&self.set.load().version))
    }

    /// Only the built-in rules are known to match a test file.
    fn probes(&self) -> Option<Probes> {
        self.sources.builtin.then(Probes::malware)
    }

    fn watch(self: Arc<Self>) {
        if !self.is_watched.swap(true, Ordering::Relaxed) {
            tokio::spawn(reload::keep_up(Arc::downgrade(&self)));
        }
    }
}

/// Whether a scan of the undecoded content does not see the content of the part, or not at the offsets and with the name that
/// rules expect.
fn is_hidden(part: &Part) -> bool {
    !part.is_container
        && (part.is_encoded || part.is_attachment || !part.declared.starts_with("text/"))
}

/// One scan of one message.
struct Hunt<'r> {
    rules: &'r Set,
    scanner: Scanner,
    deadline: Deadline,
    matched: HashSet<(String, String)>,
    findings: Vec<Finding>,
    is_late: bool,
    only_ours: bool,
}

impl Hunt<'_> {
    fn part(&mut self, part: &Part) {
        let name = part.name().unwrap_or_default();
        self.name(name, &part.path, &part.declared);
        self.scan(&part.bytes, &format!("part {} {name}", part.path));
        self.name("", "", "");
    }

    fn archives(&mut self, inspection: &Inspection) -> Vec<Trouble> {
        let deadline = self.deadline;
        let mut visit = |member: &Member<'_>| {
            self.name(member.name, member.path, "");
            self.scan(member.bytes, member.path);
        };
        let mut walk = Walk::new(ARCHIVE_LIMITS, deadline, &mut visit);
        for part in inspection.parts.iter().filter(|part| !part.is_container) {
            let path = format!("part {} {}", part.path, part.name().unwrap_or_default());
            walk.archive(&path, &part.bytes);
        }
        let troubles = walk.troubles;
        self.name("", "", "");
        troubles
    }

    fn name(&mut self, name: &str, path: &str, kind: &str) {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let values = [name, path, extension, kind];
        for (variable, value) in EXTERNAL_VARIABLES.into_iter().zip(values) {
            // Each variable was defined as a string when the rules were compiled.
            let defined = self.scanner.define_symbol(variable, value);
            debug_assert!(defined.is_ok(), "{variable}");
        }
    }

    fn scan(&mut self, bytes: &[u8], place: &str) {
        if self.is_late || self.deadline.passed() {
            self.is_late = true;
            return;
        }
        let params = self.scanner.scan_params().clone();
        let params = params.timeout_duration(Some(self.deadline.remaining()));
        self.scanner.set_scan_params(params);
        let scanner = self.scanner.clone();
        match scanner.scan_mem(bytes) {
            Ok(result) => self.take(&result, place),
            Err((stopped, result)) => {
                self.take(&result, place);
                self.is_late |= matches!(stopped, Stopped::Timeout);
            }
        }
    }

    fn take(&mut self, result: &ScanResult<'_>, place: &str) {
        for rule in &result.rules {
            if self.only_ours && rule.namespace != BUILTIN_NAMESPACE {
                continue;
            }
            let key = (rule.namespace.to_owned(), rule.name.to_owned());
            let Some(meaning) = self.rules.meanings.get(&key) else {
                continue;
            };
            let name = meaning.name.as_deref().unwrap_or(rule.name);
            // A rule counts once, even if it matches several parts. Another rule of the same name counts too: it may have
            // another meaning.
            if !self.matched.insert(key) {
                continue;
            }
            let place: String = place.chars().take(200).collect();
            let detail = match &meaning.description {
                Some(description) => format!("{description}: {place}"),
                None => place,
            };
            let finding = Finding::new(meaning.kind, name, meaning.score).with_detail(detail);
            self.findings.push(finding);
        }
    }

    fn answer(self, inspection: &Inspection, troubles: Vec<Trouble>) -> Answer {
        let exceeded = inspection.exceeded.iter().map(|limit| limit.as_str());
        let mut unseen: Vec<String> = exceeded.map(str::to_owned).collect();
        let only_encrypted =
            unseen.is_empty() && troubles.iter().all(|t| matches!(t, Trouble::Encrypted(_)));
        unseen.extend(troubles.iter().map(Trouble::to_string));
        let reason = if self.is_late {
            unseen.push("the deadline passed before the end of the scan".to_owned());
            Reason::Timeout
        } else if unseen.is_empty() {
            return Answer::Answered(self.findings);
        } else if only_encrypted {
            Reason::Encrypted
        } else {
            Reason::LimitsReached
        };
        Answer::None {
            reason,
            detail: unseen.join("; "),
            findings: self.findings,
        }
    }
}

/// Adds a rule file, and returns its content. Each file has its own namespace, because rule sets of different authors use the
/// same names.
fn add_file(compiler: &mut Compiler, path: &Path) -> Result<Vec<u8>, BuildError> {
    let text = file::read(path, RULE_FILE_OCTETS_MAX).map_err(|cause| BuildError::Unreadable {
        path: path.to_owned(),
        cause: cause.to_string(),
    })?;
    let added = compiler.add_rules_file_in_namespace(path, path.to_string_lossy());
    let status = added.map_err(|error| BuildError::Rule(error.to_string()))?;
    for warning in status.warnings() {
        tracing::warn!(%warning, "rule file");
    }
    Ok(text)
}

fn meanings(scanner: &Scanner) -> Result<HashMap<(String, String), Meaning>, BuildError> {
    let rules = scanner.rules().filter(|rule| !rule.is_private);
    rules
        .map(|rule| {
            let meaning = meaning(scanner, rule.metadatas).map_err(|problem| {
                let file = match rule.namespace {
                    BUILTIN_NAMESPACE => "",
                    file => file,
                };
                BuildError::Metadata {
                    rule: format!("{} {file}", rule.name).trim_end().to_owned(),
                    problem,
                }
            })?;
            Ok(((rule.namespace.to_owned(), rule.name.to_owned()), meaning))
        })
        .collect()
}

fn meaning(scanner: &Scanner, metadata: &[Metadata]) -> Result<Meaning, String> {
    let mut meaning = Meaning {
        kind: FindingKind::Malware,
        score: 10.0,
        name: None,
        description: None,
    };
    for entry in metadata {
        let text = match entry.value {
            MetadataValue::Bytes(text) => {
                String::from_utf8_lossy(scanner.get_bytes_symbol(text)).into_owned()
            }
            MetadataValue::Integer(number) => number.to_string(),
            MetadataValue::Boolean(yes) => yes.to_string(),
        };
        match scanner.get_string_symbol(entry.name) {
            "kind" => {
                let kind = FindingKind::ALL.into_iter().find(|k| k.as_str() == text);
                meaning.kind = kind.ok_or_else(|| {
                    let kinds = FindingKind::ALL.map(FindingKind::as_str).join(", ");
                    format!("kind = \"{text}\" is not a kind: use one of {kinds}")
                })?;
            }
            "score" => {
                let score = text.parse::<f64>().ok().filter(|score| score.is_finite());
                meaning.score =
                    score.ok_or_else(|| format!("score = \"{text}\" is not a number"))?;
            }
            "name" => meaning.name = Some(text),
            "description" => meaning.description = Some(text),
            _ => {}
        }
    }
    Ok(meaning)
}

#[cfg(test)]
mod tests;
