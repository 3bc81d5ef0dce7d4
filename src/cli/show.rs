//! Shows one stored message: all that a reviewer needs for a judgement, with every character that acts on a terminal escaped.

use bytes::Bytes;
use clap::Args;
use serde_json::json;

use super::exit::{CliError, Exit, Outcome};
use super::id::IdPrefix;
use super::record::{heading, show as show_record, show_audit, show_decision, show_reports};
use super::table::Column;
use super::terminal::{Terminal, cut, safe, size};
use super::waits::WaitsFor;
use crate::message::header;
use crate::message::mime::{self, Inspection, Part};
use crate::message::pattern::AttachmentHash;
use crate::store::{Record, Store};
use crate::telemetry::escape::Escaped;

/// Header fields that help a reviewer, in the order of the output.
const FIELDS_SHOWN: [&str; 14] = [
    "From",
    "Sender",
    "Reply-To",
    "Return-Path",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Message-ID",
    "List-Id",
    "User-Agent",
    "X-Mailer",
    "Authentication-Results",
    "Content-Type",
];
/// Columns of a field's body that are shown: a sender may write a field of any length.
const FIELD_COLUMNS_SHOWN: usize = 500;
/// Lines of text that `--body` shows: about one screen.
const TEXT_LINES_SHOWN: usize = 40;
/// Columns of a line of text if the terminal's width is not known.
const TEXT_COLUMNS_DEFAULT: usize = 200;
/// Maximum number of audit entries shown: more than a person reads about one message.
const AUDIT_ENTRIES_SHOWN: usize = 100;

/// The message of a `show` command, and how much of it is shown.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The message's id, or any beginning that no other stored message has
    pub(super) id: IdPrefix,
    /// Also print the first 40 lines of the message text
    #[arg(long)]
    pub(super) body: bool,
}

/// Shows a stored message of any lane, and what it waits for if it does.
pub(super) async fn show(
    record: &Record,
    waits: Option<&WaitsFor>,
    body: bool,
    store: &dyn Store,
    terminal: &mut Terminal<'_>,
) -> Outcome {
    let content = store.content(record.id).await?;
    let audit = store
        .audited(Some(record.id.into()), AUDIT_ENTRIES_SHOWN)
        .await?;
    let fields = fields(header::section(&content));
    let inspection = inspect(content).await?;
    let text = body.then(|| text(&inspection)).flatten();
    if terminal.json {
        let parts: Vec<_> = inspection.parts.iter().map(part_json).collect();
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        let exceeded: Vec<_> = inspection.exceeded.iter().map(|e| e.as_str()).collect();
        let mut shown = json!({
            "record": record, "headers": fields, "parts": parts, "not_inspected": exceeded,
            "text": text, "audit": audit,
        });
        if let Some(waits) = waits {
            shown["waits_for"] = json!(waits);
        }
        terminal.json(&shown)?;
        return Ok(Exit::Done);
    }
    show_record(record, waits, String::new(), terminal)?;
    if let Some(decision) = &record.decision {
        show_decision("Decision", decision, terminal)?;
    }
    if !record.reports.is_empty() {
        show_reports(&record.reports, terminal)?;
    }
    heading("Header fields", terminal)?;
    for (name, value) in &fields {
        terminal.line(format!(
            "  {name}: {}",
            cut(&safe(value), FIELD_COLUMNS_SHOWN)
        ))?;
    }
    show_parts(&inspection, terminal)?;
    show_audit(&audit, terminal)?;
    if let Some(text) = text {
        show_text(&text, terminal)?;
    }
    Ok(Exit::Done)
}

/// Inspects the content outside the thread of the runtime, which a large message would block.
async fn inspect(content: Bytes) -> Result<Inspection, CliError> {
    tokio::task::spawn_blocking(move || mime::inspect(&content, mime::Limits::default()))
        .await
        .map_err(|error| CliError::Internal(error.to_string()))
}

/// The first field of each name, and the newest Received field.
fn fields(section: &[u8]) -> Vec<(&'static str, String)> {
    let mut shown: Vec<_> = FIELDS_SHOWN
        .iter()
        .filter_map(|name| {
            let field = header::first(section, name)?;
            Some((*name, header::decoded(&field.unfolded()).into_owned()))
        })
        .collect();
    if let Some(field) = header::first(section, "Received") {
        shown.push(("Received", field.unfolded()));
    }
    shown
}

fn show_parts(inspection: &Inspection, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    heading("Parts", terminal)?;
    let columns = [
        Column::whole("PART"),
        Column::cut("DECLARED"),
        Column::cut("LOOKS LIKE"),
        Column::whole("SIZE"),
        Column::cut("NAME"),
        Column::cut("REMARKS"),
    ];
    let row = |part: &Part| {
        vec![
            part.path.clone(),
            part.declared.clone(),
            looks_like(part),
            size(part.bytes.len() as u64),
            part.names.join(", "),
            remarks(part).join(", "),
        ]
    };
    terminal.table(&columns, inspection.parts.iter().map(row))?;
    for part in inspection.parts.iter().filter(|part| part.is_attachment) {
        terminal.line(format!(
            "{}  sha256 {}",
            part.path,
            AttachmentHash(part.sha256())
        ))?;
    }
    for exceeded in &inspection.exceeded {
        terminal.line(format!("not inspected any further: {}", exceeded.as_str()))?;
    }
    Ok(())
}

fn looks_like(part: &Part) -> String {
    match part.is_container {
        true => String::new(),
        false => part.sniffed().media_type().to_owned(),
    }
}

fn remarks(part: &Part) -> Vec<&'static str> {
    let remarks = [
        (part.is_attachment, "attachment"),
        (part.is_encrypted, "encrypted"),
        (part.is_ambiguous, "ambiguous"),
        (
            !part.is_container && part.sniffed().is_executable(),
            "executable",
        ),
    ];
    remarks
        .iter()
        .filter_map(|(holds, remark)| holds.then_some(*remark))
        .collect()
}

fn part_json(part: &Part) -> serde_json::Value {
    let sha256 = AttachmentHash(part.sha256()).to_string();
    json!({
        "path": part.path, "declared": part.declared, "looks_like": looks_like(part),
        "octets": part.bytes.len(), "names": part.names, "remarks": remarks(part), "sha256": sha256,
    })
}

/// The first lines of the text that a mail program would show: of text/plain, else of another text part.
fn text(inspection: &Inspection) -> Option<Vec<String>> {
    let readable = |part: &&Part| !part.is_container && !part.is_attachment;
    let mut parts = inspection.parts.iter().filter(readable);
    let plain = parts.clone().find(|part| part.declared == "text/plain");
    let part = plain.or_else(|| parts.find(|part| part.declared.starts_with("text/")))?;
    // 64 KiB are more than the lines that are shown, except for very long lines.
    let start = part.bytes.get(..64 * 1024).unwrap_or(&part.bytes);
    let text = String::from_utf8_lossy(start);
    Some(
        text.lines()
            .take(TEXT_LINES_SHOWN)
            .map(str::to_owned)
            .collect(),
    )
}

fn show_text(lines: &[String], terminal: &mut Terminal<'_>) -> Result<(), CliError> {
    heading("Text", terminal)?;
    let width = terminal
        .width
        .map_or(TEXT_COLUMNS_DEFAULT, usize::from)
        .saturating_sub(2);
    for line in lines {
        let line = Escaped(line.replace('\t', "    ")).to_string();
        terminal.line(format!("  {}", cut(&line, width)).trim_end())?;
    }
    Ok(())
}
