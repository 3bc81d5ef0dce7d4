//! What the metrics count of messages. A message is counted once, and a pass that does not end is an attempt.

use std::borrow::Cow;
use std::time::Duration;

use metrics::{counter, histogram};
use tokio::time::Instant;

use super::settle::Custody;
use super::{GroupOutcome, Judgement, Passed};
use crate::deadline::steady_clock;
use crate::measure::Delays;
use crate::message::{Message, SenderReputation};
use crate::policy::{Group, PASSED_RULE};
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::store::{Lane, Record};
use crate::telemetry::metrics::MESSAGE_DELAY;
use crate::verdict::{Decision, Disposition, Verdict};

/// A message at its end of data has its reply.
pub(super) fn received(reply: &Reply) {
    counter!("spillway_received_messages_total", "reply" => class(reply)).increment(1);
}

fn class(reply: &Reply) -> &'static str {
    match reply.code() {
        ..400 => "accepted",
        400..500 => "deferred",
        500.. => "rejected",
    }
}

/// A pass has ended. Counts the message by its worst verdict, if this was the first pass whose scan is done for any recipient.
pub(super) fn judged(custody: &Custody, passed: &Passed) {
    let is_new = match custody {
        Custody::Session => true,
        Custody::Stored(record) => match record.lane {
            Lane::Scan => !was_held(record),
            // Stored in the middle of the delivery that followed the scan of this pass.
            Lane::Delivery => passed.judged.described.is_some(),
            Lane::Held | Lane::Rescan => false,
        },
    };
    let groups = passed.judged.groups.iter().zip(&passed.ends);
    let done = groups.filter(|(_, end)| !matches!(end, GroupOutcome::Deferred));
    let verdict = done.map(|((decision, _), _)| decision.verdict).max();
    if let Some(verdict) = verdict.filter(|_| is_new) {
        counter!("spillway_judged_messages_total", "verdict" => verdict.as_str()).increment(1);
    }
}

/// A pass that scanned the message delivers it without drained engines, because a person lets mail pass.
pub(super) fn passed(custody: &Custody, passed: &Passed) {
    let passes = |(decision, _): &Group| {
        decision.rule == PASSED_RULE && decision.disposition == Disposition::Deliver
    };
    let is_scanned_now = match custody {
        Custody::Session => true,
        Custody::Stored(record) => {
            record.lane != Lane::Delivery || passed.judged.described.is_some()
        }
    };
    if !is_scanned_now || !passed.judged.groups.iter().any(passes) {
        return;
    }
    let reports = passed.judged.reports.iter();
    for report in reports.filter(|report| report.passed.is_some()) {
        counter!("spillway_passed_messages_total", "engine" => report.engine.to_string())
            .increment(1);
    }
}

/// Whether recovery has taken the record out of quarantine to scan it again: it then still has the decision that held it.
pub(super) fn was_held(before: &Record) -> bool {
    let is_hold = |disposition| disposition == Disposition::Quarantine;
    let decision = before.decision.as_ref();
    before.lane == Lane::Scan && decision.is_some_and(|decision| is_hold(decision.disposition))
}

/// An event has happened to recipients. `was_held`: the mail was in quarantine before the pass.
pub(super) fn recipients(entry: &HistoryEntry, was_held: bool) {
    let event: Cow<'static, str> = entry.event.clone();
    let recipients = entry.recipients.len() as u64;
    match &*event {
        // A part is told of with its message.
        "parted" => {}
        "held" if was_held => {}
        "queued" | "deferred" | "delayed" => {
            counter!("spillway_recipient_attempts_total", "event" => event).increment(recipients);
        }
        _ => counter!("spillway_recipients_total", "event" => event).increment(recipients),
    }
}

/// A next hop has taken a copy of the message. `record` is the stored record; none in the session. `arrived` is the end of data
/// on the monotonic clock, where this process knows it. Delays of valid mail also go to `delays`.
pub(super) fn delivered(
    message: &Message,
    (judged, decision): (&Judgement, &Decision),
    record: Option<&Record>,
    arrived: Option<Instant>,
    delays: &Delays,
) {
    let lane = match record {
        // The relay's own mail is not what a user waits for.
        Some(record) if record.notification.is_some() => return,
        // A reviewer decided when this mail goes out.
        Some(record) if record.released => Lane::Held.as_str(),
        Some(record) => record.lane.as_str(),
        None => "session",
    };
    let delay = match arrived {
        Some(arrived) => Some(arrived.elapsed()),
        None => age(message),
    };
    if let Some(delay) = delay {
        histogram!(MESSAGE_DELAY, "lane" => lane).record(delay);
        let is_released = record.is_some_and(|record| record.released);
        if !is_released && decision.verdict != Verdict::Malicious {
            let stored = || record.and_then(|record| record.reputation);
            let senders = match judged.reputation.or_else(stored) {
                Some(SenderReputation::Known) => "known",
                Some(SenderReputation::Unknown) => "unknown",
                None => "",
            };
            delays.add(lane, senders, delay);
        }
    }
}

/// The time since the end of data by the wall clock, without its leaps forward. `None` if the clock was set back to a time before
/// the end of data: nothing then says how old the mail is, and 0 would make the relay look fast.
pub(super) fn age(message: &Message) -> Option<Duration> {
    let age = steady_clock(message.received_at).duration_since(message.received_at);
    Duration::try_from(age).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::is_declared;

    /// Each event of the history is an end or an attempt, and its series is there before the first one.
    #[test]
    fn every_event_is_declared() {
        for (metric, events) in [
            (
                "spillway_recipients_total",
                &[
                    "delivered",
                    "refused",
                    "given-up",
                    "bounced",
                    "held",
                    "rejected",
                    "discarded",
                    "dropped",
                    "shortened",
                ][..],
            ),
            (
                "spillway_recipient_attempts_total",
                &["queued", "deferred", "delayed"][..],
            ),
        ] {
            for event in events {
                assert!(is_declared(metric, "event", event), "{event}");
            }
        }
        for lane in Lane::ALL {
            let declared = is_declared("spillway_lane_messages", "lane", lane.as_str());
            assert!(declared, "{lane:?}");
        }
    }

    /// The class of a reply is that of its first digit (RFC 5321 4.2.1).
    #[test]
    fn replies_have_three_classes() {
        let id = crate::message::MessageId::new();
        for (reply, expected) in [
            (Reply::accepted(id), "accepted"),
            (Reply::no_room(), "deferred"),
            (Reply::rejected(id, "rule"), "rejected"),
        ] {
            assert_eq!(class(&reply), expected);
        }
    }
}
