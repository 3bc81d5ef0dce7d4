//! The metrics: counted in memory, and rendered for a request (`/metrics`).

use std::sync::{Mutex, PoisonError};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Buckets of every histogram named `…_seconds`, from the time of an engine in process (1 ms) to that of the longest budget.
const BUCKETS_SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0,
];

/// Buckets of every histogram named `…_bytes`: message sizes from 1 KiB to 64 MiB.
const BUCKETS_BYTES: [f64; 9] = [
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number that grows and falls.
    Gauge,
    /// A distribution of values over buckets.
    Histogram,
}

/// Every metric of this program: its name, its kind, and its help line in `/metrics`. A test compares the names with those that
/// the rooms use.
pub const ALL: [(&str, Kind, &str); 37] = [
    (
        "spillway_recipients_total",
        Kind::Counter,
        "Recipients by event: delivered, held, rejected, deferred …",
    ),
    (
        "spillway_bounces_total",
        Kind::Counter,
        "Bounces by outcome: written, shortened, held, dropped; also mail that is held (not-allowed) or dropped (nobody) because no bounce may be written",
    ),
    (
        "spillway_expired_total",
        Kind::Counter,
        "Held messages that expired, by reason: age (end of the retention), surplus (too many undeliverable bounces)",
    ),
    (
        "spillway_not_kept_total",
        Kind::Counter,
        "Messages that the store could not keep or change; a sender in a session gets a 4xx reply, stored mail is tried again",
    ),
    (
        "spillway_lane_errors_total",
        Kind::Counter,
        "Failures of the store in background work; the relay tries this work again",
    ),
    (
        "spillway_sessions_refused_total",
        Kind::Counter,
        "Sessions refused because too many were open, in total or of one client, by listener",
    ),
    (
        "spillway_refusals_total",
        Kind::Counter,
        "Refusals of connections, commands and messages, by stage and reason (docs/LOGS.md)",
    ),
    (
        "spillway_admission_refused_total",
        Kind::Counter,
        "Transactions refused at admission, by reason: too much memory or waiting work, of one client or sender (…-share) or of all together",
    ),
    (
        "spillway_scans_total",
        Kind::Counter,
        "Reports of engines, by engine and by answer: nothing-found, found, or the reason of a missing answer",
    ),
    (
        "spillway_scan_seconds",
        Kind::Histogram,
        "Time from the request of a scan to the engine's report, with the wait for a slot, by engine",
    ),
    (
        "spillway_rule_loads_total",
        Kind::Counter,
        "Reloads of changed rule files, by outcome: loaded; refused (the old rules stay in force); late (reading takes more than a minute)",
    ),
    (
        "spillway_scan_retries_total",
        Kind::Counter,
        "Further attempts: calls of an engine for a message after the first call, by engine",
    ),
    (
        "spillway_deliveries_total",
        Kind::Counter,
        "Recipients by next hop and outcome: delivered, deferred, held-back, failed",
    ),
    (
        "spillway_delivery_seconds",
        Kind::Histogram,
        "Time from the start of a delivery to the next hop's answer, by next hop",
    ),
    (
        "spillway_next_hop_connections",
        Kind::Gauge,
        "Open connections to each next hop, with idle ones",
    ),
    (
        "spillway_next_hop_throttles_total",
        Kind::Counter,
        "Replies with which a next hop deferred mail for reasons other than the message",
    ),
    (
        "spillway_next_hop_dead",
        Kind::Gauge,
        "1 while a next hop does not work and gets one delivery at a time as a probe, else 0",
    ),
    (
        "spillway_next_hop_rate",
        Kind::Gauge,
        "Maximum rate of deliveries to a next hop, in messages per second; +Inf without a limit",
    ),
    ("spillway_sessions", Kind::Gauge, "Open SMTP sessions"),
    (
        "spillway_ready",
        Kind::Gauge,
        "1 while the relay accepts new mail, else 0",
    ),
    (
        "spillway_memory_available_bytes",
        Kind::Gauge,
        "Free octets of limits.in_flight_bytes",
    ),
    (
        "spillway_lane_messages",
        Kind::Gauge,
        "Stored messages by lane: scan, delivery, held, rescan",
    ),
    (
        "spillway_lane_bytes",
        Kind::Gauge,
        "Octets of the content of stored messages, by lane",
    ),
    (
        "spillway_quarantine_bytes",
        Kind::Gauge,
        "Octets that held messages use, content and metadata",
    ),
    (
        "spillway_quarantine_limit_bytes",
        Kind::Gauge,
        "Maximum of spillway_quarantine_bytes: quarantine.max_bytes, or the room on the disk if that is less",
    ),
    (
        "spillway_lane_oldest_timestamp_seconds",
        Kind::Gauge,
        "Time at which the oldest stored message was received, by lane; 0 if the lane is empty",
    ),
    (
        "spillway_incidents_total",
        Kind::Counter,
        "Entries of the incident log, by kind",
    ),
    (
        "spillway_log_lost_total",
        Kind::Counter,
        "Entries lost by the history or the incident log, because the queue was full or the disk failed; lines that the syslog daemon did not take (log=\"syslog\")",
    ),
    (
        "spillway_rescans_dropped_total",
        Kind::Counter,
        "Messages that were delivered without some engine's answer and removed before a later scan, by reason: room, age",
    ),
    (
        "spillway_rescans_lost_total",
        Kind::Counter,
        "Messages that were delivered without some engine's answer and get no later scan: not kept, or timed out twice",
    ),
    (
        "spillway_recent_dropped_total",
        Kind::Counter,
        "Delivered messages that left memory, for lack of room, before probes could show wrong answers of their engines",
    ),
    (
        "spillway_engine_slots",
        Kind::Gauge,
        "Slots: maximum number of concurrent scans of all replicas, by engine",
    ),
    (
        "spillway_engine_scans",
        Kind::Gauge,
        "Running scans, with zombies, by engine",
    ),
    (
        "spillway_engine_zombies",
        Kind::Gauge,
        "Scans past their timeout that still hold their slot, by engine",
    ),
    (
        "spillway_engine_waiting",
        Kind::Gauge,
        "Messages that wait for a slot, by engine",
    ),
    (
        "spillway_engine_replicas_out",
        Kind::Gauge,
        "Replicas that do not get all their mail, by engine: breaker not closed, drained, or resting",
    ),
    (
        "spillway_info",
        Kind::Gauge,
        "Always 1; the label gives the version",
    ),
];

static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Starts the metrics. Later calls do nothing, so that several relays in one process share them.
pub fn install() {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_some() {
        return;
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_SECONDS)
        .and_then(|b| {
            b.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BUCKETS_BYTES)
        })
        // Only an empty list of buckets is an error; the default buckets would do.
        .unwrap_or_else(|_| PrometheusBuilder::new())
        .build_recorder();
    let handle = recorder.handle();
    // If the process has another recorder already, that one stays, and `render` returns nothing.
    if ::metrics::set_global_recorder(recorder).is_ok() {
        *installed = Some(handle);
        ALL.iter().for_each(describe);
    }
}

fn describe((name, kind, help): &(&'static str, Kind, &'static str)) {
    match kind {
        Kind::Counter => ::metrics::describe_counter!(*name, *help),
        Kind::Gauge => ::metrics::describe_gauge!(*name, *help),
        Kind::Histogram => ::metrics::describe_histogram!(*name, *help),
    }
}

/// All metrics in the text format of Prometheus; empty before [`install`].
pub fn render() -> String {
    handle().map_or_else(String::new, |handle| handle.render())
}

/// Compacts the samples that histograms have collected since the last call or [`render`]. Needs a call every few seconds:
/// otherwise samples accumulate while no monitoring reads the metrics.
pub fn upkeep() {
    if let Some(handle) = handle() {
        handle.run_upkeep();
    }
}

fn handle() -> Option<PrometheusHandle> {
    INSTALLED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters and histograms are rendered, durations in buckets, and a second installation loses nothing.
    #[test]
    fn counts_survive_a_second_install() {
        install();
        ::metrics::counter!("spillway_test_total").increment(2);
        ::metrics::histogram!("spillway_test_seconds").record(0.02);
        install();
        upkeep();
        let page = render();
        assert!(page.contains("spillway_test_total 2"), "{page}");
        assert!(page.contains("spillway_test_seconds_bucket{le=\"0.025\"} 1"));
    }
}
