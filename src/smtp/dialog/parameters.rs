//! The parameters of MAIL and RCPT that the client sends.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Capabilities, Facts};
use crate::message::{Envelope, Notify, Recipient, Ret};
use crate::smtp::parameters::ENVID_OCTETS_MAX;
use crate::smtp::{orcpt, xtext};

/// The parameters of MAIL, each with a space before it. `utf8`: the message needs SMTPUTF8.
pub(super) fn mail_parameters(
    envelope: &Envelope,
    facts: Facts,
    utf8: bool,
    offered: &Capabilities,
) -> String {
    let mut parameters = String::new();
    if offered.size.is_some() {
        // Writing to a String cannot fail, here and below.
        let _ = write!(parameters, " SIZE={}", facts.octets);
    }
    if facts.eight_bit && offered.eight_bit_mime {
        parameters.push_str(" BODY=8BITMIME");
    }
    if utf8 && offered.smtputf8 {
        parameters.push_str(" SMTPUTF8");
    }
    if offered.dsn {
        match envelope.ret {
            Some(Ret::Full) => parameters.push_str(" RET=FULL"),
            Some(Ret::Headers) => parameters.push_str(" RET=HDRS"),
            None => {}
        }
        if let Some(envid) = envelope
            .envid
            .as_deref()
            .and_then(|id| xtext::encode(id, ENVID_OCTETS_MAX))
        {
            let _ = write!(parameters, " ENVID={envid}");
        }
    }
    parameters
}

/// The DSN parameters of RCPT, each with a space before it.
pub(super) fn rcpt_parameters(recipient: &Recipient) -> String {
    let mut parameters = String::new();
    if let Some(notify) = recipient.notify {
        let _ = write!(parameters, " NOTIFY={}", notify_words(notify));
    }
    let orcpt = recipient.orcpt.as_deref().and_then(|written| {
        let orcpt = match written.starts_with(orcpt::TYPE) {
            true => Cow::Owned(orcpt::in_ascii(written)),
            false => Cow::Borrowed(written),
        };
        let (kind, address) = orcpt.split_once(';')?;
        let address = xtext::encode(address, orcpt::ORCPT_OCTETS_MAX)?;
        orcpt::is_type(kind).then(|| format!("{kind};{address}"))
    });
    if let Some(orcpt) = orcpt {
        let _ = write!(parameters, " ORCPT={orcpt}");
    }
    parameters
}

fn notify_words(notify: Notify) -> String {
    let words = [
        (notify.success, "SUCCESS"),
        (notify.failure, "FAILURE"),
        (notify.delay, "DELAY"),
    ];
    let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
    if words.is_empty() {
        "NEVER".to_owned()
    } else {
        words.join(",")
    }
}
