//! Scripted engines behind the real guard, on paused time.

mod doubt;
mod drains;
mod reloads;
mod replicas;
mod sharing;
mod signatures;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;

use futures_util::future::join_all;

use super::*;
use crate::incident::Kind;
use crate::message::{Identity, Mailbox, Message, Rights, envelope::Origin};
use crate::verdict::{Answer, Finding, FindingKind, Reason, Reused, Same};
use engine::{Engine, EngineAnswer, ScanError};

/// A request to scan `content` within `allowance`.
pub(super) fn request(content: impl Into<bytes::Bytes>, allowance: Duration) -> ScanRequest {
    let mailbox = |text| Mailbox::parse(text).expect("mailbox");
    ScanRequest {
        id: MessageId::new(),
        envelope: Arc::new(Envelope {
            reverse_path: mailbox("sender@example.com").into(),
            recipients: vec![mailbox("recipient@example.org").into()],
            body: Default::default(),
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin::local("test"),
        }),
        content: Content::uncharged(content),
        deadline: Deadline::after(allowance),
        fingerprint: None,
        reputation: SenderReputation::Known,
        scan_reason: ScanReason::Fresh,
        timed_out_before: false,
        stand_ins: true,
    }
}

/// A sample for an engine without a guard.
pub(super) fn sample(content: impl Into<bytes::Bytes>) -> Sample {
    sampled(request(content, Duration::from_secs(60)))
}

/// A sample of this request, for an engine without a guard.
pub(super) fn sampled(request: ScanRequest) -> Sample {
    Sample::new(request, Scanner::of(Vec::new()).inspection())
}

/// What a scripted engine does when it is called.
#[derive(Debug, Clone)]
enum Act {
    Clean,
    Find(&'static str),
    /// Stops at its own limit.
    GiveUp,
    Fail(ScanError),
    After(Duration, Box<Act>),
    Hang,
    Panic,
    /// Blocks its thread until the test releases the lock. A correct engine never blocks its thread.
    Block(Arc<Mutex<()>>),
}

impl Act {
    fn after(milliseconds: u64, then: Act) -> Self {
        Self::After(Duration::from_millis(milliseconds), Box::new(then))
    }

    async fn play(self) -> Result<EngineAnswer, ScanError> {
        let found = |findings| Ok(EngineAnswer::new(Answer::Answered(findings)));
        match self {
            Self::Clean => found(Vec::new()),
            Self::GiveUp => Ok(EngineAnswer::new(Answer::none(Reason::LimitsReached, ""))),
            Self::Find(name) => {
                let kind = match name {
                    "Eicar" => FindingKind::Malware,
                    _ => FindingKind::Suspicious,
                };
                found(vec![Finding::new(kind, name, 10.0)])
            }
            Self::Fail(error) => Err(error),
            Self::After(pause, then) => {
                Deadline::after(pause).wait().await;
                Box::pin(then.play()).await
            }
            Self::Hang => std::future::pending().await,
            Self::Panic => panic!("scripted"),
            Self::Block(gate) => {
                drop(gate.lock().expect("the gate"));
                found(Vec::new())
            }
        }
    }
}

/// Plays its acts one after the other, repeats the last one, and counts calls.
#[derive(Debug, Default)]
struct Scripted {
    acts: Vec<Act>,
    calls: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine for Scripted {
    fn scan(self: Arc<Self>, _: Sample) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            let _running = Running(&self.running);
            let act = self.acts.get(call).or(self.acts.last());
            act.expect("an act").clone().play().await
        })
    }
}

/// Settings of an engine without problems.
pub(super) fn settings(name: &str) -> Settings {
    Settings {
        name: name.into(),
        class: EngineClass::Av,
        timeout: Duration::from_secs(5),
        limit: Duration::from_secs(150),
        slow: Duration::from_millis(500),
        wait: Duration::from_secs(1),
        probe: None,
        signature_age: None,
        attempts: 1,
        slots: 4,
        max_size: 1000,
        weight: 1.0,
        edits: Rights::None,
        guard: GuardSettings::default(),
        kind: engine::Kind::Rules {
            builtin: true,
            paths: Vec::new(),
        },
    }
}

fn scripted(acts: impl IntoIterator<Item = Act>, settings: Settings) -> (Arc<Scripted>, Guarded) {
    let engine = Arc::new(Scripted {
        acts: acts.into_iter().collect(),
        ..Scripted::default()
    });
    (
        engine.clone(),
        guard::guard(vec![engine], Arc::new(settings), None),
    )
}

fn one(act: Act) -> Guarded {
    scripted([act], settings("one")).1
}

const SECONDS_20: Duration = Duration::from_secs(20);

async fn scan(engines: Vec<Guarded>) -> Vec<Report> {
    Scanner::of(engines)
        .scan(request("Subject: x\r\n\r\nx", SECONDS_20))
        .await
}

/// Each engine gives exactly one report, in configured order, whatever the engine does. A panic is never a clean answer.
#[tokio::test(start_paused = true)]
async fn every_engine_has_exactly_one_report() {
    let garbage = ScanError::Garbage("?".to_owned());
    let acts = [
        ("slow", Act::after(3000, Act::Clean)),
        ("panics", Act::Panic),
        ("hangs", Act::Hang),
        ("finds", Act::Find("Odd")),
        ("garbage", Act::Fail(garbage)),
        ("late", Act::after(6000, Act::Clean)),
    ];
    let engines = acts.map(|(name, act)| scripted([act], settings(name)).1);
    let reports = scan(engines.into()).await;
    let seen: Vec<_> = reports
        .iter()
        .map(|r| (&*r.engine, r.missing(), r.findings().len(), r.attempts))
        .collect();
    assert_eq!(
        seen,
        [
            ("slow", None, 0, 1),
            ("panics", Some(Reason::Panicked), 0, 1),
            ("hangs", Some(Reason::Timeout), 0, 1),
            ("finds", None, 1, 1),
            ("garbage", Some(Reason::Garbage), 0, 1),
            ("late", Some(Reason::Timeout), 0, 1),
        ]
    );
    assert_eq!(reports[0].elapsed, Duration::from_secs(3));
    assert_eq!(reports[2].elapsed, Duration::from_secs(5), "its timeout");
}

/// Without engines the result is empty.
#[tokio::test(start_paused = true)]
async fn without_engines_there_are_no_reports() {
    assert_eq!(scan(Vec::new()).await, []);
}

/// The message's deadline limits every setting of an engine: attempts, pauses, timeouts. A scan that has begun goes on in its
/// slot until the engine's own limit.
#[tokio::test(start_paused = true)]
async fn no_caller_waits_past_the_deadline() {
    let mut patient = settings("patient");
    patient.timeout = Duration::from_secs(3600);
    patient.limit = Duration::from_secs(3600);
    patient.attempts = 1000;
    let broken = Act::Fail(ScanError::Unreachable("r".to_owned()));
    let (hanging, first) = scripted([Act::Hang], patient.clone());
    let (_, second) = scripted([Act::after(900, broken)], patient);
    let started = tokio::time::Instant::now();
    let reports = scan(vec![first.clone(), second]).await;
    assert_eq!(started.elapsed(), SECONDS_20);
    assert_eq!(reports[0].missing(), Some(Reason::Timeout));
    assert!(reports[1].missing().is_some());
    assert_eq!(hanging.running.load(Ordering::SeqCst), 1, "a zombie");
    Deadline::after(Duration::from_secs(3600)).wait().await;
    assert_eq!(hanging.running.load(Ordering::SeqCst), 0, "at its limit");
    let incidents = first.incidents();
    assert!(
        incidents
            .iter()
            .any(|incident| incident.kind == Kind::ScanLost),
        "{incidents:?}"
    );
}

/// A message whose budget is spent takes no time of an engine.
#[tokio::test(start_paused = true)]
async fn no_scan_begins_after_the_deadline() {
    let (engine, guarded) = scripted([Act::Clean], settings("one"));
    let late = request("x", Duration::ZERO);
    let reports = Scanner::of(vec![guarded]).scan(late).await;
    assert_eq!(reports[0].missing(), Some(Reason::BudgetSpent));
    assert_eq!(engine.calls.load(Ordering::SeqCst), 0);
}

/// The relay cannot stop an engine that blocks its thread, but no caller waits for the engine past the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_blocks_is_not_waited_for() {
    let gate = Arc::new(Mutex::new(()));
    let guarded = one(Act::Block(gate.clone()));
    // Another thread holds the lock while the engine runs, because a lock must not be held over an await.
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let (free, freed) = std::sync::mpsc::sync_channel::<()>(1);
    let holder = std::thread::spawn(move || {
        let _held = gate.lock().expect("the gate");
        tell.send(()).expect("told");
        let _ = freed.recv();
    });
    told.recv().expect("the gate is held");
    let short = request("x", Duration::from_millis(50));
    let reports = Scanner::of(vec![guarded]).scan(short).await;
    drop(free);
    holder.join().expect("holder");
    assert_eq!(reports[0].missing(), Some(Reason::Timeout));
}

/// Only transient failures are tried again. Attempts are counted, and end with the first answer.
#[tokio::test(start_paused = true)]
async fn transient_failures_are_tried_again() {
    let fail = Act::Fail(ScanError::Unreachable("refused".to_owned()));
    let thrice = Settings {
        attempts: 3,
        ..settings("one")
    };
    let acts = [fail.clone(), fail.clone(), Act::Find("Eicar")];
    let (_, guarded) = scripted(acts, thrice.clone());
    let reports = scan(vec![guarded]).await;
    assert_eq!((reports[0].findings().len(), reports[0].attempts), (1, 3));

    let (engine, guarded) = scripted([fail], thrice);
    let reports = scan(vec![guarded]).await;
    assert_eq!(reports[0].missing(), Some(Reason::Unreachable));
    assert_eq!(engine.calls.load(Ordering::SeqCst), 3);
}

/// After a timeout the engine still works on the message: another call would take another worker for the same message.
#[tokio::test(start_paused = true)]
async fn timeouts_and_panics_are_not_tried_again() {
    for act in [Act::Hang, Act::Panic] {
        let often = Settings {
            attempts: 5,
            ..settings("one")
        };
        let (engine, guarded) = scripted([act], often);
        let reports = scan(vec![guarded]).await;
        assert!(reports[0].missing().is_some());
        assert_eq!(engine.calls.load(Ordering::SeqCst), 1);
    }
}

/// A message that is too large waits for no slot and reaches no engine.
#[tokio::test(start_paused = true)]
async fn a_too_large_message_is_refused_without_a_wait() {
    let (engine, guarded) = scripted([Act::Hang], settings("one"));
    let reports = Scanner::of(vec![guarded])
        .scan(request(vec![b'x'; 1001], SECONDS_20))
        .await;
    assert_eq!(reports[0].missing(), Some(Reason::TooLarge));
    assert_eq!(reports[0].elapsed, Duration::ZERO);
    assert_eq!(engine.calls.load(Ordering::SeqCst), 0);
}

/// An engine has no more calls at once than slots. For a message that gets no slot in time, the report says so and the engine
/// is not called.
#[tokio::test(start_paused = true)]
async fn slots_bound_the_calls_and_waiting_ends() {
    let narrow = Settings {
        slots: 2,
        ..settings("one")
    };
    let (engine, guarded) = scripted([Act::after(700, Act::Clean)], narrow);
    let scanner = Scanner::of(vec![guarded]);
    let six = (0..6).map(|_| scanner.scan(request("x", Duration::from_secs(6))));
    let reports: Vec<Report> = join_all(six).await.into_iter().flatten().collect();
    let missing: Vec<_> = reports.iter().map(|r| (r.missing(), r.attempts)).collect();
    let (clean, busy) = ((None, 1), (Some(Reason::Busy), 0));
    assert_eq!(missing, [clean, clean, clean, clean, busy, busy]);
    assert_eq!(engine.most.load(Ordering::SeqCst), 2);
    assert_eq!(engine.calls.load(Ordering::SeqCst), 4);
}

/// A late answer is kept and used when the same message is scanned again. Meanwhile the message is not sent a second time
/// (I3).
#[tokio::test(start_paused = true)]
async fn a_late_answer_is_used() {
    let (engine, guarded) = scripted([Act::after(8000, Act::Find("Eicar"))], settings("one"));
    let scanner = Scanner::of(vec![guarded]);
    let asked = request("x", SECONDS_20);
    let first = scanner.scan(asked.clone()).await;
    assert_eq!(first[0].missing(), Some(Reason::Timeout));
    assert_eq!(first[0].elapsed, Duration::from_secs(5), "its timeout");
    let again = scanner.scan(asked.clone()).await;
    assert_eq!(again[0].missing(), Some(Reason::Parked));
    Deadline::after(Duration::from_secs(4)).wait().await;
    let reports = scanner.scan(asked).await;
    assert_eq!(reports[0].findings().len(), 1);
    assert_eq!(engine.calls.load(Ordering::SeqCst), 1, "one scan for all");
}

/// Law 4: if an engine gives up a scan long after the caller has left, the next pass does not scan the message again: it
/// takes the end of the scan as the second timeout. This holds for one pass. If the engine was at fault, the pass after that
/// scans the message.
#[tokio::test(start_paused = true)]
async fn a_scan_that_an_engine_gave_up_is_not_repeated_at_once() {
    let acts = [Act::after(8000, Act::GiveUp), Act::Clean];
    let (engine, guarded) = scripted(acts, settings("one"));
    let scanner = Scanner::of(vec![guarded]);
    let asked = request("x", SECONDS_20);
    let mut missing = Vec::new();
    for calls in [1, 1, 2] {
        let reports = scanner.scan(asked.clone()).await;
        missing.push(reports[0].missing());
        assert_eq!(engine.calls.load(Ordering::SeqCst), calls);
        Deadline::after(Duration::from_secs(4)).wait().await;
    }
    let timeout = Some(Reason::Timeout);
    assert_eq!(missing, [timeout, timeout, None]);
}

/// A request with the fingerprint of its content.
fn printed(content: &str) -> ScanRequest {
    let mut request = request(content.to_owned(), SECONDS_20);
    let message = Message {
        id: request.id,
        received_at: jiff::Timestamp::UNIX_EPOCH,
        envelope: request.envelope.clone(),
        trace: "".into(),
        content: request.content.clone(),
        times: None,
    };
    let inspection = mime::inspect(request.content.bytes(), mime::Limits::default());
    request.fingerprint = Some(Arc::new(Fingerprint::of(&message, &inspection)));
    request
}

/// Finds "bad-id" anywhere in the content, after `takes`. A scan of "stuck" never ends.
#[derive(Debug, Default)]
struct Reader {
    takes: Duration,
    asked: AtomicUsize,
}

impl Engine for Reader {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let has = |what: &[u8]| memchr::memmem::find(sample.content().bytes(), what).is_some();
        let act = match (has(b"bad-id"), has(b"stuck")) {
            (true, _) => Act::Find("Eicar"),
            (_, true) => Act::Hang,
            _ => Act::Clean,
        };
        Box::pin(Act::After(self.takes, Box::new(act)).play())
    }
}

const CONTENT: &str = "From: a@a.test\r\nSubject: x\r\n\r\nHello\r\n";

async fn until(mut what: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        Deadline::after(Duration::from_millis(100)).wait().await;
    }
    panic!("it never came to that");
}

/// A finding of malware decides, so the scan waits for the other engines only for [`WAIT_AFTER_MALWARE`].
#[tokio::test(start_paused = true)]
async fn a_finding_of_malware_ends_the_wait_for_the_others() {
    let quick = scripted([Act::Find("Eicar")], settings("quick")).1;
    let slow = scripted([Act::after(4000, Act::Clean)], settings("slow")).1;
    let began = Instant::now();
    let reports = scan(vec![slow, quick]).await;
    assert_eq!(began.elapsed(), WAIT_AFTER_MALWARE);
    assert_eq!(reports[0].missing(), Some(Reason::Unneeded));
    assert_eq!(reports[1].findings().len(), 1);
}

/// A caller that leaves does not take the slot along: the slot is free again when the call ends.
#[tokio::test(start_paused = true)]
async fn a_dropped_caller_keeps_no_slot() {
    let narrow = Settings {
        slots: 1,
        ..settings("one")
    };
    let (engine, guarded) = scripted([Act::after(800, Act::Clean)], narrow);
    let scanner = Scanner::of(vec![guarded]);
    let gone = Deadline::after(Duration::from_millis(500));
    let left = gone.run(scanner.scan(request("x", SECONDS_20))).await;
    assert!(left.is_err(), "the caller went away");
    assert_eq!(engine.running.load(Ordering::SeqCst), 1, "the call goes on");
    let reports = scanner.scan(request("x", SECONDS_20)).await;
    assert_eq!(reports[0].missing(), None);
    assert_eq!(
        reports[0].elapsed,
        Duration::from_millis(1100),
        "300 ms for the slot"
    );
}

/// All engines that cannot be built are reported together, each with its name.
#[test]
fn all_bad_engines_are_reported_at_once() {
    let mut none = settings("none");
    none.slots = 0;
    let mut nowhere = settings("nowhere");
    nowhere.kind = engine::Kind::Clamd {
        addresses: vec![engine::Address::Tcp("localhost".to_owned())],
        connect_timeout: Duration::from_secs(1),
    };
    let mut empty = settings("empty");
    empty.kind = engine::Kind::Rules {
        builtin: false,
        paths: Vec::new(),
    };
    let bad = Scanner::new(vec![none, settings("good"), nowhere, empty], None).expect_err("three");
    let texts: Vec<String> = bad.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "engine \"none\": slots must be at least 1",
            "engine \"nowhere\": address \"localhost\" has no port: write it as \"host:port\"",
            "engine \"empty\": builtin = false and no paths: set builtin = true, or name files in paths",
        ]
    );
}

/// Law 9: senders that are behind one mail server and in one domain, and send more than the engine can scan, delay no other
/// senders and no bounces.
#[tokio::test(start_paused = true)]
async fn senders_behind_one_mail_server_take_turns() {
    let patient = Settings {
        slots: 1,
        wait: Duration::from_secs(60),
        ..settings("one")
    };
    let (_, engine) = scripted([Act::after(100, Act::Clean)], patient);
    let scanner = Scanner::of(vec![engine]);
    let of = |number: usize, from: &str, to: &str| {
        let mailbox = |text| Mailbox::parse(text).expect("mailbox");
        let mut request = request(format!("{number}"), SECONDS_20);
        let envelope = Arc::make_mut(&mut request.envelope);
        envelope.reverse_path = match from {
            "" => Default::default(),
            from => mailbox(from).into(),
        };
        envelope.recipients = vec![mailbox(to).into()];
        request
    };
    for (greedy, modest) in [
        (("greedy@a.test", "x@b.test"), ("modest@c.test", "x@b.test")),
        (("greedy@a.test", "x@b.test"), ("", "modest@b.test")),
    ] {
        let mut asking = FuturesUnordered::new();
        let requests = (0..20).map(|number| of(number, greedy.0, greedy.1));
        for (number, request) in requests.chain([of(20, modest.0, modest.1)]).enumerate() {
            let scanner = scanner.clone();
            asking.push(async move {
                scanner.scan(request).await;
                number
            });
        }
        let mut ended = Vec::new();
        while let Some(number) = asking.next().await {
            ended.push(number);
        }
        let place = ended.iter().position(|number| *number == 20);
        assert!(place <= Some(1), "{modest:?} comes in place {place:?}");
    }
}
