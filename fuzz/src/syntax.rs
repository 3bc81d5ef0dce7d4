//! Targets for what a client writes after MAIL and RCPT.

use spillway::message::Mailbox;
use spillway::message::address::{MAILBOX_OCTETS_MAX, is_domain};
use spillway::smtp::parameters::{self, ENVID_OCTETS_MAX};
use spillway::smtp::{orcpt, path, xtext};

/// The arguments of MAIL and of RCPT up to the parameters.
pub fn path(octets: &[u8]) {
    let to = [b"TO:", octets].concat();
    if let Ok((mailbox, rest)) = path::forward(&to) {
        is_as_received(&mailbox, &to, rest);
    }
    let from = [b"FROM:", octets].concat();
    if let Ok((path, rest)) = path::reverse(&from) {
        match path.mailbox() {
            Some(mailbox) => is_as_received(mailbox, &from, rest),
            None => assert!(from[..from.len() - rest.len()].ends_with(b"<>")),
        }
    }
}

/// A mailbox is what stands in the path, letter by letter; it can end nothing, and is read again as itself.
fn is_as_received(mailbox: &Mailbox, arguments: &[u8], rest: &[u8]) {
    assert!(arguments.ends_with(rest));
    assert!(rest.first().is_none_or(|octet| b" \t".contains(octet)));
    let taken = &arguments[..arguments.len() - rest.len()];
    let text = mailbox.as_str();
    assert!(
        taken
            .strip_suffix(b">")
            .unwrap_or(taken)
            .ends_with(text.as_bytes())
    );
    assert!(text.len() <= MAILBOX_OCTETS_MAX);
    assert!(!text.contains(char::is_control), "{text:?}");
    let (local, domain) = (mailbox.local_part(), mailbox.domain());
    assert!(is_domain(domain) || text.eq_ignore_ascii_case("postmaster"));
    let special = |text: &str| text.contains(['<', '>', ' ', '"', ',', ';', '@', '(', '\\']);
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    assert!(!special(domain) && (quoted || !special(local)), "{text:?}");
    for again in [
        format!("TO:<{text}>"),
        format!("TO:<@a.test,@[192.0.2.1]:{text}> X"),
    ] {
        let (read, _) = path::forward(again.as_bytes()).expect("a mailbox");
        assert_eq!(&read, mailbox);
    }
}

/// The parameters of MAIL and of RCPT: what is stored is bounded, goes to the next server as the same value, and nothing is
/// taken twice.
pub fn parameters(octets: &[u8]) {
    let twice = [octets, b" ", octets].concat();
    if let Ok(all) = parameters::mail(octets) {
        let none = all == parameters::MailParameters::default();
        assert_eq!(parameters::mail(&twice).is_ok(), none);
        if let Some(envid) = all.envid {
            let again = xtext::encode(&envid, ENVID_OCTETS_MAX).expect("within its limit");
            let again = format!("ENVID={again}");
            let read = parameters::mail(again.as_bytes()).expect("a value");
            assert_eq!(read.envid, Some(envid));
        }
    }
    if let Ok(all) = parameters::rcpt(octets) {
        let none = all == parameters::RcptParameters::default();
        assert_eq!(parameters::rcpt(&twice).is_ok(), none);
        if let Some(stored) = all.orcpt {
            assert!(!stored.contains(char::is_control));
            let ascii = orcpt::in_ascii(&stored);
            let (kind, address) = ascii.split_once(';').expect("a type");
            let again = xtext::encode(address, orcpt::ORCPT_OCTETS_MAX).expect("within its limit");
            let again = format!("ORCPT={kind};{again}");
            let read = parameters::rcpt(again.as_bytes()).expect("a value");
            assert_eq!(read.orcpt.map(|read| orcpt::in_ascii(&read)), Some(ascii));
        }
    }
}
