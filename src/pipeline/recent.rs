//! What was delivered lately: kept in memory for as long as it takes to find out that an engine has been lying.
//!
//! An engine that calls everything clean (gray failure) is found out by its second wrong answer to a probe, some twenty
//! seconds later. Mail that was delivered on its word meanwhile is scanned again when it can be believed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::message::Content;
use crate::store::Record;

/// How long: two rounds of routine probes with their jitter, and the probes' own time.
const AGE: Duration = Duration::from_secs(40);
/// Octets of content at most, and messages; the oldest gives way, and is counted.
const OCTETS: usize = 128 << 20;
const MESSAGES: usize = 20_000;

/// One that was delivered.
#[derive(Debug)]
struct Delivered {
    at: Instant,
    record: Record,
    content: Content,
}

/// Those that were delivered lately.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    octets: usize,
    delivered: VecDeque<Delivered>,
}

impl Recent {
    /// Keeps one for a while.
    pub(super) fn add(&self, record: Record, content: &Content) {
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let octets = content.len();
        kept.forget(now);
        while kept.octets + octets > OCTETS || kept.delivered.len() >= MESSAGES {
            let Some(first) = kept.delivered.pop_front() else {
                break;
            };
            kept.octets -= first.content.len();
            metrics::counter!("spillway_recent_dropped_total").increment(1);
        }
        if octets > OCTETS {
            metrics::counter!("spillway_recent_dropped_total").increment(1);
            return;
        }
        kept.octets += octets;
        kept.delivered.push_back(Delivered {
            at: now,
            record,
            // Its own account, beside that of mail in flight, which must not wait for it.
            content: Content::uncharged(content.bytes().clone()),
        });
    }

    /// Forgets those that are old: also where no further mail comes.
    pub(super) fn forget(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget(Instant::now());
    }

    /// Takes out those that were delivered since then.
    pub(super) fn since(&self, since: Instant) -> Vec<(Record, Content)> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = kept.delivered.partition_point(|d| d.at < since);
        let taken: Vec<_> = kept.delivered.drain(first..).collect();
        kept.octets -= taken.iter().map(|d| d.content.len()).sum::<usize>();
        taken.into_iter().map(|d| (d.record, d.content)).collect()
    }
}

impl Kept {
    fn forget(&mut self, now: Instant) {
        while let Some(first) = self.delivered.front()
            && now >= first.at + AGE
        {
            self.octets -= first.content.len();
            self.delivered.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Lane;
    use crate::store::contract::record;

    fn add(recent: &Recent, octets: usize) {
        recent.add(
            record(Lane::Rescan),
            &Content::uncharged(vec![b'x'; octets]),
        );
    }

    /// Only what came since is taken, and only once.
    #[tokio::test(start_paused = true)]
    async fn what_was_delivered_since_is_taken_once() {
        let recent = Recent::default();
        add(&recent, 1);
        tokio::time::advance(Duration::from_secs(10)).await;
        let since = Instant::now();
        add(&recent, 2);
        add(&recent, 3);
        let sizes = |taken: Vec<(Record, Content)>| -> Vec<usize> {
            taken.iter().map(|(_, content)| content.len()).collect()
        };
        assert_eq!(sizes(recent.since(since)), [2, 3]);
        assert_eq!(sizes(recent.since(since)), [0; 0]);
    }

    /// Memory is bounded by octets, and what is too old to matter is let go.
    #[tokio::test(start_paused = true)]
    async fn it_is_bounded() {
        let (recent, began) = (Recent::default(), Instant::now());
        for _ in 0..20 {
            add(&recent, OCTETS / 10);
        }
        assert_eq!(recent.since(began).len(), 10);
        add(&recent, 1);
        tokio::time::advance(AGE).await;
        add(&recent, 1);
        assert_eq!(recent.since(began).len(), 1);
        add(&recent, 1);
        tokio::time::advance(AGE).await;
        recent.forget();
        assert_eq!(recent.since(began).len(), 0, "and without further mail");
    }
}
