//! HTTP/1.1 client for one server. Answers are bounded, and a connection is used again only after a complete answer.

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

/// Octets of an answer's body. A verdict needs far less; the bound limits the memory of one scan.
const ANSWER_BODY_OCTETS_MAX: usize = 1 << 20;
/// Octets of an answer's head, and header fields in it. Both bound the memory of one scan.
const ANSWER_HEAD_OCTETS_MAX: usize = 64 * 1024;
const ANSWER_FIELDS_MAX: usize = 100;
/// Idle connections that are kept for later requests.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Servers usually keep an idle connection for longer than 4 s, so few of them close a connection that the relay keeps.
const IDLE_CONNECTION_AGE_MAX: Duration = Duration::from_secs(4);
/// Pause for a server that asks for one without saying how long.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest pause that a server can ask for. A wrong value keeps a replica out for one hour at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// The client of one server, with its idle connections.
#[derive(Debug)]
pub struct HttpClient {
    dial: Dial,
    host: HeaderValue,
    idle: Mutex<Vec<Connection>>,
}

/// A connection: idle, or in use by one request.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Task that drives the connection. Dropping the handle aborts the task, which closes the socket in any state.
    _driver: AbortOnDropHandle<()>,
    since: Instant,
}

impl HttpClient {
    /// Makes a client without connecting. `ca` is a file of certificate authorities for https, instead of those of the
    /// system.
    ///
    /// # Errors
    /// [`BuildError`], if the authorities cannot be read or the URL has no name for the certificate. Blocks on their files.
    pub fn new(
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

    /// Name of the server in reports.
    pub fn name(&self) -> &str {
        self.dial.name()
    }

    /// Posts `body` and returns the body of the answer, if its status is a success. Follows no redirect. Only the connection
    /// attempt ends at `deadline`: the caller bounds the rest.
    ///
    /// # Errors
    /// [`ScanError`] with the reason: the text fits a report about any server.
    ///
    /// Cancel safety: dropping the future closes the connection.
    pub async fn post(
        &self,
        path: &str,
        fields: HeaderMap,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<Bytes, ScanError> {
        accept(self.exchange(path, fields, body, deadline).await?)
    }

    /// Posts `body` and returns the answer with any status. [`accept`] interprets the status.
    ///
    /// Cancel safety: dropping the future closes the connection.
    pub(super) async fn exchange(
        &self,
        path: &str,
        fields: HeaderMap,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, ScanError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = path
            .parse()
            .map_err(|_| garbage("the relay's own path is not valid"))?;
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
                    // The server has closed the idle connection and got nothing of the request, so this is not a second
                    // attempt.
                    Some(unsent) if used => request = unsent,
                    _ => return Err(broken(failed.error())),
                },
            }
        };
        let (head, body) = response.into_parts();
        let body = match Limited::new(body, ANSWER_BODY_OCTETS_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(garbage(&format!(
                    "an answer of more than {ANSWER_BODY_OCTETS_MAX} octets"
                )));
            }
            Err(error) => {
                return Err(match error.downcast_ref::<hyper::Error>() {
                    Some(error) => broken(error),
                    None => garbage(&error.to_string()),
                });
            }
        };
        self.keep(connection);
        Ok(Response::from_parts(head, body))
    }

    /// Takes an idle connection, or makes a new one. The flag says whether the connection was used before.
    async fn connection(&self, deadline: Deadline) -> Result<(Connection, bool), ScanError> {
        if let Some(used) = self.take() {
            return Ok((used, true));
        }
        let stream = self.dial.connect(deadline).await?;
        let made = http1::Builder::new()
            .max_buf_size(ANSWER_HEAD_OCTETS_MAX)
            .max_headers(ANSWER_FIELDS_MAX)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, driver) = made.map_err(|error| broken(&error))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // The request on the connection reports how the connection ended.
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
}

/// The body of an answer with a success status. Every other status is an error (RFC 9110 section 15, RFC 6585 section 4).
pub(super) fn accept(answer: Response<Bytes>) -> Result<Bytes, ScanError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer.into_body());
    }
    let message = told(&answer);
    let after = answer.headers().get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok());
    let after = after.and_then(|text| retry_after(text, wall_clock()));
    let pause = after.unwrap_or(DEFAULT_RETRY_AFTER).min(RETRY_AFTER_MAX);
    Err(match status {
        StatusCode::PAYLOAD_TOO_LARGE => ScanError::Refused(message),
        StatusCode::TOO_MANY_REQUESTS => ScanError::Throttled(pause),
        StatusCode::SERVICE_UNAVAILABLE if after.is_some() => ScanError::Throttled(pause),
        _ if status.is_server_error() => ScanError::Engine(message),
        _ => ScanError::Declined(message),
    })
}

fn broken(error: &hyper::Error) -> ScanError {
    let source = std::error::Error::source(error);
    let cause = match source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    match error.is_parse() {
        true => garbage(&cause),
        false => ScanError::Disconnected(cause),
    }
}

/// The error for an answer outside the protocol, with at most 200 characters of `answer`.
pub(super) fn garbage(answer: &str) -> ScanError {
    ScanError::Garbage(answer.chars().take(200).collect())
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

/// Pause that a server asks for in `Retry-After`: a number of seconds, or a date (RFC 9110 section 10.2.3). A date in the
/// past gives zero. Returns `None` if `text` is neither.
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
