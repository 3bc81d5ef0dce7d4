//! Requests to a running relay over its control socket.
//!
//! Requests have no body and answers are small, so a small part of HTTP is enough: HTTP/1.0, one request for each
//! connection, and the answer ends where the connection ends.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::exit::CliError;
use super::person;
use super::terminal::{Terminal, safe};
use crate::admin::Act;
use crate::deadline::Deadline;
use crate::store::LogTrouble;

/// Maximum size of an answer: 64 MiB, which is 16 times the largest configuration file (each key of its sections goes with the
/// full name), so that a wrong server cannot fill the memory.
const ANSWER_OCTETS_MAX: u64 = 64 << 20;
/// Time for one exchange, from the connection to the end of the answer: the relay answers within a few seconds, also while its
/// store hangs.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for an answer that needs nothing but the process of the relay: 750 ms, so that a command about a relay that hangs ends
/// within one second.
const PRESENT_ANSWER_TIMEOUT: Duration = Duration::from_millis(750);
/// Time for the relay to write what it has recorded: 2 s, so that a command still answers soon when the relay hangs.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer of the relay.
pub(super) struct Answer {
    /// The HTTP status code.
    pub(super) code: u16,
    /// The body.
    pub(super) body: Vec<u8>,
}

/// Sends a request to the relay that listens on `socket`, and returns the answer. A relay that hangs does not get the request:
/// it would carry it out when it goes on, long after the person has read that it failed.
pub(super) async fn ask(socket: &Path, method: &str, path: &str) -> Result<Answer, CliError> {
    ask_for(Duration::ZERO, socket, method, path).await
}

/// Does the same as [`ask`], for a request whose work may take the relay up to `answer`.
pub(super) async fn ask_for(
    answer: Duration,
    socket: &Path,
    method: &str,
    path: &str,
) -> Result<Answer, CliError> {
    ask_at_once(socket, "/live").await?;
    exchange(EXCHANGE_TIMEOUT + answer, socket, method, path).await
}

/// Asks for what the relay knows without its store. It answers at once, or it hangs.
pub(super) async fn ask_at_once(socket: &Path, path: &str) -> Result<Answer, CliError> {
    exchange(PRESENT_ANSWER_TIMEOUT, socket, "GET", path).await
}

/// Sends a request, and reads the answer within `timeout`.
async fn exchange(
    timeout: Duration,
    socket: &Path,
    method: &str,
    path: &str,
) -> Result<Answer, CliError> {
    let trouble = |what: String| CliError::Relay(socket.to_owned(), what);
    let mut pid = None;
    let talk = async {
        let mut stream = UnixStream::connect(socket)
            .await
            .map_err(|error| match error.kind() {
                // The queue of connections that the relay has not accepted is full.
                io::ErrorKind::WouldBlock => CliError::Silent(silence(socket, None)),
                _ => CliError::NotRunning(socket.to_owned(), error),
            })?;
        pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
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
        parse(&answer).ok_or_else(|| {
            trouble("the answer is not HTTP; is it the socket of another program?".to_owned())
        })
    };
    let answer = Deadline::after(timeout).run(talk).await;
    answer.unwrap_or_else(|_| Err(CliError::Silent(silence(socket, pid))))
}

/// The error for a relay that takes connections and does not answer: its process, and what the administrator can do.
fn silence(socket: &Path, pid: Option<i32>) -> String {
    let pid = pid.filter(|pid| *pid > 0);
    let who = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let fix = match pid.map(|pid| (pid, process_state(pid))) {
        Some((pid, Some('T' | 't'))) => {
            format!("its process is stopped: `kill -CONT {pid}` continues it")
        }
        Some((_, Some('D'))) => {
            "its process waits for a disk: look at the file system of store.path".to_owned()
        }
        _ => "look at its log, and restart it if this lasts: stored mail is kept".to_owned(),
    };
    format!(
        "the relay{who} does not answer on {}; {fix}",
        socket.display()
    )
}

/// The state of a process as in proc(5): `R`, `S`, `D`, `T` …
fn process_state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands before, in parentheses, and may contain any character.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// Tells a running relay about an act in its store, for its log, and that there may be new work. If no relay runs, the audit
/// of the store still has the act.
pub(super) async fn acted(
    socket: &Path,
    act: &'static str,
    done: &[impl std::fmt::Display],
    failed: usize,
) {
    let first = done.iter().take(Act::OBJECTS_NAMED_MAX);
    let named: Vec<String> = first.map(ToString::to_string).collect();
    let path = format!(
        "/control/act?who={}&act={act}&objects={}&done={}&failed={failed}",
        encoded(&person::actor()),
        encoded(&named.join(", ")),
        done.len()
    );
    let told = exchange(PRESENT_ANSWER_TIMEOUT, socket, "POST", &path);
    if let Err(error) = told.await {
        tracing::debug!(%error, "cannot notify the relay of new work in its store");
    }
}

/// Waits until a running relay has written its history and incidents up to now. Returns the logs that record nothing; `None` if
/// no relay runs.
pub(super) async fn flush(socket: &Path) -> Result<Option<Vec<LogTrouble>>, CliError> {
    let asked = Deadline::after(FLUSH_TIMEOUT).run(ask(socket, "POST", "/control/flush"));
    match asked.await {
        Ok(Ok(answer)) => super::relay::parsed(socket, &answer).map(Some),
        // A relay that has stopped has written everything.
        Ok(Err(CliError::NotRunning(..))) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(late) => Err(CliError::Relay(socket.to_owned(), late.to_string())),
    }
}

/// Notes for the person which logs record nothing, of those that [`flush`] has returned.
pub(super) fn note_troubles(
    flushed: &Result<Option<Vec<LogTrouble>>, CliError>,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    for trouble in flushed.iter().flatten().flatten() {
        terminal.note(format!(
            "spillway: the {} has recorded nothing since {}: {}. To do: {}",
            safe(&trouble.log),
            terminal.clock(trouble.since),
            safe(&trouble.text()),
            safe(&trouble.advice)
        ))?;
    }
    Ok(())
}

/// Percent-encodes text for the query of a path (RFC 3986 2.1).
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::time::Instant;

    use super::*;

    /// A relay that takes connections and never answers costs a command less than one second, and the error names its process.
    /// Here this process listens.
    #[tokio::test(start_paused = true)]
    async fn a_relay_that_hangs_is_given_up_within_a_second() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("control.sock");
        let _listener = UnixListener::bind(&socket).expect("binds");
        let began = Instant::now();
        let asked = ask(&socket, "GET", "/status").await;
        let error = asked.err().expect("no answer");
        let who = format!("the relay (pid {}) does not answer on ", std::process::id());
        assert!(error.to_string().starts_with(&who), "{error}");
        assert!(began.elapsed() < Duration::from_secs(1));
        let began = Instant::now();
        acted(&socket, "retry", &["01"], 0).await;
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "nothing depends on it"
        );
    }
}
