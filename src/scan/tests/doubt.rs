//! Engines that cannot be believed, or are slow, or judge more than content: what their probes show, and whose answers count.

use super::*;

/// What an engine does with mail, and with each of a pair of probes.
#[derive(Debug)]
struct Probed {
    mail: Act,
    bad: Act,
    clean: Act,
    /// How long an answer about a probe takes.
    takes: Mutex<Duration>,
    asked: AtomicUsize,
    probes: AtomicUsize,
}

impl Probed {
    /// Passes its probes at once.
    fn well(mail: Act) -> Self {
        Self {
            mail,
            bad: Act::Find("Eicar"),
            clean: Act::Clean,
            takes: Mutex::default(),
            asked: AtomicUsize::new(0),
            probes: AtomicUsize::new(0),
        }
    }

    fn probes(&self) -> usize {
        self.probes.load(Ordering::SeqCst)
    }
}

impl Engine for Probed {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        let Some(probe) = sample.probe() else {
            self.asked.fetch_add(1, Ordering::SeqCst);
            return Box::pin(self.mail.clone().play());
        };
        self.probes.fetch_add(1, Ordering::SeqCst);
        let act = match probe {
            engine::Probe::Bad => &self.bad,
            engine::Probe::Clean => &self.clean,
        };
        let takes = *self.takes.lock().expect("a time");
        Box::pin(Act::After(takes, Box::new(act.clone())).play())
    }

    fn probes(&self) -> Option<engine::Probes> {
        Some(engine::Probes::malware())
    }
}

/// An engine behind its guard, with a pair of probes so often.
fn watched(engine: Probed, every: Duration) -> (Arc<Probed>, Guarded) {
    let engine = Arc::new(engine);
    let settings = Settings {
        probe: Some(every),
        ..settings("one")
    };
    let guarded = guard::guard(vec![engine.clone()], Arc::new(settings), None);
    guarded.watch();
    (engine, guarded)
}

const HOUR: Duration = Duration::from_secs(3600);
const ROUTINE: Duration = Duration::from_secs(10);

/// An engine that finds something in everything knows as little as one that finds nothing: it fails its probes and is taken out,
/// or a bad update would hold all mail.
#[tokio::test(start_paused = true)]
async fn an_engine_that_finds_something_in_what_is_clean_is_out() {
    let everything = Probed {
        clean: Act::Find("Eicar"),
        ..Probed::well(Act::Find("Eicar"))
    };
    let (_, guarded) = watched(everything, ROUTINE);
    let tested = guarded.test().await;
    let said = tested[0].1.as_ref().expect_err("it found something");
    assert!(said.contains("known-clean"), "{said}");
    until(|| guarded.is_out()).await;
    let health = guarded.health();
    assert_eq!(health.states(), "open (failing its probes)");
    assert!(guarded.doubted().is_some(), "what it said was made up");
}

/// An engine that is out for its slowness is not back while its probes are slow: each message would wait as long for it.
#[tokio::test(start_paused = true)]
async fn slow_probes_bring_no_mail_back() {
    let fail = Act::Fail(ScanError::Unreachable("refused".to_owned()));
    let (engine, guarded) = watched(Probed::well(fail), HOUR);
    until(|| engine.probes() == 2).await;
    // Longer than twice `slow`, shorter than `timeout`.
    *engine.takes.lock().expect("a time") = Duration::from_secs(2);
    let mut number = 0;
    while !guarded.is_out() {
        number += 1;
        guarded
            .scan(sample(format!("Subject: {number}\r\n\r\nx")))
            .await;
    }
    let before = engine.probes();
    until(|| {
        assert!(guarded.is_out(), "{}", guarded.health().states());
        engine.probes() >= before + 5
    })
    .await;
    *engine.takes.lock().expect("a time") = Duration::ZERO;
    until(|| !guarded.is_out()).await;
}

/// Where a scan hangs and nothing ends well nobody waits for the routine: a pair tells at once whether it is the message or the
/// engine.
#[tokio::test(start_paused = true)]
async fn a_scan_that_hangs_is_followed_by_probes_at_once() {
    let (engine, guarded) = watched(Probed::well(Act::Hang), HOUR);
    until(|| engine.probes() == 2).await;
    guarded.scan(sample("Subject: x\r\n\r\nx")).await;
    until(|| engine.probes() >= 4).await;
    assert!(!guarded.is_out(), "it is the message");
}

/// Answers clean to everything while it lies, also to known-bad probes.
#[derive(Debug, Default)]
struct Liar {
    lies: AtomicBool,
    /// Whether the engine is unreachable.
    is_gone: AtomicBool,
    asked: AtomicUsize,
}

impl Engine for Liar {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        let bytes = sample.content().bytes().clone();
        let is_bad = memchr::memmem::find(&bytes, b"EICAR").is_some();
        if bytes == "mail" {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        if self.is_gone.load(Ordering::SeqCst) {
            let refused = ScanError::Unreachable("refused".to_owned());
            return Box::pin(async { Err(refused) });
        }
        match is_bad && !self.lies.load(Ordering::SeqCst) {
            true => Box::pin(Act::Find("Eicar").play()),
            false => Box::pin(Act::Clean.play()),
        }
    }

    fn probes(&self) -> Option<engine::Probes> {
        Some(engine::Probes::malware())
    }
}

/// Probes show that an engine finds nothing any more. The relay doubts its answers since its last right answer, and uses none
/// of them again when the engine can be trusted again. The result is the same if the engine goes away before it could lie a
/// second time.
#[tokio::test(start_paused = true)]
async fn the_answers_of_a_liar_are_not_used_again() {
    for goes in [false, true] {
        let liar = Arc::new(Liar::default());
        let settings = Settings {
            probe: Some(Duration::from_secs(10)),
            ..settings("liar")
        };
        let guarded = guard::guard(vec![liar.clone()], Arc::new(settings), None);
        guarded.watch();
        let honest = Instant::now() + Duration::from_secs(15);
        until(|| Instant::now() >= honest).await;
        liar.lies.store(true, Ordering::SeqCst);
        let scanner = Scanner::of(vec![guarded.clone()]);
        let asked = request("mail", SECONDS_20);
        let before = scanner.scan(asked.clone()).await;
        assert_eq!(before[0].missing(), None, "it is believed still");
        until(|| !guarded.incidents().is_empty()).await;
        liar.is_gone.store(goes, Ordering::SeqCst);
        until(|| guarded.is_out()).await;
        let doubted = guarded.doubted().expect("its word is doubted");
        assert!(doubted < honest, "since its last right answer");
        assert_eq!(guarded.doubted(), None, "told once");
        liar.lies.store(false, Ordering::SeqCst);
        liar.is_gone.store(false, Ordering::SeqCst);
        until(|| !guarded.is_out()).await;
        let asked = ScanRequest {
            deadline: Deadline::after(SECONDS_20),
            ..asked
        };
        let after = scanner.scan(asked).await;
        assert_eq!(after[0].missing(), None);
        assert_eq!(liar.asked.load(Ordering::SeqCst), 2, "asked anew");
    }
}

/// From the first wrong answer to a probe to the next right one nothing that an engine says is used again, though one wrong answer
/// is not enough to take it out: it is asked anew each time, and anew when it can be believed.
#[tokio::test(start_paused = true)]
async fn what_is_said_between_a_lie_and_the_truth_is_not_used_again() {
    let liar = Arc::new(Liar::default());
    let settings = Settings {
        probe: Some(ROUTINE),
        ..settings("liar")
    };
    let guarded = guard::guard(vec![liar.clone()], Arc::new(settings), None);
    guarded.watch();
    let scanner = Scanner::of(vec![guarded.clone()]);
    let asked = request("mail", HOUR);
    let scan = async || {
        let reports = scanner.scan(asked.clone()).await;
        assert_eq!(reports[0].missing(), None);
        liar.asked.load(Ordering::SeqCst)
    };
    liar.lies.store(true, Ordering::SeqCst);
    until(|| !guarded.incidents().is_empty()).await;
    liar.lies.store(false, Ordering::SeqCst);
    assert_eq!((scan().await, scan().await), (1, 2));
    // The next pair is answered rightly: it is believed, and was never out.
    Deadline::after(2 * ROUTINE).wait().await;
    assert!(guarded.incidents().is_empty());
    assert_eq!(scan().await, 3, "not what it said before");
    assert_eq!(scan().await, 3, "what it says now is used again");
}

/// What an engine wants written into a message may be about its envelope: one that may do so is asked about each message, though
/// it gets nothing but the content.
#[tokio::test(start_paused = true)]
async fn who_may_edit_is_asked_about_each_message() {
    for (edits, calls) in [(Rights::None, 1), (Rights::Fields, 2)] {
        let settings = Settings {
            edits,
            ..settings("one")
        };
        let engine = Arc::new(Reader::default());
        let guarded = guard::guard(vec![engine.clone()], Arc::new(settings), None);
        let scanner = Scanner::of(vec![guarded]);
        for _ in 0..2 {
            scanner.scan(printed(CONTENT)).await;
        }
        assert_eq!(engine.asked.load(Ordering::SeqCst), calls, "{edits:?}");
    }
}

/// What an interceptor convicts while it is scanned is `suspect` for whoever waits for its scan: not `timeout`, which would be
/// tried again.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_scan_hears_of_its_conviction() {
    let (_, guarded) = scripted([Act::Hang], settings("one"));
    let scanner = Scanner::of(vec![guarded.clone()]);
    let asked = printed(CONTENT);
    let fingerprint = asked.fingerprint.clone().expect("a fingerprint");
    let scanning = tokio::spawn(async move { scanner.scan(asked).await });
    until(|| guarded.health().running == 1).await;
    let diversion = Diversion {
        id: "rule".into(),
        traits: fingerprint.exact.clone(),
        near: Box::new([]),
        messages: Box::new([]),
        act: crate::observation::DiversionAct::Hold,
        known: crate::observation::DiversionAct::Hold,
    };
    guarded.divert(Arc::new([diversion]));
    let reports = scanning.await.expect("no panic");
    assert_eq!(reports[0].missing(), Some(Reason::Suspect));
}
