//! Connections: reuse, replacement, failover, deadlines.

use super::*;

const TAKEN: &str = "delivered end of data: 250 2.0.0 taken";

/// One connection carries message after message, without RSET in between, and says QUIT when it was idle for long
/// enough.
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
    // Nothing is under way but the timer: time may fly.
    tokio::time::pause();
    server.finished().await;
}

/// A connection that died while it was idle is replaced without a word, whether the server closed it, said 421 first,
/// or dies at the first command.
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

/// What a connection was told that had died while it was idle was told to nobody: when no other comes about, the message was not
/// offered, and none of its attempts is used up.
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

/// A connection on which the server said more than it was asked is out of step, and its next reply would be taken for
/// the answer to something else: it is not used again.
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

/// A refused message leaves the connection usable: RSET goes out with the next one. (552 to RCPT may mean that there
/// were too many of them, so it defers: RFC 5321 4.5.3.1.10.)
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

/// Only a 552 to RCPT that may mean "too many recipients" passes: a mailbox that is full or takes no such size is told so
/// for good, and its sender now. What was objected to is known from the stage and the code.
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

/// Addresses are tried in order until one takes the message: no connection, a refusing greeting, a server that goes
/// away before it has everything.
#[tokio::test]
async fn failover_before_the_end_of_data() {
    let refusing = Server::start(&["S: 554 go away"]).await;
    let busy = Server::start(&["S: 421 busy"]).await;
    let leaving = Server::start(&[&script(&[HELLO, "C: MAIL FROM:<a@x>"])]).await;
    let good = Server::start(&[&script(&[HELLO, ONE_MAIL, ONE_MAIL])]).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let nobody = closed.local_addr().expect("address").to_string();
    drop(closed);
    let delivery = delivery(hop(&[
        nobody,
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

/// When no address takes it, it is deferred with the last reason: a refusing greeting is about the connection and not
/// about the message, so not even 554 bounces it.
#[tokio::test]
async fn nobody_there_defers() {
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

/// Once the end of data is out, the message is not offered to anybody else: the server may have taken it.
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
    // The same on a connection that was idle before.
    let server = Server::start(&[&script(&[HELLO, ONE_MAIL, content])]).await;
    let delivery = delivery(hop(&[server.address()]));
    let got = outcomes(&delivery, &mail(&["b@y"], CONTENT), soon()).await;
    assert_eq!(got, [TAKEN]);
    let got = outcomes(&delivery, &mail(&["b@y"], b"x\r\n"), soon()).await;
    assert!(got[0].contains("may have been taken"), "{got:?}");
    server.finished().await;
}

/// When every recipient has its answer, a connection that breaks changes nothing, and nobody else is asked.
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

/// An address that failed a moment ago is not asked first again: not every message pays for it. When all others fail
/// too, it is asked all the same.
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

/// At the deadline the message is deferred, what was settled stays settled, and the connection in the middle of its
/// dialog is never used again.
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
        server.told().await;
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

/// A delivery that its caller drops closes its connection; the next message does not find it in the pool.
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
        () = server.told() => {}
    }
    assert_eq!(outcomes(&delivery, &mail, soon()).await, [TAKEN]);
    server.finished().await;
}

/// There are never more connections than allowed: the second message waits for the first one's, and takes it over.
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

/// Who waits for a connection waits until its deadline and no longer.
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
        server.told().await;
        tokio::time::pause();
        outcomes(&delivery, &mail, soon().within(Duration::from_secs(1))).await
    };
    let (first, second) = futures_util::future::join(first, second).await;
    assert!(
        first[0].starts_with("deferred") && first[0].ends_with("time ran out"),
        "{first:?}"
    );
    assert!(second[0].contains("were in use"), "{second:?}");
    server.finished().await;
}

/// What is no SMTP is not talked to: deferred, and the connection is dropped.
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

/// LMTP over a unix socket: each recipient has a reply of its own after the dot (RFC 2033 4.2), and what was answered
/// before the server went away counts.
#[tokio::test]
async fn lmtp_answers_for_each_recipient() {
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

/// Who has the message is told as soon as the server says so, while it takes its time for the others.
#[tokio::test]
async fn lmtp_answers_are_told_when_they_come() {
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
    let (told, mut hear) = Told::of(4);
    let mail = Outbound {
        told,
        ..mail(&["b@y", "c@y", "d@y", "e@y"], b"x\r\n")
    };
    let delivered = tokio::spawn(async move { delivery.deliver(&mail, soon()).await });
    for (at, text) in [
        (0, "end of data: 250 2.0.0 in"),
        (2, "end of data: 250 2.0.0 too"),
    ] {
        let text = text.to_owned();
        assert_eq!(hear.recv().await, Some(Taken { at, text }));
    }
    assert!(!delivered.is_finished(), "the last one is waited for");
    delivered.abort();
}

/// Content that could be read as two messages by somebody else is not sent to anybody.
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

/// A large message arrives octet by octet, with every dot in its place, however it was cut into writes.
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
