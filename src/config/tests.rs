//! Tests: the reference configuration agrees with the code, and a diff shows every change.

use std::collections::BTreeSet;
use std::time::Duration;

use super::document::Setting;
use super::reference::{Texts, uncommented, without_name};
use super::*;
use crate::verdict::{Disposition, EngineClass, Reason};

fn parse(text: &str) -> Result<Config, Problems> {
    read(text, "spillway.toml", Path::new(""), "test".into())
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The reference as it is means the same as no configuration, in every value.
#[test]
fn the_reference_is_the_default() {
    let mut reference = good(REFERENCE);
    let nothing = good("");
    // A diff shows keys of the file and omitted keys alike.
    assert_eq!(diff(&reference, &nothing), Vec::<String>::new());
    reference.shown.clone_from(&nothing.shown);
    assert_eq!(reference, nothing);
    assert!(nothing.warnings.is_empty(), "{:?}", nothing.warnings);
}

/// The reference and the code agree in both directions: the code reads every key of the file (the reader reports any other
/// key), and every key that the code reads is in the file, at its default if it has one.
#[test]
fn every_key_stands_in_the_reference_at_its_default() {
    let text = uncommented();
    let log = RefCell::new(Log::default());
    build(&text, "test".into(), &log).expect("the reference is TOML");
    let log = log.into_inner();
    // The files that the reference names are not on this machine. There must be no other problem.
    let wrong: Vec<_> = log
        .problems
        .iter()
        .filter(|p| !p.what.ends_with("does not exist"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The default of a coverage key depends on the configured engines. The test above compares it without the optional ones.
    let depends = |one: &Setting| one.default.is_none() || one.key.starts_with("coverage.");
    let shows = |one: &Setting, other: &Setting| {
        other.place.is_some()
            && without_name(&other.key) == without_name(&one.key)
            && (depends(one) || other.value == one.default)
    };
    let absent: BTreeSet<&str> = log
        .settings()
        .iter()
        .filter(|one| !log.settings().iter().any(|other| shows(one, other)))
        .map(|one| &*one.key)
        .collect();
    assert!(
        absent.is_empty(),
        "not in config/spillway.toml at their defaults: {absent:?}"
    );
}

/// The defaults of the configuration are the defaults of the rooms, and no reason for a missing answer delivers by default.
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

/// A missing section has its defaults; a list of sections in the file replaces the default list.
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

/// A reload shows each change once: changed values, added and removed sections, and the order of sections.
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

/// The keys that a reload cannot change are listed, so that the relay can refuse the reload.
#[test]
fn settings_that_need_a_restart_are_listed() {
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

/// A password file that every user of the machine can read causes a warning. It is allowed, because the machine may have
/// only one user.
#[test]
fn a_password_file_that_others_can_read_causes_a_warning() {
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
    assert!(told[0].ends_with("chmod 0640 FILE"), "{told:?}");
}

/// A listener with TLS whose files stand in the folder; `key` has this mode.
fn with_certificate(
    folder: &Path,
    certificate: &str,
    key: &str,
    mode: u32,
) -> Result<Config, Problems> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(folder.join("server.pem"), certificate).expect("certificate");
    std::fs::write(folder.join("server.key"), key).expect("key");
    let mode = PermissionsExt::from_mode(mode);
    std::fs::set_permissions(folder.join("server.key"), mode).expect("mode");
    let file = folder.join("spillway.toml");
    let text = "[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:0\"]\ntls = \"starttls\"\n\
        certificate = \"server.pem\"\nkey = \"server.key\"\n";
    std::fs::write(&file, text).expect("file");
    load(Some(&file))
}

/// The key of another certificate is a problem at its line, for each kind of key, and so is a file without PEM. A key that every
/// user of the machine can read is a warning.
#[test]
fn a_key_that_does_not_fit_is_a_problem() {
    let folder = tempfile::tempdir().expect("folder");
    let load = |certificate: &str, key: &str, mode| {
        with_certificate(folder.path(), certificate, key, mode)
    };
    let pair = |algorithm| {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("key");
        let params = rcgen::CertificateParams::new(vec!["relay.test".to_owned()]).expect("name");
        (
            params.self_signed(&key).expect("certificate").pem(),
            key.serialize_pem(),
        )
    };
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
        let ((certificate, key), (_, other)) = (pair(algorithm), pair(algorithm));
        assert_eq!(
            load(&certificate, &key, 0o640).expect("good").warnings,
            Vec::<String>::new()
        );
        let told = load(&certificate, &key, 0o644).expect("good").warnings;
        assert!(
            told[0].contains(":6: listener.smtp.key: every user"),
            "{told:?}"
        );
        let problem = load(&certificate, &other, 0o640)
            .expect_err("another key")
            .to_string();
        assert!(problem.contains(":6: listener.smtp.key: "), "{problem}");
        assert!(
            problem.contains("is not the key of the first certificate in "),
            "{problem}"
        );
        assert!(problem.contains("; name the key for which"), "{problem}");
    }
    let problem = load("x", "x", 0o640).expect_err("no PEM").to_string();
    assert!(
        problem.contains(":5: listener.smtp.certificate: "),
        "{problem}"
    );
}

/// Each word of another server names keys that exist, and none of these words is a key here.
#[test]
fn words_of_other_servers_name_keys_that_exist() {
    let log = RefCell::new(Log::default());
    build(&uncommented(), "test".into(), &log).expect("the reference is TOML");
    let log = log.into_inner();
    let known: BTreeSet<String> = log
        .settings()
        .iter()
        .map(|one| without_name(&one.key))
        .collect();
    for (word, server, keys) in other_servers::all() {
        assert!(!keys.is_empty() && server.ends_with("'s"), "{word}");
        for key in *keys {
            assert!(known.contains(*key), "{word}: there is no key {key}");
        }
        let is_ours = |key: &String| key.rsplit('.').next() == Some(word);
        assert!(!known.iter().any(is_ours), "{word} is a key");
    }
    assert!(other_servers::all().count() > 80);
    assert_eq!(other_servers::advice("recipients"), None);
}

/// A relay with next hops only for some domains cannot return bounces to senders in other domains. A warning says so before
/// the first bounce.
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

/// A file that cannot be read, is not UTF-8 or is too large is a problem like all others.
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

/// The explanation of each key has a text, and the text of a threshold contains the range that the code checks and what a larger
/// and a smaller value trade: the reference and the code are the only sources.
#[test]
fn every_key_is_explained() {
    let mut keys = 0;
    for section in SECTION_NAMES.into_iter().chain(["policy.missing"]) {
        for one in explain(None, section).expect("known").keys {
            keys += 1;
            let key = &one.key;
            assert!(one.text.len() > 10, "{key} has no text: {:?}", one.text);
            assert!(!one.unit.is_empty(), "{key}");
            if section != "guard" && section != "intercept" {
                continue;
            }
            let range = one.range.as_deref().expect("a range");
            let trades = ["Larger: ", "Longer: ", "Smaller: ", "Shorter: "];
            let trades = trades.iter().filter(|word| one.text.contains(*word));
            assert_eq!(
                trades.count(),
                if one.unit == "word" { 0 } else { 2 },
                "{key}"
            );
            for bound in range.split(" to ").flat_map(|words| words.split(", ")) {
                let bound = bound.trim_matches('"');
                assert!(
                    one.text.contains(bound),
                    "{key}: {range:?} is not in its text"
                );
            }
        }
    }
    assert!(keys > 150, "{keys}");
}

/// An explanation says which value is in force and which line sets it, for each engine, and names the key that is meant.
#[test]
fn an_explanation_names_the_line_of_the_value() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("spillway.toml");
    let text = "[guard]\ncanaries = 3\n[[engine]]\nname = \"one\"\nkind = \"rules\"\ncanaries = 1\n\
        [[engine]]\nname = \"two\"\nkind = \"rules\"\nslots = 0\n";
    std::fs::write(&file, text).expect("file");
    let shown = |key: &str| {
        let explained = explain(Some(&file), key).expect("known");
        assert_eq!(explained.problems, 1, "slots");
        let [key] = &explained.keys[..] else {
            panic!("{key}")
        };
        let value = |v: &ValueInForce| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let parts = [text(&v.section), text(&v.value), text(&v.set_by)];
            format!("{}, {:?}", parts.join(", "), v.line)
        };
        key.in_force.iter().map(value).collect::<Vec<_>>()
    };
    assert_eq!(
        shown("guard.canaries"),
        [", 3, , Some(2)", "engine one, 1, , Some(6)"]
    );
    let of_engines = [
        "engine one, 1, , Some(6)",
        "engine two, 3, guard.canaries, Some(2)",
    ];
    assert_eq!(shown("engine.canaries"), of_engines);
    assert_eq!(shown("engine.two.canaries"), of_engines[1..]);
    assert_eq!(shown("guard.open_max"), [", \"16s\", , None"]);
    for (wrong, meant) in [
        ("guard.canarys", "did you mean guard.canaries?"),
        ("quarantine_score", "did you mean policy.quarantine_score?"),
        ("gard", "did you mean guard?"),
        ("colour", "the sections are relay, "),
    ] {
        let told = explain(Some(&file), wrong)
            .expect_err("unknown")
            .to_string();
        assert!(told.contains(meant), "{told}");
    }
}

/// `check-config --explain` has a text about each key itself: that of its section would not say what this one does.
#[test]
fn every_key_explains_itself() {
    let log = RefCell::new(Log::default());
    build(&uncommented(), "test".into(), &log).expect("the reference is TOML");
    let log = log.into_inner();
    let (texts, keys) = (Texts::new(), log.settings().iter());
    let keys: BTreeSet<String> = keys.map(|one| without_name(&one.key)).collect();
    assert!(keys.len() > 200, "{}", keys.len());
    for key in &keys {
        // An engine's key of the guard has the text of that in `[guard]`.
        let of_guard = key
            .strip_prefix("engine.")
            .map(|key| format!("guard.{key}"));
        let about = of_guard.filter(|key| keys.contains(key));
        let about = about.as_ref().unwrap_or(key);
        let section = about.rsplit_once('.').expect("a section").0;
        let text = texts.about(about);
        assert!(!text.is_empty(), "{key} has no text of its own");
        assert_ne!(text, texts.about(section), "{key}");
    }
    let explained = explain(None, "notify.url").expect("a key");
    assert!(!explained.is_section && explained.keys.len() == 1);
    assert_eq!(explained.keys[0].text, texts.about("notify.url"));
}

/// A place is that of the value, also behind other than ASCII, at line ends of both kinds, and at the end of the text.
#[test]
fn places_count_lines_and_octets() {
    let log = RefCell::new(Log::default());
    let document = Document::parse("# ä\r\n\n\ta = \"ß\"; \n", true, &log);
    let place = |at| document.place(at).map(|place| (place.line, place.column));
    assert_eq!(place(0), Some((1, 1)));
    assert_eq!(place(5), Some((1, 6)));
    assert_eq!(place(6), Some((2, 1)));
    assert_eq!(place(7), Some((3, 1)));
    assert_eq!(place(12), Some((3, 6)));
    assert_eq!(place(19), Some((4, 1)), "the end");
    assert_eq!(place(20), None);
    let hidden = Document::parse("a = 1", false, &log);
    assert_eq!(hidden.place(4), None);
}
