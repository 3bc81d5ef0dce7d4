//! `engine drain --pass`, the lever of the eight-hour night, on the program itself with a real clamd.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::client::Client;
use crate::relay::{Site, eventually};
use crate::samples;
use crate::servers::{Clamd, Spillway, cli, free_port};

/// A relay whose only engine is clamd, which coverage needs.
struct Night {
    site: Site,
    config: PathBuf,
    port: u16,
    http: u16,
    _clamd: Clamd,
}

impl Night {
    fn prepare() -> Self {
        let site = Site::new();
        let clamd = Clamd::start(site.path());
        let (port, http) = (free_port(), free_port());
        let config = site.configure(&format!(
            "[admin]\nhttp = \"127.0.0.1:{http}\"\n\
             [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\n\
             [[engine]]\nname = \"clamd\"\nkind = \"clamd\"\nclass = \"av\"\naddress = [\"unix:{}\"]\nslots = 12\n\
             [[engine]]\nname = \"attachment\"\nkind = \"attachment\"\n[coverage]\nav = 1\ncontent = 0\n",
            clamd.socket.display()
        ));
        Self {
            site,
            config,
            port,
            http,
            _clamd: clamd,
        }
    }

    fn start(&self) -> Spillway {
        Spillway::start(&self.config, self.port)
    }

    async fn send(&self, content: &[u8]) {
        let mut client = Client::open(([127, 0, 0, 1], self.port).into())
            .await
            .expect("connect");
        let reply = client.send("a@a.test", &["b@b.test"], content).await;
        let reply = reply.expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&cli(&self.config, arguments)).expect("JSON")
    }

    fn messages(&self, lane: &str) -> u64 {
        let status = self.json(&["status", "--json"]);
        status[lane]["messages"].as_u64().expect("a number")
    }

    fn drain(&self) -> Value {
        let shown = self.json(&["engine", "show", "clamd", "--json"]);
        shown["replicas"][0]["drain"].clone()
    }

    /// The value of a metric that counts for clamd.
    fn metric(&self, name: &str) -> String {
        let mut http = TcpStream::connect(("127.0.0.1", self.http)).expect("connects");
        http.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .expect("sent");
        let mut page = String::new();
        http.read_to_string(&mut page).expect("a page");
        let begin = format!("{name}{{engine=\"clamd\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&*begin));
        line.expect("the metric").to_owned()
    }

    fn delivered(&self) -> Vec<String> {
        let read = |path: &PathBuf| {
            let octets = std::fs::read(path).expect("a message");
            String::from_utf8_lossy(&octets).into_owned()
        };
        self.site.delivered().iter().map(read).collect()
    }
}

fn mail(n: usize) -> Vec<u8> {
    format!("Subject: {n}\r\n\r\nnumber {n}, unlike all others\r\n").into_bytes()
}

fn bad() -> Vec<u8> {
    let head = b"Subject: bad\r\n\r\n".to_vec();
    [head, samples::eicar(), b"\r\n".to_vec()].concat()
}

/// The state of the drain in words, as `engine list` and `status` show it.
fn shown(config: &Path) -> [String; 2] {
    [cli(config, &["engine", "list"]), cli(config, &["status"])]
}

/// A backlog that waits for an engine leaves when a person lets mail pass; it is marked, counted, and scanned when the engine is
/// back. A drain, its reason and its end survive kill -9, with and without `--pass`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_leaves_when_a_person_lets_mail_pass() {
    let night = Night::prepare();
    let first = night.start();
    let told = cli(
        &night.config,
        &["engine", "drain", "clamd", "--reason", "upgrade"],
    );
    assert!(
        told.contains("mail waits for it, because [coverage] av = 1"),
        "{told}"
    );
    for n in 0..20 {
        night.send(&mail(n)).await;
    }
    night.send(&bad()).await;
    assert_eq!(night.messages("scan"), 21);
    first.server.signal(Signal::KILL);
    drop(first);

    let second = night.start();
    let drain = night.drain();
    assert_eq!(
        (&drain["reason"], &drain["passes"]),
        (&"upgrade".into(), &false.into())
    );
    assert!(night.delivered().is_empty());
    let told = cli(
        &night.config,
        &[
            "engine",
            "drain",
            "clamd",
            "--pass",
            "--for",
            "2h",
            "--reason",
            "clamd hangs",
        ],
    );
    assert!(
        told.contains("mail passes without it: clamd hangs, by "),
        "{told}"
    );
    eventually("the backlog leaves", async || {
        (night.delivered().len() == 21).then_some(())
    })
    .await;
    for message in night.delivered() {
        assert!(
            message.contains("X-Spillway-Result: undetermined;"),
            "{message}"
        );
        assert!(message.contains("rule=coverage.passed"), "{message}");
        assert!(message.contains("missing=clamd:drained"), "{message}");
    }
    eventually("copies are kept", async || {
        (night.messages("rescan") == 21).then_some(())
    })
    .await;
    assert_eq!(night.metric("spillway_passed_messages_total"), "21");
    second.server.signal(Signal::KILL);
    drop(second);

    let _third = night.start();
    for text in shown(&night.config) {
        assert!(
            text.contains("mail passes without it: clamd hangs, by "),
            "{text}"
        );
        assert!(text.contains("(drained until "), "{text}");
    }
    night.send(&mail(21)).await;
    assert_eq!(night.delivered().len(), 22, "in its session");
    let told = cli(&night.config, &["engine", "resume", "clamd"]);
    assert!(
        told.starts_with("resumed: engine clamd is healthy"),
        "{told}"
    );
    eventually("every copy is scanned", async || {
        (night.messages("rescan") == 0).then_some(())
    })
    .await;
    eventually("the finding is told", async || {
        let late = ["incident", "list", "--kind", "late-finding", "--json"];
        let late = night.json(&late)["total"].as_u64();
        assert!(late <= Some(1), "once");
        (late == Some(1)).then_some(())
    })
    .await;
    night.send(&mail(22)).await;
    let clean = night.delivered();
    let clean = clean.iter().filter(|m| m.contains("Result: clean;"));
    assert_eq!(clean.count(), 1);
}

/// What cannot be done is refused in one line that says what to do, and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_means_nothing_is_refused() {
    let night = Night::prepare();
    let _relay = night.start();
    let refused = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_spillway"))
            .args(["engine", "drain"])
            .args(arguments)
            .arg("--config")
            .arg(&night.config)
            .output()
            .expect("runs");
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code().expect("a code"), told)
    };
    for (arguments, code, says) in [
        (&["nobody"][..], 1, "there is no engine \"nobody\""),
        (
            &["clamd", "--replica", "x"],
            1,
            "engine clamd has no replica x",
        ),
        (&["clamd", "--pass"], 64, "--reason"),
        (
            &["clamd", "--pass", "--reason", ""],
            64,
            "add --reason TEXT",
        ),
        (&["clamd", "--for", "0s"], 64, "--for"),
        (
            &["clamd", "--pass", "--reason", "x", "--for", "1d"],
            64,
            "at most 12h",
        ),
    ] {
        let (exit, told) = refused(arguments);
        assert!(
            exit == code && told.contains(says),
            "{arguments:?}: {exit} {told}"
        );
    }
    assert_eq!(night.drain(), Value::Null);
    let told = cli(&night.config, &["engine", "drain", "attachment"]);
    let unneeded = "no mail waits for it: [coverage] needs no engine of class content";
    assert!(told.contains(unneeded), "{told}");
}
