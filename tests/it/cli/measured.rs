//! What was measured of engines, and what is proposed from it.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use spillway::measure::{Latencies, Measured, Series};
use spillway::store::{history, measures};

use super::fabricated::Fabricated;
use super::golden::golden;

/// The present of [`Fabricated`]: 2026-11-20 12:00:00 UTC.
const NOW: i64 = 1_795_176_000;

/// A store of an engine that answers large mail late, but has only few scans: [`Measuring::scans`] adds them.
struct Measuring(Fabricated);

impl Measuring {
    fn new() -> Self {
        let made = Self(Fabricated::new());
        made.configure("");
        made
    }

    /// Writes a configuration with these lines about the engine.
    fn configure(&self, lines: &str) {
        let text = format!(
            "[relay]\nhostname = \"relay.example\"\n[store]\npath = \"store\"\n[admin]\nsocket = \"none.sock\"\n\
             [[engine]]\nname = \"clamd\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"127.0.0.1:3310\"]\n{lines}"
        );
        std::fs::write(self.0.config(), text).expect("writes");
    }

    fn history(&self) -> PathBuf {
        let folder = self.0.config().parent().expect("a folder").join("store");
        folder.join(history::FILE_NAME)
    }

    fn add(&self, ago: i64, measured: Measured, class: &str, all: &[(u64, u64)]) {
        let mut latencies = Latencies::default();
        for (count, microseconds) in all {
            (0..*count).for_each(|_| latencies.add(Duration::from_micros(*microseconds)));
        }
        let series = Series {
            measured,
            name: "clamd".into(),
            class: class.to_owned().into(),
        };
        let at = Timestamp::from_second(NOW - ago).expect("a time");
        measures::add(&self.history(), at, &[(series, latencies)]).expect("writes");
    }

    /// A usual day.
    fn scans(&self) {
        let hour = 3600;
        let small = [
            (40, 900),
            (7000, 4000),
            (4800, 12_000),
            (500, 90_000),
            (20, 700_000),
        ];
        self.add(2 * hour, Measured::Scan, "below-64k", &small);
        let large = [(900, 300_000), (90, 2_400_000), (10, 6_800_000)];
        self.add(2 * hour, Measured::Scan, "below-10m", &large);
        self.add(3 * hour, Measured::Scan, "below-64k", &small[..3]);
        self.add(
            2 * hour,
            Measured::Wait,
            "below-64k",
            &[(12_000, 100), (200, 40_000)],
        );
        self.add(2 * hour, Measured::Missed, "busy", &[(3, 1_000_000)]);
        let hostile = "lost\u{1b}[2J\u{202e}";
        self.add(2 * hour, Measured::Missed, hostile, &[(1, 150_000_000)]);
    }

    fn warnings(&self) -> Vec<String> {
        let ran = self.0.run(None, &["check-config", "--json"], "");
        assert_eq!(ran.exit, 0, "{}{}", ran.out, ran.err);
        let checked: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
        let warnings = checked["warnings"].as_array().expect("a list").iter();
        let warnings = warnings.map(|warning| warning.as_str().expect("text").to_owned());
        warnings.filter(|w| w.contains("the last 7 days")).collect()
    }
}

/// Without a relay, `engine show` draws what was measured before, and proposes settings; the output is as reviewed, on a terminal
/// of 80 columns, in a file, and as JSON. No text from the history acts on the terminal.
#[test]
fn what_was_measured_is_drawn_as_reviewed() {
    let made = Measuring::new();
    made.scans();
    for (name, width, arguments) in [
        (
            "engine-show-80.txt",
            Some(80),
            &["engine", "show", "clamd"][..],
        ),
        ("engine-show.txt", None, &["engine", "show", "clamd"]),
        (
            "engine-show.json",
            None,
            &["engine", "show", "clamd", "--json"],
        ),
    ] {
        let ran = made.0.run(width, arguments, "");
        assert_eq!(ran.exit, 0, "{}", ran.err);
        assert!(
            ran.err.contains("only what was measured before"),
            "{}",
            ran.err
        );
        assert!(!ran.out.contains(['\u{1b}', '\u{202e}']), "{}", ran.out);
        golden(name, &ran.out);
    }
    let ran = made
        .0
        .run(None, &["engine", "show", "clamd", "--since", "1h"], "");
    assert!(ran.out.contains("no scans since 11:00:00"), "{}", ran.out);
    // Whole periods are shown, so the time is that of the first one.
    let ran_later = made
        .0
        .run(None, &["engine", "show", "clamd", "--since", "61m"], "");
    assert!(
        ran_later.out.contains("no scans since 10:50:00"),
        "{}",
        ran_later.out
    );
    assert!(
        ran.out
            .contains("too little evidence (0 of at least 500 scans)"),
        "{}",
        ran.out
    );
    let ran = made.0.run(None, &["engine", "show", "other"], "");
    assert_eq!(ran.exit, 69, "{}", ran.err);
}

/// In an outage `engine show` says whether the engine is slow or dead, which threshold opened its breaker, and what to do; it does
/// not say that the settings may be kept. `check-config` warns of the settings of a slow one.
#[test]
fn an_outage_is_shown_as_reviewed() {
    for (name, late) in [
        ("engine-show-slow-80.txt", 25),
        ("engine-show-dead-80.txt", 0),
    ] {
        let made = Measuring::new();
        for ago in [3000, 2400, 1800] {
            made.add(ago, Measured::Scan, "below-64k", &[(6000, 40_000)]);
        }
        made.add(
            1200,
            Measured::Scan,
            "below-64k",
            &[(100, 40_000), (late, 6_500_000)],
        );
        made.add(1200, Measured::Missed, "breaker-open", &[(1500, 0)]);
        let ran = made.0.run(Some(80), &["engine", "show", "clamd"], "");
        assert_eq!(ran.exit, 0, "{}", ran.err);
        golden(name, &ran.out);
        let warnings = made.warnings();
        assert_eq!(warnings.len(), if late > 0 { 3 } else { 0 }, "{warnings:?}");
    }
}

/// `check-config` warns of a setting that contradicts what was measured, and says what to write; with that value it is silent. It
/// is silent as well with too few scans, and without a history that can be read.
#[test]
fn check_config_warns_of_contradictions() {
    let made = Measuring::new();
    assert_eq!(made.warnings(), Vec::<String>::new());
    made.add(
        86_400,
        Measured::Scan,
        "below-64k",
        &[(470, 40_000), (20, 3_000_000)],
    );
    made.configure("timeout = \"2s\"\n");
    assert_eq!(made.warnings(), Vec::<String>::new(), "too few");
    made.add(86_400, Measured::Scan, "below-64k", &[(10, 40_000)]);
    let warning = "engine clamd: timeout = 2s, but in the last 7 days 4.0 % of 500 answers took longer, and each of them was a \
                   missing answer; 99.9 % of the answers about mail below 64 KiB came within 3.1 s; propose timeout = 8s; see: \
                   spillway engine show clamd --since 7d";
    assert_eq!(made.warnings(), [warning]);
    made.configure("timeout = \"8s\"\n");
    assert_eq!(made.warnings(), Vec::<String>::new(), "fits");
    made.configure("timeout = \"2s\"\n");
    std::fs::write(made.history(), "no history ".repeat(1000)).expect("writes");
    assert_eq!(made.warnings(), Vec::<String>::new(), "damaged");
    let ran = made.0.run(None, &["check-config"], "");
    assert!(
        ran.err.starts_with("not compared with what was measured: "),
        "{}",
        ran.err
    );
    std::fs::remove_file(made.history()).expect("removes");
    assert_eq!(made.warnings(), Vec::<String>::new(), "none");
    let ran = made.0.run(None, &["check-config"], "");
    assert_eq!(ran.err, "", "nothing to compare");
}
