//! The load of the pipeline: the wait for engine slots, and the backlog of accepted messages without a judgement.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Pipeline;
use crate::scan::Health;
use crate::store::{Cause, Filter, Lane};
use crate::verdict::Disposition;

/// Length of the periods in which judged messages are counted: 10 s.
const RATE_PERIOD: Duration = Duration::from_secs(10);
/// Number of periods that are remembered: 60, which is ten minutes.
const RATE_PERIODS_MAX: usize = 60;
/// Minimum bound of the backlog, in messages. The rate of judgements is unknown after a start, and says little when there is
/// little mail.
const BACKLOG_BOUND_MIN: u64 = 10_000;
/// Maximum load from the wait for engines alone: below 1, so that clients that hold much of the load are refused and others are
/// not. The guard deals with engines that hang; they are no reason to refuse all mail.
const WAIT_LOAD_MAX: f64 = 0.9;

/// Load from which an engine is named as the reason of a refusal: half of what one sender alone may cause.
const ENGINE_LOAD_MIN: f64 = 0.25;

/// What is short while mail is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "limit", rename_all = "kebab-case")]
pub enum Shortage {
    /// The memory for messages in flight (`limits.in_flight_bytes`).
    Memory,
    /// The time in which accepted mail is to be judged (`limits.backlog`).
    Backlog,
    /// The slots of this engine: mail waits for nearly as long as it may (`wait` of the engine).
    Wait {
        /// The name of the engine.
        engine: Arc<str>,
    },
}

impl Shortage {
    /// The reason for refusals in words, to follow "because": `mail waits too long for a slot of engine clamd`.
    pub fn words(&self) -> String {
        match self {
            Self::Memory => "mail in flight fills `limits.in_flight_bytes`".to_owned(),
            Self::Backlog => "mail that is not judged yet fills `limits.backlog`".to_owned(),
            Self::Wait { engine } => format!("mail waits too long for a slot of engine {engine}"),
        }
    }
}

/// The load of the pipeline at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressure {
    /// The busiest engine; none if no engine takes mail.
    pub engine: Option<Arc<str>>,
    /// Predicted time until the messages that wait now have a slot of the busiest engine.
    pub wait: Duration,
    /// Maximum wait for a slot there (`wait` of the engine); after that the message goes on without the engine's answer.
    pub patience: Duration,
    /// Number of accepted messages that are not judged yet.
    pub waiting: u64,
    /// Maximum for that number: the messages that can be judged within `limits.backlog`.
    pub bound: u64,
}

impl Pressure {
    /// No load: no message waits.
    pub const NONE: Self = Self {
        engine: None,
        wait: Duration::ZERO,
        patience: Duration::MAX,
        waiting: 0,
        bound: u64::MAX,
    };

    /// What makes this load.
    pub fn shortage(&self) -> Shortage {
        match &self.engine {
            Some(engine) if self.wait_load() > self.backlog_load() => Shortage::Wait {
                engine: engine.clone(),
            },
            _ => Shortage::Backlog,
        }
    }

    /// The load as one number: 0 is no load, 1 is the maximum.
    pub fn load(&self) -> f64 {
        self.wait_load().max(self.backlog_load())
    }

    /// The load of one engine, for which a message waits so long at most. See [`wait_for`] about `parked`.
    fn of_engine(health: &Health, parked: usize, patience: Duration) -> Self {
        Self {
            engine: Some(health.engine.clone()),
            wait: wait_for(health, parked),
            patience,
            ..Self::NONE
        }
    }

    /// The part of the load from the wait for the busiest engine.
    fn wait_load(&self) -> f64 {
        self.wait_part().min(WAIT_LOAD_MAX)
    }

    /// The wait for the busiest engine, as a part of the patience.
    fn wait_part(&self) -> f64 {
        match self.patience.is_zero() {
            // Messages do not wait for this engine, so it causes no delay.
            true => 0.0,
            false => self.wait.div_duration_f64(self.patience),
        }
    }

    /// The part of the load from the backlog.
    fn backlog_load(&self) -> f64 {
        self.waiting as f64 / self.bound.max(1) as f64
    }
}

/// The predicted wait for a slot of one engine, of whose waiting messages `parked` wait for no slot: the messages in the queue,
/// times the median duration of a scan, divided by the scans that run.
///
/// While mail waits, a slot becomes free after the duration of a scan divided by the running scans, on average, and takes the
/// first message of the queue. So this is the time in which the engine begins all scans of the queue. Zombies do not end, and
/// slots that are kept for more trusted mail do not count: no scan runs there. But as they may be used at any moment, at least
/// half of the slots are taken as running.
///
/// A message that arrives now waits for half of such a turn more, on average. This is left out: without a queue the engine keeps
/// up, and a busy moment of an engine with one slot must not look like an overload. Rounding the queue up to whole scans would be
/// wrong as well: one message that waits for eight busy slots waits for an eighth of a scan.
fn wait_for(health: &Health, parked: usize) -> Duration {
    let live = health.slots.saturating_sub(health.zombies);
    let running = health.running.saturating_sub(health.zombies);
    let running = running.max(live / 2).clamp(1, live.max(1));
    let each = health.half_within.unwrap_or_default();
    let turns = |messages: usize, slots: usize| {
        let whole = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        each.saturating_mul(whole(messages)) / whole(slots.max(1))
    };
    // Parked messages need a slot only if the answer about their copy does not stand for them.
    let queue = health.waiting.saturating_sub(parked);
    turns(queue, running).max(turns(health.waiting, live))
}

/// The rate of judgements: a count for each of the last periods.
#[derive(Debug, Default)]
struct Periods {
    /// Start and count of each period, the newest first.
    counts: VecDeque<(Instant, u64)>,
}

impl Periods {
    fn note(&mut self, now: Instant) {
        match self.counts.front_mut() {
            Some((began, count)) if now.saturating_duration_since(*began) < RATE_PERIOD => {
                *count += 1;
            }
            _ => {
                self.counts.push_front((now, 1));
                self.counts.truncate(RATE_PERIODS_MAX);
            }
        }
    }

    /// Messages per second in the best period of the last ten minutes. The maximum shows the capacity of the pipeline; the mean
    /// would show the arrivals.
    fn best(&self, now: Instant) -> f64 {
        let span = RATE_PERIOD * u32::try_from(RATE_PERIODS_MAX).unwrap_or(u32::MAX);
        let young = |(began, _): &&(Instant, u64)| now.saturating_duration_since(*began) < span;
        let most = self.counts.iter().filter(young).map(|(_, count)| *count);
        most.max().unwrap_or_default() as f64 / RATE_PERIOD.as_secs_f64()
    }
}

/// The rate of judgements, shared by all messages.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<Periods>);

impl Rate {
    /// Counts a judged message. A deferred message is not counted: another deferral is no progress.
    pub(super) fn judged(&self, mut dispositions: impl Iterator<Item = Disposition>) {
        if !dispositions.any(|disposition| disposition == Disposition::Defer) {
            self.lock().note(Instant::now());
        }
    }

    /// The number of messages that can be judged within that time, at least [`BACKLOG_BOUND_MIN`].
    fn within(&self, time: Duration) -> u64 {
        let best = self.lock().best(Instant::now());
        ((best * time.as_secs_f64()) as u64).max(BACKLOG_BOUND_MIN)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Periods> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipeline {
    /// The load of the pipeline. `waiting` is the number of messages without a judgement, `backlog` the configured limit of the
    /// backlog as a time (`limits.backlog`). Cheap.
    pub fn pressure(&self, waiting: u64, backlog: Duration) -> Pressure {
        let generation = self.generation.load();
        let engines = generation.scanner.engines().iter();
        let engines = engines.filter(|engine| !engine.is_out()).map(|engine| {
            Pressure::of_engine(&engine.health(), engine.parked(), engine.settings().wait)
        });
        let busiest = engines.max_by(|a, b| a.wait_part().total_cmp(&b.wait_part()));
        Pressure {
            waiting,
            bound: self.rate.within(backlog),
            ..busiest.unwrap_or(Pressure::NONE)
        }
    }
}

impl Pipeline {
    /// The engine for which the mail waits that makes this load; none if no engine is the reason.
    ///
    /// Cancel safety: safe.
    pub async fn waits_for(&self, pressure: &Pressure) -> Option<Arc<str>> {
        if pressure.load() < ENGINE_LOAD_MIN {
            return None;
        }
        let absent = match pressure.backlog_load() >= pressure.wait_load() {
            true => self.waited_for_most().await,
            false => None,
        };
        absent.or_else(|| pressure.engine.clone())
    }

    /// Of the engines that take no mail, the one for which most messages wait.
    async fn waited_for_most(&self) -> Option<Arc<str>> {
        let generation = self.generation.load_full();
        let mut most = None;
        for engine in generation.scanner.engines() {
            let name = &engine.settings().name;
            if !engine.is_out() {
                continue;
            }
            let filter = Filter {
                lanes: vec![Lane::Scan],
                cause: Some(Cause::Engine(name.to_string())),
                ..Filter::default()
            };
            // If the store cannot be read, other checks say so.
            let waiting = self.store.count(filter).await.unwrap_or_default();
            if waiting > most.as_ref().map_or(0, |(most, _)| *most) {
                most = Some((waiting, name.clone()));
            }
        }
        most.map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The bound follows the capacity that the pipeline has shown, and not the few arrivals of the last seconds.
    #[tokio::test(start_paused = true)]
    async fn the_rate_is_the_best_of_the_last_ten_minutes() {
        let rate = Rate::default();
        let clean = || [Disposition::Deliver].into_iter();
        assert_eq!(
            rate.within(secs(600)),
            BACKLOG_BOUND_MIN,
            "nothing is known yet"
        );
        for _ in 0..1000 {
            rate.judged(clean());
        }
        tokio::time::advance(secs(60)).await;
        rate.judged(clean());
        assert_eq!(rate.within(secs(600)), 60_000, "100 a second");
        tokio::time::advance(secs(560)).await;
        assert_eq!(rate.within(secs(600)), BACKLOG_BOUND_MIN, "ten minutes ago");
    }

    /// A message that is deferred again was not judged: otherwise an engine that is down would look fast.
    #[tokio::test(start_paused = true)]
    async fn deferring_again_is_no_progress() {
        let rate = Rate::default();
        for _ in 0..100_000 {
            rate.judged([Disposition::Deliver, Disposition::Defer].into_iter());
        }
        assert_eq!(rate.within(secs(600)), BACKLOG_BOUND_MIN);
    }

    /// Slots of zombies take no mail: the queue waits for the other slots only.
    #[test]
    fn slots_of_zombies_shorten_no_wait() {
        let wait = |slots, zombies, waiting| {
            let health = Health {
                slots,
                running: slots,
                zombies,
                waiting,
                oldest_call_age: None,
                half_within: Some(secs(2)),
                ..Health::sample("clamd")
            };
            wait_for(&health, 0)
        };
        assert_eq!(wait(10, 0, 30), secs(6));
        assert_eq!(wait(10, 9, 30), secs(60));
        assert_eq!(wait(10, 10, 30), secs(60), "one may end at any moment");
        assert_eq!(wait(10, 0, 0), secs(0));
    }

    /// One message that waits for busy slots waits for the first that becomes free. Slots in which nothing runs while mail waits
    /// are not there for this mail, and what waits for its own copy takes no turn in the queue.
    #[test]
    fn a_queue_is_divided_among_the_scans_that_run() {
        let wait = |running, zombies, waiting, parked| {
            let health = Health {
                slots: 8,
                running,
                zombies,
                waiting,
                half_within: Some(secs(4)),
                ..Health::sample("clamd")
            };
            wait_for(&health, parked)
        };
        assert_eq!(wait(8, 0, 1, 0), secs(4) / 8);
        assert_eq!(wait(5, 0, 5, 0), secs(4), "three are kept for others");
        assert_eq!(wait(0, 0, 4, 0), secs(4), "at least half of them");
        assert_eq!(wait(8, 6, 4, 0), secs(8), "two of them end");
        assert_eq!(
            wait(4, 0, 8, 8),
            secs(4),
            "the answers may not stand for them"
        );
        assert_eq!(wait(4, 0, 9, 8), secs(4) * 9 / 8);
    }

    /// What is short is told, and an engine by its name.
    #[test]
    fn what_is_short_is_told() {
        let busy = Health {
            running: 4,
            waiting: 8,
            half_within: Some(secs(1)),
            ..Health::sample("clamd")
        };
        let mut pressure = Pressure {
            waiting: 10,
            bound: 100,
            ..Pressure::of_engine(&busy, 0, secs(4))
        };
        assert_eq!(pressure.load(), 0.5);
        assert!(pressure.shortage().words().ends_with("engine clamd"));
        pressure.waiting = 60;
        assert_eq!(pressure.shortage(), Shortage::Backlog);
        let out_of_patience = Pressure::of_engine(&busy, 0, Duration::ZERO);
        assert_eq!(out_of_patience.load(), 0.0, "no mail waits there");
    }

    /// A wait for engines makes admission fair, and never refuses all mail; a full backlog does.
    #[test]
    fn a_wait_alone_never_refuses_everybody() {
        let pressure = Pressure {
            wait: secs(100),
            patience: secs(1),
            ..Pressure::NONE
        };
        assert!(pressure.load() < 1.0);
        let full = Pressure {
            waiting: 500,
            bound: 500,
            ..Pressure::NONE
        };
        assert!(full.load() >= 1.0);
        assert_eq!(Pressure::NONE.load(), 0.0);
    }
}
