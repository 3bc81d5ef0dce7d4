//! The story of an engine that goes away and comes back, on the whole path: one story, and every message in it.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::deadline::set_wall_clock;
use crate::incident::{Kind as IncidentKind, StoryState, Subject, TouchOutcome};
use crate::store::incidents;

/// How long mail is deferred before a reviewer gets it.
const DEFERRAL: Duration = Duration::from_secs(600);

/// Answers as clamd does; while it is down, each connection breaks off.
async fn serve(listener: TcpListener, is_down: Arc<AtomicBool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let is_down = is_down.clone();
        tokio::spawn(async move {
            let mut heard = Vec::new();
            while !is_down.load(Ordering::Relaxed)
                && stream.read_buf(&mut heard).await.is_ok_and(|n| n > 0)
            {
                let is_bad = memchr::memmem::find(&heard, b"EICAR-STANDARD").is_some();
                let answer = match is_bad {
                    true => &b"stream: Eicar FOUND\0"[..],
                    false => b"stream: OK\0",
                };
                if heard.ends_with(&[0; 4]) && !is_down.load(Ordering::Relaxed) {
                    let _ = stream.write_all(answer).await;
                }
            }
        });
    }
}

struct World {
    pipeline: Arc<Pipeline>,
    settings: crate::scan::Settings,
    closing: CancellationToken,
    log: std::path::PathBuf,
    folder: tempfile::TempDir,
    /// Whether the engine fails at everything.
    is_down: Arc<AtomicBool>,
}

impl World {
    async fn begin() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = Address::Socket(listener.local_addr().expect("its address"));
        let is_down = Arc::<AtomicBool>::default();
        tokio::spawn(serve(listener, is_down.clone()));
        let settings = crate::scan::Settings {
            probe: Some(Duration::from_secs(10)),
            kind: EngineKind::Clamd {
                addresses: vec![address],
                connect_timeout: Duration::from_secs(1),
            },
            ..engine("av", Duration::from_secs(5), |_| None).await
        };
        let (pipeline, folder) = pipeline(
            generation(Vec::new(), Budget::default()),
            &Arc::new(Scripted::default()),
        );
        let world = Self {
            pipeline,
            settings,
            closing: CancellationToken::new(),
            log: folder.path().join("incidents.db"),
            folder,
            is_down,
        };
        world.require(1);
        let watch = Watch::begin(world.pipeline.clone()).await;
        tokio::spawn(watch.run(world.closing.clone()));
        tokio::spawn(Lanes::new(world.pipeline.clone()).run(world.closing.clone()));
        tokio::spawn(world.pipeline.clone().recover(world.closing.clone()));
        world
    }

    /// Puts a configuration in force in which mail needs the answers of so many engines.
    fn require(&self, engines: usize) {
        let before = self.pipeline.generation();
        let budget = Budget {
            deferral: DEFERRAL,
            ..Budget::default()
        };
        let mut next = generation(Vec::new(), budget);
        let settings = vec![self.settings.clone()];
        next.scanner = Scanner::new(settings, Some(&before.scanner)).expect("an engine");
        let policy = crate::config::load(None).unwrap_or_else(|problems| panic!("{problems}"));
        let mut policy = policy.policy;
        policy.coverage = [(EngineClass::Av, engines)].into_iter().collect();
        next.policy = Policy::new(policy, "test".into());
        let hop = HopSettings {
            kind: Kind::Maildir {
                path: format!("{}/mail/{{local}}", self.folder.path().display()),
            },
            ..maildir_hop()
        };
        next.delivery = Delivery::new(vec![hop], Some(&before.delivery)).expect("a next hop");
        self.pipeline.replace(next, intercept::Settings::default());
    }

    /// Sends this many messages, one a second.
    async fn send(&self, count: u32) {
        for n in 0..count {
            let message = Message {
                received_at: wall_clock(),
                content: Content::uncharged(format!(
                    "Subject: letter {n}\r\n\r\n{}\r\n",
                    MessageId::new()
                )),
                ..message(&["x@b.test"])
            };
            let reply = self.pipeline.accept(message, Mode::CutThrough).await;
            assert_eq!(reply.code(), 250, "{reply}");
            Deadline::after(Duration::from_secs(1)).wait().await;
        }
    }

    async fn until(&self, what: impl AsyncFn(&Self) -> bool) {
        for _ in 0..3600 {
            if what(self).await {
                return;
            }
            Deadline::after(Duration::from_secs(1)).wait().await;
        }
        panic!(
            "it does not happen within an hour: {:?}",
            self.stories().await
        );
    }

    async fn stories(&self) -> Vec<StoryState> {
        self.pipeline.incidents.flush().await;
        incidents::stories(&self.log).await.expect("stories")
    }

    async fn is_over(&self) -> bool {
        self.stories()
            .await
            .iter()
            .all(|state| state.story.ended.is_some())
    }
}

/// An engine goes away and comes back: there is one story. It says how many messages were late, and how late; how many went to
/// quarantine, and how many were delivered without the engine. Mail before and after is in no story. The counts are those of the
/// messages in the log.
#[tokio::test(start_paused = true)]
async fn an_engine_that_goes_and_comes_back_is_one_story() {
    set_wall_clock(Some("2026-11-30T12:00:00Z".parse().expect("a time")));
    let world = World::begin().await;
    world.send(5).await;
    assert_eq!(world.stories().await, []);
    world.is_down.store(true, Ordering::Relaxed);
    world.send(30).await;
    let opened = |state: &StoryState| state.story.kind == IncidentKind::BreakerOpened;
    world
        .until(async |w| w.stories().await.iter().any(opened))
        .await;
    world.require(0);
    world.send(4).await;
    world.require(1);
    // A few of the thirty are tried again while none is required, and pass; the others are held in the end.
    let settled = |state: &StoryState| state.story.touched.held + state.story.touched.passed == 34;
    world
        .until(async |w| w.stories().await.iter().any(settled))
        .await;
    world.send(7).await;
    assert!(!world.is_over().await);
    world.is_down.store(false, Ordering::Relaxed);
    world.until(World::is_over).await;
    world.send(5).await;
    world.closing.cancel();
    let stories = world.stories().await;
    let [state] = &stories[..] else {
        panic!("{stories:?}");
    };
    let story = &state.story;
    assert_eq!(story.cause, Subject::engine("av"));
    assert_eq!(story.kind, IncidentKind::BreakerOpened);
    let touched = &story.touched;
    let counts = [
        touched.delayed,
        touched.held,
        touched.passed,
        touched.refused,
    ];
    assert_eq!(touched.delayed, 37, "{state:?}");
    assert_eq!(touched.held + touched.passed, 34, "{state:?}");
    assert!(touched.held >= 20 && touched.passed >= 4, "{state:?}");
    assert_eq!(touched.refused, 0, "{state:?}");
    assert!(touched.delay_median >= DEFERRAL, "{touched:?}");
    assert!(touched.delay_max >= touched.delay_p99 && touched.delay_p99 >= touched.delay_median);
    for (outcome, count) in TouchOutcome::ALL.into_iter().zip(counts) {
        let (rows, total) = incidents::touched(&world.log, story.id, vec![outcome], usize::MAX)
            .await
            .expect("rows");
        assert_eq!((rows.len() as u64, total), (count, count), "{outcome:?}");
        for touch in rows {
            assert!(touch.subject.starts_with("letter "), "{touch:?}");
            assert_eq!(touch.recipients, ["x@b.test"]);
        }
    }
    let kinds: Vec<_> = state.kinds.iter().map(|known| known.kind).collect();
    for kind in [IncidentKind::BreakerClosed, IncidentKind::RecoveryEnded] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
}
