//! Who may relay, how long a session may take, and what a reload and a drain do to the sessions there are.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use spillway::listener::users;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::certificates;
use crate::dialogue::Client;
use crate::relay::{PATIENCE, Relay, Site, eventually};

/// A listener with encryption where nobody may relay for being near.
const SUBMISSION: &str = "[[listener]]\nname = \"submission\"\naddress = [\"127.0.0.1:0\"]\ntls = \"starttls\"\n\
                          certificate = \"server.pem\"\nkey = \"server.key\"\nrelay_networks = []\n";

fn with_users() -> Site {
    let site = Site::new();
    certificates::write(site.path());
    users::add(&site.path().join("users"), "tim", "secret").expect("a user");
    site
}

/// Sends a command and returns the last line of the reply.
async fn ask(client: &mut Client, command: &str) -> String {
    client.send(format!("{command}\r\n").as_bytes()).await;
    reply(client).await
}

async fn reply(client: &mut Client) -> String {
    client.reply().await.pop().unwrap_or_default()
}

/// Greeted and introduced, in the clear.
async fn introduced(relay: &Relay) -> Client {
    let mut client = Client::connect(relay).await;
    assert!(reply(&mut client).await.starts_with("220"));
    assert!(ask(&mut client, "EHLO c").await.starts_with("250"));
    client
}

/// The same, encrypted.
async fn encrypted(relay: &Relay, config: rustls::ClientConfig) -> Client {
    let mut client = introduced(relay).await;
    assert!(ask(&mut client, "STARTTLS").await.starts_with("220"));
    let mut client = client.start_tls(config).await;
    assert!(ask(&mut client, "EHLO c").await.starts_with("250"));
    client
}

async fn may_relay(client: &mut Client) -> bool {
    assert!(ask(client, "MAIL FROM:<a@a.test>").await.starts_with("250"));
    let reply = ask(client, "RCPT TO:<b@b.test>").await;
    assert!(ask(client, "RSET").await.starts_with("250"));
    match &reply[..3] {
        "250" => true,
        "550" => false,
        _ => panic!("{reply}"),
    }
}

/// RFC 4954 and RFC 4616: passwords are taken over TLS only; the right one lets relay, by either mechanism.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_relay_after_auth_over_tls_and_never_before() {
    let site = with_users();
    let relay = site
        .start(&format!("{SUBMISSION}users_file = \"users\"\n"))
        .await;
    let plain = format!("AUTH PLAIN {}", STANDARD.encode("\0tim\0secret"));

    let mut clear = Client::connect(&relay).await;
    reply(&mut clear).await;
    clear.send(b"EHLO c\r\n").await;
    let offered = clear.reply().await;
    assert!(
        !offered.iter().any(|line| line.contains("AUTH")),
        "{offered:?}"
    );
    assert!(ask(&mut clear, &plain).await.starts_with("538 5.7.11"));
    assert!(!may_relay(&mut clear).await);

    let mut client = encrypted(&relay, certificates::trusting_client()).await;
    client.send(b"EHLO c\r\n").await;
    let offered = client.reply().await;
    assert!(
        offered
            .iter()
            .any(|line| line.ends_with("AUTH PLAIN LOGIN")),
        "{offered:?}"
    );
    assert!(!may_relay(&mut client).await);
    assert!(ask(&mut client, &plain).await.starts_with("235 2.7.0"));
    assert!(may_relay(&mut client).await);

    let mut client = encrypted(&relay, certificates::trusting_client()).await;
    assert!(ask(&mut client, "AUTH PLAIN").await.starts_with("334"));
    assert!(ask(&mut client, "*").await.starts_with("501"));
    let challenge = ask(&mut client, "AUTH LOGIN").await;
    assert_eq!(challenge, format!("334 {}", STANDARD.encode("Username:")));
    let challenge = ask(&mut client, &STANDARD.encode("tim")).await;
    assert_eq!(challenge, format!("334 {}", STANDARD.encode("Password:")));
    assert!(
        ask(&mut client, &STANDARD.encode("secret"))
            .await
            .starts_with("235")
    );
    assert!(may_relay(&mut client).await);
    assert!(
        ask(&mut client, &plain).await.starts_with("503"),
        "only once"
    );
}

/// A wrong password lets nobody relay, and few of them end the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_passwords_are_few() {
    let site = with_users();
    let relay = site
        .start(&format!("{SUBMISSION}users_file = \"users\"\n"))
        .await;
    let mut client = encrypted(&relay, certificates::trusting_client()).await;
    let wrong = format!("AUTH PLAIN {}", STANDARD.encode("\0tim\0Secret"));
    for _ in 0..2 {
        let reply = ask(&mut client, &wrong).await;
        assert!(reply.starts_with("535 5.7.8"), "{reply}");
        assert!(!may_relay(&mut client).await);
    }
    assert!(ask(&mut client, &wrong).await.starts_with("421 4.7.0"));
    assert_eq!(client.line().await, None, "it is over");
}

/// A certificate of `client_ca` lets relay; having none is no offence; and a proxy's certificate is not its client's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_lets_relay() {
    let site = Site::new();
    certificates::write(site.path());
    let relay = site
        .start(&format!(
            "{SUBMISSION}client_ca = \"ca.pem\"\nxclient_from = [\"127.0.0.1/32\"]\n"
        ))
        .await;
    let mut stranger = encrypted(&relay, certificates::trusting_client()).await;
    assert!(!may_relay(&mut stranger).await);
    let mut client = encrypted(&relay, certificates::certified_client()).await;
    assert!(may_relay(&mut client).await);
    let reply = ask(&mut client, "XCLIENT ADDR=203.0.113.1").await;
    assert!(reply.starts_with("220"), "{reply}");
    assert!(ask(&mut client, "EHLO c").await.starts_with("250"));
    assert!(!may_relay(&mut client).await);
}

/// Where no authority is named a certificate is worth nothing: anybody can make one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_without_an_authority_is_worth_nothing() {
    let site = Site::new();
    certificates::write(site.path());
    let relay = site.start(SUBMISSION).await;
    let mut client = encrypted(&relay, certificates::certified_client()).await;
    assert!(!may_relay(&mut client).await);
}

/// A client with too many sessions is told 421 and can come again when one has ended; others are not its concern.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_so_many_sessions_and_no_more() {
    for (limits, over) in [
        ("sessions = 10\nsessions_per_client = 2\n", 2),
        ("sessions = 3\nsessions_per_client = 3\n", 3),
    ] {
        let site = Site::new();
        let relay = site.start(&format!("[limits]\n{limits}")).await;
        let mut open = Vec::new();
        for _ in 0..over {
            open.push(introduced(&relay).await);
        }
        let mut refused = Client::connect(&relay).await;
        let told = reply(&mut refused).await;
        assert!(told.starts_with("421 4.7.0 Too many sessions"), "{told}");
        assert_eq!(refused.line().await, None);
        let mut last = open.pop().expect("a session");
        assert!(ask(&mut last, "QUIT").await.starts_with("221"));
        eventually("a place is free", async || {
            let mut client = Client::connect(&relay).await;
            reply(&mut client).await.starts_with("220").then_some(())
        })
        .await;
    }
}

/// Behind a proxy the limit is that of each client, not of the proxy that all come through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_a_proxy_are_counted_apart() {
    let site = Site::new();
    let relay = site
        .start(
            "[[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:0\"]\nproxy_from = [\"127.0.0.1/32\"]\n\
             [limits]\nsessions_per_client = 2\n",
        )
        .await;
    let mut open = Vec::new();
    for (client, greeting) in [
        ("192.0.2.1", "220"),
        ("192.0.2.1", "220"),
        ("192.0.2.1", "421"),
        ("192.0.2.2", "220"),
        ("192.0.2.2", "220"),
    ] {
        let mut session = Client::connect(&relay).await;
        let header = format!("PROXY TCP4 {client} 127.0.0.1 1 2\r\n");
        session.send(header.as_bytes()).await;
        let said = reply(&mut session).await;
        assert!(said.starts_with(greeting), "{client}: {said}");
        open.push(session);
    }
}

/// The octets behind a PROXY header are the handshake's: proxies send both in one segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_may_come_with_the_proxy_header() {
    let site = Site::new();
    certificates::write(site.path());
    let listener = SUBMISSION.replace("starttls", "implicit");
    let relay = site
        .start(&format!("{listener}proxy_from = [\"127.0.0.1/32\"]\n"))
        .await;
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([192, 0, 2, 7, 127, 0, 0, 1, 0, 1, 0, 2]);
    for header in [b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n".to_vec(), v2] {
        let name = "relay.test".try_into().expect("a name");
        let config = Arc::new(certificates::trusting_client());
        let mut tls = rustls::ClientConnection::new(config, name).expect("a client");
        let mut together = header;
        tls.write_tls(&mut together).expect("a hello");
        let mut socket = TcpStream::connect(relay.address()).await.expect("connect");
        socket.write_all(&together).await.expect("write");
        let kind = timeout(PATIENCE, socket.read_u8())
            .await
            .expect("an answer");
        assert_eq!(kind.expect("an answer"), 22, "a handshake record");
    }
}

/// Silence ends a session, and a line that comes octet by octet is silence too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_ends_however_slowly_it_types() {
    let site = Site::new();
    let relay = site.start("[limits]\nidle = \"1s\"\n").await;
    let mut silent = introduced(&relay).await;
    let told = reply(&mut silent).await;
    assert!(told.starts_with("421 4.4.2 Timed out waiting"), "{told}");
    assert_eq!(silent.line().await, None);

    let mut slow = TcpStream::connect(relay.address()).await.expect("connect");
    let mut seen = Vec::new();
    let told = eventually("421", async || {
        let _ = slow.write_all(b"x").await;
        let mut piece = [0; 512];
        match slow.try_read(&mut piece) {
            Ok(octets) => seen.extend_from_slice(&piece[..octets]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        let text = String::from_utf8_lossy(&seen).into_owned();
        text.contains("\r\n421").then_some(text)
    })
    .await;
    assert!(told.contains("421 4.4.2 Timed out waiting"), "{told}");
}

/// Content that stops coming ends the session, after DATA as between chunks, whatever is said in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_stops_coming_ends_the_session() {
    let site = Site::new();
    let relay = site
        .start("[limits]\ndata_idle = \"1s\"\ndata_total = \"2s\"\n")
        .await;
    let begun = async || {
        let mut client = introduced(&relay).await;
        assert!(
            ask(&mut client, "MAIL FROM:<a@a.test>")
                .await
                .starts_with("250")
        );
        assert!(
            ask(&mut client, "RCPT TO:<b@b.test>")
                .await
                .starts_with("250")
        );
        client
    };
    let mut client = begun().await;
    assert!(ask(&mut client, "DATA").await.starts_with("354"));
    let told = ask(&mut client, "Subject: and then").await;
    assert!(
        told.starts_with("421 4.4.2 Timed out while receiving"),
        "{told}"
    );

    let mut client = begun().await;
    client.send(b"BDAT 3\r\nabc").await;
    assert!(reply(&mut client).await.starts_with("250"));
    let told = eventually("421", async || {
        let told = ask(&mut client, "NOOP").await;
        (!told.starts_with("250")).then_some(told)
    })
    .await;
    assert!(told.starts_with("421 4.4.2"), "{told}");
}

/// A client that sends an octet now and then keeps within every other limit, and would hold its session, memory and share for
/// hours: what comes in too slowly on average ends the session, after DATA as in chunks.
#[tokio::test]
async fn content_that_comes_in_too_slowly_ends_the_session() {
    let site = Site::new();
    let relay = site.start("[limits]\ndata_total = \"24h\"\n").await;
    for (begin, octet) in [("DATA\r\n", "x"), ("", "BDAT 1\r\nx")] {
        let mut client = introduced(&relay).await;
        for command in ["MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>"] {
            assert!(ask(&mut client, command).await.starts_with("250"));
        }
        client.send(begin.as_bytes()).await;
        // From here on time flies while nobody has anything to do.
        tokio::time::pause();
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        let mut told = Vec::new();
        for _ in 0..100 {
            ticks.tick().await;
            client.send(octet.as_bytes()).await;
            let next = client.line().now_or_never();
            told.extend(next.flatten());
            if told.last().is_some_and(|line| line.starts_with("421")) {
                break;
            }
        }
        tokio::time::resume();
        let last = told.pop().unwrap_or_default();
        assert!(
            last.starts_with("421 4.4.2 The message arrives too slowly"),
            "{last}"
        );
    }
}

/// A reload changes what new sessions get: certificate, users, limits. Those there are go on as they began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_keeps_sessions_and_changes_new_ones() {
    let site = with_users();
    let text = format!("{SUBMISSION}users_file = \"users\"\n");
    let relay = site.start(&text).await;
    let mut old = encrypted(&relay, certificates::trusting_client()).await;
    let plain = |password: &str| {
        format!(
            "AUTH PLAIN {}",
            STANDARD.encode(format!("\0tim\0{password}"))
        )
    };
    assert!(ask(&mut old, &plain("secret")).await.starts_with("235"));

    for (from, to) in [("client.pem", "server.pem"), ("client.key", "server.key")] {
        std::fs::copy(site.path().join(from), site.path().join(to)).expect("another certificate");
    }
    std::fs::rename(site.path().join("users"), site.path().join("others")).expect("rename");
    users::add(&site.path().join("others"), "tim", "changed").expect("a user");
    let changed = text.replace("\"users\"", "\"others\"");
    site.configure(&format!("{changed}[limits]\nmessage_size = \"1MiB\"\n"));
    let difference = relay.running.reload().await.expect("a good file");
    assert!(!difference.is_empty());

    assert!(may_relay(&mut old).await, "its user logged in before");
    old.send(b"EHLO c\r\n").await;
    let offered = old.reply().await;
    assert!(
        offered.contains(&"250-SIZE 52428800".to_owned()),
        "{offered:?}"
    );

    let socket = TcpStream::connect(relay.address()).await.expect("connect");
    let certificate = certificate_of(socket).await;
    let wanted = std::fs::read(site.path().join("client.pem")).expect("a file");
    let wanted = rustls::pki_types::pem::PemObject::from_pem_slice(&wanted).expect("a certificate");
    assert_eq!(certificate, wanted);
    let mut new = encrypted(&relay, certificates::trusting_client()).await;
    new.send(b"EHLO c\r\n").await;
    let offered = new.reply().await;
    assert!(
        offered.contains(&"250-SIZE 1048576".to_owned()),
        "{offered:?}"
    );
    assert!(ask(&mut new, &plain("changed")).await.starts_with("235"));

    site.configure(&changed.replace("server.key", "missing.key"));
    let problems = relay.running.reload().await.expect_err("a bad file");
    assert!(
        problems.iter().any(|p| p.contains("missing.key")),
        "{problems:?}"
    );
    assert!(may_relay(&mut new).await);
    introduced(&relay).await;
}

/// The certificate that a session gets after STARTTLS.
async fn certificate_of(mut socket: TcpStream) -> rustls::pki_types::CertificateDer<'static> {
    socket
        .write_all(b"EHLO c\r\nSTARTTLS\r\n")
        .await
        .expect("write");
    let mut said = Vec::new();
    while !said.ends_with(b"Start TLS now\r\n") {
        let read = timeout(PATIENCE, socket.read_u8()).await.expect("a reply");
        said.push(read.expect("a reply"));
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(certificates::trusting_client()));
    let name = "relay.test".try_into().expect("a name");
    let stream = connector.connect(name, socket).await.expect("handshake");
    let chain = stream.get_ref().1.peer_certificates().expect("a chain");
    chain[0].clone().into_owned()
}

/// A drain ends idle sessions with 421 at once and lets a transaction that has begun come to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_idle_sessions_and_finishes_transactions() {
    let site = Site::new();
    let relay = site.start("").await;
    let mut idle = introduced(&relay).await;
    let mut busy = introduced(&relay).await;
    for command in ["MAIL FROM:<a@a.test>", "RCPT TO:<b@b.test>", "DATA"] {
        assert!(ask(&mut busy, command).await.starts_with(['2', '3']));
    }
    let address = relay.address();
    let drained = tokio::spawn(relay.running.drain());
    let told = reply(&mut idle).await;
    assert!(told.starts_with("421 4.3.2"), "{told}");
    assert_eq!(idle.line().await, None);
    eventually("nobody listens", async || {
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    let told = ask(&mut busy, "Subject: last\r\n\r\nlast\r\n.").await;
    assert!(told.starts_with("250 2.0.0 Ok"), "{told}");
    let told = reply(&mut busy).await;
    assert!(told.starts_with("421 4.3.2"), "{told}");
    assert!(drained.await.expect("no panic"), "everything has finished");
    assert_eq!(site.delivered().len(), 1);
}

/// Memory that is in use by others makes a message wait at its sender, and costs neither the session nor the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_finds_no_memory_gets_452_and_the_session_goes_on() {
    let site = Site::new();
    let relay = site
        .start("[limits]\nmessage_size = \"1MiB\"\nin_flight_bytes = \"3MiB\"\n")
        .await;
    let mut large = b"Subject: large\r\n\r\n".to_vec();
    large.extend(
        b"seventy-odd octets of a text that has nothing else to say to its reader\r\n"
            .repeat(14_000),
    );
    // Of different sender domains: one that holds so much would be refused at MAIL.
    let begun = async |sender: &str| {
        let mut client = introduced(&relay).await;
        for command in [sender, "RCPT TO:<b@b.test>", "DATA"] {
            assert!(ask(&mut client, command).await.starts_with(['2', '3']));
        }
        client
    };
    let mut first = begun("MAIL FROM:<a@a.test>").await;
    first.send(&large).await;
    eventually("it is all here", async || {
        let budget = relay.running.pipeline().memory();
        (budget.available() < (3 << 20) - 2 * large.len() as u64 + 4096).then_some(())
    })
    .await;
    let mut second = begun("MAIL FROM:<a@other.test>").await;
    second.send(&large).await;
    let told = ask(&mut second, ".").await;
    assert!(told.starts_with("452 4.3.1"), "{told}");
    for command in ["MAIL FROM:<a@other.test>", "RCPT TO:<b@b.test>", "DATA"] {
        assert!(ask(&mut second, command).await.starts_with(['2', '3']));
    }
    let told = ask(&mut second, "Subject: small\r\n\r\nsmall\r\n.").await;
    assert!(told.starts_with("250"), "{told}");
    let told = ask(&mut first, ".").await;
    assert!(told.contains("delivered"), "{told}");
    assert_eq!(site.delivered().len(), 2);
}
