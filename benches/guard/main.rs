//! What the guard costs in calm weather: engines asked through it, and the same engines asked directly, in one run.
//!
//! ```text
//! cargo bench --bench guard
//! ```

#[path = "../relay/process.rs"]
#[allow(dead_code, reason = "this file is a part of three benchmarks")]
mod process;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use rand::RngExt as _;
use spillway::deadline::Deadline;
use spillway::intercept::{self, EngineState, Interception};
use spillway::measure::SizeClass;
use spillway::message::fingerprint::Aspect;
use spillway::message::mime::{self, Limits};
use spillway::message::pattern::Facts;
use spillway::message::{
    BodyKind, ComparedAddress, Content, Envelope, Fingerprint, Identity, Mailbox, Message,
    MessageId, Origin, SenderReputation, Trait,
};
use spillway::observation::{Evidence, Observed, ScanReason};
use spillway::scan::engine::{Engine, EngineAnswer, Kind, Sample, ScanError};
use spillway::scan::guard::guard;
use spillway::scan::{Guarded, ScanRequest, Settings};
use spillway::verdict::{Answer, EngineClass};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Scans of one measurement of processor time.
const SCANS: u32 = 200_000;
/// Of one measurement of latency, and how many a second.
const TIMED: u32 = 2_000;
const RATE: u32 = 200;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let per_scan = runtime.block_on(scans());
    let (once, each) = learning();
    runtime.block_on(latency());
    println!("fingerprint and inspection of a message, once for all engines:");
    for kib in [4, 40, 400] {
        let (inspection, fingerprint) = content(kib << 10);
        println!(
            "  {kib:>3} KiB: inspection {inspection:.0} µs, fingerprint {fingerprint:.0} µs; \
             with three engines {:.0} µs of the guard per message and engine",
            per_scan + each + (once + fingerprint) / 3.0
        );
    }
}

/// An engine that answers after so long, and costs nothing.
#[derive(Debug)]
struct Stub(Duration);

impl Engine for Stub {
    fn scan(self: Arc<Self>, _: Sample) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        async move {
            match self.0 {
                Duration::ZERO => tokio::task::yield_now().await,
                time => Deadline::after(time).wait().await,
            }
            Ok(EngineAnswer::new(Answer::Answered(Vec::new())))
        }
        .boxed()
    }
}

fn guarded(engine: Arc<Stub>) -> Guarded {
    let settings = Settings {
        name: "stub".into(),
        class: EngineClass::Av,
        timeout: Duration::from_secs(5),
        limit: Duration::from_secs(150),
        slow: Duration::from_millis(500),
        wait: Duration::from_secs(1),
        probe: None,
        signature_age: None,
        attempts: 2,
        slots: 12,
        guard: spillway::scan::GuardSettings::default(),
        max_size: 1 << 20,
        weight: 1.0,
        edits: spillway::message::Rights::None,
        kind: Kind::Rules {
            builtin: true,
            paths: Vec::new(),
        },
    };
    guard(vec![engine], Arc::new(settings), None)
}

/// A sample that is like nothing else.
fn sample(envelope: &Arc<Envelope>, content: &Content, workers: &Arc<Semaphore>) -> Sample {
    let request = ScanRequest {
        id: MessageId::new(),
        envelope: envelope.clone(),
        content: content.clone(),
        deadline: Deadline::after(Duration::from_secs(60)),
        fingerprint: Some(Arc::new(fingerprint())),
        reputation: SenderReputation::Known,
        scan_reason: ScanReason::Fresh,
        timed_out_before: false,
        stand_ins: true,
    };
    Sample::new(
        request,
        mime::SharedInspection::new(Limits::default(), workers.clone()),
    )
}

/// As many traits as a letter with an attachment has, all of them its own.
fn fingerprint() -> Fingerprint {
    let mut rng = rand::rng();
    let mut of = |aspect, count: usize| -> Vec<Trait> {
        let one = |_| Trait {
            aspect,
            value: rng.random(),
        };
        (0..count).map(one).collect()
    };
    let exact = [of(Aspect::Attachment, 1), of(Aspect::Text, 1)].concat();
    let broad = [of(Aspect::Near, 16), of(Aspect::Subject, 7)].concat();
    Fingerprint {
        identity: Identity(rng.random()),
        exact: exact.into(),
        broad: broad.into(),
        attachments: Box::new([]),
    }
}

fn envelope() -> Envelope {
    let mailbox = |text| Mailbox::parse(text).expect("a mailbox");
    Envelope {
        reverse_path: mailbox("sender@company.example").into(),
        recipients: vec![mailbox("user@here.example").into()],
        body: BodyKind::default(),
        smtputf8: false,
        ret: None,
        envid: None,
        origin: Origin::local("bench"),
    }
}

/// Seconds of processor time of this program so far.
fn spent() -> f64 {
    process::cpu_of(std::process::id()).0
}

/// Microseconds of processor time that the guard adds to a scan.
async fn scans() -> f64 {
    let engine = Arc::new(Stub(Duration::ZERO));
    let guarded = guarded(engine.clone());
    let mut per_scan = [0.0; 2];
    for (through, micros) in [false, true].into_iter().zip(&mut per_scan) {
        let before = spent();
        let callers = (0..8).map(|_| {
            let (engine, guarded) = (engine.clone(), guarded.clone());
            tokio::spawn(async move {
                let (envelope, workers) = (Arc::new(envelope()), Arc::new(Semaphore::new(1)));
                let content = Content::uncharged(&b"Subject: x\r\n\r\nx\r\n"[..]);
                for at in 0..SCANS / 8 {
                    let sample = sample(&envelope, &content, &workers);
                    if through {
                        black_box(guarded.scan(sample).await);
                    } else {
                        let _ = black_box(engine.clone().scan(sample).await);
                    }
                    if at % 64 == 0 {
                        // As the path does: evidence is fetched all the time.
                        black_box(guarded.evidence());
                    }
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.expect("no panic");
        }
        *micros = (spent() - before) * 1e6 / f64::from(SCANS);
    }
    let [directly, through] = per_scan;
    let adds = through - directly;
    println!(
        "scan: {directly:.1} µs of processor time directly (sample and fingerprint of the bench), {through:.1} µs through the guard: \
         it adds {adds:.1} µs per message and engine (<= 50)"
    );
    adds
}

/// Microseconds of what the interceptors learn: once for a message, and for each engine.
fn learning() -> (f64, f64) {
    let now = Instant::now();
    let mut interception = Interception::new(now, intercept::Settings::default());
    let envelope = envelope();
    let prints: Vec<Arc<Fingerprint>> = (0..50_000).map(|_| Arc::new(fingerprint())).collect();
    let name: Arc<str> = "stub".into();
    let states = [EngineState {
        name: "stub",
        is_out: false,
        covered: true,
        slots: 12,
    }];
    let before = spent();
    for (at, print) in prints.iter().enumerate() {
        let facts = Facts {
            envelope: &envelope,
            sender: &ComparedAddress::of_sender(&envelope.reverse_path),
            subject: "Your invoice",
            fingerprint: print,
        };
        let now = now + Duration::from_millis(25) * at as u32;
        let id = MessageId::new();
        let exemption = black_box(interception.judge(now, id, print)).exemption;
        black_box(interception.arrived(now, id, &facts, print, exemption));
        black_box(interception.reputation(print));
        interception.scanned_well(now, print);
        if at % 10 == 0 {
            black_box(interception.tick(now, &states));
        }
    }
    let once = (spent() - before) * 1e6 / prints.len() as f64;
    let before = spent();
    for (at, print) in prints.iter().enumerate() {
        let now = now + Duration::from_millis(25) * (prints.len() + at) as u32;
        let evidence = Evidence {
            message: MessageId::new(),
            fingerprint: print.clone(),
            reputation: SenderReputation::Unknown,
            scan_reason: ScanReason::Fresh,
            size: SizeClass::Tiny,
            arrived: now,
            started: now,
            at: now,
            what: Observed::Fast { found: false },
        };
        black_box(interception.observe(now, &name, &evidence));
    }
    let each = (spent() - before) * 1e6 / prints.len() as f64;
    println!("interceptors: {once:.1} µs per message, {each:.1} µs per message and engine");
    (once, each)
}

/// What the guard adds to the time of an answer, at a rate at which nothing waits.
async fn latency() {
    let engine = Arc::new(Stub(Duration::from_millis(5)));
    let guarded = guarded(engine.clone());
    let mut of = [0.0; 2];
    let mut histograms = [false, true].map(|_| Histogram::<u64>::new(3).expect("a histogram"));
    // In turn, so that whatever else the machine does meets both.
    for turn in 0..10 {
        let through = turn % 2 == 1;
        let callers = (0..TIMED / 5).map(|at| {
            let (engine, guarded) = (engine.clone(), guarded.clone());
            let due = Deadline::after(Duration::from_secs(1) / RATE * at);
            tokio::spawn(async move {
                due.wait().await;
                let (envelope, workers) = (Arc::new(envelope()), Arc::new(Semaphore::new(1)));
                let content = Content::uncharged(&b"Subject: x\r\n\r\nx\r\n"[..]);
                let sample = sample(&envelope, &content, &workers);
                let began = Instant::now();
                if through {
                    black_box(guarded.scan(sample).await);
                } else {
                    let _ = black_box(engine.scan(sample).await);
                }
                began.elapsed()
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            let took = caller.await.expect("no panic").as_micros() as u64;
            let histogram = &mut histograms[usize::from(through)];
            histogram.record(took).expect("it grows");
        }
    }
    for (histogram, p99) in histograms.iter().zip(&mut of) {
        *p99 = histogram.value_at_quantile(0.99) as f64 / 1000.0;
    }
    let [directly, through] = of;
    println!(
        "latency: {RATE}/s, an engine of 5 ms: p99 {directly:.2} ms directly, {through:.2} ms through the guard: {:+.2} ms (<= 1)",
        through - directly
    );
}

/// Microseconds of processor time of the inspection and of the fingerprint of a letter of so many octets.
fn content(octets: usize) -> (f64, f64) {
    let mut rng = rand::rng();
    let words: String = (0..200)
        .map(|_| format!("word{} ", rng.random::<u16>()))
        .collect();
    // Random characters in lines: what base64 of random octets looks like.
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = String::with_capacity(octets);
    for _ in 0..octets / 78 {
        body.extend((0..76).map(|_| char::from(LETTERS[rng.random_range(0..64)])));
        body += "\r\n";
    }
    let text = format!(
        "From: a@company.example\r\nTo: b@here.example\r\nSubject: Your invoice\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=\"x\"\r\n\r\n--x\r\nContent-Type: text/plain\r\n\r\n{words}\r\n--x\r\n\
         Content-Type: application/pdf; name=\"a.pdf\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{body}\r\n--x--\r\n"
    );
    let message = Message {
        id: MessageId::new(),
        received_at: jiff::Timestamp::now(),
        envelope: Arc::new(envelope()),
        trace: "".into(),
        content: Content::uncharged(text),
        times: None,
    };
    let rounds = (40_000_000 / octets).max(50) as u32;
    let before = spent();
    for _ in 0..rounds {
        black_box(mime::inspect(message.content.bytes(), Limits::default()));
    }
    let inspection = (spent() - before) * 1e6 / f64::from(rounds);
    let before = spent();
    for _ in 0..rounds {
        // Hashes of parts are made on the first look and kept, so a fresh inspection for each.
        let inspected = mime::inspect(message.content.bytes(), Limits::default());
        black_box(Fingerprint::of(&message, &inspected));
    }
    let both = (spent() - before) * 1e6 / f64::from(rounds);
    (inspection, both - inspection)
}
