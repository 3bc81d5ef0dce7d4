//! What the path tells the log and the metrics: each event is one function, which is its only definition.

use super::settle::{BOUNCE_UNDELIVERABLE, UNDELIVERABLE};
use crate::message::MessageId;
use crate::smtp::Reply;
use crate::store::StoreError;
use crate::store::history::HistoryEntry;
use crate::verdict::stand_ins;

/// A group of recipients has met its end for now. `reply` is what the session was told, or would have been.
pub(super) fn settled(entry: &HistoryEntry, reply: &Reply) {
    metrics::counter!("spillway_recipients_total", "event" => entry.event.clone())
        .increment(entry.recipients.len() as u64);
    let rule = entry
        .decision
        .as_ref()
        .map_or("", |decision| decision.rule.as_str());
    let verdict = entry
        .decision
        .as_ref()
        .map_or("", |decision| decision.verdict.as_str());
    let stand_ins = stand_ins(&entry.reports).map(|(engine, from)| format!("{engine}:{from}"));
    let reused: Vec<String> = stand_ins.collect();
    let reused = (!reused.is_empty()).then(|| reused.join(", "));
    tracing::info!(
        id = %entry.message,
        event = %entry.event,
        from = %entry.sender,
        to = ?entry.recipients,
        client = %entry.client,
        size = entry.size,
        verdict,
        rule,
        reused,
        detail = %entry.detail,
        %reply,
        "message"
    );
    bounce(entry, rule);
}

/// What became of a bounce, and what nobody can be told about, which somebody should look at.
fn bounce(entry: &HistoryEntry, rule: &str) {
    let outcome = match (&*entry.event, rule) {
        ("bounced", _) => "written",
        ("shortened", _) => "shortened",
        ("held", BOUNCE_UNDELIVERABLE) => "held",
        ("dropped", BOUNCE_UNDELIVERABLE) => "dropped",
        ("held", UNDELIVERABLE) => "not-allowed",
        ("dropped", UNDELIVERABLE) => "nobody",
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
    tracing::warn!(id = %entry.message, to = ?entry.recipients, detail = %entry.detail, "{what}");
}

/// The store refused: the sender of a message in its session keeps it, stored work is found again later.
pub(super) fn not_kept(id: MessageId, error: &StoreError) {
    metrics::counter!("spillway_not_kept_total").increment(1);
    tracing::error!(%id, %error, "message not kept");
}

/// A message was delivered without an engine, and could not be kept for it.
pub(super) fn not_remembered(id: MessageId) {
    metrics::counter!("spillway_rescans_lost_total").increment(1);
    tracing::warn!(%id, "delivered without an engine, and not kept to be scanned again");
}

/// A message that was delivered without an engine ran into that engine's timeout once more: it is not scanned again.
pub(super) fn not_scanned_later(id: MessageId) {
    metrics::counter!("spillway_rescans_lost_total").increment(1);
    tracing::warn!(%id, "delivered without an engine, and it ran into its timeout twice: it is not scanned again");
}

/// A lane could not do its work now; it tries again.
pub(super) fn lane_failed(what: &str, error: &StoreError) {
    metrics::counter!("spillway_lane_errors_total").increment(1);
    tracing::error!(what, %error, "lane");
}
