//! The stored messages that a pattern matches: the best available forecast of the messages that it will match.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::cli::exit::CliError;
use crate::cli::terminal::count;
use crate::message::mime;
use crate::message::pattern::Facts;
use crate::message::{ComparedAddress, Content, Fingerprint, Message, MessageId, Pattern};
use crate::store::{Filter, Lane, Record, Store, StoreError};

/// Maximum number of messages that are compared: 2000, because each must be read and parsed.
const MESSAGES_COMPARED_MAX: usize = 2000;
/// Records in one read of the store, which bounds the memory of a read.
const MESSAGES_PER_READ: usize = 200;
/// Matching messages that the output names: a few examples.
const MESSAGES_SHOWN: usize = 5;

/// The number of matching messages, with examples.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Caught {
    /// Compared messages: the newest held or waiting ones, at most [`MESSAGES_COMPARED_MAX`].
    looked_at: usize,
    /// Compared messages that match.
    caught: usize,
    /// The newest matching messages, at most [`MESSAGES_SHOWN`].
    first: Vec<MessageId>,
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newest = if self.looked_at == MESSAGES_COMPARED_MAX {
            "newest "
        } else {
            ""
        };
        let all = count(self.looked_at, "message");
        write!(f, "matches {} of the {newest}{all}", self.caught)?;
        let first: Vec<String> = self.first.iter().map(MessageId::to_string).collect();
        match first.is_empty() {
            true => Ok(()),
            false => write!(
                f,
                ": {}{}",
                first.join(", "),
                if self.caught > MESSAGES_SHOWN {
                    " …"
                } else {
                    ""
                }
            ),
        }
    }
}

/// Compares the pattern with the messages in quarantine and in the queue.
pub(super) async fn catches(pattern: &Pattern, store: &dyn Store) -> Result<Caught, CliError> {
    let mut caught = Caught::default();
    let mut filter = Filter {
        lanes: vec![Lane::Held, Lane::Scan, Lane::Delivery],
        limit: MESSAGES_PER_READ,
        ..Filter::default()
    };
    while caught.looked_at < MESSAGES_COMPARED_MAX {
        let page = store.search(filter.clone()).await?;
        if page.is_empty() {
            break;
        }
        filter.offset += page.len();
        for record in page.iter().take(MESSAGES_COMPARED_MAX - caught.looked_at) {
            caught.looked_at += 1;
            if one(pattern, record, store).await? {
                caught.caught += 1;
                if caught.first.len() < MESSAGES_SHOWN {
                    caught.first.push(record.id);
                }
            }
        }
    }
    Ok(caught)
}

async fn one(pattern: &Pattern, record: &Record, store: &dyn Store) -> Result<bool, CliError> {
    let content = match store.content(record.id).await {
        Ok(content) => content,
        // The message has left the store meanwhile, or is damaged: there is nothing to compare.
        Err(StoreError::NotFound(_) | StoreError::Damaged(..)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let pattern = pattern.clone();
    let message = Message {
        id: record.message,
        received_at: record.message.received_at(),
        envelope: Arc::new(record.envelope.clone()),
        trace: "".into(),
        content: Content::uncharged(content),
        times: None,
    };
    // Parsing a large message would block the thread of the runtime.
    let compare = move || {
        let inspection = mime::inspect(message.content.bytes(), mime::Limits::default());
        pattern.matches(&Facts {
            envelope: &message.envelope,
            sender: &ComparedAddress::of_sender(&message.envelope.reverse_path),
            subject: inspection.subject.as_deref().unwrap_or_default(),
            fingerprint: &Fingerprint::of(&message, &inspection),
        })
    };
    tokio::task::spawn_blocking(compare)
        .await
        .map_err(|error| CliError::Internal(error.to_string()))
}
