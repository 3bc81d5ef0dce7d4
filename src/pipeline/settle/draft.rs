//! The records in which a message continues after a pass.
//!
//! Three names for the end of delivery: `give_up` is the time that a next hop allows for delivery (its key `give_up`);
//! `give_up_at` is the instant at which that time ends, stored as `expires_at` of a record in the delivery lane; a recipient is
//! `given_up` when delivery has ended without a permanent refusal.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Notice, TIMEOUT_RULE, awaited, next_hop, select};
use crate::chance;
use crate::deadline::{expiry_clock, wall_clock};
use crate::delivery::{self, Answer, dsn, schedule};
use crate::message::{Content, Message, MessageId, Recipient, header};
use crate::pipeline::{Generation, Judgement, lanes};
use crate::store::{Cause, Extent, Lane, Notification, RESCAN_RETENTION, Record};
use crate::verdict::{Decision, Reason, Report, Verdict};

/// The common data of all records of one settlement. `before` is the record of the message before this pass, `judged` the
/// judgement of this pass; both are `None` where there is none.
pub(super) struct Draft<'a> {
    pub(super) generation: &'a Generation,
    pub(super) message: &'a Message,
    pub(super) before: Option<&'a Record>,
    pub(super) judged: Option<&'a Judgement>,
}

impl Draft<'_> {
    /// The record in which the message continues in `lane` for these recipients (positions in the envelope), with all that
    /// follows from the lane: next hop, cause, and the instants at which the record is due and expires. It counts this
    /// pass as an attempt, if there was a pass.
    pub(super) fn record(
        &self,
        lane: Lane,
        decision: Option<&Decision>,
        recipients: &[usize],
        status: &str,
    ) -> Record {
        let mut record = match self.before {
            Some(before) => self.again(before, lane),
            None => self.first(lane),
        };
        record.envelope = (*select(self.message, recipients)).clone();
        record.decision = decision.cloned();
        record.status = status.to_owned();
        record.next_hop = match (lane, record.envelope.recipients.first()) {
            (Lane::Delivery, Some(recipient)) => next_hop(self.generation, recipient)
                .cloned()
                .unwrap_or_else(|| "".into()),
            _ => "".into(),
        };
        if let Some(judged) = self.judged {
            record.reports.clone_from(&judged.reports);
            record.spent = judged.spent;
            record.timeouts = self.timeouts();
            record.hung |= judged.reports.iter().any(Report::hung);
            record.reputation = judged.reputation.or(record.reputation);
        }
        if matches!(lane, Lane::Held | Lane::Scan) {
            record.cause = decision.and_then(|decision| self.cause(decision));
            if let Some(cause) = &record.cause {
                let cause = cause.subject();
                record.note_late_for(cause);
            }
        }
        record.due_at = match lane {
            Lane::Held | Lane::Rescan => wall_clock(),
            Lane::Scan if record.attempts == 0 => wall_clock(),
            Lane::Scan => wall_clock() + lanes::scan_backoff(record.attempts),
            Lane::Delivery => wall_clock() + self.delivery_backoff(&record),
        };
        record.expires_at = match lane {
            Lane::Held => wall_clock() + self.generation.retention,
            Lane::Rescan => wall_clock() + RESCAN_RETENTION,
            Lane::Scan => record.received_at + self.generation.budget.deferral,
            Lane::Delivery => self.give_up_at(record.envelope.recipients.first()),
        };
        record
    }

    /// The record of mail that was not sent to its next hop in this pass: it is only queued, or the pace of the next hop let no
    /// mail go. This is no attempt. The pace decides when the mail goes out, the oldest first, so the mail is due since its
    /// reception.
    pub(super) fn not_sent_yet(&self, record: Record) -> Record {
        let attempts = self.in_delivery().map_or(0, |before| before.attempts);
        Record {
            attempts,
            // If the clock was set back since reception, `received_at` is in the future; so take the earlier of the two.
            due_at: record.received_at.min(wall_clock()),
            ..record
        }
    }

    /// The record of a message that has none yet. [`record`](Self::record) fills in what depends on the lane and on the pass.
    fn first(&self, lane: Lane) -> Record {
        let message = self.message;
        Record {
            id: message.id,
            message: message.id,
            lane,
            envelope: (*message.envelope).clone(),
            trace: message.trace.clone(),
            size: message.content.len() as u64,
            sha256: message.content.digest().to_string(),
            subject: header::subject(message.content.header_section()),
            received_at: message.received_at,
            due_at: message.received_at,
            expires_at: message.received_at,
            // A pass inside the session counts as an attempt; a message that was only made durable has had no pass.
            attempts: u32::from(self.judged.is_some()),
            spent: Duration::ZERO,
            decision: None,
            reports: Vec::new(),
            status: String::new(),
            released: false,
            cause: None,
            reputation: None,
            notification: None,
            instead_of: Vec::new(),
            late_for: Vec::new(),
            timeouts: 0,
            hung: false,
            next_hop: "".into(),
        }
    }

    /// Number of passes in which a scan timed out, this pass included.
    pub(super) fn timeouts(&self) -> u32 {
        let before = self.before.map_or(0, |before| before.timeouts);
        let reports = self.judged.map_or(&[][..], |judged| &judged.reports);
        let timed_out = |report: &Report| report.missing() == Some(Reason::Timeout);
        before + u32::from(reports.iter().any(timed_out))
    }

    /// The cause for which the guard keeps the message; `None` if the message is kept for a finding or a timeout.
    fn cause(&self, decision: &Decision) -> Option<Cause> {
        if decision.rule == TIMEOUT_RULE {
            return None;
        }
        if let Some(id) = decision.rule.strip_prefix("interceptor.") {
            return Some(Cause::Interceptor(id.to_owned()));
        }
        let undetermined = decision.verdict == Verdict::Undetermined;
        let reports = &self.judged.filter(|_| undetermined)?.reports;
        let engine = awaited(self.generation, reports, &decision.rule)?;
        Some(Cause::Engine(engine.to_string()))
    }

    /// The record of a message that has the record `before`, for its next stay in `lane`: one attempt more in the same lane, the
    /// first attempt in another lane.
    pub(super) fn again(&self, before: &Record, lane: Lane) -> Record {
        Record {
            lane,
            attempts: if lane == before.lane {
                before.attempts + 1
            } else {
                1
            },
            // Each pass determines the cause anew.
            cause: None,
            // A message that comes back to quarantine waits for a new decision.
            released: before.released && lane == Lane::Delivery,
            ..before.clone()
        }
    }

    /// The settings of a recipient's next hop; `None` if no next hop takes the domain.
    pub(super) fn route(&self, recipient: &Recipient) -> Option<&delivery::Settings> {
        self.generation.delivery.route(recipient.mailbox.domain())
    }

    /// The wait until the next delivery attempt. It depends on the first recipient, because all recipients of a record have one
    /// next hop.
    fn delivery_backoff(&self, record: &Record) -> Duration {
        let route = record
            .envelope
            .recipients
            .first()
            .and_then(|recipient| self.route(recipient));
        route.map_or(schedule::UNROUTED_RETRY_INTERVAL, |settings| {
            schedule::next_attempt(settings, record.attempts, &mut chance::rng())
        })
    }

    /// The instant at which delivery ends. The time counts from the first queueing for delivery, which for a released message
    /// may be long after reception.
    fn give_up_at(&self, recipient: Option<&Recipient>) -> Timestamp {
        if let Some(before) = self.in_delivery() {
            return before.expires_at;
        }
        wall_clock() + self.give_up(recipient)
    }

    /// Whether the time for delivery has passed, so that a deferred recipient is given up. The clock makes allowance for leaps
    /// forward. Always false for a message that was not in the delivery lane.
    pub(super) fn is_past_give_up(&self) -> bool {
        self.in_delivery().is_some_and(|before| {
            let give_up = self.give_up(before.envelope.recipients.first());
            expiry_clock(give_up) >= before.expires_at
        })
    }

    /// The time that the recipient's next hop allows for delivery.
    fn give_up(&self, recipient: Option<&Recipient>) -> Duration {
        let route = recipient.and_then(|recipient| self.route(recipient));
        route.map_or(schedule::UNROUTED_GIVE_UP, |settings| settings.give_up)
    }

    /// The record before this pass, if it was in the delivery lane.
    fn in_delivery(&self) -> Option<&Record> {
        self.before.filter(|before| before.lane == Lane::Delivery)
    }

    /// The message as notifications describe it.
    pub(super) fn original(&self) -> dsn::Original<'_> {
        dsn::Original {
            reporting_mta: &self.generation.hostname,
            id: self.message.id,
            envelope: &self.message.envelope,
            arrived: self.message.received_at,
            content: self.message.content.bytes(),
        }
    }

    /// The notification to the sender that these recipients have met `action`, with the answer for each. `None` if the sender
    /// wants no such notification, or may not get one. The notification is due at once.
    pub(super) fn notice(
        &self,
        action: dsn::Action,
        about: &[(Recipient, Answer)],
    ) -> Option<Notice> {
        let original = self.original();
        let (id, now) = (MessageId::new(), wall_clock());
        let (envelope, content) = original.report(action, about, id, now)?;
        let message = Message {
            id,
            received_at: now,
            envelope: Arc::new(envelope),
            trace: "".into(),
            content: Content::uncharged(content.clone()),
            times: None,
        };
        let draft = Draft {
            generation: self.generation,
            message: &message,
            before: None,
            judged: None,
        };
        let all: Vec<usize> = (0..message.envelope.recipients.len()).collect();
        let status = format!("notification about {}", self.message.id);
        let mut record = draft.record(Lane::Delivery, None, &all, &status);
        record.due_at = now;
        let is_bounce = action == dsn::Action::Failed;
        record.notification = Some(match is_bounce {
            true => Notification::Bounce(Extent::Whole),
            false => Notification::Report,
        });
        Some(Notice {
            record,
            content,
            is_bounce,
        })
    }
}
