//! The load of the pipeline: the wait for engine slots, and the backlog of accepted messages without a judgement.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

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

/// The load of the pipeline at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressure {
    /// The busiest engine; none if no engine takes mail.
    pub engine: Option<Arc<str>>,
    /// Predicted wait for a slot of the busiest engine, for a message that arrives now.
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

    /// The load as one number: 0 is no load, 1 is the maximum.
    pub fn load(&self) -> f64 {
        self.wait_load().max(self.backlog_load())
    }

    /// The part of the load from the wait for the busiest engine.
    fn wait_load(&self) -> f64 {
        match self.patience.is_zero() {
            // Messages do not wait for this engine, so it causes no delay.
            true => 0.0,
            false => self.wait.div_duration_f64(self.patience).min(WAIT_LOAD_MAX),
        }
    }

    /// The part of the load from the backlog.
    fn backlog_load(&self) -> f64 {
        self.waiting as f64 / self.bound.max(1) as f64
    }
}

/// The predicted wait for a slot of one engine: messages in the queue, divided by the slots without a zombie, times the median
/// duration of a scan.
fn wait_for(health: &Health) -> Duration {
    let slots = health.slots.saturating_sub(health.zombies).max(1);
    let turns = health.waiting.div_ceil(slots);
    let each = health.half_within.unwrap_or_default();
    each.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
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
        let busiest = engines
            .filter(|engine| !engine.is_out())
            .map(|engine| {
                let settings = engine.settings();
                (wait_for(&engine.health()), settings.wait, &settings.name)
            })
            .max_by(|(a, patient, _), (b, waiting, _)| {
                let part = |wait: &Duration, of: &Duration| {
                    wait.div_duration_f64((*of).max(Duration::from_millis(1)))
                };
                part(a, patient).total_cmp(&part(b, waiting))
            });
        let (wait, patience, engine) = match busiest {
            Some((wait, patience, engine)) => (wait, patience, Some(engine.clone())),
            None => (Duration::ZERO, Duration::MAX, None),
        };
        Pressure {
            engine,
            wait,
            patience,
            waiting,
            bound: self.rate.within(backlog),
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
            wait_for(&Health {
                slots,
                running: slots,
                zombies,
                waiting,
                oldest_call_age: None,
                half_within: Some(secs(2)),
                ..Health::sample("clamd")
            })
        };
        assert_eq!(wait(10, 0, 30), secs(6));
        assert_eq!(wait(10, 9, 30), secs(60));
        assert_eq!(wait(10, 10, 30), secs(60), "one may end at any moment");
        assert_eq!(wait(10, 0, 0), secs(0));
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
