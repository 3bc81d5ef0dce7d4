//! Comparing what is printed with what was reviewed.

use std::path::Path;

/// Compares with `tests/it/golden/<name>`, or writes it if `SPILLWAY_GOLDEN=write`.
pub fn golden(name: &str, seen: &str) {
    let file = Path::new("tests/it/golden").join(name);
    if std::env::var_os("SPILLWAY_GOLDEN").is_some_and(|what| what == "write") {
        std::fs::write(&file, seen).expect("writes");
        return;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    let first = expected
        .lines()
        .zip(seen.lines())
        .position(|(expected, seen)| expected != seen);
    assert!(
        expected == seen,
        "{name} differs from line {:?} on; SPILLWAY_GOLDEN=write accepts this:\n{seen}",
        first.map(|line| line + 1)
    );
}
