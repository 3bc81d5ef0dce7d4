//! The table of `cases.txt`, and promise P4 for every combination.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;
use crate::message::envelope::Origin;
use crate::message::{AddressPattern, BodyKind, Glob, Mailbox, ReversePath};
use crate::verdict::{Answer, EngineClass, Finding, FindingKind, Reason};

fn settings() -> Settings {
    use Disposition::Quarantine;
    Settings {
        rules: Vec::new(),
        kinds: [
            FindingKind::Malware,
            FindingKind::Phishing,
            FindingKind::Policy,
        ]
        .map(|kind| (kind, Quarantine))
        .into(),
        tag_score: 5.0,
        quarantine_score: 10.0,
        reject_score: 1000.0,
        coverage: [(EngineClass::Av, 1)].into(),
        missing: [Reason::TooLarge, Reason::LimitsReached, Reason::Encrypted]
            .map(|reason| (reason, Quarantine))
            .into(),
        weights: BTreeMap::new(),
    }
}

fn report(engine: &str, class: EngineClass, answer: Answer) -> Report {
    Report::unasked(engine.into(), class, answer)
}

fn envelope() -> Envelope {
    let mailbox = |text| Mailbox::parse(text).expect("mailbox");
    Envelope {
        reverse_path: mailbox("sender@example.com").into(),
        recipients: vec![mailbox("recipient@example.org").into()],
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin::local("smtp"),
    }
}

/// One law of the table.
struct Case {
    name: String,
    settings: Settings,
    envelope: Envelope,
    size: u64,
    attachments: Vec<AttachmentFact>,
    reports: Vec<Report>,
    expected: Vec<String>,
}

impl Case {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            settings: settings(),
            envelope: envelope(),
            size: 0,
            attachments: Vec::new(),
            reports: Vec::new(),
            expected: Vec::new(),
        }
    }

    fn line(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').expect("a word and more");
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (word, &words[..]) {
            ("=>", _) => self.expected.push(rest.to_owned()),
            ("set", [key, value]) => self.set(key, value),
            ("rule", [name, then, conditions @ ..]) => self.rule(name, then, conditions),
            ("engine", [name, class, answer, findings @ ..]) => {
                let findings = findings.iter().map(|text| finding(text)).collect();
                let answer = match *answer {
                    "ok" => Answer::Answered(findings),
                    reason => Answer::None {
                        reason: word_of(&Reason::ALL, Reason::as_str, reason),
                        detail: String::new(),
                        findings,
                    },
                };
                let class = word_of(&EngineClass::ALL, EngineClass::as_str, class);
                self.reports.push(report(name, class, answer));
            }
            ("pass", [name, why]) => {
                let report = self.reports.iter_mut().find(|r| *r.engine == **name);
                report.expect("an engine").passed = Some((*why).into());
            }
            ("from", ["<>"]) => self.envelope.reverse_path = ReversePath::NULL,
            ("from", [text]) => {
                self.envelope.reverse_path = Mailbox::parse(text).expect(text).into();
            }
            ("to", all) => {
                let recipients = all
                    .iter()
                    .map(|text| Mailbox::parse(text).expect(text).into());
                self.envelope.recipients = recipients.collect();
            }
            ("client", [text]) => self.envelope.origin.client = text.parse().expect(text),
            ("user", [text]) => self.envelope.origin.user = Some((*text).to_owned()),
            ("listener", [text]) => self.envelope.origin.listener = (*text).into(),
            ("size", [text]) => self.size = text.parse().expect(text),
            ("attachment", [name, declared, sniffed, size]) => {
                self.attachments.push(AttachmentFact {
                    name: (*name != "-").then(|| (*name).to_owned()),
                    declared: (*declared).to_owned(),
                    sniffed: (*sniffed).to_owned(),
                    size: size.parse().expect(size),
                });
            }
            _ => panic!("{}: cannot read {line:?}", self.name),
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let disposition = || word_of(&Disposition::ALL, Disposition::as_str, value);
        if let Some(reason) = key.strip_prefix("missing.") {
            let reason = word_of(&Reason::ALL, Reason::as_str, reason);
            self.settings.missing.insert(reason, disposition());
        } else if let Some(engine) = key.strip_prefix("weight.") {
            let weight = value.parse().expect(value);
            self.settings.weights.insert(engine.into(), weight);
        } else if let Some(kind) = FindingKind::ALL.iter().find(|kind| kind.as_str() == key) {
            self.settings.kinds.insert(*kind, disposition());
        } else {
            let class = word_of(&EngineClass::ALL, EngineClass::as_str, key);
            let required = value.parse().expect(value);
            self.settings.coverage.insert(class, required);
        }
    }

    fn rule(&mut self, name: &str, then: &str, conditions: &[&str]) {
        let mut rule = Rule::new(name, word_of(&Disposition::ALL, Disposition::as_str, then));
        for condition in conditions {
            let (key, value) = condition.split_once('=').expect("key=value");
            let globs = || value.split(',').map(|v| Glob::new(v).expect(v)).collect();
            let address = |v| AddressPattern::new(v).expect(v);
            let addresses = || value.split(',').map(address).collect();
            let names = || value.split(',').map(str::to_owned).collect();
            match key {
                "sender" => rule.sender = addresses(),
                "recipient" => rule.recipient = addresses(),
                "client" => rule.client = vec![value.parse().expect(value)],
                "user" => rule.user = globs(),
                "listener" => rule.listener = names(),
                "size_over" => rule.size_over = Some(value.parse().expect(value)),
                "attachment_name" => rule.attachment_name = globs(),
                "attachment_type" => rule.attachment_type = globs(),
                "finding" => rule.finding = globs(),
                "kind" => {
                    rule.kind = vec![word_of(&FindingKind::ALL, FindingKind::as_str, value)];
                }
                "engine" => rule.engine = names(),
                "missing" => {
                    let reason = |word| word_of(&Reason::ALL, Reason::as_str, word);
                    rule.missing = value.split(',').map(reason).collect();
                }
                "score_over" => rule.score_over = Some(value.parse().expect(value)),
                _ => panic!("{}: no condition {key}", self.name),
            }
        }
        self.settings.rules.push(rule);
    }

    fn decide(&self) -> Vec<Group> {
        Policy::new(self.settings.clone(), "test".into()).decide(Facts {
            envelope: &self.envelope,
            size: self.size,
            header_section: b"",
            attachments: &self.attachments,
            reports: &self.reports,
        })
    }

    /// Compares the score only if the expectation has one; tag, missing engines and recipients are always compared.
    fn check(&self) {
        let groups = self.decide();
        let everybody = self.envelope.recipients.len();
        let seen: Vec<String> = groups
            .iter()
            .zip(
                self.expected
                    .iter()
                    .map(String::as_str)
                    .chain(std::iter::repeat("")),
            )
            .map(|(group, expected)| shown(group, expected.contains("score="), everybody))
            .collect();
        assert_eq!(seen, self.expected, "{}", self.name);
    }
}

fn word_of<T: Copy>(all: &[T], as_str: fn(T) -> &'static str, word: &str) -> T {
    let found = all.iter().find(|value| as_str(**value) == word);
    *found.unwrap_or_else(|| panic!("{word:?} is none of the known words"))
}

fn finding(text: &str) -> Finding {
    let [kind, name, score] = text.split(':').collect::<Vec<_>>()[..] else {
        panic!("{text:?} is not kind:name:score");
    };
    let kind = word_of(&FindingKind::ALL, FindingKind::as_str, kind);
    Finding::new(kind, name, score.parse().expect(score))
}

fn shown((decision, recipients): &Group, score: bool, everybody: usize) -> String {
    let list = |items: Vec<String>| items.join(",");
    let mut text = format!(
        "{} {} {}",
        decision.verdict.as_str(),
        decision.disposition.as_str(),
        decision.rule
    );
    if decision.tag {
        text.push_str(" tag");
    }
    if score {
        write!(text, " score={}", decision.score).expect("write");
    }
    if !decision.missing.is_empty() {
        let missing = decision.missing.iter();
        let missing = missing.map(|(engine, reason)| format!("{engine}:{}", reason.as_str()));
        write!(text, " missing={}", list(missing.collect())).expect("write");
    }
    if recipients.len() != everybody {
        let to = recipients.iter().map(usize::to_string);
        write!(text, " to={}", list(to.collect())).expect("write");
    }
    text
}

/// Every law of `cases.txt` holds.
#[test]
fn policy_decides_as_the_table_says() {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("cases.txt").lines() {
        match line.strip_prefix("    ") {
            Some(rest) => cases.last_mut().expect("a name first").line(rest),
            None if line.is_empty() || line.starts_with('#') => {}
            None => cases.push(Case::new(line)),
        }
    }
    assert!(cases.len() > 40);
    for case in &cases {
        assert!(!case.expected.is_empty(), "{}: expects nothing", case.name);
        case.check();
    }
}

/// P4, for every reason, every disposition for it, and every number of answers and of required answers: a message is clean
/// only if at least one engine answered, and at least as many as required. Otherwise the message is undetermined, gets the
/// disposition that is configured for the reason, and the decision names the missing engines.
#[test]
fn a_missing_answer_never_makes_a_message_clean() {
    for reason in Reason::ALL {
        for consequence in Disposition::ALL {
            for (required, answering, silent) in every_coverage() {
                let mut case = Case::new("P4");
                case.settings.coverage.insert(EngineClass::Av, required);
                case.settings.missing.insert(reason, consequence);
                for at in 0..answering {
                    let answer = Answer::Answered(Vec::new());
                    case.reports
                        .push(report(&format!("ok{at}"), EngineClass::Av, answer));
                }
                for at in 0..silent {
                    let answer = Answer::none(reason, "");
                    case.reports
                        .push(report(&format!("no{at}"), EngineClass::Av, answer));
                }
                let groups = case.decide();
                let decision = &groups[0].0;
                let what = format!("{reason:?} {consequence:?} {required} {answering} {silent}");
                assert_eq!(decision.missing.len(), silent, "{what}");
                // Other engines do not make up for an engine that the message made fail, unless the administrator allows it.
                let to_blame = reason.blames_message() && required > 0 && silent > 0;
                let held_back = to_blame && consequence != Disposition::Deliver;
                if answering >= required.max(1) && !held_back {
                    assert_eq!(decision.verdict, Verdict::Clean, "{what}");
                } else {
                    assert_eq!(decision.verdict, Verdict::Undetermined, "{what}");
                }
                if silent > 0 && (answering < required || held_back) {
                    assert_eq!(decision.disposition, consequence, "{what}");
                    assert_eq!(decision.rule, "coverage.av", "{what}");
                }
            }
        }
    }
}

/// P4: a drained engine without which mail passes makes no message clean, whatever the other engines do: a message is clean only
/// if as many engines answered as required. Such an engine excuses no other: a message that may have made another engine fail
/// still waits, and so does a message for which even with the excused answers too many are missing.
#[test]
fn a_passed_drain_never_makes_a_message_clean() {
    for reason in Reason::ALL {
        for (required, answering, silent) in every_coverage() {
            for passed in 1..4 {
                let mut case = Case::new("passed");
                case.settings.coverage.insert(EngineClass::Av, required);
                let mut add = |name: String, answer| {
                    let report = report(&name, EngineClass::Av, answer);
                    case.reports.push(report);
                };
                (0..answering).for_each(|at| add(format!("ok{at}"), Answer::Answered(Vec::new())));
                (0..silent).for_each(|at| add(format!("no{at}"), Answer::none(reason, "")));
                let drained = || Answer::none(Reason::Drained, "");
                (0..passed).for_each(|at| add(format!("passed{at}"), drained()));
                for report in case.reports.iter_mut().rev().take(passed) {
                    report.passed = Some("it hangs, by root".into());
                }
                let groups = case.decide();
                let decision = &groups[0].0;
                let what = format!("{reason:?} {required} {answering} {silent} {passed}");
                let missing = silent + passed;
                assert_eq!(decision.missing.len(), missing, "{what}");
                let to_blame = reason.blames_message() && required > 0 && silent > 0;
                let is_short = answering + passed < required;
                let is_clean = decision.verdict == Verdict::Clean;
                assert_eq!(
                    is_clean,
                    answering >= required.max(1) && !to_blame,
                    "{what}"
                );
                let waits = decision.disposition != Disposition::Deliver;
                assert_eq!(waits, to_blame || is_short, "{what}");
                if !waits && answering < required {
                    assert_eq!(decision.rule, PASSED_RULE, "{what}");
                    let says = decision
                        .reason
                        .contains("passes without passed0: it hangs, by root");
                    assert!(says, "{what}: {}", decision.reason);
                }
            }
        }
    }
}

/// Required, answering and silent engines, up to three of each.
fn every_coverage() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..4).flat_map(|r| (0..4).flat_map(move |a| (0..4).map(move |s| (r, a, s))))
}

/// The reason names an engine with a score that is not finite, so that an administrator can repair the engine.
#[test]
fn an_engine_with_a_broken_score_is_named() {
    let mut case = Case::new("broken score");
    case.line("engine spamd av ok spam:x:NaN");
    let groups = case.decide();
    assert!(
        groups[0].0.reason.contains("spamd"),
        "{}",
        groups[0].0.reason
    );
    assert!(groups[0].0.score.is_finite());
}
