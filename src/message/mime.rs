//! MIME facts: what a message is made of, found within bounded time and memory.
//!
//! The structure is walked here and not by mail-parser, which does the decoding only (header fields, encoded words,
//! RFC 2231 parameters, base64, quoted-printable). Measured with 0.11.9: 50,000 nested `message/rfc822` in 1.6 MB
//! overflow a 2 MiB stack when the result is dropped, which aborts the process, and 20,000 multiparts whose delimiter
//! never comes (1 MB) take 5.8 s, growing with the square. Neither can be told from honest mail by a cheap count, and
//! both can hide inside base64. So: a list of work instead of recursion, each octet looked at once per level, and
//! [`Limits`] on depth, parts, header sections and decoded octets. Whatever is not followed is flagged in
//! [`Inspection::exceeded`]; nobody may call such a message clean (promise P4).
//!
//! No type of mail-parser or of the sniffing crate leaves this module.

mod decode;
mod section;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use file_format::FileFormat;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use super::{AttachmentFact, Content};
use section::Fields;

/// Up to this many octets of content are inspected on the runtime's own thread: tens of microseconds, less than a
/// change of threads costs the other sessions.
pub const INLINE: usize = 64 * 1024;

/// How much structure is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nesting of multiparts and messages; the message itself is at depth 0.
    pub depth: usize,
    /// Parts, multiparts included.
    pub parts: usize,
    /// Fields of one header section.
    pub header_fields: usize,
    /// Octets of one header section.
    pub header_octets: usize,
}

impl Limits {
    /// No setting makes us follow more levels than this: each level walks the octets below it once more.
    const DEEPEST: usize = 64;
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

/// A limit that stopped the inspection of some part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exceeded {
    /// Nested too deep.
    Depth,
    /// Too many parts.
    Parts,
    /// A header section with too many fields or octets, or with too many in one that says what a part is.
    HeaderSection,
    /// Decoded parts are, together, more than twice the content: encodings nested in encodings.
    Decoded,
}

impl Exceeded {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Depth => "nested too deep",
            Self::Parts => "too many parts",
            Self::HeaderSection => "a header section is too large",
            Self::Decoded => "decoded parts are too large",
        }
    }
}

/// What a message is made of.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The subject, decoded (RFC 2047).
    pub subject: Option<String>,
    /// All parts in document order, multiparts and messages included.
    pub parts: Vec<Part>,
    /// The limits that were met, each once; empty if everything was looked at.
    pub exceeded: Vec<Exceeded>,
    /// The deepest nesting met.
    pub depth: usize,
    /// Octets walked and decoded: what the inspection cost.
    pub work: u64,
}

/// One part of a message.
#[derive(Debug)]
pub struct Part {
    /// Where it is: `1` is the message, `1.2` its second part, `1.2.1` what is in that.
    pub path: String,
    /// The declared media type, lower case; `text/plain` where none is declared (RFC 2045 5.2).
    pub declared: String,
    /// Names it goes by, decoded, as they stand: the `filename` of Content-Disposition first, then the `name` of
    /// Content-Type. Untrusted.
    pub names: Vec<String>,
    /// Whether it has a name or is declared to be an attachment.
    pub is_attachment: bool,
    /// Whether it holds parts itself: a multipart or a message.
    pub is_container: bool,
    /// Whether `bytes` are not simply octets of the content.
    pub is_encoded: bool,
    /// S/MIME or PGP: nobody without the key can look into it.
    pub is_encrypted: bool,
    /// It declares its type or its encoding twice and differently, so that two readers may see two things.
    pub is_ambiguous: bool,
    /// The decoded body.
    pub bytes: Bytes,
    sniffed: OnceLock<Sniffed>,
    sha256: OnceLock<[u8; 32]>,
}

impl Part {
    /// The first of its names.
    pub fn name(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }

    /// What the decoded octets look like; found out at the first call.
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

/// What octets look like, whatever they are declared to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sniffed(FileFormat);

impl Sniffed {
    /// The media type; `application/octet-stream` if nothing is recognised.
    pub fn media_type(&self) -> &str {
        self.0.media_type()
    }

    /// Whether it is machine code of some system, or a package that installs some.
    pub fn is_executable(self) -> bool {
        // By name and not by the crate's kind "executable", which has formats of home computers with two octets of
        // magic: too much honest data begins like that.
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

/// Looks at the first octets (and at the directory of archives and compound files).
pub fn sniff(bytes: &[u8]) -> Sniffed {
    Sniffed(FileFormat::from_bytes(bytes))
}

/// Inspects `content`. Pure computation: linear in the content per level of nesting. [`Shared`] runs it where it does
/// not block anybody.
pub fn inspect(content: &Bytes, limits: Limits) -> Inspection {
    Walk::new(content, limits).run()
}

impl Inspection {
    /// What policy may know about the attachments; files inside archives are the engines' business.
    pub fn attachments(&self) -> Vec<AttachmentFact> {
        let mut facts = Vec::new();
        // A part that is neither named nor text is offered for saving by readers, too.
        let counts = |part: &&Part| {
            !part.is_container && (part.is_attachment || !part.declared.starts_with("text/"))
        };
        for part in self.parts.iter().filter(counts) {
            let fact = |name: Option<&String>| AttachmentFact {
                name: name.cloned(),
                declared: part.declared.clone(),
                sniffed: part.sniffed().media_type().to_owned(),
                size: part.bytes.len() as u64,
            };
            // A part that goes by two names is two attachments: readers differ in which they believe.
            match part.names.as_slice() {
                [] => facts.push(fact(None)),
                names => facts.extend(names.iter().map(|name| fact(Some(name)))),
            }
        }
        facts
    }
}

/// The inspection of one message, made when first asked for and shared by all who ask.
#[derive(Debug, Clone)]
pub struct Shared {
    cell: Arc<OnceCell<Arc<Inspection>>>,
    limits: Limits,
    workers: Arc<Semaphore>,
}

impl Shared {
    /// Nothing is done yet. At most as many large inspections as `workers` has permits run at once.
    pub fn new(limits: Limits, workers: Arc<Semaphore>) -> Self {
        Self {
            cell: Arc::default(),
            limits,
            workers,
        }
    }

    /// The inspection of `content`, which must be the same at each call.
    ///
    /// Cancel safety: safe. A dropped caller leaves the work to the next one; the worker that already runs ends by
    /// itself and gives its permit back then.
    ///
    /// # Panics
    /// With the panic of the inspection, if there should be one: the engine that asked reports it.
    pub async fn get(&self, content: &Content) -> Arc<Inspection> {
        let made = self.cell.get_or_init(|| async {
            if content.len() <= INLINE {
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
                    // The runtime is going down and nobody will read this; claim nothing.
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

/// A part still to be looked at.
struct Pending {
    path: String,
    depth: usize,
    /// The type it has if it declares none: `multipart/digest` changes it (RFC 2046 5.1.5).
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
                depth: limits.depth.min(Limits::DEEPEST),
                ..limits
            },
            pending: vec![message],
            found: Inspection::default(),
            decoded: 0,
            decoded_limit: content.len() * 2 + INLINE,
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

    /// The decoded body, and whether it is something else than octets of the content.
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

    /// Puts the parts inside this one on the list; whether there are any.
    fn descend(&mut self, this: &Pending, fields: &Fields, bytes: &Bytes) -> bool {
        let children = match (&fields.boundary, fields.is_message()) {
            (Some(boundary), _) => {
                // Of all parts together one more than allowed is kept, so that too many are noticed and cost nothing.
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
        let default_type = match fields.media_type.as_str() {
            "multipart/digest" => "message/rfc822",
            _ => "text/plain",
        };
        // Last in, first out: the first child must come last for document order.
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
