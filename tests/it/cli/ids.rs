//! Messages that are named by a part of their id, and the folder of an export.

use std::os::unix::fs::PermissionsExt;

use super::fabricated::{Fabricated, LEARNED, MALICIOUS, OPENED, PART, SPLIT, WAITING};

/// The folder of an export is made, for its owner alone. If it cannot be made, the error says what to do.
#[test]
fn export_makes_its_folder() {
    let store = Fabricated::new();
    let folder = tempfile::tempdir().expect("folder");
    let export = |to: &str, which: &[&str]| {
        let path = folder.path().join(to).display().to_string();
        let export = ["quarantine", "export", "-o", &path, "--yes"];
        store.run(None, &[&export, which].concat(), "")
    };
    for (to, which, files) in [
        ("one/below/", &[MALICIOUS][..], 1),
        ("two", &[MALICIOUS, SPLIT], 2),
        ("all", &["--all"], 3),
        ("all/", &["--all", "--format", "mbox"], 3),
    ] {
        let ran = export(to, which);
        let is_mbox = which.contains(&"mbox");
        assert_eq!(ran.exit, if is_mbox { 64 } else { 0 }, "{to}: {}", ran.err);
        let made = folder.path().join(to);
        let mode = std::fs::metadata(&made).expect(to).permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{to}");
        assert_eq!(std::fs::read_dir(made).expect(to).count(), files, "{to}");
    }
    let file = export("single.eml", &[MALICIOUS]);
    assert_eq!(file.exit, 0, "{}", file.err);
    assert!(folder.path().join("single.eml").is_file());
    let wrong = export("single.eml/", &[MALICIOUS]);
    assert_eq!(wrong.exit, 64);
    for part in ["cannot make the folder", "name another one with --output"] {
        assert!(wrong.err.contains(part), "{}", wrong.err);
    }
    let dry = export("dry/", &["--all", "--dry-run"]);
    assert_eq!(dry.exit, 0, "{}", dry.err);
    assert!(
        !folder.path().join("dry").exists(),
        "a dry run makes nothing"
    );
}

/// Every command that takes an id takes any beginning that only one object has, in any case. One that several have changes
/// nothing, and lists what it may mean.
#[test]
fn every_command_takes_the_beginning_of_an_id() {
    let store = Fabricated::new();
    let start = |id: &str, length: usize| id[..length].to_lowercase();
    let malicious = start(MALICIOUS, 23);
    for (command, id) in [
        (&["quarantine", "show"][..], &malicious),
        (&["queue", "show"], &start(WAITING, 24)),
        (&["explain"], &malicious),
        (&["explain"], &start(PART, 23)),
        (&["intercept", "show"], &start(LEARNED, 22)),
        (&["incident", "show"], &start(OPENED, 22)),
        (&["quarantine", "delete", "--dry-run"], &malicious),
    ] {
        let ran = store.run(None, &[command, &[id.as_str()]].concat(), "");
        assert_eq!(ran.exit, 0, "{command:?}: {}", ran.err);
        let named = ran.out.to_lowercase();
        assert!(named.contains(id), "{command:?}: {}", ran.out);
    }
    let shared = start(MALICIOUS, 10);
    for (arguments, listed) in [
        (&["quarantine", "show", &shared][..], 5),
        (&["quarantine", "release", &shared], 5),
        (&["quarantine", "delete", &shared, "--yes"], 5),
        (&["queue", "retry", &shared], 5),
        (&["explain", &shared], 7),
        (&["intercept", "show", &shared], 2),
        (&["intercept", "remove", &shared], 2),
        (&["incident", "show", &shared], 4),
    ] {
        let ran = store.run(None, arguments, "");
        assert_eq!(ran.exit, 64, "{arguments:?}: {}", ran.out);
        let lines: Vec<&str> = ran.err.lines().collect();
        assert!(lines[0].contains("give more of the id"), "{}", ran.err);
        assert_eq!(lines.len(), 1 + listed, "{arguments:?}: {}", ran.err);
    }
    let none = store.run(None, &["quarantine", "delete", "7zzz", "--yes"], "");
    assert_eq!(none.exit, 1, "{}", none.err);
    assert_eq!(store.held(), 3, "nothing was changed so far");
    let released = store.run(None, &["quarantine", "release", &malicious], "");
    assert_eq!(released.out, format!("released {MALICIOUS}\n"));
    let split = start(SPLIT, 23);
    let deleted = store.run(None, &["quarantine", "delete", &split], "");
    assert_eq!(deleted.out, format!("deleted {SPLIT}\n"));
    let learned = start(LEARNED, 22);
    let removed = store.run(None, &["intercept", "remove", &learned], "");
    assert_eq!(removed.out, format!("removed {LEARNED}\n"));
}
