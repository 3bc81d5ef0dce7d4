//! The names of metrics are an interface: dashboards and alarms are written against them.

use std::collections::BTreeSet;
use std::path::Path;

use spillway::telemetry::metrics::ALL;

/// Every metric that some room counts, by the names in the source.
fn counted(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            counted(&path, names);
            continue;
        }
        // Its table is what is compared with.
        if path.ends_with("telemetry/metrics.rs") || path.ends_with("tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        for (at, _) in text.match_indices("\"spillway_") {
            let name = text[at + 1..].split('"').next().unwrap_or_default();
            names.insert(name.to_owned());
        }
    }
}

/// What is counted has a help line, and what has a help line is counted.
#[test]
fn every_metric_is_described_and_every_description_is_true() {
    let mut names = BTreeSet::new();
    counted(Path::new("src"), &mut names);
    let described: BTreeSet<String> = ALL.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(names, described);
    assert_eq!(described.len(), ALL.len(), "a name is there twice");
}
