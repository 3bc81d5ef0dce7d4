//! Refused logins at a next hop, with real sockets: the tests count the AUTH commands that the server sees.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server that replies `says` to AUTH with the wrong password, and accepts everything else.
struct LoginServer {
    address: String,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    logins: AtomicUsize,
    sessions: AtomicUsize,
    /// From now on every password is right, and RCPT gets 451.
    repaired: AtomicBool,
}

/// AUTH PLAIN with the user `u` and the password `right`.
const RIGHT: &str = "AUTH PLAIN AHUAcmlnaHQ=";

impl LoginServer {
    async fn start(says: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address").to_string();
        let seen = Arc::<Seen>::default();
        let count = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.sessions.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, says, count.clone()));
            }
        });
        Self { address, seen }
    }

    fn logins(&self) -> usize {
        self.seen.logins.load(Ordering::Relaxed)
    }

    fn sessions(&self) -> usize {
        self.seen.sessions.load(Ordering::Relaxed)
    }
}

async fn serve(stream: TcpStream, says: &'static str, seen: Arc<Seen>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut reply) = (String::new(), "220 hi");
    loop {
        let written = stream.write_all(format!("{reply}\r\n").as_bytes()).await;
        let in_content = reply.starts_with("354");
        loop {
            line.clear();
            if written.is_err() || stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if !in_content || line == ".\r\n" {
                break;
            }
        }
        let repaired = seen.repaired.load(Ordering::Relaxed);
        reply = match line.trim_end() {
            text if text.starts_with("EHLO") => "250-hi\r\n250 AUTH PLAIN",
            text if text.starts_with("AUTH") => {
                seen.logins.fetch_add(1, Ordering::Relaxed);
                if text == RIGHT || repaired {
                    "235 in"
                } else {
                    says
                }
            }
            "DATA" => "354 go",
            text if text.starts_with("RCPT") && repaired => "451 4.7.1 later",
            _ => "250 ok",
        };
    }
}

/// A file with this password.
fn password(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("password");
    std::fs::write(&file, text).expect("file");
    file
}

fn with_login(addresses: &[&LoginServer], password: PathBuf, pace: bool) -> Vec<Settings> {
    let addresses: Vec<String> = addresses.iter().map(|s| s.address.clone()).collect();
    let settings = SmtpSettings {
        username: Some("u".to_owned()),
        password_file: Some(password),
        connections: 20,
        pace,
        ..hop(&addresses)
    };
    vec![named("hop", "*", Kind::Smtp(settings))]
}

/// Delivers `count` messages at once; asserts that all of them are kept, for the same reason, and that none is an attempt.
async fn all_are_kept(delivery: &Delivery, count: usize, reason: &str) {
    let mail = mail(&["b@y"], CONTENT);
    let all = (0..count).map(|_| delivery.deliver(&mail, soon()));
    for outcomes in futures_util::future::join_all(all).await {
        let [Outcome::Deferred(answer)] = &outcomes[..] else {
            panic!("{outcomes:?}");
        };
        assert!(answer.text.contains(reason), "{}", answer.text);
        assert!(answer.held_back, "{}", answer.text);
    }
}

/// A wrong password costs one login, however many messages are under way and arrive later, with a pace and without: more of
/// them could lock the account. The mail is kept, and log, incident and status name the reply, never the password.
#[tokio::test]
async fn a_refused_login_is_one_attempt_for_all_messages() {
    let folder = tempfile::tempdir().expect("folder");
    for pace in [true, false] {
        for says in [
            "535 5.7.8 no",
            "454 4.7.0 not now",
            "421 4.7.0 bye",
            "500 what",
        ] {
            let server = LoginServer::start(says).await;
            let settings = with_login(&[&server], password(folder.path(), "wrong"), pace);
            let delivery = Delivery::new(settings, None).expect("a next hop");
            let reason = format!("AUTH: {says}");
            all_are_kept(&delivery, 30, &reason).await;
            let sessions = server.sessions();
            all_are_kept(
                &delivery,
                30,
                &format!("next hop hop refused our login: {}", server.address),
            )
            .await;
            assert_eq!(
                (server.logins(), server.sessions()),
                (1, sessions),
                "{says}, {pace}"
            );
            assert_eq!(delivery.room("hop", 9).0, 0);
            let status = &delivery.status()[0];
            assert_eq!(status.state, PaceState::Dead);
            let shown = status.to_string();
            assert!(
                shown.starts_with("refuses our login since ") && shown.contains(says),
                "{shown}"
            );
            let [incident] = &delivery.incidents()[..] else {
                panic!("one incident");
            };
            assert_eq!(incident.kind.as_str(), "next-hop-dead");
            assert!(
                incident.summary.contains("next hop hop refused our login"),
                "{incident:?}"
            );
            assert!(!format!("{incident:?}{shown}").contains("wrong"));
        }
    }
}

/// A refused account ends the delivery: the same account is refused at every address. A transient refusal is about one server
/// (RFC 4954 6), and another address takes the mail.
#[tokio::test]
async fn only_a_transient_refusal_leads_to_another_address() {
    let folder = tempfile::tempdir().expect("folder");
    for (says, elsewhere) in [("535 5.7.8 no", 0), ("454 4.7.0 not now", 1)] {
        let servers = [
            LoginServer::start(says).await,
            LoginServer::start(says).await,
        ];
        let file = password(folder.path(), "wrong");
        let settings = with_login(&[&servers[0], &servers[1]], file, true);
        let delivery = Delivery::new(settings, None).expect("a next hop");
        all_are_kept(&delivery, 30, "AUTH").await;
        let logins = (servers[0].logins(), servers[1].logins());
        assert_eq!(logins, (1, elsewhere), "{says}");
    }
}

/// A reload that changes the password allows a login at once, and mail flows again. A reload that changes nothing does not.
#[tokio::test]
async fn a_new_password_is_tried_at_once() {
    let folder = tempfile::tempdir().expect("folder");
    for pace in [true, false] {
        let server = LoginServer::start("535 5.7.8 no").await;
        let settings = with_login(&[&server], password(folder.path(), "wrong"), pace);
        let before = Delivery::new(settings.clone(), None).expect("a next hop");
        all_are_kept(&before, 3, "535 5.7.8 no").await;
        let same = Delivery::new(settings.clone(), Some(&before)).expect("a next hop");
        all_are_kept(&same, 3, "535 5.7.8 no").await;
        assert_eq!(server.logins(), 1);
        password(folder.path(), "right");
        let other = Delivery::new(settings, Some(&same)).expect("a next hop");
        let mail = mail(&["b@y"], CONTENT);
        for _ in 0..3 {
            let outcomes = other.deliver(&mail, soon()).await;
            assert!(
                matches!(outcomes[..], [Outcome::Delivered(_)]),
                "{outcomes:?}"
            );
        }
        assert_eq!(server.logins(), 2, "one connection, used again");
        assert_eq!(other.status()[0].state, PaceState::Free);
    }
}

/// Logins that are accepted keep no message waiting: many connections open, one login after the other.
#[tokio::test]
async fn accepted_logins_follow_each_other() {
    let folder = tempfile::tempdir().expect("folder");
    let server = LoginServer::start("535 5.7.8 no").await;
    let settings = with_login(&[&server], password(folder.path(), "right"), true);
    let delivery = Delivery::new(settings, None).expect("a next hop");
    let mail = mail(&["b@y"], CONTENT);
    let all = (0..30).map(|_| delivery.deliver(&mail, soon()));
    for outcomes in futures_util::future::join_all(all).await {
        assert!(
            matches!(outcomes[..], [Outcome::Delivered(_)]),
            "{outcomes:?}"
        );
    }
    assert!(server.logins() <= 20 && server.logins() == server.sessions());
}

/// An accepted login ends the wait, whatever becomes of the message that went with it.
#[tokio::test]
async fn an_accepted_login_lets_all_mail_out() {
    let folder = tempfile::tempdir().expect("folder");
    for pace in [true, false] {
        let server = LoginServer::start("535 5.7.8 no").await;
        let settings = with_login(&[&server], password(folder.path(), "wrong"), pace);
        let delivery = Delivery::new(settings, None).expect("a next hop");
        all_are_kept(&delivery, 1, "535 5.7.8 no").await;
        server.seen.repaired.store(true, Ordering::Relaxed);
        assert!(delivery.turn("hop").is_err());
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(75)).await;
        tokio::time::resume();
        let turn = delivery.turn("hop").expect("a probe");
        let mail = mail(&["b@y"], CONTENT);
        let outcomes = delivery.deliver_in_turn(&mail, turn, soon()).await;
        let [Outcome::Deferred(answer)] = &outcomes[..] else {
            panic!("{outcomes:?}");
        };
        assert_eq!(
            (answer.text.as_str(), answer.held_back),
            ("RCPT: 451 4.7.1 later", false)
        );
        assert!(
            delivery.room("hop", 9).0 > 1,
            "{pace}: {:?}",
            delivery.status()
        );
        assert!(!delivery.status()[0].login_refused);
    }
}
