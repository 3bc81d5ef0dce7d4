//! The alert rules that ship with the relay: they name what exists, fire when they should, and end.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::client::Client;
use crate::metrics::{read, unknown_in};
use crate::relay::eventually;
use crate::samples;
use crate::servers::{Clamd, Server, Spillway, command, free_port, listens};

/// The values of a key in the rules.
fn values(rules: &str, key: &str) -> Vec<String> {
    let begins = format!("{key}: ");
    let lines = rules
        .lines()
        .map(|line| line.trim().trim_start_matches("- "));
    let values = lines.filter_map(|line| line.strip_prefix(&begins));
    values
        .map(|value| value.trim_matches('"').to_owned())
        .collect()
}

/// Each rule names metrics that exist, says what happens and what that means, and names a command that exists. The guide lists
/// each alert, and no other.
#[test]
fn alert_rules_are_about_this_relay() {
    let rules = read("config/alerts.yml");
    assert_eq!(unknown_in(&rules), Vec::<String>::new());
    let alerts = values(&rules, "alert");
    assert!(alerts.len() >= 15, "{alerts:?}");
    for key in ["expr", "summary", "description", "command", "labels"] {
        assert_eq!(values(&rules, key).len(), alerts.len(), "{key}");
    }
    for shown in values(&rules, "command") {
        let mut words: Vec<&str> = shown
            .split(' ')
            .filter(|word| !word.contains(['{', '}', '$']))
            .collect();
        assert_eq!(words.remove(0), "spillway");
        words.push("--help");
        command(env!("CARGO_BIN_EXE_spillway"), &words);
    }
    let guide = read("docs/METRICS.md");
    let rows = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `Spillway"));
    let listed: BTreeSet<String> = rows
        .filter_map(|row| Some(format!("Spillway{}", row.split('`').next()?)))
        .collect();
    assert_eq!(listed, alerts.into_iter().collect());
}

/// Prometheus takes the rules and the examples of the guide; each rule is silent while all is well, fires when its time has
/// come, and is silent again.
#[test]
fn alert_rules_fire_and_end() {
    let said = command("promtool", &["check", "rules", "config/alerts.yml"]);
    assert!(said.contains("rules found"), "{said}");
    let page = read("docs/METRICS.md");
    let folder = tempfile::tempdir().expect("a folder");
    let scrape = folder.path().join("prometheus.yml");
    let blocks = page.split("```yaml\n").skip(1);
    let inside = |block: &str| block.split("```").next().expect("an end").to_owned();
    let text: String = blocks.map(inside).collect();
    std::fs::write(&scrape, text).expect("a file");
    command(
        "promtool",
        &[
            "check",
            "config",
            "--syntax-only",
            &scrape.display().to_string(),
        ],
    );
    command("promtool", &["test", "rules", "tests/alerts.yml"]);
    let tests = read("tests/alerts.yml");
    for alert in values(&read("config/alerts.yml"), "alert") {
        assert!(
            tests.contains(&format!("\"{alert}\"")),
            "{alert} has no test"
        );
    }
}

/// The rules without their patience, so that a test need not have any.
fn at_once(rules: &str) -> String {
    let lines = rules
        .lines()
        .filter(|line| !line.trim().starts_with("for: "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// A real Prometheus that reads the relay's metrics twice a second.
struct Prometheus {
    _server: Server,
    port: u16,
}

impl Prometheus {
    fn start(folder: &Path, admin: u16) -> Self {
        let port = free_port();
        let rules = at_once(&read("config/alerts.yml"));
        std::fs::write(folder.join("alerts.yml"), rules).expect("rules");
        let config = format!(
            "global: {{ scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms }}\n\
             rule_files: [alerts.yml]\n\
             scrape_configs:\n  - job_name: spillway\n    static_configs: [{{ targets: [\"127.0.0.1:{admin}\"] }}]\n"
        );
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).expect("a configuration");
        let log = std::fs::File::create(folder.join("prometheus.log")).expect("a log");
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.join("tsdb").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--log.level=warn".to_owned(),
        ];
        let server = Server::start("prometheus", arguments, log);
        Self {
            _server: server.until(|| listens(port)),
            port,
        }
    }

    /// The names of the alerts that fire, each with the engine that it is about.
    fn firing(&self) -> BTreeSet<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        let request = "GET /api/v1/alerts HTTP/1.0\r\nHost: prometheus\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("asks");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        // While it starts, it answers with a text.
        let json: Value = serde_json::from_str(body).unwrap_or_default();
        let alerts = json.pointer("/data/alerts").and_then(Value::as_array);
        let firing = |alert: &&Value| alert["state"] == "firing";
        let named = |alert: &Value| {
            let label = |key: &str| alert["labels"][key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", label("alertname"), label("engine"))
        };
        alerts
            .into_iter()
            .flatten()
            .filter(firing)
            .map(named)
            .collect()
    }
}

/// Somebody who uses the rules as they are learns of an engine that has stopped, and that it is back: with the real relay, the
/// real engine and the real Prometheus. Nothing else fires meanwhile that is about the relay itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_tells_of_an_engine_that_stops_and_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let clamd = Clamd::start(folder.path());
    let (smtp, admin) = (free_port(), free_port());
    let config = folder.path().join("spillway.toml");
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"127.0.0.1:{admin}\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{smtp}\"]\n\
         [[engine]]\nname = \"clamd\"\nkind = \"clamd\"\naddress = [\"unix:{}\"]\ntimeout = \"1s\"\nslow = \"500ms\"\nprobe = \"1s\"\n\
         [[engine]]\nname = \"rules\"\nkind = \"rules\"\n",
        clamd.socket.display()
    );
    std::fs::write(&config, text).expect("configuration");
    let _spillway = Spillway::start(&config, smtp);
    let prometheus = Prometheus::start(folder.path(), admin);
    let out = "SpillwayEngineOut clamd".to_owned();
    eventually("the relay is seen, and nothing is wrong", async || {
        prometheus.firing().is_empty().then_some(())
    })
    .await;
    let mut client = Client::open(([127, 0, 0, 1], smtp).into())
        .await
        .expect("connect");
    let mut sent = 0;
    let mut send = async || {
        sent += 1;
        let text = format!("message number {sent} of this test, unlike all others");
        let content = samples::nested(1, "note.txt", text.as_bytes());
        let reply = client.send("a@a.test", &["b@b.test"], &content).await;
        assert!(reply.expect("a reply").starts_with("250"));
    };
    clamd.server.signal(Signal::STOP);
    eventually("the alert fires", async || {
        send().await;
        let firing = prometheus.firing();
        assert!(!firing.contains("SpillwayDown "), "{firing:?}");
        firing.contains(&out).then_some(())
    })
    .await;
    clamd.server.signal(Signal::CONT);
    eventually("the alert ends", async || {
        send().await;
        (!prometheus.firing().contains(&out)).then_some(())
    })
    .await;
}
