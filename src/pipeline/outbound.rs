//! The mail that is sent for a group of recipients: this relay's fields, the header section with the edits of engines, and the
//! body as received.
//!
//! Store and engines always have the message as received. The reports are stored with the message, and with them their edits: a
//! message that is delivered after a restart, or released from quarantine, gets the same edits as at once.

use std::fmt::Write;
use std::sync::Arc;

use super::{Generation, Judgement, settle};
use crate::delivery::{DeliveredSender, Outbound};
use crate::message::{Edit, Message, MessageId, edit, header, mime};
use crate::scan::{Scanner, Settings};
use crate::verdict::{Decision, Report, Verdict, stand_ins};

/// The mail for this group of recipients. A header section may be as large as a message, so a large message is rewritten on a
/// blocking thread, outside the async runtime.
///
/// Cancel safety: safe.
pub(super) async fn outbound(
    generation: &Arc<Generation>,
    message: &Message,
    judged: &Judgement,
    group: &(Decision, Vec<usize>),
) -> Outbound {
    let edits = edits(&generation.scanner, &judged.reports);
    if edits.is_empty() || message.content.len() <= mime::INLINE_OCTETS_MAX {
        return build(generation, message, judged, group, &edits);
    }
    let task = (
        generation.clone(),
        message.clone(),
        judged.clone(),
        group.clone(),
        edits.clone(),
    );
    let away = move || {
        let (generation, message, judged, group, edits) = task;
        build(&generation, &message, &judged, &group, &edits)
    };
    match tokio::task::spawn_blocking(away).await {
        Ok(outbound) => outbound,
        // Only at shutdown: the thread did not run, so the work is done here.
        Err(_) => build(generation, message, judged, group, &edits),
    }
}

/// The edits that engines request and are permitted. First the edits that an engine's settings request for every message, also
/// without an answer or a scan. Then the edits in the reports, in the order of the engines and then of each report.
fn edits(scanner: &Scanner, reports: &[Report]) -> Vec<Edit> {
    let always = scanner.settings().flat_map(Settings::always);
    let asked = reports
        .iter()
        .flat_map(|report| report.requested_edits.clone());
    let requested_edits = always.chain(asked);
    requested_edits
        .filter_map(|w| w.granted().cloned())
        .collect()
}

/// Builds the mail for a group: this relay's fields, then the content as received with its header section edited.
fn build(
    generation: &Generation,
    message: &Message,
    judged: &Judgement,
    (decision, recipients): &(Decision, Vec<usize>),
    edits: &[Edit],
) -> Outbound {
    let mut prefix = String::with_capacity(message.trace.len() + 160);
    prefix.push_str(&message.trace);
    if decision.rule != "own-mail" {
        result_field(
            &mut prefix,
            generation,
            message.id,
            decision,
            &judged.reports,
        );
    }
    prefix.push_str(header::fence(message.content.bytes()));
    let (prefix, content) = if edits.is_empty() {
        (prefix.into(), message.content.clone())
    } else {
        let received = message.content.header_section();
        let edited = edit::rewrite(received, edits);
        let prefix = [edited.top, prefix.into_bytes(), edited.section].concat();
        (prefix.into(), message.content.without(received.len()))
    };
    Outbound {
        id: message.id,
        envelope: settle::select(message, recipients),
        prefix,
        content,
        delivered: DeliveredSender::default(),
    }
}

/// Writes `X-Spillway-Result`, the one field that this relay adds beside `Received`; documented in docs/CONFIG.md.
fn result_field(
    out: &mut String,
    generation: &Generation,
    id: MessageId,
    decision: &Decision,
    reports: &[Report],
) {
    let word = match decision.verdict {
        Verdict::Clean if decision.tag => Verdict::Suspect.as_str(),
        verdict => verdict.as_str(),
    };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "X-Spillway-Result: {word}; score={:.1}; rule={};\r\n\tid={id}; by={}",
        decision.score,
        token(&decision.rule),
        generation.hostname
    );
    for (engine, reason) in &decision.missing {
        let _ = write!(out, ";\r\n\tmissing={}:{}", token(engine), reason.as_str());
    }
    for (engine, from) in stand_ins(reports) {
        let _ = write!(out, ";\r\n\treused={}:{from}", token(engine));
    }
    out.push_str("\r\n");
}

/// A name from the configuration, made safe for a header field.
fn token(text: &str) -> String {
    let keep = |c: char| {
        if c.is_ascii_graphic() && c != ';' {
            c
        } else {
            '_'
        }
    };
    text.chars().take(60).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that an administrator gives can be read neither as the next part of the field, nor as the next field.
    #[test]
    fn names_cannot_write_into_the_result() {
        assert_eq!(token("policy.score"), "policy.score");
        assert_eq!(token("a; score=0.0"), "a__score=0.0");
        assert_eq!(
            token("a\r\nX-Spillway-Result: clean"),
            "a__X-Spillway-Result:_clean"
        );
        assert_eq!(token("gr\u{fc}n"), "gr_n");
        assert_eq!(token(&"x".repeat(1000)).len(), 60);
    }
}
