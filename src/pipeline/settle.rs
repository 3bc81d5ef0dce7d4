//! Settlement: a pure function from the outcomes of a pass to the records that must be durable and the reply to the sender.

mod draft;
mod failed;
mod owed;
mod parts;
mod resumed;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::events::{PassFacts, PassTimes};
use super::{Generation, GroupOutcome, Judgement, Passed, counts};
use crate::deadline::{steady_clock, wall_clock};
use crate::delivery::{Answer, Outcome, dsn};
use crate::incident::Subject;
use crate::message::{Content, Envelope, Message, MessageId, Recipient};
use crate::policy::Group;
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::store::{Lane, Record};
use crate::verdict::{Decision, Disposition};

pub(super) use failed::{BOUNCE_UNDELIVERABLE_RULE, UNDELIVERABLE_RULE, as_sent};
pub(super) use owed::{awaited, has_stand_in, is_owed, owed};
pub(super) use resumed::{judged_before, unfinished};

use draft::Draft;
use failed::Failure;

/// The rule that holds a message after [`TIMEOUTS_MAX`] timeouts.
pub(super) const TIMEOUT_RULE: &str = "guard.timeouts";
/// Number of passes with a timed-out scan after which a message is held: 2. The first timeout may be chance; every further one
/// costs the engine a slot for its whole `limit` again.
pub(super) const TIMEOUTS_MAX: u32 = 2;

/// Who is responsible for the message during a pass.
#[derive(Debug)]
pub(super) enum Custody {
    /// The sender, who waits for the reply.
    Session,
    /// This relay, with this record.
    Stored(Box<Record>),
}

/// The result of a pass: records and notifications to persist, reply and history.
#[derive(Debug)]
pub(super) struct Settlement {
    /// Records in which the message continues; empty if the message is done.
    pub(super) keep: Vec<Record>,
    /// Notifications to send (RFC 3461).
    pub(super) notices: Vec<Notice>,
    /// Reply for an open session, valid once the records are durable.
    pub(super) reply: Reply,
    /// Entries for `explain`.
    pub(super) history: Vec<HistoryEntry>,
    /// Delivered mail to scan again: a required engine did not answer (the record has a cause), or a probed engine may turn out
    /// to have answered wrongly (no cause).
    pub(super) rescan: Option<Record>,
    /// Whether the message was in quarantine before the pass.
    pub(super) was_held: bool,
    /// What made the message late before the pass.
    pub(super) late_for: Vec<Subject>,
    /// Whether the relay wrote the message, or a reviewer decided about it: then it is no mail that trouble touches.
    pub(super) is_apart: bool,
    /// For the log line about this pass.
    pub(super) facts: PassFacts,
}

/// A delivery status notification, delivered like any mail.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) record: Record,
    pub(super) content: Bytes,
    /// A bounce replaces the message and must be durable; a report of success may be lost.
    pub(super) is_bounce: bool,
}

impl Notice {
    pub(super) fn content(&self) -> Content {
        Content::uncharged(self.content.clone())
    }
}

/// The envelope with only these recipients.
pub(super) fn select(message: &Message, recipients: &[usize]) -> Arc<Envelope> {
    if recipients.len() == message.envelope.recipients.len() {
        return message.envelope.clone();
    }
    let chosen = recipients
        .iter()
        .filter_map(|at| message.envelope.recipients.get(*at))
        .cloned();
    Arc::new(Envelope {
        recipients: chosen.collect(),
        ..(*message.envelope).clone()
    })
}

/// Whether the message is to be delivered and its recipients have different ways: several next hops, or different decisions.
/// Discarded recipients do not count.
pub(super) fn part_ways(generation: &Generation, message: &Message, judged: &Judgement) -> bool {
    let delivers = |(decision, _): &Group| decision.disposition == Disposition::Deliver;
    let remains = |(decision, _): &&Group| decision.disposition != Disposition::Discard;
    let groups = judged.groups.iter().filter(remains).enumerate();
    let mut ways = groups.flat_map(|(group, (_, recipients))| {
        let hop = |at: &usize| next_hop(generation, message.envelope.recipients.get(*at)?);
        recipients.iter().map(move |at| (group, hop(at)))
    });
    let first = ways.next();
    judged.groups.iter().any(delivers) && ways.any(|way| Some(way) != first)
}

/// The name of the first recipient's next hop; mail for several next hops is delivered by the lanes.
pub(super) fn first_hop(generation: &Generation, record: &Record) -> Option<Arc<str>> {
    next_hop(generation, record.envelope.recipients.first()?).cloned()
}

/// The name of a recipient's next hop.
fn next_hop<'a>(generation: &'a Generation, recipient: &Recipient) -> Option<&'a Arc<str>> {
    let route = generation.delivery.route(recipient.mailbox.domain())?;
    Some(&route.name)
}

/// The records that each group of recipients leaves, and the one reply that is true for all recipients.
pub(super) fn settle(
    generation: &Generation,
    message: &Message,
    custody: &Custody,
    passed: &Passed,
) -> Settlement {
    let before = match custody {
        Custody::Session => None,
        Custody::Stored(record) => Some(&**record),
    };
    let mut settling = Settling {
        draft: Draft {
            generation,
            message,
            before,
            judged: Some(&passed.judged),
        },
        keep: Vec::new(),
        failed: Vec::new(),
        delivered: None,
        succeeded: Vec::new(),
        rejected: None,
        history: Vec::new(),
        told: &passed.told,
        rescan: None,
        facts: PassFacts::new(PassTimes::of(passed), before.is_none()),
    };
    let only_rejects = before.is_none()
        && passed
            .ends
            .iter()
            .all(|end| matches!(end, GroupOutcome::Rejected));
    for ((decision, recipients), end) in passed.judged.groups.iter().zip(&passed.ends) {
        settling.group(decision, recipients, end, only_rejects);
    }
    settling.finish(before.is_some())
}

impl Settlement {
    /// Whether a next hop has taken the message for at least one recipient.
    pub(super) fn is_delivered(&self) -> bool {
        self.history.iter().any(|entry| entry.event == "delivered")
    }
}

/// Recipients to whom the message is delivered later, with the last status: by next hop, and whether its pace held them back.
type DeferredRecipients = BTreeMap<(Arc<str>, bool), (Vec<usize>, String)>;

struct Settling<'a> {
    draft: Draft<'a>,
    keep: Vec<Record>,
    failed: Vec<Failure<'a>>,
    delivered: Option<Answer>,
    succeeded: Vec<(dsn::Action, Recipient, Answer)>,
    rejected: Option<String>,
    history: Vec<HistoryEntry>,
    /// Positions of recipients whose delivery is in the history already.
    told: &'a [usize],
    rescan: Option<Record>,
    facts: PassFacts,
}

impl<'a> Settling<'a> {
    fn group(
        &mut self,
        decision: &'a Decision,
        recipients: &[usize],
        end: &'a GroupOutcome,
        only_rejects: bool,
    ) {
        let (event, detail) = match end {
            GroupOutcome::Delivered(outcomes) => {
                return self.deliveries(decision, recipients, outcomes);
            }
            GroupOutcome::Held => {
                self.hold(decision, recipients);
                ("held", decision.reason.clone())
            }
            GroupOutcome::Rejected if only_rejects => {
                self.rejected.get_or_insert(decision.rule.clone());
                ("rejected", decision.reason.clone())
            }
            // Other recipients share this reply, or the message was answered 250 before: the message must neither vanish nor
            // bounce, so a reviewer gets it.
            GroupOutcome::Rejected => {
                self.hold(decision, recipients);
                (
                    "held",
                    format!(
                        "to be rejected, but not for all recipients: {}",
                        decision.reason
                    ),
                )
            }
            GroupOutcome::Queued => {
                self.queue(decision, recipients);
                ("queued", decision.reason.clone())
            }
            GroupOutcome::Deferred => self.defer(decision, recipients),
            GroupOutcome::Discarded => ("discarded", decision.reason.clone()),
        };
        self.tell(event, decision, recipients, detail);
    }

    fn hold(&mut self, decision: &Decision, recipients: &[usize]) {
        let record = self
            .draft
            .record(Lane::Held, Some(decision), recipients, &decision.reason);
        self.keep.push(record);
    }

    /// Queues one record for each next hop, for the reason given in [`Self::deliveries`].
    fn queue(&mut self, decision: &Decision, recipients: &[usize]) {
        let mut hops: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for at in recipients {
            let recipient = self.draft.message.envelope.recipients.get(*at);
            let hop = recipient.and_then(|r| next_hop(self.draft.generation, r));
            hops.entry(hop.cloned().unwrap_or_else(|| "".into()))
                .or_default()
                .push(*at);
        }
        for those in hops.into_values() {
            let draft = &self.draft;
            let record = draft.record(Lane::Delivery, Some(decision), &those, "to be delivered");
            self.keep.push(draft.not_sent_yet(record));
        }
    }

    /// Defers a message to a later scan. If `budget.total` or `budget.deferral` is used up, or two passes had a timeout, a
    /// reviewer decides instead (P1).
    fn defer(&mut self, decision: &Decision, recipients: &[usize]) -> (&'static str, String) {
        let budget = &self.draft.generation.budget;
        let received_at = self.draft.message.received_at;
        let waited = steady_clock(received_at) >= received_at + budget.deferral;
        let spent = self
            .draft
            .judged
            .is_some_and(|judged| judged.spent >= budget.total);
        let ended = match (self.draft.timeouts() >= TIMEOUTS_MAX, spent, waited) {
            (true, ..) => Some((
                TIMEOUT_RULE,
                "it ran into its timeout twice, while others did not",
            )),
            (false, true, _) => Some(("budget.total", "budget.total is spent")),
            (false, false, true) => Some(("budget.deferral", "budget.deferral has passed")),
            (false, false, false) => None,
        };
        if let Some((rule, why)) = ended {
            let decision = Decision {
                disposition: Disposition::Quarantine,
                rule: rule.to_owned(),
                reason: format!("{why}: {}", decision.reason),
                ..decision.clone()
            };
            self.hold(&decision, recipients);
            return ("held", decision.reason);
        }
        let record = self
            .draft
            .record(Lane::Scan, Some(decision), recipients, &decision.reason);
        self.keep.push(record);
        ("deferred", decision.reason.clone())
    }

    /// Settles each recipient of a delivery. Deferred recipients get one record for each next hop: a dead next hop must not set
    /// the pace of another, nor use its slots.
    fn deliveries(
        &mut self,
        decision: &'a Decision,
        recipients: &[usize],
        outcomes: &'a [Outcome],
    ) {
        self.remember(decision, recipients, outcomes);
        let mut later = DeferredRecipients::new();
        for (at, outcome) in recipients.iter().zip(outcomes) {
            let Some(recipient) = self.draft.message.envelope.recipients.get(*at) else {
                continue;
            };
            let event = match outcome {
                Outcome::Delivered(answer) => {
                    self.delivered.get_or_insert_with(|| answer.clone());
                    if let Some(action) = dsn::Action::for_success(outcome) {
                        self.succeeded
                            .push((action, recipient.clone(), answer.clone()));
                    }
                    "delivered"
                }
                Outcome::Deferred(answer) if self.is_given_up(answer) => {
                    self.failed.push(Failure {
                        decision,
                        at: *at,
                        answer,
                        given_up: true,
                    });
                    "given-up"
                }
                Outcome::Deferred(answer) => {
                    let queue = (answer.next_hop.clone(), answer.held_back);
                    let (those, status) = later.entry(queue).or_default();
                    those.push(*at);
                    status.clone_from(&answer.text);
                    "delayed"
                }
                Outcome::Failed(answer) => {
                    self.failed.push(Failure {
                        decision,
                        at: *at,
                        answer,
                        given_up: false,
                    });
                    "refused"
                }
            };
            self.tell_answer(event, decision, *at, outcome);
        }
        self.deliver_later(decision, later);
    }

    /// Keeps the recipients that each next hop has deferred.
    fn deliver_later(&mut self, decision: &Decision, later: DeferredRecipients) {
        for ((_, held_back), (those, status)) in later {
            let draft = &self.draft;
            let record = draft.record(Lane::Delivery, Some(decision), &those, &status);
            let mut record = match held_back {
                true => draft.not_sent_yet(record),
                false => record,
            };
            if !record.next_hop.is_empty() {
                let hop = Subject::NextHop(record.next_hop.to_string());
                record.note_late_for(hop);
            }
            self.keep.push(record);
        }
    }

    /// Whether delivery ends for a deferred recipient: the time for delivery has passed; or no next hop takes the recipient and
    /// a reviewer should know at once, because the message is a release or a notification of this relay.
    fn is_given_up(&self, answer: &Answer) -> bool {
        let is_reviewed = |before: &Record| before.released || before.notification.is_some();
        self.draft.is_past_give_up()
            || answer.is_unrouted() && self.draft.before.is_some_and(is_reviewed)
    }

    /// Tells what a next hop answered for one recipient, unless that is told already.
    fn tell_answer(
        &mut self,
        event: &'static str,
        decision: &Decision,
        at: usize,
        outcome: &Outcome,
    ) {
        if !self.told.contains(&at) {
            self.facts.answered(outcome);
            self.tell(event, decision, &[at], outcome.answer().text.clone());
        }
    }

    fn tell(
        &mut self,
        event: &'static str,
        decision: &Decision,
        recipients: &[usize],
        detail: String,
    ) {
        let told = (event, decision, detail);
        let (message, judged) = (self.draft.message, self.draft.judged);
        self.history.push(entry(message, judged, recipients, told));
    }

    fn finish(mut self, stored: bool) -> Settlement {
        let id = self.draft.message.id;
        let nothing_taken = !stored && self.keep.is_empty() && self.delivered.is_none();
        let mut notices = self.successes();
        let reply = if let Some(rule) = &self.rejected {
            Reply::rejected(id, rule)
        } else if let (true, Some(Failure { answer, .. })) = (nothing_taken, self.failed.first()) {
            // Every recipient was refused inside the session: the sender gets the next hop's reply and no bounce.
            match &answer.reply {
                Some(said) => Reply::refused(id, said),
                None => Reply::undeliverable(id, &answer.text),
            }
        } else {
            let all_taken = self.keep.is_empty() && self.failed.is_empty();
            notices.extend(self.failures());
            match (&self.delivered, all_taken) {
                (Some(answer), true) => match &answer.reply {
                    Some(said) => Reply::delivered(id, said),
                    None => Reply::delivered(id, &answer.text),
                },
                _ => Reply::accepted(id),
            }
        };
        // A scan that is owed because an answer stood in is stored as safely as mail to be delivered. In a session, the reply is
        // the next hop's, which a store failure must not revoke: the record is then stored beside the settlement.
        let is_owed = |record: &mut Record| stored && has_stand_in(&record.reports);
        self.keep.extend(self.rescan.take_if(is_owed));
        self.name_parts();
        if let Some(record) = &mut self.rescan {
            record.id = MessageId::new();
        }
        self.describe();
        Settlement {
            keep: self.keep,
            notices,
            reply,
            history: self.history,
            rescan: self.rescan,
            was_held: self.draft.before.is_some_and(counts::was_held),
            late_for: (self.draft.before).map_or_else(Vec::new, |before| before.late_for.clone()),
            is_apart: self
                .draft
                .before
                .is_some_and(|before| before.released || before.notification.is_some()),
            facts: self.facts,
        }
    }

    /// Reports of success that were requested and that the next hop does not send (RFC 3461 5.2.2 and 5.2.3).
    fn successes(&self) -> Vec<Notice> {
        let of = |wanted: dsn::Action| {
            let those = self
                .succeeded
                .iter()
                .filter(|(action, ..)| *action == wanted);
            let those: Vec<_> = those
                .map(|(_, recipient, answer)| (recipient.clone(), answer.clone()))
                .collect();
            self.draft.notice(wanted, &those)
        };
        [dsn::Action::Relayed, dsn::Action::Delivered]
            .into_iter()
            .filter_map(of)
            .collect()
    }
}

/// The history entry for some recipients: the event, the decision that led to the event, and a detail in words.
pub(super) fn entry(
    message: &Message,
    judged: Option<&Judgement>,
    recipients: &[usize],
    (event, decision, detail): (&'static str, &Decision, String),
) -> HistoryEntry {
    let chosen = recipients
        .iter()
        .filter_map(|at| message.envelope.recipients.get(*at));
    HistoryEntry {
        at: wall_clock(),
        message: message.id,
        part_of: None,
        event: event.into(),
        sender: message.envelope.reverse_path.clone(),
        recipients: chosen.map(|r| r.mailbox.clone()).collect(),
        client: message.envelope.origin.client,
        listener: message.envelope.origin.listener.clone(),
        size: message.content.len() as u64,
        decision: Some(decision.clone()),
        reports: judged.map_or_else(Vec::new, |judged| judged.reports.clone()),
        subject: String::new(),
        attachments: Vec::new(),
        basis: None,
        detail,
    }
}
