//! The laws of the pace, on made-up time: random histories, and a server that allows five messages a second.

use std::collections::VecDeque;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

const STEP: Duration = Duration::from_millis(10);

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn tell(pace: &mut Pace, who: Who, sign: Sign, now: Instant) -> Option<Shift> {
    let ticket = pace.ask(who, now).expect("a ticket");
    pace.ended(&ticket, sign, None, now, &mut rng())
}

/// Of a message that waits, and whose it is.
fn tell_of(pace: &mut Pace, sign: Sign, number: usize, now: Instant) -> Option<Shift> {
    let ticket = pace.ask(Who::Waiting, now).expect("a ticket");
    pace.ended(&ticket, sign, Some(&party(number)), now, &mut rng())
}

fn party(number: usize) -> Party {
    Party::User(number.to_string().into())
}

/// What fails once the content is on its way.
const AT_CONTENT: [Sign; 3] = [Sign::Broken, Sign::ThrottledAtEnd, Sign::LaterAtEnd];

/// The instant at which a message that waits may go, from `now` on.
fn opens(pace: &Pace, now: Instant) -> Instant {
    match pace.room(1, now) {
        (0, until) => until.expect("time alone decides"),
        _ => now,
    }
}

fn dead(now: Instant) -> Pace {
    let mut pace = Pace::new(20);
    for _ in 0..5 {
        tell(&mut pace, Who::Fresh, Sign::Unreachable, now);
    }
    assert_eq!(pace.view(now).state, State::Dead);
    pace
}

/// A hop that was never in trouble costs nothing: everything goes out, whatever it answers about messages.
#[test]
fn a_hop_without_trouble_is_free() {
    let (mut pace, now) = (Pace::new(1), Instant::now());
    for _ in 0..1000 {
        pace.ask(Who::Fresh, now).expect("free");
    }
    for _ in 0..1000 {
        assert_eq!(tell(&mut pace, Who::Fresh, Sign::Fine, now), None);
    }
    assert_eq!(pace.room(77, now), (77, None));
}

/// A throttling reply stops everything for a moment; then one goes, and only when that is taken do others.
#[test]
fn after_a_throttling_reply_one_goes_first() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    let under_way: Vec<Ticket> = (0..20)
        .map(|_| pace.ask(Who::Fresh, now).expect("free"))
        .collect();
    for (at, ticket) in under_way.iter().enumerate() {
        let shift = pace.ended(ticket, Sign::Throttled, None, now, &mut rng());
        let first = matches!(shift, Some(Shift::Paced(rate)) if rate == SLOWEST);
        assert_eq!(first, at == 0, "one refusal, however many were under way");
    }
    let refused = pace.ask(Who::Waiting, now).expect_err("a pause");
    assert_eq!(refused.why, Why::Paced);
    let after = refused.until.expect("the end of the pause");
    assert!((PAUSE / 2..=PAUSE).contains(&(after - now)));
    let trial = pace.ask(Who::Waiting, after).expect("the pause is over");
    let later = after + Duration::from_secs(60);
    assert_eq!(pace.room(9, later).0, 0, "its answer is waited for");
    pace.ended(&trial, Sign::Fine, None, later, &mut rng());
    assert_eq!(pace.room(9, later).0, 1);
}

/// Refusals of one second are one: each of them pauses, and the rate is cut once. A second later it is cut again.
#[test]
fn the_rate_is_cut_once_a_second() {
    let (mut pace, start) = (Pace::new(20), Instant::now());
    for _ in 0..500 {
        tell(&mut pace, Who::Fresh, Sign::Fine, start);
    }
    let Some(Shift::Paced(rate)) = tell(&mut pace, Who::Fresh, Sign::Throttled, start) else {
        panic!("not paced");
    };
    assert!(rate > 10.0 * SLOWEST, "{rate}");
    let soon = opens(&pace, start);
    assert!(soon < start + CUT_EVERY);
    assert_eq!(tell(&mut pace, Who::Waiting, Sign::Throttled, soon), None);
    assert_eq!(pace.view(soon).rate, Some(rate));
    assert!(pace.view(soon).until.is_some(), "but it pauses");
    let later = opens(&pace, soon).max(start + CUT_EVERY);
    let shift = tell(&mut pace, Who::Waiting, Sign::Throttled, later);
    assert_eq!(shift, Some(Shift::Cut(CUT * rate)));
}

/// A reply that may be about the message says something about the hop only when most messages get it.
#[test]
fn one_message_put_off_says_nothing_about_the_hop() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    for sign in [Sign::Later, Sign::Later, Sign::Fine, Sign::Later] {
        assert_eq!(tell(&mut pace, Who::Fresh, sign, now), None);
    }
    let mut put_off = 0;
    while pace.view(now).state == State::Free {
        tell(&mut pace, Who::Fresh, Sign::Later, now);
        put_off += 1;
    }
    assert!((2..=6).contains(&put_off), "{put_off}");
}

/// Refusals in a row double the pause up to a minute, and never stop the mail for good. Chance takes a part of each, so that
/// relays that were refused together do not come back together.
#[test]
fn pauses_double_up_to_a_minute() {
    let (mut pace, mut now) = (Pace::new(20), Instant::now());
    let (mut longest, mut shares) = (Duration::ZERO, Vec::new());
    let mut rng = rng();
    for streak in 0..40 {
        let ticket = pace.ask(Who::Waiting, now).expect("a ticket");
        pace.ended(&ticket, Sign::Throttled, None, now, &mut rng);
        let until = pace.view(now).until.expect("a pause");
        let pause = until - now;
        let whole = PAUSE.saturating_mul(1 << streak.min(16)).min(LONGEST_PAUSE);
        assert!((whole / 2..=whole).contains(&pause), "{streak}: {pause:?}");
        longest = longest.max(pause);
        shares.push(pause.div_duration_f64(whole));
        now = opens(&pace, now);
    }
    let differ = shares.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(differ > 30, "{shares:?}");
    assert!(longest > LONGEST_PAUSE / 2);
    assert_eq!(pace.view(now).rate, Some(SLOWEST));
}

/// While there is a rate, what has waited goes before what has just come; else fresh mail could starve it.
#[test]
fn what_waits_goes_first() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    tell(&mut pace, Who::Fresh, Sign::Throttled, now);
    let later = now + PAUSE;
    pace.waits(true);
    pace.ask(Who::Fresh, later).expect_err("others wait");
    assert_eq!(
        pace.room(5, later).0,
        1,
        "and it has taken nothing from them"
    );
    pace.waits(false);
    pace.ask(Who::Fresh, later).expect("nobody waits");
}

/// A cohort of failures in a row makes a hop dead; one success in between does not.
#[test]
fn failures_in_a_row_make_a_hop_dead() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    for sign in [Sign::Broken, Sign::Unreachable, Sign::Fine, Sign::Broken] {
        assert_eq!(tell(&mut pace, Who::Fresh, sign, now), None);
    }
    for _ in 0..3 {
        assert_eq!(tell(&mut pace, Who::Fresh, Sign::Unreachable, now), None);
    }
    let shift = tell(&mut pace, Who::Fresh, Sign::Unreachable, now);
    assert_eq!(shift, Some(Shift::Dead));
}

/// A dead hop is probed by one message that waits, never by one whose sender waits; the waits between probes double up to a
/// minute, and a nudge ends the wait.
#[test]
fn a_dead_hop_is_probed_by_one() {
    let start = Instant::now();
    let mut pace = dead(start);
    let mut now = start;
    for probes in 0..12 {
        let at = opens(&pace, now);
        let whole = PROBE.saturating_mul(1 << probes).min(LONGEST_PROBE);
        assert!((whole.mul_f64(0.75)..=whole).contains(&(at - now)));
        pace.ask(Who::Fresh, at).expect_err("its sender waits");
        pace.ask(Who::Waiting, now).expect_err("too early");
        let probe = pace.ask(Who::Waiting, at).expect("a probe");
        pace.ask(Who::Waiting, at).expect_err("one at a time");
        assert_eq!(pace.room(9, at), (0, None));
        pace.ended(&probe, Sign::Unreachable, None, at, &mut rng());
        now = at;
    }
    pace.nudge(now);
    assert_eq!(pace.room(9, now).0, 1);
}

/// A probe that is answered, well or not, brings the hop back, slowly.
#[test]
fn a_probe_that_is_answered_brings_the_hop_back() {
    let start = Instant::now();
    let now = start + Duration::from_secs(100);
    let mut pace = dead(start);
    let shift = tell(&mut pace, Who::Waiting, Sign::Fine, now);
    assert_eq!(shift, Some(Shift::Alive(now - start)));
    assert_eq!(pace.room(99, now).0, WINDOW as usize);
    let mut successes = 0;
    while pace.view(now).state != State::Free {
        tell(&mut pace, Who::Fresh, Sign::Fine, now);
        successes += 1;
    }
    assert!((100..300).contains(&successes), "{successes}");

    let mut pace = dead(start);
    let shift = tell(&mut pace, Who::Waiting, Sign::Throttled, now);
    assert_eq!(shift, Some(Shift::Paced(SLOWEST)));
}

/// A probe whose delivery was dropped, or never came to a connection, is made again; none is lost.
#[test]
fn a_probe_that_tells_nothing_is_made_again() {
    for sign in [Sign::Unknown, Sign::Busy] {
        let start = Instant::now();
        let mut pace = dead(start);
        let at = opens(&pace, start);
        let probe = pace.ask(Who::Waiting, at).expect("a probe");
        pace.ended(&probe, sign, None, at, &mut rng());
        let again = opens(&pace, at);
        assert_eq!(again - at, PROBE);
        pace.ask(Who::Waiting, again).expect("the next probe");
    }
}

/// Where deliveries have waited in vain for a connection, fresh mail does not wait for one, and what is stored still may.
#[test]
fn fresh_mail_does_not_queue_for_busy_connections() {
    let (mut pace, now) = (Pace::new(2), Instant::now());
    let tickets: Vec<Ticket> = (0..3)
        .map(|_| pace.ask(Who::Fresh, now).expect("free"))
        .collect();
    pace.ended(&tickets[2], Sign::Busy, None, now, &mut rng());
    let refused = pace.ask(Who::Fresh, now).expect_err("both are in use");
    assert_eq!(refused, Refusal::new(Why::Busy, None));
    let waiting = pace.ask(Who::Waiting, now).expect("its turn");
    pace.ended(&waiting, Sign::Unknown, None, now, &mut rng());
    pace.ended(&tickets[1], Sign::Fine, None, now, &mut rng());
    pace.ask(Who::Fresh, now).expect("one is free");
}

/// However much of one sender's mail fails in its content, it says nothing about the hop: everybody's mail goes out.
#[test]
fn one_senders_contents_say_nothing_about_the_hop() {
    for sign in AT_CONTENT {
        let (mut pace, now) = (Pace::new(20), Instant::now());
        for _ in 0..500 {
            assert_eq!(tell_of(&mut pace, sign, 1, now), None, "{sign:?}");
        }
        assert_eq!(pace.room(77, now), (77, None), "{sign:?}");
        tell(&mut pace, Who::Fresh, Sign::Fine, now);
        for number in [1, 1, 1, 1] {
            assert_eq!(tell_of(&mut pace, sign, number, now), None, "{sign:?}");
        }
    }
}

/// While there is a rate for another reason, what one sender's contents get for an answer neither pauses nor cuts it.
#[test]
fn one_senders_contents_do_not_slow_a_paced_hop_down() {
    for sign in AT_CONTENT {
        let (mut pace, start) = (Pace::new(20), Instant::now());
        for _ in 0..500 {
            tell(&mut pace, Who::Fresh, Sign::Fine, start);
        }
        tell(&mut pace, Who::Fresh, Sign::Throttled, start);
        let mut now = start;
        let rate = pace.view(now).rate;
        for _ in 0..80 {
            // A nanosecond may be lost in rounding.
            now = opens(&pace, now) + Duration::from_millis(1);
            assert_eq!(tell_of(&mut pace, sign, 1, now), None, "{sign:?}");
            assert_eq!(pace.view(now).until, None, "{sign:?}: no pause");
        }
        assert_eq!(pace.view(now).rate, rate, "{sign:?}");
        assert!(now - start < Duration::from_secs(10), "{sign:?}");
    }
}

/// A hop that breaks off in the content of two senders' messages, and takes none between, is dead as it always was; and one
/// that takes one begins anew.
#[test]
fn a_hop_that_breaks_everybodys_content_is_dead() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    let mut tries = 0..100;
    let dead = tries.find(|at| tell_of(&mut pace, Sign::Broken, at % 2, now).is_some());
    assert_eq!(dead, Some(WINDOW as usize), "a cohort after the first");
    assert_eq!(pace.view(now).state, State::Dead);

    let mut pace = Pace::new(20);
    for at in 0..100 {
        assert_eq!(tell_of(&mut pace, Sign::Broken, at % 2, now), None);
        if at % 5 == 4 {
            tell(&mut pace, Who::Fresh, Sign::Fine, now);
        }
    }
}

/// The same for one that wants to be left alone: it is paced when the second sender's message is told so.
#[test]
fn a_hop_that_throttles_everybodys_content_is_paced() {
    let (mut pace, now) = (Pace::new(20), Instant::now());
    assert_eq!(tell_of(&mut pace, Sign::ThrottledAtEnd, 1, now), None);
    let shift = tell_of(&mut pace, Sign::ThrottledAtEnd, 2, now);
    assert_eq!(shift, Some(Shift::Paced(SLOWEST)));
    assert!(pace.view(now).until.is_some(), "it pauses");

    let mut pace = Pace::new(20);
    let mut later = (0..9).map(|at| tell_of(&mut pace, Sign::LaterAtEnd, at, now));
    assert!(later.any(|shift| shift == Some(Shift::Paced(SLOWEST))));

    let mut pace = Pace::new(20);
    for number in 0..100 {
        let shift = tell_of(&mut pace, Sign::ThrottledAtEnd, number, now);
        assert_eq!(shift, None, "one was taken between");
        tell(&mut pace, Who::Fresh, Sign::Fine, now);
    }
}

/// A probe that is told something in answer to its content has been answered: the hop is back, at the rate that was known.
#[test]
fn an_answer_to_a_content_brings_the_hop_back() {
    for sign in [Sign::ThrottledAtEnd, Sign::LaterAtEnd] {
        let start = Instant::now();
        let now = start + Duration::from_secs(100);
        let mut pace = dead(start);
        let shift = tell_of(&mut pace, sign, 1, now);
        assert_eq!(shift, Some(Shift::Alive(now - start)), "{sign:?}");
    }
}

/// A flood of messages whose content the hop breaks off in or throttles, of two senders or of a hundred, in the queue before a
/// good one: that comes to its turn after one try for each of them, and not after a pause for each.
#[test]
fn a_flood_of_bad_contents_costs_a_session_each() {
    const FLOOD: usize = 100;
    for (sign, senders, at_most) in [
        (Sign::Broken, 2, Duration::from_secs(5)),
        (Sign::Broken, FLOOD, Duration::from_secs(5)),
        (Sign::ThrottledAtEnd, 1, Duration::ZERO),
        (Sign::ThrottledAtEnd, 2, CONTENT_PAUSE * FLOOD as u32),
        (Sign::ThrottledAtEnd, FLOOD, CONTENT_PAUSE * FLOOD as u32),
    ] {
        let (mut pace, start) = (Pace::new(20), Instant::now());
        let mut now = start;
        for at in 0..FLOOD {
            now = opens(&pace, now);
            tell_of(&mut pace, sign, at % senders, now);
        }
        let turn = opens(&pace, now) - start;
        println!("{sign:?} of {senders}: {turn:?}");
        assert!(turn <= at_most, "{sign:?} of {senders}: {turn:?}");
    }
}

/// A hop that was dead, takes sessions again and breaks off in every content gets so many probes in a row, one after the other,
/// and waits of up to a minute between.
#[test]
fn a_dead_hop_that_breaks_all_contents_is_not_sent_a_whole_queue() {
    let start = Instant::now();
    let mut pace = dead(start);
    let (mut now, mut probes, mut waits) = (start, 0, 0);
    while now - start < Duration::from_secs(3600) {
        let at = opens(&pace, now);
        waits += u32::from(at > now);
        now = at;
        let probe = pace.ask(Who::Waiting, now).expect("a probe");
        pace.ask(Who::Waiting, now).expect_err("one at a time");
        pace.ended(&probe, Sign::Broken, Some(&party(probes)), now, &mut rng());
        assert_eq!(pace.view(now).state, State::Dead);
        probes += 1;
    }
    println!("{probes} probes, {waits} waits");
    assert!(waits < 3600 / 45 + 6, "{waits}");
    assert!(probes <= waits as usize * 60, "{probes}");
}

/// A server, and the mail for it.
struct Server<F> {
    /// Messages a second that it allows; five at once.
    allowed: F,
    /// What it says to others.
    says: Sign,
    /// What it says to a part of the mail at any rate, and how large the part is.
    choosy: (Sign, f64),
    /// Messages a second that come in.
    demand: f64,
}

/// What became of it.
struct Seen {
    taken: u32,
    refused: u32,
    /// What waits although the server would take it.
    backlog: u32,
    pace: Pace,
    now: Instant,
}

impl<F: Fn(Duration) -> f64> Server<F> {
    /// Fresh mail goes out if it may and waits otherwise; what waits goes as the pace lets it. Every delivery takes 50 ms.
    fn serve(&self, time: Duration) -> Seen {
        let (start, mut rng) = (Instant::now(), rng());
        let mut seen = Seen {
            taken: 0,
            refused: 0,
            backlog: 0,
            pace: Pace::new(20),
            now: start,
        };
        let mut under_way: VecDeque<(Instant, Ticket, Sign)> = VecDeque::new();
        let (mut tokens, mut arrived) = (5.0_f64, 0.0);
        while seen.now - start < time {
            let now = seen.now;
            let more = (self.allowed)(now - start) * STEP.as_secs_f64();
            tokens = (tokens + more).min(more.max(5.0));
            while under_way.front().is_some_and(|(end, ..)| *end <= now) {
                let (_, ticket, sign) = under_way.pop_front().expect("the front");
                seen.pace.ended(&ticket, sign, None, now, &mut rng);
                seen.taken += u32::from(sign == Sign::Fine);
                seen.refused += u32::from(sign == self.says);
                seen.backlog += u32::from(sign == self.says);
            }
            let mut send = |ticket: Ticket| {
                let sign = if rng.random_bool(self.choosy.1) {
                    self.choosy.0
                } else if tokens >= 1.0 {
                    tokens -= 1.0;
                    Sign::Fine
                } else {
                    self.says
                };
                under_way.push_back((now + STEP * 5, ticket, sign));
            };
            let room = seen.pace.room(seen.backlog.min(16) as usize, now).0;
            for _ in 0..room {
                send(seen.pace.ask(Who::Waiting, now).expect("there is room"));
                seen.backlog -= 1;
            }
            seen.pace.waits(seen.backlog > 0);
            arrived += self.demand * STEP.as_secs_f64();
            while arrived >= 1.0 {
                arrived -= 1.0;
                match seen.pace.ask(Who::Fresh, now) {
                    Ok(ticket) => send(ticket),
                    Err(_) => seen.backlog += 1,
                }
            }
            seen.now += STEP;
        }
        seen
    }
}

/// A server that allows five a second and is sent twenty: at most one refusal for ten messages taken, and at least three
/// quarters of what it allows is used, whether its replies say that it throttles or not.
#[test]
fn refusals_are_few_and_what_is_allowed_is_used() {
    for says in [Sign::Throttled, Sign::Later] {
        let server = Server {
            allowed: |_| 5.0,
            says,
            choosy: (Sign::Unknown, 0.0),
            demand: 20.0,
        };
        let seen = server.serve(Duration::from_secs(600));
        let refused = f64::from(seen.refused) / f64::from(seen.taken);
        let used = f64::from(seen.taken) / (5.0 * 600.0);
        println!("{says:?}: {refused:.3} refused for one taken, {used:.3} used");
        assert!(refused <= 0.1 && used >= 0.75, "{says:?} {refused} {used}");
    }
}

/// When the server allows everything again, the backlog goes and the hop is free, without anybody's doing.
#[test]
fn the_backlog_goes_when_the_server_allows_it() {
    let slow = Duration::from_secs(120);
    let server = Server {
        allowed: |at| if at < slow { 5.0 } else { 5000.0 },
        says: Sign::Throttled,
        choosy: (Sign::Unknown, 0.0),
        demand: 20.0,
    };
    let seen = server.serve(Duration::from_secs(300));
    assert_eq!(seen.backlog, 0);
    assert_eq!(seen.pace.view(seen.now).state, State::Free);
}

/// A server that puts off a part of the mail, at any rate, is no server that throttles: the rest of the mail goes on.
#[test]
fn refusals_of_single_messages_slow_nobody_down() {
    for part in [0.02, 0.1, 0.3] {
        let server = Server {
            allowed: |_| 5000.0,
            says: Sign::Throttled,
            choosy: (Sign::Later, part),
            demand: 40.0,
        };
        let seen = server.serve(Duration::from_secs(1200));
        let used = f64::from(seen.taken) / (40.0 * 1200.0 * (1.0 - part));
        println!("{part}: {used:.3} taken, {} wait", seen.backlog);
        assert!(
            used > 0.98 && seen.backlog < 100,
            "{part}: {used}, {}",
            seen.backlog
        );
    }
}

#[derive(Debug, Clone)]
enum Act {
    Ask(bool),
    End(usize, Sign, usize),
    Pass(u64),
    Waits(bool),
    Nudge,
}

fn act() -> impl Strategy<Value = Act> {
    let sign = prop_oneof![
        Just(Sign::Fine),
        Just(Sign::Throttled),
        Just(Sign::Later),
        Just(Sign::Unreachable),
        Just(Sign::ThrottledAtEnd),
        Just(Sign::LaterAtEnd),
        Just(Sign::Broken),
        Just(Sign::Busy),
        Just(Sign::Unknown),
    ];
    prop_oneof![
        4 => any::<bool>().prop_map(Act::Ask),
        4 => (any::<usize>(), sign, 0..3_usize).prop_map(|(at, sign, of)| Act::End(at, sign, of)),
        3 => (0..3000_u64).prop_map(Act::Pass),
        1 => any::<bool>().prop_map(Act::Waits),
        1 => Just(Act::Nudge),
    ]
}

proptest! {
    /// Whatever happens: the rate stays within its limits, a dead hop has one probe at most, what `room` promises is
    /// given, and no history ends in a hop that nothing goes to any more.
    #[test]
    fn no_history_breaks_the_pace(acts in prop::collection::vec(act(), 1..300)) {
        let (mut pace, mut now, mut rng) = (Pace::new(20), Instant::now(), rng());
        let mut open: Vec<Ticket> = Vec::new();
        for act in acts {
            match act {
                Act::Ask(fresh) => {
                    let who = if fresh { Who::Fresh } else { Who::Waiting };
                    let (room, _) = pace.room(1, now);
                    let asked = pace.ask(who, now);
                    if !fresh {
                        prop_assert_eq!(asked.is_ok(), room == 1);
                    }
                    if let Ok(ticket) = asked {
                        let dead = pace.view(now).state == State::Dead;
                        let earlier = open.iter().any(|open| open.epoch == ticket.epoch);
                        prop_assert!(!(dead && earlier), "two probes");
                        open.push(ticket);
                    }
                }
                Act::End(at, sign, of) if !open.is_empty() => {
                    let ticket = open.swap_remove(at % open.len());
                    pace.ended(&ticket, sign, Some(&party(of)), now, &mut rng);
                }
                Act::End(..) => {}
                Act::Pass(millis) => now += Duration::from_millis(millis),
                Act::Waits(backlog) => pace.waits(backlog),
                Act::Nudge => pace.nudge(now),
            }
            let view = pace.view(now);
            if let Some(rate) = view.rate {
                prop_assert!((SLOWEST..FASTEST).contains(&rate), "{}", rate);
            }
            prop_assert!(view.window.is_none_or(|window| (1..=20).contains(&window)));
        }
        for ticket in open.drain(..) {
            pace.ended(&ticket, Sign::Unknown, None, now, &mut rng);
        }
        prop_assert_eq!(pace.in_flight, 0);
        now += LONGEST_PROBE.max(LONGEST_PAUSE);
        prop_assert_eq!(pace.room(1, now).0, 1, "{:?}", pace);
    }

    /// Never more than the rate and one burst: over any time, however eagerly it is asked.
    #[test]
    fn no_more_goes_out_than_the_rate_and_a_burst(
        rate in SLOWEST..200.0,
        waits in prop::collection::vec(0..400_u64, 1..200),
    ) {
        let (mut pace, start) = (Pace::new(10_000), Instant::now());
        let mut paced = pace.paced(Some(rate), start);
        paced.window = 10_000.0;
        pace.enter(Mode::Paced(paced));
        let (mut now, mut sent) = (start, Vec::new());
        for wait in waits {
            let (room, _) = pace.room(usize::MAX, now);
            let mut given = 0;
            while pace.ask(Who::Waiting, now).is_ok() {
                sent.push(now);
                given += 1;
            }
            prop_assert!(given == room || given + 1 == room, "{} of {}", given, room);
            now += Duration::from_millis(wait);
        }
        let burst = 1.0 + BURST * rate;
        for (at, first) in sent.iter().enumerate() {
            for (count, last) in sent[at..].iter().enumerate() {
                let allowed = burst + rate * (*last - *first).as_secs_f64();
                prop_assert!((count + 1) as f64 <= allowed + 1e-6, "{} of {}", count + 1, allowed);
            }
        }
    }
}
