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
    for more in [&[][..], &["--diff"], &["--explain", "rule.client"]] {
        let counted = files.each_ref().map(|file| {
            let compared = more.contains(&"--diff").then_some(file.as_str());
            let words = ["check-config", "--config", file];
            let words = words.into_iter().chain(more.iter().copied());
            instructions(&words.chain(compared).collect::<Vec<_>>())
        });
        let [small, middle, large] = counted;
        // The first difference is 150 rules, the second 300; what the command costs without rules is in neither.
        let growth = (large - middle) as f64 / (middle - small) as f64;
        assert!(growth < 2.5, "check-config {more:?}: {counted:?}");
    }
}
