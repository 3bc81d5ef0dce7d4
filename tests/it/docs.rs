//! What the documents show is true: configurations load, commands exist, links lead somewhere, Postfix takes our lines.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use spillway::config;

use crate::certificates;
use crate::client::Client;
use crate::relay::eventually;
use crate::servers::{
    Postfix, Spillway, command, free_port, is_root, left_out, listens, log_of, wait_until,
};
use crate::sink;

/// Stands for `ID` in the documents.
const AN_ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// README.md and docs/*.md.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md")];
    for entry in std::fs::read_dir(root.join("docs")).expect("docs") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "md") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a document");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

fn guide() -> String {
    let all = documents();
    let guide = all
        .into_iter()
        .find(|(path, _)| path.ends_with("CONFIG.md"));
    guide.expect("docs/CONFIG.md").1
}

/// The fenced blocks of a language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = text.split(fence.as_str()).skip(1);
    let inside = |block: &str| block.split("```").next().unwrap_or_default().to_owned();
    blocks.map(inside).collect()
}

/// Every configuration in the documents, whole or in part, is accepted as it stands, without a warning.
#[test]
fn configurations_in_the_guide_are_accepted() {
    let folder = tempfile::tempdir().expect("folder");
    certificates::write(folder.path());
    for (shown, made) in [
        ("fullchain.pem", "server.pem"),
        ("privkey.pem", "server.key"),
    ] {
        std::fs::rename(folder.path().join(made), folder.path().join(shown)).expect("rename");
    }
    for name in [
        "users",
        "smarthost.password",
        "sandbox.token",
        "hook.secret",
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, "").expect("a file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("its mode");
    }
    for name in ["smarthost.password", "sandbox.token"] {
        std::fs::write(folder.path().join(name), "secret\n").expect("a secret");
    }
    let secret = "a-secret-of-32-letters-and-digits";
    std::fs::write(folder.path().join("hook.secret"), secret).expect("a secret");
    let here = format!("{}/", folder.path().display());
    let all = documents();
    let rules = folder.path().join("rules");
    std::fs::create_dir(&rules).expect("a folder");
    let examples = all.iter().flat_map(|(_, text)| blocks(text, "yara"));
    for (number, example) in examples.enumerate() {
        std::fs::write(rules.join(format!("{number}.yar")), example).expect("a rule");
    }
    let examples: Vec<String> = all
        .iter()
        .flat_map(|(_, text)| blocks(text, "toml"))
        .collect();
    assert!(examples.len() >= 8, "{} examples", examples.len());
    for example in examples {
        let file = folder.path().join("spillway.toml");
        std::fs::write(&file, example.replace("/etc/spillway/", &here)).expect("a file");
        match config::load(Some(&file)) {
            Ok(config) => assert_eq!(config.warnings, Vec::<String>::new(), "{example}"),
            Err(problems) => panic!("{problems}\nin\n{example}"),
        }
        let checked = Command::new(env!("CARGO_BIN_EXE_spillway"))
            .args(["check-config", "--config"])
            .arg(&file)
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success(), "{said}\nfor\n{example}");
    }
}

/// A link that leads nowhere costs the reader's trust in the rest.
#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in documents() {
        let folder = path.parent().expect("a folder");
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !target.contains("://") && !folder.join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The command lines of a document, in blocks and in the text, without `spillway` itself. Those with `…` are no command
/// lines.
fn command_lines(text: &str) -> Vec<String> {
    let in_blocks = blocks(text, "sh");
    let in_blocks = in_blocks.iter().flat_map(|block| block.lines());
    // Spans do not cross lines in these documents, and every second piece between backticks is one.
    let spans = text
        .lines()
        .filter(|line| !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let mut found = Vec::new();
    for line in in_blocks.chain(spans) {
        let line = line.split(" #").next().unwrap_or_default();
        for program in ["spillway ", "cargo run --release -- "] {
            if let Some(arguments) = line.strip_prefix(program)
                && !arguments.contains('…')
            {
                found.push(arguments.trim().to_owned());
            }
        }
    }
    found
}

/// Every command shown can be typed as it is: the program knows its words and its flags.
#[test]
fn commands_in_the_documents_exist() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, text) in documents() {
        for line in command_lines(&text) {
            let words = line.split_whitespace();
            let words = words.map(|word| if word == "ID" { AN_ID } else { word });
            // With --help at the end everything before it is checked and nothing is done.
            let output = Command::new(env!("CARGO_BIN_EXE_spillway"))
                .args(words)
                .arg("--help")
                .output()
                .expect("runs");
            checked += 1;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                wrong.push(format!("{}: spillway {line}\n{said}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 15, "only {checked} found");
}

/// Between two services of a real Postfix, with the lines of the guide: after Postfix's queue and before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postfix_takes_the_lines_of_the_guide() {
    if !is_root() {
        let because = "only root can run Postfix";
        return left_out("postfix_takes_the_lines_of_the_guide", because);
    }
    let guide = guide();
    let postfix = blocks(&guide, "ini");
    let [main, master, before] = postfix.as_slice() else {
        panic!("{} blocks of Postfix lines", postfix.len());
    };
    let configuration = blocks(&guide, "toml");
    let configuration = configuration
        .iter()
        .find(|text| text.contains("reinjection"));
    for proxy in [false, true] {
        let folder = tempfile::Builder::new()
            .prefix("it")
            .tempdir_in("/var/tmp")
            .expect("a folder");
        let at = folder.path().join("postfix");
        std::fs::create_dir(&at).expect("a folder");
        command("chmod", &["755", &folder.path().display().to_string()]);
        let (to_us, back) = (free_port(), free_port());
        let ports = |text: &str| {
            let text = text.replace("10025", &to_us.to_string());
            text.replace("10026", &back.to_string())
        };
        let config = folder.path().join("spillway.toml");
        let text = configuration.expect("the example");
        let text = ports(text)
            .replace("/var/lib/spillway", "data")
            .replace("/run/spillway/control.sock", "control.sock")
            .replace("[admin]", "[admin]\nhttp = \"\"");
        std::fs::write(&config, text).expect("configuration");
        let _spillway = Spillway::start(&config, to_us);

        let (address, got) = sink::start(|_| None).await;
        let main = if proxy { String::new() } else { ports(main) };
        let out = format!("relayhost = [127.0.0.1]:{}\n", address.port());
        let server = Postfix::start(&at, &format!("{out}{main}"));
        extend(&server, &ports(master), proxy.then(|| ports(before)));
        wait_until("Postfix takes mail back", || listens(back));

        let mut client = Client::open(([127, 0, 0, 1], server.port).into())
            .await
            .expect("connect");
        let content = b"X-Test-Id: through\r\nSubject: x\r\n\r\ntext\r\n";
        let to = ["bob@b.test"];
        let reply = client.send("alice@a.test", &to, content).await;
        let reply = reply.expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
        // Before the queue, the sender is told what Spillway said.
        assert_eq!(reply.contains("delivered, next hop said"), proxy, "{reply}");
        eventually("it arrives", async || {
            (got.ids() == ["through"]).then_some(())
        })
        .await;
        assert!(log_of(&config).contains("alice@a.test"), "not by way of us");
    }
}

/// Adds services to master.cf, and options to its first one, as an administrator would.
fn extend(server: &Postfix, services: &str, options: Option<String>) {
    let path = server.folder.join("master.cf");
    let written = std::fs::read_to_string(&path).expect("master.cf");
    let (first, others) = written.split_once('\n').expect("services");
    let options = options.unwrap_or_default();
    let text = format!("{first}\n{options}{others}{services}");
    std::fs::write(&path, text).expect("master.cf");
    command(
        "postfix",
        &["-c", &server.folder.display().to_string(), "reload"],
    );
}
