//! A history that cannot be written costs its entries: the relay starts, mail goes on, and each command says what is missing.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::client::Client;
use crate::metrics::{page, read};
use crate::relay::eventually;
use crate::servers::{Spillway, cli, free_port, log_of, wait_until};

/// A relay of its own; its configuration and the ports of SMTP and of the metrics.
fn configured(folder: &Path) -> (std::path::PathBuf, u16, u16) {
    let (smtp, admin) = (free_port(), free_port());
    let config = folder.join("spillway.toml");
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"127.0.0.1:{admin}\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{smtp}\"]\n"
    );
    std::fs::write(&config, text).expect("a configuration");
    (config, smtp, admin)
}

/// Sends a message; its id, as the reply names it.
async fn sent(port: u16) -> String {
    let mut client = Client::open(([127, 0, 0, 1], port).into())
        .await
        .expect("a session");
    let reply = client
        .send("a@a.test", &["b@b.test"], b"Subject: x\r\n\r\nhello\r\n")
        .await;
    let reply = reply.expect("a reply");
    assert!(reply.starts_with("250"), "{reply}");
    let is_id = |word: &&str| word.len() == 26;
    let id = reply.split([' ', ';', ',']).find(is_id);
    id.unwrap_or_else(|| panic!("no id in {reply:?}"))
        .to_owned()
}

/// What a command says, on both outputs.
fn said(config: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_spillway"));
    let output = { output }
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output();
    let output = output.expect("spillway runs");
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// A history that cannot be opened stops neither the start nor mail. Status, metric, log (once) and the commands that read it say so,
/// and it records again as soon as it can. (A folder in its place stops root, too.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_in_trouble_stops_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, smtp, admin) = configured(folder.path());
    let file = folder.path().join("spillway-data/history.db");
    std::fs::create_dir_all(&file).expect("in the way");
    let _relay = Spillway::start(&config, smtp);
    for _ in 0..3 {
        sent(smtp).await;
    }
    let status = said(&config, &["status"]);
    assert!(status.contains("NOT RECORDED\nhistory since "), "{status}");
    let accepts = |line: &str| line.starts_with("new mail ") && line.ends_with(" accepted");
    assert!(status.lines().any(accepts), "{status}");
    let json: Value = serde_json::from_str(&cli(&config, &["status", "--json"])).expect("JSON");
    assert_eq!(json["not_recorded"][0]["log"], "history");
    for command in [
        &["engine", "show", "rules"][..],
        &["what-if"],
        &["explain", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
    ] {
        let text = said(&config, command);
        assert!(
            text.contains("the history has recorded nothing since "),
            "{text}"
        );
    }
    let checked = said(&config, &["check-config"]);
    assert!(checked.contains("\nok"), "{checked}");
    let failing = r#"spillway_log_failing{log="history"} "#;
    assert!(page(admin).await.contains(&format!("{failing}1\n")));
    let times = |line: &str| log_of(&config).matches(line).count();
    assert_eq!(times("a log records nothing"), 1, "{}", log_of(&config));

    std::fs::remove_dir(&file).expect("out of the way");
    wait_until("it records again", || times("a log records again") == 1);
    let id = sent(smtp).await;
    eventually("the message is in the history", async || {
        cli(&config, &["explain", &id])
            .contains("delivered")
            .then_some(())
    })
    .await;
    assert!(page(admin).await.contains(&format!("{failing}0\n")));
    assert!(!said(&config, &["status"]).contains("NOT RECORDED"));

    // Removed at work: what comes then is in the new file.
    std::fs::remove_file(&file).expect("removed");
    let id = sent(smtp).await;
    eventually("the message is in the new history", async || {
        cli(&config, &["explain", &id])
            .contains("delivered")
            .then_some(())
    })
    .await;
    assert_eq!(times("a log records nothing"), 1, "{}", log_of(&config));
}

/// The names in backticks that begin the items of the list of files in the guide.
fn files_in_the_guide() -> BTreeSet<String> {
    let guide = read("docs/OPERATIONS.md");
    let list = guide.split("## What is where").nth(1).expect("the list");
    let items = list.lines().filter_map(|line| line.strip_prefix("- `"));
    let heads = items.map(|item| format!("`{}", item.split(':').next().unwrap_or_default()));
    let names = heads.flat_map(|head| {
        let names = head.split('`').skip(1).step_by(2);
        names
            .map(|name| name.trim_end_matches('/').to_owned())
            .collect::<Vec<_>>()
    });
    names.collect()
}

/// The guide lists every file and folder that a relay makes in `store.path`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_lists_every_file_of_the_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, smtp, _) = configured(folder.path());
    let store = folder.path().join("spillway-data");
    let found = || -> BTreeSet<String> {
        let entries = std::fs::read_dir(&store).expect("the store").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // SQLite's, and those that get their name when they are complete.
        let others = ["-wal", "-shm", ".tmp"];
        let own = |name: &String| !others.iter().any(|end| name.ends_with(end));
        names.filter(own).collect()
    };
    let relay = Spillway::start(&config, smtp);
    sent(smtp).await;
    cli(&config, &["engine", "drain", "rules", "--reason", "test"]);
    let mut made = found();
    relay.server.signal(Signal::TERM);
    wait_until("it ends", || log_of(&config).contains("drained "));
    made.extend(found());
    let listed = files_in_the_guide();
    let missing: Vec<_> = made.difference(&listed).collect();
    assert!(missing.is_empty(), "{missing:?} of {made:?}");
    for name in [
        "history.db",
        "incidents.db",
        "ballast",
        "relay.lock",
        "drains.json",
    ] {
        assert!(made.contains(name), "{name} of {made:?}");
    }
    let overview = read("docs/ARCHITECTURE.md");
    let absent = |name: &&String| !overview.contains(&format!("`{name}")) && *name != "maildir";
    let absent: Vec<_> = made.iter().filter(absent).collect();
    assert!(absent.is_empty(), "{absent:?}");
}
