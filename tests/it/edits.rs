//! Real engines that want messages changed, and what the next hop gets.

use std::path::Path;

use crate::client::Client;
use crate::relay::eventually;
use crate::servers::{Rspamd, Spillway, cli, free_port};
use crate::sink;

/// What a site's own rspamd may be told to do: fields of a milter, and spam by a word in the subject.
const RULES: &str = r#"
rspamd_config.TEST_FIELDS = {
  callback = function(task)
    task:set_milter_reply({
      remove_headers = { ["X-Spam"] = 0 },
      add_headers = {
        ["X-Spam"] = "no, says rspamd",
        ["X-Trace"] = { value = "on\n\ttwo lines", order = 0 },
        ["Content-Type"] = "text/html",
      },
    })
    return (task:get_subject() or ""):find("viagra") ~= nil
  end,
  score = 50.0,
}
"#;

fn config(folder: &Path, smtp: u16, hop: &str, rspamd: u16, edits: &str) -> std::path::PathBuf {
    let path = folder.join("spillway.toml");
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{smtp}\"]\n\
         [[engine]]\nname = \"rspamd\"\nkind = \"rspamd\"\naddress = [\"http://127.0.0.1:{rspamd}\"]\n\
         timeout = \"60s\"\nlimit = \"60s\"\nprobe = \"0s\"\n{edits}\n\
         [[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"{hop}\"]\ntls = \"off\"\n"
    );
    std::fs::write(&path, text).expect("configuration");
    path
}

/// The fields that rspamd adds and removes are in what is delivered, at once and when a reviewer releases it after the relay
/// was stopped in between; the body and all other fields are as they came; what would make the message another one than was
/// scanned is not done, and told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rspamd_edits_what_is_delivered() {
    let folder = tempfile::tempdir().expect("a folder");
    let rspamd = Rspamd::with(folder.path(), RULES);
    let (hop, got) = sink::start(|_| None).await;
    let smtp = free_port();
    let fields = "edits = \"fields\"";
    let path = config(folder.path(), smtp, &hop.to_string(), rspamd.port, fields);
    let spillway = Spillway::start(&path, smtp);
    let address = ([127, 0, 0, 1], smtp).into();
    let mut client = Client::open(address).await.expect("connect");
    let mail = |subject: &str| {
        format!(
            "From: a@a.test\r\nX-Spam: yes\r\nsubject: {subject}\r\nx-spam:\tforged\r\n\r\nbody {subject}\r\n"
        )
    };
    for (subject, said) in [("clean", "250"), ("viagra", "250")] {
        let mail = mail(subject);
        let reply = client
            .send("a@a.test", &["b@b.test"], mail.as_bytes())
            .await;
        assert!(reply.expect("a reply").starts_with(said));
    }
    assert_eq!(got.bodies().len(), 1, "the clean one");
    drop(client);
    drop(spillway);
    let list: serde_json::Value =
        serde_json::from_str(&cli(&path, &["quarantine", "list", "--json"])).expect("JSON");
    let id = list["messages"][0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let told = cli(&path, &["explain", &id]);
    assert!(told.contains("remove all X-Spam"), "{told}");
    assert!(
        told.contains("add Content-Type at the end: text/html: not done"),
        "{told}"
    );
    cli(&path, &["quarantine", "release", &id]);
    let _spillway = Spillway::start(&path, smtp);
    eventually("the released one", async || {
        (got.bodies().len() == 2).then_some(())
    })
    .await;
    for (body, subject) in got.bodies().iter().zip(["clean", "viagra"]) {
        assert!(
            body.starts_with("X-Trace: on\r\n\ttwo lines\r\nReceived: "),
            "{body}"
        );
        let rest = format!(
            "\r\nFrom: a@a.test\r\nsubject: {subject}\r\nX-Spam: no, says rspamd\r\n\r\nbody {subject}\r\n"
        );
        assert!(body.ends_with(&rest), "{body}");
    }
}

/// Without the administrator's leave everything below our own fields is as it came, whatever an engine asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_leave_nothing_is_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let rspamd = Rspamd::with(folder.path(), RULES);
    let (hop, got) = sink::start(|_| None).await;
    let smtp = free_port();
    let path = config(folder.path(), smtp, &hop.to_string(), rspamd.port, "");
    let _spillway = Spillway::start(&path, smtp);
    let mut client = Client::open(([127, 0, 0, 1], smtp).into())
        .await
        .expect("connect");
    let mail = "From: a@a.test\r\nX-Spam: yes\r\n\r\nbody\r\n";
    let reply = client
        .send("a@a.test", &["b@b.test"], mail.as_bytes())
        .await;
    let reply = reply.expect("a reply");
    assert!(reply.starts_with("250"), "{reply}");
    let bodies = got.bodies();
    assert!(bodies[0].starts_with("Received: "), "{}", bodies[0]);
    assert!(bodies[0].ends_with(&format!("\r\n{mail}")), "{}", bodies[0]);
}
