//! The `Received` field that the relay adds (RFC 5321 4.4).

use std::fmt::Write;
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::message::{Envelope, MessageId, Origin};

/// The folded field with its CRLF. In text from other systems, characters that could end the line or the comment are replaced.
pub(super) fn received(
    hostname: &str,
    id: MessageId,
    envelope: &Envelope,
    at: Timestamp,
) -> String {
    let origin = &envelope.origin;
    let mut field = String::with_capacity(320);
    // Writing to a String cannot fail.
    let _ = write!(field, "Received: from {} (", clean(&origin.helo));
    if let Some(name) = &origin.client_name {
        let _ = write!(field, "{} ", clean(name));
    }
    let _ = write!(field, "[{}])", literal(origin.client));
    if let Some(tls) = &origin.tls {
        let _ = write!(field, "\r\n\t(using {})", clean(tls));
    }
    let _ = write!(
        field,
        "\r\n\tby {hostname} (Spillway) with {}\r\n\tid {id}",
        origin.protocol
    );
    // With several recipients, the field would show each of them the addresses of the others.
    if let [only] = envelope.recipients.as_slice() {
        let _ = write!(field, "\r\n\tfor <{}>", only.mailbox);
    }
    let _ = write!(field, ";\r\n\t{}\r\n", date(at));
    field
}

/// The keyword after `with` (RFC 3848, RFC 6531).
fn protocol(extended: bool, smtputf8: bool, origin_tls: bool, authenticated: bool) -> &'static str {
    match (extended, smtputf8, origin_tls, authenticated) {
        (false, ..) => "SMTP",
        (true, false, false, false) => "ESMTP",
        (true, false, false, true) => "ESMTPA",
        (true, false, true, false) => "ESMTPS",
        (true, false, true, true) => "ESMTPSA",
        (true, true, false, false) => "UTF8SMTP",
        (true, true, false, true) => "UTF8SMTPA",
        (true, true, true, false) => "UTF8SMTPS",
        (true, true, true, true) => "UTF8SMTPSA",
    }
}

/// RFC 5322 3.3 date-time, in UTC.
fn date(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S +0000")
        .to_string()
}

/// Address literal; an IPv6 address has the tag `IPv6:` (RFC 5321 4.1.3).
fn literal(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("IPv6:{v6}"),
    }
}

fn clean(text: &str) -> String {
    let keep = |c: char| match c {
        '(' | ')' | '\\' | ';' | '<' | '>' => '?',
        // Without SMTPUTF8 a header field contains ASCII only, and the next hop may refuse other characters.
        ' '..='~' => c,
        _ => '?',
    };
    if text.is_empty() {
        "unknown".to_owned()
    } else {
        text.chars().take(255).map(keep).collect()
    }
}

/// Sets `origin.protocol` from the state of the session.
pub(super) fn set_protocol(origin: &mut Origin, extended: bool, smtputf8: bool) {
    origin.protocol = protocol(
        extended,
        smtputf8,
        origin.tls.is_some(),
        origin.user.is_some(),
    )
    .to_owned();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{BodyKind, Mailbox, ReversePath};

    /// A HELO argument that tries to end the field or its comment cannot do so.
    #[test]
    fn a_helo_argument_cannot_end_the_field() {
        let mailbox = Mailbox::parse("b@c.example").expect("mailbox");
        let mut envelope = Envelope {
            reverse_path: ReversePath::NULL,
            recipients: vec![mailbox.clone().into()],
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            origin: Origin {
                client: "2001:db8::1".parse().expect("address"),
                client_name: None,
                helo: "c.example".to_owned(),
                protocol: "ESMTPS".to_owned(),
                tls: Some("TLSv1.3 X".to_owned()),
                user: None,
                listener: "smtp".into(),
            },
        };
        let id: MessageId = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().expect("id");
        let at = Timestamp::from_second(1_000_000_000).expect("time");
        assert_eq!(
            received("h", id, &envelope, at),
            "Received: from c.example ([IPv6:2001:db8::1])\r\n\t(using TLSv1.3 X)\r\n\tby h (Spillway) with ESMTPS\r\n\tid \
             01ARZ3NDEKTSV4RRFFQ69G5FAV\r\n\tfor <b@c.example>;\r\n\tSun, 09 Sep 2001 01:46:40 +0000\r\n"
        );
        envelope.origin.helo = "x) by évil; (".to_owned();
        envelope.recipients.push(mailbox.into());
        let field = received("h", id, &envelope, at);
        assert!(field.starts_with("Received: from x? by ?vil? ? ("));
        assert!(!field.contains("for <"));
    }
}
