//! Tests: when callers join a scan, and when they give up on it.

use super::*;
use crate::scan::tests::settings;
use Presence::{Hangs, Here, Out};

/// The reason why the caller gives up, in a word.
fn leaves(
    reputation: SenderReputation,
    joined: bool,
    age: Duration,
    (blocked, engine): (bool, Presence),
) -> &'static str {
    let settings = settings("one");
    let caller = Caller {
        joined,
        reputation,
        deadline: Deadline::after(Duration::from_secs(60)),
        timeout: settings.timeout,
        slow: settings.slow,
        progress: Arc::default(),
    };
    match caller.gives_up(age, blocked, engine) {
        None => "waits",
        Some(ScanError::Suspect(_)) => "suspect",
        Some(ScanError::BreakerOpen(_)) => "breaker-open",
        Some(ScanError::Parked(_)) => "parked",
        Some(ScanError::Overdue(_)) => "timeout",
        Some(other) => panic!("{other:?}"),
    }
}

/// Younger than a slow scan, by the test settings; a slow one; and one past its timeout.
const QUICK_AGE: Duration = Duration::from_millis(400);
const SLOW_AGE: Duration = Duration::from_secs(2);
const OVERDUE_AGE: Duration = Duration::from_secs(5);

/// No caller gives up on a scan that is not slow. The caller of its own scan waits for `timeout`; a caller that has joined
/// another scan gives up when that scan is slow.
#[tokio::test(start_paused = true)]
async fn callers_that_joined_give_up_on_slow_scans() {
    for reputation in [SenderReputation::Known, SenderReputation::Unknown] {
        for (blocked, engine) in [(false, Here), (true, Here), (false, Hangs), (true, Hangs)] {
            let why = leaves(reputation, true, QUICK_AGE, (blocked, engine));
            assert_eq!(why, "waits", "{blocked} {engine:?}");
        }
        let of = |joined, age| leaves(reputation, joined, age, (false, Here));
        assert_eq!(
            (of(false, SLOW_AGE), of(true, SLOW_AGE)),
            ("waits", "parked")
        );
        assert_eq!(of(false, OVERDUE_AGE), "timeout");
    }
}

/// I3: a scan of the same octets takes the place of a stranded one, and keeps it when the stranded one ends: others join the
/// later scan.
#[test]
fn the_end_of_a_stranded_scan_leaves_the_later_scan_joinable() {
    let began = Phase::Running {
        since: Instant::now(),
        blocked: false,
        stranded: false,
    };
    let own = || Arc::new(watch::Sender::new(began.clone()));
    let (first, second, third) = (own(), own(), own());
    let scope = AnswerScope {
        message: MessageId::new(),
        key: Key::Message(MessageId::new()),
        content: None,
        epoch: 0,
    };
    let mut scans = InFlightScans::default();
    assert_eq!(scans.join_or_add(&scope, &first).1, None, "nothing to join");
    assert!(scans.join_or_add(&scope, &second).1.is_some(), "I3");
    first.send_modify(|phase| {
        if let Phase::Running { stranded, .. } = phase {
            *stranded = true;
        }
    });
    assert_eq!(scans.join_or_add(&scope, &second).1, None, "stranded");
    scans.end(&scope, &first);
    assert!(scans.join_or_add(&scope, &third).1.is_some(), "the second");
    scans.end(&scope, &second);
    assert_eq!(scans.join_or_add(&scope, &third).1, None, "it has ended");
}

/// When the breaker opens during a scan, other engines cover for known senders' mail. An unknown sender's content may be the
/// cause, so that caller waits for `timeout`, unless known senders' mail hangs too.
#[tokio::test(start_paused = true)]
async fn unknown_senders_wait_when_the_breaker_opens() {
    let of = |reputation, age| leaves(reputation, false, age, (false, Out));
    assert_eq!(of(SenderReputation::Known, SLOW_AGE), "breaker-open");
    assert_eq!(of(SenderReputation::Unknown, SLOW_AGE), "waits");
    assert_eq!(of(SenderReputation::Unknown, OVERDUE_AGE), "breaker-open");
    assert_eq!(
        leaves(SenderReputation::Unknown, true, SLOW_AGE, (false, Out)),
        "parked"
    );
    let hangs = |age| leaves(SenderReputation::Unknown, false, age, (false, Hangs));
    assert_eq!(
        (hangs(QUICK_AGE), hangs(SLOW_AGE)),
        ("waits", "breaker-open")
    );
}

/// A message that an interceptor blocks during its scan is held before every other reason counts: no other engine covers for
/// it, and no caller waits for the end of the scan.
#[tokio::test(start_paused = true)]
async fn a_block_during_the_scan_is_the_first_reason() {
    for reputation in [SenderReputation::Known, SenderReputation::Unknown] {
        for joined in [false, true] {
            for age in [SLOW_AGE, OVERDUE_AGE] {
                for engine in [Here, Out, Hangs] {
                    let why = leaves(reputation, joined, age, (true, engine));
                    assert_eq!(why, "suspect", "{reputation:?} {joined} {age:?} {engine:?}");
                }
            }
        }
    }
}
