//! Gauges from the status. They are set when monitoring reads the metrics, because nothing reads them in between.

use metrics::gauge;

use super::{Status, Stored};
use crate::delivery::PaceState;

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
    }
    for health in &status.engines {
        let engine = || health.engine.to_string();
        gauge!("spillway_engine_slots", "engine" => engine()).set(health.slots as f64);
        gauge!("spillway_engine_scans", "engine" => engine()).set(health.running as f64);
        gauge!("spillway_engine_zombies", "engine" => engine()).set(health.zombies as f64);
        gauge!("spillway_engine_waiting", "engine" => engine()).set(health.waiting as f64);
        let out = health.replicas.iter().filter(|r| r.state() != "closed");
        gauge!("spillway_engine_replicas_out", "engine" => engine()).set(out.count() as f64);
    }
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
        let oldest = stats.oldest.map_or(0, |oldest| oldest.as_second());
        gauge!("spillway_lane_oldest_timestamp_seconds", "lane" => lane).set(oldest as f64);
    }
    gauge!("spillway_quarantine_bytes").set(stored.quarantine.octets as f64);
    gauge!("spillway_quarantine_limit_bytes").set(stored.quarantine.limit as f64);
}
