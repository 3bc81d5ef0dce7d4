//! Quarantine: held messages and their ends. Every act of a person leaves an audit entry, written in the same transaction as
//! the act. If two acts concern the same entry at the same time, exactly one succeeds.
//!
//! The relay and the commands call the same functions, at the same time, on the same store.

pub mod export;
pub mod stats;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

use crate::message::{Mailbox, MessageId, Notify, Recipient};
use crate::store::{
    self, Audit, Capacity, Change, Filter, Lane, Notification, Record, Store, StoreError,
};

/// Settings of `[quarantine]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a message stays in quarantine before it expires and is removed.
    pub retention: Duration,
    /// Limit for mail in quarantine. Beyond it, the relay refuses new mail that it would hold, while the sender still has that
    /// mail. Mail that the relay already has is held beyond the limit.
    pub max_bytes: Capacity,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(30 * 86_400),
            max_bytes: Capacity::default(),
        }
    }
}

/// Why an act was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QuarantineError {
    /// The message was released, deleted or expired, or was never held.
    #[error("{0} is not in quarantine (any more); see `spillway explain {0}`")]
    NotHeld(MessageId),
    /// A release without recipients would lose the message.
    #[error("a release needs at least one recipient")]
    NoRecipients,
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

/// The actor and the time of an act, for the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Login name of the person, or [`Act::RELAY`].
    pub actor: String,
    /// Time of the act.
    pub at: Timestamp,
}

impl Act {
    /// The actor of the relay's own acts.
    pub const RELAY: &str = "spillway";

    /// An act of the relay itself.
    pub fn of_relay(at: Timestamp) -> Self {
        Self {
            actor: Self::RELAY.to_owned(),
            at,
        }
    }

    fn entry(&self, act: &str, record: MessageId, detail: String) -> Audit {
        Audit {
            at: self.at,
            actor: self.actor.clone(),
            act: act.to_owned(),
            object: record.into(),
            detail,
        }
    }
}

/// Moves a held message to delivery: due now, until `give_up` has passed, without another decision of policy. The message goes
/// to its own recipients, or to `recipients` instead. Returns the changed record.
///
/// The record keeps its own recipients. They are the recipients again if the others cannot get the message and it returns to
/// quarantine.
///
/// Recipients that the sender did not name are marked NOTIFY=NEVER (RFC 3461 4.1), so that the sender learns nothing of them.
///
/// Cancel safety: the release may or may not have been done. If it was, a second call returns [`QuarantineError::NotHeld`].
pub async fn release(
    store: &dyn Store,
    id: MessageId,
    recipients: Option<Vec<Mailbox>>,
    give_up: Duration,
    act: &Act,
) -> Result<Record, QuarantineError> {
    let mut record = held(store, id).await?;
    if let Some(recipients) = recipients {
        let to = redirect(&record.envelope.recipients, recipients);
        record.instead_of = std::mem::replace(&mut record.envelope.recipients, to);
    }
    if record.envelope.recipients.is_empty() {
        return Err(QuarantineError::NoRecipients);
    }
    record.lane = Lane::Delivery;
    record.due_at = act.at;
    record.expires_at = later(act.at, give_up);
    record.attempts = 0;
    record.status = format!("released by {}", act.actor);
    record.released = true;
    record.cause = None;
    let to: Vec<&str> = record
        .envelope
        .recipients
        .iter()
        .map(|recipient| recipient.mailbox.as_str())
        .collect();
    let entry = act.entry("release", id, format!("to {}", to.join(", ")));
    let change = Change::Replace(Box::new(record.clone()));
    store
        .change_in(Lane::Held, id, change, Some(entry))
        .await
        .map_err(not_held)?;
    Ok(record)
}

fn redirect(known: &[Recipient], wanted: Vec<Mailbox>) -> Vec<Recipient> {
    let recipient = |mailbox: Mailbox| {
        let own = known.iter().find(|recipient| recipient.mailbox == mailbox);
        own.cloned().unwrap_or_else(|| Recipient {
            notify: Some(Notify::default()),
            ..mailbox.into()
        })
    };
    wanted.into_iter().map(recipient).collect()
}

/// Removes a held message for good, even if its record is damaged.
///
/// Cancel safety: like [`release`].
pub async fn delete(store: &dyn Store, id: MessageId, act: &Act) -> Result<(), QuarantineError> {
    let detail = match held(store, id).await {
        Ok(record) => describe(&record),
        Err(QuarantineError::Store(StoreError::Damaged(_, why))) => format!("damaged: {why}"),
        Err(error) => return Err(error),
    };
    let entry = act.entry("delete", id, detail);
    store
        .change_in(Lane::Held, id, Change::Remove, Some(entry))
        .await
        .map_err(not_held)
}

/// Removes all held messages whose retention ended by `until`; returns their number. `now` is the time of the audit entries.
/// The two differ if the clock was set.
///
/// Cancel safety: removals that were done stay done; the next call finds the other messages.
pub async fn expire_due(
    store: &dyn Store,
    until: Timestamp,
    now: Timestamp,
) -> Result<usize, StoreError> {
    let (entry, tell) = expiry("age", now);
    store::expire(store, Lane::Held, until, entry, tell).await
}

/// Removes the bounces that the rule `rule` holds beyond the newest `most`, at most [`store::REMOVALS_PER_BATCH`]; returns
/// their number. An unknown sender can make the relay write any number of bounces. Other held mail is never removed because of
/// its number.
///
/// Cancel safety: like [`expire_due`].
pub async fn expire_bounces(
    store: &dyn Store,
    rule: &str,
    most: usize,
    now: Timestamp,
) -> Result<usize, StoreError> {
    let surplus = Filter {
        lanes: vec![Lane::Held],
        reason: Some(rule.to_owned()),
        limit: store::REMOVALS_PER_BATCH,
        offset: most,
        ..Filter::default()
    };
    let mut found = store.search(surplus).await?;
    // The filter also matches text in reasons, and a rule of the administrator may have the same name.
    found.retain(|record| {
        let is_bounce = matches!(record.notification, Some(Notification::Bounce(_)));
        is_bounce && record.decision.as_ref().is_some_and(|d| d.rule == rule)
    });
    let (entry, tell) = expiry("surplus", now);
    store::remove_all(store, Lane::Held, &found, entry, tell).await
}

/// The audit entry of a message that expires, and the log line and metric after its removal.
fn expiry(
    why: &'static str,
    now: Timestamp,
) -> (impl Fn(&Record) -> Option<Audit>, impl Fn(&Record)) {
    let act = Act::of_relay(now);
    let entry = move |record: &Record| {
        let detail = format!("{why}: {}", describe(record));
        Some(act.entry("expire", record.id, detail))
    };
    let tell = move |record: &Record| {
        metrics::counter!("spillway_expired_total", "why" => why).increment(1);
        tracing::info!(id = %record.id, why, what = describe(record), "held message has expired");
    };
    (entry, tell)
}

/// One held message.
///
/// Cancel safety: safe.
pub async fn held(store: &dyn Store, id: MessageId) -> Result<Record, QuarantineError> {
    match store.get(id).await {
        Ok(Some(record)) if record.lane == Lane::Held => Ok(record),
        Ok(_) => Err(QuarantineError::NotHeld(id)),
        Err(error) => Err(not_held(error)),
    }
}

/// Describes a removed message for the audit: without a description, the name of the person who deleted it is of little use.
fn describe(record: &Record) -> String {
    let rule = record
        .decision
        .as_ref()
        .map_or("-", |decision| &decision.rule);
    let first = record.envelope.recipients.first();
    format!(
        "from {} to {}{}, held by {rule}, subject {:?}",
        record.envelope.reverse_path,
        first.map_or("-", |recipient| recipient.mailbox.as_str()),
        match record.envelope.recipients.len() {
            0 | 1 => String::new(),
            more => format!(" and {} more", more - 1),
        },
        record.subject
    )
}

fn not_held(error: StoreError) -> QuarantineError {
    match error {
        StoreError::NotFound(id) => QuarantineError::NotHeld(id),
        other => QuarantineError::Store(other),
    }
}

/// The time `span` after `now`, or the latest possible time.
fn later(now: Timestamp, span: Duration) -> Timestamp {
    now.checked_add(span).unwrap_or(Timestamp::MAX)
}
