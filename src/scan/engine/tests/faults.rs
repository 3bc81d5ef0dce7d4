//! The table of faults: the faults of a connection, for every kind of engine, and the reason that the report gives for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

use super::subjects::{self, Step, Subject};
use crate::deadline::Deadline;
use crate::scan::engine::{Answer, Engine, EngineAnswer, ScanError, build};
use crate::scan::tests::sample;
use crate::verdict::Reason;

/// What the scripted server does instead of its last answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// No server listens.
    Refused,
    /// Accepts and closes.
    Hangup,
    /// Reads the request and sends nothing.
    Silent,
    /// Sends the answer without its last octet.
    LastOctetMissing,
    /// Reads the request and closes.
    NoAnswer,
    /// Closes in the middle of its answer.
    HalfAnAnswer,
    /// Sends octets outside the protocol.
    Garbage,
    /// Sends the valid beginning of an answer that never ends.
    Endless,
    /// Answers about another message.
    WrongMessage,
    /// Reads nothing until the engine has given up.
    NoReader,
    /// Answers before it has the whole request, and closes.
    Early,
    /// Does not speak TLS.
    NoTls,
}

const FAULTS: [(Fault, Reason); 12] = [
    (Fault::Refused, Reason::Unreachable),
    (Fault::Hangup, Reason::Disconnected),
    (Fault::Silent, Reason::Timeout),
    (Fault::LastOctetMissing, Reason::Timeout),
    (Fault::NoAnswer, Reason::Disconnected),
    (Fault::HalfAnAnswer, Reason::Disconnected),
    (Fault::Garbage, Reason::Garbage),
    (Fault::Endless, Reason::Garbage),
    (Fault::WrongMessage, Reason::Garbage),
    (Fault::NoReader, Reason::Timeout),
    (Fault::Early, Reason::Disconnected),
    (Fault::NoTls, Reason::Unreachable),
];

/// Octets of an endless answer, after which the server stops. The engine must close the connection before.
const ENDLESS_ANSWER_OCTETS: usize = 64 << 20;
/// Octets that the buffers of the sockets may hold when the engine has stopped reading.
const SOCKET_BUFFER_OCTETS_MAX: usize = 16 << 20;
/// Longer than any step of a test takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that plays its fault until the test sets `mended`.
#[derive(Debug)]
struct Server {
    fault: Fault,
    mended: AtomicBool,
    connections: AtomicUsize,
    given_up: Notify,
}

impl Server {
    /// Serves one connection. If the server played its fault, returns the number of octets that it could send after that,
    /// when the engine has closed the connection.
    async fn serve(&self, subject: &Subject, mut stream: TcpStream) -> Option<usize> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let faulty = !self.mended.load(Ordering::SeqCst);
        match self.fault {
            Fault::Hangup if faulty => return Some(0),
            Fault::NoReader if faulty => return Some(self.gone(stream).await),
            Fault::NoTls if faulty => {
                let _ = stream.write_all(b"220 this is no TLS\r\n").await;
                return Some(self.gone(stream).await);
            }
            _ => {}
        }
        let mut request = Vec::new();
        loop {
            match (subject.step)(&request) {
                Step::More => {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        // The engine closed the connection before the fault, which proves the end of the connection too.
                        return faulty.then_some(0);
                    }
                    // The server has read the head, so it knows which answer fits.
                    if faulty && self.fault == Fault::Early && request.len() > 4096 {
                        request.extend_from_slice(subject.end.unwrap_or_default());
                    }
                }
                Step::Aside(answer) => {
                    request.clear();
                    stream.write_all(&answer).await.ok()?;
                    if subject.closes {
                        return None;
                    }
                }
                Step::Last(answer) if faulty => {
                    return Some(self.play(subject, stream, answer).await);
                }
                Step::Last(answer) => {
                    request.clear();
                    stream.write_all(&answer).await.ok()?;
                    if subject.closes {
                        return None;
                    }
                }
            }
        }
    }

    async fn play(&self, subject: &Subject, mut stream: TcpStream, answer: Vec<u8>) -> usize {
        match self.fault {
            Fault::Silent => {}
            Fault::LastOctetMissing => {
                let _ = stream.write_all(&answer[..answer.len() - 1]).await;
            }
            Fault::NoAnswer => return 0,
            Fault::Early => {
                let _ = stream.write_all(&answer).await;
                return 0;
            }
            Fault::HalfAnAnswer => {
                let _ = stream.write_all(&answer[..answer.len() / 2]).await;
                return 0;
            }
            Fault::Garbage => {
                let _ = stream.write_all(b"\0\xff what is this\r\n\r\n").await;
                return 0;
            }
            Fault::Endless => {
                let _ = stream.write_all(subject.endless).await;
                return refused(stream).await;
            }
            Fault::WrongMessage => {
                let _ = stream.write_all(subject.other.unwrap_or_default()).await;
            }
            Fault::Refused | Fault::Hangup | Fault::NoReader | Fault::NoTls => {
                unreachable!("played before")
            }
        }
        self.gone(stream).await
    }

    /// Waits until the engine has given up, and then for the end of the connection.
    async fn gone(&self, stream: TcpStream) -> usize {
        self.given_up.notified().await;
        refused(stream).await
    }
}

/// Writes until the engine has closed the connection, and returns the number of octets. An end of the engine's own writing
/// would not prove that the connection is closed.
async fn refused(mut stream: TcpStream) -> usize {
    let mut sent = 0;
    while sent < ENDLESS_ANSWER_OCTETS {
        match stream.write(&[b'x'; 65536]).await {
            Ok(more) => sent += more,
            Err(_) => break,
        }
    }
    sent
}

/// Calls the engine as the innermost layer of the guard does.
async fn ask(
    engine: &Arc<dyn Engine>,
    content: &[u8],
    limit: Duration,
) -> Result<EngineAnswer, ScanError> {
    let scan = engine.clone().scan(sample(content.to_vec()));
    let ended = Deadline::after(limit).run(scan).await;
    ended.unwrap_or(Err(ScanError::NoAnswer(limit)))
}

/// Serves the listener's connections. The channel gives the number of octets that each faulty connection could send.
fn listen(
    subject: &'static Subject,
    server: Arc<Server>,
    listener: TcpListener,
) -> mpsc::Receiver<usize> {
    let (tell, told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (server, tell) = (server.clone(), tell.clone());
            tokio::spawn(async move {
                if let Some(sent) = server.serve(subject, stream).await {
                    let _ = tell.send(sent).await;
                }
            });
        }
    });
    told
}

async fn play(subject: &'static Subject, fault: Fault, reason: Reason) {
    let what = format!("{} {fault:?}", subject.name);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let server = Arc::new(Server {
        fault,
        mended: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
        given_up: Notify::new(),
    });
    let kind = match fault {
        Fault::NoTls => (subject.tls.expect("TLS"))(address),
        _ => (subject.kind)(address),
    };
    let engine = build(&kind).expect("an engine").remove(0);
    let mut closed = match fault {
        Fault::Refused => {
            drop(listener);
            None
        }
        _ => Some(listen(subject, server.clone(), listener)),
    };
    let (limit, content) = match fault {
        // More than the buffers of the sockets hold.
        Fault::NoReader => (Duration::from_millis(200), vec![b'x'; 24 << 20]),
        Fault::Early => (TEST_TIMEOUT, vec![b'x'; 24 << 20]),
        _ if reason == Reason::Timeout => (Duration::from_millis(200), subjects::MAIL.to_vec()),
        _ => (TEST_TIMEOUT, subjects::MAIL.to_vec()),
    };
    let error = match ask(&engine, &content, limit).await {
        Err(error) => error,
        Ok(answer) => panic!("{what}: {answer:?}"),
    };
    server.given_up.notify_one();
    assert_eq!(error.reason(), reason, "{what}: {error}");
    assert!(error.to_string().len() < 500, "{what}: {error}");
    let Some(closed) = &mut closed else {
        return;
    };
    let sent = Deadline::after(TEST_TIMEOUT).run(closed.recv()).await;
    let sent = sent.unwrap_or_else(|_| panic!("{what}: the connection is still open"));
    assert!(
        sent.expect("a server") < SOCKET_BUFFER_OCTETS_MAX,
        "{what}: {sent:?}"
    );
    if fault != Fault::NoTls {
        mended(&server, &engine, &what).await;
    }
}

/// A fault has no effect on the next message, which has its own connection and answer.
async fn mended(server: &Server, engine: &Arc<dyn Engine>, what: &str) {
    server.mended.store(true, Ordering::SeqCst);
    let before = server.connections.load(Ordering::SeqCst);
    let next = ask(engine, subjects::MAIL, TEST_TIMEOUT).await;
    let next = next.unwrap_or_else(|error| panic!("{what}, then: {error}"));
    assert!(
        matches!(next.answer, Answer::Answered(_)),
        "{what}: {next:?}"
    );
    assert!(server.connections.load(Ordering::SeqCst) > before, "{what}");
}

/// P4: every fault of a connection gives a missing answer with its right reason. The engine reads no more than it can use,
/// closes the connection, and does no harm to the next message.
#[tokio::test]
async fn every_fault_has_its_reason_in_every_kind() {
    for subject in &subjects::ALL {
        for (fault, reason) in FAULTS {
            let applies = match fault {
                Fault::WrongMessage => subject.other.is_some(),
                Fault::Early => subject.end.is_some(),
                Fault::NoTls => subject.tls.is_some(),
                _ => true,
            };
            if applies {
                play(subject, fault, reason).await;
            }
        }
    }
}
