//! Hostile content: bounded, and the relay goes on.

use std::fmt::Write;

use spillway::store::{Filter, Lane};
use spillway::verdict::Verdict;

use crate::client::Client;
use crate::relay::{Site, eventually};

fn nested_multiparts(depth: usize) -> Vec<u8> {
    let mut out = String::from("Subject: nested\r\nMIME-Version: 1.0\r\n");
    for level in 0..depth {
        let _ = write!(
            out,
            "Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n"
        );
    }
    out += "Content-Type: text/plain\r\n\r\nx\r\n";
    out.into_bytes()
}

fn nested_messages(depth: usize) -> Vec<u8> {
    let mut out = b"Content-Type: message/rfc822\r\n\r\n".repeat(depth);
    out.extend(b"Subject: innermost\r\n\r\nx\r\n");
    out
}

fn many_parts(count: usize) -> Vec<u8> {
    let mut out =
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n".to_vec();
    out.extend(b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n".repeat(count));
    out.extend(b"--b--\r\n");
    out
}

fn many_fields(count: usize) -> Vec<u8> {
    let mut out = b"X-Field: value\r\n".repeat(count);
    out.extend(b"\r\nx\r\n");
    out
}

fn long_line(octets: usize) -> Vec<u8> {
    let mut out = b"Subject: long\r\n\r\n".to_vec();
    out.resize(octets, b'x');
    out.extend(b"\r\n");
    out
}

/// Each bomb gets a reply, and afterwards a valid message passes as before: nothing hangs, nothing grows without bound,
/// nothing ends the relay. What nobody could look through is held as undetermined and never passed on as clean; a long line
/// is looked through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mime_bombs_are_answered_and_the_relay_goes_on() {
    let site = Site::new();
    let relay = site.start("[limits]\nmessage_size = \"64MiB\"\n").await;
    let bombs = [
        ("10,000 nested multiparts", nested_multiparts(10_000), false),
        ("10,000 nested messages", nested_messages(10_000), false),
        ("100,000 parts", many_parts(100_000), false),
        ("100,000 header fields", many_fields(100_000), false),
        ("a line of 50 MB", long_line(50_000_000), true),
    ];
    let mut undetermined = 0;
    for (what, bomb, passes) in bombs {
        let mut client = Client::open(relay.address()).await.expect("connect");
        let reply = client
            .send("a@a.test", &["b@b.test"], &bomb)
            .await
            .expect("a reply");
        println!("{what}: {reply}");
        if reply.starts_with("250") {
            assert_eq!(reply.contains("delivered"), passes, "{what}: {reply}");
            undetermined += usize::from(!passes);
        } else {
            assert!(reply.starts_with("55"), "{what}: {reply}");
        }
        let valid = b"Subject: valid\r\n\r\nx\r\n";
        let reply = client
            .send("a@a.test", &["b@b.test"], valid)
            .await
            .expect("a reply");
        assert!(reply.contains("delivered"), "after {what}: {reply}");
    }
    let store = relay.running.pipeline().store();
    let held = eventually("they are held", async || {
        let filter = Filter {
            lanes: vec![Lane::Held],
            limit: 10,
            ..Filter::default()
        };
        let held = store.search(filter).await.expect("search");
        (held.len() == undetermined).then_some(held)
    })
    .await;
    for record in held {
        let decision = record.decision.expect("a decision");
        assert_eq!(decision.verdict, Verdict::Undetermined, "{decision:?}");
    }
    assert_eq!(site.delivered().len(), 5 + 1, "the valid ones and the line");
}
