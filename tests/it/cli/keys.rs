//! `check-config --explain`.

use super::golden::golden;
use super::program;

/// A key is explained with its default, range, unit, meaning, and the lines of the values in force; a section with all its keys.
/// An unknown key is an error that names the nearest one.
#[test]
fn a_key_is_explained() {
    let folder = tempfile::tempdir().expect("folder");
    let config = folder.path().join("spillway.toml");
    let text = "[guard]\ncanaries = 3\nopen_max = \"1m\"\n\n[[engine]]\nname = \"clamd\"\nkind = \"clamd\"\n\
        address = [\"127.0.0.1:3310\"]\ntimeout = \"8s\"\ncanaries = 1\n\n[[engine]]\nname = \"rules\"\nkind = \"rules\"\n";
    std::fs::write(&config, text).expect("writes");
    let file = config.to_str().expect("UTF-8");
    for (name, arguments) in [
        ("check-config-explain.txt", &["guard.canaries"][..]),
        ("check-config-explain.json", &["guard.canaries", "--json"]),
        ("check-config-explain-of-engine.txt", &["engine.canaries"]),
        ("check-config-explain-kinds.txt", &["engine.timeout"]),
        ("check-config-explain-section.txt", &["guard"]),
    ] {
        let mut all = vec!["check-config", "--config", file, "--explain"];
        all.extend(arguments);
        let output = program(&all);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let shown = String::from_utf8(output.stdout).expect("UTF-8");
        let folder = folder.path().to_str().expect("UTF-8");
        golden(name, &shown.replace(folder, "FOLDER"));
    }
    let output = program(&[
        "check-config",
        "--config",
        file,
        "--explain",
        "guard.canary",
    ]);
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(told.contains("did you mean guard.canaries?"), "{told}");
    std::fs::write(&config, text.replace("= 3", "= 0")).expect("writes");
    let output = program(&[
        "check-config",
        "--config",
        file,
        "--explain",
        "guard.canaries",
    ]);
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(told.contains("the configuration has 1 problem"), "{told}");
    assert_eq!(
        output.status.code(),
        Some(0),
        "its problem may be why one asks"
    );
}
