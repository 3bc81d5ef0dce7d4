//! Scans that an engine took along as it went away, and does not end after its return.

use super::*;

/// Ends no scan that begins while it is away, not even later, and answers every other scan at once, probes as well.
#[derive(Debug, Default)]
struct Absent {
    is_away: AtomicBool,
    /// Scans of the content [`LOST`].
    asked: AtomicUsize,
}

impl Engine for Absent {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        let is_lost = sample.probe().is_none() && sample.content().bytes().ends_with(LOST);
        self.asked.fetch_add(usize::from(is_lost), Ordering::SeqCst);
        let act = match (self.is_away.load(Ordering::SeqCst), sample.probe()) {
            (true, _) => Act::Hang,
            (false, Some(engine::Probe::Bad)) => Act::Find("Eicar"),
            (false, _) => Act::Clean,
        };
        Box::pin(act.play())
    }

    fn probes(&self) -> Option<engine::Probes> {
        Some(engine::Probes::malware())
    }
}

/// A message of a sender that sends no other.
fn other(number: usize) -> ScanRequest {
    let mut request = request(format!("{number}"), SECONDS_20);
    let sender = Mailbox::parse(&format!("{number}@other.test")).expect("mailbox");
    Arc::make_mut(&mut request.envelope).reverse_path = sender.into();
    request
}

const LOST: &[u8] = b"was in the engine";

/// Scans a message while the engine is away, brings the engine back, and scans the message again until the second scan has an
/// answer. Returns how long the engine was back by then, and the number of scans of the message.
async fn scanned_again_after(reputation: SenderReputation) -> (Duration, usize) {
    let engine = Arc::new(Absent::default());
    let settings = Settings {
        probe: Some(Duration::from_secs(10)),
        slots: 12,
        ..settings("one")
    };
    let guarded = guard::guard(vec![engine.clone()], Arc::new(settings), None);
    guarded.watch();
    let scanner = Scanner::of(vec![guarded.clone()]);
    let asked = ScanRequest {
        reputation,
        ..request(LOST, SECONDS_20)
    };
    engine.is_away.store(true, Ordering::SeqCst);
    scanner.scan(asked.clone()).await;
    let mut number = 0;
    while !guarded.is_out() {
        number += 1;
        scanner.scan(other(number)).await;
    }
    engine.is_away.store(false, Ordering::SeqCst);
    until(|| !guarded.is_out()).await;
    let back = Instant::now();
    loop {
        // Other mail, whose answers end the ramp.
        number += 1;
        let other = scanner.scan(other(number)).await;
        assert_eq!(other[0].missing(), None, "other mail is scanned");
        let again = ScanRequest {
            deadline: Deadline::after(SECONDS_20),
            scan_reason: ScanReason::Again,
            ..asked.clone()
        };
        if scanner.scan(again).await[0].missing().is_none() {
            return (back.elapsed(), engine.asked.load(Ordering::SeqCst));
        }
        Deadline::after(Duration::from_secs(1)).wait().await;
    }
}

/// P6: a known sender's message that was in the engine as it went away does not wait for the engine's limit, if the engine does
/// not end the scan within `timeout` of its return. An unknown sender's message may have hung the engine, so it waits (I3).
#[tokio::test(start_paused = true)]
async fn a_message_that_the_engine_lost_is_scanned_again_soon() {
    let (known, scans) = scanned_again_after(SenderReputation::Known).await;
    assert_eq!(scans, 2, "once before the return and once after it");
    assert!(known < 3 * settings("one").timeout, "{known:?}");
    let (unknown, scans) = scanned_again_after(SenderReputation::Unknown).await;
    assert_eq!(scans, 2);
    assert!(unknown > settings("one").limit / 2, "{unknown:?}");
}
