//! Engines that somebody else writes: a real program as an engine of kind `command`, and the examples of docs/ENGINES.md.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::client::Client;
use crate::engines::spam_is_held;
use crate::relay::{Site, eventually};
use crate::samples;
use crate::servers::{Server, free_port, is_root, left_out, listens, signatures};
use spillway::store::{Filter, Lane};

/// A scanner for the command line finds the EICAR test file in mail that it reads from standard input, is named with what
/// it found, stands up to probes, and lets a clean message pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scanner_for_the_command_line_is_an_engine() {
    let site = Site::new();
    let database = signatures(site.path());
    let relay = site
        .start(&format!(
            "[[engine]]\nname = \"clamscan\"\nkind = \"command\"\nprobe_with = \"eicar\"\nprobe = \"50ms\"\n\
             timeout = \"60s\"\nlimit = \"90s\"\npattern = '^stdin: (?<name>.+) FOUND$'\n\
             command = [\"/usr/bin/clamscan\", \"--no-summary\", \"--stdout\", \"--database={}\", \"-\"]\n",
            database.display()
        ))
        .await;
    let mut client = Client::open(relay.address()).await.expect("connect");
    for content in [
        samples::nested(3, "note.txt", b"nothing to see"),
        samples::nested(3, "eicar.com", &samples::eicar()),
    ] {
        let reply = client
            .send("a@a.test", &["b@b.test"], &content)
            .await
            .expect("a reply");
        assert!(reply.starts_with("250"), "{reply}");
    }
    let store = relay.running.pipeline().store().clone();
    eventually("one is held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            engine: Some("clamscan".to_owned()),
            finding: Some("test.eicar".to_owned()),
            limit: 10,
            ..Filter::default()
        };
        store.search(filter).await.expect("search").pop()
    })
    .await;
    assert_eq!(site.delivered().len(), 1, "the clean one");
}

/// No program is given the capabilities that the relay has been given by systemd as ambient ones. With SETUID, which the
/// relay needs to start one as somebody else, that one could be root.
#[test]
fn programs_are_given_no_capabilities() {
    if !is_root() {
        return left_out(
            "programs_are_given_no_capabilities",
            "only root can give the relay any",
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("spillway.toml");
    let text = format!(
        "[store]\npath = \"{}\"\n[[listener]]\nname = \"in\"\naddress = [\"127.0.0.1:0\"]\n\
         [[next_hop]]\nname = \"m\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"127.0.0.1:9\"]\n\
         [[engine]]\nname = \"caps\"\nkind = \"command\"\npattern = '^CapAmb:\\s+(?<name>.+)$'\n\
         command = [\"/bin/sh\", \"-c\", \"grep Cap /proc/self/status; exit 1\"]\n",
        folder.path().join("store").display()
    );
    std::fs::write(&config, text).expect("a configuration");
    let mail = folder.path().join("a.eml");
    std::fs::write(&mail, samples::nested(1, "note.txt", b"x")).expect("a message");
    let needs = "+net_bind_service,+setuid";
    let said = Command::new("setpriv")
        .arg(format!("--inh-caps={needs}"))
        .arg(format!("--ambient-caps={needs}"))
        .arg(env!("CARGO_BIN_EXE_spillway"))
        .arg("scan")
        .arg("--config")
        .arg(&config)
        .arg(&mail)
        .output()
        .expect("setpriv runs");
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains(" 0000000000000000 "), "{said}");
}

/// The example of that name in docs/ENGINES.md, as a program in `folder`.
fn example(name: &str, folder: &Path) -> PathBuf {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ENGINES.md");
    let text = std::fs::read_to_string(docs).expect("docs/ENGINES.md");
    let blocks = text.split("```python\n").skip(1);
    let codes = blocks.filter_map(|block| block.split("```").next());
    let mut found = codes.filter(|code| code.contains(&format!("\"\"\"{name}: ")));
    let (Some(code), None) = (found.next(), found.next()) else {
        panic!("there is not one example {name}");
    };
    let file = folder.join(name);
    std::fs::write(&file, code).expect("a program");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("its mode");
    file
}

/// The example of a scanner in another language works as it stands in the docs, with the settings that stand there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_command_works() {
    let site = Site::new();
    let program = example("scan-words", site.path());
    let engine = format!(
        "kind = \"command\"\nclass = \"content\"\ncommand = [\"{}\"]\noutput = \"json\"\nname_at = \"/names\"\n\
         bad_kind = \"policy\"\nprobe_with = \"gtube\"\nprobe = \"50ms\"\ntimeout = \"60s\"\nlimit = \"90s\"",
        program.display()
    );
    let held = spam_is_held(&site, &engine).await;
    assert_eq!(held.decision.expect("a decision").rule, "policy.policy");
}

/// The same as a service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_service_works() {
    let site = Site::new();
    example("scan-words", site.path());
    let program = example("scan-service", site.path());
    let port = free_port();
    let program = program.display().to_string();
    let _service =
        Server::start(&program, [port.to_string()], Stdio::null()).until(|| listens(port));
    let engine = format!(
        "kind = \"http\"\nclass = \"content\"\naddress = [\"http://127.0.0.1:{port}/scan\"]\nname_at = \"/names\"\n\
         id_at = \"/id\"\nbad_kind = \"policy\"\nprobe_with = \"gtube\"\nprobe = \"50ms\"\ntimeout = \"60s\""
    );
    let held = spam_is_held(&site, &engine).await;
    assert_eq!(held.decision.expect("a decision").rule, "policy.policy");
}
