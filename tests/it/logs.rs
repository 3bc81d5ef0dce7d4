//! The names of log lines are an interface: filters and alarms are written against them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde_json::Value;
use spillway::telemetry::metrics::Values;

use crate::client::Client;
use crate::samples;
use crate::servers::{Spillway, cli, free_port, log_of, wait_until};
use crate::tidy::product;

/// A log line: its level, its name, and its fields.
type Line = (String, String, BTreeSet<String>);

/// The text up to the parenthesis that closes the call, without what is in strings for the count.
fn arguments(code: &str) -> Vec<String> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut found = vec![String::new()];
    for c in code.chars() {
        let last = found.last_mut().expect("one at least");
        if in_string {
            last.push(c);
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            '"' => in_string = true,
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            _ => {}
        }
        last.push(c);
    }
    let trimmed = found.iter().map(|argument| argument.trim().to_owned());
    trimmed.filter(|argument| !argument.is_empty()).collect()
}

/// The name of a field: `%id`, `?why` and `id = …` are all named by the word.
fn field(argument: &str) -> String {
    let name = argument.split('=').next().unwrap_or_default().trim();
    name.trim_start_matches(['%', '?']).to_owned()
}

/// Every line that the product writes at info or above.
fn written() -> BTreeSet<Line> {
    let mut lines = BTreeSet::new();
    for (path, code) in product() {
        for (word, levels) in [
            ("error", &["error"][..]),
            ("warn", &["warn"]),
            ("info", &["info"]),
            ("$level", &["info", "warn"]),
        ] {
            let call = format!("{word}!(");
            for (at, _) in code.match_indices(&call) {
                let before = code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let mut arguments = arguments(&code[at + call.len()..]);
                let name = arguments.pop().unwrap_or_default();
                let place = path.display();
                let name = name
                    .strip_prefix('"')
                    .and_then(|name| name.strip_suffix('"'));
                let name = name.unwrap_or_else(|| panic!("{place}: a line without a name"));
                assert!(
                    !name.contains(['{', '\\']),
                    "{place}: the name {name:?} varies; make what varies a field"
                );
                let fields: BTreeSet<String> = arguments.iter().map(|a| field(a)).collect();
                for level in levels {
                    lines.insert(((*level).to_owned(), name.to_owned(), fields.clone()));
                }
            }
        }
    }
    lines
}

fn guide() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/LOGS.md");
    std::fs::read_to_string(path).expect("docs/LOGS.md")
}

/// The code spans of a table cell.
fn spans(cell: &str) -> Vec<String> {
    let spans = cell.split('`').skip(1).step_by(2);
    spans.map(str::to_owned).collect()
}

/// The rows of the table below a heading.
fn rows(guide: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, below) = guide.split_once(heading).expect(heading);
    let section = below.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = |row: &str| {
        let cells = row.trim_matches('|').split(" | ");
        cells.map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

/// Every line in the code is in the guide with its level and its fields, and every line in the guide is in the code.
#[test]
fn every_log_line_is_described_and_every_description_is_true() {
    let guide = guide();
    let mut described = BTreeSet::new();
    for row in rows(&guide, "\n## All lines\n") {
        let [name, level, fields, meaning] = &row[..] else {
            panic!("a row with {} cells: {row:?}", row.len());
        };
        assert!(!meaning.is_empty(), "{name} has no meaning");
        for level in level.split(", ") {
            let fields = spans(fields).into_iter().collect();
            let name = spans(name).pop().expect("a name");
            described.insert((level.to_owned(), name, fields));
        }
    }
    let written = written();
    let row = |(level, name, fields): &Line| {
        let fields: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
        format!("| `{name}` | {level} | {} |", fields.join(" "))
    };
    let missing: Vec<_> = written.difference(&described).map(row).collect();
    let wrong: Vec<_> = described.difference(&written).map(row).collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "not in docs/LOGS.md:\n{}\nnot in the code:\n{}",
        missing.join("\n"),
        wrong.join("\n")
    );
}

/// The words in quotes after `before`, in the files of the product whose path begins with `room`.
fn words(room: &str, before: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for (path, code) in product() {
        if !path.starts_with(room) {
            continue;
        }
        for part in code.split(before).skip(1) {
            words.extend(part.split('"').next().map(str::to_owned));
        }
    }
    words.remove("");
    words
}

fn named(heading: &str) -> BTreeSet<String> {
    let rows = rows(&guide(), heading).into_iter();
    rows.flat_map(|row| spans(&row[0])).collect()
}

/// The stages and the reasons of refusals are labels of a metric and words in the log: the guide has each of them, and no
/// other.
#[test]
fn the_guide_has_every_stage_and_reason() {
    let mut reasons = words("smtp/reply", ".because(\"");
    for stage in ["Client", "Tls"] {
        let before = format!("(Stage::{stage}, \"");
        reasons.extend(words("listener/session/refusal.rs", &before));
    }
    assert_eq!(reasons, named("\n## Reasons of refusals\n"));
    let all = [
        "Client", "Helo", "Tls", "User", "From", "To", "Data", "Reply", "Command",
    ];
    let stages: BTreeSet<String> = all
        .iter()
        .flat_map(|stage| words("listener/refusals.rs", &format!("Self::{stage} => \"")))
        .collect();
    assert_eq!(stages.len(), all.len());
    assert_eq!(stages, named("\n## Stages of refusals\n"));
    let mut metrics = spillway::telemetry::metrics::ALL.iter();
    let metric = metrics.find(|metric| metric.name == "spillway_refusals_total");
    for (label, values) in metric.expect("the metric").labels {
        let Values::Words(words) = values else {
            panic!("{label} has no words")
        };
        let words: BTreeSet<String> = words().into_iter().map(str::to_owned).collect();
        let expected = if *label == "stage" { &stages } else { &reasons };
        assert_eq!(words, *expected, "{label}");
    }
}

/// A refusal without a word for its reason could not be counted.
#[test]
fn every_refusal_has_a_reason() {
    let mut checked = 0;
    for (path, code) in product() {
        if !path.starts_with("smtp/reply") {
            continue;
        }
        for function in code.split("    pub fn ").skip(1) {
            let body = function.split("\n    }\n").next().unwrap_or_default();
            let refuses = ["Class::Transient,", "Class::Permanent,", "Self::closing("];
            if refuses.iter().any(|word| body.contains(word)) {
                let name = body.split('(').next().unwrap_or_default();
                assert!(body.contains(".because(\""), "Reply::{name} has no reason");
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} found");
}

/// A running relay with a log in JSON.
struct Logging {
    _folder: tempfile::TempDir,
    config: PathBuf,
    port: u16,
    spillway: Spillway,
}

impl Logging {
    fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let config = folder.path().join("spillway.toml");
        let text = format!(
            "[relay]\nhostname = \"relay.test\"\nlog_format = \"json\"\n[admin]\nhttp = \"\"\n\
             [store]\ndisk_reserve = \"1MiB\"\n[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{port}\"]\n{settings}"
        );
        std::fs::write(&config, text).expect("configuration");
        let spillway = Spillway::start(&config, port);
        Self {
            _folder: folder,
            config,
            port,
            spillway,
        }
    }

    async fn client(&self) -> Client {
        let address = ([127, 0, 0, 1], self.port).into();
        Client::open(address).await.expect("connect")
    }

    /// All lines with this name so far.
    fn lines(&self, name: &str) -> Vec<Value> {
        let log = log_of(&self.config);
        let lines = log.lines().map(serde_json::from_str::<Value>);
        let lines = lines.map(|line| line.expect("a line of JSON"));
        lines.filter(|line| line["message"] == name).collect()
    }

    fn metrics(&self) -> String {
        let socket = self.config.with_file_name("spillway-data/control.sock");
        let mut socket = UnixStream::connect(socket).expect("connects");
        let asked = socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
        asked.expect("asks");
        let mut page = String::new();
        socket.read_to_string(&mut page).expect("answers");
        page
    }
}

/// Every refusal has one line with its stage, reason, code and place, and one count; what is not refused has neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_logged_and_counted() {
    let relay = Logging::start(
        "[limits]\nsessions_per_client = 5\n[[next_hop]]\nname = \"hop\"\ndomains = [\"b.test\"]\nkind = \"maildir\"\n\
         path = \"mail/{domain}/{local}\"\n[[rule]]\nname = \"no-eve\"\nsender = [\"eve@a.test\"]\nthen = \"reject\"\n",
    );
    let mut client = relay.client().await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], relay.port));
    let mut others = Vec::new();
    let refused = loop {
        let stream = std::net::TcpStream::connect(address).expect("connects");
        let mut greeting = [0; 9];
        (&stream).read_exact(&mut greeting).expect("reads");
        if greeting.starts_with(b"421") {
            break greeting;
        }
        others.push(stream);
    };
    assert_eq!(&refused, b"421 4.7.0");
    for command in [
        "EHLO",
        "EHLO client.test",
        "STARTTLS",
        "AUTH PLAIN c2VjcmV0",
        "c2VjcmV0 password",
        "MAIL FROM:<a@a.test> SIZE=99999999999",
        "MAIL FROM:<eve@a.test>",
        "RCPT TO:<x@nowhere.test>",
        "DATA",
        "RCPT TO:<x@b.test>",
        "RSET",
    ] {
        client.ask(command).await.expect("a reply");
    }
    let reply = client.send(
        "eve@a.test",
        &["x@b.test", "y@b.test"],
        b"Subject: s\r\n\r\nx\r\n",
    );
    let reply = reply.await.expect("a reply");
    assert!(reply.starts_with("550 5.7.1"), "{reply}");
    let seen: Vec<_> = relay
        .lines("refused")
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
            let code = line["code"].as_u64().unwrap_or_default();
            (
                text("stage"),
                text("reason"),
                code,
                text("enhanced"),
                text("from"),
                text("to"),
            )
        })
        .collect();
    let expected = [
        ("client", "too-many-sessions", 421, "4.7.0", "-", "-"),
        ("helo", "syntax", 501, "5.5.4", "-", "-"),
        ("tls", "not-implemented", 502, "5.5.1", "-", "-"),
        ("user", "not-implemented", 502, "5.5.1", "-", "-"),
        ("command", "unknown-command", 500, "5.5.2", "-", "-"),
        ("from", "too-large", 552, "5.3.4", "<a@a.test>", "-"),
        (
            "to",
            "no-route",
            550,
            "5.4.4",
            "<eve@a.test>",
            "x@nowhere.test",
        ),
        ("data", "no-recipients", 554, "5.5.1", "<eve@a.test>", "-"),
        (
            "reply",
            "policy",
            550,
            "5.7.1",
            "<eve@a.test>",
            "x@b.test, y@b.test",
        ),
    ];
    let expected = expected.map(|(stage, reason, code, enhanced, from, to)| {
        let [stage, reason, enhanced, from, to] =
            [stage, reason, enhanced, from, to].map(str::to_owned);
        (stage, reason, code, enhanced, from, to)
    });
    assert_eq!(seen, expected);
    let last = relay.lines("refused").pop().expect("lines");
    let message = &relay.lines("message")[0];
    assert_eq!(message["id"], last["id"], "{message}");
    assert_eq!(message["event"], "rejected");
    assert_eq!(last["helo"], "client.test");
    let page = relay.metrics();
    for (stage, reason, ..) in &expected {
        let count = format!("spillway_refusals_total{{stage=\"{stage}\",reason=\"{reason}\"}} 1\n");
        assert!(page.contains(&count), "{count} in\n{page}");
    }
    assert!(
        !log_of(&relay.config).contains("c2VjcmV0"),
        "a password in the log"
    );
}

/// `explain` knows a message as soon as its sender has the 250, with subject and attachments, although the relay writes its
/// history a little later; and the log has one line about the message, however many recipients it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_knows_a_message_right_after_its_250() {
    let relay = Logging::start("");
    let mut client = relay.client().await;
    let content = b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <one@a.test>\r\n\
        Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\ntext\r\n\
        --x\r\nContent-Type: text/csv; name=\"list.csv\"\r\n\r\n1\r\n--x--\r\n";
    for to in [&["x@b.test"][..], &["x@b.test", "y@b.test", "z@b.test"]] {
        let reply = client.send("a@a.test", to, content).await;
        let reply = reply.expect("a reply");
        let id = reply.split_whitespace().find(|word| word.len() == 26);
        let id = id.unwrap_or_else(|| panic!("an id in {reply}"));
        let told = cli(&relay.config, &["explain", id]);
        assert!(told.contains("delivered"), "{told}");
        assert!(
            told.contains("Grüße") && told.contains("list.csv"),
            "{told}"
        );
        let mut lines = relay.lines("message");
        lines.retain(|line| line["id"] == id);
        let [line] = &lines[..] else {
            panic!("{} lines: {lines:?}", lines.len());
        };
        for (field, value) in [
            ("event", "delivered"),
            ("message_id", "<one@a.test>"),
            ("from", "<a@a.test>"),
            ("client", "127.0.0.1"),
            ("helo", "client.test"),
            ("verdict", "clean"),
            ("dsn", "2.0.0"),
        ] {
            assert_eq!(line[field], value, "{field} in {line}");
        }
        assert_eq!(line["recipients"], to.len());
        assert_eq!(line["to"], to.join(", "));
        for time in ["receive_ms", "wait_ms", "scan_ms", "store_ms", "deliver_ms"] {
            assert!(line[time].is_u64(), "{time} in {line}");
        }
        assert!(!line.to_string().contains("Gr"), "the subject in {line}");
    }
}

/// Each act of a person has one line in the log of the running relay: who, what, on which messages, and on how many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_act_is_logged() {
    let relay = Logging::start("");
    let mut client = relay.client().await;
    let mut content = b"Subject: held\r\n\r\n".to_vec();
    content.extend(samples::eicar());
    let mut ids = Vec::new();
    for _ in 0..3 {
        let reply = client.send("a@a.test", &["b@b.test"], &content).await;
        let reply = reply.expect("a reply");
        let id = reply.split_whitespace().find(|word| word.len() == 26);
        ids.push(id.expect("an id").to_owned());
    }
    let config = &relay.config;
    let added = cli(config, &["intercept", "add", "--sender", "eve@a.test"]);
    let added = added.split_whitespace().nth(1).expect("its id").to_owned();
    for arguments in [
        &["quarantine", "release", &ids[0], &ids[1]][..],
        &["quarantine", "delete", &ids[2]],
        &["intercept", "remove", &added],
        &["engine", "drain", "rules", "--reason", "broken"],
        &["engine", "resume", "rules"],
        &["reload"],
    ] {
        let mut all = arguments.to_vec();
        if arguments[0] == "quarantine" {
            all.push("--yes");
        }
        cli(config, &all);
    }
    let acts = relay.lines("act");
    let seen: Vec<_> = acts
        .iter()
        .map(|line| {
            let done = line["done"].as_u64().expect("a number");
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            (text("act"), text("objects"), done)
        })
        .collect();
    let expected = [
        ("intercept-add", added.clone(), 1),
        ("release", format!("{}, {}", ids[0], ids[1]), 2),
        ("delete", ids[2].clone(), 1),
        ("intercept-remove", added, 1),
        ("engine-drain", "rules".to_owned(), 1),
        ("engine-resume", "rules".to_owned(), 1),
        ("reload", "relay".to_owned(), 1),
    ];
    assert_eq!(
        seen,
        expected.map(|(act, on, done)| (act.to_owned(), on, done))
    );
    assert!(
        acts.iter()
            .all(|line| !line["who"].as_str().unwrap_or_default().is_empty())
    );
    assert_eq!(acts[4]["detail"], "broken");
    relay.spillway.server.signal(rustix::process::Signal::TERM);
    wait_until("it ends", || !relay.lines("drained").is_empty());
}
