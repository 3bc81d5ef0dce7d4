//! The names of metrics are an interface: dashboards and alarms are written against them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use spillway::listener::users;
use spillway::telemetry::metrics::{ALL, Metric};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::certificates;
use crate::client::Client;
use crate::servers::{Spillway, free_port};
use crate::sink;

pub fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of metrics in a text: words that begin as they do.
fn named(text: &str, begins: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c| !is_part(c));
    let names = words.filter(|word| word.starts_with(begins) && !word.ends_with('_'));
    names.map(str::to_owned).collect()
}

fn names() -> BTreeSet<String> {
    ALL.iter().map(|metric| metric.name.to_owned()).collect()
}

/// Every metric that some room counts, by the names in the source.
fn counted(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            counted(&path, names);
            continue;
        }
        // The table is what is compared with.
        if path.ends_with("metrics/table.rs") || path.ends_with("tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        for quoted in text
            .lines()
            .flat_map(|line| line.split('"').skip(1).step_by(2))
        {
            let is_name = quoted.starts_with("spillway_") || quoted.starts_with("process_");
            if is_name && quoted.chars().all(is_part) && !quoted.ends_with('_') {
                names.insert(quoted.to_owned());
            }
        }
    }
}

/// What is counted has a help line, and what has a help line is counted.
#[test]
fn every_metric_is_described_and_every_description_is_true() {
    let mut used = BTreeSet::new();
    counted(Path::new("src"), &mut used);
    assert_eq!(used, names());
    assert_eq!(names().len(), ALL.len(), "a name is there twice");
}

/// The row of a metric in docs/METRICS.md, up to its labels.
fn row(metric: &Metric) -> String {
    let labels = metric.labels.iter();
    let labels: Vec<String> = labels.map(|(name, _)| format!("`{name}`")).collect();
    let labels = match labels.is_empty() {
        true => "–".to_owned(),
        false => labels.join(", "),
    };
    let kind = metric.kind.as_str();
    format!("| `{}` | {kind} | {labels} |", metric.name)
}

/// docs/METRICS.md has one row for each metric, with its type and its labels, and no row for anything else. Each row has a meaning
/// and a question.
#[test]
fn the_document_lists_each_metric() {
    let page = read("docs/METRICS.md");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = rows
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 7, "{line}");
            assert!(
                cells.iter().skip(1).take(5).all(|cell| !cell.is_empty()),
                "{line}"
            );
            format!("| {} | {} | {} |", cells[1], cells[2], cells[3])
        })
        .collect();
    let expected: BTreeSet<String> = ALL.iter().map(row).collect();
    assert_eq!(listed, expected);
}

/// The names of metrics in a text that no metric has.
pub fn unknown_in(text: &str) -> Vec<String> {
    let mut named = named(text, "spillway_");
    named.extend(self::named(text, "process_"));
    named.retain(|name| {
        let mut ends = ["_bucket", "_sum", "_count"].iter();
        let base = ends.find_map(|end| name.strip_suffix(end));
        !names().contains(base.unwrap_or(name))
    });
    named.into_iter().collect()
}

/// A metric that a document names exists. Changes may name those that are gone.
#[test]
fn metrics_in_the_documents_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut unknown = Vec::new();
    for entry in std::fs::read_dir(root.join("docs")).expect("docs") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|e| e != "md") || path.ends_with("CHANGELOG.md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a document");
        let gone = unknown_in(&text).into_iter();
        unknown.extend(gone.map(|name| format!("{}: {name}", path.display())));
    }
    assert_eq!(unknown, Vec::<String>::new());
}

/// Runs promtool, which tests/run installs, with a text on its standard input. It says on standard error what it dislikes, with
/// an exit code of its own.
fn promtool(arguments: &[&str], text: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs; tests/run installs it");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(text.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("its end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}\n{text}", output.status);
    assert_eq!(said, "", "it dislikes nothing");
}

/// A relay with engines and next hops that answer, and some that do not.
fn config(folder: &Path, smtp: u16, admin: u16, hop: &str) -> PathBuf {
    certificates::write(folder);
    users::add(&folder.join("users"), "tim", "secret").expect("a user");
    let (path, dead) = (folder.join("spillway.toml"), free_port());
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"127.0.0.1:{admin}\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [policy.missing]\nunreachable = \"deliver\"\nbreaker-open = \"deliver\"\n\
         [coverage]\nav = 0\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{smtp}\"]\nrelay_networks = [\"127.0.0.0/8\"]\n\
         tls = \"starttls\"\ncertificate = \"server.pem\"\nkey = \"server.key\"\nusers_file = \"users\"\n\
         [[engine]]\nname = \"types\"\nkind = \"attachment\"\n\
         [[engine]]\nname = \"away\"\nkind = \"clamd\"\naddress = [\"127.0.0.1:{dead}\"]\n\
         [[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"{hop}\"]\ntls = \"off\"\n\
         [[next_hop]]\nname = \"dead\"\ndomains = [\"dead.test\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:{dead}\"]\ntls = \"off\"\n"
    );
    std::fs::write(&path, text).expect("configuration");
    path
}

pub async fn page(admin: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", admin))
        .await
        .expect("connects");
    let request = b"GET /metrics HTTP/1.0\r\n\r\n";
    stream.write_all(request).await.expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    let (head, page) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    page.to_owned()
}

/// The series of a page, without their values.
fn series(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let names = lines.filter_map(|line| line.rsplit_once(' '));
    names.map(|(name, _)| name.to_owned()).collect()
}

fn value(page: &str, series: &str) -> f64 {
    let of = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
    let value = page.lines().find_map(of);
    value.unwrap_or_else(|| panic!("{series}: {page}"))
}

/// Over TLS: one wrong password, then the right one.
fn log_in(smtp: u16) {
    let plain = |password: &str| {
        format!(
            "AUTH PLAIN {}\n",
            STANDARD.encode(format!("\0tim\0{password}"))
        )
    };
    let lines = ["EHLO c\n", &plain("wrong"), &plain("secret"), "QUIT\n"].concat();
    let connect = format!("127.0.0.1:{smtp}");
    let mut child = Command::new("openssl")
        .args([
            "s_client",
            "-quiet",
            "-crlf",
            "-starttls",
            "smtp",
            "-connect",
            &connect,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs; tests/run installs it");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("its end");
    drop(input);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("535 ") && said.contains("235 "), "{said}");
}

/// Traffic of all sorts, much of it made by somebody who would like to be a label.
async fn traffic(smtp: u16) {
    let open = || Client::open(([127, 0, 0, 1], smtp).into());
    let mail = b"Subject: x\r\n\r\nx\r\n";
    let mut client = open().await.expect("a session");
    for to in ["b@b.test", "b@dead.test", "evil\"}@{label=\"x\".test"] {
        let _ = client.send("a@a.test", &[to], mail).await;
    }
    let _ = client.ask("HELO evil{label=\"x\"}").await;
    let _ = client.ask("QUIT").await;
    let mut client = open().await.expect("a session");
    let _ = client.ask("NONSENSE{label=\"x\"} 1").await;
    assert!(
        client
            .ask("STARTTLS")
            .await
            .expect("a reply")
            .starts_with("220")
    );
    let _ = client.ask("this is no handshake").await;
    let mut client = open().await.expect("a session");
    let _ = client.ask("MAIL FROM:<a@a.test> SIZE=99999999999").await;
}

/// Each series of a working relay was there before the first message, so mail, senders, clients and trouble make no series: `rate()`
/// misses nothing, and no flood fills the memory of the relay or of Prometheus. `promtool check metrics` dislikes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_series_of_a_relay_are_there_from_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let (hop, got) = sink::start(|_| None).await;
    let (smtp, admin) = (free_port(), free_port());
    let config = config(folder.path(), smtp, admin, &hop.to_string());
    let _spillway = Spillway::start(&config, smtp);
    let before = page(admin).await;
    promtool(&["check", "metrics"], &before);
    let missing: Vec<&str> = ALL
        .iter()
        .filter(|metric| {
            !before.contains(&format!(
                "\n# TYPE {} {}\n",
                metric.name,
                metric.kind.as_str()
            ))
        })
        .map(|metric| metric.name)
        .collect();
    // The first line of the page has no line before it.
    assert!(missing.len() <= 1, "{missing:?}");

    traffic(smtp).await;
    tokio::task::spawn_blocking(move || log_in(smtp))
        .await
        .expect("logs in");
    assert_eq!(got.bodies().len(), 1);
    let after = page(admin).await;
    promtool(&["check", "metrics"], &after);
    let new: Vec<_> = series(&after)
        .difference(&series(&before))
        .cloned()
        .collect();
    assert_eq!(new, Vec::<String>::new(), "series that traffic has made");

    for (series, least) in [
        ("received_messages_total{reply=\"accepted\"}", 2.0),
        ("message_delay_seconds_count{lane=\"session\"}", 1.0),
        (
            "delivery_attempts_total{next_hop=\"sink\",outcome=\"delivered\"}",
            1.0,
        ),
        ("scan_attempts_total{engine=\"types\"}", 1.0),
        (
            "scan_reports_total{engine=\"away\",answer=\"unreachable\"}",
            1.0,
        ),
        ("sessions_total{listener=\"smtp\"}", 4.0),
        ("sessions_ended_total{how=\"quit\"}", 2.0),
        (
            "auth_attempts_total{mechanism=\"PLAIN\",outcome=\"wrong\"}",
            1.0,
        ),
        (
            "auth_attempts_total{mechanism=\"PLAIN\",outcome=\"accepted\"}",
            1.0,
        ),
        ("tls_handshakes_total{version=\"TLSv1.3\"}", 1.0),
        ("tls_handshakes_failed_total{why=\"error\"}", 1.0),
        ("lane_messages{lane=\"delivery\"}", 1.0),
    ] {
        let counted = value(&after, &format!("spillway_{series}"));
        assert!(counted >= least, "{series} is {counted}: {after}");
    }
}
