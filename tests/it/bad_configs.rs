//! Each folder of `tests/bad_configs` is one mistake an administrator may make (or several at once), with the exact
//! message owed for it.

use std::path::Path;

use spillway::config;

/// What the program says about one folder's file; the folder itself is left out of the messages.
fn complaint(folder: &str) -> String {
    let file = format!("{folder}/spillway.toml");
    let said = match config::load(Some(Path::new(&file))) {
        Ok(config) => {
            let warnings = config.warnings.iter();
            let warnings = warnings.map(|warning| format!("warning: {warning}\n"));
            format!("accepted\n{}", warnings.collect::<String>())
        }
        Err(problems) => format!("{problems}\n"),
    };
    said.replace(&format!("{folder}/"), "")
}

/// A configuration that could not work, or would harm others, never starts, and one that probably means something else gets a
/// warning; the message says where and what to write.
#[test]
fn every_bad_configuration_gets_the_message_it_is_owed() {
    let folders = std::fs::read_dir("tests/bad_configs").expect("tests/bad_configs");
    let mut names: Vec<String> = folders
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        })
        .collect();
    names.sort();
    assert!(names.len() >= 25, "only {} bad configurations", names.len());
    let mut wrong = String::new();
    for name in &names {
        let folder = format!("tests/bad_configs/{name}");
        let expected = std::fs::read_to_string(format!("{folder}/expected")).unwrap_or_default();
        let seen = complaint(&folder);
        if seen != expected {
            wrong.push_str(&format!("--- {name}: expected\n{expected}+++ seen\n{seen}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
