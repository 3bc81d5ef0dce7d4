//! The reference configuration and the code say the same; a diff says what changed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::document::Setting;
use super::*;
use crate::verdict::{Disposition, EngineClass, Reason};

fn parse(text: &str) -> Result<Config, Problems> {
    read(text, "spillway.toml", Path::new(""), "test".into())
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The reference with every optional key and section in force: the lines that begin with `#` and a key or a section.
fn uncommented() -> String {
    let is_key = |line: &str| {
        let word = line.split([' ', ']']).next().unwrap_or_default();
        let letter = |c: char| c.is_ascii_lowercase() || c == '_' || c == '[';
        !word.is_empty()
            && word.chars().all(letter)
            && (line.contains(" = ") || line.starts_with("[["))
    };
    let mut text = String::new();
    for line in REFERENCE.lines() {
        text.push_str(match line.strip_prefix('#') {
            Some(rest) if is_key(rest) => rest,
            _ => line,
        });
        text.push('\n');
    }
    text
}

/// `engine.timeout` of `engine.clamd.timeout`: the same key of all sections of one list.
fn without_name(key: &str) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    match parts[..] {
        [list @ ("listener" | "engine" | "rule" | "next_hop"), _, key] => format!("{list}.{key}"),
        _ => key.to_owned(),
    }
}

/// The reference as it stands means the same as no configuration at all, to the last value.
#[test]
fn the_reference_is_the_default() {
    let mut reference = good(REFERENCE);
    let nothing = good("");
    // What stands in the file and what is left out are shown alike.
    assert_eq!(diff(&reference, &nothing), Vec::<String>::new());
    reference.shown.clone_from(&nothing.shown);
    assert_eq!(reference, nothing);
    assert!(nothing.warnings.is_empty(), "{:?}", nothing.warnings);
}

/// Reference and code, both ways: every key in the file is one the code reads (the reader complains of any other), every
/// key the code reads stands in the file, and at its default where it has one.
#[test]
fn every_key_stands_in_the_reference_at_its_default() {
    let text = uncommented();
    let log = RefCell::new(Log::default());
    build(&text, "test".into(), &log).expect("the reference is TOML");
    let log = log.into_inner();
    // The files that it names are not on this machine; nothing else may be wrong.
    let wrong: Vec<_> = log
        .problems
        .iter()
        .filter(|p| !p.what.ends_with("does not exist"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What a class must answer depends on which engines there are; the test above has seen it without the optional ones.
    let depends = |one: &Setting| one.default.is_none() || one.key.starts_with("coverage.");
    let shows = |one: &Setting, other: &Setting| {
        other.place.is_some()
            && without_name(&other.key) == without_name(&one.key)
            && (depends(one) || other.value == one.default)
    };
    let absent: BTreeSet<&str> = log
        .settings
        .iter()
        .filter(|one| !log.settings.iter().any(|other| shows(one, other)))
        .map(|one| &*one.key)
        .collect();
    assert!(
        absent.is_empty(),
        "not in config/spillway.toml at their defaults: {absent:?}"
    );
}

/// The defaults are the ones that the design promises.
#[test]
fn the_defaults_reach_the_rooms() {
    let config = good("");
    assert_eq!(config.limits, listener::Limits::default());
    assert_eq!(config.budget, Budget::default());
    assert_eq!(config.store, store::Settings::default());
    assert_eq!(config.policy.coverage[&EngineClass::Av], 1);
    assert_eq!(config.policy.coverage[&EngineClass::Spam], 0);
    for reason in Reason::ALL {
        assert_ne!(
            config.policy.missing[&reason],
            Disposition::Deliver,
            "{reason:?}"
        );
    }
    assert!(!config.relay.hostname.is_empty());
    assert_eq!(&*config.version, "test");
    assert_eq!(&*load(None).expect("defaults").version, "default");
    assert_eq!(config.admin.socket, Path::new("spillway-data/control.sock"));
}

/// A section that is left out is the default one; a list that is given replaces the default list.
#[test]
fn a_given_list_replaces_the_default_one() {
    let config = good(
        "[[engine]]\nname = \"clamd\"\nkind = \"clamd\"\naddress = [\"127.0.0.1:3310\", \"unix:/run/c\"]\ntimeout = \"2s\"",
    );
    assert_eq!(config.engines.len(), 1);
    assert_eq!(config.engines[0].timeout, Duration::from_secs(2));
    assert_eq!(config.policy.coverage[&EngineClass::Content], 0);
    assert_eq!(config.listeners.len(), 1);
}

/// A reload shows each change once, in words: values, sections that come and go, and the order where it matters.
#[test]
fn a_diff_says_what_changes() {
    let rule = |name: &str| {
        format!("[[rule]]\nname = \"{name}\"\nsender = [\"a@*\"]\nthen = \"reject\"\n")
    };
    let old = good(&format!(
        "[limits]\nrecipients = 1000\n{}{}",
        rule("a"),
        rule("b")
    ));
    let new = good(&format!(
        "[limits]\nrecipients = 500\nidle = \"2m\"\n[relay]\nhostname = \"mx.example.com\"\n{}{}{}",
        rule("c"),
        rule("b"),
        rule("a")
    ));
    assert_eq!(
        diff(&old, &new),
        [
            "rule c: added",
            "limits.idle: \"5m\" -> \"2m\"",
            "limits.recipients: 1000 -> 500",
            "relay.hostname: \"\" -> \"mx.example.com\"",
            "rule: the order is now c, b, a",
        ]
    );
    assert!(diff(&new, &old).contains(&"rule c: removed".to_owned()));
    assert!(settings_that_need_restart(&old, &new).is_empty());
}

/// What a reload cannot change is told, so that it can refuse instead of pretending.
#[test]
fn what_needs_a_restart_is_told() {
    let old = good("");
    let new = good(
        "[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:2526\"]\nmode = \"queue\"\n[store]\npath = \"elsewhere\"",
    );
    assert_eq!(
        settings_that_need_restart(&old, &new),
        [
            "listener.smtp.address: [\"127.0.0.1:2525\"] -> [\"127.0.0.1:2526\"]",
            "store.path: \"spillway-data\" -> \"elsewhere\"",
        ]
    );
    let more = good("[[listener]]\nname = \"other\"\naddress = [\"127.0.0.1:2525\"]");
    assert_eq!(
        settings_that_need_restart(&old, &more),
        ["listener other: added", "listener smtp: removed"]
    );
}

/// A password that every user of the machine can read is allowed, since the machine may have one user only, but told.
#[test]
fn a_readable_password_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "secret").expect("password");
    let file = folder.path().join("spillway.toml");
    let text = "[[next_hop]]\nname = \"out\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"mail.example.com:25\"]\n\
        tls = \"verified\"\nusername = \"relay\"\npassword_file = \"password\"";
    std::fs::write(&file, text).expect("file");
    let warnings = |mode| {
        std::fs::set_permissions(&password, PermissionsExt::from_mode(mode)).expect("mode");
        load(Some(&file)).expect("good").warnings
    };
    assert_eq!(warnings(0o640), Vec::<String>::new());
    let told = warnings(0o644);
    assert!(
        told[0].contains(":8: next_hop.out.password_file: "),
        "{told:?}"
    );
    assert!(told[0].ends_with("chmod 0640 it"), "{told:?}");
}

/// A relay that knows only domains of its own can return nothing to senders elsewhere: that is told before the first bounce.
#[test]
fn no_next_hop_for_all_domains_is_a_warning() {
    let text = |domains: &str| {
        format!(
            "[[next_hop]]\nname = \"in\"\ndomains = {domains}\nkind = \"maildir\"\npath = \"m/{{local}}\""
        )
    };
    assert_eq!(
        good(&text("[\"a.example\", \"*\"]")).warnings,
        Vec::<String>::new()
    );
    let told = good(&text("[\"a.example\"]")).warnings;
    assert!(told[0].contains("bounce-undeliverable"), "{told:?}");
    assert!(told[0].contains("domains = [\"*\"]"), "{told:?}");
}

/// A file that cannot be read, is no text or has no end is a problem like any other.
#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("spillway.toml");
    let told = |file: &Path| load(Some(file)).expect_err("bad").to_string();
    assert!(told(&file).contains("cannot be read"));
    assert!(told(folder.path()).contains("cannot be read"));
    assert!(told(Path::new("/dev/zero")).contains("4 MiB"));
    std::fs::write(&file, b"[relay]\nhostname = \"\xff\"").expect("file");
    assert!(told(&file).contains("line 2 is not UTF-8"));
}
