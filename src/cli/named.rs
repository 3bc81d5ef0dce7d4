//! Messages that an incident or an interceptor names, with their present state.

use serde::Serialize;

use super::exit::CliError;
use super::record::heading;
use super::table::Column;
use super::terminal::Terminal;
use crate::config::Config;
use crate::message::MessageId;
use crate::store::{Store, history};

/// A named message.
#[derive(Debug, Serialize)]
pub(super) struct NamedMessage {
    id: MessageId,
    state: String,
    sender: String,
    subject: String,
}

/// Looks up the messages in the store, or in the history if they have left the store. Repeated ids are left out.
pub(super) async fn find(
    ids: impl IntoIterator<Item = MessageId>,
    store: &dyn Store,
    config: &Config,
) -> Result<Vec<NamedMessage>, CliError> {
    let history = config.store.path.join(history::FILE_NAME);
    let mut found: Vec<NamedMessage> = Vec::new();
    for id in ids {
        if found.iter().any(|named| named.id == id) {
            continue;
        }
        found.push(match store.get(id).await? {
            Some(record) => NamedMessage {
                id,
                state: record.lane.as_str().to_owned(),
                sender: record.envelope.reverse_path.to_string(),
                subject: record.subject,
            },
            None => {
                let life = history::read(&history, id).await?;
                let last = life.last();
                NamedMessage {
                    id,
                    state: last.map_or("unknown", |entry| &*entry.event).to_owned(),
                    sender: last.map_or(String::new(), |entry| entry.sender.to_string()),
                    subject: String::new(),
                }
            }
        });
    }
    Ok(found)
}

/// Prints a table of the messages under `title`; prints nothing if there are none.
pub(super) fn show(
    title: &str,
    messages: &[NamedMessage],
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if messages.is_empty() {
        return Ok(());
    }
    heading(title, terminal)?;
    let columns = [
        Column::id("ID"),
        Column::whole("STATE"),
        Column::cut("SENDER"),
        Column::cut("SUBJECT"),
    ];
    let row = |named: &NamedMessage| {
        vec![
            named.id.to_string(),
            named.state.clone(),
            named.sender.clone(),
            named.subject.clone(),
        ]
    };
    terminal.table(&columns, messages.iter().map(row))
}
