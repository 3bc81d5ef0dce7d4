//! What a hop has taken lately.

use std::time::Duration;

use tokio::time::Instant;

/// How many messages a second were taken lately: the best guess at what a hop allows that has just refused one.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The beginning of the current span; none before the first message.
    began: Option<Instant>,
    now: u32,
    before: u32,
}

impl Taken {
    const SPAN: Duration = Duration::from_secs(5);

    pub(super) fn count(&mut self, now: Instant) {
        self.turn(now);
        self.now = self.now.saturating_add(1);
    }

    /// Over the last one to two spans.
    pub(super) fn rate(&mut self, now: Instant) -> f64 {
        let began = self.turn(now);
        let span = Self::SPAN.as_secs_f64() + (now - began).as_secs_f64();
        f64::from(self.now.saturating_add(self.before)) / span
    }

    /// Begins a new span when the current one is over; gives the beginning of the current one.
    fn turn(&mut self, now: Instant) -> Instant {
        let began = *self.began.get_or_insert(now);
        let age = now - began;
        if age < Self::SPAN {
            return began;
        }
        self.before = if age < Self::SPAN * 2 { self.now } else { 0 };
        self.now = 0;
        self.began = Some(now);
        now
    }
}
