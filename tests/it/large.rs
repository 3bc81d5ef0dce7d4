//! Large configurations: what one costs grows with its size, and not with the square of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::servers::left_out;

/// A configuration with this many rules.
fn with_rules(folder: &Path, rules: usize) -> PathBuf {
    // Its engine compiles nothing, which would cost more than all rules.
    let engine = "[[engine]]\nname = \"attachment\"\nkind = \"attachment\"\nclass = \"content\"\n";
    let mut text = engine.to_owned();
    for n in 0..rules {
        text.push_str(&format!(
            "[[rule]]\nname = \"r{n}\"\nsender = [\"a{n}@example.com\"]\nthen = \"reject\"\n"
        ));
    }
    let file = folder.join(format!("{rules}.toml"));
    std::fs::write(&file, text).expect("written");
    file
}

/// The instructions of a command, counted by valgrind.
fn instructions(arguments: &[&str]) -> u64 {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env!("CARGO_BIN_EXE_spillway"))
        .args(arguments)
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let count = said.split("Collected : ").nth(1).expect("a count");
    let count = count.split_whitespace().next().expect("a number");
    count.parse().expect("a number")
}

/// Twice as many rules cost twice as many instructions: to check them, to compare two configurations, and to explain a key. A
/// search of all that was read before, for each key, would cost four times as many.
#[test]
fn a_configuration_costs_what_its_size_is() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return left_out("a_configuration_costs_what_its_size_is", "no valgrind");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let files = [150, 300, 600].map(|rules| with_rules(folder.path(), rules));
    let files = files.map(|file| file.display().to_string());
    let commands: [&dyn Fn(&str) -> Vec<String>; 3] = [
        &|file| ["check-config", "--config", file].map(str::to_owned).into(),
        &|file| {
            ["check-config", "--config", file, "--diff", file]
                .map(str::to_owned)
                .into()
        },
        &|file| {
            ["check-config", "--config", file, "--explain", "rule.client"]
                .map(str::to_owned)
                .into()
        },
    ];
    for command in commands {
        let [few, more, most] = [0, 1, 2].map(|n: usize| {
            let words = command(&files[n]);
            instructions(&words.iter().map(String::as_str).collect::<Vec<_>>())
        });
        // The first difference is 150 rules, the second 300; what the command costs without rules is in neither.
        let growth = (most - more) as f64 / (more - few) as f64;
        assert!(growth < 2.5, "{:?}: {few}, {more}, {most}", command("FILE"));
    }
}
