//! The load of the pipeline while messages crowd at an engine, through a real guard: what admission hears of it.

use std::ops::Range;

use tokio::time::Instant;

use super::scan_times::{World, ordered};
use super::*;

/// The slots of the engine. With scans of [`ORDER`] it judges 8.9 messages a second.
const SLOTS: usize = 8;
/// What the engine does with each message: it is done after nearly the 1 s that a message waits for a slot.
const ORDER: &str = "clean 900";

/// What admission hears while messages arrive, one look each 50 ms.
struct Heard {
    /// The largest load, and the most messages that waited for a slot at once.
    most: f64,
    waiting: usize,
    /// The time from the first message to a load from which a client alone is refused.
    refused_after: Option<Duration>,
    /// The longest queue until then.
    waiting_before: usize,
}

/// Brings messages with these numbers, each by a sender of its own, at the intervals that `pause` tells by their number.
async fn bring(
    world: &Arc<World>,
    numbers: Range<usize>,
    pause: impl Fn(usize) -> Duration,
) -> Heard {
    let mut heard = Heard {
        most: 0.0,
        waiting: 0,
        refused_after: None,
        waiting_before: 0,
    };
    let began = Instant::now();
    let mut next = began;
    for number in numbers {
        let (accepting, message) = (world.clone(), ordered(number, 1, ORDER));
        tokio::spawn(async move { accepting.accept(message).await });
        next += pause(number);
        while Instant::now() < next {
            Deadline::after(Duration::from_millis(50)).wait().await;
            let load = world.pipeline.pressure(0, Duration::ZERO).load();
            let generation = world.pipeline.generation();
            let waiting = generation.scanner.engines()[0].health().waiting;
            heard.most = heard.most.max(load);
            heard.waiting = heard.waiting.max(waiting);
            if heard.refused_after.is_none() {
                heard.waiting_before = heard.waiting;
            }
            // A client network that brings all mail is refused from 80 % on.
            if load > 0.8 {
                heard.refused_after.get_or_insert(began.elapsed());
            }
        }
    }
    heard
}

/// Some mail in good order, after which it is known how long a scan takes.
async fn warm(world: &Arc<World>) {
    bring(world, 0..4, |_| Duration::from_secs(1)).await;
}

/// A message that waits for one of eight busy slots waits for the first that becomes free, not for a whole scan. So an engine
/// whose scans last nearly as long as mail waits for it makes nobody refuse mail while it keeps up.
#[tokio::test(start_paused = true)]
async fn a_busy_moment_is_no_overload() {
    let world = Arc::new(World::new(SLOTS, Duration::from_secs(2)).await);
    warm(&world).await;
    // Ten in half a second, then none for a second and a half: five a second on average.
    let pause = |number: usize| match number % 10 {
        9 => Duration::from_millis(1550),
        _ => Duration::from_millis(50),
    };
    let heard = bring(&world, 10..210, pause).await;
    assert!(heard.waiting > 0, "all slots were busy");
    assert!(heard.most < 0.5, "nobody is refused: {}", heard.most);
}

/// An engine that gets twice what it can do is overloaded. Admission hears of it before mail runs out of patience: as long as
/// one client brings all mail, it is refused within two seconds, and at most as much waits as the engine can begin in 1 s.
#[tokio::test(start_paused = true)]
async fn an_overload_is_told_before_mail_runs_out_of_patience() {
    let world = Arc::new(World::new(SLOTS, Duration::from_secs(2)).await);
    warm(&world).await;
    let heard = bring(&world, 10..70, |_| Duration::from_millis(50)).await;
    let after = heard.refused_after.expect("an overload");
    assert!(after < Duration::from_secs(2), "{after:?}");
    assert!(heard.waiting_before <= 9, "{}", heard.waiting_before);
}
