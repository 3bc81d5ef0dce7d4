//! Replies to the end of data: what became of the message.

use std::fmt;

use super::{Class, Reply};
use crate::smtp::RemoteReply;
use crate::smtp::reply_parser::parse_status;

impl Reply {
    /// 250: the next hop took the message; the text of its reply is passed on.
    pub fn delivered(id: impl fmt::Display, said: impl fmt::Display) -> Self {
        Self::new(
            Class::Positive,
            50,
            (0, 0),
            format!("Ok: {id} delivered, next hop said: {said}"),
        )
    }

    /// 250: the relay has taken custody of the message.
    pub fn accepted(id: impl fmt::Display) -> Self {
        Self::new(Class::Positive, 50, (0, 0), format!("Ok: accepted as {id}"))
    }

    /// 550: policy rejected the message.
    pub fn rejected(id: impl fmt::Display, rule: &str) -> Self {
        Self::new(
            Class::Permanent,
            50,
            (7, 1),
            format!("Rejected by policy {rule} ({id})"),
        )
        .because("policy")
    }

    /// 5yz: the next hop refused the message; the text of its reply is passed on.
    pub fn refused(id: impl fmt::Display, said: &RemoteReply) -> Self {
        let detail = u8::try_from(said.code % 100).unwrap_or(54);
        let enhanced = said
            .enhanced
            .filter(|(class, ..)| *class == 5)
            .map_or((0, 0), |(_, subject, detail)| (subject, detail));
        Self::new(
            Class::Permanent,
            detail,
            enhanced,
            format!("{id} refused, next hop said: {}", said.text),
        )
        .because("next-hop")
    }

    /// 552 or 554: the next hop cannot accept this kind of message. The enhanced status code is the one at the beginning of
    /// `why`, if there is one.
    pub fn undeliverable(id: impl fmt::Display, why: &str) -> Self {
        let given = why.split_once(' ').and_then(|(first, words)| {
            let (class, subject, detail) = parse_status(first)?;
            (class == 5).then_some(((subject, detail), words))
        });
        let (status, words) = given.unwrap_or(((0, 0), why));
        let detail = match status {
            // RFC 1870 6.
            (3, 4) => 52,
            _ => 54,
        };
        Self::new(
            Class::Permanent,
            detail,
            status,
            format!("{id} cannot be delivered: {words}"),
        )
        .because("undeliverable")
    }

    /// 451: the relay could not store the message, so the sender keeps it.
    pub fn not_kept(id: impl fmt::Display) -> Self {
        Self::new(
            Class::Transient,
            51,
            (3, 0),
            format!("{id} could not be stored here, try again later"),
        )
        .because("store")
    }
}
