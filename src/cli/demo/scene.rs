//! The messages that the demo sends, and the expected result of each.

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
    /// With its sender, whom the reply told the reason.
    Rejected,
    /// In the relay's store, to be scanned again.
    Deferred,
    /// In none of these places, or in several.
    Unknown,
}

impl End {
    /// The word in text output and in the relay's history.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Held => "held",
            Self::Rejected => "rejected",
            Self::Deferred => "deferred",
            Self::Unknown => "unknown",
        }
    }

    /// The place in words.
    pub(super) fn place(self) -> &'static str {
        match self {
            Self::Delivered => "on the mail server, byte for byte, and nowhere else",
            Self::Held => "in the relay's quarantine; the mail server has not seen it",
            Self::Rejected => "with its sender; the relay stored nothing and writes no bounce",
            Self::Deferred => "in the relay's store, for another scan; a crash would not lose it",
            Self::Unknown => "not where it should be",
        }
    }
}

/// One scene of the demo.
#[derive(Debug)]
pub(super) struct Scene {
    /// The name in JSON output.
    pub(super) name: &'static str,
    /// The headline in text output, with the expected result.
    pub(super) headline: &'static str,
    /// The content that is sent.
    pub(super) content: String,
    /// Where the message should be at the end.
    pub(super) end: End,
    /// The rule that should have decided.
    pub(super) rule: &'static str,
    /// The reason why the fragile engine should have no answer; none if it should have one.
    pub(super) missing: Option<Reason>,
}

pub(super) fn clean() -> Scene {
    Scene {
        name: "clean",
        headline: "A clean message: delivered while its sender waits; nothing is stored",
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
    // The EICAR test file, in base 64: otherwise scanners would find it in this program.
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
        headline: "A program disguised as a document (invoice.pdf.exe): refused in the session",
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
        headline: "A message on which one engine hangs: stored safely for another scan",
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

/// The message of [`hung_engine`] again, after the engine has been restarted.
pub(super) fn recovery() -> Scene {
    Scene {
        name: "recovery",
        headline: "The engine works again: the stored message is scanned again and delivered",
        content: hanging(),
        end: End::Delivered,
        rule: "policy.clean",
        missing: None,
    }
}

fn hanging() -> String {
    let field = format!("{}\r\n", engine::HANG_MARKER);
    message(
        "Quarterly report",
        &field,
        "An honest message, but one engine cannot cope with it.",
    )
}

/// A message; `fields` are further header fields, each with its CRLF.
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
