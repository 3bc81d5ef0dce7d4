//! Admission over real sockets: who is refused, with which words, and that the dialogue stays in step.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::relay::{PATIENCE, Relay, Site};

/// Room for some 120 small messages, or for 60 of one sender.
const SMALL: &str = "[limits]\nin_flight_bytes = \"4MiB\"\nmessage_size = \"1MiB\"\n";

/// A session from an address of its own, introduced.
struct Client {
    stream: BufReader<TcpStream>,
    sender: String,
}

impl Client {
    async fn open(relay: &Relay, number: u8) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        let own = SocketAddr::from((Ipv4Addr::new(127, 0, 1, number), 0));
        socket.bind(own).expect("an address of 127.0.0.0/8");
        let stream = socket.connect(relay.address()).await.expect("connect");
        let mut client = Self {
            stream: BufReader::new(stream),
            sender: format!("a@{number}.test"),
        };
        client.reply().await;
        assert!(client.ask("EHLO c").await.starts_with("250"));
        client
    }

    async fn say(&mut self, text: &str) {
        let all = self.stream.write_all(text.as_bytes());
        timeout(PATIENCE, all)
            .await
            .expect("it reads")
            .expect("sent");
    }

    async fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await;
            let octets = read.expect("it answers").expect("a line");
            assert!(octets > 0, "closed");
            if line.as_bytes().get(3) != Some(&b'-') {
                return line.trim_end().to_owned();
            }
        }
    }

    async fn ask(&mut self, command: &str) -> String {
        self.say(&format!("{command}\r\n")).await;
        self.reply().await
    }

    async fn mail(&mut self) -> String {
        let command = format!("MAIL FROM:<{}>", self.sender);
        self.ask(&command).await
    }

    /// A transaction up to its content, or the first refusal.
    async fn begin(&mut self) -> Result<(), String> {
        let replies = [
            self.mail().await,
            self.ask("RCPT TO:<b@b.test>").await,
            self.ask("DATA").await,
        ];
        match replies.into_iter().find(|r| r.starts_with(['4', '5'])) {
            None => Ok(()),
            Some(refusal) => Err(refusal),
        }
    }

    async fn end(&mut self) -> String {
        self.ask("Subject: x\r\n\r\nx\r\n.").await
    }
}

/// So many sessions of one client that begin a message and do not end it; those that got in, and the refusals.
async fn greedy(relay: &Relay, sessions: usize) -> (Vec<Client>, Vec<String>) {
    let (mut inside, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..sessions {
        let mut client = Client::open(relay, 1).await;
        match client.begin().await {
            Ok(()) => inside.push(client),
            Err(refusal) => refused.push(refusal),
        }
    }
    (inside, refused)
}

/// A client with two hundred sessions that are in no hurry takes what is its share and is refused for the rest; ten
/// modest clients are never refused meanwhile, and neither is what the greedy one has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greedy_client_is_refused_and_the_modest_ones_never() {
    let site = Site::new();
    let relay = site.start(SMALL).await;
    let (inside, refused) = greedy(&relay, 200).await;
    assert!((40..=64).contains(&inside.len()), "{}", inside.len());
    assert_eq!(inside.len() + refused.len(), 200);
    for refusal in &refused {
        assert!(refusal.starts_with("452 4.3.1 "), "{refusal}");
    }
    let mut modest = Vec::new();
    for round in 0..2 {
        for number in 10..20 {
            let mut client = Client::open(&relay, number).await;
            assert_eq!(client.begin().await, Ok(()), "{number} in round {round}");
            modest.push(client);
        }
    }
    for mut client in modest.into_iter().chain(inside) {
        let reply = client.end().await;
        assert!(reply.starts_with("250"), "{reply}");
        drop(client.ask("QUIT").await);
    }
    let mut again = Client::open(&relay, 1).await;
    assert_eq!(again.begin().await, Ok(()), "everything was given back");
    assert!(again.end().await.starts_with("250"));
    assert!(relay.running.drain().await);
}

/// A mail server that relays for everybody, and says from whom where it is believed.
const SERVER: &str = "[limits]\nin_flight_bytes = \"4MiB\"\nmessage_size = \"1MiB\"\n\
    [[listener]]\nname = \"smtp\"\naddress = [\"127.0.0.1:0\"]\nxforward_from = [\"127.0.1.1/32\"]\n";

/// Law 9: behind one mail server all mail has one client address. A sender who brings more than its share is refused
/// there, and the others of its domain are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greedy_sender_leaves_room_behind_one_mail_server() {
    let site = Site::new();
    let relay = site.start(SERVER).await;
    let (inside, refused) = greedy(&relay, 80).await;
    assert!((40..=64).contains(&inside.len()), "{}", inside.len());
    assert!(!refused.is_empty());
    for sender in ["b@1.test", "c@1.test"] {
        let mut neighbour = Client::open(&relay, 1).await;
        neighbour.sender = sender.to_owned();
        assert_eq!(neighbour.begin().await, Ok(()), "{sender}");
        assert!(neighbour.end().await.starts_with("250"), "{sender}");
    }
    drop(inside);
    assert!(relay.running.drain().await);
}

/// Law 9: what XFORWARD says of a client is believed where it is configured, for its share as for its envelope; the next
/// transaction is the server's own again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_xforward_names_has_a_share_of_its_own() {
    let site = Site::new();
    let relay = site.start(SERVER).await;
    let mut inside = Vec::new();
    let refusal = loop {
        let mut client = Client::open(&relay, 1).await;
        client.sender = format!("{}@1.test", inside.len());
        match client.begin().await {
            Ok(()) => inside.push(client),
            Err(refusal) => break refusal,
        }
    };
    assert!(refusal.starts_with("452 4.3.1 "), "{refusal}");
    let mut forwarded = Client::open(&relay, 1).await;
    let said = "XFORWARD NAME=mail.other.test ADDR=198.51.100.7";
    assert!(forwarded.ask(said).await.starts_with("250"));
    assert_eq!(forwarded.begin().await, Ok(()), "another client");
    assert!(forwarded.end().await.starts_with("250"));
    assert!(forwarded.begin().await.is_err(), "the server itself");
    let delivered = site.delivered();
    let content = std::fs::read_to_string(&delivered[0]).expect("it is delivered");
    assert!(
        content.contains("(mail.other.test [198.51.100.7])"),
        "{content}"
    );
    let mut other = Client::open(&relay, 2).await;
    let reply = other.ask(said).await;
    assert!(reply.starts_with('5'), "not believed: {reply}");
    drop(inside);
    assert!(relay.running.drain().await);
}

/// RFC 5321 4.1.1.4 and RFC 3030 3: refused at MAIL, at DATA or at a chunk, whose octets come all the same, the session
/// goes on, and the transaction is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_leaves_the_dialogue_in_step() {
    let site = Site::new();
    let relay = site.start(SMALL).await;
    let (mut at_data, mut at_chunk) =
        (Client::open(&relay, 1).await, Client::open(&relay, 1).await);
    for client in [&mut at_data, &mut at_chunk] {
        assert!(client.mail().await.starts_with("250"));
        let reply = client.ask("RCPT TO:<b@b.test>").await;
        assert!(reply.starts_with("250"));
    }
    let (inside, _) = greedy(&relay, 70).await;
    let reply = at_data.ask("DATA").await;
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    at_chunk.say("BDAT 10\r\nRSET\r\nRSET").await;
    let reply = at_chunk.reply().await;
    assert!(reply.starts_with("452 4.3.1"), "{reply}");
    assert!(at_chunk.ask("BDAT 0 LAST").await.starts_with("503"));
    for client in [&mut at_data, &mut at_chunk] {
        let reply = client.mail().await;
        assert!(reply.starts_with("452 4.3.1"), "{reply}");
        assert!(client.ask("NOOP").await.starts_with("250"));
        assert!(client.ask("RCPT TO:<b@b.test>").await.starts_with("503"));
    }
    drop(inside);
    assert!(relay.running.drain().await);
}

/// Recipients cost memory before any content has come: a few sessions that name a thousand each and then wait would
/// otherwise hold more than all messages may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recipients_are_charged_as_they_come() {
    let site = Site::new();
    let relay = site
        .start(
            "[limits]\nin_flight_bytes = \"1MiB\"\nmessage_size = \"64KiB\"\nrecipients = 5000\n",
        )
        .await;
    let mut client = Client::open(&relay, 1).await;
    assert!(client.mail().await.starts_with("250"));
    let long = format!(
        "{}@{}.test",
        "l".repeat(60),
        [&*"d".repeat(60); 3].join(".")
    );
    let mut accepted = 0;
    loop {
        let reply = client.ask(&format!("RCPT TO:<{long}>")).await;
        if reply.starts_with("452 4.3.1") {
            break;
        }
        assert!(reply.starts_with("250"), "{reply}");
        accepted += 1;
        assert!(accepted < 3000, "without bound");
    }
    assert!(client.ask("RSET").await.starts_with("250"));
    assert_eq!(client.begin().await, Ok(()), "everything was given back");
    assert!(client.end().await.starts_with("250"));
    assert!(relay.running.drain().await);
}
