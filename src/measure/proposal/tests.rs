use super::*;
use crate::measure::{MISSED_LOST, Measured, Series};

const SECOND: u64 = 1000;

fn at(period: i64) -> Timestamp {
    Timestamp::from_second(period * 600).expect("a time")
}

fn add(times: &mut EngineTimes, period: i64, measured: Measured, class: &str, all: &[(u64, u64)]) {
    let mut latencies = Latencies::default();
    for (count, milliseconds) in all {
        (0..*count).for_each(|_| latencies.add(Duration::from_millis(*milliseconds)));
    }
    let series = Series {
        measured,
        name: "clamd".into(),
        class: class.to_owned().into(),
    };
    times.add(at(period), &series, &latencies);
}

/// Scans of tiny mail in one period: counts, each with its duration in milliseconds.
fn scans(all: &[(u64, u64)]) -> EngineTimes {
    let mut times = EngineTimes::default();
    add(&mut times, 0, Measured::Scan, "below-64k", all);
    times
}

/// The defaults of clamd, but four slots.
fn defaults() -> Configured {
    Configured {
        timeout: Duration::from_secs(5),
        slow: Duration::from_millis(500),
        stall_after: Duration::from_millis(250),
        limit: Duration::from_secs(150),
        wait: Duration::from_secs(1),
        slots: 4,
        replicas: 1,
    }
}

/// The proposals in short: `keep`, `?` for too few scans, else the value, with `!` if the configured one contradicts.
fn short(configured: &Configured, times: &EngineTimes, found_late: u64) -> [String; 3] {
    let known = Known {
        found_late,
        ..known(Out::No)
    };
    told(propose(configured, times, &known))
}

fn known(out: Out) -> Known {
    Known {
        found_late: 0,
        out,
        now: at(99),
        began: None,
    }
}

/// Proposals in short: `none` for one that no threshold helps, otherwise as [`short`].
fn told(proposals: Proposals) -> [String; 3] {
    proposals.settings.map(|proposal| match proposal.advice {
        Advice::Keep => "keep".to_owned(),
        Advice::TooFew => "?".to_owned(),
        Advice::NoThresholdHelps => "none".to_owned(),
        Advice::Change => {
            let mark = if proposal.contradicts { "!" } else { "" };
            proposal.proposed.expect("a value") + mark
        }
    })
}

/// Of an engine that is usually fast, what is configured is kept unless it does harm; a slower engine gets more time.
#[test]
fn times_are_proposed_from_the_tail() {
    let with = |timeout: u64, slow: u64| Configured {
        timeout: Duration::from_millis(timeout),
        slow: Duration::from_millis(slow),
        slots: 40,
        ..defaults()
    };
    let slower: &[(u64, u64)] = &[(7600, 900), (400, 6 * SECOND)];
    for (configured, all, wanted) in [
        (defaults(), &[(499, 10)][..], ["?", "?", "?"]),
        (defaults(), &[(500, 10)], ["keep", "keep", "keep"]),
        (defaults(), &[(12_000, 1)], ["keep", "keep", "keep"]),
        // One answer in a thousand may be late; then it is the timeout that is at fault. The largest share of late answers.
        (
            defaults(),
            &[(9990, 10), (10, 6 * SECOND)],
            ["keep", "keep", "keep"],
        ),
        (
            defaults(),
            &[(9980, 10), (20, 6 * SECOND)],
            ["20s", "keep", "keep"],
        ),
        (
            defaults(),
            &[(9800, 10), (200, 6 * SECOND)],
            ["20s!", "10s", "keep"],
        ),
        // Three times slower than at the last look.
        (with(2000, 500), slower, ["20s!", "10s!", "keep"]),
        // Harmless but far too long.
        (
            with(30_000, 500),
            &[(9000, 100), (1000, 1900)],
            ["5s", "2500ms!", "keep"],
        ),
        (with(20_000, 500), &[(9999, 100)], ["keep", "keep", "keep"]),
        (with(5000, 5000), &[(9999, 20)], ["keep", "200ms", "keep"]),
        (with(5000, 2000), &[(9999, 20)], ["keep", "keep", "keep"]),
        // Nothing can be longer than the limit.
        (
            with(150_000, 500),
            &[(980, 10), (20, 200 * SECOND)],
            ["keep", "75s", "keep"],
        ),
        (
            with(100_000, 500),
            &[(980, 10), (20, 110 * SECOND)],
            ["150s!", "75s", "keep"],
        ),
    ] {
        let seen = short(&configured, &scans(all), 0);
        assert_eq!(seen, wanted, "{configured:?} {all:?}");
    }
    // A late answer that found something may be the one that counts.
    let long = with(30_000, 500);
    let all = scans(&[(9990, 100)]);
    assert_eq!(short(&long, &all, 0)[0], "5s");
    assert_eq!(short(&long, &all, 1)[0], "keep");
}

/// The largest usual size decides about `timeout`, and `slow` is about small mail, unless a tenth of what large mail takes is more.
/// A few messages of a size are no usual size.
#[test]
fn each_size_is_looked_at() {
    for (large, wanted) in [
        (&[(99, 30 * SECOND)][..], ["keep", "keep"]),
        (&[(100, 4 * SECOND)], ["keep", "keep"]),
        (&[(200, 9 * SECOND)], ["20s!", "keep"]),
        // Ten late answers are enough if they are many for their size.
        (&[(991, SECOND), (9, 6 * SECOND)], ["keep", "keep"]),
        (&[(990, SECOND), (10, 6 * SECOND)], ["20s!", "keep"]),
    ] {
        let mut times = scans(&[(9000, 10)]);
        add(&mut times, 0, Measured::Scan, "below-10m", large);
        assert_eq!(short(&defaults(), &times, 0)[..2], wanted, "{large:?}");
    }
    let long = Configured {
        timeout: Duration::from_secs(60),
        slow: Duration::from_secs(10),
        ..defaults()
    };
    let mut times = scans(&[(9000, 10)]);
    assert_eq!(short(&long, &times, 0)[1], "200ms");
    add(
        &mut times,
        0,
        Measured::Scan,
        "from-10m",
        &[(100, 9 * SECOND)],
    );
    assert_eq!(short(&long, &times, 0)[1], "keep", "1s would be a tenth");
}

/// An outage says nothing about the engine as it usually is, and the reason says that it was left out.
#[test]
fn an_outage_changes_no_proposal() {
    let mut times = EngineTimes::default();
    for period in 0..10 {
        add(
            &mut times,
            period,
            Measured::Scan,
            "below-64k",
            &[(1000, 10)],
        );
    }
    let all = |times: &EngineTimes| propose(&defaults(), times, &known(Out::No)).settings;
    let before = all(&times);
    add(
        &mut times,
        10,
        Measured::Scan,
        "below-64k",
        &[(50, 10), (40, 100 * SECOND)],
    );
    add(&mut times, 10, Measured::Wait, "below-64k", &[(50, 900)]);
    add(
        &mut times,
        10,
        Measured::Missed,
        MISSED_LOST,
        &[(4, 150 * SECOND)],
    );
    add(&mut times, 10, Measured::Missed, "busy", &[(500, SECOND)]);
    assert_ne!(short(&defaults(), &times, 0), ["keep", "keep", "keep"]);
    add(
        &mut times,
        10,
        Measured::Missed,
        "breaker-open",
        &[(900, 0)],
    );
    let after = all(&times);
    for (before, after) in before.iter().zip(&after) {
        let suffix = " (without 1 outage of 10 minutes)";
        assert_eq!(after.reason, before.reason.clone() + suffix);
        assert_eq!(after.advice, Advice::Keep);
    }
}

/// Slots are enough if the busiest period takes at most 70 % of them, fresh mail hardly waits, and none of it finds no slot. The
/// proposal is for each replica. Mail that found no slot says nothing while the slots are hardly used: it came under fewer slots.
#[test]
fn slots_are_proposed_from_use_and_waits() {
    let two = Configured {
        slots: 2,
        replicas: 2,
        ..defaults()
    };
    let idle = Configured {
        slots: 30,
        ..defaults()
    };
    for (configured, scanned, waits, busy, wanted) in [
        (defaults(), 1600, 10, 0, "keep"),
        (defaults(), 2000, 10, 0, "5"),
        (two, 1600, 10, 0, "keep"),
        (two, 2000, 10, 0, "3"),
        (defaults(), 1000, 400, 0, "keep"),
        (defaults(), 1000, 600, 0, "6"),
        (two, 1000, 600, 0, "3"),
        (defaults(), 1000, 10, 1, "keep"),
        (defaults(), 1000, 10, 5, "6"),
        (defaults(), 1000, 10, 50, "6!"),
        (idle, 1000, 10, 50, "keep"),
    ] {
        let mut times = scans(&[(scanned, SECOND)]);
        add(
            &mut times,
            0,
            Measured::Wait,
            "below-64k",
            &[(scanned, waits)],
        );
        add(&mut times, 0, Measured::Missed, "busy", &[(busy, SECOND)]);
        let seen = short(&configured, &times, 0);
        assert_eq!(seen[2], wanted, "{configured:?} {scanned} {waits} {busy}");
    }
}

/// Ten usual periods with 6,000 answers each, then one in which the breaker opened: `slow` answers came, the rest is missing.
fn stalled(slow: &[(u64, u64)], missing: &str) -> EngineTimes {
    let mut times = EngineTimes::default();
    for period in 0..10 {
        add(
            &mut times,
            period,
            Measured::Scan,
            "below-64k",
            &[(6000, 10)],
        );
    }
    let mut all = vec![(1000, 10)];
    all.extend(slow);
    add(&mut times, 10, Measured::Scan, "below-64k", &all);
    add(&mut times, 10, Measured::Missed, missing, &[(900, 0)]);
    times
}

/// In an outage no setting is simply kept: late answers tell a slow engine from a dead one. Those of a slow engine propose what
/// lets mail through, whatever a day of fast scans says; of a dead or failing engine no threshold helps; few answers are too few.
#[test]
fn an_outage_tells_a_slow_engine_from_a_dead_one() {
    let open = "breaker-open";
    for (slow, missing, wanted, reason) in [
        (
            &[(20, 6 * SECOND), (1, 9 * SECOND)][..],
            open,
            ["20s!", "10s!", "89!"],
            "slow, not dead: 21 late answers came after 6.3 s (p50), 9.4 s (p99)",
        ),
        (
            &[(4, 6 * SECOND)],
            open,
            ["?", "?", "?"],
            "slow, not dead: 4 late answers came after 6.3 s (p50), 6.3 s (p99)",
        ),
        (
            &[(200, 2 * SECOND)],
            open,
            ["keep", "2500ms!", "30!"],
            "slow, not dead: 200 answers took longer than slow = 500ms: 2.1 s (p50), 2.1 s (p99); none was late",
        ),
        (&[], open, ["none"; 3], "dead: no late answer came"),
        (
            &[],
            "failed",
            ["none"; 3],
            "failing: 900 scans ended with an error or a closed connection, and no late answer came",
        ),
    ] {
        let times = stalled(slow, missing);
        let down = at(10) + Duration::from_secs(321);
        let out = Out::Since {
            at: down,
            period: at(10),
        };
        for (out, since) in [(Out::Unknown, None), (out, Some(down))] {
            let proposals = propose(&defaults(), &times, &known(out));
            let outage = proposals.outage.clone().expect("an outage");
            assert_eq!(outage.since, since, "not the start of the period");
            assert_eq!((&*outage.reason, outage.from), (reason, at(10)));
            assert_eq!(outage.missing, 900);
            let threshold = "a stall opens the breaker when no scan ends for 250 ms (slow = 500ms x guard.stall_factor)";
            assert_eq!(outage.threshold, threshold);
            assert_eq!(told(proposals), wanted, "{slow:?} {missing}");
        }
        let over = propose(&defaults(), &times, &known(Out::No));
        assert_eq!(
            (over.outage.clone(), told(over)),
            (None, ["keep"; 3].map(String::from))
        );
    }
    // A period without outage after it ends it, if nobody knows better.
    let mut times = stalled(&[], open);
    add(&mut times, 11, Measured::Scan, "below-64k", &[(1000, 10)]);
    assert_eq!(
        propose(&defaults(), &times, &known(Out::Unknown)).outage,
        None
    );
    // Without a full period before the outage, nobody knows how much mail comes.
    let mut times = scans(&[(1000, 10), (20, 6 * SECOND)]);
    add(&mut times, 0, Measured::Missed, open, &[(900, 0)]);
    let seen = told(propose(&defaults(), &times, &known(Out::Unknown)));
    assert_eq!(seen, ["20s!", "10s!", "?"]);
}

/// An engine that has become twice as slow within the last hour is judged by that hour, not by the fast days before.
#[test]
fn a_slower_engine_is_judged_by_its_last_hour() {
    for (milliseconds, wanted) in [
        (900, ["keep", "2500ms!", "9"]),
        (400, ["keep", "keep", "keep"]),
    ] {
        let mut times = EngineTimes::default();
        for period in 0..60 {
            add(
                &mut times,
                period,
                Measured::Scan,
                "below-64k",
                &[(4000, 300)],
            );
        }
        for period in 97..99 {
            let slower = [(3990, milliseconds), (10, 3 * milliseconds)];
            add(&mut times, period, Measured::Scan, "below-64k", &slower);
        }
        let seen = propose(&defaults(), &times, &known(Out::Unknown));
        let suffix = " (of the last hour: it takes 2.8 times as long as before)";
        let has_suffix = seen.settings.iter().all(|p| p.reason.ends_with(suffix));
        assert_eq!(has_suffix, milliseconds == 900, "{:?}", seen.settings);
        assert_eq!(told(seen), wanted, "{milliseconds}");
    }
}

/// A reason is one sentence with the numbers that it comes from.
#[test]
fn reasons_have_their_numbers() {
    let mut times = scans(&[(7680, 900), (320, 3000)]);
    add(&mut times, 0, Measured::Wait, "below-64k", &[(8000, 2)]);
    let configured = Configured {
        timeout: Duration::from_secs(2),
        slots: 40,
        ..defaults()
    };
    let seen = propose(&configured, &times, &known(Out::No));
    let seen = seen.settings.map(|proposal| proposal.reason);
    let wanted = [
        "4.0 % of 8,000 answers took longer, and each of them was a missing answer; 99.9 % of the answers about mail below 64 KiB \
         came within 3.1 s",
        "99 % of 8,000 answers about mail below 1 MiB came within 3.1 s, and 100 % counted as slow, which is evidence against \
         mail and engine",
        "in the busiest 10 minutes 12.9 of 40 slots were taken on average, 99 % of fresh messages waited at most 2.0 ms, and 0 of \
         8,000 messages got none",
    ];
    assert_eq!(seen, wanted);
}

/// An engine that takes longer than `timeout` needs a longer one, which cannot be longer than `limit`: that is said.
#[test]
fn a_timeout_at_its_limit_asks_for_a_longer_limit() {
    let configured = Configured {
        limit: Duration::from_secs(5),
        ..defaults()
    };
    let times = scans(&[(9000, 10), (1000, 6 * SECOND)]);
    let known = Known {
        found_late: 0,
        out: Out::No,
        now: at(99),
        began: None,
    };
    let [timeout, ..] = propose(&configured, &times, &known).settings;
    assert_eq!(timeout.advice, Advice::Keep);
    assert!(timeout.reason.contains("raise limit first"), "{timeout:?}");
}

/// Proposed values are round, and never shorter than what they are made from.
#[test]
fn nice_durations_are_round_and_not_shorter() {
    for (milliseconds, wanted) in [
        (1, "1ms"),
        (4, "5ms"),
        (201, "300ms"),
        (1000, "1s"),
        (8001, "10s"),
        (50_001, "1m"),
        (61_000, "90s"),
        (130_000, "3m"),
        (3_600_001, "120m"),
    ] {
        assert_eq!(text(nice(Duration::from_millis(milliseconds))), wanted);
    }
    for number in 1..20_000 {
        let duration = Duration::from_millis(number * 7);
        assert!(nice(duration) >= duration, "{duration:?}");
    }
    assert_eq!(text(Duration::from_millis(1500)), "1500ms");
    assert_eq!(grouped(1_234_567), "1,234,567");
    assert_eq!(grouped(999), "999");
}
