//! Cases in which a recorded decision is decided again: what is known is decided, and the rest is not guessed.

use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::config::Config;
use crate::measure::LateScan;
use crate::message::{AttachmentFact, Mailbox, MessageId};
use crate::store::basis::Basis;
use crate::store::history::{History, HistoryEntry};
use crate::store::late_scans;
use crate::verdict::{
    Answer, Decision, Disposition, EngineClass, Finding, FindingKind, Reason, Report, Verdict,
};

fn config(text: &str) -> Config {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("c.toml");
    std::fs::write(&file, text).expect("writes");
    crate::config::load(Some(&file)).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Terms with the engines `av` and `spam`, with these timeouts.
fn terms(timeouts: [&str; 2], more: &str) -> Terms {
    let engine = |name: &str, timeout: &str| {
        format!(
            "[[engine]]\nname = \"{name}\"\nkind = \"rules\"\nclass = \"{name}\"\ntimeout = \"{timeout}\"\nmax_size = \"1MiB\"\n"
        )
    };
    let [av, spam] = timeouts;
    let text = format!("{}{}{more}", engine("av", av), engine("spam", spam));
    let config = config(&text);
    Terms::new(&config.policy, &config.engines, config.version.clone())
}

fn report(engine: &str, milliseconds: u64, answer: Answer) -> Report {
    Report {
        attempts: 1,
        elapsed: Duration::from_millis(milliseconds),
        ..Report::unasked(engine.into(), EngineClass::Av, answer)
    }
}

fn nothing(engine: &str, milliseconds: u64) -> Report {
    report(engine, milliseconds, Answer::Answered(Vec::new()))
}

fn missing(engine: &str, milliseconds: u64, reason: Reason) -> Report {
    report(engine, milliseconds, Answer::none(reason, ""))
}

fn entry(reports: Vec<Report>) -> HistoryEntry {
    let mailbox = |text: &str| Mailbox::parse(text).expect("mailbox");
    HistoryEntry {
        at: Timestamp::UNIX_EPOCH,
        message: MessageId::new(),
        part_of: None,
        event: "delivered".into(),
        sender: mailbox("a@a.test").into(),
        recipients: vec![mailbox("b@b.test")],
        client: [192, 0, 2, 1].into(),
        listener: "smtp".into(),
        size: 1000,
        decision: Some(Decision {
            verdict: Verdict::Clean,
            disposition: Disposition::Deliver,
            rule: "policy.clean".to_owned(),
            reason: String::new(),
            score: 0.0,
            tag: false,
            missing: Vec::new(),
            config: "then".into(),
        }),
        reports,
        subject: String::new(),
        attachments: Vec::new(),
        basis: Some(Basis::default()),
        detail: String::new(),
    }
}

/// What is decided, in words.
fn decided(terms: &Terms, entry: &HistoryEntry, late: &LateAnswers) -> String {
    match terms.decide(entry, Some(late)).0 {
        Decided::ByGuard => "by the guard".to_owned(),
        Decided::CannotSay(why) => why,
        Decided::Ruled(ruled) => {
            let shown = |r: &Ruled| format!("{} by {}", r.to.act(), r.to.rule);
            ruled.iter().map(shown).collect::<Vec<_>>().join(", ")
        }
    }
}

/// An answer that took as long as the new timeout or longer is missed. If nobody can know which scan counted, because there were
/// several attempts or the scan was another message's, nobody can say.
#[test]
fn answers_that_take_too_long_are_missed() {
    let late = LateAnswers::default();
    let terms = terms(["2s", "5s"], "");
    let of = |av: Report| decided(&terms, &entry(vec![av, nothing("spam", 10)]), &late);
    assert_eq!(of(nothing("av", 1999)), "deliver by policy.clean");
    assert_eq!(of(nothing("av", 2000)), "defer by coverage.av");
    let waited = Report {
        waited: Duration::from_secs(1),
        ..nothing("av", 2999)
    };
    assert_eq!(of(waited), "deliver by policy.clean", "a wait is no scan");
    let again = Report {
        attempts: 2,
        ..nothing("av", 2500)
    };
    assert_eq!(of(again), "nobody knows what av would have answered");
}

/// A scan that ran into its timeout is won by a longer one if it is known to have ended by then, with what it found; if it is
/// known to have lasted longer, the answer is still missing; otherwise nobody can say.
#[test]
fn answers_are_won_only_if_they_are_known() {
    let terms = terms(["8s", "5s"], "");
    let entry = entry(vec![
        missing("av", 2000, Reason::Timeout),
        nothing("spam", 10),
    ]);
    let unknown = "nobody knows what av would have answered";
    let mut late = LateAnswers::default();
    assert_eq!(decided(&terms, &entry, &late), unknown);
    late.took.insert("av".into(), Duration::from_secs(9));
    assert_eq!(decided(&terms, &entry, &late), "defer by coverage.av");
    late.took.insert("av".into(), Duration::from_secs(7));
    assert_eq!(decided(&terms, &entry, &late), unknown, "what it found");
    let malware = Finding::new(FindingKind::Malware, "Eicar", 0.0);
    let later = report("av", 0, Answer::Answered(vec![malware]));
    late.later(entry.message, &[later]);
    assert_eq!(
        decided(&terms, &entry, &late),
        "quarantine by policy.malware"
    );
    let same = self::terms(["2s", "5s"], "");
    assert_eq!(
        decided(&same, &entry, &late),
        "defer by coverage.av",
        "no longer timeout"
    );
}

/// After malware, a message waits a second for the others: a longer timeout does not win answers after that. If the finding that
/// cut the wait short is missed, nobody knows what the others would have answered.
#[test]
fn malware_cuts_the_wait_short() {
    let eicar = Finding::new(FindingKind::Malware, "Eicar", 0.0);
    let found = |milliseconds| report("av", milliseconds, Answer::Answered(vec![eicar.clone()]));
    let rule = "[[rule]]\nname = \"late\"\nmissing = [\"unneeded\"]\nthen = \"discard\"\n";
    let mut late = LateAnswers::default();
    late.took.insert("spam".into(), Duration::from_secs(4));
    late.found.insert("spam".into(), Vec::new());
    let longer = terms(["5s", "9s"], rule);
    let timed_out = entry(vec![found(500), missing("spam", 1000, Reason::Timeout)]);
    assert_eq!(decided(&longer, &timed_out, &late), "discard by late");
    late.took.insert("spam".into(), Duration::from_millis(1500));
    let in_time = decided(&longer, &timed_out, &late);
    assert_eq!(in_time, "quarantine by policy.malware", "just in time");
    let shorter = terms(["1s", "5s"], "");
    let cut_short = entry(vec![found(1500), missing("spam", 2500, Reason::Unneeded)]);
    let why = "nobody waited for the answer of spam";
    assert_eq!(decided(&shorter, &cut_short, &late), why);
    let enough = terms(["2s", "5s"], "");
    let decided = decided(&enough, &cut_short, &late);
    assert_eq!(decided, "quarantine by policy.malware");
}

/// A rule that asks for attachments decides as it would have. If some attachments were not kept, that is said only where they
/// matter.
#[test]
fn attachments_that_were_not_kept_are_not_guessed() {
    let fact = |name: &str| AttachmentFact {
        name: Some(name.to_owned()),
        declared: "a/b".to_owned(),
        sniffed: "a/b".to_owned(),
        size: 1,
    };
    let rule =
        "[[rule]]\nname = \"macros\"\nattachment_name = [\"*.xlsm\"]\nthen = \"quarantine\"\n";
    let (with, without) = (terms(["5s", "5s"], rule), terms(["5s", "5s"], ""));
    let of = |terms: &Terms, names: &[&str]| {
        let facts: Vec<AttachmentFact> = names.iter().map(|name| fact(name)).collect();
        let entry = HistoryEntry {
            basis: Some(Basis::new(false, None, &facts)),
            ..entry(vec![nothing("av", 10), nothing("spam", 10)])
        };
        decided(terms, &entry, &LateAnswers::default())
    };
    assert_eq!(of(&with, &["a.pdf"]), "deliver by policy.clean");
    assert_eq!(of(&with, &["a.pdf", "b.xlsm"]), "quarantine by macros");
    let many = ["a.pdf"; 11];
    let why = "a rule asks for attachments, and not all of them were recorded";
    assert_eq!(of(&with, &many), why);
    assert_eq!(of(&without, &many), "deliver by policy.clean");
    let first = ["b.xlsm"; 11];
    assert_eq!(
        of(&with, &first),
        "quarantine by macros",
        "the rest does not matter"
    );
}

/// An engine that was not asked is assumed to find nothing; where the message could not do without its answer, nobody can say.
/// An engine that is not configured any more does not count.
#[test]
fn engines_come_and_go() {
    let late = LateAnswers::default();
    let both = terms(["5s", "5s"], "");
    let one = entry(vec![nothing("av", 10)]);
    let why = "spam is new, and has no recorded answer";
    assert_eq!(
        decided(&both, &one, &late),
        why,
        "one of class spam is required"
    );
    let optional = terms(["5s", "5s"], "[coverage]\nspam = 0\n");
    assert_eq!(decided(&optional, &one, &late), "deliver by policy.clean");
    let eicar = Finding::new(FindingKind::Malware, "Eicar", 0.0);
    let gone = report("gone", 10, Answer::Answered(vec![eicar]));
    let with = entry(vec![nothing("av", 10), nothing("spam", 10), gone]);
    assert_eq!(decided(&both, &with, &late), "deliver by policy.clean");
}

/// Content above the new `max_size` is not scanned; what was too large then was never scanned.
#[test]
fn a_limit_of_size_counts() {
    let late = LateAnswers::default();
    let terms = terms(["5s", "5s"], "");
    let mut large = entry(vec![nothing("av", 10), nothing("spam", 10)]);
    large.size = (1 << 20) + 1;
    assert_eq!(decided(&terms, &large, &late), "quarantine by coverage.av");
    large.size = 1 << 20;
    assert_eq!(decided(&terms, &large, &late), "deliver by policy.clean");
    let small = entry(vec![
        missing("av", 0, Reason::TooLarge),
        nothing("spam", 10),
    ]);
    let why = "nobody knows what av would have answered";
    assert_eq!(decided(&terms, &small, &late), why);
}

/// Mail that an interceptor held before any engine was asked is held under every policy.
#[test]
fn what_the_guard_held_no_rule_decides() {
    let mut held = entry(Vec::new());
    if let Some(decision) = &mut held.decision {
        decision.rule = "interceptor.01".to_owned();
    }
    let terms = terms(["5s", "5s"], "");
    assert_eq!(
        decided(&terms, &held, &LateAnswers::default()),
        "by the guard"
    );
    let mut comparison = Comparison::new(Examples::First(3));
    comparison.add(&held, &Decided::ByGuard);
    assert_eq!((comparison.messages, comparison.by_guard), (0, 1));
}

/// In a replay of slots, a late scan holds its slot until it has ended, and a later scan of the same message for as long as itself.
#[tokio::test]
async fn a_slot_is_held_until_its_scan_ends() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(crate::store::history::FILE_NAME);
    let history = History::open(&path, Duration::from_secs(1 << 30)).expect("open");
    let id = |at: Timestamp| -> MessageId {
        let milliseconds = u64::try_from(at.as_millisecond()).expect("a time");
        let id = ulid::Ulid::from_parts(milliseconds, 1).to_string();
        id.parse().expect("an id")
    };
    let began = Timestamp::from_second(1_790_000_000).expect("a time");
    let at = |milliseconds| began + Duration::from_millis(milliseconds);
    let told = |asked: u64, milliseconds, report| HistoryEntry {
        at: at(asked + milliseconds),
        message: id(at(asked)),
        ..entry(vec![report])
    };
    let late = told(0, 2000, missing("av", 2000, Reason::Timeout));
    let again = HistoryEntry {
        message: late.message,
        basis: Some(Basis::new(true, None, &[])),
        ..told(20_000, 100, nothing("av", 100))
    };
    let scan = LateScan {
        message: late.message,
        engine: "av".into(),
        at: at(9000),
        took: Duration::from_secs(9),
        found: Some(false),
    };
    for entry in [
        late,
        told(1000, 100, nothing("av", 100)),
        again,
        told(20_050, 1, nothing("av", 1)),
    ] {
        history.record(entry);
    }
    history.flush().await;
    late_scans::add(&path, &[scan]).expect("written");
    let engine = "[[engine]]\nname = \"av\"\nkind = \"rules\"\nslots = 1\nwait = \"60s\"\n";
    let config = config(engine);
    let terms = Terms::new(&config.policy, &config.engines, config.version.clone());
    let wanted = Wanted {
        history: &path,
        since: began,
        terms: &terms,
        examples: 0,
        slots: vec!["av".into()],
    };
    let replayed = replay(&wanted, |_, _| {}).await.expect("reads");
    let [slots] = &replayed.slots[..] else {
        panic!("{:?}", replayed.slots);
    };
    assert_eq!(
        (slots.scans, slots.waits.refused),
        (3, 0),
        "a message asks once"
    );
    assert_eq!(slots.waits.longest_ms, 8000, "for the late scan");
}

/// A message about which another rule decides the same has not changed, and is counted apart.
#[test]
fn another_rule_alone_is_no_change() {
    let by = |rule: &str| Ruling {
        disposition: Disposition::Deliver,
        marked: false,
        rule: rule.to_owned(),
    };
    let mut comparison = Comparison::new(Examples::First(3));
    for rule in ["policy.clean", "partners"] {
        let ruled = Ruled {
            from: by("policy.clean"),
            to: by(rule),
            recipients: 1,
            score: 0.0,
            reason: String::new(),
        };
        comparison.add(&entry(Vec::new()), &Decided::Ruled(vec![ruled]));
    }
    assert_eq!((comparison.messages, comparison.changed), (2, 0));
    assert_eq!(comparison.other_rule, 1);
}

/// A comparison stays small, whatever is compared: of examples it keeps as many as wanted, and of kinds of change a thousand.
#[test]
fn a_comparison_is_bounded() {
    let ruled = |rule: String| {
        let from = Ruling {
            disposition: Disposition::Deliver,
            marked: false,
            rule: "policy.clean".to_owned(),
        };
        let to = Ruling {
            disposition: Disposition::Reject,
            rule,
            ..from.clone()
        };
        Decided::Ruled(vec![Ruled {
            from,
            to,
            recipients: 2,
            score: 1.0,
            reason: String::new(),
        }])
    };
    let entry = entry(Vec::new());
    let mut first = Comparison::new(Examples::First(2));
    let mut newest = Comparison::new(Examples::Newest(50));
    for number in 0..3000 {
        let decided = ruled(format!("rule-{}", number / 2));
        first.add(&entry, &decided);
        newest.add(&entry, &decided);
    }
    for comparison in [&first, &newest] {
        assert_eq!((comparison.changed, comparison.changes.len()), (3000, 1000));
    }
    assert_eq!((first.examples.len(), newest.examples.len()), (2000, 50));
    let sum: u64 = newest.changes.iter().map(|change| change.recipients).sum();
    assert_eq!(sum, 4000);
    let last = newest
        .examples
        .back()
        .map(|example| example.to.rule.clone());
    assert_eq!(last.as_deref(), Some("rule-1499"));
}

/// A message that got no scan then, because no slot was free or the engine was out, is no message that stays as it is: it is
/// counted as one of which nobody knows, and it needs a slot like the others, once. Only first decisions count.
#[tokio::test]
async fn mail_that_got_no_scan_is_not_passed_over() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(crate::store::history::FILE_NAME);
    let history = crate::store::history::History::open(&path, Duration::from_secs(1 << 30));
    let history = history.expect("opens");
    let refused = |reason| Report {
        attempts: 0,
        ..missing("av", 1000, reason)
    };
    let deferred = |reason, again| {
        let mut entry = entry(vec![refused(reason), nothing("spam", 10)]);
        entry.at = Timestamp::now();
        entry.basis = Some(Basis::new(again, None, &[]));
        if let Some(decision) = &mut entry.decision {
            decision.disposition = Disposition::Defer;
            decision.rule = "coverage.av".to_owned();
        }
        entry
    };
    let mut scanned = entry(vec![nothing("av", 100), nothing("spam", 10)]);
    scanned.at = Timestamp::now();
    history.record(scanned);
    for reason in [Reason::Busy, Reason::BreakerOpen, Reason::Parked] {
        history.record(deferred(reason, false));
        history.record(deferred(reason, true));
    }
    history.record(deferred(Reason::Drained, false));
    history.flush().await;
    let terms = terms(["5s", "5s"], "");
    let wanted = Wanted {
        history: &path,
        since: Timestamp::UNIX_EPOCH,
        terms: &terms,
        examples: 3,
        slots: vec!["av".into()],
    };
    let replayed = replay(&wanted, |_, _| {}).await.expect("replays");
    let comparison = &replayed.comparison;
    assert_eq!((comparison.messages, comparison.changed), (5, 0));
    assert_eq!(replayed.again, 3);
    assert_eq!(replayed.not_asked, [("av".into(), 3)]);
    let slots = &replayed.slots[0];
    assert_eq!((slots.scans, slots.not_run), (4, 3));
    assert_eq!(
        slots.enough,
        Some(1),
        "0.4 s of scans within the wait of 1 s"
    );
    history.close().await;
}
