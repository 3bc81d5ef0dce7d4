//! What a pattern catches among the messages that are stored: the nearest thing to knowing what it will catch.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::cli::exit::CliError;
use crate::cli::terminal::count;
use crate::message::mime;
use crate::message::pattern::Facts;
use crate::message::{Content, Fingerprint, Message, MessageId, Pattern};
use crate::store::{Filter, Lane, Record, Store, StoreError};

/// Messages that are looked at: each has to be read and taken apart.
const LOOKED_AT: usize = 2000;
/// Messages read at once.
const MESSAGES_PER_READ: usize = 200;
/// Messages that are named.
const MESSAGES_SHOWN: usize = 5;

/// How many it catches.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Caught {
    /// Messages that are held, or wait to be scanned or delivered; the newest, at most [`LOOKED_AT`].
    looked_at: usize,
    /// Those of them that it catches.
    caught: usize,
    /// The newest of these.
    first: Vec<MessageId>,
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let newest = if self.looked_at == LOOKED_AT {
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

/// Compares the pattern with what is held and what waits.
pub(super) async fn catches(pattern: &Pattern, store: &dyn Store) -> Result<Caught, CliError> {
    let mut caught = Caught::default();
    let mut filter = Filter {
        lanes: vec![Lane::Held, Lane::Scan, Lane::Delivery],
        limit: MESSAGES_PER_READ,
        ..Filter::default()
    };
    while caught.looked_at < LOOKED_AT {
        let page = store.search(filter.clone()).await?;
        if page.is_empty() {
            break;
        }
        filter.offset += page.len();
        for record in page.iter().take(LOOKED_AT - caught.looked_at) {
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
        // Gone meanwhile, or damaged: there is nothing to compare.
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
    };
    // Not on the runtime's thread: a message may be large.
    let compare = move || {
        let inspection = mime::inspect(message.content.bytes(), mime::Limits::default());
        pattern.matches(&Facts {
            envelope: &message.envelope,
            subject: inspection.subject.as_deref().unwrap_or_default(),
            fingerprint: &Fingerprint::of(&message, &inspection),
        })
    };
    tokio::task::spawn_blocking(compare)
        .await
        .map_err(|error| CliError::Internal(error.to_string()))
}
