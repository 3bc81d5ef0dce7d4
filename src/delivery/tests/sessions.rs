//! Connections to next hops: reuse, replacement, failover and deadlines.

use super::*;

const TAKEN: &str = "delivered end of data: 250 2.0.0 taken";

/// One connection carries several messages without RSET between them. After its idle time the client sends QUIT.
#[tokio::test]
async fn a_connection_is_used_again_and_closed_when_idle() {
    let server = Server::start(&[&script(&[
        HELLO,
        ONE_MAIL,
        ONE_MAIL,
        "C: QUIT\nS: 221 bye\nEOF",
    ])])
    .await;
    let delivery = delivery(hop(&[server.address()]));
    for _ in 0..2 {
        assert_eq!(
            outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await,
            [TAKEN]
        );
    }
    // Only the timer of the pool is left, so paused time advances to it.
    tokio::time::pause();
    server.finished().await;
}

/// A connection that was closed while it was idle is replaced silently, whether the server just closed it, sent 421 first, or
/// closes it at the first command.
#[tokio::test]
async fn a_dead_idle_connection_is_replaced() {
    for end in [
        "",
        "S: 421 idle for too long",
        "C: MAIL FROM:<a@x>",
        "C: MAIL FROM:<a@x>\nS: 421 too late",
    ] {
        let server = Server::start(&[
            &script(&[HELLO, ONE_MAIL, end]),
            &script(&[HELLO, ONE_MAIL]),
        ])
        .await;
        let delivery = delivery(hop(&[server.address()]));
        for _ in 0..2 {
            assert_eq!(
                outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await,
                [TAKEN],
                "{end}"
            );
        }
        server.finished().await;
    }
}

/// A command on a connection that was closed while it was idle reaches no server. If no other connection succeeds, the message
/// was not offered, and the delivery does not count as an attempt.
#[tokio::test]
async fn a_dead_idle_connection_is_no_attempt() {
    let server = Server::start(&[&script(&[HELLO, ONE_MAIL, "C: MAIL FROM:<a@x>"])]).await;
    let delivery = delivery(hop(&[server.address()]));
    let mail = mail(&["b@y"], CONTENT);
    assert_eq!(outcomes(&delivery, &mail, soon()).await, [TAKEN]);
    let outcome = delivery.deliver(&mail, soon()).await.remove(0);
    let Outcome::Deferred(answer) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(answer.text.contains("no connection"), "{}", answer.text);
    assert!(answer.held_back, "{}", answer.text);
    server.finished().await;
}

/// A connection on which the server sent extra replies is not used again: its next reply could be mistaken for the reply to a
/// different command.
#[tokio::test]
async fn a_connection_out_of_step_is_not_used_again() {
    let (taken, last) = ONE_MAIL.rsplit_once("S: ").expect("a last reply");
    let stray = "S: 250 m\nS: 250 r\nS: 354 go\nHOLD";
    let first = script(&[HELLO, taken, &format!("S; {last}"), stray]);
    let server = Server::start(&[&first, &script(&[HELLO, ONE_MAIL])]).await;
    let delivery = delivery(hop(&[server.address()]));
    for _ in 0..2 {
        assert_eq!(
            outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await,
            [TAKEN]
        );
    }
    server.finished().await;
}

/// After a refused message the connection stays usable: the client sends RSET with the next message. (552 to RCPT may mean
/// "too many recipients", so it defers: RFC 5321 4.5.3.1.10.)
#[tokio::test]
async fn a_refusal_does_not_cost_the_connection() {
    let refused = "C: MAIL FROM:<a@x>
        C: RCPT TO:<b@y>
        C: DATA
        S: 250 m
        S: 552 5.5.3 later
        S: 554 5.5.1 no recipients";
    let server = Server::start(&[&script(&[HELLO, refused, "C: RSET\nS: 250 ok", ONE_MAIL])]).await;
    let delivery = delivery(hop(&[server.address()]));
    let mail = mail(&["b@y"], CONTENT);
    assert_eq!(
        outcomes(&delivery, &mail, soon()).await,
        ["deferred RCPT: 552 5.5.3 later"]
    );
    assert_eq!(outcomes(&delivery, &mail, soon()).await, [TAKEN]);
    server.finished().await;
}

/// Only a 552 to RCPT that may mean "too many recipients" defers. A full mailbox or a size limit is a permanent failure, and the
/// sender learns it at once. Stage and code show what the server objects to.
#[tokio::test]
async fn a_full_mailbox_is_not_too_many_recipients() {
    let replies = [
        ("552 5.2.2 full", "failed", Objection::Recipient),
        ("552 5.3.4 too large", "failed", Objection::Form),
        ("552 no", "deferred", Objection::Form),
        ("550 5.7.1 not you", "failed", Objection::Other),
    ];
    for (reply, word, objection) in replies {
        let refused = format!(
            "C: MAIL FROM:<a@x>
            C: RCPT TO:<b@y>
            C: DATA
            S: 250 m
            S: {reply}
            S: 554 5.5.1 no recipients"
        );
        let server = Server::start(&[&script(&[HELLO, &refused])]).await;
        let delivery = delivery(hop(&[server.address()]));
        let outcomes = delivery.deliver(&mail(&["b@y"], CONTENT), soon()).await;
        let [outcome] = &outcomes[..] else {
            panic!("{outcomes:?}");
        };
        let found = match outcome {
            Outcome::Failed(_) => "failed",
            Outcome::Deferred(_) => "deferred",
            Outcome::Delivered(_) => "delivered",
        };
        assert_eq!(
            (found, outcome.answer().objection()),
            (word, objection),
            "{reply}"
        );
    }
}

/// Addresses are tried in order until a server takes the message. Before it come an address without a server, refusing
/// greetings, and a server that closes before the end of data.
#[tokio::test]
async fn addresses_are_tried_in_order_before_the_end_of_data() {
    let refusing = Server::start(&["S: 554 go away"]).await;
    let busy = Server::start(&["S: 421 busy"]).await;
    let leaving = Server::start(&[&script(&[HELLO, "C: MAIL FROM:<a@x>"])]).await;
    let good = Server::start(&[&script(&[HELLO, ONE_MAIL, ONE_MAIL])]).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let unused = closed.local_addr().expect("address").to_string();
    drop(closed);
    let delivery = delivery(hop(&[
        unused,
        refusing.address(),
        busy.address(),
        leaving.address(),
        good.address(),
    ]));
    let mail = mail(&["b@y"], CONTENT);
    assert_eq!(outcomes(&delivery, &mail, soon()).await, [TAKEN]);
    assert_eq!(outcomes(&delivery, &mail, soon()).await, [TAKEN]);
    for server in [refusing, busy, leaving, good] {
        server.finished().await;
    }
}

/// A message that no address takes is deferred with the last reason. A refusing greeting is about the connection and not about
/// the message, so even 554 does not bounce the message.
#[tokio::test]
async fn a_message_that_no_address_takes_is_deferred() {
    let refusing = Server::start(&["S: 554 5.7.1 go away"]).await;
    let address = refusing.address();
    let delivery = delivery(hop(std::slice::from_ref(&address)));
    let outcome = delivery
        .deliver(&mail(&["b@y"], CONTENT), soon())
        .await
        .remove(0);
    let Outcome::Deferred(answer) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        answer.text,
        format!("{address}: greeting: 554 5.7.1 go away")
    );
    assert_eq!(answer.reply.map(|reply| reply.code), Some(554));
    assert_eq!(
        answer.server.map(|server| server.to_string()),
        Some(address)
    );
    refusing.finished().await;
}

/// After the end of data the message is not offered to another server, because the first server may have taken it.
#[tokio::test]
async fn no_second_try_after_the_end_of_data() {
    let content = "C: MAIL FROM:<a@x>
        C: RCPT TO:<b@y>
        C: DATA
        S: 250 m
        S: 250 r
        S: 354 go
        C: X: y
        C: x
        C: .";
    for (end, text) in [
        ("", "may have been taken"),
        ("S: what", "may have been taken"),
        ("S: 451 4.3.0 disk", "deferred end of data: 451 4.3.0 disk"),
    ] {
        let first = Server::start(&[&script(&[HELLO, content, end])]).await;
        let second = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let other = second.local_addr().expect("address").to_string();
        let delivery = delivery(hop(&[first.address(), other]));
        let got = outcomes(&delivery, &mail(&["b@y"], b"x\r\n"), soon()).await;
        assert!(
            got[0].starts_with("deferred") && got[0].contains(text),
            "{got:?}"
        );
        first.finished().await;
        let asked = futures_util::FutureExt::now_or_never(second.accept());
        assert!(asked.is_none(), "the second address was asked");
    }
    // The same holds on a connection that was idle before.
    let server = Server::start(&[&script(&[HELLO, ONE_MAIL, content])]).await;
    let delivery = delivery(hop(&[server.address()]));
    let got = outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await;
    assert_eq!(got, [TAKEN]);
    let got = outcomes(&delivery, &mail(&["b@y"], b"x\r\n"), soon()).await;
    assert!(got[0].contains("may have been taken"), "{got:?}");
    server.finished().await;
}

/// If the connection breaks after every recipient has its reply, nothing changes, and no other server is asked.
#[tokio::test]
async fn settled_recipients_are_not_asked_about_again() {
    let refused = "C: MAIL FROM:<a@x>
        C: RCPT TO:<b@y>
        C: DATA
        S: 250 m
        S: 550 5.1.1 who";
    let first = Server::start(&[&script(&[HELLO, refused])]).await;
    let second = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let other = second.local_addr().expect("address").to_string();
    let delivery = delivery(hop(&[first.address(), other]));
    let got = outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await;
    assert_eq!(got, ["failed RCPT: 550 5.1.1 who"]);
    first.finished().await;
    let asked = futures_util::FutureExt::now_or_never(second.accept());
    assert!(asked.is_none(), "the second address was asked");
}

/// An address that failed recently is tried after the others, so that not every message pays for the failure. If all others
/// fail, it is still tried.
#[tokio::test]
async fn a_failed_address_is_avoided() {
    let first = Server::start(&["S: 421 busy", &script(&[HELLO, ONE_MAIL])]).await;
    let leave = script(&[HELLO, ONE_MAIL, "EOF"]);
    let second = Server::start(&[&leave, &leave, "S: 421 busy"]).await;
    let delivery = delivery(SmtpSettings {
        idle: Duration::ZERO,
        ..hop(&[first.address(), second.address()])
    });
    let mut servers = Vec::new();
    for _ in 0..3 {
        let mail = mail(&["b@y"], CONTENT);
        let outcome = delivery.deliver(&mail, soon()).await.remove(0);
        assert!(matches!(outcome, Outcome::Delivered(_)), "{outcome:?}");
        servers.extend(outcome.answer().server.map(|server| server.to_string()));
    }
    let (a, b) = (first.address(), second.address());
    assert_eq!(servers, [b.clone(), b, a]);
    first.finished().await;
    second.finished().await;
}

/// At the deadline the message is deferred, settled recipients stay settled, and the connection with the unfinished dialog is
/// never used again.
#[tokio::test]
async fn the_deadline_ends_the_session_too() {
    let hung = "C: MAIL FROM:<a@x>
        C: RCPT TO:<b@y>
        C: RCPT TO:<c@y>
        C: DATA
        S: 250 m
        S: 550 no
        S: 250 r
        S: 354 go
        C: X: y
        C: x
        C: .
        TELL
        HOLD";
    let server = Server::start(&[&script(&[HELLO, hung]), &script(&[HELLO, ONE_MAIL])]).await;
    let delivery = delivery(hop(&[server.address()]));
    let hung = mail(&["b@y", "c@y"], b"x\r\n");
    let fly = async {
        server.reached().await;
        tokio::time::pause();
    };
    let deliver = outcomes(&delivery, &hung, soon());
    let (got, ()) = futures_util::future::join(deliver, fly).await;
    tokio::time::resume();
    assert_eq!(got[0], "failed RCPT: 550 no");
    assert!(
        got[1].starts_with("deferred") && got[1].contains("may have been taken"),
        "{got:?}"
    );
    assert_eq!(
        outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await,
        [TAKEN]
    );
    server.finished().await;
}

/// A delivery that its caller drops closes its connection, so the pool does not give this connection to the next message.
#[tokio::test]
async fn a_dropped_delivery_closes_its_connection() {
    let dropped = "C: MAIL FROM:<a@x>
        C: RCPT TO:<b@y>
        C: DATA
        TELL
        EOF";
    let server = Server::start(&[&script(&[HELLO, dropped]), &script(&[HELLO, ONE_MAIL])]).await;
    let delivery = delivery(SmtpSettings {
        connections: 1,
        ..hop(&[server.address()])
    });
    let mail = mail(&["b@y"], CONTENT);
    tokio::select! {
        outcomes = delivery.deliver(&mail, soon()) => panic!("{outcomes:?}"),
        () = server.reached() => {}
    }
    assert_eq!(outcomes(&delivery, &mail, soon()).await, [TAKEN]);
    server.finished().await;
}

/// The number of connections never exceeds the limit: the second message waits for the connection of the first and uses it.
#[tokio::test]
async fn connections_are_bounded() {
    let server = Server::start(&[&script(&[HELLO, ONE_MAIL, ONE_MAIL, ONE_MAIL])]).await;
    let delivery = delivery(SmtpSettings {
        connections: 1,
        ..hop(&[server.address()])
    });
    let mail = mail(&["b@y"], CONTENT);
    let all = (0..3).map(|_| outcomes(&delivery, &mail, soon()));
    let got = futures_util::future::join_all(all).await;
    assert_eq!(got, [[TAKEN]; 3]);
    server.finished().await;
}

/// A message waits for a connection until its deadline and no longer.
#[tokio::test]
async fn waiting_for_a_connection_ends_at_the_deadline() {
    let server = Server::start(&["TELL\nHOLD"]).await;
    let delivery = delivery(SmtpSettings {
        connections: 1,
        ..hop(&[server.address()])
    });
    let mail = mail(&["b@y"], CONTENT);
    let first = outcomes(&delivery, &mail, soon());
    let second = async {
        server.reached().await;
        tokio::time::pause();
        outcomes(&delivery, &mail, soon().within(Duration::from_secs(1))).await
    };
    let (first, second) = futures_util::future::join(first, second).await;
    assert!(
        first[0].starts_with("deferred")
            && first[0].ends_with("the deadline of the message passed"),
        "{first:?}"
    );
    assert!(second[0].contains("were in use"), "{second:?}");
    server.finished().await;
}

/// If the server does not speak SMTP, the message is deferred and the connection is closed.
#[tokio::test]
async fn garbage_defers() {
    let long = format!("S: 220 {}", "x".repeat(5000));
    for greeting in [
        "S: HTTP/1.1 400 Bad Request",
        "S; 220-a\nS: 554 b",
        long.as_str(),
    ] {
        let server = Server::start(&[&format!("{greeting}\nHOLD")]).await;
        let delivery = delivery(hop(&[server.address()]));
        let got = outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await;
        assert!(got[0].starts_with("deferred"), "{got:?}");
        server.finished().await;
    }
}

/// LMTP over a unix socket: the server sends one reply for each recipient after the end of data (RFC 2033 4.2). Replies that
/// arrived before the server closed the connection count.
#[tokio::test]
async fn lmtp_replies_for_each_recipient_count() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("lmtp");
    let server = Server::unix(
        &path,
        &["S: 220 hi
           C: LHLO me
           S: 250-hi
           S: 250 PIPELINING
           C: MAIL FROM:<a@x>
           C: RCPT TO:<b@y>
           C: RCPT TO:<c@y>
           C: RCPT TO:<d@y>
           C: RCPT TO:<e@y>
           C: DATA
           S: 250 m
           S: 250 r
           S: 550 5.1.1 who
           S: 250 r
           S: 250 r
           S: 354 go
           C: X: y
           C: x
           C: .
           S: 250 2.0.0 in
           S: 452 4.2.2 full"],
    );
    let delivery = delivery(SmtpSettings {
        lmtp: true,
        ..hop(&[server.address()])
    });
    let got = outcomes(
        &delivery,
        &mail(&["b@y", "c@y", "d@y", "e@y"], b"x\r\n"),
        soon(),
    )
    .await;
    assert_eq!(
        got[..3],
        [
            "delivered end of data: 250 2.0.0 in",
            "failed RCPT: 550 5.1.1 who",
            "deferred end of data: 452 4.2.2 full"
        ]
    );
    assert!(
        got[3].starts_with("deferred") && got[3].contains("may have been taken"),
        "{got:?}"
    );
    server.finished().await;
}

/// The delivery reports each recipient that has the message as soon as the server replies, while other replies are still missing.
#[tokio::test]
async fn lmtp_replies_are_reported_at_once() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("lmtp");
    let server = Server::unix(
        &path,
        &["S: 220 hi
           C: LHLO me
           S: 250-hi
           S: 250 PIPELINING
           C: MAIL FROM:<a@x>
           C: RCPT TO:<b@y>
           C: RCPT TO:<c@y>
           C: RCPT TO:<d@y>
           C: RCPT TO:<e@y>
           C: DATA
           S: 250 m
           S: 250 r
           S: 250 r
           S: 250 r
           S: 250 r
           S: 354 go
           C: X: y
           C: x
           C: .
           S: 250 2.0.0 in
           S: 452 4.2.2 full
           S: 250 2.0.0 too
           HOLD"],
    );
    let delivery = delivery(SmtpSettings {
        lmtp: true,
        ..hop(&[server.address()])
    });
    let (sender, mut receiver) = DeliveredSender::channel(4);
    let mail = Outbound {
        delivered: sender,
        ..mail(&["b@y", "c@y", "d@y", "e@y"], b"x\r\n")
    };
    let delivered = tokio::spawn(async move { delivery.deliver(&mail, soon()).await });
    for (at, text) in [
        (0, "end of data: 250 2.0.0 in"),
        (2, "end of data: 250 2.0.0 too"),
    ] {
        let text = text.to_owned();
        assert_eq!(receiver.recv().await, Some(DeliveredRecipient { at, text }));
    }
    assert!(!delivered.is_finished(), "the last reply is missing");
    delivered.abort();
}

/// Content that another system could read as two messages is not sent.
#[tokio::test]
async fn smuggled_content_is_refused() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = server.local_addr().expect("address").to_string();
    let delivery = delivery(hop(&[address]));
    let got = outcomes(
        &delivery,
        &mail(&["b@y"], b"a\n.\r\nMAIL FROM:<x@y>\r\n"),
        soon(),
    )
    .await;
    assert!(got[0].starts_with("failed 5.6.0"), "{got:?}");
}

/// A large message arrives unchanged, with all dots, although it needs many writes.
#[tokio::test]
async fn large_content_arrives_whole() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let delivery = delivery(hop(&[listener.local_addr().expect("address").to_string()]));
    let mut content = vec![b'x'; 300_000];
    for line in 0..20_000 {
        content.extend_from_slice(if line % 3 == 0 { b"\r\n." } else { b"\r\n.." });
        content.extend_from_slice(&vec![b'y'; line % 50]);
    }
    let expected = content.clone();
    let server = async {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = BufReader::new(stream);
        let replies = "220 hi\r\n250 hi\r\n250 m\r\n250 r\r\n354 go\r\n";
        stream
            .get_mut()
            .write_all(replies.as_bytes())
            .await
            .expect("replies");
        for _ in 0..4 {
            stream
                .read_line(&mut String::new())
                .await
                .expect("a command");
        }
        let mut received = Vec::new();
        let mut decoder = crate::smtp::content::Decoder::data(false);
        loop {
            let input = stream.fill_buf().await.expect("content");
            assert!(!input.is_empty(), "closed early");
            let (used, ended) = decoder.decode(input, |piece| received.extend_from_slice(piece));
            stream.consume(used);
            if ended {
                break;
            }
        }
        stream
            .get_mut()
            .write_all(b"250 done\r\n")
            .await
            .expect("a reply");
        received
    };
    let mail = Outbound {
        content: Content::uncharged(content),
        ..mail(&["b@y"], b"")
    };
    let (got, received) =
        futures_util::future::join(outcomes(&delivery, &mail, soon()), server).await;
    assert_eq!(got, ["delivered end of data: 250 done"]);
    assert!(received == [b"X: y\r\n", &expected[..], b"\r\n"].concat());
}
