//! Tests of encryption against a scripted worker.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::scan::engine::rspamd::crypt::tests::Worker;
use crate::scan::engine::rspamd::*;
use crate::scan::engine::{Class, HTTP};
use crate::scan::tests::sample;
use crate::verdict::Reason;

const CONTENT: &[u8] = b"Subject: between us\r\nMessage-ID: <1@a.test>\r\n\r\nnoon\r\n";
const CLEAN: &str = r#"{"score":0.5,"action":"no action","message-id":"1@a.test"}"#;

/// An HTTP answer with this status and body.
fn http(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// One request as it was on the wire.
struct Seen {
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn key(&self) -> &str {
        let field = self
            .head
            .lines()
            .find_map(|line| line.strip_prefix("key: "));
        field.expect("a field Key")
    }
}

/// Scans with an rspamd engine that has `key`, against a server that gives `answer`. Returns the result and the request.
async fn ask(
    key: PublicKey,
    answer: impl FnOnce(&Seen) -> Vec<u8> + Send + 'static,
) -> (Result<EngineAnswer, ScanError>, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut got = Vec::new();
        loop {
            stream.read_buf(&mut got).await.expect("a request");
            let Some(end) = memchr::memmem::find(&got, b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8(got[..end + 2].to_vec()).expect("text");
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            if got.len() - end - 4 == length {
                let body = got.split_off(end + 4);
                let seen = Seen { head, body };
                stream.write_all(&answer(&seen)).await.expect("an answer");
                return seen;
            }
        }
    });
    let url = Url::parse(&format!("http://{address}/checkv2"), &HTTP).expect("a URL");
    let settings = RspamdSettings {
        hostname: "relay.test".to_owned(),
        tls_ca: None,
        key: Some(key),
        connect_timeout: Duration::from_secs(60),
    };
    let rspamd = Arc::new(Rspamd::new(&url, &settings).expect("an engine"));
    let answer = rspamd.scan(sample(CONTENT)).await;
    (answer, server.await.expect("a request"))
}

/// Message and envelope are not readable on the wire, and the worker can read all of both. Its encrypted answer and status
/// count as if they had not been encrypted.
#[tokio::test]
async fn the_worker_alone_reads_and_answers() {
    for (status, body, expected) in [
        ("200 OK", CLEAN, None),
        ("413 Large", "", Some((Reason::TooLarge, Class::Permanent))),
        (
            "500 Oops",
            "why",
            Some((Reason::EngineError, Class::Transient)),
        ),
        (
            "429 Later\r\nRetry-After: 7",
            "",
            Some((Reason::Busy, Class::Transient)),
        ),
    ] {
        let worker = Worker::new();
        let (told, inside) = std::sync::mpsc::sync_channel(1);
        let (answer, seen) = ask(worker.key(), move |seen| {
            let exchange = worker.exchange(seen.key());
            let opened = exchange.open(&seen.body).expect("authentic");
            told.send(opened).expect("listened to");
            let sealed = exchange.seal(&http(status, body.as_bytes()), b"");
            http("200 OK", &sealed.expect("sealed"))
        })
        .await;
        let inside = String::from_utf8(inside.recv().expect("a request")).expect("text");
        let (head, content) = inside.split_once("\r\n\r\n").expect("a head");
        assert!(
            head.starts_with("POST /checkv2 HTTP/1.0\r\nContent-Length: "),
            "{head}"
        );
        assert!(head.contains("\r\nfrom: ") && head.contains("\r\nrcpt: "));
        assert_eq!(content.as_bytes(), CONTENT);
        assert!(
            seen.head.starts_with("POST /post HTTP/1.1\r\n"),
            "{}",
            seen.head
        );
        let wire = [seen.head.as_bytes(), &seen.body].concat();
        for word in ["checkv2", "from", "rcpt", "helo", "between us", "noon"] {
            assert_eq!(memchr::memmem::find(&wire, word.as_bytes()), None, "{word}");
        }
        match (answer, expected) {
            (Ok(answer), None) => {
                assert!(matches!(answer.answer, crate::verdict::Answer::Answered(_)))
            }
            (Err(why), Some(expected)) => assert_eq!((why.reason(), why.class()), expected),
            (answer, _) => panic!("{status}: {answer:?}"),
        }
    }
}

/// P4: an answer counts only if the holder of the key encrypted it for this request. Every other answer is garbage, so an
/// attacker cannot choose the reason either. Such answers are one in the clear with any status, one of another worker, one
/// that was changed on its way, and the relay's own request.
#[tokio::test]
async fn an_answer_that_the_worker_did_not_encrypt_is_garbage() {
    let changed = |seen: &Seen, worker: Worker| {
        let exchange = worker.exchange(seen.key());
        let mut sealed = exchange
            .seal(&http("200 OK", CLEAN.as_bytes()), b"")
            .expect("sealed");
        *sealed.last_mut().expect("octets") ^= 1;
        http("200 OK", &sealed)
    };
    let another = |seen: &Seen, _: Worker| {
        let exchange = Worker::new().exchange(seen.key());
        let sealed = exchange.seal(&http("200 OK", CLEAN.as_bytes()), b"");
        http("200 OK", &sealed.expect("sealed"))
    };
    let no_http = |seen: &Seen, worker: Worker| {
        let sealed = worker.exchange(seen.key()).seal(b"", CLEAN.as_bytes());
        http("200 OK", &sealed.expect("sealed"))
    };
    type Forger = fn(&Seen, Worker) -> Vec<u8>;
    let forgers: [(&str, Forger); 8] = [
        ("in the clear", |_, _| http("200 OK", CLEAN.as_bytes())),
        ("too large", |_, _| http("413 Large", b"")),
        ("throttled", |_, _| http("429 Later", b"")),
        ("an error", |_, _| http("500 Oops", b"why")),
        ("changed", changed),
        ("another worker", another),
        ("an echo", |seen, _| http("200 OK", &seen.body)),
        ("no HTTP", no_http),
    ];
    for (name, forger) in forgers {
        let worker = Worker::new();
        let (answer, _) = ask(worker.key(), move |seen| forger(seen, worker)).await;
        let why = answer.expect_err(name);
        assert_eq!(why.reason(), Reason::Garbage, "{name}: {why}");
        if name == "an error" {
            let said = why.to_string();
            assert!(
                said.contains("is it this worker's public key?") && said.ends_with(": 500 why"),
                "{said}"
            );
        }
    }
}

/// An incomplete answer is an error, wherever it is cut.
#[test]
fn only_a_complete_http_answer_is_read() {
    let whole = http("200 OK", b"body");
    for end in 0..whole.len() - 4 {
        assert!(inner::answer(whole[..end].to_vec()).is_none(), "{end}");
    }
    let answer = inner::answer(whole).expect("an answer");
    assert_eq!(&answer.body()[..], b"body");
    for text in [
        "POST /checkv2 HTTP/1.0\r\n\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 OK 200\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "\r\n\r\n",
    ] {
        assert!(inner::answer(text.as_bytes().to_vec()).is_none(), "{text}");
    }
}
