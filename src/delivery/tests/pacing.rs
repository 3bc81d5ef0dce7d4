//! The pace with real sockets: the tests count the attempts that the servers see.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server that replies `says` to MAIL and accepts everything else.
struct Counting {
    address: String,
    /// Number of MAIL commands.
    attempts: Arc<AtomicUsize>,
}

impl Counting {
    async fn start(says: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address").to_string();
        let attempts = Arc::new(AtomicUsize::new(0));
        let count = attempts.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, says, count.clone()));
            }
        });
        Self { address, attempts }
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }
}

async fn serve(stream: TcpStream, says: &'static str, attempts: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut content, mut reply) = (String::new(), false, "220 hi");
    loop {
        let written = stream.write_all(format!("{reply}\r\n").as_bytes()).await;
        if written.is_err() {
            return;
        }
        loop {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            if !content || line == ".\r\n" {
                break;
            }
        }
        content = line.starts_with("DATA");
        reply = match line.get(..4) {
            Some("MAIL") => {
                attempts.fetch_add(1, Ordering::Relaxed);
                says
            }
            Some("DATA") => "354 go",
            _ => "250 ok",
        };
    }
}

fn smtp(name: &str, domain: &str, address: &str) -> Settings {
    named(name, domain, Kind::Smtp(hop(&[address.to_owned()])))
}

/// I12: while one next hop throttles, its mail is not sent and comes back at once, and another next hop gets all of its own mail
/// at the first attempt.
#[tokio::test]
async fn a_throttling_next_hop_costs_one_attempt_and_the_other_nothing() {
    let slow = Counting::start("451 4.7.1 slow down").await;
    let well = Counting::start("250 ok").await;
    let hops = vec![
        smtp("slow", "slow.example", &slow.address),
        smtp("well", "well.example", &well.address),
    ];
    let delivery = Delivery::new(hops, None).expect("next hops");
    let both = mail(&["a@slow.example", "b@well.example"], b"x\r\n");
    let mut held_back = 0;
    for _ in 0..100 {
        let outcomes = delivery.deliver(&both, soon()).await;
        let [Outcome::Deferred(first), Outcome::Delivered(_)] = &outcomes[..] else {
            panic!("{outcomes:?}");
        };
        held_back += usize::from(first.held_back);
        assert!(first.text.contains("4.7.1 slow down"), "{}", first.text);
    }
    assert_eq!((slow.attempts(), held_back), (1, 99));
    assert_eq!(well.attempts(), 100);
    let [incident] = &delivery.incidents()[..] else {
        panic!("one incident");
    };
    assert_eq!(incident.kind.as_str(), "next-hop-paced");
    let [slow, well] = &delivery.status()[..] else {
        panic!("two next hops");
    };
    assert_eq!(
        (slow.state, well.state),
        (PaceState::Paced, PaceState::Free)
    );
    assert_eq!(well.said, None);
    assert!(slow.to_string().contains("slow down"), "{slow}");
}

/// A server that takes a message for one recipient does not throttle the relay, even if its reply for another recipient says so:
/// its other mail is not slowed down.
#[tokio::test]
async fn one_throttled_recipient_does_not_throttle_the_next_hop() {
    let both = "C: MAIL FROM:<a@x>
        C: RCPT TO:<b@y>
        C: RCPT TO:<c@y>
        C: DATA
        S: 250 m
        S: 250 r
        S: 451 4.7.1 slow down, rate limit
        S: 354 go
        C: X: y
        C: x
        C: .
        S: 250 taken";
    let server = Server::start(&[&script(&[HELLO, both])]).await;
    let delivery = Delivery::new(vec![smtp("hop", "*", &server.address())], None);
    let delivery = delivery.expect("a next hop");
    let outcomes = delivery
        .deliver(&mail(&["b@y", "c@y"], b"x\r\n"), soon())
        .await;
    let [Outcome::Delivered(_), Outcome::Deferred(throttled)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert!(
        !throttled.held_back,
        "the retry schedule of the message applies"
    );
    assert_eq!(delivery.status()[0].state, PaceState::Free);
}

/// Only a handful of messages try a next hop that cannot be reached. The other messages do not wait for a connection, and none of
/// the deliveries counts as an attempt.
#[tokio::test]
async fn a_dead_next_hop_costs_a_handful_of_attempts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let unused = listener.local_addr().expect("address").to_string();
    drop(listener);
    let delivery = Delivery::new(vec![smtp("hop", "*", &unused)], None).expect("a next hop");
    let mail = mail(&["b@y"], b"x\r\n");
    let mut tried = 0;
    for _ in 0..100 {
        let outcomes = delivery.deliver(&mail, soon()).await;
        let [Outcome::Deferred(answer)] = &outcomes[..] else {
            panic!("{outcomes:?}");
        };
        assert!(answer.held_back, "{}", answer.text);
        tried += usize::from(!answer.text.contains("does not work"));
    }
    assert_eq!(tried, 5);
    assert_eq!(delivery.status()[0].state, PaceState::Dead);
    assert_eq!(delivery.room("hop", 9).0, 0);
    assert!(delivery.turn("hop").is_err());
    let [incident] = &delivery.incidents()[..] else {
        panic!("one incident");
    };
    assert_eq!(incident.kind.as_str(), "next-hop-dead");
    delivery.nudge();
    assert_eq!(delivery.room("hop", 9).0, 1, "a nudge allows a probe");
}

/// A reload with the same server settings keeps the pace. A server with other settings gets a new pace, and `pace = false` holds
/// no mail back.
#[tokio::test]
async fn the_pace_outlives_a_reload() {
    let slow = Counting::start("451 4.7.1 slow down").await;
    let settings = smtp("slow", "*", &slow.address);
    let before = Delivery::new(vec![settings.clone()], None).expect("a next hop");
    let mail = mail(&["b@y"], b"x\r\n");
    before.deliver(&mail, soon()).await;
    let patient = Settings {
        retry_first: Duration::from_secs(1),
        ..settings.clone()
    };
    let same = Delivery::new(vec![patient], Some(&before)).expect("a next hop");
    assert_eq!(same.status()[0].state, PaceState::Paced);
    let mut server = hop(std::slice::from_ref(&slow.address));
    server.pace = false;
    let other = Settings {
        kind: Kind::Smtp(server),
        ..settings
    };
    let other = Delivery::new(vec![other], Some(&same)).expect("a next hop");
    for _ in 0..9 {
        let outcomes = other.deliver(&mail, soon()).await;
        assert!(!outcomes[0].answer().held_back);
    }
    assert_eq!(other.status()[0].state, PaceState::Free);
    assert_eq!(slow.attempts(), 10);
}

/// Reaction of a server to a message that it dislikes, at the end of data.
#[derive(Clone, Copy)]
enum Dislike {
    Closes,
    Replies(&'static str),
}

/// Starts a server that takes every message except those whose content says `bad`.
async fn disliking(dislike: Dislike) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(dislikes(stream, dislike));
        }
    });
    address
}

async fn dislikes(stream: TcpStream, dislike: Dislike) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut reply) = (String::new(), "220 hi");
    loop {
        let end = format!("{reply}\r\n");
        stream.write_all(end.as_bytes()).await.ok()?;
        if reply.starts_with("421") {
            return None;
        }
        line.clear();
        stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
        reply = if line.starts_with("DATA") {
            "354 go"
        } else if reply == "354 go" {
            let mut bad = false;
            while line != ".\r\n" {
                bad |= line.starts_with("bad");
                line.clear();
                stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
            }
            match dislike {
                Dislike::Closes if bad => return None,
                Dislike::Replies(reply) if bad => reply,
                _ => "250 taken",
            }
        } else {
            "250 ok"
        };
    }
}

fn mail_of(sender: &str, content: &'static [u8]) -> Outbound {
    let mail = mail(&["b@y"], content);
    let mut envelope = Envelope::clone(&mail.envelope);
    envelope.reverse_path = Mailbox::parse(sender).expect("mailbox").into();
    Outbound {
        envelope: Arc::new(envelope),
        ..mail
    }
}

/// With any reaction of a next hop to the content of one sender's messages, all other mail still goes to it at once, and each
/// delivery of those messages counts as an attempt.
#[tokio::test]
async fn disliked_contents_of_one_sender_do_not_stop_other_mail() {
    for dislike in [
        Dislike::Closes,
        Dislike::Replies("421 4.7.0 this content is not taken"),
        Dislike::Replies("421 4.3.2 busy"),
        Dislike::Replies("451 4.7.1 try again later"),
    ] {
        let address = disliking(dislike).await;
        let delivery = Delivery::new(vec![smtp("hop", "*", &address)], None).expect("a next hop");
        for _ in 0..80 {
            let outcomes = delivery
                .deliver(&mail_of("evil@x", b"bad\r\n"), soon())
                .await;
            let [Outcome::Deferred(answer)] = &outcomes[..] else {
                panic!("{outcomes:?}");
            };
            assert!(!answer.held_back, "{}", answer.text);
        }
        assert_eq!(delivery.status()[0].state, PaceState::Free);
        let outcomes = delivery.deliver(&mail_of("good@x", b"x\r\n"), soon()).await;
        assert!(matches!(outcomes[..], [Outcome::Delivered(_)]));
        assert_eq!(delivery.incidents(), []);
    }
}

/// A next hop that breaks off during the content of all senders is dead. A next hop that replies 421 before the content is paced.
#[tokio::test]
async fn a_next_hop_that_breaks_off_for_all_senders_is_dead() {
    let address = disliking(Dislike::Closes).await;
    let delivery = Delivery::new(vec![smtp("hop", "*", &address)], None).expect("a next hop");
    for sender in ["a@x", "b@x", "c@x", "a@x", "b@x", "c@x"] {
        delivery.deliver(&mail_of(sender, b"bad\r\n"), soon()).await;
    }
    assert_eq!(delivery.status()[0].state, PaceState::Dead);
    delivery.nudge();
    for _ in 0..3 {
        let turn = delivery.turn("hop").expect("a probe");
        let mail = mail_of("a@x", b"bad\r\n");
        delivery.deliver_in_turn(&mail, turn, soon()).await;
        assert_eq!(
            delivery.room("hop", 9).0,
            1,
            "the next probe may follow at once"
        );
    }
    let turn = delivery.turn("hop").expect("a probe");
    let mail = mail_of("good@x", b"x\r\n");
    delivery.deliver_in_turn(&mail, turn, soon()).await;
    assert_eq!(delivery.status()[0].state, PaceState::Paced);

    let goodbye = Counting::start("421 4.7.0 not from you").await;
    let delivery = Delivery::new(vec![smtp("hop", "*", &goodbye.address)], None);
    let delivery = delivery.expect("a next hop");
    delivery.deliver(&mail_of("a@x", b"x\r\n"), soon()).await;
    assert_eq!(
        delivery.status()[0].state,
        PaceState::Paced,
        "before the content"
    );
}
