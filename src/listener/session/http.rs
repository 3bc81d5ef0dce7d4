//! Recognises HTTP where a command of SMTP belongs.
//!
//! A page in a browser may post to any address that the browser's machine reaches, also to a listener at a loopback address,
//! which trusts this machine. The body of the request can contain commands, so the session must end at the first line.

/// Methods of HTTP. None is a verb of SMTP. The versions after HTTP/0.9 are recognised by the end of the line as well.
const METHODS: [&[u8]; 9] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
];

/// The first octets of a ClientHello (RFC 8446 5.1): a browser has come with HTTPS. A page can choose octets in it too.
const TLS_HANDSHAKE: &[u8] = b"\x16\x03";

/// Whether a line, or the beginning of a long line, is a request line of HTTP, a header field, or the beginning of HTTPS. A field
/// has a colon right after its name, and no command of SMTP has one in its first word.
pub(super) fn is_http(line: &[u8]) -> bool {
    if line.starts_with(TLS_HANDSHAKE) {
        return true;
    }
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let word = line.iter().take_while(|b| is_token(b)).count();
    let (word, rest) = line.split_at(word);
    match rest.first() {
        Some(b':') => !word.is_empty(),
        Some(b' ') => METHODS.iter().any(|m| word.eq_ignore_ascii_case(m)) || has_version(rest),
        _ => false,
    }
}

/// Whether the line has the target and the version of a request line: ` /pot HTTP/1.1`. An argument of an SMTP command may
/// end in any text, but an argument of NOOP and HELP before that text has no such form.
fn has_version(rest: &[u8]) -> bool {
    let mut words = rest.trim_ascii_end().split(|b| *b == b' ').skip(1);
    let target = words.next().unwrap_or_default();
    let version = words.next().unwrap_or_default();
    let is_target = matches!(target.first(), Some(b'/' | b'*'))
        || memchr::memmem::find(target, b"://").is_some();
    is_target && version.starts_with(b"HTTP/") && words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::is_http;

    /// HTTP is recognised in any method and version, and no command of SMTP is taken for it.
    #[test]
    fn http_is_no_command_and_no_command_is_http() {
        for line in [
            "GET / HTTP/1.1\r",
            "get /",
            "POST http://relay.test/ HTTP/1.0",
            "PUT /x",
            "HEAD / HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "CONNECT mail.example:25 HTTP/1.1",
            "PRI * HTTP/2.0",
            "BREW /pot HTTP/1.1",
            "Host: localhost:25",
            "Content-Length:3",
            "Sec-Fetch-Mode: no-cors",
            "\u{16}\u{3}\u{1}\u{2}",
        ] {
            assert!(is_http(line.as_bytes()), "{line}");
        }
        for line in [
            "",
            ":",
            " GET / HTTP/1.1",
            "GET",
            "GETS /",
            "EHLO [IPv6:2001:db8::1]",
            "EHLO get",
            "HELO a:b",
            "MAIL FROM:<a@b.example>",
            "RCPT TO:<a@b.example> ORCPT=rfc822;a",
            "XCLIENT ADDR=IPV6:2001:db8::1",
            "NOOP GET / HTTP/1.1",
            "HELP HTTP/1.1",
            "BDAT 5 LAST",
            "AUTH PLAIN AGE6Yg==",
        ] {
            assert!(!is_http(line.as_bytes()), "{line:?}");
        }
    }
}
