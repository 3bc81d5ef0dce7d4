//! The metrics: counted in memory, rendered when somebody asks (`/metrics`).

use std::sync::{Mutex, PoisonError};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Buckets of every histogram named `…_seconds`: from an engine in process to the longest budget.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0,
];

/// Buckets of every histogram named `…_bytes`: message sizes.
const BYTES: [f64; 9] = [
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

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Now so, now so.
    Gauge,
    /// How many took how long.
    Histogram,
}

/// Every metric of this program: its name, its kind, and what it tells, for the help lines of `/metrics`. The rooms that
/// count use the same names; a test compares.
pub const ALL: [(&str, Kind, &str); 36] = [
    (
        "spillway_recipients_total",
        Kind::Counter,
        "Recipients by what became of them: delivered, held, rejected, deferred …",
    ),
    (
        "spillway_bounces_total",
        Kind::Counter,
        "Bounces by what became of them: written, shortened, held, dropped; held (not-allowed) or dropped (nobody) in place of one",
    ),
    (
        "spillway_expired_total",
        Kind::Counter,
        "Messages that were held for as long as they were to be, or were too many of their kind, by that reason",
    ),
    (
        "spillway_not_kept_total",
        Kind::Counter,
        "Messages that could not be made durable; their senders were told to try again",
    ),
    (
        "spillway_lane_errors_total",
        Kind::Counter,
        "Background work that the store did not let happen; it is tried again",
    ),
    (
        "spillway_sessions_refused_total",
        Kind::Counter,
        "Sessions refused because there were too many",
    ),
    (
        "spillway_admission_refused_total",
        Kind::Counter,
        "Transactions refused because too much is held or waits: by whoever brings it (…-share) or by all together",
    ),
    (
        "spillway_scans_total",
        Kind::Counter,
        "Reports by engine and answer",
    ),
    (
        "spillway_scan_seconds",
        Kind::Histogram,
        "From the start of a scan to an engine's report, its wait for a slot included",
    ),
    (
        "spillway_rule_loads_total",
        Kind::Counter,
        "Rule files that have changed while the relay ran, by outcome: loaded; refused, and then the old rules stay; late, if reading takes more than a minute",
    ),
    (
        "spillway_scan_retries_total",
        Kind::Counter,
        "Second and further calls of an engine for the same message",
    ),
    (
        "spillway_deliveries_total",
        Kind::Counter,
        "Recipients by next hop and its answer",
    ),
    (
        "spillway_delivery_seconds",
        Kind::Histogram,
        "From the start of a delivery to the next hop's answer",
    ),
    (
        "spillway_next_hop_connections",
        Kind::Gauge,
        "Open connections to a next hop, idle ones included",
    ),
    (
        "spillway_next_hop_throttles_total",
        Kind::Counter,
        "Replies by which a next hop put us off for reasons other than the message",
    ),
    (
        "spillway_next_hop_dead",
        Kind::Gauge,
        "1 while a next hop does not work and gets one probing delivery at a time, else 0",
    ),
    (
        "spillway_next_hop_rate",
        Kind::Gauge,
        "Messages a second that go out to a next hop at most; +Inf where there is no limit",
    ),
    ("spillway_sessions", Kind::Gauge, "Sessions now"),
    (
        "spillway_ready",
        Kind::Gauge,
        "1 while new mail is taken, else 0",
    ),
    (
        "spillway_memory_available_bytes",
        Kind::Gauge,
        "What no message holds of limits.in_flight_bytes",
    ),
    (
        "spillway_lane_messages",
        Kind::Gauge,
        "Stored messages by what they wait for: scan, delivery, held, rescan",
    ),
    (
        "spillway_lane_bytes",
        Kind::Gauge,
        "Content of stored messages by what they wait for",
    ),
    (
        "spillway_quarantine_bytes",
        Kind::Gauge,
        "What is held takes so much: content, and everything that is known of it",
    ),
    (
        "spillway_quarantine_limit_bytes",
        Kind::Gauge,
        "What may be held: quarantine.max_bytes, or what the disk has room for if that is less",
    ),
    (
        "spillway_lane_oldest_timestamp_seconds",
        Kind::Gauge,
        "When the oldest stored message came in, by what it waits for; 0 if there is none",
    ),
    (
        "spillway_incidents_total",
        Kind::Counter,
        "Entries of the incident log by kind",
    ),
    (
        "spillway_log_lost_total",
        Kind::Counter,
        "Entries that history or the incident log did not take: too many waited, or the disk failed",
    ),
    (
        "spillway_rescans_dropped_total",
        Kind::Counter,
        "Messages delivered with less than full coverage that were not scanned again: no room, or too old",
    ),
    (
        "spillway_rescans_lost_total",
        Kind::Counter,
        "Messages delivered with less than full coverage that could not be kept to be scanned again",
    ),
    (
        "spillway_recent_dropped_total",
        Kind::Counter,
        "Delivered messages that were forgotten before it was known whether their engines could be believed: no room",
    ),
    (
        "spillway_engine_slots",
        Kind::Gauge,
        "Scans at once at most, by engine, all replicas together",
    ),
    (
        "spillway_engine_scans",
        Kind::Gauge,
        "Scans under way by engine, those that nobody waits for included",
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
        "Replicas that do not get all their mail, by engine: breaker not closed, or drained",
    ),
    (
        "spillway_info",
        Kind::Gauge,
        "Always 1; its labels tell the version",
    ),
];

static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Starts counting. Later calls do nothing, so that several relays may run in one process and share the counts.
pub fn install() {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_some() {
        return;
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES))
        // Only an empty list of buckets is refused; the default ones would do.
        .unwrap_or_else(|_| PrometheusBuilder::new())
        .build_recorder();
    let handle = recorder.handle();
    // Whoever else counts in this process keeps counting; then there is nothing to render.
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

/// Folds what histograms have collected since the last call or [`render`]. Without a call every few seconds their
/// samples would pile up where nobody scrapes.
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

    /// What is counted is rendered, durations in buckets, and installing twice loses nothing.
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
