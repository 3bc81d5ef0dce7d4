//! Tests against a scripted clamd on the loopback interface. The integration tests use a real clamd.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::scan::tests::sample;

const VERSION_ANSWER: &[u8] = b"ClamAV 1.4.3/27812/Fri Nov  7 09:46:55 2025\0";

/// What the scripted clamd does on a connection that asks for a scan.
#[derive(Clone, Copy)]
enum Script {
    /// Reads the whole content, and sends this answer.
    Say(&'static [u8]),
    /// Sends this answer as soon as the command has arrived, and closes, as clamd does if the content is too large.
    Refuse(&'static [u8]),
}

/// Starts a scripted clamd. The receiver yields the content of each scan.
async fn clamd(script: Script) -> (Address, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (tell, told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let content = play(stream, script).await;
            let _ = tell.try_send(content.unwrap_or_default());
        }
    });
    (Address::Socket(address), told)
}

async fn play(mut stream: TcpStream, script: Script) -> io::Result<Vec<u8>> {
    let mut command = Vec::new();
    while command.last() != Some(&0) {
        command.push(stream.read_u8().await?);
    }
    if command == b"zVERSION\0" {
        stream.write_all(VERSION_ANSWER).await?;
        return Ok(command);
    }
    assert_eq!(command, b"zINSTREAM\0");
    let answer = match script {
        Script::Say(answer) => answer,
        Script::Refuse(answer) => {
            stream.write_all(answer).await?;
            return Ok(command);
        }
    };
    let mut content = Vec::new();
    loop {
        let length = stream.read_u32().await? as usize;
        if length == 0 {
            break;
        }
        let mut chunk = vec![0; length];
        stream.read_exact(&mut chunk).await?;
        content.extend_from_slice(&chunk);
    }
    stream.write_all(answer).await?;
    Ok(content)
}

fn engine(address: &Address) -> Arc<Clamd> {
    Arc::new(Clamd::new(address, Duration::from_secs(10)).expect("an address"))
}

async fn ask(script: Script, content: &[u8]) -> Result<Answer, ScanError> {
    let (address, _) = clamd(script).await;
    let answer = engine(&address).scan(sample(content.to_vec())).await;
    answer.map(|answer| answer.answer)
}

/// The engine sends the preface and exactly the content, in chunks, and the answer names the signatures.
#[tokio::test]
async fn content_is_sent_unchanged() {
    let (address, mut told) = clamd(Script::Say(b"stream: OK\0")).await;
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let answer = engine(&address).scan(sample(content.clone())).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.answer, Answer::Answered(Vec::new()));
    let sent = told.recv().await.expect("what was sent");
    assert_eq!(sent.strip_prefix(PREFACE.as_bytes()), Some(&*content));
    let version = VERSION_ANSWER.strip_suffix(b"\0").expect("NUL");
    assert_eq!(
        answer.signatures.as_deref().map(str::as_bytes),
        Some(version)
    );
}

/// The name of a signature determines the kind of the finding. Some names mean that clamd did not scan everything.
#[tokio::test]
async fn names_of_signatures_determine_the_finding() {
    let kinds: [(&[u8], FindingKind); 5] = [
        (
            b"stream: Win.Test.EICAR_HDB-1 FOUND\0",
            FindingKind::Malware,
        ),
        (
            b"stream: Heuristics.Phishing.Email.SpoofedDomain FOUND\0",
            FindingKind::Phishing,
        ),
        (b"stream: Phishing.Bank-1 FOUND\0", FindingKind::Phishing),
        (b"stream: PUA.Win.Tool FOUND\0", FindingKind::Suspicious),
        (b"stream: Odd name FOUND (1) FOUND\0", FindingKind::Malware),
    ];
    for (said, kind) in kinds {
        let Ok(Answer::Answered(findings)) = ask(Script::Say(said), b"x").await else {
            panic!("no answer");
        };
        assert_eq!((findings.len(), findings[0].kind), (1, kind));
    }
    let unseen: [(&[u8], Reason); 2] = [
        (
            b"stream: Heuristics.Limits.Exceeded.MaxRecursion FOUND\0",
            Reason::LimitsReached,
        ),
        (
            b"stream: Heuristics.Encrypted.Zip FOUND\0",
            Reason::Encrypted,
        ),
    ];
    for (said, expected) in unseen {
        match ask(Script::Say(said), b"x").await {
            Ok(Answer::None {
                reason, findings, ..
            }) => {
                assert_eq!((reason, findings.len()), (expected, 1));
                assert_eq!(findings[0].kind, FindingKind::Info);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// P4: an answer outside the protocol is garbage, and never clean. An answer that is cut off is no answer.
#[tokio::test]
async fn answers_outside_the_protocol_are_garbage() {
    let cases: [(Script, Reason); 10] = [
        (Script::Say(b"stream: OKAY\0"), Reason::Garbage),
        (Script::Say(b"OK\0"), Reason::Garbage),
        (Script::Say(b"HTTP/1.1 200 OK\r\n\r\n"), Reason::Garbage),
        (
            Script::Say(b"stream: A FOUND\nstream: OK\0"),
            Reason::Garbage,
        ),
        (Script::Say(b"\xff\xfe\0"), Reason::Garbage),
        (Script::Say(&[b'x'; 100_000]), Reason::Garbage),
        (Script::Say(b""), Reason::Disconnected),
        (Script::Say(b"stream: OK"), Reason::Disconnected),
        (
            Script::Say(b"stream: Can't allocate memory ERROR\0"),
            Reason::EngineError,
        ),
        (Script::Refuse(b"COMMAND READ TIMED OUT\0"), Reason::Garbage),
    ];
    for (script, reason) in cases {
        let error = ask(script, b"x").await.expect_err("no answer");
        assert_eq!(error.reason(), reason, "{error}");
    }
}

/// clamd refuses content that is too large during the transfer. The engine reads this answer although the connection breaks.
#[tokio::test]
async fn a_refusal_during_the_transfer_is_read() {
    let script = Script::Refuse(b"INSTREAM size limit exceeded. ERROR\0");
    let error = ask(script, &vec![b'x'; 20 << 20])
        .await
        .expect_err("no answer");
    assert_eq!(error.reason(), Reason::TooLarge, "{error}");
    assert_eq!(error.class(), crate::scan::engine::Class::Permanent);
}

/// If nothing listens at the address, the error names the address, because the administrator has to correct it.
#[tokio::test]
async fn an_address_without_clamd_is_unreachable() {
    let missing = Address::Unix("/nowhere/clamd.ctl".into());
    let none = engine(&missing).scan(sample("x")).await;
    let error = none.expect_err("nothing listens");
    assert_eq!(error.reason(), Reason::Unreachable);
    assert!(error.to_string().contains("/nowhere/clamd.ctl"), "{error}");
}

/// The date of the signatures is read from the version.
#[test]
fn signatures_have_a_date() {
    let clamd = engine(&Address::Unix("/x".into()));
    let version = "ClamAV 1.4.3/27812/Fri Nov  7 09:46:55 2025";
    let made = clamd.signed(version).expect("a date");
    assert_eq!(made.to_string(), "2025-11-07T09:46:55Z");
    assert_eq!(clamd.signed("ClamAV 1.4.3"), None);
}

/// Dropping a scan closes its connection, so no connection with unread octets is used again.
#[tokio::test]
async fn a_dropped_scan_closes_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = Address::Socket(listener.local_addr().expect("address"));
    let scan = tokio::spawn(engine(&address).scan(sample("x")));
    let (mut stream, _) = listener.accept().await.expect("accept");
    let mut start = [0; 10];
    stream.read_exact(&mut start).await.expect("command");
    scan.abort();
    let mut rest = Vec::new();
    // Ends only when the other side is closed.
    stream.read_to_end(&mut rest).await.expect("end");
}
