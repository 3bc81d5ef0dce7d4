//! Notifications of the real relay, while the relay itself is in trouble.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::relay::eventually;
use crate::servers::{Spillway, cli, free_port, log_of, wait_until};
use crate::sink;

/// Writes a program that keeps what it is told.
pub fn pager(folder: &Path) {
    let path = folder.join("page");
    let script = format!("#!/bin/sh\ncat >>{}\n", folder.join("told").display());
    std::fs::write(&path, script).expect("a program");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("its mode");
}

/// The notifications that the program was told.
pub fn told(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("told")).unwrap_or_default();
    let lines = text.lines().map(serde_json::from_str);
    lines.map(|line| line.expect("JSON")).collect()
}

/// While the store accepts no mail, one next hop is dead, a webhook and a program hang, people are told by the program
/// and by the other next hop, once; the rest is counted and logged. The relay ends although one way hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_told_while_much_is_broken() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let (hop, got) = sink::start(|_| None).await;
    let hung = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (smtp, dead) = (free_port(), free_port());
    let secret = at.join("secret");
    std::fs::write(&secret, "0123456789abcdef").expect("a secret");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("its mode");
    pager(at);
    let config = at.join("spillway.toml");
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\nlog_format = \"json\"\n[admin]\nhttp = \"\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{smtp}\"]\n\
         [[next_hop]]\nname = \"dead\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{dead}\"]\ntls = \"off\"\n\
         [[next_hop]]\nname = \"good\"\ndomains = [\"good.test\"]\nkind = \"smtp\"\naddress = [\"{hop}\"]\ntls = \"off\"\n\
         [[notify]]\nname = \"pager\"\nkind = \"command\"\ncommand = [{:?}]\nend_after = \"0s\"\n\
         [[notify]]\nname = \"stuck\"\nkind = \"command\"\ncommand = [\"/bin/sleep\", \"1000\"]\nattempts = 1\ntimeout = \"1s\"\n\
         [[notify]]\nname = \"noc\"\nkind = \"mail\"\nto = [\"noc@x.test\"]\nnext_hop = \"dead\"\nfallback = [\"good\"]\n\
         [[notify]]\nname = \"hook\"\nkind = \"webhook\"\nurl = \"http://{}/\"\nsecret_file = \"secret\"\ntimeout = \"1s\"\n",
        at.join("page"),
        hung.local_addr().expect("its address"),
    );
    // Less free space than the reserve: the store accepts no mail, from the start.
    std::fs::write(&config, text.replace("1MiB", "1024TiB")).expect("configuration");
    let relay = Spillway::start(&config, smtp);
    let told = eventually("the program is told", async || {
        let told = told(at);
        (!told.is_empty()).then_some(told)
    })
    .await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["phase"], "begin", "{told:?}");
    assert_eq!(told[0]["story"]["cause"]["type"], "store", "{told:?}");
    let mail = eventually("the mail is told", async || got.bodies().pop()).await;
    assert!(
        mail.contains("Auto-Submitted: auto-generated\r\n"),
        "{mail}"
    );
    assert!(mail.contains("To: <noc@x.test>\r\n"), "{mail}");

    let one = cli(&config, &["notify", "test", "noc"]);
    assert_eq!(one, "noc: told: mail taken by next hop good\n");
    let all = Command::new(env!("CARGO_BIN_EXE_spillway"))
        .args(["notify", "test", "--config"])
        .arg(&config)
        .output()
        .expect("spillway runs");
    let said = String::from_utf8_lossy(&all.stdout);
    assert_eq!(all.status.code(), Some(1), "{said}");
    assert!(
        said.contains("pager: told: command /") && said.contains(": exit code 0\n"),
        "{said}"
    );
    assert!(
        said.contains("hook: NOT told: the webhook 127.0.0.1:"),
        "{said}"
    );
    assert!(
        said.contains("stuck: NOT told: command ") && said.contains(": did not end"),
        "{said}"
    );
    let lines = || {
        let log = log_of(&config);
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.collect::<Vec<_>>()
    };
    wait_until("the log says that a way has failed", || {
        let failed =
            |line: &Value| line["message"] == "nobody was notified" && line["way"] == "stuck";
        lines().iter().any(failed)
    });
    relay.server.signal(rustix::process::Signal::TERM);
    wait_until("it ends", || {
        lines().iter().any(|line| line["message"] == "drained")
    });
}
