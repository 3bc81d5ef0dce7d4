//! Talking to a running relay over its control socket.
//!
//! The requests have no body and the answers are small, so this speaks just the HTTP that is needed: HTTP/1.0, one
//! request per connection, the answer ends where the connection ends.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::exit::CliError;
use crate::deadline::Deadline;

/// Octets of an answer at most.
const ANSWER_OCTETS_MAX: u64 = 4 << 20;
/// The whole exchange at most.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// An answer.
pub(super) struct Answer {
    /// The status code.
    pub(super) code: u16,
    /// The body.
    pub(super) body: Vec<u8>,
}

/// Asks the relay that listens on `socket`.
pub(super) async fn ask(socket: &Path, method: &str, path: &str) -> Result<Answer, CliError> {
    ask_for(Duration::ZERO, socket, method, path).await
}

/// The same where the answer itself may take so long.
pub(super) async fn ask_for(
    answer: Duration,
    socket: &Path,
    method: &str,
    path: &str,
) -> Result<Answer, CliError> {
    let trouble = |what: String| CliError::Relay(socket.to_owned(), what);
    let exchange = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .map_err(|error| CliError::NotRunning(socket.to_owned(), error))?;
        let failed = |error: io::Error| trouble(error.to_string());
        let request = format!("{method} {path} HTTP/1.0\r\nHost: spillway\r\n\r\n");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.map_err(failed)?;
        let mut answer = Vec::new();
        let read = stream
            .take(ANSWER_OCTETS_MAX)
            .read_to_end(&mut answer)
            .await;
        read.map_err(failed)?;
        parse(&answer).ok_or_else(|| trouble("its answer is not HTTP".to_owned()))
    };
    match Deadline::after(EXCHANGE_TIMEOUT + answer)
        .run(exchange)
        .await
    {
        Ok(answer) => answer,
        Err(passed) => Err(trouble(passed.to_string())),
    }
}

/// Tells a running relay that there is new work in its store; if none runs, or it is busy, it will find out by itself.
pub(super) async fn wake(socket: &Path) {
    if let Err(error) = ask(socket, "POST", "/control/wake").await {
        tracing::debug!(%error, "the relay was not told");
    }
}

/// Text as it may stand in the query of a path (RFC 3986 2.1).
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                out.push(char::from(octet));
            }
            _ => out.push_str(&format!("%{octet:02X}")),
        }
    }
    out
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = head.lines().next()?.split(' ');
    words
        .next()
        .filter(|version| version.starts_with("HTTP/"))?;
    Some(Answer {
        code: words.next()?.parse().ok()?,
        body: answer[end + 4..].to_vec(),
    })
}
