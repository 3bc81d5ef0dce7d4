//! Lists of stored messages: columns, limit, and the note that there is more. `queue`, `quarantine` and `demo` print them.

use clap::Args;
use serde::Serialize;

use super::exit::{CliError, Exit, Outcome};
use super::json_list::{JsonList, note_more};
use super::select::Conditions;
use super::table::Column;
use super::terminal::{Terminal, size};
use super::waits::{Relay, WaitsFor};
use crate::message::{Envelope, ReversePath};
use crate::store::{Lane, Record, Store};

/// Number of messages in a list without `--limit` and `--all`: 50, about one screen.
const LIST_LIMIT_DEFAULT: usize = 50;

/// Which messages a list shows.
#[derive(Debug, Args)]
pub(super) struct ListArguments {
    #[command(flatten)]
    conditions: Conditions,
    /// List all messages, not only the newest 50
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// A kind of list.
pub(super) enum RecordList {
    /// Held messages.
    Held,
    /// Waiting messages, and the relay that they wait for.
    Waiting(Relay),
}

impl RecordList {
    /// Lists the messages of `lanes` that meet the conditions, the newest first.
    pub(super) async fn list(
        &self,
        wanted: &ListArguments,
        lanes: &[Lane],
        store: &dyn Store,
        terminal: &mut Terminal<'_>,
    ) -> Outcome {
        let (conditions, now) = (&wanted.conditions, terminal.now);
        let most = match wanted.all {
            true => usize::MAX,
            false => conditions.limit().unwrap_or(LIST_LIMIT_DEFAULT),
        };
        let total = store.count(conditions.filter(lanes, now)).await?;
        let shown = if terminal.json {
            let mut list = JsonList::begin(terminal, total)?;
            if let Self::Waiting(relay) = self {
                list.member("relay", &relay.word().into())?;
            }
            let mut list = list.items("messages")?;
            let each = |record: Record| list.item(|terminal| self.item(&record, terminal));
            conditions.each(store, lanes, now, most, each).await?;
            list.end()?
        } else {
            let mut rows = Vec::new();
            let each = |record: Record| {
                rows.push(self.row(&record, terminal));
                Ok(())
            };
            conditions.each(store, lanes, now, most, each).await?;
            let shown = rows.len();
            terminal.table(self.columns(), rows)?;
            shown
        };
        note_more(shown, total, terminal)?;
        self.note(terminal)?;
        Ok(Exit::Done)
    }

    /// Tells people if the relay has not answered.
    fn note(&self, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
        match self {
            Self::Waiting(relay) if !terminal.json => match relay.note() {
                Some(note) => terminal.note(note),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Prints records as a table, or as JSON.
    pub(super) fn print(
        &self,
        records: &[Record],
        terminal: &mut Terminal<'_>,
    ) -> Result<(), CliError> {
        if !terminal.json {
            return self.table(records, terminal);
        }
        let items: Vec<Item<'_>> = records.iter().map(|r| self.item(r, terminal)).collect();
        terminal.json(&items)
    }

    /// Prints records as a table.
    pub(super) fn table(
        &self,
        records: &[Record],
        terminal: &mut Terminal<'_>,
    ) -> Result<(), CliError> {
        let rows: Vec<_> = records.iter().map(|r| self.row(r, terminal)).collect();
        terminal.table(self.columns(), rows)
    }

    fn columns(&self) -> &'static [Column] {
        match self {
            Self::Held => &HELD_COLUMNS,
            Self::Waiting(_) => &WAITING_COLUMNS,
        }
    }

    /// The row of a record below the columns.
    fn row(&self, record: &Record, terminal: &Terminal<'_>) -> Vec<String> {
        match self {
            Self::Held => held_row(record, terminal),
            Self::Waiting(relay) => waiting_row(record, relay, terminal),
        }
    }

    fn item<'a>(&self, record: &'a Record, terminal: &Terminal<'_>) -> Item<'a> {
        let waits_for = match self {
            Self::Held => None,
            Self::Waiting(relay) => Some(WaitsFor::of(record, relay, terminal)),
        };
        Item { record, waits_for }
    }
}

/// A record in a list as JSON, with what it waits for.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(flatten)]
    record: &'a Record,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<WaitsFor>,
}

const HELD_COLUMNS: [Column; 7] = [
    Column::id("ID"),
    Column::whole("AGE"),
    Column::whole("SIZE").optional(),
    Column::cut("REASON"),
    Column::address("SENDER"),
    Column::address("TO").optional(),
    Column::cut("SUBJECT"),
];

fn held_row(record: &Record, terminal: &Terminal<'_>) -> Vec<String> {
    let mut reason = record
        .decision
        .as_ref()
        .map_or("-".to_owned(), |d| d.rule.clone());
    if let Some(cause) = &record.cause {
        reason.push_str(&format!(", {cause}"));
    }
    vec![
        record.id.to_string(),
        terminal.age(record.received_at),
        size(record.size),
        reason,
        sender(&record.envelope.reverse_path),
        some_recipients(&record.envelope),
        record.subject.clone(),
    ]
}

const WAITING_COLUMNS: [Column; 8] = [
    Column::id("ID"),
    Column::whole("AGE"),
    Column::whole("TRIES"),
    Column::address("SENDER"),
    Column::address("TO").optional(),
    Column::cut("SUBJECT"),
    Column::below("WAITING FOR"),
    Column::cut("STATUS").optional(),
];

fn waiting_row(record: &Record, relay: &Relay, terminal: &Terminal<'_>) -> Vec<String> {
    vec![
        record.id.to_string(),
        terminal.age(record.received_at),
        record.attempts.to_string(),
        sender(&record.envelope.reverse_path),
        some_recipients(&record.envelope),
        record.subject.clone(),
        WaitsFor::of(record, relay, terminal).text().to_owned(),
        record.status.clone(),
    ]
}

/// The sender's address without its angle brackets; `<>` for none.
fn sender(path: &ReversePath) -> String {
    match path.mailbox() {
        Some(mailbox) => mailbox.to_string(),
        None => path.to_string(),
    }
}

fn some_recipients(envelope: &Envelope) -> String {
    let first = envelope.recipients.first();
    let first = first.map_or("", |recipient| recipient.mailbox.as_str());
    match envelope.recipients.len() {
        0 | 1 => first.to_owned(),
        more => format!("{first} (+{})", more - 1),
    }
}
