//! The limits of a paced hop: its rate, its window, and the pause after a refusal.

use std::time::Duration;

use tokio::time::Instant;

use super::CALM_PERIOD;

/// Lowest rate, in messages a second. Recovery from a lower rate would take hours.
pub(super) const RATE_MIN: f64 = 0.5;
/// Rate in messages a second from which the pace drops the rate limit.
pub(super) const RATE_MAX: f64 = 1000.0;
/// Factor applied to the rate at a throttling reply (multiplicative decrease).
pub(super) const RATE_CUT_FACTOR: f64 = 0.7;
/// Rise of the rate after a recent cut, in messages a second per second (additive increase).
const RATE_RISE_PER_SECOND: f64 = 0.5;
/// Factor applied to the rate at each success once the last cut is older than [`CALM_PERIOD`].
const RATE_GROWTH_FACTOR: f64 = 1.02;
/// Largest burst, expressed in seconds at the current rate: longer than the error of a timer, shorter than the interval
/// over which servers measure a rate.
pub(super) const BURST_SECONDS: f64 = 0.1;
/// Window of concurrent deliveries to a hop that has just recovered, and number of consecutive failures that mark a
/// free hop as dead.
pub(super) const WINDOW_INITIAL: f64 = 5.0;
/// Up to this multiple of an accepted rate, a deferral is not blamed on the rate: the hop has taken mail nearly as
/// fast.
const TAKEN_RATE_MARGIN: f64 = 1.2;

/// The limits of one hop and what led to them.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Rate limit in messages a second.
    pub(super) rate: Option<f64>,
    /// Time of the next message without a burst (the theoretical arrival time of GCRA, ITU-T I.371).
    next: Instant,
    /// Number of deliveries that may run at once; its fraction grows with each success.
    pub(super) window: f64,
    /// End of the pause after the last throttling reply.
    pub(super) until: Instant,
    /// After the pause only one message goes out, until the hop has taken it.
    one_at_a_time: bool,
    /// Time of the last rate cut.
    pub(super) cut_at: Instant,
    /// Time of the last throttling reply or failed delivery.
    pub(super) trouble_at: Instant,
    /// The rate that the last cut set, in messages a second.
    rate_after_cut: f64,
    /// Messages that the hop has taken since the last cut.
    taken_since_cut: u32,
    /// Messages that the hop has deferred since the last cut.
    deferred_since_cut: u32,
    /// Deferrals in this paced period that arrived at a rate that the hop had accepted.
    pub(super) unexplained_deferrals: u32,
}

impl Limits {
    /// The limits after a first refusal with this rate, or of a hop that has just recovered.
    pub(super) fn new(rate: Option<f64>, connections: usize, now: Instant) -> Self {
        Self {
            rate,
            next: now,
            window: WINDOW_INITIAL.min(connections as f64),
            until: now,
            one_at_a_time: false,
            cut_at: now,
            trouble_at: now,
            rate_after_cut: rate.unwrap_or(RATE_MAX),
            taken_since_cut: 0,
            deferred_since_cut: 0,
            unexplained_deferrals: 0,
        }
    }

    /// How many messages may go out now.
    pub(super) fn room(&self, in_flight: usize, now: Instant) -> usize {
        if now < self.until {
            return 0;
        }
        let window = if self.one_at_a_time {
            1
        } else {
            self.window as usize
        };
        let free = window.saturating_sub(in_flight);
        let Some(rate) = self.rate else { return free };
        // The number of consecutive messages that `spend` allows at this instant.
        let ahead = self.next.saturating_duration_since(now).as_secs_f64();
        match head_start(rate) - ahead {
            left if left < 0.0 => 0,
            left => free.min(1 + (left * rate) as usize),
        }
    }

    /// Time from which the pause and the rate allow a message; `None` if they allow one now.
    pub(super) fn opens(&self, now: Instant) -> Option<Instant> {
        let due = self.rate.map_or(self.until, |rate| {
            let early = Duration::from_secs_f64(head_start(rate));
            self.next.checked_sub(early).unwrap_or(self.next)
        });
        Some(due.max(self.until)).filter(|opens| *opens > now)
    }

    /// Lowers the rate to `rate`, in messages a second, and counts takings and deferrals from zero.
    pub(super) fn cut(&mut self, rate: f64, now: Instant) {
        self.rate = Some(rate);
        self.rate_after_cut = rate;
        self.cut_at = now;
        self.taken_since_cut = 0;
        self.deferred_since_cut = 0;
    }

    /// Counts one more deferral. Whether the rate can be its reason: a pause has begun meanwhile, or the rate is well above
    /// the rate after the last cut, or the hop has taken fewer than two messages for each deferral since the cut, which is
    /// too few to exclude the rate.
    pub(super) fn rate_explains_deferral(&mut self, now: Instant) -> bool {
        if now < self.until {
            return true;
        }
        self.deferred_since_cut += 1;
        let slow = self
            .rate
            .is_some_and(|rate| rate <= self.rate_after_cut * TAKEN_RATE_MARGIN);
        let explained = !slow || self.taken_since_cut < 2 * self.deferred_since_cut;
        self.unexplained_deferrals += u32::from(!explained);
        explained
    }

    /// Uses the rate for one message that goes out now.
    pub(super) fn spend(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            self.next = self.next.max(now) + Duration::from_secs_f64(1.0 / rate);
        }
    }

    /// Stops all mail until then. After that, messages go out one at a time until the hop takes one.
    pub(super) fn pause(&mut self, until: Instant) {
        self.until = until;
        self.next = self.next.max(until);
        self.one_at_a_time = true;
    }

    /// Processes a message that the hop took: widens the window and raises the rate.
    pub(super) fn succeed(&mut self, connections: usize, now: Instant) {
        self.one_at_a_time = false;
        self.taken_since_cut = self.taken_since_cut.saturating_add(1);
        self.window = (self.window + 1.0 / self.window).min(connections as f64);
        let recent = now - self.cut_at < CALM_PERIOD;
        self.rate = self
            .rate
            .map(|rate| match recent {
                true => rate + RATE_RISE_PER_SECOND / rate,
                false => rate * RATE_GROWTH_FACTOR,
            })
            .filter(|rate| *rate < RATE_MAX);
    }
}

/// How far ahead of even spacing a message may go, in seconds, so that a burst passes.
fn head_start(rate: f64) -> f64 {
    (BURST_SECONDS - 1.0 / rate).max(0.0)
}
