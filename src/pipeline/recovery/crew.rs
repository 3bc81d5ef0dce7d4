//! The messages of one recovery round: which are scanned concurrently, and which one at a time.
//!
//! Three kinds of suspected messages are scanned one at a time, each kind in a queue of its own: messages whose scan timed out
//! before, of known and of unknown senders, and messages that were `parked`. A message that hangs again must not delay a parked
//! message, which is most likely innocent, nor a known sender's message that timed out as an outage began.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::select_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::round::Step;
use crate::message::SenderReputation;
use crate::store::{Lane, Record, Working};
use crate::verdict::{Reason, Report};

/// Maximum number of suspected messages of one kind that wait in a round to be scanned alone. If a queue is full, the sweep
/// claims no further messages.
const ALONE_QUEUE_MAX: usize = 64;

/// Why a message is scanned alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspected {
    /// A scan of the known sender's message timed out before.
    TimedOutOfKnown,
    /// A scan of the message timed out before, and the sender is not known.
    TimedOut,
    /// Similar messages were slow (`parked`).
    Parked,
}

impl Suspected {
    const ALL: [Self; 3] = [Self::TimedOutOfKnown, Self::TimedOut, Self::Parked];

    fn of(record: &Record) -> Option<Self> {
        let is_parked = |report: &Report| report.missing() == Some(Reason::Parked);
        match record.timeouts {
            0 => record.reports.iter().any(is_parked).then_some(Self::Parked),
            _ if record.reputation == Some(SenderReputation::Known) => Some(Self::TimedOutOfKnown),
            _ => Some(Self::TimedOut),
        }
    }
}

/// Limits the concurrent scans for one cause. A scan that hangs outlives its round, and keeps its place until the scan ends.
#[derive(Debug, Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// The places of `all`, taken and free.
    width: usize,
    /// One place for each kind of suspected messages.
    alone: [Arc<Semaphore>; 3],
}

impl Places {
    pub(super) fn new(width: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(width)),
            width,
            alone: Suspected::ALL.map(|_| Arc::new(Semaphore::new(1))),
        }
    }

    /// Changes the number of places. Places that are taken cannot be removed, so a later call removes the rest.
    pub(super) fn resize(&mut self, width: usize) {
        if width > self.width {
            self.all.add_permits(width - self.width);
            self.width = width;
        } else if width < self.width {
            self.width -= self.all.forget_permits(self.width - width);
        }
    }
}

/// The messages of a round: scans under way, and claimed messages that wait for a place.
pub(super) struct Crew {
    places: Places,
    pub(super) at_work: FuturesUnordered<JoinHandle<Step>>,
    ready: VecDeque<(Lane, Record, Working)>,
    /// One queue for each kind of suspected messages.
    alone: [VecDeque<(Lane, Record, Working)>; 3],
}

impl Crew {
    pub(super) fn new(places: Places) -> Self {
        Self {
            places,
            at_work: FuturesUnordered::new(),
            ready: VecDeque::new(),
            alone: Default::default(),
        }
    }

    /// The number of further messages to claim.
    pub(super) fn room(&self) -> usize {
        match self.alone.iter().all(|line| line.len() < ALONE_QUEUE_MAX) {
            true => self
                .places
                .all
                .available_permits()
                .saturating_sub(self.ready.len()),
            false => 0,
        }
    }

    pub(super) fn add(&mut self, lane: Lane, record: Record, working: Working) {
        let line = match Suspected::of(&record) {
            Some(kind) => &mut self.alone[kind as usize],
            None => &mut self.ready,
        };
        line.push_back((lane, record, working));
    }

    /// Takes the next message for which a place is free.
    pub(super) fn next_ready(
        &mut self,
    ) -> Option<(Lane, Record, Working, [Option<OwnedSemaphorePermit>; 2])> {
        let place = |of: &Arc<Semaphore>| of.clone().try_acquire_owned().ok();
        let all = place(&self.places.all)?;
        for (line, places) in self.alone.iter_mut().zip(&self.places.alone) {
            if let Some(alone) = (!line.is_empty()).then(|| place(places)).flatten()
                && let Some((lane, record, working)) = line.pop_front()
            {
                return Some((lane, record, working, [Some(all), Some(alone)]));
            }
        }
        let (lane, record, working) = self.ready.pop_front()?;
        Some((lane, record, working, [Some(all), None]))
    }

    /// Waits for a free place while no scan of this round is under way: scans of an earlier round hang and hold the places.
    pub(super) async fn freed(&self) {
        let alone = self.alone.iter().zip(&self.places.alone);
        let waits: Vec<_> = alone
            .filter(|(line, _)| !line.is_empty())
            .map(|(_, places)| Box::pin(places.acquire()))
            .collect();
        match self.ready.is_empty() && !waits.is_empty() {
            true => drop(select_all(waits).await),
            false => drop(self.places.all.acquire().await),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.ready.is_empty() && self.alone.iter().all(VecDeque::is_empty)
    }

    /// Removes and returns the messages whose scan has not begun.
    pub(super) fn dismiss(&mut self) -> impl Iterator<Item = (Record, Working)> {
        let alone = self.alone.iter_mut().flat_map(|line| line.drain(..));
        let all = self.ready.drain(..).chain(alone);
        all.map(|(_, record, working)| (record, working))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reload may change the number of places while some are taken: no message loses its place, and the rest goes as soon as it
    /// is free.
    #[test]
    fn places_that_are_taken_stay() {
        let mut places = Places::new(4);
        let taken: Vec<_> = (0..4)
            .map(|_| places.all.clone().try_acquire_owned())
            .collect();
        places.resize(2);
        assert_eq!((places.width, places.all.available_permits()), (4, 0));
        drop(taken);
        places.resize(2);
        assert_eq!((places.width, places.all.available_permits()), (2, 2));
        places.resize(5);
        assert_eq!((places.width, places.all.available_permits()), (5, 5));
    }
}
