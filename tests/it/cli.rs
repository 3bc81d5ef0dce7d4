//! The command line as people and programs see it: help, tables, JSON, exit codes.
//!
//! What is printed is compared with `tests/it/golden/`. After a wanted change, `SPILLWAY_GOLDEN=write` writes those files
//! anew; read the difference before it is committed.

mod fabricated;
mod golden;
mod ids;
mod incidents;
mod keys;
mod measured;
mod running;
mod scan;

use std::process::{Command, Stdio};

use fabricated::{
    BY_HAND, DELIVERED, Fabricated, HELD, LEARNED, MALICIOUS, PART, SPLIT, STRIKE, UNDETERMINED,
    WAITING,
};
use golden::golden;

use crate::client::Client;
use crate::relay::{Site, eventually};
use crate::samples;
use crate::servers::cli;

/// The program itself, away from the terminal that runs the tests.
fn program(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(arguments)
        .env_remove("SPILLWAY_CONFIG")
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

/// The subcommands that a help page lists.
fn subcommands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:");
    listed
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

/// The total and the items of a list as JSON.
fn listed(json: &str, name: &str) -> (usize, Vec<serde_json::Value>) {
    let list: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let items = list[name].as_array().expect(name).clone();
    assert_eq!(list["shown"], items.len(), "{list}");
    let total = list["total"].as_u64().expect("a total");
    (usize::try_from(total).expect("a number"), items)
}

fn help_pages(path: &[String], pages: &mut String) {
    let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
    arguments.push("--help");
    let output = program(&arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    pages.push_str(&format!("==== spillway {}\n{help}\n", arguments.join(" ")));
    for command in subcommands(&help) {
        let mut path = path.to_vec();
        path.push(command);
        help_pages(&path, pages);
    }
}

/// Help is an interface: a flag that changes its name or its default shows up in review.
#[test]
fn help_of_every_command_is_as_reviewed() {
    let mut pages = String::new();
    help_pages(&[], &mut pages);
    golden("help.txt", &pages);
}

/// What another configuration changes, in words and for recorded mail, looks as reviewed and fits 80 columns, hostile text from
/// mail included. Paths and versions are those of a temporary folder, and are left out.
#[test]
fn changes_of_the_configuration_are_as_reviewed() {
    let store = Fabricated::new();
    let config = store.config();
    let old = config.with_file_name("old.toml");
    std::fs::copy(&config, &old).expect("copies");
    let text = std::fs::read_to_string(&config).expect("reads");
    let changed = "[coverage]\nav = 0\n[policy]\nmalware = \"reject\"\ntag_score = 2.0\n\
                   [[engine]]\nname = \"rules\"\nkind = \"rules\"\ntimeout = \"100ms\"\nslow = \"100ms\"\n\
                   [[rule]]\nname = \"all\"\nrecipient = [\"*\"]\nscore_over = 1.0\nthen = \"quarantine\"\n\
                   [admin]\nhttp = \"127.0.0.1:1\"\n";
    std::fs::write(&config, format!("{text}{changed}")).expect("writes");
    let old = old.display().to_string();
    for (name, arguments, left_out) in [
        (
            "check-config-diff.txt",
            &["check-config", "--diff", &old][..],
            2,
        ),
        (
            "what-if-80.txt",
            &["what-if", "--since", "3000d", "--slots"],
            1,
        ),
    ] {
        let ran = store.run(Some(80), arguments, "");
        assert_eq!(ran.exit, 0, "{}", ran.err);
        let lines: Vec<&str> = ran.out.lines().skip(left_out).collect();
        let shown = lines.join("\n") + "\n";
        if name.starts_with("what-if") {
            assert!(
                lines.iter().all(|line| line.chars().count() <= 80),
                "{shown}"
            );
        }
        golden(name, &shown);
    }
}

/// Lists and single messages look as reviewed, wide and narrow, for people and for programs.
#[test]
fn tables_and_json_are_as_reviewed() {
    let store = Fabricated::new();
    for (name, width, arguments) in [
        ("quarantine-list.txt", None, &["quarantine", "list"][..]),
        ("quarantine-list-80.txt", Some(80), &["quarantine", "list"]),
        (
            "quarantine-list.json",
            None,
            &["quarantine", "list", "--json"],
        ),
        (
            "quarantine-show.txt",
            Some(100),
            &["quarantine", "show", MALICIOUS, "--body"],
        ),
        (
            "quarantine-show.json",
            None,
            &["quarantine", "show", MALICIOUS, "--body", "--json"],
        ),
        (
            "quarantine-show-cause.txt",
            None,
            &["quarantine", "show", UNDETERMINED],
        ),
        ("quarantine-stats.txt", None, &["quarantine", "stats"]),
        ("queue-list.txt", None, &["queue", "list"]),
        ("queue-list-80.txt", Some(80), &["queue", "list"]),
        ("queue-list.json", None, &["queue", "list", "--json"]),
        ("queue-show.txt", None, &["queue", "show", WAITING]),
        ("explain-held.txt", None, &["explain", MALICIOUS]),
        ("explain-cause.txt", None, &["explain", UNDETERMINED]),
        ("explain-delivered.txt", None, &["explain", DELIVERED]),
        ("explain-split.txt", None, &["explain", SPLIT]),
        ("explain-part.txt", None, &["explain", PART]),
        (
            "explain-waiting.json",
            None,
            &["explain", WAITING, "--json"],
        ),
        ("intercept-list-100.txt", Some(100), &["intercept", "list"]),
        (
            "intercept-list.json",
            None,
            &["intercept", "list", "--json"],
        ),
        ("intercept-show.txt", None, &["intercept", "show", LEARNED]),
        (
            "intercept-show-by-hand.txt",
            None,
            &["intercept", "show", BY_HAND],
        ),
        (
            "intercept-show.json",
            None,
            &["intercept", "show", BY_HAND, "--json"],
        ),
    ] {
        let ran = store.run(width, arguments, "");
        let note = match name {
            "queue-list.txt" | "queue-list-80.txt" => {
                "the relay does not run: no stored mail is scanned or delivered\n"
            }
            _ => "",
        };
        assert_eq!((ran.exit, &*ran.err), (0, note), "{arguments:?}");
        golden(name, &ran.out);
    }
}

/// Whatever mail contains, no character that acts on a terminal comes out of any command, text or JSON.
#[test]
fn mail_never_acts_on_the_terminal() {
    let store = Fabricated::new();
    for arguments in [
        &["quarantine", "list"][..],
        &["quarantine", "show", MALICIOUS, "--body"],
        &["explain", MALICIOUS],
        &["explain", SPLIT],
        &["queue", "list"],
        &["intercept", "list"],
        &["intercept", "show", LEARNED],
        &["intercept", "show", BY_HAND],
        &["incident", "list"],
        &["incident", "show", STRIKE],
        &["quarantine", "delete", "--all", "--dry-run"],
        &["quarantine", "stats"],
    ] {
        for json in [&[][..], &["--json"]] {
            let ran = store.run(Some(90), &[arguments, json].concat(), "");
            let acts = |c: char| c != '\n' && spillway::telemetry::escape::is_unsafe(c);
            assert!(!ran.out.contains(acts), "{arguments:?}: {:?}", ran.out);
            assert!(!ran.out.is_empty(), "{arguments:?}: {}", ran.err);
        }
    }
}

/// Each filter narrows the list, and all of them together are an "and".
#[test]
fn every_filter_narrows() {
    let store = Fabricated::new();
    for (filter, found) in [
        (&[][..], 3),
        (&["--reason", "policy.malware"], 1),
        (&["--reason", "found"], 1),
        (&["--engine", "clamd"], 2),
        (&["--finding", "eicar"], 1),
        (&["--sender", "MALLORY"], 1),
        (&["--recipient", "carol"], 1),
        (&["--subject", "invoice"], 1),
        (&["--subject", "PLÄNE"], 1),
        (&["--older-than", "2d"], 1),
        (&["--newer-than", "2d"], 2),
        (&["--larger", "1KiB"], 1),
        (&["--smaller", "1KiB"], 2),
        (&["--limit", "2"], 2),
        (&["--engine", "clamd", "--sender", "mallory"], 1),
        (&["--sender", "nobody"], 0),
        (&["--cause", "engine:clamd"], 1),
        (&["--cause", "interceptor:clamd"], 0),
    ] {
        let ran = store.run(
            None,
            &[&["quarantine", "list", "--json"], filter].concat(),
            "",
        );
        let (total, list) = listed(&ran.out, "messages");
        assert_eq!(list.len(), found, "{filter:?}");
        let is_limited = filter.contains(&"--limit");
        assert_eq!(total, if is_limited { 3 } else { found }, "{filter:?}");
        let note = "only the newest 2 of 3 are shown; --limit shows more, --all shows all\n";
        assert_eq!(ran.err, if is_limited { note } else { "" });
    }
    let all = store.run(None, &["quarantine", "list", "--json", "--all"], "");
    assert_eq!(listed(&all.out, "messages").1.len(), 3);
    let both = ["quarantine", "list", "--all", "--limit", "1"];
    assert_eq!(store.run(None, &both, "").exit, 64);
}

/// An interceptor made by hand is kept for the relay, tells what it would have caught, is audited, and can be removed once.
#[test]
fn interceptors_are_made_and_removed_by_hand() {
    let store = Fabricated::new();
    let add = [
        "intercept",
        "add",
        "--sender",
        "*@EVIL.example",
        "--for",
        "2h",
        "--note",
        "flood",
    ];
    let added = store.run(None, &[&add[..], &["--json"]].concat(), "");
    assert_eq!(added.exit, 0, "{}", added.err);
    let added: serde_json::Value = serde_json::from_str(&added.out).expect("JSON");
    let made = &added["added"];
    assert_eq!(made["action"], "hold");
    assert_eq!(made["expires"], "2026-11-20T14:00:00Z");
    assert_eq!(made["dry_run"], false);
    assert_eq!(made["origin"]["person"]["note"], "flood");
    assert_eq!(added["stored"]["looked_at"], 4, "held and waiting mail");
    assert_eq!(added["stored"]["caught"], 1);
    assert_eq!(added["stored"]["first"][0], MALICIOUS);
    let id = made["id"].as_str().expect("an id");
    let shown = store.run(None, &["intercept", "show", id, "--json"], "");
    let shown: serde_json::Value = serde_json::from_str(&shown.out).expect("JSON");
    assert_eq!(&shown["interceptor"], made);
    assert_eq!(shown["audit"][0]["act"], "add");
    assert_eq!(shown["audit"][0]["interceptor"], id);
    let removed = store.run(None, &["intercept", "remove", id, LEARNED], "");
    assert_eq!(
        (removed.exit, removed.out),
        (0, format!("removed {id}\nremoved {LEARNED}\n"))
    );
    let again = store.run(None, &["intercept", "remove", id], "");
    assert_eq!(again.exit, 1);
    let gone = store.run(None, &["intercept", "show", id], "");
    assert_eq!(gone.exit, 1);
    assert!(gone.out.contains("remove by"), "who did it: {}", gone.out);
    let left = store.run(None, &["intercept", "list", "--json"], "");
    assert_eq!(listed(&left.out, "interceptors").0, 1);
}

/// What an interceptor would catch is found by every condition that people write, all of them together.
#[test]
fn what_an_interceptor_catches_is_counted() {
    let store = Fabricated::new();
    let exe = "c0f8b5f5b7a8a7d0f6b7a2b2c3b8b6a0c0f8b5f5b7a8a7d0f6b7a2b2c3b8b6a0";
    let shown = store.run(None, &["quarantine", "show", MALICIOUS, "--json"], "");
    let shown: serde_json::Value = serde_json::from_str(&shown.out).expect("JSON");
    let attached = shown["parts"][2]["sha256"].as_str().expect("a hash");
    for (conditions, caught) in [
        (&["--attachment-sha256", attached][..], 1),
        (&["--attachment-sha256", exe], 0),
        (&["--subject", "*n*"], 2),
        (&["--subject", "plan"], 0),
        (&["--subject", "Plans", "--sender", "*@partner.example"], 1),
        (&["--subject", "Plans", "--sender", "*@evil.example"], 0),
        (&["--sender", "<>"], 1),
        (&["--client", "192.0.2.7"], 4),
        (&["--client", "198.51.100.0/24"], 0),
    ] {
        let add = [&["intercept", "add", "--dry-run", "--json"], conditions].concat();
        let added = store.run(None, &add, "");
        let added: serde_json::Value = serde_json::from_str(&added.out).expect("JSON");
        assert_eq!(added["stored"]["caught"], caught, "{conditions:?}");
        assert_eq!(added["added"]["dry_run"], true);
    }
}

/// Nothing happens to several messages unless somebody said so: a question where one can be asked, else `--yes`.
#[test]
fn bulk_acts_are_confirmed() {
    let store = Fabricated::new();
    let all = ["quarantine", "delete", "--all"];
    let refused = store.run(None, &all, "");
    assert_eq!(refused.exit, 64);
    assert!(
        refused.err.contains("Delete 3 messages?"),
        "{}",
        refused.err
    );
    assert!(refused.err.contains("--yes"));
    let dry = store.run(None, &[&all[..], &["--dry-run"]].concat(), "");
    assert_eq!(dry.exit, 0);
    assert!(
        dry.out.ends_with("would delete 3 messages\n"),
        "{}",
        dry.out
    );
    for answer in ["n\n", "", "what\n"] {
        let declined = store.ask(&all, answer);
        assert_eq!(declined.exit, 0);
        assert!(declined.err.ends_with("[y/N] nothing deleted\n"));
    }
    assert_eq!(store.held(), 3, "nothing was done so far");
    let done = store.ask(&all, "y\n");
    assert_eq!((done.exit, &*done.out), (0, "deleted 3 messages\n"));
    assert_eq!(store.held(), 0);
    for arguments in [&["quarantine", "release"][..], &["queue", "retry"]] {
        let what = store.run(None, arguments, "");
        assert_eq!(what.exit, 64, "{arguments:?} without saying which");
    }
}

/// A release to others goes to them, tells who did it, and the relay finds it due; a second one is told it was too late.
#[test]
fn release_moves_a_message_to_delivery() {
    let store = Fabricated::new();
    let release = [
        "quarantine",
        "release",
        MALICIOUS,
        "--to",
        "postmaster@ours.example",
    ];
    let done = store.run(None, &release, "");
    assert_eq!(
        (done.exit, done.out),
        (0, format!("released {MALICIOUS}\n"))
    );
    let shown = store.run(None, &["explain", MALICIOUS, "--json"], "");
    let story: serde_json::Value = serde_json::from_str(&shown.out).expect("JSON");
    assert_eq!(story["record"]["lane"], "delivery");
    assert_eq!(story["record"]["released"], true);
    let recipients = &story["record"]["envelope"]["recipients"];
    assert_eq!(recipients[0]["mailbox"], "postmaster@ours.example");
    assert_eq!(story["audit"][0]["act"], "release");
    let again = store.run(None, &release, "");
    assert_eq!(again.exit, 1);
    assert!(again.err.contains("not in quarantine"), "{}", again.err);
}

/// Why a message was held is told after its release as well, by the id that it was released by: recipients who parted from
/// the others have one of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_tells_why_it_was_held_after_its_release() {
    let site = Site::new();
    let relay = site
        .start(
            "[[rule]]\nname = \"vip\"\nrecipient = [\"vip@b.test\"]\nfinding = [\"Eicar*\"]\nthen = \"quarantine\"\n",
        )
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    let eicar = samples::nested(1, "eicar.com", &samples::eicar());
    let reply = client.send("a@a.test", &["b@b.test", "vip@b.test"], &eicar);
    let reply = reply.await.expect("a reply");
    assert!(reply.starts_with("250"), "{reply}");
    let config = site.path().join("spillway.toml");
    let told = cli(&config, &["quarantine", "list", "--json"]);
    let (_, listed) = listed(&told, "messages");
    assert_eq!(listed.len(), 2, "{listed:?}");
    for (at, entry) in listed.iter().enumerate() {
        let id = entry["id"].as_str().expect("an id");
        let rule = entry["decision"]["rule"].as_str().expect("a rule");
        cli(&config, &["quarantine", "release", id]);
        eventually("it is delivered, and that is written", async || {
            let told = cli(&config, &["explain", id]);
            let events = told.lines().filter(|line| line.contains("  delivered  "));
            (events.count() > at).then_some(())
        })
        .await;
        let told = cli(&config, &["explain", id]);
        for part in [
            rule,
            "rules found Eicar-Test-Signature",
            "Engines",
            "disposition    quarantine",
            "release by",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}

/// One failure among many is told, and the others are done all the same.
#[test]
fn one_failure_does_not_stop_the_others() {
    let store = Fabricated::new();
    let gone = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let ran = store.run(
        None,
        &["quarantine", "delete", gone, MALICIOUS, "--yes", "--json"],
        "",
    );
    assert_eq!(ran.exit, 1);
    let report: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(report["deleted"][0], MALICIOUS);
    assert_eq!(report["failed"][0]["id"], gone);
}

/// An export is the message and nothing else, readable by its owner alone, and never written over a file.
#[test]
fn export_writes_messages_and_never_over_a_file() {
    let store = Fabricated::new();
    let out = store.run(None, &["quarantine", "export", MALICIOUS, "-o", "-"], "");
    assert_eq!(out.exit, 0, "{}", out.err);
    assert!(out.out.starts_with("Received: by relay.example\r\nFrom: "));
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().to_str().expect("UTF-8");
    let export = ["quarantine", "export", "--all", "--yes", "-o", path];
    assert_eq!(store.run(None, &export, "").exit, 0);
    for id in HELD {
        assert!(folder.path().join(format!("{id}.eml")).exists());
    }
    let again = store.run(None, &export, "");
    assert_eq!(again.exit, 64);
    assert!(again.err.contains("exists"), "{}", again.err);
    let mbox = store.run(
        None,
        &[
            "quarantine",
            "export",
            "--all",
            "--yes",
            "--format",
            "mbox",
            "-o",
            "-",
        ],
        "",
    );
    let starts = mbox.out.lines().filter(|line| line.starts_with("From "));
    assert_eq!(starts.count(), 3);
}

/// An export that cannot be written whole leaves nothing behind: made again, no message would be in the mailbox file
/// twice, or half.
#[test]
fn an_export_that_fails_is_taken_back() {
    let store = Fabricated::new();
    let folder = tempfile::tempdir().expect("folder");
    let (mailbox, config) = (folder.path().join("mbox"), store.config());
    // Files may have 64 MiB (in blocks of 512 octets, POSIX), and this one is full but for a hundred octets.
    let before = (64 << 20) - 100;
    let file = std::fs::File::create(&mailbox).expect("a file");
    file.set_len(before).expect("a length");
    let limited = "ulimit -f 131072; trap '' XFSZ; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_spillway"), "--config"])
        .arg(config)
        .args(["quarantine", "export", MALICIOUS, "--format", "mbox", "-o"])
        .arg(&mailbox)
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("File too large"), "{told}");
    assert_eq!(file.metadata().expect("it is there").len(), before);
}

/// What waits for its time can be made to wait no longer.
#[test]
fn retry_makes_waiting_messages_due() {
    let store = Fabricated::new();
    let ran = store.run(None, &["queue", "retry", WAITING], "");
    assert_eq!((ran.exit, &*ran.out), (0, "retried 1 message\n"));
    let before = ["queue", "list", "--json"];
    let list = listed(&store.run(None, &before, "").out, "messages").1;
    assert_eq!(list[0]["waits_for"]["what"], "relay");
    assert_eq!(
        list[0]["waits_for"].get("next_try"),
        None,
        "its time has come"
    );
    let list = store.run(None, &["queue", "list"], "");
    assert!(!list.out.contains("due"), "{}", list.out);
    let held = store.run(None, &["queue", "retry", MALICIOUS], "");
    assert_eq!(held.exit, 1, "what is held is not waiting");
}

/// Users come and go with the program; passwords are read, never shown.
#[test]
fn users_are_managed() {
    let store = Fabricated::new();
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("users");
    let file = file.to_str().expect("UTF-8");
    let user = |arguments: &[&str], input: &str| {
        store.run(
            None,
            &[&["user"], arguments, &["--file", file]].concat(),
            input,
        )
    };
    let added = user(&["add", "tim", "--password-stdin"], "secret\n");
    assert_eq!(
        (added.exit, added.out),
        (0, format!("added tim in {file}\n"))
    );
    assert_eq!(user(&["list"], "").out, "tim\n");
    assert_eq!(user(&["list", "--json"], "").out, "[\n  \"tim\"\n]\n");
    assert_eq!(user(&["add", "tim"], "").exit, 64, "nobody can be asked");
    assert_eq!(user(&["add", "a:b", "--password-stdin"], "x\n").exit, 64);
    assert_eq!(user(&["remove", "tim"], "").exit, 0);
    assert_eq!(user(&["remove", "tim"], "").exit, 1);
    let whose = store.run(None, &["user", "list"], "");
    assert_eq!(whose.exit, 64, "no listener has a users file");
}

/// Exit codes are what scripts see.
#[test]
fn exit_codes_are_stable() {
    let store = Fabricated::new();
    for (arguments, exit) in [
        (&["check-config"][..], 0),
        (&["--version"], 0),
        (&["explain", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], 1),
        (&["explain", "nonsense"], 64),
        (&["incident", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], 1),
        (&["incident", "show", "nonsense"], 64),
        (&["intercept", "add"], 64),
        (&["intercept", "add", "--client", "192.0.2.7/24"], 64),
        (&["intercept", "add", "--shape", "round"], 64),
        (&["intercept", "show", "nonsense"], 1),
        (&["incident", "list", "--kind", "nonsense"], 64),
        (&["nonsense"], 64),
        (&["check-config", "--config", "/nowhere/spillway.toml"], 64),
        (&["quarantine", "show", WAITING], 1),
        (&["queue", "show", MALICIOUS], 1),
        (&["queue", "show", DELIVERED], 1),
        (&["quarantine", "list", "--cause", "clamd"], 64),
        (&["status"], 69),
        (&["reload"], 69),
        (&["notify", "test"], 69),
        (&["notify"], 64),
        (&["drain"], 69),
        (&["engine", "drain", "clamd"], 69),
        (&["engine", "drain", "clamd", "--pass"], 64),
        (&["engine", "drain", "clamd", "--pass", "--reason", " "], 64),
        (&["engine", "drain", "clamd", "--for", "0s"], 64),
        (&["engine", "drain", "clamd", "--for", "-1h"], 64),
        (&["engine", "drain", "clamd", "--for", "31d"], 64),
        (
            &[
                "engine", "drain", "x", "--pass", "--reason", "y", "--for", "13h",
            ],
            64,
        ),
    ] {
        assert_eq!(store.run(None, arguments, "").exit, exit, "{arguments:?}");
    }
    let empty = tempfile::tempdir().expect("folder");
    let file = empty.path().join("spillway.toml");
    std::fs::write(&file, "[store]\npath = \"none\"\n").expect("writes");
    let file = file.to_str().expect("UTF-8");
    let output = program(&["--config", file, "quarantine", "list"]);
    assert_eq!(output.status.code(), Some(75), "no store yet");
}

/// What would keep the relay from starting is said by `check-config`, not by the start.
#[test]
fn check_config_finds_what_only_a_start_would() {
    let folder = tempfile::tempdir().expect("folder");
    let rules = folder.path().join("broken.yar");
    std::fs::write(&rules, "rule nonsense { condition: }").expect("writes");
    let config = folder.path().join("spillway.toml");
    let engine =
        "[[engine]]\nname = \"own\"\nkind = \"rules\"\nclass = \"av\"\npaths = [\"broken.yar\"]\n";
    std::fs::write(&config, engine).expect("writes");
    let output = program(&["check-config", "--config", config.to_str().expect("UTF-8")]);
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(output.status.code(), Some(64), "{told}");
    assert!(told.contains("broken.yar"), "{told}");
    assert!(told.ends_with("1 problem\n"), "{told}");
}

/// A reader that has seen enough (`spillway … | head`) is no error.
#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Packages get a page for each command.
#[test]
fn manual_pages_are_written() {
    let folder = tempfile::tempdir().expect("folder");
    let output = program(&["man", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(0));
    for page in ["spillway.1", "spillway-quarantine-release.1"] {
        assert!(folder.path().join(page).exists(), "{page}");
    }
}

/// The test file of the anti-virus industry, in two pieces so that no scanner takes this source for it.
const EICAR: [&str; 2] = [
    "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-",
    "ANTIVIRUS-TEST-FILE!$H+H*",
];
