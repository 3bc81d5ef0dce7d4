//! The metrics: counted in memory, and rendered for a request (`/metrics`).
//!
//! Each series is there from the start, with 0: `rate()` misses the first increment of a series that appears with it, and an
//! alarm on a series that is not there does not fire. So [`register`] makes all series of the [table](ALL), from the names in
//! the configuration. No label comes from mail or from a client, so mail cannot make further series.

mod refusals;
mod table;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use ::metrics::{Key, Label, Level, Metadata, with_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

pub use table::ALL;

/// Buckets of every other histogram named `…_seconds`, from the time of an engine in process (1 ms) to that of the longest
/// budget.
const BUCKETS_SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0,
];

/// Buckets of [`MESSAGE_DELAY`]: from a cut-through without engines to five days, after which most senders give up.
const DELAY_BUCKETS_SECONDS: [f64; 20] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 150.0, 300.0, 900.0,
    3600.0, 14_400.0, 86_400.0, 432_000.0,
];

/// The histogram with [`DELAY_BUCKETS_SECONDS`].
pub const MESSAGE_DELAY: &str = "spillway_message_delay_seconds";

/// The only gauge that is not set, but counted.
const NEXT_HOP_CONNECTIONS: &str = "spillway_next_hop_connections";

/// The value of a label for mail whose next hop is not, or no longer, in the configuration. No next hop can have this name.
pub const NO_NEXT_HOP: &str = "(none)";

/// Where the macros of `metrics` would say that a series comes from.
const REGISTERED: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

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

impl Kind {
    /// The word in the text format of Prometheus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, each with all values that it can have.
    pub labels: &'static [(&'static str, Values)],
    /// Its help line in `/metrics`.
    pub help: &'static str,
}

/// All values of a label.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// The names of the engines.
    Engines,
    /// The names of the next hops.
    NextHops,
    /// The names of the next hops, and [`NO_NEXT_HOP`].
    Queues,
    /// The names of the listeners.
    Listeners,
    /// The names of the ways to tell people of trouble.
    NotifyWays,
    /// These words.
    Words(fn() -> Vec<&'static str>),
}

/// The names in a configuration that are values of labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// The engines.
    pub engines: BTreeSet<String>,
    /// The next hops.
    pub next_hops: BTreeSet<String>,
    /// The listeners.
    pub listeners: BTreeSet<String>,
    /// The ways to tell people of trouble.
    pub notify_ways: BTreeSet<String>,
}

impl Names {
    /// These names without those that are in `others`.
    fn without(&self, others: &Self) -> Self {
        let without = |all: &BTreeSet<String>, others| all.difference(others).cloned().collect();
        Self {
            engines: without(&self.engines, &others.engines),
            next_hops: without(&self.next_hops, &others.next_hops),
            listeners: without(&self.listeners, &others.listeners),
            notify_ways: without(&self.notify_ways, &others.notify_ways),
        }
    }

    fn values(&self, values: Values) -> Vec<String> {
        match values {
            Values::Engines => self.engines.iter().cloned().collect(),
            Values::NextHops => self.next_hops.iter().cloned().collect(),
            Values::Queues => {
                let hops = self.next_hops.iter().cloned();
                hops.chain([NO_NEXT_HOP.to_owned()]).collect()
            }
            Values::Listeners => self.listeners.iter().cloned().collect(),
            Values::NotifyWays => self.notify_ways.iter().cloned().collect(),
            Values::Words(words) => words().into_iter().map(str::to_owned).collect(),
        }
    }
}

impl Metric {
    /// All series of this metric: each combination of the values of its labels.
    fn series(&self, names: &Names) -> Vec<Vec<Label>> {
        let mut series = vec![Vec::new()];
        for (label, values) in self.labels {
            let values = names.values(*values);
            series = series
                .into_iter()
                .flat_map(|labels| {
                    let with = |value: &String| {
                        let mut labels: Vec<Label> = labels.clone();
                        labels.push(Label::new(*label, value.clone()));
                        labels
                    };
                    values.iter().map(with).collect::<Vec<_>>()
                })
                .collect();
        }
        series
    }

    /// Whether this is a gauge that is set for each request, and for a name in the configuration. Open connections are counted
    /// where they open and close.
    fn is_set(&self) -> bool {
        let is_of_name = |(_, values): &(&str, Values)| !matches!(values, Values::Words(_));
        self.kind == Kind::Gauge
            && self.name != NEXT_HOP_CONNECTIONS
            && self.labels.iter().any(is_of_name)
    }

    /// Whether the recorder has this metric; the others are read at each request.
    fn is_recorded(&self) -> bool {
        !self.name.starts_with("process_")
    }
}

static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Starts the metrics. Later calls do nothing, so that several relays in one process share them.
pub fn install() {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_some() {
        return;
    }
    let recorder = builder().build_recorder();
    let handle = recorder.handle();
    // If the process has another recorder already, that one stays, and `render` returns nothing.
    if ::metrics::set_global_recorder(recorder).is_ok() {
        *installed = Some(handle);
        ALL.iter().for_each(describe);
    }
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_SECONDS)
        .and_then(|b| {
            let delay = Matcher::Full(MESSAGE_DELAY.to_owned());
            b.set_buckets_for_metric(delay, &DELAY_BUCKETS_SECONDS)
        })
        // Only an empty list of buckets is an error; the default buckets would do.
        .unwrap_or_else(|_| PrometheusBuilder::new())
}

fn describe(metric: &Metric) {
    let Metric { name, help, .. } = *metric;
    match metric.kind {
        Kind::Counter => ::metrics::describe_counter!(name, help),
        Kind::Gauge => ::metrics::describe_gauge!(name, help),
        Kind::Histogram => ::metrics::describe_histogram!(name, help),
    }
}

/// Makes all series for these names, with 0 where nothing was counted yet. To be called at the start, and at each reload with
/// the names before it. Series of names that are gone stay, because a counter that goes away and comes back looks like a
/// restart; their gauges become 0, so that no alarm goes on about an engine that was removed.
pub fn register(names: &Names, before: &Names) {
    let gone = before.without(names);
    for metric in ALL.iter().filter(|metric| metric.is_set()) {
        for labels in metric.series(&gone) {
            let key = Key::from_parts(metric.name, labels);
            with_recorder(|recorder| recorder.register_gauge(&key, &REGISTERED).set(0.0));
        }
    }
    for metric in ALL.iter().filter(|metric| metric.is_recorded()) {
        for labels in metric.series(names) {
            let key = Key::from_parts(metric.name, labels);
            with_recorder(|recorder| match metric.kind {
                Kind::Counter => recorder.register_counter(&key, &REGISTERED).increment(0),
                Kind::Gauge => recorder.register_gauge(&key, &REGISTERED).increment(0.0),
                Kind::Histogram => drop(recorder.register_histogram(&key, &REGISTERED)),
            });
        }
    }
}

/// All metrics in the text format of Prometheus; empty before [`install`]. Reads files of `/proc`, which may wait for the
/// kernel's locks.
pub fn render() -> String {
    handle().map_or_else(String::new, |handle| {
        let mut page = handle.render();
        super::process::render(&mut page);
        page
    })
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
pub(crate) use tests::{Counted, is_declared};

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusRecorder;

    use super::*;

    /// A recorder for one test, so that no other test of the process counts in it. Works in tests whose runtime has one thread.
    pub(crate) struct Counted(&'static PrometheusRecorder);

    impl Counted {
        /// Counts on this thread until the guard is dropped.
        pub(crate) fn begin() -> (Self, ::metrics::LocalRecorderGuard<'static>) {
            let recorder = Box::leak(Box::new(builder().build_recorder()));
            (
                Self(recorder),
                ::metrics::set_default_local_recorder(recorder),
            )
        }

        /// The value of a series, as in `/metrics`: `name{label="value"}`.
        pub(crate) fn value(&self, series: &str) -> Option<f64> {
            let page = self.0.handle().render();
            let mut lines = page.lines().filter_map(|line| line.rsplit_once(' '));
            let (_, value) = lines.find(|(name, _)| *name == series)?;
            value.parse().ok()
        }
    }

    /// Whether the table has this value of this label, so that the series is there from the start.
    pub(crate) fn is_declared(metric: &str, label: &str, value: &str) -> bool {
        let names = Names::default();
        let declares = |(name, values): &(&str, Values)| {
            *name == label && names.values(*values).iter().any(|word| word == value)
        };
        let metric = ALL.iter().find(|declared| declared.name == metric);
        metric.is_some_and(|metric| metric.labels.iter().any(declares))
    }

    /// Counters and histograms are rendered, durations in buckets, and a second installation loses nothing.
    #[test]
    fn counts_survive_a_second_install() {
        install();
        ::metrics::counter!("test_total").increment(2);
        ::metrics::histogram!("test_seconds").record(0.02);
        install();
        upkeep();
        let page = render();
        assert!(page.contains("test_total 2"), "{page}");
        assert!(page.contains("test_seconds_bucket{le=\"0.025\"} 1"));
    }

    fn names(engine: &str) -> Names {
        let one = |name: &str| BTreeSet::from([name.to_owned()]);
        Names {
            engines: one(engine),
            next_hops: one("mx"),
            listeners: one("smtp"),
            notify_ways: one("oncall"),
        }
    }

    /// Each series is there with 0 before the first event, also a series of a new configuration, and a reload resets nothing.
    #[test]
    fn each_series_is_there_from_the_start() {
        let (counted, _guard) = Counted::begin();
        register(&names("clamd"), &Names::default());
        for series in [
            "spillway_judged_messages_total{verdict=\"malicious\"}",
            "spillway_scan_reports_total{engine=\"clamd\",answer=\"breaker-open\"}",
            "spillway_delivery_attempts_total{next_hop=\"mx\",outcome=\"failed\"}",
            "spillway_next_hop_oldest_message_age_seconds{next_hop=\"(none)\"}",
            "spillway_message_delay_seconds_count{lane=\"held\"}",
            "spillway_scan_seconds_bucket{engine=\"clamd\",le=\"1\"}",
            "spillway_sessions_total{listener=\"smtp\"}",
            "spillway_not_kept_total",
            "spillway_notifications_total{way=\"oncall\",outcome=\"failed\"}",
        ] {
            assert_eq!(counted.value(series), Some(0.0), "{series}");
        }
        let attempts = |engine| format!("spillway_scan_attempts_total{{engine=\"{engine}\"}}");
        ::metrics::counter!("spillway_scan_attempts_total", "engine" => "clamd").increment(3);
        assert_eq!(counted.value(&attempts("rspamd")), None);
        let mut both = names("clamd");
        both.engines.insert("rspamd".to_owned());
        register(&both, &names("clamd"));
        assert_eq!(counted.value(&attempts("rspamd")), Some(0.0));
        assert_eq!(counted.value(&attempts("clamd")), Some(3.0));
    }

    /// A gauge of an engine that a reload removed does not stay as it was: an alarm about it would never end.
    #[test]
    fn gauges_of_what_is_gone_are_zero() {
        let (counted, _guard) = Counted::begin();
        let waiting = "spillway_engine_waiting{engine=\"clamd\"}";
        let connections = "spillway_next_hop_connections{next_hop=\"mx\"}";
        register(&names("clamd"), &Names::default());
        ::metrics::gauge!("spillway_engine_waiting", "engine" => "clamd").set(7.0);
        ::metrics::gauge!("spillway_next_hop_connections", "next_hop" => "mx").increment(1.0);
        register(&names("clamd"), &names("clamd"));
        assert_eq!(counted.value(waiting), Some(7.0));
        let after = Names {
            next_hops: BTreeSet::new(),
            ..names("rspamd")
        };
        register(&after, &names("clamd"));
        assert_eq!(counted.value(waiting), Some(0.0));
        assert_eq!(
            counted.value(connections),
            Some(1.0),
            "closing counts it down"
        );
    }

    /// The longest delays of the histogram differ: a message of an hour is not one of five days.
    #[test]
    fn delays_of_hours_have_buckets() {
        let (counted, _guard) = Counted::begin();
        ::metrics::histogram!(MESSAGE_DELAY, "lane" => "delivery").record(3000.0);
        let bucket = |le| format!("{MESSAGE_DELAY}_bucket{{lane=\"delivery\",le=\"{le}\"}}");
        assert_eq!(counted.value(&bucket(900)), Some(0.0));
        assert_eq!(counted.value(&bucket(3600)), Some(1.0));
    }
}
