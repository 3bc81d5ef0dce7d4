//! Protocol tests that a postmaster can read and write: the files in `tests/dialogues`.
//!
//! | line | meaning |
//! |---|---|
//! | `# text` | the law that the dialogue protects |
//! | `config: key = value` | a line of configuration; `users_file` gets the user tim with the password secret |
//! | `C: text` | the client sends the text and CRLF |
//! | `C> text` | the client sends the text alone, with `\r` `\n` `\t` `\0` `\\` and `\x41` understood |
//! | `C* N text` | the client sends the text N times, as with `C>` |
//! | `S: pattern` | the server sends a reply line; `*` in the pattern is anything |
//! | `S... pattern` | the server sends a reply of any number of lines, one of which fits |
//! | `S!.. pattern` | the server sends a reply of any number of lines, none of which fits |
//! | `TLS` | handshake |
//! | `CLOSED` | the server has closed the connection |
//! | `NEW` | a new connection |
//! | `DELIVERED N` | so many messages have been delivered in all |
//! | `CONTAINS text` | the newest delivered message contains the text (with `C>`'s escapes, `\n` for its line ends) |
//! | `LACKS text` | it does not |

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use rustls::ClientConfig;
use spillway::listener::users;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::certificates;
use crate::relay::{PATIENCE, Relay, Site, eventually};

/// The number of a delivery in this process, from the name of its file: names do not sort by time, because their microseconds have
/// no leading zeros.
fn delivery_number(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str());
    let after = name.and_then(|name| name.rsplit_once('Q')?.1.split('.').next());
    after
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// A socket, encrypted or not.
pub trait Wire: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Wire for T {}

/// A client that says exactly what it is told to.
pub struct Client {
    stream: BufReader<Pin<Box<dyn Wire>>>,
}

impl Client {
    pub async fn connect(relay: &Relay) -> Self {
        let stream = TcpStream::connect(relay.address()).await.expect("connect");
        Self {
            stream: BufReader::new(Box::pin(stream)),
        }
    }

    pub async fn send(&mut self, octets: &[u8]) {
        // The server may have closed already; what it says about that is checked by the next line of the dialogue.
        let _ = timeout(PATIENCE, self.stream.write_all(octets))
            .await
            .expect("server reads");
    }

    /// One line without CRLF; `None` at the end.
    pub async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_until(b'\n', &mut line))
            .await
            .expect("server answers");
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => {
                let line = line
                    .strip_suffix(b"\r\n")
                    .expect("reply lines end with CRLF");
                Some(String::from_utf8_lossy(line).into_owned())
            }
        }
    }

    pub async fn reply(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            let last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if last {
                break;
            }
        }
        lines
    }

    /// Shakes hands, as a client of this configuration.
    pub async fn start_tls(self, config: ClientConfig) -> Self {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "relay.test".try_into().expect("a name");
        let stream = connector
            .connect(name, self.stream.into_inner())
            .await
            .expect("TLS handshake");
        Self {
            stream: BufReader::new(Box::pin(stream)),
        }
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet != b'\\' {
            out.push(octet);
            continue;
        }
        match rest.next() {
            Some(b'r') => out.push(b'\r'),
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'0') => out.push(0),
            Some(b'x') => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).expect("two hexadecimal digits"));
            }
            Some(other) => out.push(other),
            None => panic!("a backslash at the end"),
        }
    }
    out
}

/// `*` is anything; everything else is itself.
fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    for (at, part) in parts.iter().enumerate() {
        if at + 1 == parts.len() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(found) => rest = &rest[found + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

async fn play(file: &Path) {
    let text = std::fs::read_to_string(file).expect("dialogue");
    let site = Site::new();
    certificates::write(site.path());
    let config: String = text
        .lines()
        .filter_map(|l| l.strip_prefix("config: "))
        .map(|l| format!("{l}\n"))
        .collect();
    if config.contains("users_file") {
        users::add(&site.path().join("users"), "tim", "secret").expect("a user");
    }
    let relay = site.start(&config).await;
    let mut client = Client::connect(&relay).await;
    for (number, line) in text.lines().enumerate() {
        let place = format!("{}:{}", file.display(), number + 1);
        if line.is_empty() || line.starts_with('#') || line.starts_with("config: ") {
        } else if let Some(text) = line.strip_prefix("C: ") {
            client.send(format!("{text}\r\n").as_bytes()).await;
        } else if let Some(text) = line.strip_prefix("C> ") {
            client.send(&unescape(text)).await;
        } else if let Some(text) = line.strip_prefix("C* ") {
            let (count, text) = text.split_once(' ').expect("C* N text");
            client
                .send(&unescape(text).repeat(count.parse().expect("a number")))
                .await;
        } else if let Some(pattern) = line.strip_prefix("S: ") {
            let got = client.line().await.unwrap_or_else(|| "(closed)".to_owned());
            assert!(
                fits(pattern, &got),
                "{place}: expected {pattern:?}, got {got:?}"
            );
        } else if let Some(pattern) = line.strip_prefix("S... ") {
            let got = client.reply().await;
            assert!(
                got.iter().any(|l| fits(pattern, l)),
                "{place}: no {pattern:?} in {got:?}"
            );
        } else if let Some(pattern) = line.strip_prefix("S!.. ") {
            let got = client.reply().await;
            assert!(
                !got.iter().any(|l| fits(pattern, l)),
                "{place}: {pattern:?} in {got:?}"
            );
        } else if line == "TLS" {
            client = client.start_tls(certificates::trusting_client()).await;
        } else if line == "CLOSED" {
            let got = client.line().await;
            assert_eq!(got, None, "{place}: expected the end");
        } else if line == "NEW" {
            client = Client::connect(&relay).await;
        } else if let Some(count) = line.strip_prefix("DELIVERED ") {
            let count: usize = count.parse().expect("a number");
            eventually(&place, async || {
                (site.delivered().len() >= count).then_some(())
            })
            .await;
            assert_eq!(site.delivered().len(), count, "{place}");
        } else if let Some((lacks, text)) = line
            .strip_prefix("CONTAINS ")
            .map(|text| (false, text))
            .or(line.strip_prefix("LACKS ").map(|text| (true, text)))
        {
            let delivered = site.delivered().into_iter();
            let newest = delivered.max_by_key(|path| delivery_number(path));
            let newest = newest.expect("a delivered message");
            let octets = std::fs::read(newest).expect("message");
            let wanted = unescape(text);
            let found = octets.windows(wanted.len()).any(|window| window == wanted);
            assert!(
                found != lacks,
                "{place}: {:?}",
                String::from_utf8_lossy(&octets)
            );
        } else {
            panic!("{place}: not understood: {line}");
        }
    }
    assert!(relay.running.drain().await, "{}: drains", file.display());
}

/// Every file in `tests/dialogues` is played against a relay of its own; each says in its first lines what it protects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialogues() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("tests/dialogues")
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    assert!(files.len() > 10, "the dialogues are there");
    for file in files {
        println!("{}", file.display());
        play(&file).await;
    }
}
