//! MIME facts: the parts of a message, found within bounded time and memory.
//!
//! This module walks the structure; mail-parser only decodes (header fields, encoded words, RFC 2231 parameters, base64,
//! quoted-printable). The reason was measured with mail-parser 0.11.9: 50,000 nested `message/rfc822` in 1.6 MB overflow a
//! stack of 2 MiB when the result is dropped, which aborts the process, and 20,000 multiparts whose delimiter never comes (1
//! MB) take 5.8 s, growing with the square. No cheap count distinguishes either from valid mail, and both can be hidden inside
//! base64. So this module uses a work list instead of recursion, reads each octet once per level, and has [`Limits`] on depth,
//! parts, header sections and decoded octets. [`Inspection::exceeded`] reports each limit that stopped the inspection of a
//! part; such a message must not count as clean (promise P4).
//!
//! No type of mail-parser or of the sniffing crate leaves this module.

mod decode;
mod eight_bit;
mod section;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use file_format::FileFormat;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use super::{AttachmentFact, Content};
pub use eight_bit::has_eight_bit_headers;
use section::Fields;

/// Content up to 64 KiB is inspected on the runtime's own thread: that takes tens of microseconds, less than a change of
/// threads costs the other sessions.
pub const INLINE_OCTETS_MAX: usize = 64 * 1024;

/// Limits on the structure that is inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nesting depth of multiparts and messages; the message itself has depth 0.
    pub depth: usize,
    /// Number of parts, multiparts included.
    pub parts: usize,
    /// Fields of one header section.
    pub header_fields: usize,
    /// Octets of one header section.
    pub header_octets: usize,
}

impl Limits {
    /// Upper bound for every setting of `depth`: each level reads the octets below it once more.
    const DEPTH_MAX: usize = 64;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth: 16,
            parts: 1000,
            header_fields: 10_000,
            header_octets: 1 << 20,
        }
    }
}

/// A limit that stopped the inspection of a part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exceeded {
    /// The nesting is too deep.
    Depth,
    /// Too many parts.
    Parts,
    /// A header section has too many fields or octets, or a field that describes a part is too long.
    HeaderSection,
    /// The decoded parts together have more than twice the octets of the content: encodings are nested in encodings.
    Decoded,
}

impl Exceeded {
    /// The text for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Depth => "nested too deep",
            Self::Parts => "too many parts",
            Self::HeaderSection => "a header section is too large",
            Self::Decoded => "decoded parts are too large",
        }
    }
}

/// The parts of a message, and how complete the inspection is.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The subject, decoded (RFC 2047).
    pub subject: Option<String>,
    /// All parts in document order, multiparts and messages included.
    pub parts: Vec<Part>,
    /// The limits that were exceeded, each once; empty if the inspection is complete.
    pub exceeded: Vec<Exceeded>,
    /// The largest nesting depth.
    pub depth: usize,
    /// Octets read and decoded: the cost of the inspection.
    pub work: u64,
}

/// One part of a message.
#[derive(Debug)]
pub struct Part {
    /// Position: `1` is the message, `1.2` its second part, `1.2.1` the first part inside that.
    pub path: String,
    /// The declared media type in lower case; `text/plain` if none is declared (RFC 2045 5.2).
    pub declared: String,
    /// Declared names, decoded: first the `filename` of Content-Disposition, then the `name` of Content-Type. Untrusted.
    pub names: Vec<String>,
    /// Whether the part has a name, or is declared to be an attachment.
    pub is_attachment: bool,
    /// Whether the part contains parts: a multipart or a message.
    pub is_container: bool,
    /// Whether `bytes` are decoded, and not a range of the content.
    pub is_encoded: bool,
    /// S/MIME or PGP: only a reader with the key can examine the part.
    pub is_encrypted: bool,
    /// The part declares its type or its encoding twice with different values, so that readers may see different things.
    pub is_ambiguous: bool,
    /// The decoded body.
    pub bytes: Bytes,
    sniffed: OnceLock<Sniffed>,
    sha256: OnceLock<[u8; 32]>,
}

impl Part {
    /// The first name.
    pub fn name(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }

    /// The type according to the decoded octets; determined at the first call.
    pub fn sniffed(&self) -> Sniffed {
        *self.sniffed.get_or_init(|| sniff(&self.bytes))
    }

    /// SHA-256 of the decoded octets; computed at the first call.
    pub fn sha256(&self) -> [u8; 32] {
        *self
            .sha256
            .get_or_init(|| Sha256::digest(&self.bytes).into())
    }
}

/// The type according to the octets, whatever type is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sniffed(FileFormat);

impl Sniffed {
    /// The media type; `application/octet-stream` if the octets are not recognised.
    pub fn media_type(&self) -> &str {
        self.0.media_type()
    }

    /// Whether the octets are machine code of some system, or a package that installs machine code.
    pub fn is_executable(self) -> bool {
        // A list of formats, because the crate's kind "executable" includes formats of home computers with two octets of
        // magic: too much valid data begins with these.
        matches!(
            self.0,
            FileFormat::PortableExecutable
                | FileFormat::DynamicLinkLibrary
                | FileFormat::MsDosExecutable
                | FileFormat::NewExecutable
                | FileFormat::LinearExecutable
                | FileFormat::ExecutableAndLinkableFormat
                | FileFormat::MachO
                | FileFormat::DalvikExecutable
                | FileFormat::MicrosoftSoftwareInstaller
        )
    }
}

/// Recognises the type by the first octets (and by the directory of archives and compound files).
pub fn sniff(bytes: &[u8]) -> Sniffed {
    Sniffed(FileFormat::from_bytes(bytes))
}

/// Inspects `content`. Pure computation, linear in the content for each level of nesting. [`SharedInspection`] runs it where it does not
/// block the runtime.
pub fn inspect(content: &Bytes, limits: Limits) -> Inspection {
    Walk::new(content, limits).run()
}

impl Inspection {
    /// The facts about attachments for policy. Files inside archives are left to the engines.
    pub fn attachments(&self) -> impl Iterator<Item = AttachmentFact> {
        // Mail readers also offer a part for saving that has no name and is not text.
        let counts = |part: &&Part| {
            !part.is_container && (part.is_attachment || !part.declared.starts_with("text/"))
        };
        let fact = |(part, name): (&Part, Option<&String>)| AttachmentFact {
            name: name.cloned(),
            declared: part.declared.clone(),
            sniffed: part.sniffed().media_type().to_owned(),
            size: part.bytes.len() as u64,
        };
        let facts = self.parts.iter().filter(counts).flat_map(|part| {
            // A part with two names is two attachments, because mail readers differ in the name that they use.
            let named = part.names.iter().map(move |name| (part, Some(name)));
            let unnamed = part.names.is_empty().then_some((part, None));
            named.chain(unnamed)
        });
        facts.map(fact)
    }
}

/// The inspection of one message, computed at the first request and shared by all callers.
#[derive(Debug, Clone)]
pub struct SharedInspection {
    cell: Arc<OnceCell<Arc<Inspection>>>,
    limits: Limits,
    workers: Arc<Semaphore>,
}

impl SharedInspection {
    /// An inspection that has not begun. The permits of `workers` limit the large inspections that run at once.
    pub fn new(limits: Limits, workers: Arc<Semaphore>) -> Self {
        Self {
            cell: Arc::default(),
            limits,
            workers,
        }
    }

    /// The inspection of `content`, which must be the same at each call.
    ///
    /// Cancel safety: safe. If a caller is dropped, the next one does the work. A worker that already runs ends by itself, and
    /// returns its permit then.
    ///
    /// # Panics
    /// With the panic of the inspection, if it panics: the engine that asked reports it.
    pub async fn get(&self, content: &Content) -> Arc<Inspection> {
        let made = self.cell.get_or_init(|| async {
            if content.len() <= INLINE_OCTETS_MAX {
                return Arc::new(inspect(content.bytes(), self.limits));
            }
            let permit = self.workers.clone().acquire_owned().await;
            let (content, limits) = (content.clone(), self.limits);
            let work = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                Arc::new(inspect(content.bytes(), limits))
            });
            match work.await {
                Ok(inspection) => inspection,
                Err(failed) => match failed.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down, so no caller reads this result; it must not look complete.
                    Err(_) => Arc::new(Inspection {
                        exceeded: vec![Exceeded::Parts],
                        ..Inspection::default()
                    }),
                },
            }
        });
        made.await.clone()
    }
}

/// A part that is not inspected yet.
struct Pending {
    path: String,
    depth: usize,
    /// The type if none is declared: `multipart/digest` changes it (RFC 2046 5.1.5).
    default_type: &'static str,
    /// Header section and body.
    entity: Bytes,
}

struct Walk {
    limits: Limits,
    pending: Vec<Pending>,
    found: Inspection,
    decoded: usize,
    decoded_limit: usize,
}

impl Walk {
    fn new(content: &Bytes, limits: Limits) -> Self {
        let message = Pending {
            path: "1".to_owned(),
            depth: 0,
            default_type: "text/plain",
            entity: content.clone(),
        };
        Self {
            limits: Limits {
                depth: limits.depth.min(Limits::DEPTH_MAX),
                ..limits
            },
            pending: vec![message],
            found: Inspection::default(),
            decoded: 0,
            decoded_limit: content.len() * 2 + INLINE_OCTETS_MAX,
        }
    }

    fn run(mut self) -> Inspection {
        while let Some(next) = self.pending.pop() {
            if self.found.parts.len() >= self.limits.parts {
                self.exceeded(Exceeded::Parts);
                break;
            }
            self.visit(next);
        }
        self.found
    }

    fn exceeded(&mut self, limit: Exceeded) {
        if !self.found.exceeded.contains(&limit) {
            self.found.exceeded.push(limit);
        }
    }

    fn visit(&mut self, this: Pending) {
        self.found.depth = self.found.depth.max(this.depth);
        self.found.work += this.entity.len() as u64;
        let section = section::read(&this.entity, &self.limits);
        if section.exceeded {
            self.exceeded(Exceeded::HeaderSection);
        }
        let fields = Fields::decode(&section, this.default_type);
        if this.depth == 0 {
            self.found.subject = fields.subject.clone();
        }
        let raw = this.entity.slice(section.body..);
        let (bytes, is_encoded) = self.decoded(raw, fields.encoding);
        let is_container = self.descend(&this, &fields, &bytes);
        self.found.parts.push(Part {
            is_attachment: fields.is_attachment || !fields.names.is_empty(),
            is_encrypted: fields.is_encrypted || bytes.starts_with(b"-----BEGIN PGP MESSAGE-----"),
            is_ambiguous: fields.is_ambiguous,
            path: this.path,
            declared: fields.media_type,
            names: fields.names,
            is_container,
            is_encoded,
            bytes,
            sniffed: OnceLock::new(),
            sha256: OnceLock::new(),
        });
    }

    /// The decoded body, and whether it differs from a range of the content.
    fn decoded(&mut self, raw: Bytes, encoding: decode::Encoding) -> (Bytes, bool) {
        if encoding == decode::Encoding::Identity {
            return (raw, false);
        }
        if self.decoded + raw.len() > self.decoded_limit {
            self.exceeded(Exceeded::Decoded);
            return (raw, false);
        }
        self.found.work += raw.len() as u64;
        let bytes = decode::body(&raw, encoding);
        self.decoded += bytes.len();
        (bytes, true)
    }

    /// Adds the parts inside this one to the work list; returns whether there are any.
    fn descend(&mut self, this: &Pending, fields: &Fields, bytes: &Bytes) -> bool {
        let children = match (&fields.boundary, fields.is_message()) {
            (Some(boundary), _) => {
                // Keep one part more than allowed over all parts: then the limit is noticed, and more parts cost nothing.
                let known = self.found.parts.len() + self.pending.len() + 1;
                let room = (self.limits.parts + 1).saturating_sub(known);
                section::split(bytes, boundary, room.max(1))
            }
            (None, true) => std::iter::once(0..bytes.len()).collect(),
            (None, false) => return false,
        };
        if children.is_empty() {
            return false;
        }
        if this.depth >= self.limits.depth {
            self.exceeded(Exceeded::Depth);
            return false;
        }
        let default_type = fields.default_type_of_parts();
        // The list is last in, first out, so the first child must be added last for document order.
        for (index, range) in children.into_iter().enumerate().rev() {
            self.pending.push(Pending {
                path: format!("{}.{}", this.path, index + 1),
                depth: this.depth + 1,
                default_type,
                entity: bytes.slice(range),
            });
        }
        true
    }
}
