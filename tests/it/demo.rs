//! `spillway demo`, as somebody runs it who wants to see what this program does.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn demo(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spillway"));
    command.arg("demo").env("TMPDIR", temporary);
    command
}

fn is_empty(folder: &Path) -> bool {
    let mut entries = std::fs::read_dir(folder).expect("folder");
    entries.next().is_none()
}

/// Every message meets the end that the documents promise for it, each engine's answer is told, the clean message
/// overtakes the one on which an engine hangs, the log does not disturb, and nothing is left behind.
#[test]
fn every_message_of_the_demo_meets_its_end() {
    let temporary = tempfile::tempdir().expect("folder");
    let output = demo(temporary.path()).arg("--json").output().expect("runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, "", "on standard error");
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let messages = result["messages"].as_array().expect("messages");
    let seen: Vec<_> = messages
        .iter()
        .map(|message| {
            let reply = message["reply"].as_str().unwrap_or("-");
            (
                message["name"].as_str().expect("a name"),
                reply.split(' ').next().expect("a code"),
                message["end"].as_str().expect("an end"),
                message["decision"]["rule"].as_str().expect("a rule"),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("clean", "250", "delivered", "policy.clean"),
            ("eicar", "250", "held", "policy.malware"),
            ("blocked-attachment", "550", "rejected", "policy.policy"),
            ("hung-engine", "250", "deferred", "coverage.av"),
            ("meanwhile", "250", "delivered", "policy.clean"),
            ("recovery", "-", "delivered", "policy.clean"),
        ],
        "{result:#}"
    );
    for message in messages {
        assert_eq!(message["as_expected"], true, "{message:#}");
        assert_eq!(message["reports"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(
        messages[3]["id"], messages[5]["id"],
        "the one that waited came through"
    );
    assert!(messages[4]["overtook_by_ms"].is_u64(), "{}", messages[4]);
    assert_eq!(result["as_expected"], true);
    assert_eq!(output.status.code(), Some(0));
    assert!(is_empty(temporary.path()));
}

/// Whoever has seen enough and presses Ctrl-C finds nothing left behind either.
#[test]
fn an_interrupted_demo_cleans_up() {
    let temporary = tempfile::tempdir().expect("folder");
    let mut running = demo(temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    let mut lines = BufReader::new(running.stdout.take().expect("its output")).lines();
    let first = lines.next().expect("a line").expect("UTF-8");
    assert!(!is_empty(temporary.path()), "{first}");
    let id = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("it runs");
    // All that it still has to say, so that it does not wait for us.
    assert!(lines.all(|line| line.is_ok()));
    let status = running.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(is_empty(temporary.path()));
}
