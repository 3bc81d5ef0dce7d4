//! Mail that is late: an answer that comes after its message has been put off, and mail that no store knows.

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::clock::Taking;
use super::*;
use crate::deadline::{set_wall_clock, wall_clock};
use crate::scan::engine::{Engine, EngineAnswer, Sample, ScanError};
use crate::store::Store;
use crate::verdict::Answer as Said;

/// Answers when it is let.
#[derive(Debug)]
struct Slow(Semaphore);

impl Engine for Slow {
    fn scan(
        self: Arc<Self>,
        _: Sample,
    ) -> BoxFuture<'static, std::result::Result<EngineAnswer, ScanError>> {
        Box::pin(async move {
            let _let = self.0.acquire().await;
            Ok(EngineAnswer::new(Said::Answered(Vec::new())))
        })
    }
}

/// A message that ran into its timeout waits no longer than for its answer: once that is there the message is due, whatever its
/// back-off says.
#[tokio::test(start_paused = true)]
async fn a_late_answer_hastens_its_message() {
    set_wall_clock(Some(wall_clock()));
    let timeout = Duration::from_secs(5);
    let settings = crate::scan::Settings {
        limit: Duration::from_secs(3600),
        ..engine("slow", timeout, |_| None).await
    };
    let slow = Arc::new(Slow(Semaphore::new(0)));
    let mut generation = generation(Vec::new(), Budget::default());
    generation.scanner = Scanner::of_engines(vec![(settings, vec![slow.clone()])], None);
    let store = Arc::new(Scripted::default());
    let (pipeline, _folder) = pipeline(generation, &store);
    let closing = CancellationToken::new();
    let watch = Watch::begin(pipeline.clone()).await;
    tokio::spawn(watch.run(closing.clone()));
    let message = message(&["x@b.test"]);
    let id = message.id;
    pipeline.accept(message, Mode::CutThrough).await;
    let kept = async || store.get(id).await.expect("get").expect("kept");
    let put_off = kept().await;
    assert_eq!(put_off.lane, Lane::Scan, "{}", put_off.status);
    assert!(put_off.due_at > wall_clock());
    slow.0.add_permits(1);
    while kept().await.due_at == put_off.due_at {
        assert!(wall_clock() < put_off.due_at, "it waits for its back-off");
        Deadline::after(Duration::from_millis(50)).wait().await;
    }
    assert!(kept().await.due_at < put_off.due_at);
    closing.cancel();
    set_wall_clock(None);
}

/// Mail that waits in its session is late like all mail, by what it waits for, until it has its reply.
#[tokio::test(start_paused = true)]
async fn mail_that_waits_in_its_session_is_late() {
    set_wall_clock(Some(wall_clock()));
    let hour = Duration::from_secs(3600);
    let settings = crate::scan::Settings {
        limit: hour,
        ..engine("slow", hour, |_| None).await
    };
    let slow = Arc::new(Slow(Semaphore::new(0)));
    let budget = Budget {
        session: hour,
        total: hour,
        ..Budget::default()
    };
    let mut generation = generation(Vec::new(), budget);
    generation.scanner = Scanner::of_engines(vec![(settings, vec![slow.clone()])], None);
    let hop = (maildir_hop(), Taking::new(Duration::ZERO) as _);
    generation.delivery = Delivery::scripted(vec![hop], None).expect("a next hop");
    let (pipeline, _folder) = pipeline(generation, &Arc::default());
    let message = Message {
        received_at: wall_clock(),
        ..message(&["x@b.test"])
    };
    let received = message.received_at;
    let path = pipeline.clone();
    let sent = tokio::spawn(async move { path.accept(message, Mode::CutThrough).await });
    let wait = async |seconds| Deadline::after(Duration::from_secs(seconds)).wait().await;
    wait(59).await;
    assert_eq!(pipeline.late_in_session(), []);
    wait(2).await;
    let late = pipeline.late_in_session();
    let [mail] = &late[..] else {
        panic!("{late:?}");
    };
    assert_eq!(
        (mail.lane, mail.messages, mail.oldest),
        (Lane::Scan, 1, received)
    );
    assert!(mail.in_session && mail.in_work);
    let health = pipeline.generation().scanner.engines()[0].health();
    assert_eq!(health.oldest_call_age.map(|age| age.as_secs()), Some(61));
    slow.0.add_permits(1);
    let reply = sent.await.expect("a reply");
    assert_eq!(reply.code(), 250, "{reply}");
    assert_eq!(pipeline.late_in_session(), []);
    let health = pipeline.generation().scanner.engines()[0].health();
    assert_eq!(health.oldest_call_age, None);
    set_wall_clock(None);
}
