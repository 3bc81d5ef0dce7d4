//! Engines that ask name servers, in the running program.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_auth::common::crypto::Ed25519Key;
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::DkimSigner;

use crate::client::Client;
use crate::name_server::NameServer;
use crate::servers::{Spillway, cli, free_port};
use crate::sink;

const MAIL: &str =
    "From: a@a.test\r\nTo: b@b.test\r\nSubject: x\r\n\r\nsee http://www.bad.example.com/\r\n";

fn config(folder: &Path, smtp: u16, hop: &str, server: &NameServer) -> PathBuf {
    let path = folder.join("spillway.toml");
    let resolver = format!("resolver = [\"{}\"]", server.address);
    let list = |name: &str, ask: &str| {
        format!(
            "[[engine]]\nname = \"{name}\"\nkind = \"dns\"\nzone = \"{name}.test\"\nask = [\"{ask}\"]\n\
             answers = [\"127.0.0.0/8 spam 20.0 listed\"]\n{resolver}\n"
        )
    };
    let text = format!(
        "[relay]\nhostname = \"relay.test\"\n[admin]\nhttp = \"\"\n[store]\ndisk_reserve = \"1MiB\"\n\
         [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:{smtp}\"]\nxclient_from = [\"127.0.0.1/32\"]\n\
         relay_networks = [\"192.0.2.0/24\"]\n{}{}\
         [[engine]]\nname = \"senders\"\nkind = \"auth\"\nauthserv_id = \"mx.test\"\ndmarc = \"obey\"\n{resolver}\n\
         [[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\naddress = [\"{hop}\"]\ntls = \"off\"\n",
        list("clients", "client"),
        list("urls", "url"),
    );
    std::fs::write(&path, text).expect("configuration");
    path
}

/// Hands a message in as a front end does that the relay trusts.
async fn send(smtp: u16, client: &str, mail: &str) -> String {
    let mut session = Client::open(([127, 0, 0, 1], smtp).into())
        .await
        .expect("connect");
    session.xclient(client).await.expect("XCLIENT");
    let reply = session
        .send("a@a.test", &["b@b.test"], mail.as_bytes())
        .await;
    reply.expect("a reply")
}

/// Honest, signed mail is delivered with our results and without those that others have written in our name; mail that its
/// domain disowns is held, and so is mail from a client or with a URL that is on a list; `explain` tells why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_and_lists_are_asked_about_mail() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = NameServer::start().await;
    let der = Ed25519Key::generate_pkcs8().expect("a key");
    let key = Ed25519Key::from_pkcs8_der(&der).expect("a key");
    let record = STANDARD.encode(key.public_key());
    server
        .text("a.test", "v=spf1 ip4:192.0.2.1 -all")
        .text(
            "s._domainkey.a.test",
            &format!("v=DKIM1; k=ed25519; p={record}"),
        )
        .text("_dmarc.a.test", "v=DMARC1; p=reject")
        .has("2.0.0.127.clients.test", [127, 0, 0, 2])
        .has("3.2.0.192.clients.test", [127, 0, 0, 4])
        .has("test.urls.test", [127, 0, 0, 2]);
    let (hop, got) = sink::start(|_| None).await;
    let smtp = free_port();
    let path = config(folder.path(), smtp, &hop.to_string(), &server);
    let _spillway = Spillway::start(&path, smtp);
    for engine in ["clients", "urls"] {
        cli(&path, &["engine", "test", engine]);
    }
    // Nothing says what this one must find, but that it answers can be seen.
    let told = cli(&path, &["engine", "test", "senders"]);
    assert!(told.starts_with("senders: answers: it found "), "{told}");
    let signer = DkimSigner::from_key(key).domain("a.test").selector("s");
    let signature = signer
        .headers(["From", "To", "Subject"])
        .sign(MAIL.as_bytes());
    let signature = signature.expect("a signature").to_header();
    let forged = "Authentication-Results: MX.test; dmarc=pass\r\nAuthentication-Results: other.test; spf=pass\r\n";
    let mail = format!("{forged}{signature}{MAIL}");
    assert!(send(smtp, "192.0.2.1", &mail).await.starts_with("250"));
    let bodies = got.bodies();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let field = "Authentication-Results: mx.test;\r\n\tspf=pass smtp.mailfrom=a.test;\r\n\t\
                 dkim=pass header.d=a.test header.s=s;\r\n\tdmarc=pass header.from=a.test\r\nReceived: ";
    assert!(bodies[0].starts_with(field), "{}", bodies[0]);
    assert!(
        !bodies[0].contains("MX.test") && bodies[0].contains("other.test"),
        "{}",
        bodies[0]
    );
    // Not signed and from elsewhere; from a client that is listed; with a URL that is listed.
    assert!(send(smtp, "192.0.2.2", MAIL).await.starts_with("250"));
    assert!(send(smtp, "192.0.2.3", &mail).await.starts_with("250"));
    let other = MAIL.replace("example.com", "other.example.net");
    server.has("example.net.urls.test", [127, 0, 0, 2]);
    assert!(send(smtp, "192.0.2.1", &other).await.starts_with("250"));
    assert_eq!(got.bodies().len(), 1, "the others are held");
    let held: serde_json::Value =
        serde_json::from_str(&cli(&path, &["quarantine", "list", "--json"])).expect("JSON");
    let told: Vec<String> = held["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| cli(&path, &["explain", entry["id"].as_str().expect("an id")]))
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for why in [
        "dmarc.reject",
        "3.2.0.192.clients.test",
        "example.net.urls.test",
    ] {
        assert!(
            told.iter().any(|told| told.contains(why)),
            "{why}: {told:?}"
        );
    }
}
