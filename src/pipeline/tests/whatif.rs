//! A replay says what another configuration really does: a load that was recorded under one configuration is replayed under
//! another, which then gets the same load.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use futures_util::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::Config;
use crate::deadline::set_wall_clock;
use crate::message::header;
use crate::scan::engine::{Engine, EngineAnswer, Sample, ScanError};
use crate::store::basis::{Basis, GroupBasis};
use crate::store::decisions::Decisions;
use crate::verdict::{Answer as Said, Finding, FindingKind, Reason};
use crate::whatif::{Change, Comparison, Replayed, Ruling, Terms, Wanted, replay};

/// Messages of one load.
const MESSAGES: usize = 200;
const ENGINES: [&str; 3] = ["av", "spam", "other"];
/// Interval between two messages: some answers come while a slow scan runs.
const ARRIVAL_INTERVAL: Duration = Duration::from_millis(200);
const MINUTE: Duration = Duration::from_secs(60);

/// What one engine does with one message.
#[derive(Debug, Clone)]
struct Act {
    took: Duration,
    findings: Vec<Finding>,
}

/// The load: what each message is, and what each engine does with it.
struct Load {
    messages: Vec<Message>,
    acts: Vec<[Act; 3]>,
}

impl Load {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut load = Self {
            messages: Vec::new(),
            acts: Vec::new(),
        };
        for number in 0..MESSAGES {
            load.messages.push(planned(number, &mut rng));
            load.acts
                .push([0, 1, 2].map(|engine| act(engine, &mut rng)));
        }
        load
    }

    /// The same messages, with ids of their own.
    fn again(&self) -> Vec<Message> {
        let again = |message: &Message| Message {
            id: MessageId::new(),
            received_at: wall_clock(),
            ..message.clone()
        };
        self.messages.iter().map(again).collect()
    }
}

fn planned(number: usize, rng: &mut StdRng) -> Message {
    let all = ["x@b.test", "vip@b.test", "y@b.test", "z@c.test"];
    let count = [1, 1, 1, 2, 3][rng.random_range(0..5)];
    let first = rng.random_range(0..all.len());
    let recipients: Vec<&str> = (0..count).map(|n| all[(first + n) % all.len()]).collect();
    let mut message = message(&recipients);
    let mut envelope = (*message.envelope).clone();
    if rng.random_bool(0.2) {
        envelope.origin.user = Some(["ann", "bob"][rng.random_range(0..2)].to_owned());
    }
    let domain = rng.random_range(0..40);
    let sender = format!("sender@d{domain}.test");
    envelope.reverse_path = Mailbox::parse(&sender).expect("mailbox").into();
    message.envelope = Arc::new(envelope);
    // Nobody takes one for a copy of another.
    let words: Vec<String> = (0..60)
        .map(|_| format!("{:x}", rng.random::<u64>()))
        .collect();
    let mut text = format!(
        "Subject: {number}\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n{}\r\n",
        words.join(" ")
    );
    for _ in 0..[0, 0, 1, 2, 5][rng.random_range(0..5)] {
        let (name, kind) = [
            ("a.xlsm", "application/octet-stream"),
            ("b.pdf", "application/pdf"),
        ][rng.random_range(0..2)];
        let _ = write!(
            text,
            "--x\r\nContent-Type: {kind}; name={name}\r\n\r\n{:x}\r\n",
            rng.random::<u64>()
        );
    }
    message.content = Content::uncharged(text + "--x--\r\n");
    message
}

fn act(engine: usize, rng: &mut StdRng) -> Act {
    // No scan ends at the moment of a timeout.
    let tenths = match (engine, rng.random_range(0..20)) {
        (0, _) => rng.random_range(0..9),
        (_, 0..17) => rng.random_range(0..9),
        (_, 17..19) => rng.random_range(9..60),
        _ => rng.random_range(60..120),
    };
    let mut findings = Vec::new();
    let mut found = |kind, name, score: f64| findings.push(Finding::new(kind, name, score));
    match (engine, rng.random_range(0..100)) {
        (0, 0..4) => found(FindingKind::Malware, "Eicar", 0.0),
        (0, _) => {}
        (1, 0..70) => found(
            FindingKind::Spam,
            "bulk",
            f64::from(rng.random_range(0..140)) / 10.0,
        ),
        (1, 70..90) => found(
            FindingKind::Score,
            "nice",
            -f64::from(rng.random_range(0..40)) / 10.0,
        ),
        (_, 0..10) => found(FindingKind::Policy, "blocked", 0.0),
        (_, 10..20) => found(FindingKind::Phishing, "lure", 2.0),
        (_, 20..50) => found(
            FindingKind::Suspicious,
            "odd",
            f64::from(rng.random_range(0..60)) / 10.0,
        ),
        _ => {}
    }
    Act {
        took: Duration::from_millis(tenths * 100 + 50),
        findings,
    }
}

/// An engine that does what the load says.
#[derive(Debug)]
struct Planned {
    engine: usize,
    acts: Arc<Vec<[Act; 3]>>,
}

impl Engine for Planned {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, std::result::Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let subject = header::subject(sample.content().header_section());
            let number: usize = subject.parse().expect("a number");
            let act = &self.acts[number][self.engine];
            Deadline::after(act.took).wait().await;
            Ok(EngineAnswer::new(Said::Answered(act.findings.clone())))
        })
    }
}

/// A configuration: random rules, thresholds, coverage, weights, and one of two timeouts.
fn configuration(seed: u64) -> Config {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut one_of = |words: &[&'static str]| words[rng.random_range(0..words.len())];
    let mut text = format!(
        "[policy]\ntag_score = {}\nquarantine_score = {}\nreject_score = {}\nphishing = \"{}\"\npolicy = \"{}\"\n\
         [policy.missing]\ntimeout = \"{}\"\nunneeded = \"{}\"\n[coverage]\nspam = {}\ncontent = {}\n",
        one_of(&["2.0", "4.0"]),
        one_of(&["5.0", "6.5"]),
        one_of(&["9.0", "12.0"]),
        one_of(&["quarantine", "reject", "deliver"]),
        one_of(&["quarantine", "deliver"]),
        one_of(&["defer", "defer", "quarantine"]),
        one_of(&["defer", "deliver"]),
        one_of(&["0", "1"]),
        one_of(&["0", "1"]),
    );
    for (name, class) in [("av", "av"), ("spam", "spam"), ("other", "content")] {
        let timeout = match name {
            "av" => "2s",
            _ => one_of(&["1s", "3s", "7s"]),
        };
        let weight = one_of(&["0.5", "1.0", "2.0"]);
        let _ = write!(
            text,
            "[[engine]]\nname = \"{name}\"\nkind = \"rules\"\nclass = \"{class}\"\ntimeout = \"{timeout}\"\n\
             slow = \"{timeout}\"\nslots = 200\nweight = {weight}\n"
        );
    }
    let rules = [
        "name = \"macros\"\nattachment_name = [\"*.xlsm\"]\nthen = \"quarantine\"",
        "name = \"pdf\"\nattachment_type = [\"application/pdf\"]\nscore_over = 1.0\nthen = \"reject\"",
        "name = \"vip\"\nrecipient = [\"vip@*\"]\nthen = \"deliver\"",
        "name = \"users\"\nuser = [\"ann\"]\nthen = \"deliver\"",
        "name = \"slow\"\nmissing = [\"timeout\"]\nengine = [\"spam\"]\nsender = [\"*@d1*\"]\nthen = \"discard\"",
    ];
    for _ in 0..rng.random_range(0..4) {
        let rule = rules[rng.random_range(0..rules.len())];
        if !text.contains(rule) {
            let _ = write!(text, "[[rule]]\n{rule}\n");
        }
    }
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("c.toml");
    std::fs::write(&file, text).expect("writes");
    crate::config::load(Some(&file)).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The first decision about a message.
struct First {
    /// The ruling for each recipient.
    rulings: BTreeMap<String, Ruling>,
    /// The engines that answered, and those that ran into their timeout.
    answered: Vec<Arc<str>>,
    timed_out: Vec<Arc<str>>,
    /// The engines that answered when the message was judged again.
    answered_later: Vec<Arc<str>>,
}

fn timed_out(reports: &[Report]) -> Vec<Arc<str>> {
    let timed_out = |report: &&Report| report.missing() == Some(Reason::Timeout);
    let reports = reports.iter().filter(timed_out);
    reports.map(|report| report.engine.clone()).collect()
}

fn rulings(entry: &HistoryEntry, basis: &Basis) -> BTreeMap<String, Ruling> {
    let decision = entry.decision.clone().expect("a decision");
    let groups = match basis.groups.is_empty() {
        true => vec![GroupBasis::new(&decision, entry.recipients.clone())],
        false => basis.groups.clone(),
    };
    let mut rulings = BTreeMap::new();
    for group in groups {
        let ruling = Ruling::of(&Decision {
            disposition: group.disposition,
            tag: group.tag,
            rule: group.rule,
            ..decision.clone()
        });
        let recipients = group.recipients.iter();
        rulings.extend(recipients.map(|to| (to.to_string(), ruling.clone())));
    }
    rulings
}

/// A relay with a configuration, and the load that it has taken.
struct Ran {
    folder: tempfile::TempDir,
    pipeline: Arc<Pipeline>,
    began: Timestamp,
}

impl Ran {
    /// Sends the load through the path. `shadow` decides beside it.
    async fn new(load: &Load, config: &Config, shadow: Option<&Config>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let acts = Arc::new(load.acts.clone());
        let scripted = config.engines.iter().map(|settings| {
            let engine = ENGINES.iter().position(|name| **name == *settings.name);
            let engine = engine.expect("an engine of the load");
            let acts = acts.clone();
            let planned: Arc<dyn Engine> = Arc::new(Planned { engine, acts });
            (settings.clone(), vec![planned])
        });
        let mut generation = generation(Vec::new(), config.budget.clone());
        generation.scanner = Scanner::of_engines(scripted.collect(), None);
        generation.policy = Policy::new(config.policy.clone(), config.version.clone());
        let hop = HopSettings {
            kind: Kind::Maildir {
                path: folder.path().join("{local}").to_string_lossy().into_owned(),
            },
            ..maildir_hop()
        };
        generation.delivery = Delivery::new(vec![hop], None).expect("a next hop");
        let open = |name: &str| folder.path().join(name);
        let history = History::open(&open("history.db"), 1000 * MINUTE).expect("history");
        let incidents = Incidents::open(&open("incidents.db"), MINUTE).expect("incidents");
        let pipeline = Pipeline::new(
            generation,
            Arc::new(Scripted::default()),
            (history, incidents),
            intercept::Settings::default(),
            64 << 20,
        );
        if let Some(shadow) = shadow {
            let terms = Terms::new(&shadow.policy, &shadow.engines, shadow.version.clone());
            pipeline.begin_shadow("shadow.toml".into(), shadow.version.clone(), terms);
        }
        let ran = Self {
            folder,
            pipeline,
            began: wall_clock(),
        };
        let closing = CancellationToken::new();
        tokio::spawn(Lanes::new(ran.pipeline.clone()).run(closing.clone()));
        for message in load.again() {
            let pipeline = ran.pipeline.clone();
            tokio::spawn(async move { pipeline.accept(message, Mode::CutThrough).await });
            // An engine that answers other mail meanwhile is not taken for broken.
            Deadline::after(ARRIVAL_INTERVAL).wait().await;
            ran.measure().await;
        }
        // Deferred mail is scanned again, until none is left.
        for _ in 0..100 {
            Deadline::after(MINUTE).wait().await;
            ran.measure().await;
        }
        let lanes = ran.pipeline.store.stats().await.expect("stats");
        assert_eq!(lanes[0].messages, 0, "all mail is judged");
        closing.cancel();
        ran.pipeline.write_measures().await;
        ran.pipeline.history.flush().await;
        ran
    }

    /// What the watch does with evidence, without the interceptors: the load is to be seen, and not what the relay learns of it.
    async fn measure(&self) {
        let generation = self.pipeline.generation();
        let scanner = &generation.scanner;
        for ((engine, evidence), settings) in scanner.evidence().into_iter().zip(scanner.settings())
        {
            self.pipeline
                .measure_scans(&engine, settings.timeout, &evidence);
            for late in &evidence {
                let due = self.pipeline.store.make_due(late.message, wall_clock());
                due.await.expect("due");
            }
        }
    }

    /// The first decision about each message, by its number.
    async fn decided(&self) -> BTreeMap<usize, First> {
        let mut all: BTreeMap<usize, First> = BTreeMap::new();
        for entry in self.entries().await {
            let number: usize = entry.subject.parse().expect("a number");
            let basis = entry.basis.clone().expect("a basis");
            let answered = entry.reports.iter().filter(|r| r.missing().is_none());
            let answered: Vec<Arc<str>> = answered.map(|r| r.engine.clone()).collect();
            if basis.again {
                let first = all.get_mut(&number).expect("a first decision");
                first.answered_later.extend(answered);
                continue;
            }
            for report in &entry.reports {
                let expected = [None, Some(Reason::Timeout), Some(Reason::Unneeded)];
                assert!(expected.contains(&report.missing()), "{report:?}");
            }
            let first = First {
                rulings: rulings(&entry, &basis),
                answered,
                timed_out: timed_out(&entry.reports),
                answered_later: Vec::new(),
            };
            assert!(all.insert(number, first).is_none(), "two first decisions");
        }
        assert_eq!(all.len(), MESSAGES);
        all
    }

    async fn entries(&self) -> Vec<HistoryEntry> {
        let path = self.folder.path().join("history.db");
        let mut decisions = Decisions::since(&path, self.began).await.expect("opens");
        let mut entries = Vec::new();
        while let Some(page) = decisions.page().await.expect("reads") {
            entries.extend(page);
        }
        entries
    }

    async fn replay(&self, config: &Config) -> Replayed {
        let terms = Terms::new(&config.policy, &config.engines, config.version.clone());
        let history = self.folder.path().join("history.db");
        let wanted = Wanted {
            history: &history,
            since: self.began,
            terms: &terms,
            examples: 3,
            slots: Vec::new(),
        };
        replay(&wanted, |_, _| {}).await.expect("replays")
    }
}

/// What really changes between two runs of the same load: messages and recipients for each pair of rulings.
type Changes = BTreeMap<(Ruling, Ruling), (u64, u64)>;

fn changes(
    before: &BTreeMap<usize, First>,
    after: &BTreeMap<usize, First>,
    left_out: &[usize],
) -> Changes {
    let mut changes = Changes::new();
    for (number, first) in before {
        if left_out.contains(number) {
            continue;
        }
        let mut of_message: BTreeMap<(Ruling, Ruling), u64> = BTreeMap::new();
        for (recipient, from) in &first.rulings {
            let to = &after[number].rulings[recipient];
            if from.act() != to.act() {
                *of_message.entry((from.clone(), to.clone())).or_default() += 1;
            }
        }
        for (pair, recipients) in of_message {
            let count = changes.entry(pair).or_default();
            count.0 += 1;
            count.1 += recipients;
        }
    }
    changes
}

fn replayed_changes(comparison: &Comparison) -> Changes {
    let change = |change: &Change| {
        let pair = (change.from.clone(), change.to.clone());
        (pair, (change.messages, change.recipients))
    };
    comparison.changes.iter().map(change).collect()
}

/// The law of `what-if`: the replay of a load under another configuration counts what that configuration really does with the
/// same load, for each rule and disposition, and the answers that its timeouts really miss and win. Of the rest it says that
/// nobody can say; these are the messages of which a won answer is not known.
#[tokio::test(start_paused = true)]
async fn a_replay_counts_what_the_other_configuration_really_does() {
    set_wall_clock(Some(wall_clock()));
    let (mut changed, mut missed, mut won) = (0, 0, 0);
    for seed in 0..5 {
        let load = Load::new(seed);
        let (one, other) = (configuration(1000 + seed), configuration(2000 + seed));
        let recorded = Ran::new(&load, &one, None).await;
        let replayed = recorded.replay(&other).await;
        let before = recorded.decided().await;
        let after = Ran::new(&load, &other, None).await.decided().await;
        // What was won, and was never answered later.
        let is_unknown = |number: &usize| {
            let (before, after) = (&before[number], &after[number]);
            let mut won = before
                .timed_out
                .iter()
                .filter(|e| after.answered.contains(e));
            won.any(|engine| !before.answered_later.contains(engine))
        };
        let unknown: Vec<usize> = before.keys().copied().filter(is_unknown).collect();
        let comparison = &replayed.comparison;
        let cannot_say: u64 = comparison.cannot_say.values().sum();
        assert_eq!(
            cannot_say,
            unknown.len() as u64,
            "seed {seed}: {:?}",
            comparison.cannot_say
        );
        assert_eq!(
            comparison.messages + cannot_say,
            MESSAGES as u64,
            "seed {seed}"
        );
        let really = changes(&before, &after, &unknown);
        assert_eq!(replayed_changes(comparison), really, "seed {seed}");
        for (engine, counts) in &replayed.answers {
            let (mut really_missed, mut really_won) = (0, 0);
            for (number, before) in &before {
                let after = &after[number];
                let has = |engines: &[Arc<str>]| u64::from(engines.contains(&engine.name));
                really_missed += has(&before.answered) * has(&after.timed_out);
                really_won += has(&before.timed_out) * has(&after.answered);
            }
            let seen = (counts.missed, counts.won + counts.unknown);
            assert_eq!(
                seen,
                (really_missed, really_won),
                "seed {seed}, {}",
                engine.name
            );
            missed += counts.missed;
            won += counts.won;
        }
        changed += comparison.changed;
    }
    assert!(
        changed > 100 && missed > 10 && won > 10,
        "{changed} {missed} {won}"
    );
    set_wall_clock(None);
}

/// A shadow decides as a replay of the same mail does, as long as no timeout differs: it sees the same decisions in the same
/// order. It changes nothing for the mail.
#[tokio::test(start_paused = true)]
async fn a_shadow_decides_as_a_replay() {
    set_wall_clock(Some(wall_clock()));
    for seed in 0..3 {
        let load = Load::new(100 + seed);
        let (one, mut other) = (configuration(3000 + seed), configuration(4000 + seed));
        for (engine, like) in other.engines.iter_mut().zip(&one.engines) {
            engine.timeout = like.timeout;
        }
        let recorded = Ran::new(&load, &one, Some(&other)).await;
        let replayed = recorded.replay(&other).await;
        let shadow = recorded.pipeline.shadow().expect("a shadow");
        assert_eq!((shadow.missed, shadow.failed), (0, 0));
        assert!(shadow.comparison.changed > 0);
        assert!(shadow.comparison.examples.len() <= 50);
        let counts = |c: &Comparison| (c.messages, c.changed, c.other_rule, c.cannot_say.clone());
        assert_eq!(counts(&shadow.comparison), counts(&replayed.comparison));
        assert_eq!(shadow.comparison.changes, replayed.comparison.changes);
        let without = Ran::new(&load, &one, None).await;
        let (with, without) = (recorded.decided().await, without.decided().await);
        assert_eq!(changes(&with, &without, &[]), Changes::new());
        assert!(recorded.pipeline.end_shadow().is_some());
        assert_eq!(recorded.pipeline.shadow(), None);
    }
    set_wall_clock(None);
}
