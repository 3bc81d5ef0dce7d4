//! One table: what can go wrong on a connection, for every kind of engine, and the reason that the report gives for it.

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
    /// Nobody listens.
    Refused,
    /// Accepts and closes.
    Hangup,
    /// Reads the request and says nothing.
    Silent,
    /// Says everything but the last octet.
    LastOctetMissing,
    /// Reads the request and closes.
    NoAnswer,
    /// Closes in the middle of its answer.
    HalfAnAnswer,
    /// Says something else.
    Garbage,
    /// Begins well and never ends.
    Endless,
    /// Answers about another message.
    WrongMessage,
    /// Reads nothing until the engine has given up.
    NoReader,
    /// Answers before it has the whole request, and closes.
    Early,
    /// Is no TLS server.
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

/// How much an endless answer has before the server stops, which it must not have to.
const ENDLESS: usize = 64 << 20;
/// What may be on its way in the sockets' buffers when the engine has stopped reading.
const IN_BUFFERS: usize = 16 << 20;
/// Longer than anything takes that happens at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that plays its fault until it is mended.
#[derive(Debug)]
struct Server {
    fault: Fault,
    mended: AtomicBool,
    connections: AtomicUsize,
    given_up: Notify,
}

impl Server {
    /// Serves one connection; afterwards, if it played its fault, tells how many octets it could send, once the other
    /// side has closed.
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
                        // Given up before it had come to its fault: as good a proof of the end.
                        return faulty.then_some(0);
                    }
                    // With its head, so that it is known what is asked.
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

/// Writes until the other side takes no more, as it has closed; how much that was. (That it has ended its own writing
/// would not prove that.)
async fn refused(mut stream: TcpStream) -> usize {
    let mut sent = 0;
    while sent < ENDLESS {
        match stream.write(&[b'x'; 65536]).await {
            Ok(more) => sent += more,
            Err(_) => break,
        }
    }
    sent
}

/// The engine as the guard's innermost layer calls it.
async fn ask(
    engine: &Arc<dyn Engine>,
    content: &[u8],
    limit: Duration,
) -> Result<EngineAnswer, ScanError> {
    let scan = engine.clone().scan(sample(content.to_vec()));
    let ended = Deadline::after(limit).run(scan).await;
    ended.unwrap_or(Err(ScanError::NoAnswer(limit)))
}

/// Serves the listener's connections; what each faulty one could send when it had ended.
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
        // More than sockets buffer.
        Fault::NoReader => (Duration::from_millis(200), vec![b'x'; 24 << 20]),
        Fault::Early => (PATIENCE, vec![b'x'; 24 << 20]),
        _ if reason == Reason::Timeout => (Duration::from_millis(200), subjects::MAIL.to_vec()),
        _ => (PATIENCE, subjects::MAIL.to_vec()),
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
    let sent = Deadline::after(PATIENCE).run(closed.recv()).await;
    let sent = sent.unwrap_or_else(|_| panic!("{what}: the connection is still open"));
    assert!(sent.expect("a server") < IN_BUFFERS, "{what}: {sent:?}");
    if fault != Fault::NoTls {
        mended(&server, &engine, &what).await;
    }
}

/// Nothing of a fault is left: the next message has a connection and an answer of its own.
async fn mended(server: &Server, engine: &Arc<dyn Engine>, what: &str) {
    server.mended.store(true, Ordering::SeqCst);
    let before = server.connections.load(Ordering::SeqCst);
    let next = ask(engine, subjects::MAIL, PATIENCE).await;
    let next = next.unwrap_or_else(|error| panic!("{what}, then: {error}"));
    assert!(
        matches!(next.answer, Answer::Answered(_)),
        "{what}: {next:?}"
    );
    assert!(server.connections.load(Ordering::SeqCst) > before, "{what}");
}

/// P4: whatever goes wrong on a connection is a missing answer with its right reason; the engine reads no more than it
/// can use, closes the connection, and the next message is not harmed by it.
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
