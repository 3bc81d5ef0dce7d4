//! The stored messages that a command works on: messages that are given by id, or that match a filter.

use std::collections::HashSet;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::exit::CliError;
use super::id::IdPrefix;
use super::terminal::{Terminal, count};
use crate::config;
use crate::message::MessageId;
use crate::store::{Cause, Filter, Lane, Record, Store};

/// Records in one read of the store, which bounds the memory of a read.
const RECORDS_PER_READ: usize = 500;
/// The store keeps times in microseconds.
const STORE_TIME_RESOLUTION: Duration = Duration::from_micros(1);
/// Records that a dry run shows: a person reads no more, and memory stays bounded.
const DRY_RUN_RECORDS_SHOWN: usize = 200;

/// Conditions on stored messages. All given conditions must hold.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which messages (every condition must hold)")]
pub(super) struct Conditions {
    /// Rule that decided, or part of the reason
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Engine that found something or did not answer
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Part of a finding's name
    #[arg(long, value_name = "TEXT")]
    finding: Option<String>,
    /// Part of the sender's address
    #[arg(long, value_name = "TEXT")]
    sender: Option<String>,
    /// Part of a recipient's address
    #[arg(long, value_name = "TEXT")]
    recipient: Option<String>,
    /// Part of the subject
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// Cause for which the guard keeps the message: engine:NAME or interceptor:ID
    #[arg(long, value_name = "CAUSE")]
    cause: Option<Cause>,
    /// Received longer ago than this: 30m, 12h, 2d
    #[arg(long, value_name = "AGE", value_parser = config::parse_duration)]
    older_than: Option<Duration>,
    /// Received within this time: 30m, 12h, 2d
    #[arg(long, value_name = "AGE", value_parser = config::parse_duration)]
    newer_than: Option<Duration>,
    /// At least this large: 100KiB, 5MiB
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
    larger: Option<u64>,
    /// Smaller than this: 100KiB, 5MiB
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
    smaller: Option<u64>,
    /// Maximum number of messages, the newest first
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
}

impl Conditions {
    /// The conditions as a filter for the store.
    pub(super) fn filter(&self, lanes: &[Lane], now: Timestamp) -> Filter {
        let ago = |age: Duration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
        let size = match (self.larger, self.smaller) {
            (None, None) => None,
            (larger, smaller) => Some(larger.unwrap_or(0)..smaller.unwrap_or(u64::MAX)),
        };
        Filter {
            lanes: lanes.to_vec(),
            reason: self.reason.clone(),
            engine: self.engine.clone(),
            finding: self.finding.clone(),
            sender: self.sender.clone(),
            recipient: self.recipient.clone(),
            subject: self.subject.clone(),
            cause: self.cause.clone(),
            before: self.older_than.map(ago),
            after: self.newer_than.map(ago),
            size,
            ..Filter::default()
        }
    }

    /// Whether no condition is given, so that every message matches.
    fn is_empty(&self) -> bool {
        let all = Filter::default();
        self.filter(&[], Timestamp::UNIX_EPOCH) == all && self.limit.is_none()
    }

    /// The value of `--limit`.
    pub(super) fn limit(&self) -> Option<usize> {
        self.limit
    }

    /// Calls `act` for each matching message, the newest first, at most `most` times. Reads the store page by page, so that
    /// memory stays bounded.
    pub(super) async fn each(
        &self,
        store: &dyn Store,
        lanes: &[Lane],
        now: Timestamp,
        most: usize,
        mut act: impl FnMut(Record) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let mut filter = Filter {
            limit: RECORDS_PER_READ.min(most),
            ..self.filter(lanes, now)
        };
        let mut met = HashSet::new();
        while met.len() < most {
            let page = store.search(filter.clone()).await?;
            let (count, last) = (page.len(), page.last().map(|record| record.received_at));
            let mut is_further = false;
            for record in page {
                if met.len() < most && met.insert(record.id) {
                    is_further = true;
                    act(record)?;
                }
            }
            let Some(last) = last.filter(|_| count == filter.limit) else {
                break;
            };
            // Messages come and go meanwhile, which would shift pages that are counted from the newest message. So the next
            // page begins at the time where this one ended, with the messages of the same moment.
            if is_further {
                filter.before = last.checked_add(STORE_TIME_RESOLUTION).ok();
                filter.offset = 0;
            } else {
                filter.offset += count;
            }
        }
        Ok(())
    }
}

/// The messages that a command changes or exports.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Ids of the messages; of each id, any beginning that no other stored message has
    #[arg(value_name = "ID")]
    ids: Vec<IdPrefix>,
    #[command(flatten)]
    conditions: Conditions,
    /// Select all messages
    #[arg(long)]
    all: bool,
    /// Only show the selected messages; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

/// The result of a selection.
pub(super) enum Selected {
    /// The command works on these messages, in this order; the person has confirmed it where that is necessary.
    Go(Vec<MessageId>),
    /// A dry run: the number of messages, and the first of them.
    DryRun(usize, Vec<Record>),
    /// The person answered the question with no: the command does nothing.
    Declined,
}

impl Selection {
    /// Whether exactly one message is given by its id.
    pub(super) fn is_of_one(&self) -> bool {
        self.ids.len() == 1
    }

    /// Finds the messages. Asks for confirmation if several are selected, or if conditions select any; `verb` names the act.
    pub(super) async fn resolve(
        &self,
        verb: &str,
        store: &dyn Store,
        lanes: &[Lane],
        terminal: &mut Terminal<'_>,
    ) -> Result<Selected, CliError> {
        let named = !self.ids.is_empty();
        let filtered = self.all || !self.conditions.is_empty();
        if named && filtered {
            let what = "give either message ids or conditions, not both";
            return Err(CliError::Usage(what.to_owned()));
        }
        if !named && !filtered {
            let what =
                "no messages are selected; give their ids, or conditions (see --help), or --all";
            return Err(CliError::Usage(what.to_owned()));
        }
        let (ids, shown) = match named {
            true => self.named(store).await?,
            false => self.matching(store, lanes, terminal.now).await?,
        };
        if self.dry_run {
            return Ok(Selected::DryRun(ids.len(), shown));
        }
        if ids.is_empty() {
            return Err(CliError::NotFound("no message matches".to_owned()));
        }
        if (ids.len() > 1 || filtered) && !self.yes {
            let question = format!("{verb} {}?", count(ids.len(), "message"));
            if !terminal.confirm(&question)? {
                return Ok(Selected::Declined);
            }
        }
        Ok(Selected::Go(ids))
    }

    async fn named(&self, store: &dyn Store) -> Result<(Vec<MessageId>, Vec<Record>), CliError> {
        let mut ids = Vec::new();
        for id in &self.ids {
            let id = id.message(store).await?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let mut shown = Vec::new();
        if self.dry_run {
            for id in ids.iter().take(DRY_RUN_RECORDS_SHOWN) {
                shown.extend(store.get(*id).await?);
            }
        }
        Ok((ids, shown))
    }

    async fn matching(
        &self,
        store: &dyn Store,
        lanes: &[Lane],
        now: Timestamp,
    ) -> Result<(Vec<MessageId>, Vec<Record>), CliError> {
        let most = self.conditions.limit.unwrap_or(usize::MAX);
        let (mut ids, mut shown) = (Vec::new(), Vec::new());
        let each = |record: Record| {
            ids.push(record.id);
            if shown.len() < DRY_RUN_RECORDS_SHOWN {
                shown.push(record);
            }
            Ok(())
        };
        self.conditions.each(store, lanes, now, most, each).await?;
        Ok((ids, shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;
    use crate::store::contract::{at, octets, record};
    use crate::store::sqlite::{Role, SqliteStore};

    /// `--all` selects all messages: also those with a time in the future (a clock that ran ahead), and more messages of one
    /// moment than one read returns.
    #[tokio::test]
    async fn all_selects_messages_of_every_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            path: folder.path().to_owned(),
            disk_reserve: 0,
            ..Settings::default()
        };
        let opened = SqliteStore::open(&settings, Role::Relay).await;
        let (store, _) = opened.expect("a store");
        let times = [(86_400, 1), (5000, 2 * RECORDS_PER_READ + 1), (-9, 3)];
        let mut count = 0;
        for (received, many) in times {
            let mut records: Vec<_> = (0..many).map(|_| record(Lane::Delivery)).collect();
            for record in &mut records {
                record.received_at = at(received);
            }
            store.put(records, octets(1)).await.expect("put");
            count += many;
        }
        let selection = |limit| Selection {
            ids: Vec::new(),
            conditions: Conditions {
                limit,
                ..Conditions::default()
            },
            all: true,
            dry_run: false,
            yes: true,
        };
        for (limit, wanted) in [
            (None, count),
            (Some(7), 7),
            (Some(RECORDS_PER_READ + 1), RECORDS_PER_READ + 1),
        ] {
            let selection = selection(limit);
            let (ids, shown) = selection
                .matching(&*store, &[Lane::Delivery], at(0))
                .await
                .expect("search");
            assert_eq!(ids.len(), wanted);
            assert_eq!(ids.iter().collect::<HashSet<_>>().len(), wanted, "once");
            assert_eq!(shown.len(), wanted.min(DRY_RUN_RECORDS_SHOWN));
        }
    }
}
