//! Recipients that no next hop takes: bounced, or held where the sender may not be told. Also notifications of this relay that
//! cannot be delivered.

use super::{Draft, Notice, Settlement, Settling, select};
use crate::deadline::wall_clock;
use crate::delivery::{Answer, Objection, dsn};
use crate::message::{Content, Message, Recipient};
use crate::store::{Extent, Lane, Notification, Record};
use crate::verdict::{Decision, Disposition};

/// The rule that holds or drops a bounce that cannot be delivered.
pub(in crate::pipeline) const BOUNCE_UNDELIVERABLE_RULE: &str = "bounce-undeliverable";
/// The rule that holds or drops mail that could not be delivered and whose sender may not be told.
pub(in crate::pipeline) const UNDELIVERABLE_RULE: &str = "undeliverable";

/// A recipient to whom the message will not be delivered.
pub(super) struct Failure<'a> {
    pub(super) decision: &'a Decision,
    pub(super) at: usize,
    pub(super) answer: &'a Answer,
    /// Delivery ended by time or for want of a route, without a permanent refusal.
    pub(super) given_up: bool,
}

/// The message as it is sent. A bounce whose form was refused is sent shorter than stored; a message that a reviewer releases is
/// sent whole.
pub(in crate::pipeline) fn as_sent(record: &Record, message: Message) -> Message {
    match record.notification {
        Some(Notification::Bounce(extent @ (Extent::Headers | Extent::Bare)))
            if !record.released =>
        {
            let reduced = dsn::reduced(message.content.bytes(), record.message, extent);
            Message {
                content: Content::uncharged(reduced),
                ..message
            }
        }
        _ => message,
    }
}

impl Settlement {
    /// Whether the kept records contain a bounce that cannot be delivered.
    pub(in crate::pipeline) fn holds_a_bounce(&self) -> bool {
        let is_bounce = |record: &Record| {
            let decision = record.decision.as_ref();
            decision.is_some_and(|decision| decision.rule == BOUNCE_UNDELIVERABLE_RULE)
        };
        self.keep.iter().any(is_bounce)
    }
}

impl Settling<'_> {
    /// Settles the recipients of failed deliveries after the relay took responsibility: a bounce, or a hold where the sender may
    /// not be told. A message that a reviewer released goes back to the reviewer, because its sender may well be forged.
    pub(super) fn failures(&mut self) -> Option<Notice> {
        let failed = std::mem::take(&mut self.failed);
        let first = failed.first()?;
        match self.draft.before {
            Some(before) if before.released => {
                self.back_to_review(before, &failed);
                None
            }
            Some(Record {
                notification: Some(notification),
                ..
            }) => {
                self.notification_failed(*notification, first);
                None
            }
            _ => self.bounce(failed),
        }
    }

    fn back_to_review(&mut self, before: &Record, failed: &[Failure<'_>]) {
        let draft = &self.draft;
        let those: Vec<usize> = failed.iter().map(|failure| failure.at).collect();
        let mut record = draft.again(before, Lane::Held);
        record.envelope = (*select(draft.message, &those)).clone();
        if !record.instead_of.is_empty() {
            record.envelope.recipients = std::mem::take(&mut record.instead_of);
        }
        if let Some(first) = failed.first() {
            record.status.clone_from(&first.answer.text);
        }
        record.expires_at = wall_clock() + draft.generation.retention;
        self.keep.push(record);
    }

    /// Writes a bounce for the recipients whose sender may be told. The other recipients must not be bounced (RFC 5321 6.1,
    /// RFC 3461 4.1). If the refusal is about the recipient, no sender can be told and nothing can be corrected: the mail is
    /// dropped, as the relay's own bounces are. Otherwise the mail must not vanish, and a reviewer gets the mail.
    fn bounce(&mut self, failed: Vec<Failure<'_>>) -> Option<Notice> {
        let wants = |failure: &Failure<'_>| {
            let recipient = self.draft.message.envelope.recipients.get(failure.at);
            let original = self.draft.original();
            recipient.is_some_and(|r| original.wants(dsn::Action::Failed, r))
        };
        let (told, untold): (Vec<_>, Vec<_>) = failed.into_iter().partition(wants);
        let is_bounce = self.draft.message.envelope.reverse_path.is_null();
        let is_dropped = |failure: &Failure<'_>| failure.answer.objection() == Objection::Recipient;
        let (dropped, untold): (Vec<_>, Vec<_>) = untold.into_iter().partition(is_dropped);
        for failure in &dropped {
            self.drop(UNDELIVERABLE_RULE, failure, &[failure.at]);
        }
        let mut held: Vec<(&Decision, Vec<usize>, &Answer)> = Vec::new();
        for failure in &untold {
            match held.iter_mut().find(|held| held.0 == failure.decision) {
                Some((_, those, _)) => those.push(failure.at),
                None => held.push((failure.decision, vec![failure.at], failure.answer)),
            }
        }
        for (decision, those, answer) in held {
            let why = match is_bounce {
                true => "its reverse-path is null",
                false => "its sender wants no notification",
            };
            let reason = format!("not delivered, and {why}: {}", answer.text);
            self.hold_failed(UNDELIVERABLE_RULE, reason, decision, &those);
        }
        let about: Vec<(Recipient, Answer)> = told
            .iter()
            .filter_map(|failure| {
                let recipient = self.draft.message.envelope.recipients.get(failure.at)?;
                Some((recipient.clone(), failure.answer.clone()))
            })
            .collect();
        let notice = self.draft.notice(dsn::Action::Failed, &about)?;
        let detail = format!(
            "{} is told by {}",
            self.draft.message.envelope.reverse_path, notice.record.id
        );
        let those: Vec<usize> = told.iter().map(|failure| failure.at).collect();
        if let Some(first) = told.first() {
            self.tell("bounced", first.decision, &those, detail);
        }
        Some(notice)
    }

    /// Settles a notification of this relay that cannot be delivered. A report of success is dropped: no sender has a right to
    /// one. A bounce is dropped if the refusal is about its recipient, so that forged senders fill no storage. After any other
    /// refusal the bounce is sent again in a shorter form, as long as there is one; then a reviewer gets the bounce, because
    /// the next hop should take bounces.
    fn notification_failed(&mut self, notification: Notification, failure: &Failure<'_>) {
        let (draft, answer) = (&self.draft, failure.answer);
        let all: Vec<usize> = (0..draft.message.envelope.recipients.len()).collect();
        let Notification::Bounce(extent) = notification else {
            return self.tell("dropped", failure.decision, &all, answer.text.clone());
        };
        if answer.objection() == Objection::Recipient {
            return self.drop(BOUNCE_UNDELIVERABLE_RULE, failure, &all);
        }
        if !failure.given_up
            && let Some(less) = draft.less(extent)
        {
            let mut record = draft.record(Lane::Delivery, None, &all, &answer.text);
            record.notification = Some(Notification::Bounce(less));
            record.due_at = wall_clock();
            self.keep.push(record);
            return self.tell("shortened", failure.decision, &all, answer.text.clone());
        }
        let why = match failure.given_up {
            _ if answer.is_unrouted() => "there is no way for the bounce",
            true => "the bounce was not delivered in time",
            false => "the bounce is refused in every form",
        };
        let reason = format!("{why}: {}", answer.text);
        self.hold_failed(BOUNCE_UNDELIVERABLE_RULE, reason, failure.decision, &all);
    }

    fn drop(&mut self, rule: &str, failure: &Failure<'_>, those: &[usize]) {
        let reason = &failure.answer.text;
        let decision = Decision {
            rule: rule.to_owned(),
            reason: reason.clone(),
            ..failure.decision.clone()
        };
        self.tell("dropped", &decision, those, reason.clone());
    }

    /// Holds undeliverable mail for a reviewer. The record has no cause, because the return of an engine would change nothing.
    fn hold_failed(&mut self, rule: &str, reason: String, decision: &Decision, those: &[usize]) {
        let decision = Decision {
            disposition: Disposition::Quarantine,
            rule: rule.to_owned(),
            reason,
            ..decision.clone()
        };
        self.hold(&decision, those);
        if let Some(record) = self.keep.last_mut() {
            record.cause = None;
        }
        let reason = decision.reason.clone();
        self.tell("held", &decision, those, reason);
    }
}

impl Draft<'_> {
    /// The next shorter form of a bounce that was sent, if there is one.
    fn less(&self, sent: Extent) -> Option<Extent> {
        let (content, id) = (self.message.content.bytes(), self.message.id);
        let smaller = [Extent::Headers, Extent::Bare].into_iter();
        smaller
            .filter(|extent| *extent > sent)
            .find(|extent| dsn::reduced(content, id, *extent) != content)
    }
}
