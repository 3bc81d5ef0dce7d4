//! New signatures: what was said before they were known is not said again.

use super::*;

/// How an engine tells the version of its signatures while no scan of mail does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    /// It is here, and knows it.
    Here,
    /// It can be asked for that alone.
    Asked,
    /// Probes tell.
    Probed,
    /// Nobody does.
    Silent,
}

/// Finds something in all mail by its second signatures.
#[derive(Debug)]
struct Signed {
    how: How,
    takes: Duration,
    version: AtomicUsize,
    asked: AtomicUsize,
}

impl Signed {
    fn told(&self) -> String {
        self.version.load(Ordering::SeqCst).to_string()
    }
}

impl Engine for Signed {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        let is_found = match sample.probe() {
            Some(probe) => probe == engine::Probe::Bad,
            None => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                self.told() == "2"
            }
        };
        let act = match is_found {
            true => Act::Find("Eicar"),
            false => Act::Clean,
        };
        Box::pin(async move {
            let signatures = Some(self.told());
            let answer = Act::After(self.takes, Box::new(act)).play().await?;
            Ok(EngineAnswer {
                signatures,
                ..answer
            })
        })
    }

    fn replica(&self) -> Option<&str> {
        (self.how != How::Here).then_some("there")
    }

    fn probes(&self) -> Option<engine::Probes> {
        (self.how == How::Probed).then(engine::Probes::malware)
    }

    fn signatures(&self) -> Option<String> {
        (self.how == How::Here).then(|| self.told())
    }

    fn ask_signatures(self: Arc<Self>) -> Option<BoxFuture<'static, Option<String>>> {
        (self.how == How::Asked).then(|| Box::pin(async move { Some(self.told()) }) as _)
    }
}

fn signed(how: How, takes: Duration) -> (Arc<Signed>, Scanner) {
    let engine = Arc::new(Signed {
        how,
        takes,
        version: AtomicUsize::new(1),
        asked: AtomicUsize::new(0),
    });
    let settings = Settings {
        probe: Some(Duration::from_secs(60)),
        ..settings("one")
    };
    let guarded = guard::guard(vec![engine.clone()], Arc::new(settings), None);
    guarded.watch();
    (engine, Scanner::of(vec![guarded]))
}

/// Identical mail is judged by new signatures soon after the engine has them, though no scan of other mail tells of them:
/// at once where they are in the process, else when they are asked for or a probe tells; and where nobody does, an
/// absence of findings is not believed for long.
#[tokio::test(start_paused = true)]
async fn new_signatures_judge_what_was_clean_before() {
    for (how, within) in [
        (How::Here, 0),
        (How::Asked, 15),
        (How::Probed, 70),
        (How::Silent, 300),
    ] {
        let (engine, scanner) = signed(how, Duration::ZERO);
        let found = async || {
            let reports = scanner.scan(printed(CONTENT)).await;
            assert_eq!(reports[0].missing(), None);
            !reports[0].findings().is_empty()
        };
        assert!(!found().await);
        Deadline::after(Duration::from_secs(20)).wait().await;
        assert!(!found().await);
        assert_eq!(engine.asked.load(Ordering::SeqCst), 1, "{how:?}: reused");
        engine.version.store(2, Ordering::SeqCst);
        Deadline::after(Duration::from_secs(within)).wait().await;
        assert!(found().await, "{how:?}");
        assert!(found().await, "{how:?}");
        // What began after the news is kept.
        let scans = 2 + usize::from(how == How::Silent);
        assert_eq!(engine.asked.load(Ordering::SeqCst), scans, "{how:?}");
    }
}

/// A scan that began by old signatures is joined by nobody who comes after the news, and its answer is not used again.
#[tokio::test(start_paused = true)]
async fn a_scan_by_old_signatures_is_not_shared() {
    let (engine, scanner) = signed(How::Here, Duration::from_millis(300));
    let begin = || {
        let scanner = scanner.clone();
        let asked = tokio::spawn(async move { scanner.scan(printed(CONTENT)).await });
        async move { asked.await.expect("no panic")[0].findings().len() }
    };
    let (old, joined) = (begin(), begin());
    until(|| engine.asked.load(Ordering::SeqCst) == 1).await;
    engine.version.store(2, Ordering::SeqCst);
    let (new, other) = (begin(), begin());
    assert_eq!((old.await, joined.await), (0, 0));
    assert_eq!((new.await, other.await), (1, 1));
    assert_eq!(begin().await, 1);
    assert_eq!(engine.asked.load(Ordering::SeqCst), 2, "one by each");
}
