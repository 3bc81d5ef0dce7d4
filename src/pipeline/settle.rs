//! From what became of a message to what must be durable and what the sender is told: a pure function.

mod draft;
mod failed;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{End, Generation, Judged, Passed};
use crate::deadline::{steady_clock, wall_clock};
use crate::delivery::{Answer, Outcome, dsn};
use crate::message::{Content, Envelope, Message, MessageId, Recipient};
use crate::policy::Group;
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::store::{Cause, Lane, Record};
use crate::verdict::{Decision, Disposition, Reason, Report, Verdict};

pub(super) use failed::{BOUNCE_UNDELIVERABLE, UNDELIVERABLE, as_sent};

use draft::Draft;
use failed::Failure;

/// The rule that holds what ran into a timeout too often.
pub(super) const TIMEOUTS: &str = "guard.timeouts";
/// A scan that times out may be bad luck of the message; a second one costs the engine a slot for its whole `limit` again.
pub(super) const TIMEOUTS_MOST: u32 = 2;

/// Who answers for the message while it is worked on.
#[derive(Debug)]
pub(super) enum Custody {
    /// Its sender, who waits for our reply.
    Session,
    /// We, with this record.
    Stored(Box<Record>),
}

/// What has to happen, and what to say.
#[derive(Debug)]
pub(super) struct Settlement {
    /// Records that the message lives on in; none: it is done.
    pub(super) keep: Vec<Record>,
    /// Notifications to send (RFC 3461).
    pub(super) notices: Vec<Notice>,
    /// For a session that still waits, provided that the rest is done.
    pub(super) reply: Reply,
    /// For `explain`.
    pub(super) history: Vec<HistoryEntry>,
    /// Mail that was delivered although an engine that should have answered did not: to be scanned again when it does.
    pub(super) rescan: Option<Record>,
}

/// A delivery status notification, to be delivered like any mail.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) record: Record,
    pub(super) content: Bytes,
    /// A bounce takes the place of the message and must be kept; a report of success need not.
    pub(super) is_bounce: bool,
}

impl Notice {
    pub(super) fn content(&self) -> Content {
        Content::uncharged(self.content.clone())
    }
}

/// The record of a message whose work has not ended: it is to be scanned, or delivered if that is all that is left.
pub(super) fn unfinished(
    generation: &Generation,
    message: &Message,
    so_far: Option<&Judged>,
) -> Record {
    let all: Vec<usize> = (0..message.envelope.recipients.len()).collect();
    let draft = Draft {
        generation,
        message,
        before: None,
        judged: so_far,
    };
    match so_far.map(|judged| judged.groups.as_slice()) {
        Some([(decision, _)]) if decision.disposition == Disposition::Deliver => {
            draft.record(Lane::Delivery, Some(decision), &all, "in delivery")
        }
        _ => draft.record(Lane::Scan, None, &all, "being scanned"),
    }
}

/// The decision a stored message already has; none for those that wait to be scanned.
pub(super) fn judged_before(record: &Record, message: &Message) -> Option<Judged> {
    if record.lane != Lane::Delivery {
        return None;
    }
    let judged = record.decision.clone();
    let decision = judged
        .filter(|_| record.notification.is_none())
        .unwrap_or_else(|| own_mail(record));
    Some(Judged {
        groups: vec![(
            Decision {
                // A reviewer's release overrides what policy wanted.
                disposition: Disposition::Deliver,
                ..decision
            },
            (0..message.envelope.recipients.len()).collect(),
        )],
        reports: record.reports.clone(),
        spent: record.spent,
        standing: record.standing,
    })
}

/// The decision about mail that we write ourselves.
fn own_mail(record: &Record) -> Decision {
    Decision {
        verdict: Verdict::Clean,
        disposition: Disposition::Deliver,
        rule: "own-mail".to_owned(),
        reason: format!("written by this relay as {}", record.id),
        score: 0.0,
        tag: false,
        missing: Vec::new(),
        config: "".into(),
    }
}

/// The envelope for some of the recipients.
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

/// Whether recipients part ways, some of them to a next hop: to several next hops, or for them different decisions hold.
pub(super) fn part_ways(generation: &Generation, message: &Message, judged: &Judged) -> bool {
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

/// The name of the next hop for a recipient.
fn next_hop<'a>(generation: &'a Generation, recipient: &Recipient) -> Option<&'a Arc<str>> {
    let route = generation.delivery.route(recipient.mailbox.domain())?;
    Some(&route.name)
}

/// What each group of recipients leaves behind, and the reply that is true for all of them.
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
    };
    let only_rejects =
        before.is_none() && passed.ends.iter().all(|end| matches!(end, End::Rejected));
    for ((decision, recipients), end) in passed.judged.groups.iter().zip(&passed.ends) {
        settling.group(decision, recipients, end, only_rejects);
    }
    settling.finish(before.is_some())
}

impl Settlement {
    /// Whether a next hop has taken some of it.
    pub(super) fn is_delivered(&self) -> bool {
        self.history.iter().any(|entry| entry.event == "delivered")
    }
}

struct Settling<'a> {
    draft: Draft<'a>,
    keep: Vec<Record>,
    failed: Vec<Failure<'a>>,
    delivered: Option<Answer>,
    succeeded: Vec<(dsn::Action, Recipient, Answer)>,
    rejected: Option<String>,
    history: Vec<HistoryEntry>,
    /// Of whom it is in the history already that they have it.
    told: &'a [usize],
    rescan: Option<Record>,
}

impl<'a> Settling<'a> {
    fn group(
        &mut self,
        decision: &'a Decision,
        recipients: &[usize],
        end: &'a End,
        only_rejects: bool,
    ) {
        let (event, detail) = match end {
            End::Delivered(outcomes) => return self.deliveries(decision, recipients, outcomes),
            End::Held => {
                self.hold(decision, recipients);
                ("held", decision.reason.clone())
            }
            End::Rejected if only_rejects => {
                self.rejected.get_or_insert(decision.rule.clone());
                ("rejected", decision.reason.clone())
            }
            // Others were answered 250 already, or with this same reply: the message may not vanish and may not
            // bounce, so a reviewer gets it.
            End::Rejected => {
                self.hold(decision, recipients);
                (
                    "held",
                    format!(
                        "to be rejected, but not for all recipients: {}",
                        decision.reason
                    ),
                )
            }
            End::Queued => {
                self.queue(decision, recipients);
                ("queued", decision.reason.clone())
            }
            End::Deferred => self.defer(decision, recipients),
            End::Discarded => ("discarded", decision.reason.clone()),
        };
        self.tell(event, decision, recipients, detail);
    }

    fn hold(&mut self, decision: &Decision, recipients: &[usize]) {
        let record = self
            .draft
            .record(Lane::Held, Some(decision), recipients, &decision.reason);
        self.keep.push(record);
    }

    /// Apart by next hop, as in [`Self::deliveries`].
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
            self.keep.push(draft.held_back(record));
        }
    }

    /// Scanned again later, unless its budget or the time for deferrals is used up, or it has cost an engine a slot twice: then
    /// a reviewer decides (P1).
    fn defer(&mut self, decision: &Decision, recipients: &[usize]) -> (&'static str, String) {
        let budget = &self.draft.generation.budget;
        let received_at = self.draft.message.received_at;
        let waited = steady_clock(received_at) >= received_at + budget.deferral;
        let spent = self
            .draft
            .judged
            .is_some_and(|judged| judged.spent >= budget.total);
        let ended = match (self.draft.timeouts() >= TIMEOUTS_MOST, spent, waited) {
            (true, ..) => Some((
                TIMEOUTS,
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

    fn deliveries(
        &mut self,
        decision: &'a Decision,
        recipients: &[usize],
        outcomes: &'a [Outcome],
    ) {
        self.remember(decision, recipients, outcomes);
        // Apart by next hop: one that is down must not set the pace of another, nor work in its slots.
        let mut later: BTreeMap<(Arc<str>, bool), (Vec<usize>, String)> = BTreeMap::new();
        for (at, outcome) in recipients.iter().zip(outcomes) {
            let Some(recipient) = self.draft.message.envelope.recipients.get(*at) else {
                continue;
            };
            let (event, answer) = match outcome {
                Outcome::Delivered(answer) => {
                    self.delivered.get_or_insert_with(|| answer.clone());
                    if let Some(action) = dsn::Action::for_success(outcome) {
                        self.succeeded
                            .push((action, recipient.clone(), answer.clone()));
                    }
                    ("delivered", answer)
                }
                Outcome::Deferred(answer) if self.is_given_up(answer) => {
                    self.failed.push(Failure {
                        decision,
                        at: *at,
                        answer,
                        given_up: true,
                    });
                    ("given-up", answer)
                }
                Outcome::Deferred(answer) => {
                    let queue = (answer.next_hop.clone(), answer.held_back);
                    let (those, status) = later.entry(queue).or_default();
                    those.push(*at);
                    status.clone_from(&answer.text);
                    ("delayed", answer)
                }
                Outcome::Failed(answer) => {
                    self.failed.push(Failure {
                        decision,
                        at: *at,
                        answer,
                        given_up: false,
                    });
                    ("refused", answer)
                }
            };
            if !self.told.contains(at) {
                self.tell(event, decision, &[*at], answer.text.clone());
            }
        }
        for ((_, held_back), (those, status)) in later {
            let draft = &self.draft;
            let record = draft.record(Lane::Delivery, Some(decision), &those, &status);
            self.keep.push(match held_back {
                true => draft.held_back(record),
                false => record,
            });
        }
    }

    /// Its time has passed; or there is no way for it, and a reviewer who has released it, or is to look after our bounces
    /// that nobody takes, should know at once.
    fn is_given_up(&self, answer: &Answer) -> bool {
        let is_reviewed = |before: &Record| before.released || before.notification.is_some();
        self.draft.given_up() || answer.is_unrouted() && self.draft.before.is_some_and(is_reviewed)
    }

    /// What was delivered, for a second look: with a cause if an engine that should have answered was in trouble.
    fn remember(&mut self, decision: &Decision, recipients: &[usize], outcomes: &[Outcome]) {
        let delivered: Vec<usize> = recipients
            .iter()
            .zip(outcomes)
            .filter(|(_, outcome)| matches!(outcome, Outcome::Delivered(_)))
            .map(|(at, _)| *at)
            .collect();
        // What we write ourselves no engine has looked at, and engines in process do not lie.
        let generation = self.draft.generation;
        let reports = self.draft.judged.map_or(&[][..], |judged| &judged.reports);
        let owed = owed(generation, reports);
        let doubtful = !reports.is_empty() && generation.scanner.is_probed();
        if delivered.is_empty() || owed.is_none() && !doubtful {
            return;
        }
        let (engine, status) = match owed {
            Some((engine, status)) => (Some(engine), status),
            None => (None, "delivered".to_owned()),
        };
        // Other recipients, for whom another rule decided: it is one message, and they are told together.
        if let Some(record) = &mut self.rescan {
            let recipients = select(self.draft.message, &delivered).recipients.clone();
            return record.envelope.recipients.extend(recipients);
        }
        let mut record = self
            .draft
            .record(Lane::Rescan, Some(decision), &delivered, &status);
        record.cause = engine.map(|engine| Cause::Engine(engine.to_string()));
        self.rescan = Some(record);
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
            // Every recipient was refused while the sender still waits: it gets the true answer, and no bounce.
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
        // Where an answer stood in, the second look is owed, and kept as surely as mail that is to be delivered. A sender who
        // still waits has had the next hop's word, which a store that fails must not take back: then it is kept beside.
        let is_owed = |record: &mut Record| stored && has_stand_in(&record.reports);
        self.keep.extend(self.rescan.take_if(is_owed));
        // The first record is the message's own; others, for recipients who parted from it, get names of theirs.
        // Whoever asks for one of those when it is gone is led to the message.
        for record in self.keep.iter_mut().skip(1) {
            record.id = MessageId::new();
            self.history.push(HistoryEntry {
                at: wall_clock(),
                message: record.id,
                part_of: Some(id),
                event: "parted".into(),
                sender: record.envelope.reverse_path.clone(),
                recipients: Vec::new(),
                client: record.envelope.origin.client,
                listener: record.envelope.origin.listener.clone(),
                size: record.size,
                decision: None,
                reports: Vec::new(),
                detail: format!("from {id}"),
            });
        }
        if let Some(record) = &mut self.rescan {
            record.id = MessageId::new();
        }
        Settlement {
            keep: self.keep,
            notices,
            reply,
            history: self.history,
            rescan: self.rescan,
        }
    }

    /// Reports of success that were asked for and that the next hop does not send (RFC 3461 5.2.2 and 5.2.3).
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

/// What the history is told of some of the recipients: the event, the decision that led to it, and in words.
pub(super) fn entry(
    message: &Message,
    judged: Option<&Judged>,
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
        detail,
    }
}

/// An engine of a class with coverage that may well answer another time.
pub(super) fn absent(generation: &Generation, reports: &[Report]) -> Option<Arc<str>> {
    let absent = |report: &&Report| {
        let reason = report.missing();
        generation.policy.required(report.class) > 0 && reason.is_some_and(Reason::is_transient)
    };
    let report = reports.iter().find(absent)?;
    Some(report.engine.clone())
}

/// Whether an engine has not seen this message: it did not answer, or an answer about another message stood in.
pub(super) fn is_owed(report: &Report) -> bool {
    report.missing().is_some() || report.stand_in().is_some()
}

/// Whether an answer about another message stands in for an engine's own.
pub(super) fn has_stand_in(reports: &[Report]) -> bool {
    reports.iter().any(|report| report.stand_in().is_some())
}

/// The engine that a second look is owed to, and the status of mail that was delivered without its first.
pub(super) fn owed(generation: &Generation, reports: &[Report]) -> Option<(Arc<str>, String)> {
    if let Some(engine) = absent(generation, reports) {
        let status = format!("delivered without {engine}");
        return Some((engine, status));
    }
    let of = |report: &Report| {
        let (from, engine) = (report.stand_in()?, report.engine.clone());
        let status = format!("delivered on what {engine} said of {from}");
        Some((engine, status))
    };
    reports.iter().find_map(of)
}
