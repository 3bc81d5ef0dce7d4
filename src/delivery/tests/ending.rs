//! The end of data: who counts as having been sent a message, and how long its answer is waited for. On a socket in memory, and
//! on paused time.

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

use super::super::connection::{Connection, ConnectionError, Unfinished};
use super::super::endpoint::Endpoint;
use super::*;
use crate::smtp::dialog::{Facts, Fate};

/// Octets that fit into the socket: a command or a reply.
const ROOM: usize = 64;
/// Octets of content that leaves in more than one write, of which the end is the last.
const LARGE: usize = 200_000;
/// Longer than anybody waits for anything here.
const HOUR: Duration = Duration::from_secs(3600);

/// One transaction on a connection whose other end does this.
async fn transacted<F: Future<Output = ()>>(
    content: Vec<u8>,
    peer: impl FnOnce(BufReader<DuplexStream>) -> F,
) -> Result<Vec<(usize, Fate)>, Unfinished> {
    let (ours, theirs) = tokio::io::duplex(ROOM);
    let endpoint = Endpoint::Unix("memory".into());
    let gauge = metrics::gauge!("connections");
    let mut connection = Connection::over(Box::new(ours), &endpoint, &hop(&[]), gauge);
    let mail = Outbound {
        content: Content::uncharged(content),
        ..mail(&["b@y"], b"")
    };
    let facts = Facts::of(&mail.prefix, mail.content.bytes()).expect("plain content");
    let transaction = connection.transact(&mail, &[0], facts, Deadline::after(HOUR));
    futures_util::future::join(transaction, peer(BufReader::new(theirs)))
        .await
        .0
}

/// Answers the commands, without PIPELINING, until content is due.
async fn commands(stream: &mut BufReader<DuplexStream>) {
    for reply in ["250 m\r\n", "250 r\r\n", "354 go\r\n"] {
        let mut command = String::new();
        stream.read_line(&mut command).await.expect("a command");
        stream.write_all(reply.as_bytes()).await.expect("a reply");
    }
}

/// Reads up to the dot.
async fn content(stream: &mut BufReader<DuplexStream>) {
    let mut line = String::new();
    while line != ".\r\n" {
        line.clear();
        stream.read_line(&mut line).await.expect("content");
    }
}

/// A write that fails with the end of data in it may have brought it over all the same: nobody else may be offered the
/// message, or it comes twice. One that fails before has not.
#[tokio::test(start_paused = true)]
async fn a_failure_while_the_end_is_written_counts_as_sent() {
    let gone = async |mut stream: BufReader<DuplexStream>| commands(&mut stream).await;
    let stuck = async |mut stream: BufReader<DuplexStream>| {
        commands(&mut stream).await;
        Deadline::after(HOUR).wait().await;
    };
    for (octets, sent) in [(2 * ROOM, true), (LARGE, false)] {
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

/// RFC 5321 4.5.3.2.6: the answer to the end of data has a time of its own, as the server may have much to do before it: to give
/// up earlier makes duplicates. Those to commands have the shorter one, and none of them is endless.
#[tokio::test(start_paused = true)]
async fn the_answer_to_the_end_of_data_has_its_own_time() {
    let settings = hop(&[]);
    let between = (settings.command_timeout + settings.data_timeout) / 2;
    let slow = async |mut stream: BufReader<DuplexStream>| {
        commands(&mut stream).await;
        content(&mut stream).await;
        Deadline::after(between).wait().await;
        stream.write_all(b"250 taken\r\n").await.expect("a reply");
    };
    let fates = transacted(b"x\r\n".to_vec(), slow).await;
    let fates = fates.expect("it was waited for");
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
        let unfinished = result.expect_err("nobody answers");
        assert!(
            matches!(unfinished.error, ConnectionError::Timeout(waited) if waited == limit),
            "{:?}",
            unfinished.error
        );
        assert_eq!(unfinished.content_sent, sent);
    }
}
