//! Recently delivered messages, kept in memory for the time that probes need to detect an engine with wrong answers.
//!
//! An engine that calls everything clean (gray failure) is detected by its second wrong answer to a probe, about twenty seconds
//! later. Mail that was delivered on its answers meanwhile is scanned again when the engine can be trusted again. So is mail
//! that the engine has judged before and that is delivered later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use jiff::Timestamp;

use crate::message::Content;
use crate::store::{Cause, Record};

/// Minimum retention: 40 s, for two rounds of routine probes with their jitter, and the duration of the probes.
const RETENTION_MIN: Duration = Duration::from_secs(40);
/// Retention in rounds of routine probes, where an engine's probe interval makes that longer than [`RETENTION_MIN`].
const RETENTION_PROBE_ROUNDS: u32 = 4;
/// Maximum content in memory, in octets: 128 MiB. Beyond that, the oldest messages are removed and counted.
const CONTENT_OCTETS_MAX: usize = 128 << 20;
/// Maximum number of messages, because small messages have records too.
const MESSAGES_MAX: usize = 20_000;

/// One delivered message.
#[derive(Debug)]
struct Delivered {
    at: Instant,
    record: Record,
    content: Content,
}

/// The recently delivered messages.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    octets: usize,
    delivered: VecDeque<Delivered>,
    age: Duration,
    /// For each engine, the time at which wrong answers were last detected.
    found_out: BTreeMap<String, Timestamp>,
}

impl Recent {
    /// Keeps a delivered message for the retention time.
    pub(super) fn add(&self, record: Record, content: &Content) {
        let now = Instant::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let octets = content.len();
        kept.forget(now);
        // A message larger than the whole limit does not displace the others.
        if octets > CONTENT_OCTETS_MAX {
            metrics::counter!("spillway_recent_dropped_total").increment(1);
            return;
        }
        while kept.octets + octets > CONTENT_OCTETS_MAX || kept.delivered.len() >= MESSAGES_MAX {
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
            // Not charged to the memory budget of mail in flight, which must not wait for delivered mail.
            content: Content::uncharged(content.bytes().clone()),
        });
    }

    /// Removes messages past their retention, also if no further mail arrives. `probe` is the longest interval between two
    /// routine probes of any engine.
    pub(super) fn forget(&self, probe: Duration) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.age = probe.saturating_mul(RETENTION_PROBE_ROUNDS);
        kept.forget(Instant::now());
    }

    /// Notes that an engine has answered wrongly until now.
    pub(super) fn found_out(&self, engine: &str, now: Timestamp) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.found_out.insert(engine.to_owned(), now);
    }

    /// The engine that must scan a just delivered message again: one that answered about this message, and whose wrong answers
    /// were detected after the message arrived, perhaps long ago.
    pub(super) fn doubts(&self, record: &Record) -> Option<Cause> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = record.reports.iter().filter(|r| r.missing().is_none());
        let lied = answered.filter_map(|report| {
            let until = kept.found_out.get(&*report.engine)?;
            (record.received_at <= *until).then(|| report.engine.to_string())
        });
        lied.map(Cause::Engine).next()
    }

    /// Removes and returns the messages that were delivered since then.
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
            && now >= first.at + self.age.max(RETENTION_MIN)
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

    /// Only messages delivered since then are taken, and only once.
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

    /// Mail that arrived before wrong answers were detected, and was judged by that engine, is scanned again even if its
    /// delivery is much later.
    #[tokio::test(start_paused = true)]
    async fn what_a_liar_has_judged_is_doubted_whenever_it_is_delivered() {
        let recent = Recent::default();
        let judged = |by: &str| Record {
            reports: vec![Report::unasked(
                by.into(),
                EngineClass::Av,
                Answer::Answered(Vec::new()),
            )],
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

    /// Memory is bounded by octets, and messages past their retention are removed.
    #[tokio::test(start_paused = true)]
    async fn it_is_bounded() {
        let (recent, began) = (Recent::default(), Instant::now());
        for _ in 0..20 {
            add(&recent, CONTENT_OCTETS_MAX / 10);
        }
        assert_eq!(recent.since(began).len(), 10);
        add(&recent, 1);
        tokio::time::advance(RETENTION_MIN).await;
        add(&recent, 1);
        assert_eq!(recent.since(began).len(), 1);
        add(&recent, 1);
        tokio::time::advance(RETENTION_MIN).await;
        recent.forget(Duration::ZERO);
        assert_eq!(recent.since(began).len(), 0, "and without further mail");
    }

    /// Small messages are bounded by their number. A message larger than the whole limit is not kept and displaces no other.
    #[tokio::test(start_paused = true)]
    async fn neither_many_nor_large_ones_exceed_the_room() {
        let (recent, began) = (Recent::default(), Instant::now());
        add(&recent, 7);
        add(&recent, CONTENT_OCTETS_MAX + 1);
        let kept = recent.since(began);
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].1.len(), 7);
        for _ in 0..MESSAGES_MAX + 10 {
            add(&recent, 1);
        }
        assert_eq!(recent.since(began).len(), MESSAGES_MAX);
    }
}
