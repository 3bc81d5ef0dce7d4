//! The terms of a configuration: its policy and what it says of engines, applied to one recorded decision.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::answers::{self, LateAnswers, Under};
use super::comparison::Ruling;
use crate::message::envelope::Origin;
use crate::message::{AttachmentFact, BodyKind, Envelope, Mailbox};
use crate::policy::{self, Facts, Group, Policy};
use crate::scan;
use crate::store::basis::{Basis, GroupBasis};
use crate::store::history::HistoryEntry;
use crate::verdict::{Answer, Decision, EngineClass, Reason, Report};

/// What decides under one configuration.
#[derive(Debug, Clone)]
pub struct Terms {
    policy: Policy,
    /// The same policy, for a message that has every attachment that a rule asks for.
    any_attachment: Policy,
    engines: Vec<EngineTerms>,
}

/// What a replay uses of one engine's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineTerms {
    /// Name of the engine.
    pub name: Arc<str>,
    /// Class of the engine.
    pub class: EngineClass,
    /// Time for which a caller waits for a scan.
    pub timeout: Duration,
    /// Maximum content size in octets.
    pub max_size: u64,
    /// Maximum wait of fresh mail for a slot.
    pub wait: Duration,
    /// Slots of all replicas together.
    pub slots: usize,
}

impl EngineTerms {
    /// The terms in these settings.
    pub fn of(settings: &scan::Settings) -> Self {
        Self {
            name: settings.name.clone(),
            class: settings.class,
            timeout: settings.timeout,
            max_size: settings.max_size,
            wait: settings.wait,
            slots: settings.slots.saturating_mul(settings.kind.replicas()),
        }
    }

    /// The report of this engine about a message that it was not asked about.
    fn report(&self, answer: Answer) -> Report {
        Report::unasked(self.name.clone(), self.class, answer)
    }
}

/// The result for one recorded decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decided {
    /// What was decided and what would be, for each group of recipients.
    Ruled(Vec<Ruled>),
    /// Nobody can say what would be decided, for this reason.
    CannotSay(String),
    /// An interceptor or the guard held the message before any engine was asked: no rule decided.
    ByGuard,
}

/// Recipients with one ruling before, and one now.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruled {
    /// What was decided.
    pub from: Ruling,
    /// What would be decided.
    pub to: Ruling,
    /// Number of recipients.
    pub recipients: u64,
    /// The score that would count.
    pub score: f64,
    /// The reason that would be given.
    pub reason: String,
}

/// A message of the history as policy gets it.
struct Recorded<'a> {
    entry: &'a HistoryEntry,
    envelope: Envelope,
    /// For each recipient of the envelope, the ruling then.
    then: Vec<Ruling>,
    attachments: Vec<AttachmentFact>,
    is_cut: bool,
}

impl Terms {
    /// The terms of a configuration with these settings; `config` is its version.
    pub fn new(policy: &policy::Settings, engines: &[scan::Settings], config: Arc<str>) -> Self {
        let mut any_attachment = policy.clone();
        for rule in &mut any_attachment.rules {
            rule.attachment_name.clear();
            rule.attachment_type.clear();
        }
        Self {
            policy: Policy::new(policy.clone(), config.clone()),
            any_attachment: Policy::new(any_attachment, config),
            engines: engines.iter().map(EngineTerms::of).collect(),
        }
    }

    /// The engines, in the configured order.
    pub fn engines(&self) -> &[EngineTerms] {
        &self.engines
    }

    /// Decides again about a recorded decision. With `late`, the timeouts and size limits of these terms miss and win answers;
    /// without, the answers are taken as they came.
    pub(super) fn decide(
        &self,
        entry: &HistoryEntry,
        late: Option<&LateAnswers>,
    ) -> (Decided, Under) {
        let Some(recorded) = Recorded::of(entry) else {
            return (Decided::ByGuard, Under::default());
        };
        let under = answers::under(&self.engines, entry, late);
        let decided = match &under.unknown {
            Some(why) => Decided::CannotSay(why.clone()),
            None => self.rule(&recorded, &under.reports),
        };
        (decided, under)
    }

    /// Decides about a message live, with the answers as they came.
    pub fn shadow(&self, entry: &HistoryEntry) -> Decided {
        self.decide(entry, None).0
    }

    /// Decides in every case that may be true of what is not known: an engine that was not asked may have answered that it found
    /// nothing, or not at all; and attachments that were not kept may be those that a rule asks for.
    fn rule(&self, recorded: &Recorded<'_>, reports: &[Report]) -> Decided {
        let is_new = |engine: &&EngineTerms| reports.iter().all(|r| r.engine != engine.name);
        let added: Vec<&EngineTerms> = self.engines.iter().filter(is_new).collect();
        let with = |answer: Answer| -> Vec<Report> {
            let of_added = added.iter().map(|engine| engine.report(answer.clone()));
            reports.iter().cloned().chain(of_added).collect()
        };
        let reports = with(Answer::Answered(Vec::new()));
        let groups = recorded.groups(&self.policy, &reports);
        if let Some(engine) = added.first() {
            let missing = with(Answer::none(Reason::Unreachable, "not asked"));
            if !same(&groups, &recorded.groups(&self.policy, &missing)) {
                let why = format!("{} is new, and has no recorded answer", engine.name);
                return Decided::CannotSay(why);
            }
        }
        if recorded.is_cut && !same(&groups, &recorded.groups(&self.any_attachment, &reports)) {
            let why = "a rule asks for attachments, and not all of them were recorded";
            return Decided::CannotSay(why.to_owned());
        }
        Decided::Ruled(recorded.compare(&groups))
    }
}

/// Whether the same rules decide the same for the same recipients.
fn same(these: &[Group], those: &[Group]) -> bool {
    let ruling = |(decision, recipients): &Group| (Ruling::of(decision), recipients.clone());
    these.iter().map(ruling).eq(those.iter().map(ruling))
}

impl<'a> Recorded<'a> {
    /// None if no rule decided about the message.
    fn of(entry: &'a HistoryEntry) -> Option<Self> {
        let (basis, decision) = (entry.basis.as_ref()?, entry.decision.as_ref()?);
        let groups = groups(entry, basis, decision);
        // The rules of the guard have a dot in their names, which no rule of an administrator may have.
        let is_guards = |rule: &str| rule.starts_with("interceptor.") || rule.starts_with("guard.");
        if entry.reports.is_empty() && groups.iter().any(|group| is_guards(&group.rule)) {
            return None;
        }
        let (mut recipients, mut then) = (Vec::new(), Vec::new());
        for group in groups {
            let ruling = Ruling::of_kept(&group);
            then.extend(group.recipients.iter().map(|_| ruling.clone()));
            recipients.extend(group.recipients.into_iter().map(Into::into));
        }
        Some(Self {
            entry,
            envelope: Envelope {
                reverse_path: entry.sender.clone(),
                recipients,
                body: BodyKind::SevenBit,
                smtputf8: false,
                ret: None,
                envid: None,
                origin: Origin {
                    client: entry.client,
                    user: basis.user.clone(),
                    ..Origin::local(&entry.listener)
                },
            },
            then,
            attachments: basis.facts(),
            is_cut: basis.is_cut,
        })
    }

    fn groups(&self, policy: &Policy, reports: &[Report]) -> Vec<Group> {
        policy.decide(Facts {
            envelope: &self.envelope,
            size: self.entry.size,
            // No rule looks at it.
            header_section: b"",
            attachments: &self.attachments,
            reports,
        })
    }

    /// The rulings then and now of all recipients.
    fn compare(&self, groups: &[Group]) -> Vec<Ruled> {
        let mut pairs: BTreeMap<(&Ruling, usize), u64> = BTreeMap::new();
        for (number, (_, recipients)) in groups.iter().enumerate() {
            for from in recipients.iter().filter_map(|at| self.then.get(*at)) {
                *pairs.entry((from, number)).or_default() += 1;
            }
        }
        let pairs = pairs.into_iter();
        let ruled = pairs.filter_map(|((from, number), recipients)| {
            let (decision, _) = groups.get(number)?;
            Some(Ruled {
                from: from.clone(),
                to: Ruling::of(decision),
                recipients,
                score: decision.score,
                reason: decision.reason.clone(),
            })
        });
        ruled.collect()
    }
}

/// The groups of an entry: those of its basis, else its only decision for all its recipients.
fn groups(entry: &HistoryEntry, basis: &Basis, decision: &Decision) -> Vec<GroupBasis> {
    if !basis.groups.is_empty() {
        return basis.groups.clone();
    }
    let recipients: Vec<Mailbox> = entry.recipients.clone();
    vec![GroupBasis::new(decision, recipients)]
}
