//! What policy may know about one attachment.

/// Facts about one attachment, as MIME inspection found them. All of it is untrusted text from the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentFact {
    /// The file name it claims, decoded; files inside an archive have their own.
    pub name: Option<String>,
    /// The media type it claims, lower case: `application/pdf`.
    pub declared: String,
    /// The media type its octets look like, lower case; the declared one where they look like nothing known.
    pub sniffed: String,
    /// Octets, decoded.
    pub size: u64,
}
