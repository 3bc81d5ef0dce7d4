//! The text form of stored messages, decisions and reports.

use super::exit::CliError;
use super::terminal::{Terminal, count, pad, safe, size, wide};
use super::waits::WaitsFor;
use crate::message::{Envelope, RequestedEdit};
use crate::store::{Audit, Cause, Lane, Record};
use crate::verdict::{Answer, Decision, Report, Same};

/// Prints an empty line and a heading.
pub(super) fn heading(text: &str, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    terminal.line("")?;
    terminal.line(text)
}

/// Prints the envelope and the state of a stored message, and what it waits for where that is known.
pub(super) fn show(
    record: &Record,
    waits: Option<&WaitsFor>,
    attached: String,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let envelope = &record.envelope;
    let recipients: Vec<&str> = envelope
        .recipients
        .iter()
        .map(|recipient| recipient.mailbox.as_str())
        .collect();
    let message = match record.message == record.id {
        true => String::new(),
        false => record.message.to_string(),
    };
    let (received, expires) = (
        terminal.time(record.received_at),
        terminal.time(record.expires_at),
    );
    let fields = [
        ("id", record.id.to_string()),
        ("part of", message),
        ("state", state(record, terminal)),
        (
            "waiting for",
            waits.map_or(String::new(), |waits| waits.text().to_owned()),
        ),
        ("status", record.status.clone()),
        (
            "cause",
            record
                .cause
                .as_ref()
                .map_or(String::new(), Cause::to_string),
        ),
        ("sender", envelope.reverse_path.to_string()),
        ("recipients", recipients.join(", ")),
        ("client", client(envelope)),
        (
            "received",
            format!("{received} ({} ago)", terminal.age(record.received_at)),
        ),
        ("expires", expires),
        (
            "size",
            format!("{} ({} octets)", size(record.size), record.size),
        ),
        ("sha256", record.sha256.clone()),
        ("subject", record.subject.clone()),
        ("attached", attached),
    ];
    terminal.fields(&fields)
}

fn state(record: &Record, terminal: &Terminal<'_>) -> String {
    let tries = count(record.attempts as usize, "try").replace("trys", "tries");
    let next = match record.due_at > terminal.now {
        true => format!(", next try at {}", terminal.time(record.due_at)),
        false => String::new(),
    };
    match record.lane {
        Lane::Held => format!("in quarantine since {}", terminal.time(record.due_at)),
        Lane::Rescan => format!(
            "delivered before an engine had scanned it; kept until {} for that scan",
            terminal.time(record.expires_at)
        ),
        Lane::Scan => format!("waits for a scan; {tries} so far{next}"),
        Lane::Delivery if record.released => {
            format!("released, waits for delivery; {tries} so far{next}")
        }
        Lane::Delivery => format!("waits for delivery; {tries} so far{next}"),
    }
}

fn client(envelope: &Envelope) -> String {
    let origin = &envelope.origin;
    let mut text = origin.client.to_string();
    if let Some(name) = &origin.client_name {
        text.push_str(&format!(" ({name})"));
    }
    text.push_str(&format!(
        ", {} on listener {}",
        origin.protocol, origin.listener
    ));
    if !origin.helo.is_empty() {
        text.push_str(&format!(", HELO {}", origin.helo));
    }
    if let Some(user) = &origin.user {
        text.push_str(&format!(", user {user}"));
    }
    if let Some(tls) = &origin.tls {
        text.push_str(&format!(", {tls}"));
    }
    text
}

/// Prints a decision and its reasons under `title`.
pub(super) fn show_decision(
    title: &str,
    decision: &Decision,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let missing: Vec<String> = decision
        .missing
        .iter()
        .map(|(engine, reason)| format!("{engine} ({})", reason.as_str()))
        .collect();
    heading(title, terminal)?;
    terminal.fields(&[
        ("  verdict", decision.verdict.as_str().to_owned()),
        ("  disposition", decision.disposition.as_str().to_owned()),
        ("  rule", decision.rule.clone()),
        ("  reason", decision.reason.clone()),
        ("  score", format!("{}", decision.score)),
        ("  tagged", if decision.tag { "yes" } else { "" }.to_owned()),
        ("  missing", missing.join(", ")),
        ("  configuration", decision.config.to_string()),
    ])
}

/// Prints the answer of each engine, with its findings below it. Nothing is cut, because reviewers need the whole text.
pub(super) fn show_reports(
    reports: &[Report],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    heading("Engines", terminal)?;
    let widest = |of: fn(&Report) -> usize| reports.iter().map(of).max().unwrap_or(0);
    let name = widest(|report| wide(&safe(&report.engine)));
    for report in reports {
        let engine = pad(&safe(&report.engine), name);
        let class = report.class.as_str();
        let mut line = format!(
            "  {engine}  {class:7}  {:>6} ms",
            report.elapsed.as_millis()
        );
        line.push_str(&format!("  {}", answer(report)));
        if report.attempts > 1 {
            line.push_str(&format!("  ({} calls)", report.attempts));
        }
        if let Some(reused) = report.reused {
            line.push_str(&format!("  reused from {}", reused.from));
            line.push_str(match reused.same {
                Same::Octets => "",
                Same::Content => " (same content, other header)",
            });
        }
        if let Some(replica) = &report.replica {
            line.push_str(&format!("  on {}", safe(replica)));
        }
        if let Some(signatures) = &report.signatures {
            line.push_str(&format!("  signatures {}", safe(signatures)));
        }
        terminal.line(line)?;
        for finding in report.findings() {
            let (kind, found) = (finding.kind.as_str(), safe(&finding.name));
            let mut line = format!("    {kind:10}  {found}  score {}", finding.score);
            if let Some(detail) = &finding.detail {
                line.push_str(&format!("  {}", safe(detail)));
            }
            terminal.line(line)?;
        }
        for wish in &report.requested_edits {
            terminal.line(format!("    {}", wished(wish)))?;
        }
    }
    Ok(())
}

/// An edit that an engine requests, and whether the relay makes it; unsafe characters are escaped.
fn wished(wish: &RequestedEdit) -> String {
    match wish {
        RequestedEdit::Granted(edit) => format!("{:10}  {}", "edit", safe(&edit.to_string())),
        RequestedEdit::Refused { asked, why } => {
            format!("{:10}  {}: not done, {}", "edit", safe(asked), safe(why))
        }
    }
}

/// The answer of an engine in a few words; unsafe characters are escaped.
pub(super) fn answer(report: &Report) -> String {
    match &report.answer {
        Answer::Answered(findings) if findings.is_empty() => "nothing found".to_owned(),
        Answer::Answered(findings) => count(findings.len(), "finding"),
        Answer::None { reason, detail, .. } if detail.is_empty() => {
            format!("no answer: {}", reason.as_str())
        }
        Answer::None { reason, detail, .. } => {
            format!("no answer: {}: {}", reason.as_str(), safe(detail))
        }
    }
}

/// Prints the acts of persons on a message or an interceptor, the oldest first.
pub(super) fn show_audit(audit: &[Audit], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    if audit.is_empty() {
        return Ok(());
    }
    heading("Audit", terminal)?;
    // The store returns the newest first; people read a history from its beginning.
    for entry in audit.iter().rev() {
        let at = terminal.time(entry.at);
        let (actor, act, detail) = (safe(&entry.actor), safe(&entry.act), safe(&entry.detail));
        terminal.line(format!("  {at}  {act} by {actor}  {detail}").trim_end())?;
    }
    Ok(())
}
