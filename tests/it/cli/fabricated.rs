//! A store with a message of each kind, hostile ones among them, and the same ids and times in every run.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use spillway::cli::Terminal;
use spillway::incident::{Incident, Kind, Subject, Touch, TouchOutcome};
use spillway::intercept::{Action, Interceptor, Origin as Maker};
use spillway::message::{
    BodyKind, Content, Envelope, Mailbox, MessageId, Origin, Pattern, ReversePath,
};
use spillway::store::basis::Basis;
use spillway::store::history::{self, History, HistoryEntry};
use spillway::store::incidents::{self, Incidents};
use spillway::store::sqlite::{Role, SqliteStore};
use spillway::store::{Audit, Cause, Lane, Record, Settings, Store, StoredInterceptor};
use spillway::verdict::{
    Answer, Decision, Disposition, EngineClass, Finding, FindingKind, Reason, Report, Verdict,
};

/// Held for EICAR; everything its sender chose is hostile.
pub const MALICIOUS: &str = "01KAJ0000000000000000MA001";
/// Held because an engine did not answer.
pub const UNDETERMINED: &str = "01KAJ0000000000000000VN001";
/// Held by an administrator's rule, for one group of the recipients of another message.
pub const SPLIT: &str = "01KAJ0000000000000000SP001";
/// To be delivered again.
pub const WAITING: &str = "01KAJ0000000000000000WA001";
/// Delivered without an engine, to be scanned again.
pub const DELIVERED: &str = "01KAJ0000000000000000DE001";
/// A part of [`MALICIOUS`] that is gone.
pub const PART: &str = "01KAJ0000000000000000PA001";
/// Everything in quarantine.
pub const HELD: [&str; 3] = [MALICIOUS, UNDETERMINED, SPLIT];

/// An engine's breaker opened; names [`UNDETERMINED`] and a message that nobody knows.
pub const OPENED: &str = "01KAJ000000000000000BR0001";
/// Everything in it is hostile, and it is about [`MALICIOUS`].
pub const STRIKE: &str = "01KAJ000000000000000ST0001";

/// An incident as earlier versions wrote it.
pub const EARLIER: &str = "01KAJ000000000000000HE0001";

/// Made by the learner; caught [`SPLIT`] and a message that nobody knows.
pub const LEARNED: &str = "01KAJ000000000000000NT0001";
/// Made by a person, whose note is hostile; a dry run that has ended.
pub const BY_HAND: &str = "01KAJ000000000000000PE0001";

/// The message that [`SPLIT`] is part of.
const WHOLE: &str = "01KAJ0000000000000000WH001";
/// The present: 2026-11-20 12:00:00 UTC.
const NOW: i64 = 1_795_176_000;

/// The store, and a configuration that leads to it.
pub struct Fabricated {
    folder: tempfile::TempDir,
}

/// What a command came to.
pub struct Ran {
    /// Exit code.
    pub exit: u8,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Fabricated {
    /// Makes it.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let text = "[relay]\nhostname = \"relay.example\"\n[store]\npath = \"store\"\n";
        std::fs::write(folder.path().join("spillway.toml"), text).expect("writes");
        let made = Self { folder };
        let settings = Settings {
            path: made.folder.path().join("store"),
            disk_reserve: 0,
            ..Settings::default()
        };
        runtime().block_on(fill(&settings));
        made
    }

    /// Runs a command where nobody can be asked.
    pub fn run(&self, width: Option<u16>, arguments: &[&str], input: &str) -> Ran {
        self.with(width, false, arguments, input)
    }

    /// Runs a command whose questions are answered with `input`.
    pub fn ask(&self, arguments: &[&str], input: &str) -> Ran {
        self.with(None, true, arguments, input)
    }

    /// The file with the configuration, for the program itself.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("spillway.toml")
    }

    /// Messages in quarantine.
    pub fn held(&self) -> usize {
        let list = self.run(None, &["quarantine", "list", "--json"], "");
        let list: serde_json::Value = serde_json::from_str(&list.out).expect("JSON");
        list["messages"].as_array().expect("a list").len()
    }

    fn with(&self, width: Option<u16>, interactive: bool, arguments: &[&str], input: &str) -> Ran {
        let config = self.config();
        let mut all = vec!["spillway".to_owned()];
        if !arguments.contains(&"--config") {
            all.extend(["--config".to_owned(), config.display().to_string()]);
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = spillway::cli::run(
            all.into_iter().map(Into::into),
            &mut Terminal {
                out: &mut out,
                err: &mut err,
                input: &mut Cursor::new(input),
                width,
                interactive,
                zone: jiff::tz::TimeZone::UTC,
                now: ago(0),
                json: false,
            },
        );
        let text = |octets| String::from_utf8(octets).expect("UTF-8");
        Ran {
            exit: exit as u8,
            out: text(out),
            err: text(err),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
}

async fn fill(settings: &Settings) {
    let (store, _) = SqliteStore::open(settings, Role::Relay)
        .await
        .expect("opens");
    let kept = [malicious(), undetermined(), split(), waiting(), delivered()];
    for (record, content) in kept {
        let put = store.put(vec![record], Content::uncharged(content));
        put.await.expect("puts");
    }
    let seen = Audit {
        at: ago(60),
        actor: "rita as root".to_owned(),
        act: "export".to_owned(),
        object: id(MALICIOUS).into(),
        detail: "/tmp/\u{1b}[2Jsample.eml".to_owned(),
    };
    store.audit(seen).await.expect("audits");
    for interceptor in [learned(), by_hand()] {
        let document = StoredInterceptor {
            id: interceptor.id.clone(),
            version: 0,
            body: serde_json::to_string(&interceptor).expect("JSON"),
        };
        let kept = store.keep_interceptor(document, None).await;
        kept.expect("keeps").expect("is new");
    }
    store.close().await;
    let path = settings.path.join(history::FILE_NAME);
    let history = History::open(&path, Duration::MAX).expect("opens");
    for (record, _) in [malicious(), split(), waiting()] {
        tell(&history, &record);
    }
    history.record(HistoryEntry {
        message: id(PART),
        part_of: Some(id(MALICIOUS)),
        event: "parted".into(),
        decision: None,
        reports: Vec::new(),
        ..told(&malicious().0)
    });
    history.close().await;
    let log = Incidents::open(&path_of_incidents(settings), Duration::MAX).expect("opens");
    for incident in happened() {
        log.record(incident);
    }
    for touch in touched() {
        log.touch(Subject::engine("clamd"), touch);
    }
    log.close().await;
    earlier(&path_of_incidents(settings));
}

fn learned() -> Interceptor {
    Interceptor {
        id: LEARNED.to_owned(),
        pattern: Pattern::of(["skeleton:00c0ffee00c0ffee".parse().expect("a trait")]),
        action: Action::Hold,
        origin: Maker::Learned {
            evidence: vec![
                ("precision".into(), "0.97".to_owned()),
                ("subjects".into(), "\u{1b}[2JInvoice".to_owned()),
            ],
            engine: "clamd".to_owned(),
            narrow: true,
            bad: false,
        },
        made: ago(7300),
        expires: Some(ago(-600)),
        dry_run: false,
        hits: 123,
        samples: vec![id(SPLIT), id("01KAJ0000000000000000GN001")],
    }
}

fn by_hand() -> Interceptor {
    Interceptor {
        id: BY_HAND.to_owned(),
        pattern: Pattern {
            subject: Some("*gnp".parse().expect("a pattern")),
            client: Some("192.0.2.0/24".parse().expect("a network")),
            ..Pattern::default()
        },
        origin: Maker::Person {
            who: "rita".to_owned(),
            note: "ticket 17\n\u{9b}31mred".to_owned(),
        },
        made: ago(86_400),
        expires: Some(ago(60)),
        dry_run: true,
        hits: 1,
        samples: vec![id(MALICIOUS)],
        ..learned()
    }
}

/// What the relay did by itself, the oldest first.
fn happened() -> Vec<Incident> {
    let engine = |replica: Option<&str>| Subject::Engine {
        name: "clamd".to_owned(),
        replica: replica.map(str::to_owned),
    };
    let gone = "01KAJ0000000000000000GN001";
    let opened = Incident::new(
        Kind::BreakerOpened,
        engine(Some("127.0.0.1:3310")),
        "12 of 20 scans in 10 s failed",
    );
    let strike = Incident::new(
        Kind::Strike,
        Subject::Interceptor("pat\u{1b}[31m".to_owned()),
        "\u{9b}2J invoice\u{202e}fdp.exe ran into its timeout\nERROR forged",
    );
    let closed = Incident::new(
        Kind::BreakerClosed,
        engine(Some("127.0.0.1:3310")),
        "2 probes passed",
    );
    let id = |text: &str| text.parse().expect("an id");
    vec![
        Incident {
            id: id(OPENED),
            at: ago(3 * 86_400),
            ..opened
                .with("failed", 12)
                .with("asked", 20)
                .with("slowest", "5.0 s")
                .with("samples", format!("{UNDETERMINED}, {gone}"))
        },
        Incident {
            id: id(STRIKE),
            at: ago(3600),
            ..strike
                .with("attachment", "\u{1b}[2Jname")
                .about(MALICIOUS.parse().expect("an id"))
        },
        Incident {
            id: id("01KAJ000000000000000BC0001"),
            at: ago(60),
            ..closed
        },
    ]
}

/// The mail that the outage of the engine touched.
fn touched() -> Vec<Touch> {
    let touch = |id: &str, outcome, delay, subject: &str| Touch {
        message: id.parse().expect("an id"),
        outcome,
        at: ago(3 * 86_400 - 900),
        received: ago(3 * 86_400 - 60),
        delay: Duration::from_secs(delay),
        sender: "<news@list.example>".to_owned(),
        recipients: vec!["jo@b.example".to_owned(), "al@b.example".to_owned()],
        recipients_total: 12,
        subject: subject.to_owned(),
    };
    let late = TouchOutcome::Delayed;
    vec![
        touch(DELIVERED, late, 840, "Minutes of the meeting"),
        touch(
            UNDETERMINED,
            TouchOutcome::Held,
            0,
            "A rather long subject that does not fit 你好",
        ),
        touch(
            "01KAJ0000000000000000TC001",
            TouchOutcome::Passed,
            0,
            "plain",
        ),
        Touch {
            sender: "<\"a`|b\"@evil.example>".to_owned(),
            recipients: vec!["<img src=x onerror=alert(1)>@b.example".to_owned()],
            recipients_total: 1,
            ..touch("01KAJ0000000000000000TC002", late, 95, HOSTILE_SUBJECT)
        },
    ]
}

/// A subject that is Markdown, HTML and control characters.
const HOSTILE_SUBJECT: &str = "``` | x |\n\n# Owned <script>alert(1)</script> [click](javascript:x) ![p](http://evil.example/p.png) \u{1b}[31m";

fn path_of_incidents(settings: &Settings) -> PathBuf {
    settings.path.join(incidents::FILE_NAME)
}

/// Adds an incident as earlier versions wrote it.
fn earlier(path: &Path) {
    let db = rusqlite::Connection::open(path).expect("opens");
    let incident = Incident {
        id: EARLIER.parse().expect("an id"),
        at: ago(20 * 86_400),
        ..Incident::new(
            Kind::NextHopDead,
            Subject::NextHop("exchange".to_owned()),
            "next hop exchange does not work",
        )
    };
    let json = serde_json::to_string(&incident).expect("json");
    assert!(!json.contains("story"));
    db.execute(
        "INSERT INTO entry (message, at, entry) VALUES ('', ?1, ?2)",
        (incident.at.as_second(), json),
    )
    .expect("writes");
}

fn tell(history: &Arc<History>, record: &Record) {
    history.record(told(record));
}

fn told(record: &Record) -> HistoryEntry {
    let envelope = &record.envelope;
    let entry = |at, event: &'static str, detail: &str| HistoryEntry {
        at,
        message: record.message,
        part_of: None,
        event: event.into(),
        sender: envelope.reverse_path.clone(),
        recipients: envelope
            .recipients
            .iter()
            .map(|r| r.mailbox.clone())
            .collect(),
        basis: None,
        client: envelope.origin.client,
        listener: envelope.origin.listener.clone(),
        size: record.size,
        decision: None,
        reports: Vec::new(),
        subject: record.subject.clone(),
        attachments: vec!["invoice.pdf\u{202e}exe".to_owned()],
        detail: detail.to_owned(),
    };
    let mut decided = match record.lane {
        Lane::Held => entry(record.received_at, "held", &record.status),
        _ => entry(
            record.received_at,
            "deferred",
            "mail.example: 451 4.3.0 try\u{9b}2J later",
        ),
    };
    decided.decision = record.decision.clone();
    decided.reports = record.reports.clone();
    decided.basis = record.decision.is_some().then(Basis::default);
    decided
}

fn id(text: &str) -> MessageId {
    text.parse().expect("an id")
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds).expect("a time")
}

fn envelope(sender: &str, recipients: &[&str]) -> Envelope {
    let mailbox = |text: &&str| Mailbox::parse(text).expect("an address");
    Envelope {
        reverse_path: match sender {
            "" => ReversePath::NULL,
            sender => mailbox(&sender).into(),
        },
        recipients: recipients.iter().map(|text| mailbox(text).into()).collect(),
        body: BodyKind::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin {
            client: [192, 0, 2, 7].into(),
            helo: "client.example".to_owned(),
            protocol: "ESMTPS".to_owned(),
            tls: Some("TLSv1.3 TLS_AES_256_GCM_SHA384".to_owned()),
            ..Origin::local("smtp")
        },
    }
}

fn report(engine: &str, class: EngineClass, answer: Answer) -> Report {
    Report {
        attempts: 1,
        elapsed: Duration::from_millis(12),
        ..Report::unasked(engine.into(), class, answer)
    }
}

fn decision(verdict: Verdict, disposition: Disposition, rule: &str, reason: &str) -> Decision {
    Decision {
        verdict,
        disposition,
        rule: rule.to_owned(),
        reason: reason.to_owned(),
        score: 0.0,
        tag: false,
        missing: Vec::new(),
        config: "0123456789ab".into(),
    }
}

fn record(name: &str, lane: Lane, envelope: Envelope, age: i64, content: &str) -> Record {
    Record {
        id: id(name),
        message: id(name),
        lane,
        envelope,
        trace: "Received: by relay.example\r\n".into(),
        size: content.len() as u64,
        sha256: Sha256::digest(content)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect(),
        subject: String::new(),
        received_at: ago(age),
        due_at: ago(age),
        expires_at: ago(age - 30 * 86_400),
        attempts: 0,
        spent: Duration::from_millis(12),
        decision: None,
        reports: Vec::new(),
        status: String::new(),
        released: false,
        cause: None,
        reputation: None,
        notification: None,
        instead_of: Vec::new(),
        late_for: Vec::new(),
        hung: false,
        timeouts: 0,
        next_hop: "".into(),
    }
}

fn malicious() -> (Record, String) {
    let content = "From: =?utf-8?q?Mall=C3=B3ry=1B[31m?= <mallory@evil.example>\r\n\
        To: bob@ours.example\r\nSubject: Invoice\u{1b}]0;owned\u{7} =?utf-8?B?4oCuZ25w?=\r\n\
        Date: Fri, 20 Nov 2026 11:00:00 +0000\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\
        Content-Type: text/plain; charset=utf-8\r\n\r\nPlease\tpay \u{202e}won\u{9b}31m\r\nor else.\r\n--b\r\n\
        Content-Type: application/pdf; name=\"invoice\u{202e}fdp.exe\"\r\n\
        Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\nTVqQAAMAAAAEAAAA\r\n--b--\r\n";
    let to = envelope(
        "mallory@evil.example",
        &["bob@ours.example", "alice@ours.example"],
    );
    let mut record = record(MALICIOUS, Lane::Held, to, 3600, content);
    record.subject = "Invoice\u{1b}]0;owned\u{7} \u{202e}gnp".to_owned();
    record.decision = Some(decision(
        Verdict::Malicious,
        Disposition::Quarantine,
        "policy.malware",
        "clamd found Win.Test.EICAR_HDB-1",
    ));
    let eicar = Finding::new(FindingKind::Malware, "Win.Test.EICAR_HDB-1", 10.0);
    let mut clamd = report(
        "clamd",
        EngineClass::Av,
        Answer::Answered(vec![eicar.with_detail("in invoice\u{202e}fdp.exe")]),
    );
    clamd.replica = Some("127.0.0.1:3310".to_owned());
    clamd.signatures = Some("27824".to_owned());
    let attachment = report(
        "attachment",
        EngineClass::Content,
        Answer::Answered(Vec::new()),
    );
    record.reports = vec![clamd, attachment];
    record.status = "clamd found Win.Test.EICAR_HDB-1".to_owned();
    (record, content.to_owned())
}

fn undetermined() -> (Record, String) {
    let content = format!("From: news@list.example\r\n\r\n{}", "large\r\n".repeat(400));
    let to = envelope("news@list.example", &["bob@ours.example"]);
    let mut record = record(UNDETERMINED, Lane::Held, to, 3 * 86_400, &content);
    record.subject =
        "A rather long subject that does not fit into a narrow terminal 你好".to_owned();
    let mut held = decision(
        Verdict::Undetermined,
        Disposition::Quarantine,
        "coverage.av",
        "no av engine answered: clamd (timeout)",
    );
    held.missing = vec![("clamd".into(), Reason::Timeout)];
    record.decision = Some(held);
    let mut clamd = report(
        "clamd",
        EngineClass::Av,
        Answer::none(Reason::Timeout, "after 5 s"),
    );
    clamd.attempts = 2;
    record.reports = vec![clamd];
    record.cause = Some(Cause::Engine("clamd".to_owned()));
    (record, content)
}

fn split() -> (Record, String) {
    let content = "From: dave@partner.example\r\nSubject: Plans\r\n\r\nSee you.\r\n";
    let to = envelope("dave@partner.example", &["carol@ours.example"]);
    let mut record = record(SPLIT, Lane::Held, to, 7200, content);
    record.message = id(WHOLE);
    // As earlier versions stored it.
    record.subject = "=?utf-8?q?Pl=C3=A4ne?=".to_owned();
    let mut held = decision(
        Verdict::Clean,
        Disposition::Quarantine,
        "executives",
        "rule executives",
    );
    held.score = 1.5;
    record.decision = Some(held);
    record.cause = Some(Cause::Interceptor(LEARNED.to_owned()));
    (record, content.to_owned())
}

fn delivered() -> (Record, String) {
    let content = "From: eve@ours.example\r\nSubject: Sooner\r\n\r\nNow.\r\n";
    let to = envelope("eve@ours.example", &["frank@other.example"]);
    let mut record = record(DELIVERED, Lane::Rescan, to, 300, content);
    record.cause = Some(Cause::Engine("clamd".to_owned()));
    record.status = "delivered without clamd (timeout)".to_owned();
    (record, content.to_owned())
}

fn waiting() -> (Record, String) {
    let content = "From: eve@ours.example\r\nSubject: Later\r\n\r\nSoon.\r\n";
    let to = envelope("", &["frank@other.example"]);
    let mut record = record(WAITING, Lane::Delivery, to, 600, content);
    record.subject = "Later".to_owned();
    record.due_at = ago(-120);
    record.attempts = 3;
    record.status = "mail.example: 451 4.3.0 try\u{9b}2J later".to_owned();
    record.decision = Some(decision(
        Verdict::Clean,
        Disposition::Deliver,
        "policy.clean",
        "nothing was found",
    ));
    (record, content.to_owned())
}
