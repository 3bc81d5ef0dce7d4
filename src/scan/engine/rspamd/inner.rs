//! The HTTP inside the encryption: the head of a request, and an answer.

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::scan::engine::head::{Head, first_line};

/// The head of a request whose body has `length` octets. The version is 1.0, as in rspamd's own client: each encrypted text
/// is one request.
pub(super) fn request(path: &str, fields: &HeaderMap, length: usize) -> Vec<u8> {
    let mut head = format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n").into_bytes();
    for (name, value) in fields {
        // The type of `value` excludes line ends.
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend(part);
        }
    }
    head.extend(b"\r\n");
    head
}

/// Reads a decrypted answer; `None` if the text is not an HTTP answer, such as the relay's own request.
pub(super) fn answer(opened: Vec<u8>) -> Option<Response<Bytes>> {
    let mut words = first_line(&opened)?.split(' ');
    let version = words.next()?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    let status: StatusCode = words.next()?.parse().ok()?;
    let (head, rest) = Head::split(&opened).ok()??;
    let after = head.get(RETRY_AFTER.as_str());
    let after = after.and_then(|text| HeaderValue::from_str(&text).ok());
    let body = opened.len() - rest.len();
    let mut answer = Response::new(Bytes::from(opened).slice(body..));
    *answer.status_mut() = status;
    if let Some(after) = after {
        answer.headers_mut().insert(RETRY_AFTER, after);
    }
    Some(answer)
}
