//! One way: the task that tells, tries again, gives up, and ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::counter;
use rand::RngExt as _;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ledger::{Batch, Ledger, Next};
use super::notification::Notification;
use super::{Failure, Sender, Settings, Tested};
use crate::chance;
use crate::deadline::Deadline;
use crate::incident::{Story, StoryPhase};

/// Time for the last notifications of a way when the relay ends, or when a reload removes the way: 5 s.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after the first failed try: 10 s. It doubles after each further one.
const RETRY_WAIT_FIRST: Duration = Duration::from_secs(10);
/// Longest wait between two tries: 5 minutes.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(300);
/// Characters of an error in the log: the receiver chooses some of them.
const ERROR_CHARACTERS_MAX: usize = 300;

/// What a reload can change about a way.
pub(super) struct Terms {
    pub(super) settings: Settings,
    /// The name of the relay.
    pub(super) relay: Arc<str>,
    pub(super) sender: Box<dyn Sender>,
}

/// One way.
pub(super) struct Way {
    name: Arc<str>,
    terms: ArcSwap<Terms>,
    ledger: Mutex<Ledger>,
    /// The ledger has changed.
    changed: Notify,
    /// A reload has removed the way.
    gone: CancellationToken,
}

impl Way {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            name: terms.settings.name.clone(),
            terms: ArcSwap::from_pointee(terms),
            ledger: Mutex::default(),
            changed: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        *self.name == *name
    }

    pub(super) fn replace(&self, terms: Terms) {
        self.terms.store(Arc::new(terms));
        self.changed.notify_one();
    }

    /// Makes the task tell what is left, and end.
    pub(super) fn end(&self) {
        self.gone.cancel();
    }

    pub(super) fn note(&self, phase: StoryPhase, story: &Story) {
        let terms = self.terms.load();
        let now = Instant::now();
        let dropped = self.ledger().note(phase, story, &terms.settings, now);
        self.count("dropped", dropped);
        if dropped > 0 {
            tracing::warn!(
                way = &*self.name,
                dropped,
                "notifications dropped: too many stories at once"
            );
        }
        self.changed.notify_one();
    }

    pub(super) fn resume(&self, story: &Story) {
        let terms = self.terms.load();
        self.ledger().resume(story, &terms.settings);
    }

    /// One try of a test notification.
    pub(super) async fn test(&self) -> Tested {
        let terms = self.terms.load_full();
        let test = Notification::test(&terms.relay);
        let (told, wrong) = match terms.sender.send(&test).await {
            Ok(how) => (Some(how), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        let way = self.name.to_string();
        Tested { way, told, wrong }
    }

    /// Tells until the relay ends, or the way is gone.
    ///
    /// Cancel safety: what is under way may or may not be told.
    pub(super) async fn run(self: Arc<Self>, closing: CancellationToken) {
        let late = async {
            self.ends(&closing).await;
            Deadline::after(DRAIN_TIMEOUT).wait().await;
        };
        tokio::select! {
            biased;
            () = self.serve(&closing) => {}
            () = late => {}
        }
        let left = self.ledger().open_ends() as u64;
        self.count("dropped", left);
        if left > 0 {
            tracing::warn!(
                way = &*self.name,
                dropped = left,
                "notifications dropped: the way has ended"
            );
        }
    }

    async fn ends(&self, closing: &CancellationToken) {
        tokio::select! {
            () = closing.cancelled() => {}
            () = self.gone.cancelled() => {}
        }
    }

    fn is_ending(&self, closing: &CancellationToken) -> bool {
        closing.is_cancelled() || self.gone.is_cancelled()
    }

    async fn serve(&self, closing: &CancellationToken) {
        loop {
            let (is_ending, terms) = (self.is_ending(closing), self.terms.load_full());
            let next = self
                .ledger()
                .next(&terms.settings, Instant::now(), is_ending);
            let wait = match next {
                Next::Tell(batch) => {
                    self.tell(&terms, &batch, closing).await;
                    continue;
                }
                Next::At(_) | Next::Idle if is_ending => return,
                Next::At(due) => Some(due.saturating_duration_since(Instant::now())),
                Next::Idle => None,
            };
            let due = async {
                match wait {
                    Some(wait) => Deadline::after(wait).wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.ends(closing) => {}
                () = self.changed.notified() => {}
                () = due => {}
            }
        }
    }

    /// Tells one batch, with several tries. After the end has begun, one more try is all.
    async fn tell(&self, terms: &Terms, batch: &Batch, closing: &CancellationToken) {
        let told = Notification::of(&terms.relay, batch);
        let mut attempt = 1;
        let result = loop {
            let is_last = self.is_ending(closing) || attempt >= terms.settings.attempts;
            match terms.sender.send(&told).await {
                Err(Failure::Passing(_)) if !is_last => {}
                result => break result,
            }
            tokio::select! {
                () = self.ends(closing) => {}
                () = Deadline::after(pause(attempt)).wait() => {}
            }
            attempt += 1;
        };
        self.ledger().settle(batch, result.is_ok());
        self.conclude(&told, batch, attempt, result);
    }

    fn conclude(
        &self,
        told: &Notification,
        batch: &Batch,
        attempts: u32,
        result: Result<String, Failure>,
    ) {
        let (way, phase) = (&*self.name, told.phase());
        let story = batch
            .stories
            .first()
            .map(|(_, story)| tracing::field::display(story.id));
        let stories = batch.stories.len();
        if stories > 1 {
            self.count("summed-up", stories as u64);
        }
        match result {
            Ok(how) => {
                self.count("told", 1);
                tracing::info!(way, phase, story, stories, attempts, how, "notified");
            }
            Err(failure) => {
                self.count("failed", 1);
                let error: String = failure.to_string();
                let error: String = error.chars().take(ERROR_CHARACTERS_MAX).collect();
                tracing::warn!(
                    way,
                    phase,
                    story,
                    stories,
                    attempts,
                    error,
                    "nobody was notified"
                );
            }
        }
    }

    fn count(&self, outcome: &'static str, times: u64) {
        counter!("spillway_notifications_total", "way" => self.name.to_string(), "outcome" => outcome)
            .increment(times);
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wait after this failed try, shortened by a random part of up to a quarter, so that several relays do not come back at the
/// same time.
fn pause(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(10);
    let whole = RETRY_WAIT_FIRST
        .saturating_mul(1 << doublings)
        .min(RETRY_WAIT_MAX);
    whole.mul_f64(chance::rng().random_range(0.75..=1.0))
}
