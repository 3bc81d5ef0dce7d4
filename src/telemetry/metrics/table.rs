//! The table of all metrics. docs/METRICS.md describes them to administrators, and a test compares the two.

use super::refusals::{REFUSAL_REASONS, STAGES};
use super::{Kind, Metric, Values};
use crate::incident::{self, Subject};
use crate::verdict::{Disposition, Reason, Verdict};

use Values::{Engines, Listeners, NextHops, NotifyWays, Queues, Words};

/// The lanes of the store. The telemetry lies below the store, whose test compares the two lists.
const LANES: Values = Words(|| vec!["scan", "delivery", "held", "rescan"]);

/// What late mail waits for. The telemetry lies below the admin room, whose test compares the two lists.
const LATE_CAUSES: Values = Words(|| {
    vec![
        "work",
        "next-hop",
        "engine",
        "failing",
        "interceptor",
        "route",
        "retry",
        "turn",
    ]
});

const fn counter(
    name: &'static str,
    labels: &'static [(&'static str, Values)],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        labels,
        help,
    }
}

const fn gauge(
    name: &'static str,
    labels: &'static [(&'static str, Values)],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        labels,
        help,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [(&'static str, Values)],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind: Kind::Histogram,
        labels,
        help,
    }
}

/// Every metric of this program. Tests compare the names with those that the rooms count, and the series with those of a relay
/// that works.
pub static ALL: &[Metric] = &[
    // Messages.
    counter(
        "spillway_received_messages_total",
        &[("reply", Words(|| vec!["accepted", "deferred", "rejected"]))],
        "Messages that were taken to be judged, each once, by the reply to the sender: accepted (250), deferred (4xx), rejected (5xx)",
    ),
    counter(
        "spillway_judged_messages_total",
        &[(
            "verdict",
            Words(|| Verdict::ALL.map(Verdict::as_str).to_vec()),
        )],
        "Messages by verdict, each once, when their scan is done; a scan that is deferred does not count",
    ),
    counter(
        "spillway_shadow_decisions_total",
        &[
            (
                "from",
                Words(|| Disposition::ALL.map(Disposition::as_str).to_vec()),
            ),
            (
                "to",
                Words(|| {
                    let known = Disposition::ALL.map(Disposition::as_str);
                    known.into_iter().chain(["cannot-say"]).collect()
                }),
            ),
        ],
        "Messages about which a shadow configuration decided too, by disposition and by that of the shadow; a message whose recipients part ways counts once for each pair",
    ),
    counter(
        "spillway_recipients_total",
        &[(
            "event",
            Words(|| {
                vec![
                    "delivered",
                    "held",
                    "rejected",
                    "discarded",
                    "refused",
                    "given-up",
                    "bounced",
                    "shortened",
                    "dropped",
                ]
            }),
        )],
        "Recipients by what became of their mail; mail that is held again without having left quarantine does not count again",
    ),
    counter(
        "spillway_recipient_attempts_total",
        &[("event", Words(|| vec!["queued", "deferred", "delayed"]))],
        "Passes that did not end for a recipient, by what the mail waits for: queued (delivery), deferred (another scan), delayed (another delivery)",
    ),
    histogram(
        "spillway_message_delay_seconds",
        &[(
            "lane",
            Words(|| vec!["session", "scan", "delivery", "held"]),
        )],
        "Time from the end of data to the 250 of the next hop, of each delivered copy, by the lane from which it was delivered; without mail of the relay itself",
    ),
    counter(
        "spillway_bounces_total",
        &[(
            "outcome",
            Words(|| {
                vec![
                    "written",
                    "shortened",
                    "held",
                    "dropped",
                    "not-allowed",
                    "nobody",
                ]
            }),
        )],
        "Bounces by outcome: written, shortened, held, dropped; also mail that is held (not-allowed) or dropped (nobody) because no bounce may be written",
    ),
    counter(
        "spillway_expired_total",
        &[("why", Words(|| vec!["age", "surplus"]))],
        "Held messages that expired, by reason: age (end of the retention), surplus (too many undeliverable bounces)",
    ),
    counter(
        "spillway_not_kept_total",
        &[],
        "Messages that the store could not keep or change; a sender in a session gets a 4xx reply, stored mail is tried again",
    ),
    counter(
        "spillway_lane_errors_total",
        &[],
        "Failures of the store in background work; the relay tries this work again",
    ),
    // Sessions.
    gauge("spillway_sessions", &[], "Open SMTP sessions"),
    counter(
        "spillway_sessions_total",
        &[("listener", Listeners)],
        "Sessions that began, by listener, without those that were refused",
    ),
    counter(
        "spillway_sessions_ended_total",
        &[(
            "how",
            Words(|| {
                vec![
                    "quit",
                    "closed",
                    "timed-out",
                    "too-many-errors",
                    "drained",
                    "too-many-sessions",
                    "no-proxy-header",
                    "handshake-failed",
                    "http",
                    "lost",
                ]
            }),
        )],
        "Sessions that ended, by how they ended",
    ),
    counter(
        "spillway_refusals_total",
        &[
            ("stage", Words(|| STAGES.to_vec())),
            ("reason", Words(|| REFUSAL_REASONS.to_vec())),
        ],
        "Refusals of connections, commands and messages, by stage and reason (docs/LOGS.md)",
    ),
    counter(
        "spillway_sessions_refused_total",
        &[("listener", Listeners)],
        "Sessions refused because too many were open, in total or of one client, by listener",
    ),
    counter(
        "spillway_auth_attempts_total",
        &[
            ("mechanism", Words(|| vec!["PLAIN", "LOGIN"])),
            (
                "outcome",
                Words(|| vec!["accepted", "wrong", "malformed", "unavailable"]),
            ),
        ],
        "AUTH exchanges by mechanism and outcome: accepted, wrong (user or password), malformed (or cancelled), unavailable (not checked)",
    ),
    counter(
        "spillway_tls_handshakes_total",
        &[("version", Words(|| vec!["TLSv1.2", "TLSv1.3"]))],
        "TLS handshakes of sessions that succeeded, by version",
    ),
    counter(
        "spillway_tls_handshakes_failed_total",
        &[("why", Words(|| vec!["error", "timed-out"]))],
        "TLS handshakes of sessions that failed, by reason: error (of either side, or the client has left), timed-out",
    ),
    counter(
        "spillway_admission_refused_total",
        &[(
            "why",
            Words(|| vec!["memory-share", "work-share", "memory", "work"]),
        )],
        "Transactions refused at admission, by reason: too much memory or waiting work, of one client or sender (…-share) or of all together",
    ),
    // Engines.
    counter(
        "spillway_scan_reports_total",
        &[
            ("engine", Engines),
            (
                "answer",
                Words(|| {
                    let missing = Reason::ALL.map(Reason::as_str);
                    ["nothing-found", "found"]
                        .into_iter()
                        .chain(missing)
                        .collect()
                }),
            ),
        ],
        "Reports of engines, one for each pass of a message, by engine and by answer: nothing-found, found, or the reason of a missing answer",
    ),
    counter(
        "spillway_scan_attempts_total",
        &[("engine", Engines)],
        "Attempts: calls of an engine for a message, by engine; further attempts and later passes of a message count again",
    ),
    counter(
        "spillway_scan_retries_total",
        &[("engine", Engines)],
        "Further attempts: calls of an engine for a message after the first call of the same pass, by engine",
    ),
    histogram(
        "spillway_scan_seconds",
        &[("engine", Engines)],
        "Time from the request of a scan to the engine's report, with the wait for a slot, by engine",
    ),
    counter(
        "spillway_rule_loads_total",
        &[("outcome", Words(|| vec!["loaded", "refused", "late"]))],
        "Reloads of changed rule files, by outcome: loaded; refused (the old rules stay in force); late (reading takes more than a minute)",
    ),
    gauge(
        "spillway_engine_slots",
        &[("engine", Engines)],
        "Slots: maximum number of concurrent scans of all replicas, by engine",
    ),
    gauge(
        "spillway_engine_scans",
        &[("engine", Engines)],
        "Running scans, with zombies, by engine",
    ),
    gauge(
        "spillway_engine_zombies",
        &[("engine", Engines)],
        "Scans past their timeout that still hold their slot, by engine",
    ),
    gauge(
        "spillway_engine_waiting",
        &[("engine", Engines)],
        "Messages that wait for a slot, by engine",
    ),
    gauge(
        "spillway_engine_replicas_out",
        &[("engine", Engines)],
        "Replicas that do not get all their mail, by engine: breaker not closed, drained, or resting",
    ),
    counter(
        "spillway_passed_messages_total",
        &[("engine", Engines)],
        "Messages delivered without a drained engine that coverage needs, because a person lets mail pass, by engine",
    ),
    gauge(
        "spillway_engine_signature_age_seconds",
        &[("engine", Engines)],
        "Age of the oldest signatures that a replica of an engine uses; 0 if the engine does not tell",
    ),
    // Next hops.
    counter(
        "spillway_delivery_attempts_total",
        &[
            ("next_hop", NextHops),
            ("outcome", Words(|| vec!["delivered", "deferred", "failed"])),
        ],
        "Attempts to deliver a message, by next hop and by the best outcome of its recipients: delivered (a copy was taken), deferred, failed",
    ),
    counter(
        "spillway_next_hop_held_back_total",
        &[("next_hop", NextHops)],
        "Times that a message was not offered to a next hop because of its pace, by next hop; these are no attempts",
    ),
    histogram(
        "spillway_delivery_seconds",
        &[("next_hop", NextHops)],
        "Time from the start of a delivery to the next hop's answer, by next hop",
    ),
    gauge(
        "spillway_next_hop_connections",
        &[("next_hop", NextHops)],
        "Open connections to each next hop, with idle ones",
    ),
    counter(
        "spillway_next_hop_throttles_total",
        &[("next_hop", NextHops)],
        "Replies with which a next hop deferred mail for reasons other than the message",
    ),
    gauge(
        "spillway_next_hop_dead",
        &[("next_hop", NextHops)],
        "1 while a next hop does not work and gets one delivery at a time as a probe, else 0",
    ),
    gauge(
        "spillway_next_hop_rate",
        &[("next_hop", NextHops)],
        "Maximum rate of deliveries to a next hop, in messages per second; +Inf without a limit",
    ),
    gauge(
        "spillway_next_hop_oldest_message_age_seconds",
        &[("next_hop", Queues)],
        "Age of the oldest message that waits for delivery, by next hop, since its end of data; 0 without such mail; (none): no next hop of this configuration",
    ),
    // The store.
    gauge(
        "spillway_ready",
        &[],
        "1 while the relay accepts new mail, else 0",
    ),
    gauge(
        "spillway_memory_available_bytes",
        &[],
        "Free octets of limits.in_flight_bytes",
    ),
    gauge(
        "spillway_lane_messages",
        &[("lane", LANES)],
        "Stored messages by lane: scan, delivery, held, rescan",
    ),
    gauge(
        "spillway_lane_bytes",
        &[("lane", LANES)],
        "Octets of the content of stored messages, by lane",
    ),
    gauge(
        "spillway_lane_oldest_message_age_seconds",
        &[("lane", LANES)],
        "Age of the oldest stored message since its end of data, by lane; 0 if the lane is empty",
    ),
    gauge(
        "spillway_late_messages",
        &[("cause", LATE_CAUSES)],
        "Messages that have waited longer than a minute, by what they wait for; at most 10000 of each kind are counted",
    ),
    gauge(
        "spillway_quarantine_bytes",
        &[],
        "Octets that held messages use, content and metadata",
    ),
    gauge(
        "spillway_quarantine_limit_bytes",
        &[],
        "Maximum of spillway_quarantine_bytes: quarantine.max_bytes, or the room on the disk if that is less",
    ),
    gauge(
        "spillway_open_incidents",
        &[("subject", Words(|| Subject::WORDS.to_vec()))],
        "Incidents that last, by what has the trouble: an engine, an interceptor, a next hop, the quarantine, the relay, the store",
    ),
    counter(
        "spillway_incidents_total",
        &[(
            "kind",
            Words(|| incident::Kind::ALL.map(incident::Kind::as_str).to_vec()),
        )],
        "Entries of the incident log, by kind",
    ),
    counter(
        "spillway_notifications_total",
        &[
            ("way", NotifyWays),
            (
                "outcome",
                Words(|| vec!["told", "failed", "dropped", "summed-up"]),
            ),
        ],
        "Notifications of trouble, by way: told, failed (after all tries), dropped (too many at once, or the relay ended); and stories that a summary told (summed-up)",
    ),
    counter(
        "spillway_log_lost_total",
        &[("log", Words(|| vec!["history", "incidents", "syslog"]))],
        "Entries lost by the history or the incident log, because the queue was full or the disk failed; lines that the syslog daemon did not take (log=\"syslog\")",
    ),
    gauge(
        "spillway_log_failing",
        &[("log", Words(|| vec!["history", "incidents"]))],
        "1 while the file of the history or of the incident log cannot be written: nothing is recorded, and mail goes on",
    ),
    counter(
        "spillway_rescans_dropped_total",
        &[("why", Words(|| vec!["room", "age"]))],
        "Messages that were delivered without some engine's answer and removed before a later scan, by reason: room, age",
    ),
    counter(
        "spillway_rescans_lost_total",
        &[],
        "Messages that were delivered without some engine's answer and get no later scan: not kept, or timed out twice",
    ),
    counter(
        "spillway_recent_dropped_total",
        &[],
        "Delivered messages that left memory, for lack of room, before probes could show wrong answers of their engines",
    ),
    // The process.
    gauge(
        "spillway_info",
        &[("version", Words(|| vec![env!("CARGO_PKG_VERSION")]))],
        "Always 1; the label gives the version",
    ),
    counter(
        "process_cpu_seconds_total",
        &[],
        "Processor time of the relay, user and system, in seconds",
    ),
    gauge(
        "process_start_time_seconds",
        &[],
        "Start of the process, in seconds since 1970",
    ),
    gauge(
        "process_resident_memory_bytes",
        &[],
        "Memory of the process that is in RAM",
    ),
    gauge(
        "process_virtual_memory_bytes",
        &[],
        "Address space of the process",
    ),
    gauge("process_open_fds", &[], "Open file descriptors"),
    gauge(
        "process_max_fds",
        &[],
        "Maximum number of open file descriptors: the soft limit of the process",
    ),
];
