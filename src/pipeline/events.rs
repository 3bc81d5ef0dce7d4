//! The events that the pipeline writes to the log and the metrics. Each event is one function, its only definition.

mod line;

use super::settle::{BOUNCE_UNDELIVERABLE_RULE, UNDELIVERABLE_RULE};
use crate::message::MessageId;
use crate::store::StoreError;
use crate::store::history::HistoryEntry;

use line::Addresses;
pub(super) use line::{PassFacts, PassTimes, message};

/// The outcome of a pass for some recipients, which [`message`] has logged.
pub(super) fn settled(entry: &HistoryEntry) {
    let rule = entry.decision.as_ref();
    bounce(entry, rule.map_or("", |decision| &decision.rule));
}

/// The outcome of a bounce, or of mail that can be neither delivered nor bounced. An administrator should look at the latter.
fn bounce(entry: &HistoryEntry, rule: &str) {
    let outcome = match (&*entry.event, rule) {
        ("bounced", _) => "written",
        ("shortened", _) => "shortened",
        ("held", BOUNCE_UNDELIVERABLE_RULE) => "held",
        ("dropped", BOUNCE_UNDELIVERABLE_RULE) => "dropped",
        ("held", UNDELIVERABLE_RULE) => "not-allowed",
        ("dropped", UNDELIVERABLE_RULE) => "nobody",
        _ => return,
    };
    metrics::counter!("spillway_bounces_total", "outcome" => outcome).increment(1);
    let what = match outcome {
        "held" => "a bounce cannot be delivered, and is held",
        "dropped" => "a bounce is dropped: its recipient takes none",
        "not-allowed" => "a message cannot be delivered nor bounced, and is held",
        "nobody" => {
            "a message is dropped: its recipient does not take it, and its sender may not be told"
        }
        _ => return,
    };
    tracing::warn!(id = %entry.message, to = %Addresses::of(std::slice::from_ref(entry)), what, detail = %entry.detail, "undeliverable");
}

/// The store failed: in a session, the sender keeps the message; a stored record is claimed again later.
pub(super) fn not_kept(id: MessageId, error: &StoreError) {
    metrics::counter!("spillway_not_kept_total").increment(1);
    tracing::error!(%id, %error, "message not kept");
}

/// A message was delivered without an engine, and could not be stored for a later scan by that engine.
pub(super) fn not_remembered(id: MessageId) {
    metrics::counter!("spillway_rescans_lost_total").increment(1);
    tracing::warn!(%id, "delivered without an engine, and not kept to be scanned again");
}

/// A message that was delivered without an engine has timed out there again: there is no further scan.
pub(super) fn not_scanned_later(id: MessageId) {
    metrics::counter!("spillway_rescans_lost_total").increment(1);
    tracing::warn!(%id, "delivered without an engine, and it ran into its timeout twice: it is not scanned again");
}

/// A lane, recovery or the watch could not use the store, and tries again.
pub(super) fn lane_failed(what: &str, error: &StoreError) {
    metrics::counter!("spillway_lane_errors_total").increment(1);
    tracing::error!(what, %error, "lane");
}
