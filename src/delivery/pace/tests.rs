//! The laws of the pace, one signal after the other on simulated time.

mod logins;
mod random_histories;
mod simulated_server;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::probing::{PROBE_WAIT_INITIAL, PROBE_WAIT_MAX};
use super::*;

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn deliver(pace: &mut Pace, kind: MailKind, signal: HopSignal, now: Instant) -> Option<PaceChange> {
    let ticket = pace.ask(kind, now).expect("a ticket");
    pace.ended(&ticket, signal, None, now, &mut rng())
}

/// Delivers a stored message of party `number` with this signal.
fn deliver_of(
    pace: &mut Pace,
    signal: HopSignal,
    number: usize,
    now: Instant,
) -> Option<PaceChange> {
    let ticket = pace.ask(MailKind::Waiting, now).expect("a ticket");
    pace.ended(&ticket, signal, Some(&party(number)), now, &mut rng())
}

fn party(number: usize) -> Party {
    Party::User(number.to_string().into())
}

/// Signals of failures after the start of the content.
const AT_CONTENT: [HopSignal; 3] = [
    HopSignal::Broken,
    HopSignal::ThrottledAtEnd,
    HopSignal::LaterAtEnd,
];

/// Time from `now` on at which a stored message may go out.
fn opens(pace: &Pace, now: Instant) -> Instant {
    match pace.room(1, now) {
        (0, until) => until.expect("time alone decides"),
        _ => now,
    }
}

fn dead(now: Instant) -> Pace {
    let mut pace = Pace::new(20);
    for _ in 0..5 {
        deliver(&mut pace, MailKind::Fresh, HopSignal::Unreachable, now);
    }
    assert_eq!(pace.view(now).state, PaceState::Dead);
    pace
}

/// A hop without trouble is free: every message goes out, independent of replies about single messages.
#[test]
fn a_hop_without_trouble_is_free() {
    let (mut pace, now) = (Pace::new(1), Instant::now());
    for _ in 0..1000 {
        pace.ask(MailKind::Fresh, now).expect("free");
    }
    for _ in 0..1000 {
        assert_eq!(
            deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, now),
            None
        );
    }
    assert_eq!(pace.room(77, now), (77, None));
}

/// A throttling reply stops all mail for a pause. Then one message goes out, and the others follow only after it was
/// taken.
#[test]
fn after_a_throttling_reply_one_message_goes_first() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    let under_way: Vec<DeliveryTicket> = (0..20)
        .map(|_| pace.ask(MailKind::Fresh, now).expect("free"))
        .collect();
    for (at, ticket) in under_way.iter().enumerate() {
        let change = pace.ended(ticket, HopSignal::Throttled, None, now, &mut rng());
        let first = matches!(change, Some(PaceChange::Paced(rate)) if rate == RATE_MIN);
        assert_eq!(first, at == 0, "one refusal, however many were under way");
    }
    let refused = pace.ask(MailKind::Waiting, now).expect_err("a pause");
    assert_eq!(refused.reason, RefusalReason::Paced);
    let after = refused.until.expect("the end of the pause");
    assert!((PAUSE_INITIAL / 2..=PAUSE_INITIAL).contains(&(after - now)));
    let trial = pace
        .ask(MailKind::Waiting, after)
        .expect("the pause is over");
    let later = after + Duration::from_secs(60);
    assert_eq!(
        pace.room(9, later).0,
        0,
        "the others wait for the reply to it"
    );
    pace.ended(&trial, HopSignal::Fine, None, later, &mut rng());
    assert_eq!(pace.room(9, later).0, 1);
}

/// Refusals within one second cut the rate once, and each of them causes a pause. A second later the rate is cut again.
#[test]
fn the_rate_is_cut_once_a_second() {
    let (mut pace, start) = (Pace::new(20), Instant::now());
    for _ in 0..500 {
        deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, start);
    }
    let Some(PaceChange::Paced(rate)) =
        deliver(&mut pace, MailKind::Fresh, HopSignal::Throttled, start)
    else {
        panic!("not paced");
    };
    assert!(rate > 10.0 * RATE_MIN, "{rate}");
    let soon = opens(&pace, start);
    assert!(soon < start + RATE_CUT_INTERVAL);
    assert_eq!(
        deliver(&mut pace, MailKind::Waiting, HopSignal::Throttled, soon),
        None
    );
    assert_eq!(pace.view(soon).rate, Some(rate));
    assert!(pace.view(soon).until.is_some(), "but it pauses");
    let later = opens(&pace, soon).max(start + RATE_CUT_INTERVAL);
    let change = deliver(&mut pace, MailKind::Waiting, HopSignal::Throttled, later);
    assert_eq!(change, Some(PaceChange::Cut(RATE_CUT_FACTOR * rate)));
}

/// A deferral that may be about the message counts for the hop only if a large share of the messages is deferred.
#[test]
fn one_deferred_message_does_not_pace_the_hop() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    for signal in [
        HopSignal::Later,
        HopSignal::Later,
        HopSignal::Fine,
        HopSignal::Later,
    ] {
        assert_eq!(deliver(&mut pace, MailKind::Fresh, signal, now), None);
    }
    let mut deferred = 0;
    while pace.view(now).state == PaceState::Free {
        deliver(&mut pace, MailKind::Fresh, HopSignal::Later, now);
        deferred += 1;
    }
    assert!((2..=6).contains(&deferred), "{deferred}");
}

/// Consecutive refusals double the pause up to a minute and never stop the mail for good. Jitter shortens each pause,
/// so that relays that were refused together do not return together.
#[test]
fn pauses_double_up_to_a_minute() {
    let (mut pace, mut now) = (Pace::new(20), Instant::now());
    let (mut longest, mut shares) = (Duration::ZERO, Vec::new());
    let mut rng = rng();
    for streak in 0..40 {
        let ticket = pace.ask(MailKind::Waiting, now).expect("a ticket");
        pace.ended(&ticket, HopSignal::Throttled, None, now, &mut rng);
        let until = pace.view(now).until.expect("a pause");
        let pause = until - now;
        let whole = PAUSE_INITIAL
            .saturating_mul(1 << streak.min(16))
            .min(PAUSE_MAX);
        assert!((whole / 2..=whole).contains(&pause), "{streak}: {pause:?}");
        longest = longest.max(pause);
        shares.push(pause.div_duration_f64(whole));
        now = opens(&pace, now);
    }
    let differ = shares.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(differ > 30, "{shares:?}");
    assert!(longest > PAUSE_MAX / 2);
    assert_eq!(pace.view(now).rate, Some(RATE_MIN));
}

/// While the hop has a rate, stored messages go before fresh ones; otherwise fresh mail could starve them.
#[test]
fn stored_mail_goes_first() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    deliver(&mut pace, MailKind::Fresh, HopSignal::Throttled, now);
    let later = now + PAUSE_INITIAL;
    pace.set_waiting(true);
    pace.ask(MailKind::Fresh, later)
        .expect_err("stored mail waits");
    assert_eq!(
        pace.room(5, later).0,
        1,
        "the fresh message has used nothing of the rate"
    );
    pace.set_waiting(false);
    pace.ask(MailKind::Fresh, later)
        .expect("no stored mail waits");
}

/// A cohort of consecutive failures marks a hop as dead; one success in between prevents that.
#[test]
fn failures_in_a_row_make_a_hop_dead() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    for signal in [
        HopSignal::Broken,
        HopSignal::Unreachable,
        HopSignal::Fine,
        HopSignal::Broken,
    ] {
        assert_eq!(deliver(&mut pace, MailKind::Fresh, signal, now), None);
    }
    for _ in 0..3 {
        assert_eq!(
            deliver(&mut pace, MailKind::Fresh, HopSignal::Unreachable, now),
            None
        );
    }
    let change = deliver(&mut pace, MailKind::Fresh, HopSignal::Unreachable, now);
    assert_eq!(change, Some(PaceChange::Dead));
}

/// A stored message probes a dead hop, never a fresh one whose sender waits. The waits between probes double up to a
/// minute, and a nudge ends the wait.
#[test]
fn a_dead_hop_gets_one_probe_at_a_time() {
    let start = Instant::now();
    let mut pace = dead(start);
    let mut now = start;
    for probes in 0..12 {
        let at = opens(&pace, now);
        let whole = PROBE_WAIT_INITIAL
            .saturating_mul(1 << probes)
            .min(PROBE_WAIT_MAX);
        assert!((whole.mul_f64(0.75)..=whole).contains(&(at - now)));
        pace.ask(MailKind::Fresh, at)
            .expect_err("the sender of a fresh message waits");
        pace.ask(MailKind::Waiting, now).expect_err("too early");
        let probe = pace.ask(MailKind::Waiting, at).expect("a probe");
        pace.ask(MailKind::Waiting, at).expect_err("one at a time");
        assert_eq!(pace.room(9, at), (0, None));
        pace.ended(&probe, HopSignal::Unreachable, None, at, &mut rng());
        now = at;
    }
    pace.nudge(now);
    assert_eq!(pace.room(9, now).0, 1);
}

/// A probe that is answered, positively or negatively, brings the hop back, at first in a small window.
#[test]
fn a_probe_that_is_answered_brings_the_hop_back() {
    let start = Instant::now();
    let now = start + Duration::from_secs(100);
    let mut pace = dead(start);
    let change = deliver(&mut pace, MailKind::Waiting, HopSignal::Fine, now);
    assert_eq!(change, Some(PaceChange::Alive(now - start)));
    assert_eq!(pace.room(99, now).0, WINDOW_INITIAL as usize);
    let mut successes = 0;
    while pace.view(now).state != PaceState::Free {
        deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, now);
        successes += 1;
    }
    assert!((100..300).contains(&successes), "{successes}");

    let mut pace = dead(start);
    let change = deliver(&mut pace, MailKind::Waiting, HopSignal::Throttled, now);
    assert_eq!(change, Some(PaceChange::Paced(RATE_MIN)));
}

/// A probe that was dropped, or got no connection, is repeated; no probe is lost.
#[test]
fn a_probe_without_a_result_is_repeated() {
    for signal in [HopSignal::Unknown, HopSignal::Busy] {
        let start = Instant::now();
        let mut pace = dead(start);
        let at = opens(&pace, start);
        let probe = pace.ask(MailKind::Waiting, at).expect("a probe");
        pace.ended(&probe, signal, None, at, &mut rng());
        let again = opens(&pace, at);
        assert_eq!(again - at, PROBE_WAIT_INITIAL);
        pace.ask(MailKind::Waiting, again).expect("the next probe");
    }
}

/// While deliveries have recently failed to get a connection, fresh mail does not wait for one; stored mail may wait.
#[test]
fn fresh_mail_does_not_queue_for_busy_connections() {
    let (mut pace, now) = (Pace::new(2), Instant::now());
    let tickets: Vec<DeliveryTicket> = (0..3)
        .map(|_| pace.ask(MailKind::Fresh, now).expect("free"))
        .collect();
    pace.ended(&tickets[2], HopSignal::Busy, None, now, &mut rng());
    let refused = pace.ask(MailKind::Fresh, now).expect_err("both are in use");
    assert_eq!(refused, Refusal::new(RefusalReason::Busy, None));
    let waiting = pace.ask(MailKind::Waiting, now).expect("its turn");
    pace.ended(&waiting, HopSignal::Unknown, None, now, &mut rng());
    pace.ended(&tickets[1], HopSignal::Fine, None, now, &mut rng());
    pace.ask(MailKind::Fresh, now).expect("one is free");
}

/// Any number of content failures of one sender's mail says nothing about the hop: all mail continues.
#[test]
fn the_contents_of_one_sender_do_not_pace_a_hop() {
    for signal in AT_CONTENT {
        let (mut pace, now) = (Pace::new(20), Instant::now());
        for _ in 0..500 {
            assert_eq!(deliver_of(&mut pace, signal, 1, now), None, "{signal:?}");
        }
        assert_eq!(pace.room(77, now), (77, None), "{signal:?}");
        deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, now);
        for number in [1, 1, 1, 1] {
            assert_eq!(
                deliver_of(&mut pace, signal, number, now),
                None,
                "{signal:?}"
            );
        }
    }
}

/// While a hop has a rate for another reason, replies to one sender's content neither pause nor cut it.
#[test]
fn the_contents_of_one_sender_do_not_slow_a_paced_hop() {
    for signal in AT_CONTENT {
        let (mut pace, start) = (Pace::new(20), Instant::now());
        for _ in 0..500 {
            deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, start);
        }
        deliver(&mut pace, MailKind::Fresh, HopSignal::Throttled, start);
        let mut now = start;
        let rate = pace.view(now).rate;
        for _ in 0..80 {
            // Rounding may lose a nanosecond.
            now = opens(&pace, now) + Duration::from_millis(1);
            assert_eq!(deliver_of(&mut pace, signal, 1, now), None, "{signal:?}");
            assert_eq!(pace.view(now).until, None, "{signal:?}: no pause");
        }
        assert_eq!(pace.view(now).rate, rate, "{signal:?}");
        assert!(now - start < Duration::from_secs(10), "{signal:?}");
    }
}

/// A hop that breaks off during the content of two senders' messages and takes none in between is dead. A hop that
/// takes one starts again with a clean record.
#[test]
fn a_hop_that_breaks_off_in_all_contents_is_dead() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    let mut tries = 0..100;
    let dead = tries.find(|at| deliver_of(&mut pace, HopSignal::Broken, at % 2, now).is_some());
    assert_eq!(
        dead,
        Some(WINDOW_INITIAL as usize),
        "a cohort after the first"
    );
    assert_eq!(pace.view(now).state, PaceState::Dead);

    let mut pace = Pace::new(20);
    for at in 0..100 {
        assert_eq!(deliver_of(&mut pace, HopSignal::Broken, at % 2, now), None);
        if at % 5 == 4 {
            deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, now);
        }
    }
}

/// The same for a hop that throttles in reply to the content: the second sender's message starts the pacing.
#[test]
fn a_hop_that_throttles_all_contents_is_paced() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    assert_eq!(
        deliver_of(&mut pace, HopSignal::ThrottledAtEnd, 1, now),
        None
    );
    let change = deliver_of(&mut pace, HopSignal::ThrottledAtEnd, 2, now);
    assert_eq!(change, Some(PaceChange::Paced(RATE_MIN)));
    assert!(pace.view(now).until.is_some(), "it pauses");

    let mut pace = Pace::new(20);
    let mut later = (0..9).map(|at| deliver_of(&mut pace, HopSignal::LaterAtEnd, at, now));
    assert!(later.any(|change| change == Some(PaceChange::Paced(RATE_MIN))));

    let mut pace = Pace::new(20);
    for number in 0..100 {
        let change = deliver_of(&mut pace, HopSignal::ThrottledAtEnd, number, now);
        assert_eq!(change, None, "one was taken between");
        deliver(&mut pace, MailKind::Fresh, HopSignal::Fine, now);
    }
}

/// A probe that gets a reply to its content was answered: the hop is back, at the rate known before.
#[test]
fn an_answer_to_a_content_brings_the_hop_back() {
    for signal in [HopSignal::ThrottledAtEnd, HopSignal::LaterAtEnd] {
        let start = Instant::now();
        let now = start + Duration::from_secs(100);
        let mut pace = dead(start);
        let change = deliver_of(&mut pace, signal, 1, now);
        assert_eq!(change, Some(PaceChange::Alive(now - start)), "{signal:?}");
    }
}

/// A flood of messages whose content the hop breaks off or throttles, from two or a hundred senders, is queued before a
/// good message. The good message waits for one attempt of each, not for a pause after each.
#[test]
fn a_flood_of_bad_contents_costs_a_session_each() {
    const FLOOD_MESSAGES: usize = 100;
    for (signal, senders, at_most) in [
        (HopSignal::Broken, 2, Duration::from_secs(5)),
        (HopSignal::Broken, FLOOD_MESSAGES, Duration::from_secs(5)),
        (HopSignal::ThrottledAtEnd, 1, Duration::ZERO),
        (
            HopSignal::ThrottledAtEnd,
            2,
            CONTENT_PAUSE_MAX * FLOOD_MESSAGES as u32,
        ),
        (
            HopSignal::ThrottledAtEnd,
            FLOOD_MESSAGES,
            CONTENT_PAUSE_MAX * FLOOD_MESSAGES as u32,
        ),
    ] {
        let (mut pace, start) = (Pace::new(20), Instant::now());
        let mut now = start;
        for at in 0..FLOOD_MESSAGES {
            now = opens(&pace, now);
            deliver_of(&mut pace, signal, at % senders, now);
        }
        let turn = opens(&pace, now) - start;
        println!("{signal:?} of {senders}: {turn:?}");
        assert!(turn <= at_most, "{signal:?} of {senders}: {turn:?}");
    }
}

/// A dead hop that accepts sessions again and breaks off during every content gets a bounded number of consecutive
/// probes, with waits of up to a minute in between.
#[test]
fn a_dead_hop_that_breaks_all_contents_is_not_sent_a_whole_queue() {
    let start = Instant::now();
    let mut pace = dead(start);
    let (mut now, mut probes, mut waits) = (start, 0, 0);
    while now - start < Duration::from_secs(3600) {
        let at = opens(&pace, now);
        waits += u32::from(at > now);
        now = at;
        let probe = pace.ask(MailKind::Waiting, now).expect("a probe");
        pace.ask(MailKind::Waiting, now).expect_err("one at a time");
        pace.ended(
            &probe,
            HopSignal::Broken,
            Some(&party(probes)),
            now,
            &mut rng(),
        );
        assert_eq!(pace.view(now).state, PaceState::Dead);
        probes += 1;
    }
    println!("{probes} probes, {waits} waits");
    assert!(waits < 3600 / 45 + 6, "{waits}");
    assert!(probes <= waits as usize * 60, "{probes}");
}
