use std::io;

use jiff::tz::TimeZone;
use ulid::Ulid;

use super::*;
use crate::admin::{Late, Waits, WaitsFor, What};
use crate::delivery::HopStatus;
use crate::incident::{Kind, Story, Subject, Touched};
use crate::measure::DelayComparison;
use crate::scan::Health;
use crate::store::contract::at;
use crate::store::{Cause, Lane, LateMail, Recovery};

fn status(breaker: &str, late: Vec<LateMail>) -> Status {
    let clamd = match breaker {
        "closed" => Health::sample("clamd"),
        breaker => Health::sample_in("clamd", breaker, at(-800)),
    };
    let engines = vec![clamd, Health::sample("rspamd")];
    let waits = Waits {
        at_work: Vec::new(),
        engines: engines.clone(),
        next_hops: vec![HopStatus {
            at_once: Some(1),
            until: Some(at(9)),
            said: Some("no connection".to_owned()),
            ..HopStatus::sample_dead("mx", at(-300))
        }],
    };
    let lane = |messages: u64, oldest| LaneStats {
        messages,
        octets: 4096 * messages,
        oldest,
    };
    let scans = late.first().map(|mail| mail.oldest);
    Status {
        version: "1.2.3".to_owned(),
        hostname: "relay.example".to_owned(),
        config: "abc".to_owned(),
        config_file: None,
        started: at(-90_000),
        draining: false,
        not_ready: None,
        delay: DelayComparison {
            now: DelayTimes {
                messages: 312,
                p50_ms: Some(40),
                p99_ms: Some(1200),
            },
            last_hour: DelayTimes {
                messages: 4021,
                p50_ms: Some(38),
                p99_ms: Some(840_000),
            },
            week_ago: DelayTimes::default(),
        },
        refused: None,
        listeners: Vec::new(),
        sessions: 3,
        memory_available: 64 << 20,
        stored: Some(Stored {
            scan: lane(34, scans),
            late: Late::all(late, &waits),
            ..Stored::default()
        }),
        engines,
        next_hops: waits.next_hops,
        not_recorded: Vec::new(),
        recovery: Recovery::default(),
    }
}

fn late_mail() -> Vec<LateMail> {
    let mail = LateMail {
        lane: Lane::Scan,
        next_hop: "".into(),
        cause: Some(Cause::Engine("clamd".to_owned())),
        in_work: false,
        next_try: None,
        messages: 34,
        more: false,
        oldest: at(-840),
    };
    vec![
        mail.clone(),
        LateMail {
            lane: Lane::Delivery,
            next_hop: "mx".into(),
            cause: None,
            messages: 10_000,
            more: true,
            oldest: at(-290),
            ..mail
        },
    ]
}

fn shown(status: &Status, width: Option<u16>) -> String {
    let mut out = Vec::new();
    let mut terminal = Terminal {
        out: &mut out,
        err: &mut io::sink(),
        input: &mut io::empty(),
        width,
        interactive: false,
        zone: TimeZone::UTC,
        now: at(0),
        json: false,
    };
    show(status, &mut terminal).expect("written");
    String::from_utf8(out).expect("UTF-8")
}

/// The first screen answers in 80 columns: how long mail takes, what is late, why, since when, and what to do.
#[test]
fn the_first_lines_answer_the_questions() {
    let told = shown(&status("open (failing)", late_mail()), Some(80));
    let first: Vec<&str> = told
        .lines()
        .take_while(|l| !l.starts_with("new mail"))
        .collect();
    for line in &first {
        assert!(line.len() <= 80, "{line}");
    }
    assert_eq!(
        first.join("\n").trim_end(),
        include_str!("late-80.txt").trim_end()
    );
}

/// Nothing is late once everything has gone out, and a window without mail says so instead of showing 0 ms.
#[test]
fn nothing_is_late() {
    let mut well = status("closed", Vec::new());
    well.delay.now = DelayTimes::default();
    let told = shown(&well, Some(80));
    assert!(
        told.contains("Nothing is late: no stored message has waited for 60 s."),
        "{told}"
    );
    let now = told.lines().nth(1).expect("a line");
    assert!(
        now.starts_with("now (5 min)") && now.contains("no mail"),
        "{now}"
    );
    assert!(now.ends_with("none"), "no message waits: {now}");
}

/// A store that does not answer hides how much is late: that is said, and never "nothing is late". The same holds while admission
/// refuses mail, or while none is accepted.
#[test]
fn what_is_not_known_is_not_nothing() {
    let well = || status("closed", Vec::new());
    let hangs = Status {
        stored: None,
        ..well()
    };
    let refuses = Status {
        refused: Some(1234),
        ..well()
    };
    let full = Status {
        not_ready: Some("the store is full".to_owned()),
        ..well()
    };
    for (status, words) in [
        (
            hangs,
            "how much mail waits is not known: the store does not answer",
        ),
        (
            refuses,
            "some senders keep their mail (1,234 refused so far)",
        ),
        (full, "because none is accepted: the store is full"),
    ] {
        let told = shown(&status, None);
        assert!(told.contains(words), "{told}");
        assert!(!told.contains("Nothing is late"), "{told}");
        assert!(told.contains("\n  do: "), "{told}");
    }
}

/// A program reads the same causes, and a status is read back as it was written.
#[test]
fn programs_read_the_same() {
    let status = status("open (failing)", late_mail());
    let json = serde_json::to_value(&status).expect("JSON");
    assert_eq!(json["delay"]["now"]["p99_ms"], 1200);
    let late = &json["late"];
    assert_eq!(late[0]["cause"]["engine"], "clamd");
    assert_eq!(late[0]["waits_for"]["what"], "engine");
    assert_eq!(late[0]["waits_for"]["state"], "down");
    assert_eq!(late[0]["messages"], 34);
    assert_eq!(late[1]["waits_for"]["what"], "next-hop");
    assert_eq!(late[1]["more"], true);
    assert!(
        late[0]["advice"]
            .as_str()
            .is_some_and(|text| text.contains("engine test clamd"))
    );
    let read: Status = serde_json::from_value(json).expect("a status");
    assert_eq!(read, status);
}

/// Each kind of late mail gets words in the plural, and advice.
#[test]
fn each_cause_has_words_and_advice() {
    let base = late_mail().remove(0);
    let interceptor = Some(Cause::Interceptor("01X".to_owned()));
    let gone = Some(Cause::Engine("gone".to_owned()));
    let healthy = Some(Cause::Engine("rspamd".to_owned()));
    for (mail, breaker, what, words) in [
        (
            LateMail {
                cause: interceptor,
                ..base.clone()
            },
            "closed",
            What::Interceptor,
            "wait for the end of interceptor 01X;",
        ),
        (
            LateMail {
                cause: gone,
                ..base.clone()
            },
            "closed",
            What::Engine,
            "engine gone, which is not configured any more;",
        ),
        (
            LateMail {
                cause: healthy,
                ..base.clone()
            },
            "closed",
            What::Engine,
            "wait for their turn at engine rspamd, now healthy;",
        ),
        (
            LateMail {
                cause: None,
                ..base.clone()
            },
            "closed",
            What::Turn,
            "wait for their turn for a scan;",
        ),
        (
            LateMail {
                cause: None,
                ..base.clone()
            },
            "half-open",
            What::Turn,
            "wait for their turn for a scan (engine clamd is down since",
        ),
        (
            LateMail {
                cause: None,
                in_work: true,
                ..base.clone()
            },
            "closed",
            What::Work,
            "wait for a scan that is under way;",
        ),
        (
            LateMail {
                cause: None,
                next_try: Some(at(9)),
                ..base.clone()
            },
            "closed",
            What::Retry,
            "wait for their next scan from",
        ),
        (
            LateMail {
                lane: Lane::Held,
                ..base.clone()
            },
            "open (failing)",
            What::Engine,
            "wait in quarantine for engine clamd, down since",
        ),
        (
            LateMail {
                lane: Lane::Delivery,
                cause: None,
                ..base.clone()
            },
            "closed",
            What::Route,
            "wait for a next hop that takes",
        ),
        (
            LateMail {
                messages: 1,
                ..base
            },
            "open (failing)",
            What::Engine,
            "1 message waits for engine clamd, down since",
        ),
    ] {
        let status = status(breaker, vec![mail]);
        let late = &status.stored.as_ref().expect("stored").late[0];
        assert_eq!(late.waits_for.what, what, "{words}");
        assert!(!late.advice.is_empty(), "{words}");
        let told = shown(&status, None);
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// Beside each cause stands the story of its trouble, also where only the engine in trouble can be the cause.
#[test]
fn each_cause_names_its_incident() {
    let story = |cause| Story {
        id: Ulid::generate(),
        cause,
        kind: Kind::BreakerOpened,
        title: String::new(),
        began: at(-800),
        back: None,
        ended: None,
        touched: Touched::default(),
    };
    let stories = [
        story(Subject::NextHop("clamd".to_owned())),
        story(Subject::Engine {
            name: "clamd".to_owned(),
            replica: None,
        }),
        story(Subject::NextHop("mx".to_owned())),
    ];
    let mut mail = late_mail();
    mail.push(LateMail {
        cause: None,
        next_try: Some(at(9)),
        ..mail[0].clone()
    });
    mail.push(LateMail {
        cause: Some(Cause::Engine("rspamd".to_owned())),
        ..mail[0].clone()
    });
    let mut status = status("open (failing)", mail);
    let late = &mut status.stored.as_mut().expect("stored").late;
    Late::name_incidents(late, &stories, &status.engines);
    let name = |late: &Late| {
        let place = stories
            .iter()
            .position(|story| Some(story.id) == late.incident);
        (late.mail.lane, place)
    };
    let named: Vec<_> = late.iter().map(name).collect();
    let (scan, delivery) = (Lane::Scan, Lane::Delivery);
    assert_eq!(
        named,
        [
            (scan, Some(1)),
            (scan, Some(1)),
            (scan, None),
            (delivery, Some(2))
        ]
    );
    let told = shown(&status, None);
    assert!(
        told.contains(&format!("(14m); incident {}", stories[1].id)),
        "{told}"
    );
}

/// What a queue lists of one message and what a status counts of many is one knowledge.
#[test]
fn one_message_and_many_wait_for_the_same() {
    let status = status("open (failing)", late_mail());
    let late = &status.stored.as_ref().expect("stored").late[1];
    let one = crate::admin::Waiting {
        several: false,
        ..crate::admin::Waiting::late(&late.mail)
    };
    let clock = |_| "T".to_owned();
    let (waits_for, text) = WaitsFor::of(&one, &status.engines, &status.next_hops, &clock);
    assert_eq!(waits_for, late.waits_for);
    assert_eq!(text, "next hop mx, down since T, next probe T");
}
