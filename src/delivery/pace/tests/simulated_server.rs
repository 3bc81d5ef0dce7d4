//! The pace before a simulated server that allows so many messages a second.

use std::collections::VecDeque;

use super::*;

const SIMULATION_STEP: Duration = Duration::from_millis(10);

/// A simulated server and the mail for it.
struct Server<F> {
    /// Messages a second that the server allows, with a burst of five.
    allowed: F,
    /// Signal for messages above that rate.
    says: HopSignal,
    /// Signal for a part of the mail at any rate, and the size of that part.
    choosy: (HopSignal, f64),
    /// Messages a second that arrive.
    demand: f64,
}

/// Result of a simulation.
struct Seen {
    taken: u32,
    refused: u32,
    /// Messages that wait.
    backlog: u32,
    pace: Pace,
    now: Instant,
}

impl<F: Fn(Duration) -> f64> Server<F> {
    /// Fresh mail goes out if the pace allows it and waits otherwise; stored mail goes as the pace allows it. Every
    /// delivery takes 50 ms.
    fn serve(&self, time: Duration) -> Seen {
        let (start, mut rng) = (Instant::now(), rng());
        let mut seen = Seen {
            taken: 0,
            refused: 0,
            backlog: 0,
            pace: Pace::new(20),
            now: start,
        };
        let mut under_way: VecDeque<(Instant, DeliveryTicket, HopSignal)> = VecDeque::new();
        let (mut tokens, mut arrived) = (5.0_f64, 0.0);
        while seen.now - start < time {
            let now = seen.now;
            let more = (self.allowed)(now - start) * SIMULATION_STEP.as_secs_f64();
            tokens = (tokens + more).min(more.max(5.0));
            while under_way.front().is_some_and(|(end, ..)| *end <= now) {
                let (_, ticket, signal) = under_way.pop_front().expect("the front");
                seen.pace.ended(&ticket, signal, None, now, &mut rng);
                seen.taken += u32::from(signal == HopSignal::Fine);
                seen.refused += u32::from(signal == self.says);
                seen.backlog += u32::from(signal == self.says);
            }
            let mut send = |ticket: DeliveryTicket| {
                let signal = if rng.random_bool(self.choosy.1) {
                    self.choosy.0
                } else if tokens >= 1.0 {
                    tokens -= 1.0;
                    HopSignal::Fine
                } else {
                    self.says
                };
                under_way.push_back((now + SIMULATION_STEP * 5, ticket, signal));
            };
            let room = seen.pace.room(seen.backlog.min(16) as usize, now).0;
            for _ in 0..room {
                send(
                    seen.pace
                        .ask(MailKind::Waiting, now)
                        .expect("there is room"),
                );
                seen.backlog -= 1;
            }
            seen.pace.set_waiting(seen.backlog > 0);
            arrived += self.demand * SIMULATION_STEP.as_secs_f64();
            while arrived >= 1.0 {
                arrived -= 1.0;
                match seen.pace.ask(MailKind::Fresh, now) {
                    Ok(ticket) => send(ticket),
                    Err(_) => seen.backlog += 1,
                }
            }
            seen.now += SIMULATION_STEP;
        }
        seen
    }
}

/// A server that allows 5 messages/s receives 20 messages/s: at most one refusal for ten messages taken, and at least
/// three quarters of the allowed rate is used, whether or not its replies name throttling.
#[test]
fn refusals_are_few_and_the_allowed_rate_is_used() {
    for says in [HopSignal::Throttled, HopSignal::Later] {
        let server = Server {
            allowed: |_| 5.0,
            says,
            choosy: (HopSignal::Unknown, 0.0),
            demand: 20.0,
        };
        let seen = server.serve(Duration::from_secs(600));
        let refused = f64::from(seen.refused) / f64::from(seen.taken);
        let used = f64::from(seen.taken) / (5.0 * 600.0);
        println!("{says:?}: {refused:.3} refused for one taken, {used:.3} used");
        assert!(refused <= 0.1 && used >= 0.75, "{says:?} {refused} {used}");
    }
}

/// When the server allows everything again, the backlog drains and the hop becomes free without intervention.
#[test]
fn the_backlog_drains_when_the_server_allows_it() {
    let slow = Duration::from_secs(120);
    let server = Server {
        allowed: |at| if at < slow { 5.0 } else { 5000.0 },
        says: HopSignal::Throttled,
        choosy: (HopSignal::Unknown, 0.0),
        demand: 20.0,
    };
    let seen = server.serve(Duration::from_secs(300));
    assert_eq!(seen.backlog, 0);
    assert_eq!(seen.pace.view(seen.now).state, PaceState::Free);
}

/// A server that defers a part of the mail at any rate does not throttle: the rest of the mail continues.
#[test]
fn refusals_of_single_messages_do_not_slow_other_mail() {
    for part in [0.02, 0.1, 0.3] {
        let server = Server {
            allowed: |_| 5000.0,
            says: HopSignal::Throttled,
            choosy: (HopSignal::Later, part),
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
