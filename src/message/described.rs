//! By what a person recognises a message: its subject and the names of its attachments.

use super::mime::Inspection;

/// The subject and the attachments' names, decoded. Untrusted text of bounded length: escape before display.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// The subject, at most 300 characters; empty if there is none.
    pub subject: String,
    /// The first declared name of each attachment, at most 10 of at most 120 characters; a last entry `… and 5 more` counts
    /// the others.
    pub attachments: Vec<String>,
}

impl Described {
    /// Longest subject in characters, as in a record.
    const SUBJECT_CHARACTERS_MAX: usize = 300;
    /// Most names: the history keeps them for each message, and a person recognises a message by few.
    const ATTACHMENTS_MAX: usize = 10;
    /// Longest name in characters.
    const NAME_CHARACTERS_MAX: usize = 120;

    /// The description of an inspected message with this subject.
    pub fn of(inspection: &Inspection, mut subject: String) -> Self {
        cut(&mut subject, Self::SUBJECT_CHARACTERS_MAX);
        let parts = inspection.parts.iter().filter(|part| !part.is_container);
        let mut names = parts.filter_map(|part| part.name());
        let first = names.by_ref().take(Self::ATTACHMENTS_MAX);
        let mut attachments: Vec<String> = first
            .map(|name| name.chars().take(Self::NAME_CHARACTERS_MAX).collect())
            .collect();
        match names.count() {
            0 => {}
            more => attachments.push(format!("… and {more} more")),
        }
        Self {
            subject,
            attachments,
        }
    }
}

fn cut(text: &mut String, characters: usize) {
    // Most texts have fewer octets than that, and need no count.
    if text.len() > characters
        && let Some((end, _)) = text.char_indices().nth(characters)
    {
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::mime::{Limits, inspect};

    /// The description is decoded, and bounded whatever the message contains.
    #[test]
    fn a_description_is_decoded_and_bounded() {
        let part = "--x\r\nContent-Type: application/pdf; name=\"=?utf-8?q?Gr=C3=BC=C3=9Fe?=.pdf\"\r\n\r\nx\r\n";
        let long = format!(
            "--x\r\nContent-Type: text/plain; name=\"{}\"\r\n\r\nx\r\n",
            "é".repeat(500)
        );
        let content = format!(
            "Subject: {}\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n{long}{}--x\r\nContent-Type: text/plain\r\n\r\n\
             no name\r\n--x--\r\n",
            "ü".repeat(500),
            part.repeat(14)
        );
        let inspection = inspect(&Bytes::from(content), Limits::default());
        let subject = inspection.subject.clone().unwrap_or_default();
        let described = Described::of(&inspection, subject);
        assert_eq!(described.subject, "ü".repeat(300));
        assert_eq!(described.attachments.len(), 11);
        assert_eq!(described.attachments[0], "é".repeat(120));
        assert_eq!(described.attachments[1], "Grüße.pdf");
        assert_eq!(described.attachments[10], "… and 5 more");
    }
}
