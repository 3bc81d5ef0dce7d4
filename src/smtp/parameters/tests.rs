//! Tests of the parameters of MAIL and RCPT.

use proptest::prelude::*;

use super::*;
use crate::smtp::xtext;

/// RFC 5321 4.1.1.11: an unknown parameter is one thing, a malformed one another, and a repeated one is neither first nor last.
#[test]
fn parameters_of_mail_are_taken_or_refused_by_name() {
    use ParameterError::{Malformed, Repeated, Unknown, Value};
    for (parameters, expected) in [
        (" SIZE", Value("SIZE")),
        (" SIZE=", Value("SIZE")),
        (" SIZE=+1", Value("SIZE")),
        (" SIZE=1x", Value("SIZE")),
        (" SIZE=123456789012345678901", Value("SIZE")),
        (" SIZE=1 SIZE=1", Repeated("SIZE")),
        (" BODY", Value("BODY")),
        (" BODY=8BIT", Value("BODY")),
        (" BODY=7BIT BODY=8BITMIME", Repeated("BODY")),
        (" body=binarymime", Unknown("BODY=BINARYMIME")),
        (" SMTPUTF8=1", Value("SMTPUTF8")),
        (" SMTPUTF8 SMTPUTF8", Repeated("SMTPUTF8")),
        (" RET=", Value("RET")),
        (" RET=HDRS ret=hdrs", Repeated("RET")),
        (" ENVID=", Value("ENVID")),
        (" ENVID=+ZZ", Value("ENVID")),
        (" ENVID=a+4", Value("ENVID")),
        (" ENVID=a+", Value("ENVID")),
        (" ENVID=+00", Value("ENVID")),
        (" ENVID=\u{fc}", Value("ENVID")),
        (" ENVID=a ENVID=a", Repeated("ENVID")),
        (" AUTH=", Value("AUTH")),
        (" AUTH=+0A", Value("AUTH")),
        (" AUTH=<> AUTH=<>", Repeated("AUTH")),
        (" NOTIFY=NEVER", Unknown("NOTIFY")),
        (" REQUIRETLS", Unknown("REQUIRETLS")),
        (" FROB==", Unknown("FROB")),
        (" =", Malformed),
        (" -x", Malformed),
        (" <x>", Malformed),
        (" S\u{0}IZE=1", Malformed),
    ] {
        assert_eq!(mail(parameters.as_bytes()), Err(expected), "{parameters:?}");
    }
    let all = b" \t SIZE=18446744073709551616 body=8bitmime smtputf8 RET=full ENVID=a+20b=c+2b AUTH=+C3+BC@b ";
    let expected = MailParameters {
        size: Some(u64::MAX),
        body: Some(BodyKind::EightBitMime),
        smtputf8: true,
        ret: Some(Ret::Full),
        envid: Some("a b=c+".to_owned()),
        auth: true,
    };
    assert_eq!(mail(all), Ok(expected));
    assert_eq!(mail(b""), Ok(MailParameters::default()));
}

/// RFC 3461 4.1 and 4.2: NEVER stands alone, and an original recipient of any type is kept.
#[test]
fn parameters_of_rcpt_are_taken_or_refused_by_name() {
    use ParameterError::{Malformed, Repeated, Unknown, Value};
    for (parameters, expected) in [
        (" NOTIFY", Value("NOTIFY")),
        (" NOTIFY=", Value("NOTIFY")),
        (" NOTIFY=NEVER,SUCCESS", Value("NOTIFY")),
        (" NOTIFY=SUCCESS,NEVER", Value("NOTIFY")),
        (" NOTIFY=SUCCESS,", Value("NOTIFY")),
        (" NOTIFY=NEVER NOTIFY=NEVER", Repeated("NOTIFY")),
        (" ORCPT", Value("ORCPT")),
        (" ORCPT=rfc822", Value("ORCPT")),
        (" ORCPT=rfc822;", Value("ORCPT")),
        (" ORCPT=;a", Value("ORCPT")),
        (" ORCPT=a(b;c", Value("ORCPT")),
        (" ORCPT=rfc822;a+4", Value("ORCPT")),
        (" ORCPT=rfc822;a+0Ab", Value("ORCPT")),
        (" ORCPT=rfc822;\u{fc}", Value("ORCPT")),
        (" ORCPT=rfc822;a ORCPT=rfc822;a", Repeated("ORCPT")),
        (" SIZE=1", Unknown("SIZE")),
        (" ,", Malformed),
    ] {
        assert_eq!(rcpt(parameters.as_bytes()), Err(expected), "{parameters:?}");
    }
    for (value, stored) in [
        ("rfc822;a+40b", "rfc822;a@b"),
        ("RFC822;a@b;c", "RFC822;a@b;c"),
        ("x400;/PN=A+2BB/", "x400;/PN=A+B/"),
        ("x-what_ever!;+20", "x-what_ever!; "),
        ("UTF-8;\\x{F6}@b.example", "utf-8;\\x{F6}@b.example"),
    ] {
        let got = rcpt(format!(" ORCPT={value}").as_bytes()).expect(value);
        assert_eq!(got.orcpt.as_deref(), Some(stored));
    }
    let got = rcpt(b" notify=delay,success,delay").expect("words");
    let expected = Notify {
        success: true,
        failure: false,
        delay: true,
    };
    assert_eq!(got.notify, Some(expected));
}

/// RFC 3461 4.2 and 4.4: a value has its limit in the encoding in which it is passed on.
#[test]
fn values_have_limits() {
    let fits = |name: &str, octet: &str, octets: usize| {
        let value = format!(" {name}{}", octet.repeat(octets));
        match name.starts_with("ORCPT") {
            true => rcpt(value.as_bytes()).is_ok(),
            false => mail(value.as_bytes()).is_ok(),
        }
    };
    for (name, octet, most) in [
        ("ENVID=", "x", 100),
        ("ENVID=", "+20", 33),
        ("ENVID=", "=", 33),
        ("AUTH=", "x", 500),
        ("ORCPT=rfc822;", "x", 500),
        ("ORCPT=x400;", "+20", 166),
        ("ORCPT=utf-8;a@", "\u{fc}.", 71),
        ("ORCPT=", "x", 0),
    ] {
        assert_eq!(fits(name, octet, most), most > 0, "{name} {most}");
        assert!(!fits(name, octet, most + 1), "{name} {most} + 1");
    }
    let kind = |octets: usize| format!(" ORCPT={};a", "t".repeat(octets));
    assert!(rcpt(kind(64).as_bytes()).is_ok() && rcpt(kind(65).as_bytes()).is_err());
}

proptest! {
    /// The next server gets the same value: what is stored is encoded and decoded again to itself, however it was written.
    #[test]
    fn a_stored_value_is_passed_on_as_the_same(value in "[a+=2B4;\\\\ -~]{1,40}", kind in "[a-zA-Z0-9-]{1,5}") {
        let value = value.replace(' ', "+20");
        if let Ok(MailParameters { envid: Some(envid), .. }) = mail(format!(" ENVID={value}").as_bytes()) {
            let again = xtext::encode(&envid, ENVID_OCTETS_MAX).expect("within the limit");
            let got = mail(format!(" ENVID={again}").as_bytes()).expect("again");
            prop_assert_eq!(got.envid, Some(envid));
        }
        if let Ok(RcptParameters { orcpt: Some(stored), .. }) = rcpt(format!(" ORCPT={kind};{value}").as_bytes()) {
            let (kind, address) = stored.split_once(';').expect("a type");
            let again = xtext::encode(address, orcpt::ORCPT_OCTETS_MAX).expect("within the limit");
            let got = rcpt(format!(" ORCPT={kind};{again}").as_bytes()).expect("again");
            prop_assert_eq!(got.orcpt.as_ref(), Some(&stored));
            prop_assert!(stored.bytes().all(|octet| (b' '..=b'~').contains(&octet)));
        }
    }
}
