//! What holds for the pace after any history.

use proptest::prelude::*;

use super::super::limits::{BURST_SECONDS, RATE_MAX};
use super::super::probing::LOGIN_WAIT_MAX;
use super::*;

#[derive(Debug, Clone)]
enum Act {
    Ask(bool),
    End(usize, HopSignal, usize),
    Pass(u64),
    Waits(bool),
    Nudge,
}

fn act() -> impl Strategy<Value = Act> {
    let signal = prop_oneof![
        Just(HopSignal::Fine),
        Just(HopSignal::Throttled),
        Just(HopSignal::Later),
        Just(HopSignal::Unreachable),
        Just(HopSignal::ThrottledAtEnd),
        Just(HopSignal::LaterAtEnd),
        Just(HopSignal::Broken),
        Just(HopSignal::LoginRefused),
        Just(HopSignal::Busy),
        Just(HopSignal::Unknown),
    ];
    prop_oneof![
        4 => any::<bool>().prop_map(Act::Ask),
        4 => (any::<usize>(), signal, 0..3_usize).prop_map(|(at, signal, of)| Act::End(at, signal, of)),
        3 => (0..3000_u64).prop_map(Act::Pass),
        1 => any::<bool>().prop_map(Act::Waits),
        1 => Just(Act::Nudge),
    ]
}

proptest! {
    /// After any history: the rate stays within its limits, a dead hop has at most one probe, `room` keeps its promise,
    /// and the hop can always take mail again.
    #[test]
    fn no_history_breaks_the_pace(acts in prop::collection::vec(act(), 1..300)) {
        let (mut pace, mut now, mut rng) = (Pace::new(20), Instant::now(), rng());
        let mut open: Vec<DeliveryTicket> = Vec::new();
        for act in acts {
            match act {
                Act::Ask(fresh) => {
                    let kind = if fresh { MailKind::Fresh } else { MailKind::Waiting };
                    let (room, _) = pace.room(1, now);
                    let asked = pace.ask(kind, now);
                    if !fresh {
                        prop_assert_eq!(asked.is_ok(), room == 1);
                    }
                    if let Ok(ticket) = asked {
                        let dead = pace.view(now).state == PaceState::Dead;
                        let earlier = open.iter().any(|open| open.epoch == ticket.epoch);
                        prop_assert!(!(dead && earlier), "two probes");
                        open.push(ticket);
                    }
                }
                Act::End(at, signal, of) if !open.is_empty() => {
                    let ticket = open.swap_remove(at % open.len());
                    pace.ended(&ticket, signal, Some(&party(of)), now, &mut rng);
                }
                Act::End(..) => {}
                Act::Pass(millis) => now += Duration::from_millis(millis),
                Act::Waits(due_mail) => pace.set_waiting(due_mail),
                Act::Nudge => pace.nudge(now),
            }
            let view = pace.view(now);
            if let Some(rate) = view.rate {
                prop_assert!((RATE_MIN..RATE_MAX).contains(&rate), "{}", rate);
            }
            prop_assert!(view.window.is_none_or(|window| (1..=20).contains(&window)));
        }
        for ticket in open.drain(..) {
            pace.ended(&ticket, HopSignal::Unknown, None, now, &mut rng);
        }
        prop_assert_eq!(pace.in_flight, 0);
        now += LOGIN_WAIT_MAX.mul_f64(1.25).max(PAUSE_MAX);
        prop_assert_eq!(pace.room(1, now).0, 1, "{:?}", pace);
    }

    /// Over any interval, the mail that goes out stays within the rate and one burst, however often it is requested.
    #[test]
    fn no_more_goes_out_than_the_rate_and_a_burst(
        rate in RATE_MIN..200.0,
        waits in prop::collection::vec(0..400_u64, 1..200),
    ) {
        let (mut pace, start) = (Pace::new(10_000), Instant::now());
        let mut paced = Limits::new(Some(rate), pace.connections, start);
        paced.window = 10_000.0;
        pace.enter(Mode::Paced(paced));
        let (mut now, mut sent) = (start, Vec::new());
        for wait in waits {
            let (room, _) = pace.room(usize::MAX, now);
            let mut given = 0;
            while pace.ask(MailKind::Waiting, now).is_ok() {
                sent.push(now);
                given += 1;
            }
            prop_assert!(given == room || given + 1 == room, "{} of {}", given, room);
            now += Duration::from_millis(wait);
        }
        // What went out beyond the rate since the start. Over an interval, that grows by one burst at most.
        let (burst, mut least) = (1.0 + BURST_SECONDS * rate, f64::INFINITY);
        for (count, at) in sent.iter().enumerate() {
            let before = count as f64 - rate * (*at - start).as_secs_f64();
            least = least.min(before);
            prop_assert!(before + 1.0 - least <= burst + 1e-6, "{} before {:?}", count, at);
        }
    }
}
