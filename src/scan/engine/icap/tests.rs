//! Tests of answers as services give them, and of dialogues with a scripted service. The integration tests use a real c-icap.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::message::header;
use crate::scan::engine::head::Malformed;
use crate::scan::tests::sample;
use crate::verdict::Reason;

/// Longer than any step of a test takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
const NOTHING_FOUND: Answer = Answer::Answered(Vec::new());

fn findings(fields: &str) -> Option<Answer> {
    let answer = format!("ICAP/1.0 200 OK\r\n{fields}\r\nISTag: \"x\"\r\n\r\n");
    head(answer.as_bytes()).expect(fields).findings()
}

/// Services such as c-icap and Symantec report their findings in these header fields.
#[test]
fn findings_are_in_the_fields_of_the_answer() {
    use FindingKind::{Malware, Policy};
    for (fields, kind, names) in [
        (
            "X-Infection-Found: Type=0; Resolution=2; Threat=Test.EICAR;",
            Malware,
            &["Test.EICAR"][..],
        ),
        (
            "X-Infection-Found: Type=1; Resolution=2; Threat=exe",
            Policy,
            &["exe"],
        ),
        ("X-Infection-Found: odd", Malware, &["odd"]),
        (
            "X-Virus-ID: EICAR Test String",
            Malware,
            &["EICAR Test String"],
        ),
        (
            "X-Infection-Found: Type=0; Resolution=2; Threat=A;\r\nX-Virus-ID: A\r\n\
             X-Violations-Found: 2\r\n\t-\r\n\tA\r\n\t0\r\n\t0\r\n\ta.zip\r\n\tB\r\n\t7\r\n\t2",
            Malware,
            &["A", "B"],
        ),
        // Each field counts, the gravest first. A virus and an exceeded limit together are a virus.
        (
            "X-Infection-Found: Type=2; Resolution=2; Threat=Deep;\r\nX-Infection-Found: Type=0; Resolution=2; Threat=A;",
            Malware,
            &["A", "Deep"],
        ),
        (
            "X-Infection-Found: Type=1; Resolution=2; Threat=exe;\r\nX-Virus-ID: exe\r\n\
             X-Violations-Found: 2\r\n\t-\r\n\texe\r\n\t0\r\n\t0\r\n\t-\r\n\tcom\r\n\t0\r\n\t0",
            Policy,
            &["exe", "com"],
        ),
        ("X-Virus-ID: A\r\nX-Virus-ID: B", Malware, &["A", "B"]),
        (
            "X-Virus-ID: A\r\nX-Infection-Found: Type=1; Resolution=2; Threat=exe;",
            Malware,
            &["A", "exe"],
        ),
        // The service found something, even if the count is wrong.
        (
            "X-Violations-Found: some\r\n\t-\r\n\tA\r\n\t0\r\n\t0",
            Malware,
            &["A"],
        ),
        ("X-Violations-Found: 2\r\n\ta.zip", Malware, &["violation"]),
        ("X-Violations-Found: yes", Malware, &["violation"]),
    ] {
        let Some(Answer::Answered(found)) = findings(fields) else {
            panic!("{fields}");
        };
        let seen: Vec<_> = found.iter().map(|f| &*f.name).collect();
        assert_eq!((found[0].kind, &seen[..]), (kind, names), "{fields}");
        assert_eq!(found.iter().map(|f| f.score).sum::<f64>(), 10.0, "{fields}");
    }
    for fields in [
        "X-Virus-ID:",
        "X-Violations-Found: 0",
        "X-Violations-Found: -",
        "X-Violations-Found:\r\n\t",
        "X: y",
    ] {
        assert_eq!(findings(fields), None, "{fields}");
    }
    // An exceeded limit, also if two fields report it; then a virus in another container as well.
    let limits = "X-Infection-Found: Type=2; Resolution=2; Threat=Zip of death;";
    let same = "X-Violations-Found: 1\r\n\ta.zip\r\n\tZip of death\r\n\t0\r\n\t2";
    for fields in [limits.to_owned(), format!("{limits}\r\n{same}")] {
        let Some(Answer::None {
            reason, findings, ..
        }) = findings(&fields)
        else {
            panic!("{fields}");
        };
        assert_eq!((reason, findings.len()), (Reason::LimitsReached, 1));
    }
    let Some(Answer::Answered(both)) = findings(&format!("{limits}\r\nX-Virus-ID: A")) else {
        panic!("a virus is a virus");
    };
    let kinds: Vec<_> = both.iter().map(|f| (f.kind, f.score)).collect();
    assert_eq!(kinds, [(Malware, 10.0), (FindingKind::Info, 0.0)]);
}

/// P4: an answer outside ICAP does not count. A size is a number and nothing else.
#[test]
fn only_the_protocol_counts() {
    for answer in [
        &b"HTTP/1.1 204 No Content\r\n\r\n"[..],
        b"ICAP/1.0\r\n\r\n",
        b"ICAP/1.0 2040 x\r\n\r\n",
        b"ICAP/1.0 +20 x\r\n\r\n",
        b"\0\xff\r\n\r\n",
    ] {
        assert!(head(answer).is_err(), "{answer:?}");
    }
    assert_eq!(head(b"ICAP/1.0 204 OK\r\n"), Err(Malformed::CutOff));
    for (line, size) in [
        ("0\r\n", Some(0)),
        ("1F; ieof\r\n", Some(31)),
        ("", None),
        ("-1\r\n", None),
        ("+1", None),
        ("fffffffffffffffff", None),
    ] {
        assert_eq!(chunk_size(line.as_bytes()).ok(), size, "{line:?}");
    }
    let told = options(b"ICAP/1.0 200 OK\r\nMethods: RESPMOD, reqmod\r\nPreview: 9999999\r\nMax-Connections: 7\r\nOptions-TTL: 60\r\nISTag: \"a\"\r\n\r\n");
    let told = told.expect("options");
    assert_eq!(told.methods, ["RESPMOD", "REQMOD"]);
    assert_eq!(
        (told.preview, told.max_connections),
        (Some(65_536), Some(7))
    );
    assert_eq!(
        (told.ttl, told.istag.as_deref()),
        (Some(Duration::from_secs(60)), Some("a"))
    );
    assert!(options(b"ICAP/1.0 200 OK\r\nPreview: many\r\n\r\n").is_err());
}

/// Reads up to and including `end`.
async fn until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end) {
        got.push(stream.read_u8().await.expect("more"));
    }
    String::from_utf8_lossy(&got).into_owned()
}

/// All octets that a service gets for `content`.
fn all_of(content: &str) -> String {
    let mut all = shown(content.as_bytes());
    let octets = all.copy_to_bytes(all.remaining());
    String::from_utf8_lossy(&octets).into_owned()
}

/// The preface is longer than the octets by which scanners detect a file type (clamd: 1024 octets). Scanners take it for
/// mail, and the first line of the message may continue its last field.
#[test]
fn no_sender_chooses_the_first_octets() {
    let before = all_of("");
    assert!(before.len() > 1088 && before.starts_with("Received: by "));
    assert!(!before.contains("\r\n\r\n") && before.ends_with("octets.\r\n"));
    let fields: Vec<_> = header::fields(before.as_bytes()).collect();
    assert!(fields.len() == 2 && fields[1].is("X-Spillway-Note"));
    assert_eq!(all_of("MAIL"), format!("{before}MAIL"));
}

async fn service(method: Method) -> (TcpListener, Arc<Icap>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let url = Url::parse(&format!("icap://{address}/av?x=y"), &ICAP).expect("a URL");
    let settings = IcapSettings {
        method,
        tls_ca: None,
        connect_timeout: TEST_TIMEOUT,
    };
    (
        listener,
        Arc::new(Icap::new(&url, &settings).expect("an engine")),
    )
}

/// The whole dialogue, octet by octet: OPTIONS once, a preview, and the rest when the service asks for it. The next message
/// uses the same connection. It is smaller than the preview, so its end comes with the preview.
#[tokio::test]
async fn the_dialogue_follows_rfc_3507() {
    let (listener, engine) = service(Method::Respmod).await;
    let at = listener.local_addr().expect("address");
    let content = format!("Subject: a\r\n\r\n{}\r\n", "x".repeat(200));
    let all = all_of(&content);
    let (preview, rest) = all.split_at(1250);
    assert!(rest.len() < content.len());
    let first = sample(content.clone());
    let id = first.request().id;
    let scan = tokio::spawn(engine.clone().scan(first));
    let (mut stream, _) = listener.accept().await.expect("accept");
    let asked = until(&mut stream, b"\r\n\r\n").await;
    assert_eq!(
        asked,
        format!(
            "OPTIONS icap://{at}/av?x=y ICAP/1.0\r\nHost: {at}\r\nUser-Agent: Spillway\r\n\r\n"
        )
    );
    let options = "ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nPreview: 1250\r\nISTag: \"s-1\"\r\n\r\n";
    stream.write_all(options.as_bytes()).await.expect("write");
    let shown = until(&mut stream, b"\r\n0\r\n\r\n").await;
    let http = format!(
        "GET http://spillway.invalid/{id}.eml HTTP/1.1\r\nHost: spillway.invalid\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Type: message/rfc822\r\nContent-Length: {}\r\n\r\n",
        all.len()
    );
    let at_response = http.find("HTTP/1.1 200").expect("a response");
    assert_eq!(
        shown,
        format!(
            "RESPMOD icap://{at}/av?x=y ICAP/1.0\r\nHost: {at}\r\nUser-Agent: Spillway\r\nAllow: 204\r\n\
             Preview: 1250\r\nEncapsulated: req-hdr=0, res-hdr={at_response}, res-body={}\r\n\r\n{http}\
             4e2\r\n{preview}\r\n0\r\n\r\n",
            http.len()
        )
    );
    stream
        .write_all(b"ICAP/1.0 100 Continue\r\n\r\n")
        .await
        .expect("write");
    assert_eq!(
        until(&mut stream, b"0\r\n\r\n").await,
        format!("{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len())
    );
    let clean = b"ICAP/1.0 204 No Content\r\nISTag: \"s-1\"\r\n\r\n";
    stream.write_all(clean).await.expect("write");
    let answer = scan.await.expect("a task").expect("an answer");
    assert_eq!(answer.answer, NOTHING_FOUND);
    assert_eq!(answer.signatures.as_deref(), Some("s-1"));

    let scan = tokio::spawn(engine.scan(sample("short")));
    let shown = until(&mut stream, b"ieof\r\n\r\n").await;
    let all = all_of("short");
    let preview = format!("Preview: {}\r\n", all.len());
    assert!(
        shown.starts_with("RESPMOD ") && shown.contains(&preview),
        "{shown}"
    );
    let end = format!("\r\n\r\n{:x}\r\n{all}\r\n0; ieof\r\n\r\n", all.len());
    assert!(shown.ends_with(&end), "{shown}");
    stream.write_all(clean).await.expect("write");
    assert_eq!(
        scan.await.expect("a task").expect("an answer").answer,
        NOTHING_FOUND
    );
}

/// Serves connections one after the other: OPTIONS without preview, then `answer` after a whole message. Returns the number
/// of connections, and the number of requests for OPTIONS.
fn serve(
    listener: TcpListener,
    answer: Bytes,
    istags: &'static [&'static str],
) -> Arc<[AtomicUsize; 2]> {
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = counts.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted[0].fetch_add(1, Ordering::SeqCst);
            let mut got = Vec::new();
            while stream.read_buf(&mut got).await.unwrap_or(0) > 0 {
                if got.starts_with(b"OPTIONS") && got.ends_with(b"\r\n\r\n") {
                    let at = counted[1].fetch_add(1, Ordering::SeqCst);
                    let tag = istags[at.min(istags.len() - 1)];
                    let options = format!(
                        "ICAP/1.0 200 OK\r\nMethods: RESPMOD, REQMOD\r\nISTag: \"{tag}\"\r\nMax-Connections: 1\r\n\r\n"
                    );
                    let _ = stream.write_all(options.as_bytes()).await;
                    got.clear();
                } else if got.ends_with(b"\r\n0\r\n\r\n") {
                    let _ = stream.write_all(&answer).await;
                    got.clear();
                }
            }
        }
    });
    counts
}

async fn ask(method: Method, answer: &str, content: &str) -> Result<Answer, ScanError> {
    let (listener, engine) = service(method).await;
    serve(listener, answer.to_owned().into(), &["1"]);
    let answer = engine.scan(sample(content.to_owned())).await?;
    Ok(answer.answer)
}

/// A service that changes the content has found something, even if it names no finding. A service that withholds the content
/// or a part of it has blocked the message.
#[tokio::test]
async fn a_change_of_the_content_is_a_finding() {
    let with =
        |parts: &str, rest: &str| format!("ICAP/1.0 200 OK\r\nEncapsulated: {parts}\r\n\r\n{rest}");
    let ok = "HTTP/1.1 200 OK\r\n\r\n";
    let request = "POST / HTTP/1.1\r\n\r\n";
    let forbidden = "HTTP/1.0 403 Forbidden\r\n\r\n4\r\nwhy?\r\n0\r\n\r\n";
    let all = all_of("MAIL");
    let (one, two) = all.split_at(all.len() - 2);
    let back = &*format!(
        "{:x};a=b\r\n{one}\r\n2\r\n{two}\r\n0\r\nTrailer: x\r\n\r\n",
        one.len()
    );
    let alone = "4\r\nMAIL\r\n0\r\n\r\n";
    let other = &*format!("{:x}\r\n{one}!L\r\n0\r\n\r\n", all.len());
    let cut = &*format!("{:x}\r\n{one}\r\n0\r\n\r\n", one.len());
    let notice = &*format!("{:x}\r\n{one}!\r\n0\r\n\r\n", one.len() + 1);
    let page = &*format!("7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2000));
    let more = &*format!("{:x}\r\n{all}!\r\n0\r\n\r\n", all.len() + 1);
    use Method::{Reqmod, Respmod};
    for (method, answer, found) in [
        (
            Respmod,
            with("res-hdr=0, res-body=19", &format!("{ok}{back}")),
            None,
        ),
        (Respmod, with("res-body=0", back), None),
        (Respmod, with("res-body=0", alone), Some("blocked")),
        (Respmod, with("res-body=0", page), Some("blocked")),
        (Respmod, with("res-body=0", cut), Some("blocked")),
        (Respmod, with("res-body=0", notice), Some("blocked")),
        (Respmod, with("res-body=0", more), Some("modified")),
        (
            Respmod,
            with("res-hdr=0, res-body=19", &format!("{ok}{other}")),
            Some("modified"),
        ),
        (
            Respmod,
            with("res-hdr=0, res-body=19", &format!("{ok}0\r\n\r\n")),
            Some("blocked"),
        ),
        (
            Respmod,
            with("res-hdr=0, null-body=19", ok),
            Some("blocked"),
        ),
        (
            Respmod,
            with("res-hdr=0, res-body=26", forbidden),
            Some("blocked"),
        ),
        (
            Reqmod,
            with("req-hdr=0, req-body=19", &format!("{request}{back}")),
            None,
        ),
        (
            Reqmod,
            with("req-hdr=0, req-body=19", &format!("{request}{other}")),
            Some("modified"),
        ),
        (
            Reqmod,
            with("res-hdr=0, res-body=19", &format!("{ok}{back}")),
            Some("blocked"),
        ),
    ] {
        let Ok(Answer::Answered(findings)) = ask(method, &answer, "MAIL").await else {
            panic!("{answer}");
        };
        let seen = findings.first().map(|f| &*f.name);
        assert_eq!(seen, found, "{method:?} {answer}");
        let held = findings.iter().any(|f| f.kind == FindingKind::Malware);
        assert_eq!(held, found == Some("blocked"), "{method:?} {answer}");
    }
}

/// Each status that is not an answer gives a missing answer.
#[tokio::test]
async fn statuses_are_classed() {
    for (status, reason) in [
        ("100 Continue", Reason::Garbage),
        ("206 Partial", Reason::Garbage),
        ("404 Service not found", Reason::EngineError),
        ("413 Too large", Reason::TooLarge),
        ("500 Oops", Reason::EngineError),
        ("503 Overloaded", Reason::EngineError),
    ] {
        let answer = format!("ICAP/1.0 {status}\r\n\r\n");
        let error = ask(Method::Respmod, &answer, "MAIL")
            .await
            .expect_err(status);
        assert_eq!(error.reason(), reason, "{status}: {error}");
    }
}

/// One connection serves many messages. The relay asks for OPTIONS once, and again when the ISTag changes.
#[tokio::test]
async fn options_are_asked_again_when_the_service_changes() {
    let (listener, engine) = service(Method::Respmod).await;
    let clean = "ICAP/1.0 204 OK\r\nISTag: \"new\"\r\n\r\n";
    let counts = serve(listener, clean.into(), &["old", "new"]);
    for _ in 0..5 {
        let answer = engine.clone().scan(sample("x")).await.expect("an answer");
        assert_eq!(answer.signatures.as_deref(), Some("new"));
    }
    assert_eq!(counts[0].load(Ordering::SeqCst), 1, "connections");
    assert_eq!(counts[1].load(Ordering::SeqCst), 2, "OPTIONS");
}

/// The relay opens no more connections than the service accepts.
#[tokio::test]
async fn the_limit_of_connections_is_kept() {
    let (listener, engine) = service(Method::Respmod).await;
    let counts = serve(listener, Bytes::new(), &["1"]);
    let known = || engine.known().is_some();
    let hangs = tokio::spawn(engine.clone().scan(sample("x")));
    while !known() {
        tokio::task::yield_now().await;
    }
    let second = Deadline::after(TEST_TIMEOUT).run(engine.clone().scan(sample("y")));
    let error = second.await.expect("at once").expect_err("full");
    assert_eq!(error.reason(), Reason::Busy, "{error}");
    // The limit also holds after the OPTIONS have expired.
    engine.forget();
    assert!(!known());
    let third = Deadline::after(TEST_TIMEOUT).run(engine.clone().scan(sample("z")));
    let error = third.await.expect("at once").expect_err("full");
    assert_eq!(error.reason(), Reason::Busy, "{error}");
    hangs.abort();
    let _ = hangs.await;
    assert!(engine.enter().is_ok(), "it is given back");
    assert_eq!(counts[0].load(Ordering::SeqCst), 1);
}

/// If a service returns the content while it receives it, neither side waits for the other.
#[tokio::test]
async fn returned_content_is_read_while_the_rest_is_sent() {
    let (listener, engine) = service(Method::Respmod).await;
    let content = "0123456789abcdef".repeat(2 << 20);
    let scan = tokio::spawn(engine.scan(sample(content)));
    let (mut stream, _) = listener.accept().await.expect("accept");
    until(&mut stream, b"\r\n\r\n").await;
    stream
        .write_all(b"ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\n\r\n")
        .await
        .expect("write");
    // The head of the request, and the encapsulated HTTP heads.
    for _ in 0..3 {
        until(&mut stream, b"\r\n\r\n").await;
    }
    stream
        .write_all(b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n")
        .await
        .expect("write");
    let (mut from, mut to) = stream.split();
    let mirror = tokio::io::copy(&mut from, &mut to);
    let (copied, answer) = tokio::join!(Deadline::after(TEST_TIMEOUT).run(mirror), scan);
    drop(copied);
    assert_eq!(
        answer.expect("a task").expect("an answer").answer,
        NOTHING_FOUND
    );
}

/// A finding counts even if the service has not seen the whole message. An early answer without a finding says nothing about
/// the rest. The connection still carries the rest of the message, so it is not used again.
#[tokio::test]
async fn an_early_answer_ends_the_connection() {
    let (listener, engine) = service(Method::Respmod).await;
    for (said, found) in [
        ("ICAP/1.0 204 OK\r\n\r\n", None),
        ("ICAP/1.0 200 OK\r\nX-Virus-ID: A\r\n\r\n", Some(1)),
    ] {
        let large = sample("0123456789abcdef".repeat(2 << 20));
        let scan = tokio::spawn(engine.clone().scan(large));
        let accepted = Deadline::after(TEST_TIMEOUT).run(listener.accept()).await;
        let (mut stream, _) = accepted.expect("a fresh connection").expect("accept");
        if engine.known().is_none() {
            until(&mut stream, b"\r\n\r\n").await;
            let options = b"ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\n\r\n";
            stream.write_all(options).await.expect("write");
        }
        for _ in 0..3 {
            until(&mut stream, b"\r\n\r\n").await;
        }
        stream.write_all(said.as_bytes()).await.expect("write");
        let answer = scan.await.expect("a task").expect("an answer").answer;
        match answer {
            Answer::Answered(findings) => assert_eq!(Some(findings.len()), found),
            Answer::None { reason, .. } => {
                assert_eq!((reason, None), (Reason::LimitsReached, found));
            }
        }
    }
}

/// A service that answers after the preview has not seen the rest, so the message is not clean. The connection can be used
/// again (RFC 3507 section 4.5).
#[tokio::test]
async fn a_message_passed_after_its_preview_is_not_clean() {
    let (listener, engine) = service(Method::Respmod).await;
    let scan = tokio::spawn(engine.clone().scan(sample("x")));
    let (mut stream, _) = listener.accept().await.expect("accept");
    until(&mut stream, b"\r\n\r\n").await;
    let options = "ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nPreview: 4\r\n\r\n";
    stream.write_all(options.as_bytes()).await.expect("write");
    let mut scan = Some(scan);
    for _ in 0..2 {
        let scan = scan.take();
        let scan = scan.unwrap_or_else(|| tokio::spawn(engine.clone().scan(sample("y"))));
        until(&mut stream, b"4\r\nRece\r\n0\r\n\r\n").await;
        let clean = b"ICAP/1.0 204 OK\r\n\r\n";
        stream.write_all(clean).await.expect("write");
        let answer = scan.await.expect("a task").expect("an answer").answer;
        let Answer::None { reason, .. } = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(reason, Reason::LimitsReached);
    }
}

/// A message of no octets also has an end, even if the service wants no preview. Otherwise the service would wait forever.
#[tokio::test]
async fn an_empty_message_has_an_end() {
    let clean = "ICAP/1.0 204 OK\r\n\r\n";
    let asked = Deadline::after(TEST_TIMEOUT).run(ask(Method::Respmod, clean, ""));
    let answer = asked.await.expect("an end").expect("an answer");
    assert_eq!(answer, NOTHING_FOUND);
}

/// Octets after the answer to OPTIONS are not an answer about the message, because the relay has not sent the message yet.
#[tokio::test]
async fn an_answer_before_the_message_is_discarded() {
    let (listener, engine) = service(Method::Respmod).await;
    let scan = tokio::spawn(engine.scan(sample("x")));
    let (mut stream, _) = listener.accept().await.expect("accept");
    until(&mut stream, b"\r\n\r\n").await;
    let both = "ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\n\r\nICAP/1.0 204 OK\r\n\r\n";
    stream.write_all(both.as_bytes()).await.expect("write");
    let accepted = Deadline::after(TEST_TIMEOUT).run(listener.accept()).await;
    let (mut fresh, _) = accepted.expect("a fresh connection").expect("accept");
    until(&mut fresh, b"0\r\n\r\n").await;
    let found = "ICAP/1.0 200 OK\r\nX-Virus-ID: A\r\n\r\n";
    fresh.write_all(found.as_bytes()).await.expect("write");
    let answer = scan.await.expect("a task").expect("an answer").answer;
    assert!(matches!(answer, Answer::Answered(found) if found.len() == 1));
}
