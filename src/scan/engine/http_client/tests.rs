//! Tests against a scripted server on the loopback interface.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::facts::{RECIPIENT_OCTETS_MAX, value};
use super::*;
use crate::message::{Mailbox, MessageId, Recipient};
use crate::scan::tests::request;
use crate::verdict::Reason;

/// Longer than any step of a test takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a server that gives the same answer to each request, with the number of the connection for `#`. Returns a client
/// and the number of connections.
async fn server(answer: &'static str) -> (HttpClient, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::spawn(async move {
                let mut request = Vec::new();
                while stream.read_buf(&mut request).await.unwrap_or(0) > 0 {
                    if request.ends_with(b"\r\n\r\nbody") {
                        request.clear();
                        let answer = answer.replace('#', &number.to_string());
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                }
            });
        }
    });
    let url = Url::parse(&format!("http://{address}/"), &HTTP).expect("a URL");
    let client = HttpClient::new(&url, None, TEST_TIMEOUT).expect("a client");
    (client, connections)
}

async fn ask(client: &HttpClient) -> Result<String, ScanError> {
    let body = Bytes::from_static(b"body");
    let answer = client.post("/", HeaderMap::new(), body, Deadline::after(TEST_TIMEOUT));
    Ok(String::from_utf8_lossy(&answer.await?).into_owned())
}

/// The client uses a connection again after a complete answer, so there is no new handshake for each message.
#[tokio::test]
async fn a_connection_serves_many_messages() {
    let (client, connections) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n#!").await;
    for _ in 0..20 {
        assert_eq!(ask(&client).await.expect("an answer"), "1!");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// If a server sends more than one answer to a request, the surplus must not count as the answer to the next message.
#[tokio::test]
async fn a_surplus_answer_is_discarded() {
    let twice = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n#!HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong";
    let (client, connections) = server(twice).await;
    for number in 1..=5 {
        assert_eq!(ask(&client).await.expect("an answer"), format!("{number}!"));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5);
}

/// If the server closes a connection after its answer, the next message gets a new connection.
#[tokio::test]
async fn a_closed_connection_is_replaced() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n#!";
    let (client, _) = server(answer).await;
    for number in 1..=5 {
        assert_eq!(ask(&client).await.expect("an answer"), format!("{number}!"));
    }
}

/// Each status other than success gives a missing answer, whose class says whether another attempt at once can help.
#[tokio::test]
async fn statuses_are_classed() {
    use crate::scan::engine::Class;
    for (answer, reason, class) in [
        (
            "HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nwhy",
            Reason::EngineError,
            Class::Transient,
        ),
        (
            "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n",
            Reason::EngineError,
            Class::Transient,
        ),
        (
            "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
            Reason::EngineError,
            Class::Permanent,
        ),
        (
            "HTTP/1.1 302 There\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
            Reason::EngineError,
            Class::Permanent,
        ),
        (
            "HTTP/1.1 413 Big\r\nContent-Length: 0\r\n\r\n",
            Reason::TooLarge,
            Class::Permanent,
        ),
        (
            "HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n",
            Reason::Busy,
            Class::Transient,
        ),
    ] {
        let (client, _) = server(answer).await;
        let error = ask(&client).await.expect_err("no answer");
        assert_eq!((error.reason(), error.class()), (reason, class), "{error}");
    }
}

/// A service that asks for a pause gives its length in `Retry-After`. Without a length the pause is 10 s, and it is one hour
/// at most.
#[tokio::test]
async fn retry_after_gives_the_pause() {
    for (status, after, pause) in [
        ("429 Too Many Requests", "Retry-After: 600\r\n", 600),
        ("503 Service Unavailable", "Retry-After: 600\r\n", 600),
        ("429 Too Many Requests", "", 10),
        ("429 Too Many Requests", "Retry-After: 86400\r\n", 3600),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\n{after}Content-Length: 0\r\n\r\n");
        let (client, _) = server(answer.leak()).await;
        let error = ask(&client).await.expect_err("no answer");
        assert!(
            matches!(&error, ScanError::Throttled(told) if *told == Duration::from_secs(pause)),
            "{error}"
        );
        assert_eq!(error.reason(), Reason::Busy);
    }
}

/// RFC 9110 section 10.2.3 has two forms. A date in the past is a pause of zero.
#[test]
fn retry_after_is_seconds_or_a_date() {
    let now: Timestamp = "1994-11-06T08:49:00Z".parse().expect("a time");
    for (text, seconds) in [
        ("120", Some(120)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("soon", None),
        ("-5", None),
    ] {
        assert_eq!(
            retry_after(text, now).map(|d| d.as_secs()),
            seconds,
            "{text}"
        );
    }
}

/// No text of an envelope can end a field.
#[test]
fn values_cannot_end_a_field() {
    assert_eq!(value("a\r\nX: y").as_bytes(), b"a??X: y");
    assert_eq!(value("пример").as_bytes(), "пример".as_bytes());
}

/// Each fact of the envelope has its own request field. Recipients are cut at a size that HTTP servers accept.
#[test]
fn the_envelope_is_sent_in_request_fields() {
    let mut envelope = (*request("x", Duration::from_secs(1)).envelope).clone();
    envelope.origin.protocol = "ESMTPSA".to_owned();
    envelope.origin.client = "::ffff:192.0.2.1".parse().expect("address");
    envelope.origin.helo = "c.example".to_owned();
    envelope.origin.client_name = Some("mail.example".to_owned());
    envelope.origin.user = Some("bob".to_owned());
    envelope.origin.tls = Some("TLSv1.3 TLS13_AES".to_owned());
    let id: MessageId = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("id");
    let seen: Vec<String> = facts("", "relay.test", id, &envelope)
        .iter()
        .map(|(k, v)| format!("{k}: {}", v.to_str().expect("text")))
        .collect();
    assert_eq!(
        seen,
        [
            "queue-id: 01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "from: sender@example.com",
            "rcpt: recipient@example.org",
            "ip: 192.0.2.1",
            "helo: c.example",
            "hostname: mail.example",
            "user: bob",
            "tls-version: TLSv1.3",
            "tls-cipher: TLS13_AES",
        ]
    );
    // The relay's host name completes an address without a domain. rspamd does not accept such an address, which costs the
    // message 8 points.
    let postmaster = Mailbox::parse("postmaster").expect("mailbox");
    envelope.reverse_path = postmaster.clone().into();
    envelope.recipients = vec![postmaster.into()];
    let told = facts("", "relay.test", id, &envelope);
    assert_eq!(told["from"], "postmaster@relay.test");
    assert_eq!(told["rcpt"], "postmaster@relay.test");
    let one = Recipient::from(Mailbox::parse("recipient@example.org").expect("mailbox"));
    envelope.recipients = vec![one; 10_000];
    let told = facts("x-", "relay.test", id, &envelope)
        .get_all("x-rcpt")
        .iter()
        .count();
    assert_eq!(told, RECIPIENT_OCTETS_MAX / "recipient@example.org".len());
}
