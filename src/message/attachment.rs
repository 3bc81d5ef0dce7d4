//! The facts about an attachment that policy may use.

/// Facts about one attachment, as found by the MIME inspection. All of them are untrusted data from the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentFact {
    /// The declared file name, decoded. Files inside an archive have names of their own.
    pub name: Option<String>,
    /// The declared media type in lower case, for example `application/pdf`.
    pub declared: String,
    /// The media type according to the octets, in lower case; the declared type if the octets are not recognised.
    pub sniffed: String,
    /// Decoded size in octets.
    pub size: u64,
}
