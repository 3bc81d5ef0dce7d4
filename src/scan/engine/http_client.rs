//! HTTP/1.1 towards one server: bounded answers, and connections used again only after a complete answer.

mod facts;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::address::Dial;
use super::url::HTTP;
use super::{BuildError, ScanError, Tls, Url};
use crate::deadline::{Deadline, wall_clock};

pub(super) use facts::facts;

/// Octets of an answer's body.
const BODY: usize = 1 << 20;
/// Octets of an answer's head, and fields in it.
const HEAD: usize = 64 * 1024;
const FIELDS: usize = 100;
/// Connections kept for later, and for how long: less than servers wait, so that few of them close meanwhile.
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_CONNECTION_AGE_MAX: Duration = Duration::from_secs(4);
/// How long a server is left alone that asks for it without saying for how long, and at most.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The way to one server.
#[derive(Debug)]
pub(super) struct HttpClient {
    dial: Dial,
    host: HeaderValue,
    idle: Mutex<Vec<Connection>>,
}

/// A connection on which no answer is awaited.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Drives the connection; aborting it, which dropping this does, closes the socket whatever it was doing.
    _driver: AbortOnDropHandle<()>,
    since: Instant,
}

impl HttpClient {
    /// Nothing is connected yet. `ca`: authorities for https instead of the system's.
    pub(super) fn new(
        url: &Url,
        ca: Option<&std::path::Path>,
        connect_timeout: Duration,
    ) -> Result<Self, BuildError> {
        let tls = url.is_tls(&HTTP).then(|| Tls {
            ca: ca.map(Into::into),
        });
        let authority = url.authority();
        let host = HeaderValue::from_str(authority);
        Ok(Self {
            dial: Dial::new(&url.address(), tls.as_ref(), connect_timeout)?,
            host: host.map_err(|_| BuildError::NoPort(authority.to_owned()))?,
            idle: Mutex::default(),
        })
    }

    /// The server's name in reports.
    pub(super) fn name(&self) -> &str {
        self.dial.name()
    }

    /// Posts `body` and returns the body of the answer, if its status is a success.
    ///
    /// Cancel safety: dropping it closes the connection.
    pub(super) async fn post(
        &self,
        path: &str,
        fields: HeaderMap,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes, ScanError> {
        self.accept(self.exchange(path, fields, body, deadline).await?)
    }

    /// Posts `body` and returns the answer, whatever its status is; [`Self::accept`] tells what it means.
    ///
    /// Cancel safety: dropping it closes the connection.
    pub(super) async fn exchange(
        &self,
        path: &str,
        fields: HeaderMap,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, ScanError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = path.parse().map_err(|_| self.garbage("our own path"))?;
        *request.headers_mut() = fields;
        let always = [
            (HOST, self.host.clone()),
            (USER_AGENT, HeaderValue::from_static("Spillway")),
            (CONNECTION, HeaderValue::from_static("keep-alive")),
        ];
        request
            .headers_mut()
            .extend(always.map(|(k, v)| (Some(k), v)));
        let (connection, response) = loop {
            let (mut connection, used) = self.connection(deadline).await?;
            match connection.sender.try_send_request(request).await {
                Ok(response) => break (connection, response),
                Err(mut failed) => match failed.take_message() {
                    // The server has closed it meanwhile, and has seen nothing of the request: this is no second attempt.
                    Some(unsent) if used => request = unsent,
                    _ => return Err(self.broken(failed.error())),
                },
            }
        };
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(self.garbage(&format!("an answer of more than {BODY} octets")));
            }
            Err(error) => {
                return Err(match error.downcast_ref::<hyper::Error>() {
                    Some(error) => self.broken(error),
                    None => self.garbage(&error.to_string()),
                });
            }
        };
        self.keep(connection);
        Ok(Response::from_parts(head, body))
    }

    /// A connection, and whether it was used before.
    async fn connection(&self, deadline: Deadline) -> Result<(Connection, bool), ScanError> {
        if let Some(used) = self.take() {
            return Ok((used, true));
        }
        let stream = self.dial.connect(deadline).await?;
        let made = http1::Builder::new()
            .max_buf_size(HEAD)
            .max_headers(FIELDS)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, driver) = made.map_err(|error| self.broken(&error))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ends is told by the request that was on it.
            let _ = driver.await;
        }));
        let since = Instant::now();
        let fresh = Connection {
            sender,
            _driver: driver,
            since,
        };
        Ok((fresh, false))
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|c| c.since.elapsed() < IDLE_CONNECTION_AGE_MAX && c.sender.is_ready());
        idle.pop()
    }

    fn keep(&self, mut connection: Connection) {
        connection.since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS_MAX && !connection.sender.is_closed() {
            idle.push(connection);
        }
    }

    /// The body of an answer whose status is a success; what another one means (RFC 9110 15, RFC 6585 4).
    pub(super) fn accept(&self, answer: Response<Bytes>) -> Result<Bytes, ScanError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let replica = self.name().to_owned();
        let message = told(&answer);
        let after = answer.headers().get(RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| retry_after(text, wall_clock()));
        Err(match status {
            StatusCode::PAYLOAD_TOO_LARGE => ScanError::Refused { replica, message },
            StatusCode::TOO_MANY_REQUESTS => {
                throttled(replica, after.unwrap_or(DEFAULT_RETRY_AFTER))
            }
            StatusCode::SERVICE_UNAVAILABLE if after.is_some() => {
                throttled(replica, after.unwrap_or(DEFAULT_RETRY_AFTER))
            }
            _ if status.is_server_error() => ScanError::Engine { replica, message },
            _ => ScanError::Declined { replica, message },
        })
    }

    fn broken(&self, error: &hyper::Error) -> ScanError {
        let source = std::error::Error::source(error);
        let cause = match source {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        if error.is_parse() {
            return self.garbage(&cause);
        }
        ScanError::Disconnected {
            replica: self.name().to_owned(),
            cause,
        }
    }

    /// An answer that is not what it should be.
    pub(super) fn garbage(&self, answer: &str) -> ScanError {
        ScanError::Garbage {
            replica: self.name().to_owned(),
            answer: answer.chars().take(200).collect(),
        }
    }
}

fn throttled(replica: String, pause: Duration) -> ScanError {
    let pause = pause.min(LONGEST_PAUSE);
    ScanError::Throttled { replica, pause }
}

/// The status of an answer and the beginning of its body, on one line.
pub(super) fn told(answer: &Response<Bytes>) -> String {
    let body = answer.body();
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    format!("{} {text}", answer.status().as_u16())
        .chars()
        .map(clean)
        .collect()
}

/// How long a server asks to be left alone in `Retry-After`: seconds, or a date (RFC 9110 10.2.3); none if it is neither.
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text);
    let left = date.ok()?.duration_since(now);
    Some(left.try_into().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests;
