//! Rate at which a hop has recently taken messages.

use std::time::Duration;

use tokio::time::Instant;

/// Measures how many messages a second the hop took recently: the best estimate of what a hop allows that has just
/// refused a message.
#[derive(Debug, Default)]
pub(super) struct TakenRate {
    /// Start of the current span; `None` before the first message.
    began: Option<Instant>,
    /// Messages taken in the current span.
    in_this_span: u32,
    /// Messages taken in the span before it.
    in_previous_span: u32,
}

impl TakenRate {
    /// Length of one measurement span. The rate covers the current span and the one before, so 5 to 10 s.
    const MEASUREMENT_SPAN: Duration = Duration::from_secs(5);

    /// Counts one message that the hop took now.
    pub(super) fn count(&mut self, now: Instant) {
        self.advance(now);
        self.in_this_span = self.in_this_span.saturating_add(1);
    }

    /// Messages a second over the last one to two spans.
    pub(super) fn rate(&mut self, now: Instant) -> f64 {
        let began = self.advance(now);
        let span = Self::MEASUREMENT_SPAN.as_secs_f64() + (now - began).as_secs_f64();
        f64::from(self.in_this_span.saturating_add(self.in_previous_span)) / span
    }

    /// Starts a new span if the current one is over, and returns the start of the current span.
    fn advance(&mut self, now: Instant) -> Instant {
        let began = *self.began.get_or_insert(now);
        let age = now - began;
        if age < Self::MEASUREMENT_SPAN {
            return began;
        }
        self.in_previous_span = if age < Self::MEASUREMENT_SPAN * 2 {
            self.in_this_span
        } else {
            0
        };
        self.in_this_span = 0;
        self.began = Some(now);
        now
    }
}
