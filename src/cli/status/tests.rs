use std::io;

use clap::Parser as _;
use jiff::tz::TimeZone;
use ulid::Ulid;

use super::*;
use crate::admin::{Late, Waits, WaitsFor, What};
use crate::delivery::{HopStatus, PaceState};
use crate::incident::{Kind, Story, Subject, Touched};
use crate::measure::DelayComparison;
use crate::pipeline::Shortage;
use crate::scan::Health;
use crate::store::contract::at;
use crate::store::{Cause, Failing, Lane, LateMail, Recovery};
use crate::verdict::Reason;

/// The id of a late message.
const EXAMPLE_ID: &str = "01M8PYQKPSTD0T7M0AV5DA7YG0";

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
        refused_for: None,
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
        in_session: false,
        failing: None,
        example: Some(EXAMPLE_ID.parse().expect("an id")),
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
        told.contains("Nothing is late: no message has waited for 60 s."),
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
        refused_for: Some(Shortage::Wait {
            engine: "clamd".into(),
        }),
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
            "some senders keep their mail (1,234 refused so far), because mail waits too long for a slot of engine clamd",
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

/// Mail on which an engine that works for other mail fails again and again.
fn failing(lane: Lane) -> LateMail {
    LateMail {
        lane,
        cause: Some(Cause::Engine("rspamd".to_owned())),
        failing: Some(Failing {
            tries: if lane == Lane::Scan { 7 } else { 0 },
            reason: Reason::EngineError,
            said: "Can't allocate memory".to_owned(),
            held_at: (lane == Lane::Scan).then(|| at(3600)),
        }),
        messages: 2,
        ..late_mail().remove(0)
    }
}

/// Mail on which a healthy engine fails each time is not told to be on its way: the engine, its error, the number of tries and
/// the end are named, and what a person can do. While the engine is down, that is what matters.
#[test]
fn mail_on_which_an_engine_fails_is_told() {
    let told = shown(&status("closed", vec![failing(Lane::Scan)]), None);
    let expected = "2 messages wait for engine rspamd, now healthy, which fails on them (7 tries, engine-error: Can't allocate \
                    memory); the oldest since 07:46:00 (14m), goes to quarantine at 09:00:00\n  do: Engine rspamd works, but not \
                    for this mail: `spillway queue show 01M8PYQKPSTD0T7M0AV5DA7YG0` shows";
    assert!(told.contains(expected), "{told}");
    assert!(!told.contains("Nothing"), "{told}");
    let told = shown(&status("closed", vec![failing(Lane::Held)]), None);
    let expected = "wait in quarantine for engine rspamd, now healthy, which fails on them (engine-error: Can't";
    assert!(told.contains(expected), "{told}");
    assert!(told.contains("`spillway quarantine release 01M8"), "{told}");
    let mut out = failing(Lane::Scan);
    out.cause = Some(Cause::Engine("clamd".to_owned()));
    let told = shown(&status("open (failing)", vec![out]), None);
    assert!(told.contains("engine clamd, down since"), "{told}");
    assert!(!told.contains("fails on them"), "{told}");
}

/// Mail in work that is late names the engine that has had a message for longest, or the next hop, and a sender who waits.
#[test]
fn mail_in_work_names_who_is_slow() {
    let scan = LateMail {
        cause: None,
        in_work: true,
        in_session: true,
        messages: 2,
        ..late_mail().remove(0)
    };
    let delivery = LateMail {
        lane: Lane::Delivery,
        next_hop: "mx".into(),
        messages: 1,
        ..scan.clone()
    };
    let with = |age: u64, mail: &LateMail| {
        let mut status = status("closed", Vec::new());
        status.engines[1].oldest_call_age = Some(Duration::from_secs(age));
        status.engines[1].running = 3;
        let waits = Waits {
            at_work: Vec::new(),
            engines: status.engines.clone(),
            next_hops: status.next_hops.clone(),
        };
        let stored = status.stored.as_mut().expect("stored");
        stored.late = Late::all(vec![mail.clone()], &waits);
        shown(&status, None)
    };
    for (told, words) in [
        (
            with(71, &scan),
            "2 messages wait for a scan at engine rspamd (healthy, 3 of 4 slots taken, the oldest message there for 71 s), and \
             their senders for the reply; the oldest since 07:46:00 (14m)\n  do: Engine rspamd takes long:",
        ),
        (
            with(59, &scan),
            "2 messages wait for a scan that is under way, and their senders for the reply; the oldest",
        ),
        (
            with(71, &delivery),
            "1 message waits for a delivery to next hop mx that is under way (down since",
        ),
    ] {
        assert!(told.contains(words), "{words}: {told}");
        assert!(
            told.lines().nth(1).is_some_and(|now| now.ends_with("14m")),
            "{told}"
        );
    }
}

/// An engine that is down says when it is probed next.
#[test]
fn the_next_probe_is_told() {
    let mut status = status("open (failing)", Vec::new());
    status.engines[0].replicas[0].next_probe_in = Some(Duration::from_millis(11_500));
    let told = shown(&status, None);
    assert!(
        told.contains("(open (failing)), next probe in 12 s, 0 of 4"),
        "{told}"
    );
    status.engines[0].replicas[0].drained = true;
    let told = shown(&status, None);
    assert!(!told.contains("next probe in"), "{told}");
}

/// Each command that a status advises works as it stands there: a person copies it at night.
#[test]
fn commands_can_be_copied() {
    let base = late_mail();
    let interceptor = LateMail {
        cause: Some(Cause::Interceptor(EXAMPLE_ID.to_owned())),
        ..base[0].clone()
    };
    let plain = LateMail {
        cause: None,
        ..base[0].clone()
    };
    let (put_off, unrouted) = (
        LateMail {
            next_try: Some(at(9)),
            ..base[1].clone()
        },
        LateMail {
            next_hop: "".into(),
            ..base[1].clone()
        },
    );
    let all = [
        base[0].clone(),
        base[1].clone(),
        failing(Lane::Scan),
        failing(Lane::Held),
        interceptor,
        plain,
        put_off,
        unrouted,
    ];
    let mut commands = 0;
    for breaker in ["closed", "open (failing)", "half-open", "ramp (2 at once)"] {
        for drained in [false, true] {
            for mail in &all {
                let mut status = status(breaker, Vec::new());
                status.engines[0].replicas[0].drained = drained;
                status.engines[1].oldest_call_age = Some(Duration::from_secs(99));
                if drained {
                    status.next_hops[0].state = PaceState::Free;
                }
                let waits = Waits {
                    at_work: Vec::new(),
                    engines: status.engines.clone(),
                    next_hops: status.next_hops.clone(),
                };
                for late in Late::all(vec![mail.clone()], &waits) {
                    let parts = late.advice.split('`');
                    for command in parts.filter(|part| part.starts_with("spillway ")) {
                        let words: Vec<_> = command.split(' ').collect();
                        let mut words_left = words.iter();
                        assert!(
                            !words_left.any(|word| ["NAME", "ID", "TEXT"].contains(word)),
                            "{command}"
                        );
                        if let Err(error) = crate::cli::Cli::try_parse_from(&words) {
                            panic!("{command}: {error}");
                        }
                        commands += 1;
                    }
                }
            }
        }
    }
    assert!(commands > 50, "{commands}");
}

/// On a terminal that is too low, what matters most is left: the delay, each thing that is late, the advice about the oldest if
/// there is room, and what is in trouble. No line is too wide, and the last one says that there is more.
#[test]
fn few_lines_show_what_matters() {
    let mut status = status("open (failing)", late_mail());
    let hop = status.next_hops[0].clone();
    status.next_hops = (0..30)
        .map(|n| HopStatus {
            name: format!("mx{n}").into(),
            ..hop.clone()
        })
        .collect();
    let brief = |status: &Status, width, lines| {
        let mut out = Vec::new();
        let mut terminal = Terminal {
            out: &mut out,
            err: &mut io::sink(),
            input: &mut io::empty(),
            width: Some(width),
            interactive: false,
            zone: TimeZone::UTC,
            now: at(0),
            json: false,
        };
        super::brief(status, (lines, 77), &mut terminal).expect("written");
        String::from_utf8(out).expect("UTF-8")
    };
    for (width, lines) in [(80, 23), (40, 9), (40, 3), (20, 2)] {
        let told = brief(&status, width, lines);
        let told: Vec<&str> = told.lines().collect();
        assert_eq!(told.len(), lines, "{told:?}");
        let is_narrow = |line: &&str| line.chars().count() <= usize::from(width);
        assert!(told.iter().all(is_narrow), "{told:?}");
        assert!(told[lines - 1].starts_with("(77 lines in all"), "{told:?}");
    }
    let told = brief(&status, 40, 9);
    for words in [
        "p50 40ms, p99 1.2s, oldest 14m\n",
        "34 messages wait for engine clamd, down…\n",
        "10,000 or more messages wait for next h…\n",
        "engine clamd: down since 07:46:40 (open…\n",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    status.next_hops.clear();
    let told = brief(&status, 80, 23);
    assert!(
        told.contains("do: Repair the engine (`spillway engine test clamd`"),
        "{told}"
    );
}
