//! How far the path is behind: what waits for the engines, and what was accepted and is not judged yet.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Pipeline;
use crate::scan::Health;
use crate::verdict::Disposition;

/// Judged messages are counted in periods of this length, of which so many are remembered: ten minutes.
const PERIOD: Duration = Duration::from_secs(10);
const PERIODS: usize = 60;
/// So many accepted messages may wait to be judged whatever the rate is: after a start it is unknown, and with little
/// mail it says little.
const LEAST: u64 = 10_000;
/// The most that a wait for engines alone counts for: those who brought much of it are refused, others still come in.
/// Engines that hang are the guard's affair and not a reason to close the door.
const WAIT_MOST: f64 = 0.9;

/// How far the path is behind, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// How long a message that comes in now would wait for a slot of the busiest engine.
    pub wait: Duration,
    /// How long a message waits there before it goes without that engine's answer.
    pub patience: Duration,
    /// Messages that were accepted and are not judged yet.
    pub waiting: u64,
    /// How many of them there may be: what could be judged in `limits.backlog`.
    pub bound: u64,
}

impl Pressure {
    /// Nothing waits.
    pub const NONE: Self = Self {
        wait: Duration::ZERO,
        patience: Duration::MAX,
        waiting: 0,
        bound: u64::MAX,
    };

    /// 0 is not at all behind, 1 as far as it may be.
    pub fn load(&self) -> f64 {
        let wait = match self.patience.is_zero() {
            // An engine that nobody waits for makes nobody late.
            true => 0.0,
            false => self.wait.div_duration_f64(self.patience).min(WAIT_MOST),
        };
        let backlog = self.waiting as f64 / self.bound.max(1) as f64;
        wait.max(backlog)
    }
}

/// The wait for one engine's slots: those who wait before, each for a scan of the usual length, in the slots that end.
fn wait_for(health: &Health) -> Duration {
    let slots = health.slots.saturating_sub(health.zombies).max(1);
    let turns = health.waiting.div_ceil(slots);
    let each = health.half_within.unwrap_or_default();
    each.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
}

/// How fast messages are judged: a count for each of the last periods.
#[derive(Debug, Default)]
struct Periods {
    /// The newest first, with the instant at which it began.
    counts: VecDeque<(Instant, u64)>,
}

impl Periods {
    fn note(&mut self, now: Instant) {
        match self.counts.front_mut() {
            Some((began, count)) if now.saturating_duration_since(*began) < PERIOD => *count += 1,
            _ => {
                self.counts.push_front((now, 1));
                self.counts.truncate(PERIODS);
            }
        }
    }

    /// Messages a second in the best period of the last ten minutes: what the path can do, where the mean is only what
    /// came.
    fn best(&self, now: Instant) -> f64 {
        let span = PERIOD * u32::try_from(PERIODS).unwrap_or(u32::MAX);
        let young = |(began, _): &&(Instant, u64)| now.saturating_duration_since(*began) < span;
        let most = self.counts.iter().filter(young).map(|(_, count)| *count);
        most.max().unwrap_or_default() as f64 / PERIOD.as_secs_f64()
    }
}

/// The rate at which messages are judged, shared by all of them.
#[derive(Debug, Default)]
pub(super) struct Rate(Mutex<Periods>);

impl Rate {
    /// A message was judged: deferring it again would be no progress.
    pub(super) fn judged(&self, mut dispositions: impl Iterator<Item = Disposition>) {
        if !dispositions.any(|disposition| disposition == Disposition::Defer) {
            self.lock().note(Instant::now());
        }
    }

    /// Messages that can be judged within that time.
    fn within(&self, time: Duration) -> u64 {
        let best = self.lock().best(Instant::now());
        ((best * time.as_secs_f64()) as u64).max(LEAST)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Periods> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipeline {
    /// How far the path is behind, if so many messages wait to be judged and as many may as can be in `backlog`. Cheap.
    pub fn pressure(&self, waiting: u64, backlog: Duration) -> Pressure {
        let generation = self.generation.load();
        let engines = generation.scanner.engines().iter();
        let busiest = engines
            .filter(|engine| !engine.is_out())
            .map(|engine| (wait_for(&engine.health()), engine.settings().wait))
            .max_by(|(a, patient), (b, waiting)| {
                let part = |wait: &Duration, of: &Duration| {
                    wait.div_duration_f64((*of).max(Duration::from_millis(1)))
                };
                part(a, patient).total_cmp(&part(b, waiting))
            });
        let (wait, patience) = busiest.unwrap_or((Duration::ZERO, Duration::MAX));
        Pressure {
            wait,
            patience,
            waiting,
            bound: self.rate.within(backlog),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The bound follows what the path has shown it can do, not the little that happened to come in the last seconds.
    #[tokio::test(start_paused = true)]
    async fn the_rate_is_the_best_of_the_last_ten_minutes() {
        let rate = Rate::default();
        let clean = || [Disposition::Deliver].into_iter();
        assert_eq!(rate.within(secs(600)), LEAST, "nothing is known yet");
        for _ in 0..1000 {
            rate.judged(clean());
        }
        tokio::time::advance(secs(60)).await;
        rate.judged(clean());
        assert_eq!(rate.within(secs(600)), 60_000, "100 a second");
        tokio::time::advance(secs(560)).await;
        assert_eq!(rate.within(secs(600)), LEAST, "ten minutes ago");
    }

    /// A message that is put off again was not judged: an engine that is down would look fast.
    #[tokio::test(start_paused = true)]
    async fn deferring_again_is_no_progress() {
        let rate = Rate::default();
        for _ in 0..100_000 {
            rate.judged([Disposition::Deliver, Disposition::Defer].into_iter());
        }
        assert_eq!(rate.within(secs(600)), LEAST);
    }

    /// Slots that hold scans which will not end in time take no mail: those that wait stand before the others.
    #[test]
    fn slots_of_zombies_shorten_no_wait() {
        let wait = |slots, zombies, waiting| {
            wait_for(&Health {
                engine: "clamd".into(),
                class: crate::verdict::EngineClass::Av,
                slots,
                running: slots,
                zombies,
                waiting,
                half_within: Some(secs(2)),
                most_within: None,
                replicas: Vec::new(),
            })
        };
        assert_eq!(wait(10, 0, 30), secs(6));
        assert_eq!(wait(10, 9, 30), secs(60));
        assert_eq!(wait(10, 10, 30), secs(60), "one may end at any moment");
        assert_eq!(wait(10, 0, 0), secs(0));
    }

    /// A wait for engines makes admission fair, and never closes the door; a full backlog does.
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
