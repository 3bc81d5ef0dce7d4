//! The jobs of the writer, and what they return.

use jiff::Timestamp;

use super::bodies::Written;
use super::row::Row;
use crate::message::{Content, MessageId};
use crate::store::{
    AtWork, Audit, Capacity, Cause, Change, Lane, Outgoing, StoreError, StoredInterceptor,
    SweepPosition, Times,
};

/// A job of the writer.
pub(super) enum Work {
    /// Adds rows with their contents; the contents of `files` are not in the database. `beside` is the change of the row that
    /// the new rows come from.
    Put {
        rows: Vec<NewRow>,
        files: Option<Written>,
        beside: Option<Box<Work>>,
        room: Room,
    },
    /// Replaces the row with this id.
    Replace {
        id: MessageId,
        row: Box<Row>,
        lane: Option<Lane>,
        audit: Option<Entry>,
    },
    /// Removes the row and its content.
    Remove {
        id: MessageId,
        lane: Option<Lane>,
        audit: Option<Entry>,
    },
    /// Leases rows that are due.
    Claim { lane: Lane, terms: ClaimTerms },
    /// Leases rows to deliver or to give up.
    ClaimOutgoing { what: Outgoing, terms: ClaimTerms },
    /// Leases rows that wait for a cause, due or not.
    Recover {
        lane: Lane,
        cause: Cause,
        after: Option<SweepPosition>,
        terms: ClaimTerms,
    },
    /// Makes a row due, unless it is leased.
    MakeDue { id: MessageId, now: Timestamp },
    /// Adds or replaces an interceptor.
    KeepInterceptor {
        interceptor: StoredInterceptor,
        audit: Option<Entry>,
    },
    /// Removes an interceptor.
    DropInterceptor { id: String, audit: Option<Entry> },
    /// Adds an audit entry alone.
    Audit(Entry),
    /// Marks a row that cannot be used.
    SetAside { id: MessageId, why: String },
    /// Ends the thread after the jobs queued before.
    Stop,
}

/// A row to add.
pub(super) struct NewRow {
    pub(super) row: Row,
    pub(super) content: Content,
    /// Whether the content is a file.
    pub(super) file: bool,
}

/// The room on the disk that a put may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The room above the reserve: the sender still has the mail.
    New,
    /// The room above the reserve, and in quarantine no more than this limit.
    Held(Capacity),
    /// All room: the records come from mail that the relay already has.
    Reserve,
}

/// How rows are leased.
pub(super) struct ClaimTerms {
    pub(super) times: Times,
    /// Maximum number of rows.
    pub(super) limit: usize,
    /// Records that are not returned, because this process works on them.
    pub(super) at_work: AtWork,
}

/// An encoded audit entry.
pub(super) struct Entry {
    pub(super) object: String,
    pub(super) json: String,
}

/// The result of a job.
#[derive(Debug)]
pub(super) enum Output {
    /// Done.
    Done,
    /// Done. To make room, this number of messages was removed from the rescan lane, and these of them have files.
    MadeRoom {
        messages: usize,
        files: Vec<MessageId>,
    },
    /// Claimed rows: id and record, in their order.
    Claimed(Vec<(String, String)>),
    /// Removed a row whose content is a file with this id.
    RemovedFile(MessageId),
    /// Done; the new version.
    Version(u64),
    /// Not done: another process changed the interceptor first.
    Unchanged,
    /// Not done, because of the record and not because of the disk.
    Refused(StoreError),
}

impl Work {
    /// Whether the work adds mail that is nowhere else in the store. The next start must find it, or it must stay with its
    /// sender.
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Self::Put { beside: None, .. })
    }

    /// Whether the work must leave the reserve of a full disk to other work.
    pub(super) fn gives_way(&self) -> bool {
        matches!(self, Self::Put { room, .. } if *room != Room::Reserve)
    }
}

/// Number of content octets that the work adds to its transaction.
pub(super) fn weight(work: &Work) -> usize {
    match work {
        Work::Put { rows, .. } => {
            let inline = rows.iter().filter(|new| !new.file);
            inline.map(|new| new.content.len()).sum()
        }
        _ => 0,
    }
}

/// A change of one record, encoded.
pub(super) fn change_of(
    lane: Option<Lane>,
    id: MessageId,
    change: Change,
    audit: Option<Entry>,
) -> Result<Work, StoreError> {
    let (record, lease) = match change {
        Change::Remove => return Ok(Work::Remove { id, lane, audit }),
        Change::Replace(record) => (record, None),
        Change::Take(record, until) => (record, Some(until)),
    };
    if record.id != id {
        let why = format!("the record of {} cannot replace it", record.id);
        return Err(StoreError::Damaged(id, why));
    }
    Ok(Work::Replace {
        id,
        row: Box::new(Row::encode(*record, lease)?),
        lane,
        audit,
    })
}

/// Encodes an audit entry.
pub(super) fn entry(audit: &Audit) -> Result<Entry, StoreError> {
    let json = serde_json::to_string(audit)
        .map_err(|error| StoreError::Broken(format!("audit entry: {error}")))?;
    Ok(Entry {
        object: audit.object.to_string(),
        json,
    })
}
