//! What was delivered lately: kept in memory for as long as it takes to find out that an engine has been lying.
//!
//! An engine that calls everything clean (gray failure) is found out by its second wrong answer to a probe, some twenty
//! seconds later. Mail that was delivered on its word meanwhile is scanned again when it can be believed; and so is what it
//! has judged, and was delivered later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use jiff::Timestamp;

use crate::message::Content;
use crate::store::{Cause, Record};

/// How long at least: two rounds of routine probes with their jitter, and the probes' own time.
const AGE: Duration = Duration::from_secs(40);
/// Rounds of routine probes that is, where they are rarer.
const ROUNDS: u32 = 4;
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
    age: Duration,
    /// When each engine was last found out to have lied.
    found_out: BTreeMap<String, Timestamp>,
}

impl Recent {
    /// Keeps one for a while.
    pub(super) fn add(&self, record: Record, content: &Content) {
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let octets = content.len();
        kept.forget(now);
        // One that finds no room in all of it does not take that of the others.
        if octets > OCTETS {
            metrics::counter!("spillway_recent_dropped_total").increment(1);
            return;
        }
        while kept.octets + octets > OCTETS || kept.delivered.len() >= MESSAGES {
            let Some(first) = kept.delivered.pop_front() else {
                break;
            };
            kept.octets -= first.content.len();
            metrics::counter!("spillway_recent_dropped_total").increment(1);
        }
        kept.octets += octets;
        kept.delivered.push_back(Delivered {
            at: now,
            record,
            // Its own account, beside that of mail in flight, which must not wait for it.
            content: Content::uncharged(content.bytes().clone()),
        });
    }

    /// Forgets those that are old: also where no further mail comes. `probe` is the longest time between two routine probes.
    pub(super) fn forget(&self, probe: Duration) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.age = probe.saturating_mul(ROUNDS);
        kept.forget(Instant::now());
    }

    /// An engine has lied until now.
    pub(super) fn found_out(&self, engine: &str, now: Timestamp) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.found_out.insert(engine.to_owned(), now);
    }

    /// Whom a message that has just been delivered must be scanned by again: it came in before an engine was found out that
    /// has answered about it, perhaps long ago.
    pub(super) fn doubts(&self, record: &Record) -> Option<Cause> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = record.reports.iter().filter(|r| r.missing().is_none());
        let lied = answered.filter_map(|report| {
            let until = kept.found_out.get(&*report.engine)?;
            (record.received_at <= *until).then(|| report.engine.to_string())
        });
        lied.map(Cause::Engine).next()
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
            && now >= first.at + self.age.max(AGE)
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
    use crate::verdict::{Answer, EngineClass, Report};

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

    /// What came in before a liar was found out, and was judged by it, is scanned again even if it is delivered much later.
    #[tokio::test(start_paused = true)]
    async fn what_a_liar_has_judged_is_doubted_whenever_it_is_delivered() {
        let recent = Recent::default();
        let judged = |by: &str| Record {
            reports: vec![Report {
                engine: by.into(),
                class: EngineClass::Av,
                answer: Answer::Answered(Vec::new()),
                replica: None,
                signatures: None,
                attempts: 1,
                reused: None,
                wishes: Vec::new(),
                elapsed: Duration::ZERO,
            }],
            ..record(Lane::Rescan)
        };
        assert_eq!(recent.doubts(&judged("clamd")), None);
        let received = judged("clamd").received_at;
        recent.found_out("clamd", received);
        assert_eq!(
            recent.doubts(&judged("clamd")),
            Some(Cause::Engine("clamd".to_owned()))
        );
        assert_eq!(recent.doubts(&judged("rspamd")), None, "another engine");
        recent.found_out("clamd", received - Duration::from_secs(1));
        assert_eq!(recent.doubts(&judged("clamd")), None, "it came afterwards");
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
        recent.forget(Duration::ZERO);
        assert_eq!(recent.since(began).len(), 0, "and without further mail");
    }

    /// Small mail is bounded by its number, and mail larger than all the room is not kept: what is there stays.
    #[tokio::test(start_paused = true)]
    async fn neither_many_nor_large_ones_exceed_the_room() {
        let (recent, began) = (Recent::default(), Instant::now());
        add(&recent, 7);
        add(&recent, OCTETS + 1);
        let kept = recent.since(began);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].1.len(), 7);
        for _ in 0..MESSAGES + 10 {
            add(&recent, 1);
        }
        assert_eq!(recent.since(began).len(), MESSAGES);
    }
}
