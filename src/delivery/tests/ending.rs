//! The end of data: when a server counts as having received the message, and the timeout of its reply. The tests use a socket in
//! memory and paused time.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

use super::super::connection::{Connection, ConnectionError, Unfinished};
use super::super::endpoint::Endpoint;
use super::*;
use crate::smtp::dialog::{Facts, Fate};

/// Octets that fit into the socket: enough for a command or a reply.
const SOCKET_OCTETS: usize = 64;
/// Size in octets of content that needs several writes, of which only the last contains the end of data.
const LARGE_CONTENT_OCTETS: usize = 200_000;
/// Longer than every timeout in these tests.
const HOUR: Duration = Duration::from_secs(3600);

/// Runs one transaction on a connection whose other end is `peer`.
async fn transacted<F: Future<Output = ()>>(
    content: Vec<u8>,
    peer: impl FnOnce(BufReader<DuplexStream>) -> F,
) -> Result<Vec<(usize, Fate)>, Unfinished> {
    let (ours, theirs) = tokio::io::duplex(SOCKET_OCTETS);
    let endpoint = Endpoint::Unix("memory".into());
    let gauge = metrics::gauge!("connections");
    let mut connection = Connection::over(Box::new(ours), &endpoint, &hop(&[]), gauge);
    let mail = Outbound {
        content: Content::uncharged(content),
        ..mail(&["b@y"], b"")
    };
    let facts = Facts::of(&mail.prefix, mail.content.bytes(), false).expect("plain content");
    let transaction = connection.transact(&mail, &[0], facts, Deadline::after(HOUR));
    futures_util::future::join(transaction, peer(BufReader::new(theirs)))
        .await
        .0
}

/// Replies to the commands, without PIPELINING, up to the reply to DATA.
async fn commands(stream: &mut BufReader<DuplexStream>) {
    for reply in ["250 m\r\n", "250 r\r\n", "354 go\r\n"] {
        let mut command = String::new();
        stream.read_line(&mut command).await.expect("a command");
        stream.write_all(reply.as_bytes()).await.expect("a reply");
    }
}

/// Reads the content up to the end of data.
async fn content(stream: &mut BufReader<DuplexStream>) {
    let mut line = String::new();
    while line != ".\r\n" {
        line.clear();
        stream.read_line(&mut line).await.expect("content");
    }
}

/// If a write that contains the end of data fails, the server may still have received the end of data. No other server may be
/// offered the message, or it could be delivered twice. If an earlier write fails, the server does not have the message.
#[tokio::test(start_paused = true)]
async fn a_failure_while_the_end_is_written_counts_as_sent() {
    let gone = async |mut stream: BufReader<DuplexStream>| commands(&mut stream).await;
    let stuck = async |mut stream: BufReader<DuplexStream>| {
        commands(&mut stream).await;
        Deadline::after(HOUR).wait().await;
    };
    for (octets, sent) in [(2 * SOCKET_OCTETS, true), (LARGE_CONTENT_OCTETS, false)] {
        let unfinished = transacted(vec![b'x'; octets], gone).await;
        let unfinished = unfinished.expect_err("the peer is gone");
        assert!(
            matches!(unfinished.error, ConnectionError::Broken(_)),
            "{:?}",
            unfinished.error
        );
        assert_eq!(unfinished.content_sent, sent, "{octets} octets");
        let unfinished = transacted(vec![b'x'; octets], stuck).await;
        let unfinished = unfinished.expect_err("the peer does not read");
        assert!(
            matches!(unfinished.error, ConnectionError::Timeout(_)),
            "{:?}",
            unfinished.error
        );
        assert_eq!(unfinished.content_sent, sent, "{octets} octets");
    }
}

/// RFC 5321 4.5.3.2.6: the reply to the end of data has a longer timeout of its own, because the server may have much to do
/// before it, and an earlier timeout causes duplicates. Replies to commands have the shorter timeout.
#[tokio::test(start_paused = true)]
async fn the_reply_to_the_end_of_data_has_its_own_timeout() {
    let settings = hop(&[]);
    let between = (settings.command_timeout + settings.data_timeout) / 2;
    let slow = async |mut stream: BufReader<DuplexStream>| {
        commands(&mut stream).await;
        content(&mut stream).await;
        Deadline::after(between).wait().await;
        stream.write_all(b"250 taken\r\n").await.expect("a reply");
    };
    let fates = transacted(b"x\r\n".to_vec(), slow).await;
    let fates = fates.expect("the reply is within the timeout");
    assert!(matches!(fates[..], [(0, Fate::Settled(_))]), "{fates:?}");

    let silent_at_the_end = async |mut stream: BufReader<DuplexStream>| {
        commands(&mut stream).await;
        content(&mut stream).await;
        Deadline::after(HOUR).wait().await;
    };
    let silent_before = async |stream: BufReader<DuplexStream>| {
        Deadline::after(HOUR).wait().await;
        drop(stream);
    };
    let at_the_end = transacted(b"x\r\n".to_vec(), silent_at_the_end).await;
    let before = transacted(b"x\r\n".to_vec(), silent_before).await;
    for (result, limit, sent) in [
        (at_the_end, settings.data_timeout, true),
        (before, settings.command_timeout, false),
    ] {
        let unfinished = result.expect_err("the peer sends no reply");
        assert!(
            matches!(unfinished.error, ConnectionError::Timeout(waited) if waited == limit),
            "{:?}",
            unfinished.error
        );
        assert_eq!(unfinished.content_sent, sent);
    }
}
