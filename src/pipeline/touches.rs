//! The mail that trouble touches: what a story counts, and lists for `spillway incident messages`.
//!
//! Only unusual mail is looked at: delivered late or without an engine, held or refused for a missing answer. For all other mail
//! this is a look at a list that is empty.

use super::settle::{Settlement, TIMEOUT_RULE};
use super::{Pipeline, counts};
use crate::deadline::wall_clock;
use crate::incident::{Subject, Touch, TouchOutcome};
use crate::message::{Message, header};
use crate::smtp::Reply;
use crate::store::StoreError;
use crate::store::history::HistoryEntry;
use crate::verdict::{Decision, Reason, Verdict};

/// Most recipients that are listed of one message.
const TOUCHED_RECIPIENTS_MAX: usize = 10;

impl Pipeline {
    /// Tells the stories what became of a message in a pass. `events` are all or some events of the settlement.
    pub(super) fn tell_touched(
        &self,
        message: &Message,
        settlement: &Settlement,
        events: &[HistoryEntry],
    ) {
        if settlement.is_apart {
            return;
        }
        let mut touches: Vec<(Subject, Touch)> = Vec::new();
        for entry in events {
            each_touch(entry, settlement, |cause, outcome| {
                add(&mut touches, message, entry, cause, outcome);
            });
        }
        for (cause, touch) in touches {
            self.incidents.touch(cause, touch);
        }
    }

    /// Refuses new mail that cannot be stored.
    pub(super) fn refuse_unkept(&self, message: &Message, error: &StoreError) -> Reply {
        self.tell_refused(message, error);
        self.not_kept(message, error)
    }

    /// Tells the story of the store, or of the quarantine, that a message was refused because it could not be stored.
    pub(super) fn tell_refused(&self, message: &Message, error: &StoreError) {
        let cause = match (error, self.store.accepts()) {
            (StoreError::Full(_), Ok(())) => Subject::Quarantine,
            _ => Subject::Store,
        };
        let mut touch = touch(message, TouchOutcome::Refused);
        let recipients = &message.envelope.recipients;
        name_recipients(&mut touch, recipients.iter().map(|r| r.mailbox.as_str()));
        self.incidents.touch(cause, touch);
    }
}

/// The touch of a message in which something was found after it had been delivered to these recipients.
pub(super) fn found_late<'a>(
    message: &Message,
    recipients: impl Iterator<Item = &'a str>,
) -> Touch {
    let mut touch = touch(message, TouchOutcome::Found);
    name_recipients(&mut touch, recipients);
    touch
}

/// Calls `touched` for each cause that had an effect on the recipients of the event.
fn each_touch(
    entry: &HistoryEntry,
    settlement: &Settlement,
    mut touched: impl FnMut(Subject, TouchOutcome),
) {
    let Some(decision) = &entry.decision else {
        return;
    };
    match &*entry.event {
        "delivered" => {
            for cause in &settlement.late_for {
                touched(cause.clone(), TouchOutcome::Delayed);
            }
            for engine in missing(decision) {
                touched(engine, TouchOutcome::Passed);
            }
        }
        "held" if !settlement.was_held => match decision.rule.strip_prefix("interceptor.") {
            Some(id) => touched(Subject::Interceptor(id.to_owned()), TouchOutcome::Held),
            None if is_for_want(decision) => {
                missing(decision).for_each(|engine| touched(engine, TouchOutcome::Held));
            }
            None => {}
        },
        "rejected" if is_for_want(decision) => {
            missing(decision).for_each(|engine| touched(engine, TouchOutcome::Refused));
        }
        _ => {}
    }
}

/// Whether the want of answers, and not a finding, led to the decision.
fn is_for_want(decision: &Decision) -> bool {
    decision.verdict == Verdict::Undetermined || decision.rule == TIMEOUT_RULE
}

/// The engines that should have answered, and did not because of trouble.
fn missing(decision: &Decision) -> impl Iterator<Item = Subject> {
    let all = decision.missing.iter();
    let troubled = all.filter(|(_, reason)| *reason != Reason::Unneeded && reason.is_transient());
    troubled.map(|(engine, _)| Subject::engine(&**engine))
}

/// Adds the recipients of an event to the touch of this cause and outcome.
fn add(
    touches: &mut Vec<(Subject, Touch)>,
    message: &Message,
    entry: &HistoryEntry,
    cause: Subject,
    outcome: TouchOutcome,
) {
    let is_it = |(of, touch): &(Subject, Touch)| *of == cause && touch.outcome == outcome;
    let index = touches.iter().position(is_it).unwrap_or_else(|| {
        touches.push((cause, touch(message, outcome)));
        touches.len() - 1
    });
    if let Some((_, touch)) = touches.get_mut(index) {
        name_recipients(
            touch,
            entry.recipients.iter().map(|mailbox| mailbox.as_str()),
        );
    }
}

fn touch(message: &Message, outcome: TouchOutcome) -> Touch {
    let delay = match outcome {
        TouchOutcome::Delayed => counts::age(message).unwrap_or_default(),
        _ => Default::default(),
    };
    Touch {
        message: message.id,
        outcome,
        at: wall_clock(),
        received: message.received_at,
        delay,
        sender: message.envelope.reverse_path.to_string(),
        recipients: Vec::new(),
        recipients_total: 0,
        subject: header::subject(message.content.header_section()),
    }
}

fn name_recipients<'a>(touch: &mut Touch, recipients: impl Iterator<Item = &'a str>) {
    for recipient in recipients {
        touch.recipients_total += 1;
        if touch.recipients.len() < TOUCHED_RECIPIENTS_MAX {
            touch.recipients.push(recipient.to_owned());
        }
    }
}
