//! Keys of engines that query name servers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::config::reader::Section;
use crate::config::sections::{is_host, network};
use crate::config::units::Wrong;
use crate::config::value::{plain, quoted, string};
use crate::scan::engine::{
    AuthSettings, DnsAnswer, DnsList, Kind, Listed, NameServers, Question, Scores,
};
use crate::verdict::{EngineClass, FindingKind};

const QUESTIONS: [(&str, Question); 3] = [
    ("client", Question::Client),
    ("sender", Question::Sender),
    ("url", Question::Url),
];

/// Largest score of one finding: 1000, as for `bad_score` of other engines.
const SCORE_MAX: f64 = 1000.0;

pub(super) fn dns(section: &mut Section<'_>, timeout: Duration, class: EngineClass) -> Kind {
    by_envelope(section, class);
    section.require("zone", "\"zen.example.org\"");
    let read = section.read("zone", None, quoted, |value| zone(&string(value)?));
    section.require_items("ask", "[\"client\"]");
    let ask = section.choices("ask", &QUESTIONS);
    let mixed = ask.contains(&Question::Client) && ask.len() > 1;
    if mixed {
        section.complain(
            "ask",
            "a list contains either addresses or domains (RFC 5782)",
            "write [\"client\"], or [\"sender\", \"url\"] for a list of domains",
        );
    }
    let everything = vec!["127.0.0.0/8 spam 5.0 listed".to_owned()];
    let written = section.list("answers", Some(everything), plain, |text| {
        answer(text).map(|_| text.to_owned())
    });
    let answers = written.iter().filter_map(|text| answer(text).ok());
    let answers: Vec<DnsAnswer> = answers.collect();
    if section.is_empty_list("answers") {
        section.complain(
            "answers",
            "is empty: no answer of the list would count",
            "write [\"127.0.0.0/8 spam 5.0 listed\"]",
        );
    }
    // The first are the error codes of Spamhaus, the second is that of SURBL and URIBL.
    let codes = ["127.255.255.0/24", "127.0.0.1/32"];
    let errors = codes.into_iter().filter_map(|code| code.parse().ok());
    let errors = section.list("errors", Some(errors.collect()), plain, code);
    Kind::Dns(DnsList {
        zone: read.unwrap_or_default(),
        ask,
        answers,
        errors,
        max_names: section.count("max_names", 32, 1..=200),
        test_listed: test_point(section, "test_listed"),
        test_unlisted: test_point(section, "test_unlisted"),
        servers: servers(section, timeout),
    })
}

pub(super) fn auth(section: &mut Section<'_>, timeout: Duration, class: EngineClass) -> Kind {
    by_envelope(section, class);
    section.require("authserv_id", "\"mx.example.com\"");
    let id = section.read("authserv_id", None, quoted, |value| match string(value)? {
        text if is_host(&text) => Ok(text),
        text => Err(Wrong::new(
            format!("{text:?} is not a host name"),
            "write the name by which your servers know the relay: \"mx.example.com\"",
        )),
    });
    let words = [("report", false), ("obey", true)];
    let obey_dmarc = section.choice("dmarc", Some(false), &words) == Some(true);
    let mut score = |key| {
        let score = section.number(key, Some(0.0), 0.0..=SCORE_MAX);
        score.unwrap_or_default()
    };
    let scores = Scores {
        spf_fail: score("spf_fail"),
        spf_softfail: score("spf_softfail"),
        dkim_fail: score("dkim_fail"),
        dmarc_fail: score("dmarc_fail"),
    };
    Kind::Auth(AuthSettings {
        authserv_id: id.unwrap_or_default(),
        scores,
        obey_dmarc,
        max_signatures: section.count("max_signatures", 10, 1..=50),
        timeout,
        // SPF, DKIM and ARC together have half of the time; DMARC follows (scan::engine::auth).
        servers: servers(section, timeout / 2),
    })
}

/// Refuses the classes whose answers the relay uses for all messages of the same content (guard::coalesce): the result of one
/// sender would count for another sender.
fn by_envelope(section: &mut Section<'_>, class: EngineClass) {
    if matches!(class, EngineClass::Av | EngineClass::Content) {
        section.complain(
            "class",
            "the answers of this engine are about the sender of a message, not about its content",
            "write class = \"spam\" or class = \"auth\"",
        );
    }
}

/// Reads the name servers. A query has two fifths of `timeout`, so that two queries and a margin fit into it.
fn servers(section: &mut Section<'_>, timeout: Duration) -> NameServers {
    NameServers {
        addresses: section.list("resolver", Some(Vec::new()), plain, server),
        patience: timeout * 2 / 5,
    }
}

fn server(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        let fix = match text.parse::<IpAddr>() {
            Ok(address) => format!("write \"{}\"", SocketAddr::new(address, 53)),
            Err(_) => "write \"127.0.0.1:53\" or \"[::1]:53\"".to_owned(),
        };
        Wrong::new(
            format!("{text:?} is not the address and port of a name server"),
            fix,
        )
    })
}

fn zone(text: &str) -> Result<String, Wrong> {
    let bare = text.trim_end_matches('.').to_ascii_lowercase();
    match is_host(&bare) && bare.parse::<IpAddr>().is_err() {
        true => Ok(bare),
        false => Err(Wrong::new(
            format!("{text:?} is not a zone"),
            "write the domain of the list: \"zen.example.org\"",
        )),
    }
}

/// Reads an optional entry for probes: an address or a name.
fn test_point(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    let text = section.optional_text(key)?;
    if text.parse::<IpAddr>().is_ok() || is_host(&text) {
        return Some(text);
    }
    section.complain(
        key,
        format!("{text:?} is neither an address nor a name"),
        "write \"127.0.0.2\" or \"test\"",
    );
    None
}

/// Parses the meaning of an answer: `ADDRESS|NETWORK|&BITS KIND SCORE NAME`.
fn answer(text: &str) -> Result<DnsAnswer, Wrong> {
    let wrong = |what: &str| {
        Wrong::new(
            format!("{text:?} {what}"),
            "write answer, kind, score and name: \"127.0.0.2 spam 5.0 listed\", \"127.0.0.4/30 …\", \"&64 …\"",
        )
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let [which, kind, score, name] = words[..] else {
        return Err(wrong("does not have four words"));
    };
    let listed = match which.strip_prefix('&') {
        Some(bits) => match bits.parse() {
            Ok(bits @ 1..) => Listed::Bits(bits),
            _ => return Err(wrong("has no number from 1 to 255 after its &")),
        },
        None => Listed::In(code(which)?),
    };
    let kind = FindingKind::ALL.into_iter().find(|k| k.as_str() == kind);
    let kind = kind.ok_or_else(|| wrong("has no kind of finding as its second word"))?;
    let score: Option<f64> = score.parse().ok();
    let score = score.filter(|score| (-SCORE_MAX..=SCORE_MAX).contains(score));
    Ok(DnsAnswer {
        listed,
        kind,
        score: score.ok_or_else(|| wrong("has no score from -1000 to 1000 as its third word"))?,
        name: name.to_owned(),
    })
}

/// Parses an address or a network of answers. All answers are within 127.0.0.0/8 (RFC 5782 2.1).
fn code(text: &str) -> Result<Ipv4Net, Wrong> {
    match network(text)? {
        IpNet::V4(net) if net.addr().is_loopback() && net.prefix_len() >= 8 => Ok(net),
        other => Err(Wrong::new(
            format!("\"{other}\" is not within 127.0.0.0/8, the network of all answers"),
            "write \"127.0.0.2\" or \"127.0.0.0/8\"",
        )),
    }
}
