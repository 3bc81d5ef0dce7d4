//! Who works in a round of a recovery: what goes on at once, and what goes alone.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::Step;
use crate::store::{Lane, Record, Working};
use crate::verdict::{Reason, Report};

/// Messages that go alone and wait for their turn in a round; what is behind more of them waits with them.
const ALONE_MOST: usize = 64;

/// How many messages of a cause are scanned at once. What hangs outlives its round, and keeps its place until it ends.
#[derive(Debug, Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// For what goes alone.
    alone: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new(width: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(width)),
            alone: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The messages of a round: those that are scanned, and those that have been claimed and wait for a place.
pub(super) struct Crew {
    places: Places,
    pub(super) at_work: FuturesUnordered<JoinHandle<Step>>,
    ready: VecDeque<(Lane, Record, Working)>,
    alone: VecDeque<(Lane, Record, Working)>,
}

impl Crew {
    pub(super) fn new(places: Places) -> Self {
        Self {
            places,
            at_work: FuturesUnordered::new(),
            ready: VecDeque::new(),
            alone: VecDeque::new(),
        }
    }

    /// It may be to blame for what it waits for: it ran into its timeout before, or is like what is slow.
    fn goes_alone(record: &Record) -> bool {
        let is_parked = |report: &Report| report.missing() == Some(Reason::Parked);
        record.timeouts > 0 || record.reports.iter().any(is_parked)
    }

    /// How many more are to be claimed.
    pub(super) fn room(&self) -> usize {
        match self.alone.len() < ALONE_MOST {
            true => self
                .places
                .all
                .available_permits()
                .saturating_sub(self.ready.len()),
            false => 0,
        }
    }

    pub(super) fn add(&mut self, lane: Lane, record: Record, working: Working) {
        let of = match Self::goes_alone(&record) {
            true => &mut self.alone,
            false => &mut self.ready,
        };
        of.push_back((lane, record, working));
    }

    /// Takes the next that there is a place for.
    pub(super) fn next_ready(
        &mut self,
    ) -> Option<(Lane, Record, Working, [Option<OwnedSemaphorePermit>; 2])> {
        let place = |of: &Arc<Semaphore>| of.clone().try_acquire_owned().ok();
        let all = place(&self.places.all)?;
        let alone = match self.alone.is_empty() {
            true => None,
            false => place(&self.places.alone),
        };
        let of = match alone {
            Some(_) => &mut self.alone,
            None => &mut self.ready,
        };
        let (lane, record, working) = of.pop_front()?;
        Some((lane, record, working, [Some(all), alone]))
    }

    /// Waits until another may begin, where nothing of this round is at work: its places are taken by what hangs since an earlier
    /// one.
    pub(super) async fn freed(&self) {
        let of = match self.ready.is_empty() && !self.alone.is_empty() {
            true => &self.places.alone,
            false => &self.places.all,
        };
        drop(of.acquire().await);
    }

    pub(super) fn is_done(&self) -> bool {
        self.ready.is_empty() && self.alone.is_empty()
    }

    /// Those that have not begun.
    pub(super) fn dismiss(&mut self) -> impl Iterator<Item = (Record, Working)> {
        let all = self.ready.drain(..).chain(self.alone.drain(..));
        all.map(|(_, record, working)| (record, working))
    }
}
