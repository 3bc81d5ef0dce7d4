//! A message as octets: header section, text, attachments.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt as _;
use rand::rngs::SmallRng;

/// What a message is made of.
pub struct Letter {
    pub from: String,
    pub to: String,
    pub subject: String,
    pub message_id: String,
    pub text: String,
    /// Whether the text comes in HTML as well.
    pub html: bool,
    pub parts: Vec<Part>,
}

/// An attachment.
pub struct Part {
    pub name: String,
    pub media_type: &'static str,
    pub inline: bool,
    pub octets: Vec<u8>,
}

/// What sort of file an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Pdf,
    Docx,
    Jpeg,
    Zip,
}

impl FileKind {
    /// In the proportions of office mail.
    pub fn draw(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..100) {
            0..45 => Self::Pdf,
            45..65 => Self::Docx,
            65..92 => Self::Jpeg,
            _ => Self::Zip,
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Pdf => "application/pdf",
            Self::Docx => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            Self::Jpeg => "image/jpeg",
            Self::Zip => "application/zip",
        }
    }

    pub fn extension(self) -> &'static str {
        match self {
            Self::Pdf => "pdf",
            Self::Docx => "docx",
            Self::Jpeg => "jpg",
            Self::Zip => "zip",
        }
    }

    /// So many octets that begin and end like such a file; what is between is random, as compressed data is.
    pub fn octets(self, rng: &mut SmallRng, size: usize) -> Vec<u8> {
        let (head, tail): (&[u8], &[u8]) = match self {
            Self::Pdf => (
                b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n4 0 obj\n\
                  << /Filter /FlateDecode /Length 9 >>\nstream\n",
                b"\nendstream\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n",
            ),
            Self::Docx => (
                b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\x13\x00\x00\x00[Content_Types].xml",
                b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00\x41\x00\x00\x00\x00\x10\x00\x00\x00\x00",
            ),
            Self::Jpeg => (
                b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x01\x00H\x00H\x00\x00",
                b"\xff\xd9",
            ),
            Self::Zip => (
                b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
                b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00\x41\x00\x00\x00\x00\x10\x00\x00\x00\x00",
            ),
        };
        let mut octets = head.to_vec();
        let middle = size.saturating_sub(head.len() + tail.len());
        octets.resize(head.len() + middle, 0);
        rng.fill(&mut octets[head.len()..]);
        octets.extend_from_slice(tail);
        octets
    }
}

impl Letter {
    /// As it goes over the wire after DATA, the final dot not included. No line begins with a dot.
    pub fn render(&self, boundary: u64) -> Vec<u8> {
        let size: usize = self.parts.iter().map(|part| part.octets.len()).sum();
        let mut out = String::with_capacity(self.text.len() * 2 + size * 7 / 5 + 2048);
        let date = jiff::Zoned::now().strftime("%a, %d %b %Y %H:%M:%S %z");
        let (from, to, subject, id) = (&self.from, &self.to, &self.subject, &self.message_id);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "Message-ID: <{id}>\r\nDate: {date}\r\nFrom: {from}\r\nTo: {to}\r\nSubject: {subject}\r\nMIME-Version: 1.0\r\n"
        );
        if self.parts.is_empty() {
            self.readable(&mut out, boundary);
            return out.into_bytes();
        }
        let _ = write!(
            out,
            "Content-Type: multipart/mixed; boundary=\"m{boundary:016x}\"\r\n\r\n--m{boundary:016x}\r\n"
        );
        self.readable(&mut out, boundary);
        for part in &self.parts {
            part.render(&mut out, boundary);
        }
        let _ = write!(out, "\r\n--m{boundary:016x}--\r\n");
        out.into_bytes()
    }

    fn readable(&self, out: &mut String, boundary: u64) {
        const PLAIN: &str = "Content-Type: text/plain; charset=us-ascii\r\n\r\n";
        if !self.html {
            out.push_str(PLAIN);
            out.push_str(&self.text);
            return;
        }
        let _ = write!(
            out,
            "Content-Type: multipart/alternative; boundary=\"a{boundary:016x}\"\r\n\r\n--a{boundary:016x}\r\n{PLAIN}{}\r\n\
             --a{boundary:016x}\r\nContent-Type: text/html; charset=us-ascii\r\n\r\n<html><body>\r\n<p>{}</p>\r\n</body></html>\r\n\
             --a{boundary:016x}--\r\n",
            self.text,
            self.text.replace("\r\n\r\n", "</p>\r\n<p>")
        );
    }
}

impl Part {
    fn render(&self, out: &mut String, boundary: u64) {
        let disposition = if self.inline { "inline" } else { "attachment" };
        let (name, media_type) = (&self.name, self.media_type);
        let _ = write!(
            out,
            "\r\n--m{boundary:016x}\r\nContent-Type: {media_type}; name=\"{name}\"\r\n\
             Content-Disposition: {disposition}; filename=\"{name}\"\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        );
        // 57 octets are a line of 76 characters (RFC 2045 6.8).
        for line in self.octets.chunks(57) {
            STANDARD.encode_string(line, out);
            out.push_str("\r\n");
        }
    }
}
