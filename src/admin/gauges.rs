//! Gauges from the status. They are set when monitoring reads the metrics, because nothing reads them in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use metrics::gauge;

use super::{Status, Stored, What};
use crate::deadline::steady_clock;
use crate::delivery::{HopStatus, PaceState};
use crate::telemetry::metrics::NO_NEXT_HOP;

/// Sets the gauges from a status.
pub(super) fn set(status: &Status) {
    gauge!("spillway_info", "version" => status.version.clone()).set(1.0);
    gauge!("spillway_ready").set(if status.not_ready.is_none() { 1.0 } else { 0.0 });
    gauge!("spillway_sessions").set(status.sessions as f64);
    gauge!("spillway_memory_available_bytes").set(status.memory_available as f64);
    for hop in &status.next_hops {
        let rate = hop
            .per_minute
            .map_or(f64::INFINITY, |rate| rate as f64 / 60.0);
        let dead = f64::from(u8::from(hop.state == PaceState::Dead));
        gauge!("spillway_next_hop_rate", "next_hop" => hop.name.to_string()).set(rate);
        gauge!("spillway_next_hop_dead", "next_hop" => hop.name.to_string()).set(dead);
    }
    if let Some(stored) = &status.stored {
        set_stored(stored);
        set_oldest(&status.next_hops, &stored.oldest_outgoing);
    }
    for health in &status.engines {
        let engine = || health.engine.to_string();
        gauge!("spillway_engine_slots", "engine" => engine()).set(health.slots as f64);
        gauge!("spillway_engine_scans", "engine" => engine()).set(health.running as f64);
        gauge!("spillway_engine_zombies", "engine" => engine()).set(health.zombies as f64);
        gauge!("spillway_engine_waiting", "engine" => engine()).set(health.waiting as f64);
        let out = health.replicas.iter().filter(|r| r.state() != "closed");
        gauge!("spillway_engine_replicas_out", "engine" => engine()).set(out.count() as f64);
        let signed = health.replicas.iter().filter_map(|replica| replica.signed);
        gauge!("spillway_engine_signature_age_seconds", "engine" => engine())
            .set(age(signed.min()));
    }
}

/// Sets the age of the oldest message for each next hop. The store may also have mail without a next hop, or for one that a
/// reload has removed: one series is for all of it.
fn set_oldest(next_hops: &[HopStatus], oldest: &BTreeMap<Arc<str>, Timestamp>) {
    let set = |next_hop: &str, oldest: Option<Timestamp>| {
        gauge!("spillway_next_hop_oldest_message_age_seconds", "next_hop" => next_hop.to_owned())
            .set(age(oldest));
    };
    for hop in next_hops {
        set(&hop.name, oldest.get(&hop.name).copied());
    }
    let is_unknown = |name: &str| next_hops.iter().all(|hop| *hop.name != *name);
    let unknown = oldest.iter().filter(|(name, _)| is_unknown(name));
    set(NO_NEXT_HOP, unknown.map(|(_, oldest)| *oldest).min());
}

/// The age in seconds of mail that arrived at this time, without leaps of the clock; 0 if there is none, and after the clock was
/// set back.
fn age(arrived: Option<Timestamp>) -> f64 {
    let age = |arrived| steady_clock(arrived).duration_since(arrived);
    arrived.map_or(0.0, |arrived| age(arrived).as_secs_f64().max(0.0))
}

/// Sets the gauges of the store. While the store does not answer, they keep their last values: zeros would look like an empty
/// store.
fn set_stored(stored: &Stored) {
    let lanes = [
        ("scan", &stored.scan),
        ("delivery", &stored.delivery),
        ("held", &stored.held),
        ("rescan", &stored.rescan),
    ];
    for (lane, stats) in lanes {
        gauge!("spillway_lane_messages", "lane" => lane).set(stats.messages as f64);
        gauge!("spillway_lane_bytes", "lane" => lane).set(stats.octets as f64);
        gauge!("spillway_lane_oldest_message_age_seconds", "lane" => lane).set(age(stats.oldest));
    }
    for what in What::OF_A_RUNNING_RELAY {
        let of = stored
            .late
            .iter()
            .filter(|late| late.waits_for.what == what);
        let messages: u64 = of.map(|late| late.mail.messages).sum();
        gauge!("spillway_late_messages", "cause" => what.as_str()).set(messages as f64);
    }
    gauge!("spillway_quarantine_bytes").set(stored.quarantine.octets as f64);
    gauge!("spillway_quarantine_limit_bytes").set(stored.quarantine.limit as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Counted, is_declared};

    /// The oldest message of each next hop has its age, an empty queue has 0, and mail for next hops that are gone is one series:
    /// the names in the store may be those of many earlier configurations.
    #[test]
    fn the_oldest_message_of_each_next_hop_has_its_age() {
        let (counted, _guard) = Counted::begin();
        let now = crate::deadline::wall_clock();
        let ago = |seconds| now - jiff::SignedDuration::from_secs(seconds);
        let oldest = [("mx", 1000), ("gone", 3000), ("", 2000), ("early", -9000)];
        let oldest = oldest.map(|(name, seconds)| (Arc::from(name), ago(seconds)));
        set_oldest(
            &["mx", "idle", "early"].map(HopStatus::sample),
            &oldest.into(),
        );
        let age = |next_hop| {
            let name = "spillway_next_hop_oldest_message_age_seconds";
            let series = format!("{name}{{next_hop=\"{next_hop}\"}}");
            counted.value(&series).map(|age| (age / 100.0).round())
        };
        assert_eq!(age("mx"), Some(10.0));
        assert_eq!(age("idle"), Some(0.0));
        assert_eq!(age(NO_NEXT_HOP), Some(30.0));
        assert_eq!(age("gone"), None);
        assert_eq!(age("early"), Some(0.0), "the clock was set back");
    }

    /// Each thing that mail may wait for has its series from the start.
    #[test]
    fn every_cause_of_late_mail_is_declared() {
        for what in What::OF_A_RUNNING_RELAY {
            let word = what.as_str();
            assert!(
                is_declared("spillway_late_messages", "cause", word),
                "{word}"
            );
        }
    }
}
