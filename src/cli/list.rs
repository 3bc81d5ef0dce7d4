//! Lists of stored messages: columns, limit, and the note that there is more. `queue`, `quarantine` and `demo` print them.

use super::exit::{CliError, Exit, Outcome};
use super::select::Conditions;
use super::terminal::{Column, Terminal, size};
use crate::message::Envelope;
use crate::store::{Lane, Record, Store};

/// Number of messages in a list without `--limit`: 50, about one screen.
const LIST_LIMIT_DEFAULT: usize = 50;

/// A kind of list.
pub(super) struct RecordList {
    columns: &'static [Column],
    /// The row of a record below the columns.
    row: fn(&Record, &Terminal<'_>) -> Vec<String>,
    /// Whether the note that there is more is written beside JSON, too.
    note_beside_json: bool,
}

/// Lists of held messages.
pub(super) const HELD: RecordList = RecordList {
    columns: &HELD_COLUMNS,
    row: held_row,
    note_beside_json: false,
};

/// Lists of waiting messages.
pub(super) const WAITING: RecordList = RecordList {
    columns: &WAITING_COLUMNS,
    row: waiting_row,
    note_beside_json: true,
};

impl RecordList {
    /// Lists the messages of `lanes` that meet the conditions, the newest first.
    pub(super) async fn list(
        &self,
        conditions: &Conditions,
        lanes: &[Lane],
        store: &dyn Store,
        terminal: &mut Terminal<'_>,
    ) -> Outcome {
        let records = conditions
            .list(store, lanes, LIST_LIMIT_DEFAULT, terminal.now)
            .await?;
        self.print(&records, terminal)?;
        let has_note = self.note_beside_json || !terminal.json;
        if records.len() == LIST_LIMIT_DEFAULT && has_note {
            terminal.note(format!(
                "only the newest {LIST_LIMIT_DEFAULT} are shown; --limit shows more"
            ))?;
        }
        Ok(Exit::Done)
    }

    /// Prints records as a table, or as JSON.
    pub(super) fn print(
        &self,
        records: &[Record],
        terminal: &mut Terminal<'_>,
    ) -> Result<(), CliError> {
        match terminal.json {
            true => terminal.json(&records),
            false => self.table(records, terminal),
        }
    }

    /// Prints records as a table.
    pub(super) fn table(
        &self,
        records: &[Record],
        terminal: &mut Terminal<'_>,
    ) -> Result<(), CliError> {
        let rows: Vec<_> = records.iter().map(|r| (self.row)(r, terminal)).collect();
        terminal.table(self.columns, rows)
    }
}

const HELD_COLUMNS: [Column; 7] = [
    Column::whole("ID"),
    Column::whole("AGE"),
    Column::whole("SIZE"),
    Column::cut("RULE"),
    Column::cut("SENDER"),
    Column::cut("TO"),
    Column::cut("SUBJECT"),
];

fn held_row(record: &Record, terminal: &Terminal<'_>) -> Vec<String> {
    let mut rule = record
        .decision
        .as_ref()
        .map_or("-".to_owned(), |d| d.rule.clone());
    if let Some(cause) = &record.cause {
        rule.push_str(&format!(", {cause}"));
    }
    vec![
        record.id.to_string(),
        terminal.age(record.received_at),
        size(record.size),
        rule,
        record.envelope.reverse_path.to_string(),
        some_recipients(&record.envelope),
        record.subject.clone(),
    ]
}

const WAITING_COLUMNS: [Column; 8] = [
    Column::whole("ID"),
    Column::whole("FOR"),
    Column::whole("AGE"),
    Column::whole("TRIES"),
    Column::whole("NEXT TRY"),
    Column::cut("SENDER"),
    Column::cut("TO"),
    Column::cut("STATUS"),
];

fn waiting_row(record: &Record, terminal: &Terminal<'_>) -> Vec<String> {
    vec![
        record.id.to_string(),
        record.lane.as_str().to_owned(),
        terminal.age(record.received_at),
        record.attempts.to_string(),
        match record.due_at > terminal.now {
            true => terminal.time(record.due_at),
            false => "due".to_owned(),
        },
        record.envelope.reverse_path.to_string(),
        some_recipients(&record.envelope),
        record.status.clone(),
    ]
}

fn some_recipients(envelope: &Envelope) -> String {
    let first = envelope.recipients.first();
    let first = first.map_or("", |recipient| recipient.mailbox.as_str());
    match envelope.recipients.len() {
        0 | 1 => first.to_owned(),
        more => format!("{first} (+{})", more - 1),
    }
}
