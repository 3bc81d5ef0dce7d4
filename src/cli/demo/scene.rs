//! The messages that are sent, and what should become of them.

use serde::Serialize;

use super::engine;
use crate::verdict::Reason;

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum End {
    /// On the mail server, once, and nowhere else.
    Delivered,
    /// In quarantine.
    Held,
    /// With its sender, who was told why.
    Rejected,
    /// In the relay's store, to be scanned again.
    Deferred,
    /// In none of these places, or in several.
    Unknown,
}

impl End {
    /// The word, for people and in the relay's history.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Held => "held",
            Self::Rejected => "rejected",
            Self::Deferred => "deferred",
            Self::Unknown => "unknown",
        }
    }

    /// Where that is.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::Delivered => "on the mail server, byte for byte, and nowhere else",
            Self::Held => "in the relay's quarantine; the mail server has not seen it",
            Self::Rejected => "with its sender; nothing was stored, no bounce is written",
            Self::Deferred => {
                "in the relay's store, to be scanned again; a crash would not lose it"
            }
            Self::Unknown => "not where it should be",
        }
    }
}

/// One thing that happens.
#[derive(Debug)]
pub(super) struct Scene {
    /// For programs.
    pub(super) name: &'static str,
    /// For people: what happens and what should come of it.
    pub(super) headline: &'static str,
    /// The content that is sent.
    pub(super) content: String,
    /// Where the message should be in the end.
    pub(super) end: End,
    /// The rule that should decide.
    pub(super) rule: &'static str,
    /// Why the fragile engine should have no answer; none: it should have one.
    pub(super) missing: Option<Reason>,
}

pub(super) fn clean() -> Scene {
    Scene {
        name: "clean",
        headline: "A clean message: passed on while its sender waits, and nothing is stored",
        content: message(
            "Lunch on Thursday?",
            "",
            "The new place at the harbour, at noon.",
        ),
        end: End::Delivered,
        rule: "policy.clean",
        missing: None,
    }
}

pub(super) fn eicar() -> Scene {
    // The anti-virus test file. Base 64, so that no scanner takes this program for what it sends.
    let file = "WDVPIVAlQEFQWzRcUFpYNTQoUF4pN0NDKTd9JEVJQ0FSLVNUQU5EQVJELUFOVElWSVJVUy1URVNU\r\n\
                LUZJTEUhJEgrSCo=";
    Scene {
        name: "eicar",
        headline: "The EICAR test virus: held in quarantine for review",
        content: attachment("Your invoice", "invoice.txt", file),
        end: End::Held,
        rule: "policy.malware",
        missing: None,
    }
}

pub(super) fn blocked_attachment() -> Scene {
    Scene {
        name: "blocked-attachment",
        headline: "A program that poses as a document (invoice.pdf.exe): refused, and its sender is told",
        // "no program at all"
        content: attachment(
            "Your invoice",
            "invoice.pdf.exe",
            "bm8gcHJvZ3JhbSBhdCBhbGw=",
        ),
        end: End::Rejected,
        rule: "policy.policy",
        missing: None,
    }
}

pub(super) fn hung_engine() -> Scene {
    Scene {
        name: "hung-engine",
        headline: "A message on which one engine hangs: kept safely, to be scanned again",
        content: hanging(),
        end: End::Deferred,
        rule: "coverage.av",
        missing: Some(Reason::Timeout),
    }
}

pub(super) fn meanwhile() -> Scene {
    Scene {
        name: "meanwhile",
        headline: "A clean message while that engine hangs: it does not wait",
        content: message("Friday, rather", "", "The harbour is closed on Thursday."),
        end: End::Delivered,
        rule: "policy.clean",
        missing: None,
    }
}

/// The message of [`hung_engine`] once more.
pub(super) fn recovery() -> Scene {
    Scene {
        name: "recovery",
        headline: "The engine works again: the message that waited is scanned again and delivered",
        content: hanging(),
        end: End::Delivered,
        rule: "policy.clean",
        missing: None,
    }
}

fn hanging() -> String {
    let field = format!("{}\r\n", engine::MARKER);
    message(
        "Quarterly report",
        &field,
        "An honest message, but one engine cannot cope with it.",
    )
}

/// `fields` are more header fields, each with its CRLF.
fn message(subject: &str, fields: &str, text: &str) -> String {
    format!(
        "From: Alice <alice@sender.example>\r\nTo: Bob <bob@demo.example>\r\nSubject: {subject}\r\n\
         Date: Mon, 03 Nov 2025 09:00:00 +0000\r\nMIME-Version: 1.0\r\n{fields}\r\n{text}\r\n"
    )
}

fn attachment(subject: &str, name: &str, base64: &str) -> String {
    let fields = "Content-Type: multipart/mixed; boundary=\"part\"\r\n";
    let text = format!(
        "--part\r\nContent-Type: text/plain\r\n\r\nPlease pay.\r\n--part\r\n\
         Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=\"{name}\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{base64}\r\n--part--"
    );
    message(subject, fields, &text)
}
