//! Tests of the gate alone, on simulated time.

mod diversions;
mod fault;
mod laws;
mod stall;
mod thresholds;

use proptest::prelude::*;

use super::*;
use crate::measure::SizeClass;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Identity, MessageId, SenderReputation, Trait};
use crate::observation::ScanReason;
use crate::scan::{Drain, FairnessKey};

const TIMES: Times = Times {
    slow: Duration::from_millis(500),
    timeout: Duration::from_secs(5),
    wait: Duration::from_secs(1),
};

fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Content numbers from here on stand for messages with text only.
const TEXT: u64 = 1 << 32;

/// The fingerprint of a message with one attachment or one text as its only trait.
fn fingerprint(value: u64) -> Arc<Fingerprint> {
    let aspect = match value < TEXT {
        true => Aspect::Attachment,
        false => Aspect::Text,
    };
    Arc::new(Fingerprint {
        identity: Identity([0; 32]),
        exact: Box::new([Trait { aspect, value }]),
        broad: Box::new([]),
        attachments: Box::new([]),
    })
}

fn fairness_key(party: u64) -> FairnessKey {
    FairnessKey {
        client: party,
        party,
    }
}

fn gate_request(now: Instant, attachment: u64, reputation: SenderReputation) -> GateRequest {
    GateRequest {
        id: MessageId::new(),
        fingerprint: Some(fingerprint(attachment)),
        reputation,
        scan_reason: ScanReason::Fresh,
        timed_out_before: false,
        fairness_key: fairness_key(attachment),
        large: false,
        size: SizeClass::Tiny,
        arrived: now,
    }
}

/// A gate with one replica, and a clock that the test advances.
struct World {
    now: Instant,
    gate: Gate,
    next: u64,
}

impl World {
    fn new(slots: usize) -> Self {
        let now = Instant::now();
        Self {
            now,
            gate: Gate::new(now, TIMES, (slots, GuardSettings::default()), 1, true),
            next: TEXT,
        }
    }

    /// Enters a message with a text that no other message has.
    fn unique(&mut self, reputation: SenderReputation) -> Ticket {
        self.next += 1;
        self.enter(self.next, reputation)
    }

    fn enter(&mut self, attachment: u64, reputation: SenderReputation) -> Ticket {
        self.gate
            .enter(self.now, gate_request(self.now, attachment, reputation))
    }

    fn after(&mut self, time: u64) {
        let end = self.now + milliseconds(time);
        while self.now < end {
            self.now = end.min(self.now + milliseconds(100));
            self.gate.tick(self.now);
        }
    }

    fn answered(&mut self, ticket: Ticket) {
        self.gate
            .end(self.now, ticket, ScanEnd::Answered { found: false });
    }

    fn started(&mut self) -> Vec<Ticket> {
        let start = |order| match order {
            GateOrder::Start(ticket, _) => Some(ticket),
            _ => None,
        };
        self.gate.orders().into_iter().filter_map(start).collect()
    }

    fn refused(&mut self) -> Vec<(Ticket, GateRefusal)> {
        let refuse = |order| match order {
            GateOrder::Refuse(ticket, refusal) => Some((ticket, refusal)),
            _ => None,
        };
        self.gate.orders().into_iter().filter_map(refuse).collect()
    }

    fn breaker(&self) -> BreakerState {
        self.gate.replicas[0].breaker.state()
    }

    fn divert(&mut self, act: DiversionAct, attachment: u64) {
        let diversion = Diversion {
            id: "rule".into(),
            traits: fingerprint(attachment).exact.clone(),
            near: Box::new([]),
            messages: Box::new([]),
            act,
            known: act,
        };
        self.gate.divert(self.now, Arc::new([diversion]));
    }
}

/// I1, on which all other laws depend: a caller that stops waiting does not free the worker of the engine.
#[tokio::test(start_paused = true)]
async fn a_zombie_keeps_its_slot_until_the_engine_has_ended() {
    let mut world = World::new(1);
    let stuck = world.unique(SenderReputation::Known);
    assert_eq!(world.started(), [stuck]);
    world.after(6000);
    world.gate.leave(stuck);
    assert_eq!((world.gate.running(), world.gate.zombies()), (1, 1));
    assert!(world.started().is_empty());
    world.answered(stuck);
    assert_eq!((world.gate.running(), world.gate.zombies()), (0, 0));
}

/// An answer about another message stands in only if this message would wait: for a slot, for a slot of its level of trust,
/// or behind copies of its content. An engine that is out is not short: that engine has no answer, and coverage decides.
#[tokio::test(start_paused = true)]
async fn an_engine_is_short_for_mail_that_would_have_to_wait() {
    let mut world = World::new(6);
    let is_short = |world: &World, attachment, reputation| {
        let request = gate_request(world.now, attachment, reputation);
        world.gate.is_short(world.now, &request)
    };
    let (known, unknown) = (SenderReputation::Known, SenderReputation::Unknown);
    assert!(!is_short(&world, 1, known) && !is_short(&world, 1, unknown));
    let copies = [world.enter(1, known), world.enter(1, known)];
    assert!(is_short(&world, 1, known), "behind its copies");
    assert!(!is_short(&world, 2, known) && !is_short(&world, 2, unknown));
    copies.iter().for_each(|copy| world.answered(*copy));
    for _ in 0..5 {
        world.unique(unknown);
    }
    assert!(is_short(&world, 2, unknown), "one is kept for known mail");
    assert!(!is_short(&world, 2, known) && !is_short(&world, TEXT, known));
    world.unique(known);
    assert!(is_short(&world, TEXT, known), "no slot is free");
    world.gate.drain(world.now, 0, Some(Drain::plain()));
    assert!(!is_short(&world, TEXT, known), "it is out");
}

/// A flood of one message costs the engine two scans, for any content and any sender.
#[tokio::test(start_paused = true)]
async fn of_unproven_content_two_copies_are_scanned_at_once() {
    let mut world = World::new(12);
    for _ in 0..5 {
        world.enter(7, SenderReputation::Known);
    }
    assert_eq!(world.started().len(), 2);
    assert!(
        world.refused().is_empty(),
        "the others wait for the first two"
    );
    world.after(600);
    let refused = world.refused();
    assert_eq!(refused.len(), 3, "both are slow: no more of it");
    assert!(matches!(refused[0].1, GateRefusal::Parked(_)));
    let late = world.enter(7, SenderReputation::Known);
    assert_eq!(
        world.refused()[0].0,
        late,
        "those who come later do not even wait"
    );
    assert_eq!(world.gate.running(), 2);
}

/// Canaries do not noticeably delay a mailing that scans well: two, four, eight copies run at once.
#[tokio::test(start_paused = true)]
async fn copies_that_scan_well_make_room_for_more() {
    let mut world = World::new(64);
    for _ in 0..100 {
        world.enter(7, SenderReputation::Known);
    }
    let mut rounds = Vec::new();
    loop {
        let started = world.started();
        if started.is_empty() {
            break;
        }
        rounds.push(started.len());
        world.after(10);
        for ticket in started {
            world.answered(ticket);
        }
    }
    assert_eq!(rounds.iter().sum::<usize>(), 100);
    assert!(rounds.len() <= 5, "{rounds:?}");
    assert_eq!(rounds[0], 2);
}

/// Law 3: mail of unknown senders that waits behind hanging scans is refused as `busy`, unless a quarter of the scans of
/// unknown senders are stuck.
#[tokio::test(start_paused = true)]
async fn waiting_is_not_guilt() {
    for (well, is_blamed) in [(0, true), (33, true), (34, false)] {
        let mut world = World::new(12);
        let known = world.unique(SenderReputation::Known);
        world.answered(known);
        world.gate.orders();
        for _ in 0..30 {
            world.unique(SenderReputation::Unknown);
        }
        assert_eq!(world.started().len(), 11, "one is kept for known mail");
        let begun = world.now;
        world.after(600);
        world.gate.unknown_fast_scans.extend([begun].repeat(well));
        world.after(600);
        let refused = world.refused();
        assert_eq!(refused.len(), 19);
        for (_, refusal) in refused {
            assert_eq!(
                matches!(refusal, GateRefusal::Parked(_)),
                is_blamed,
                "{refusal:?}"
            );
        }
    }
}

/// Law 2, and the slots kept for known senders: beside mail of known senders, hanging mail of unknown senders holds at most two
/// thirds of the slots, and each party at most half of that. Mail behind a party that may not start still starts.
#[tokio::test(start_paused = true)]
async fn hanging_strangers_leave_a_third_to_others() {
    let mut world = World::new(12);
    let first = world.unique(SenderReputation::Known);
    world.answered(first);
    let from = |world: &mut World, party: u64| {
        world.next += 1;
        let request = GateRequest {
            fairness_key: fairness_key(party),
            ..gate_request(world.now, world.next, SenderReputation::Unknown)
        };
        world.gate.enter(world.now, request)
    };
    world.gate.orders();
    from(&mut world, 1);
    world.after(600);
    let greedy: Vec<Ticket> = (0..20).map(|_| from(&mut world, 1)).collect();
    assert_eq!(world.started().len(), 4, "with the first one: {greedy:?}");
    let other = from(&mut world, 2);
    assert_eq!(world.started(), [other]);
    for _ in 0..10 {
        world.unique(SenderReputation::Unknown);
    }
    assert_eq!(world.started().len(), 3, "8 of 12 in all");
    for _ in 0..3 {
        world.enter(7, SenderReputation::Known);
    }
    assert_eq!(world.started().len(), 2, "copies");
    for _ in 0..5 {
        world.unique(SenderReputation::Known);
    }
    assert_eq!(world.started().len(), 2, "all are taken");
}

/// Law 4: mail scanned again goes behind fresh mail, but not for ever. Messages that timed out before run one at a time.
#[tokio::test(start_paused = true)]
async fn what_is_scanned_again_stands_behind_fresh_mail() {
    let mut world = World::new(1);
    let again = |world: &mut World, at: u64, timed_out_before: bool| {
        let request = GateRequest {
            scan_reason: ScanReason::Again,
            timed_out_before,
            ..gate_request(world.now, TEXT + at, SenderReputation::Known)
        };
        world.gate.enter(world.now, request)
    };
    let running = world.unique(SenderReputation::Known);
    world.gate.orders();
    let old: Vec<Ticket> = (0..50).map(|at| again(&mut world, at, false)).collect();
    let fresh: Vec<Ticket> = (0..50)
        .map(|_| world.unique(SenderReputation::Known))
        .collect();
    let mut order = vec![running];
    for _ in 0..34 {
        let last = order[order.len() - 1];
        world.answered(last);
        order.extend(world.started());
    }
    let count = order.iter().filter(|ticket| old.contains(ticket)).count();
    assert!((1..=4).contains(&count), "{count} of 34");
    assert!(order.iter().filter(|ticket| fresh.contains(ticket)).count() >= 30);
    let mut world = World::new(3);
    let timed_out_before: Vec<Ticket> = (0..3).map(|at| again(&mut world, at, true)).collect();
    assert_eq!(world.started(), [timed_out_before[0]]);
    let other = again(&mut world, 9, false);
    assert_eq!(world.started(), [other], "nothing waits behind them");
    world.answered(timed_out_before[0]);
    assert_eq!(world.started(), [timed_out_before[1]]);
}

/// Law 5: in a ramp, only scans that began in the ramp count against the window. Older scans that still run do not keep the
/// window shut while a slot is free.
#[tokio::test(start_paused = true)]
async fn old_zombies_do_not_shut_the_window() {
    let mut world = World::new(6);
    for _ in 0..6 {
        world.unique(SenderReputation::Known);
    }
    let stuck = world.started();
    world.after(3000);
    assert!(matches!(
        world.breaker(),
        BreakerState::Open { .. } | BreakerState::HalfOpen { .. }
    ));
    world.gate.orders();
    // Three of them come back at once: it works again, and is probed at once.
    stuck[..3].iter().for_each(|ticket| world.answered(*ticket));
    world.after(100);
    assert!(matches!(world.breaker(), BreakerState::HalfOpen { .. }));
    world.gate.probed(world.now, 0, true);
    assert!(matches!(
        world.breaker(),
        BreakerState::Ramp { allowed: 2, .. }
    ));
    for _ in 0..5 {
        world.unique(SenderReputation::Known);
    }
    let first = world.started();
    assert_eq!(first.len(), 2);
    first.iter().for_each(|ticket| world.answered(*ticket));
    assert_eq!(
        world.started().len(),
        3,
        "and one more for each that ended well"
    );
}

/// Law 5: fresh mail waits for an engine that is out and has no substitute, as long as for a slot. Otherwise that mail would
/// be queued behind all deferred mail on the return of the engine. Mail that is scanned again is refused at once.
#[tokio::test(start_paused = true)]
async fn fresh_mail_waits_for_an_engine_that_nobody_makes_up_for() {
    for covered in [true, false] {
        let mut world = World::new(3);
        for _ in 0..3 {
            world.unique(SenderReputation::Known);
        }
        world.after(3000);
        world.gate.orders();
        world.gate.cover(covered);
        let fresh = world.unique(SenderReputation::Known);
        let again = GateRequest {
            scan_reason: ScanReason::Again,
            ..gate_request(world.now, TEXT, SenderReputation::Known)
        };
        let again = world.gate.enter(world.now, again);
        let told: Vec<Ticket> = world
            .refused()
            .into_iter()
            .map(|(ticket, _)| ticket)
            .collect();
        match covered {
            true => assert_eq!(told, [fresh, again]),
            false => assert_eq!(told, [again]),
        }
        world.after(1000);
        let later = world.refused();
        let open = |(_, refusal): &(Ticket, GateRefusal)| matches!(refusal, GateRefusal::Open(_));
        assert!(later.iter().all(open), "{later:?}");
        assert_eq!(later.len(), usize::from(!covered));
    }
}

/// A party that sends much does not delay a party that sends little.
#[tokio::test(start_paused = true)]
async fn parties_take_turns() {
    let mut world = World::new(1);
    let first = world.unique(SenderReputation::Known);
    let from = |world: &mut World, party: u64| {
        world.next += 1;
        let request = GateRequest {
            fairness_key: fairness_key(party),
            ..gate_request(world.now, world.next, SenderReputation::Known)
        };
        world.gate.enter(world.now, request)
    };
    let greedy: Vec<Ticket> = (0..50).map(|_| from(&mut world, 1)).collect();
    let modest = from(&mut world, 2);
    world.gate.orders();
    world.answered(first);
    assert_eq!(world.started(), [greedy[0]]);
    world.answered(greedy[0]);
    assert_eq!(world.started(), [modest]);
}

/// P3: a client that sends more text messages than the engine can scan does not delay attachments of other clients.
#[tokio::test(start_paused = true)]
async fn no_lane_goes_before_another() {
    let mut world = World::new(3);
    for at in 0..100 {
        let letter = GateRequest {
            fairness_key: fairness_key(7),
            ..gate_request(world.now, TEXT + at, SenderReputation::Known)
        };
        world.gate.enter(world.now, letter);
    }
    let begun = world.started();
    assert_eq!(begun.len(), 3);
    let other = world.enter(1, SenderReputation::Known);
    world.answered(begun[0]);
    assert_eq!(world.started(), [other]);
}

/// If one fingerprint fails repeatedly, the fingerprint is at fault, and the engine is not.
#[tokio::test(start_paused = true)]
async fn failures_of_one_fingerprint_do_not_open_the_breaker() {
    for (unrelated, opens) in [(false, false), (true, true)] {
        let mut world = World::new(12);
        for at in 0..30 {
            let ticket = match unrelated {
                true => world.unique(SenderReputation::Known),
                false => world.enter(7, SenderReputation::Known),
            };
            let _ = (at, world.started());
            world.gate.end(world.now, ticket, ScanEnd::Failed);
        }
        let open = matches!(world.breaker(), BreakerState::Open { .. });
        assert_eq!(open, opens, "unrelated: {unrelated}");
    }
}

/// A message that gets no slot within the wait is refused as `busy`.
#[tokio::test(start_paused = true)]
async fn waiting_ends() {
    let mut world = World::new(1);
    let long = world.unique(SenderReputation::Known);
    world.gate.orders();
    let waiting = world.unique(SenderReputation::Known);
    // Something ends now and then, so that it is no stall.
    world.after(500);
    world.gate.replicas[0].last_end = world.now;
    world.after(600);
    assert_eq!(world.refused(), [(waiting, GateRefusal::Busy)]);
    world.answered(long);
}

/// A replica that asks for a pause gets no scan until the end of the pause, and other replicas get its mail. Without another
/// replica, no message waits for the end of the pause. The request is not a failure (RFC 6585 section 4).
#[tokio::test(start_paused = true)]
async fn who_asks_to_be_left_alone_is_left_alone() {
    let mut world = World::new(100);
    world.gate = Gate::new(world.now, TIMES, (100, GuardSettings::default()), 2, true);
    let first = world.unique(SenderReputation::Known);
    let started = world.gate.orders();
    let [GateOrder::Start(_, resting)] = started[..] else {
        panic!("{started:?}");
    };
    let pause = ScanEnd::Rests(Duration::from_secs(60));
    world.gate.end(world.now, first, pause);
    let others: Vec<Ticket> = (0..100)
        .map(|_| world.unique(SenderReputation::Known))
        .collect();
    let started = world.gate.orders();
    assert_eq!(started.len(), 100);
    for order in started {
        assert!(
            matches!(order, GateOrder::Start(_, at) if at != resting),
            "{order:?}"
        );
    }
    world.gate.end(world.now, others[0], pause);
    others[1..].iter().for_each(|other| world.answered(*other));
    let nobody = world.unique(SenderReputation::Known);
    assert_eq!(world.refused(), [(nobody, GateRefusal::Resting)]);
    assert!(
        world.gate.is_busy(),
        "time must pass, or it would rest for ever"
    );
    world.after(60_000);
    let again = world.unique(SenderReputation::Known);
    assert_eq!(world.started(), [again]);
    assert_eq!(world.breaker(), BreakerState::Closed);
}

/// A random action. Numbers select among the tickets that exist.
#[derive(Debug, Clone)]
enum Act2 {
    Enter(u64, bool, u8),
    Leave(usize),
    ScanEnd(usize, u8),
    Wait(u64),
    Divert(u8, u64),
    Probe,
    Probed(bool),
    Drain(bool),
}

fn act() -> impl Strategy<Value = Act2> {
    prop_oneof![
        8 => (0_u64..6, any::<bool>(), 0_u8..3).prop_map(|(k, known, e)| Act2::Enter(k, known, e)),
        2 => any::<usize>().prop_map(Act2::Leave),
        6 => (any::<usize>(), 0_u8..4).prop_map(|(at, end)| Act2::ScanEnd(at, end)),
        3 => (0_u64..3000).prop_map(Act2::Wait),
        1 => (0_u8..4, 0_u64..6).prop_map(|(act, key)| Act2::Divert(act, key)),
        1 => Just(Act2::Probe),
        1 => any::<bool>().prop_map(Act2::Probed),
        1 => any::<bool>().prop_map(Act2::Drain),
    ]
}

proptest! {
    /// I1 and I6 for random actions: there are never more scans than slots (and one probe). Each request gets at most one
    /// answer, and exactly one after enough time, unless the message has left.
    #[test]
    fn slots_hold_and_everybody_is_answered_once(acts in prop::collection::vec(act(), 1..120), slots in 1_usize..6) {
        let mut world = World::new(slots);
        let mut waiting: Vec<Ticket> = Vec::new();
        let mut running: Vec<Ticket> = Vec::new();
        for act in acts {
            match act {
                Act2::Enter(key, known, scan_reason) => {
                    let reputation = if known { SenderReputation::Known } else { SenderReputation::Unknown };
                    let scan_reason = [ScanReason::Fresh, ScanReason::Again, ScanReason::Redrive][scan_reason as usize];
                    let one = GateRequest { scan_reason, ..gate_request(world.now, key, reputation) };
                    waiting.push(world.gate.enter(world.now, one));
                }
                Act2::Leave(at) if !waiting.is_empty() => {
                    let ticket = waiting.swap_remove(at % waiting.len());
                    world.gate.leave(ticket);
                }
                Act2::ScanEnd(at, end) if !running.is_empty() => {
                    let ticket = running.swap_remove(at % running.len());
                    let rests = ScanEnd::Rests(milliseconds(2000));
                    let end = [ScanEnd::Answered { found: false }, ScanEnd::Failed, ScanEnd::Lost, rests][end as usize];
                    world.gate.end(world.now, ticket, end);
                }
                Act2::Wait(time) => world.after(time),
                Act2::Divert(0, _) => world.gate.divert(world.now, Arc::new([])),
                Act2::Divert(act, key) => {
                    world.divert([DiversionAct::Park, DiversionAct::Hold, DiversionAct::Bypass][act as usize - 1], key);
                }
                Act2::Probe => running.extend(world.gate.probe(world.now, 0)),
                Act2::Probed(passed) => world.gate.probed(world.now, 0, passed),
                Act2::Drain(drained) => {
                    world.gate.drain(world.now, 0, drained.then(Drain::plain));
                }
                Act2::Leave(_) | Act2::ScanEnd(..) => {}
            }
            for order in world.gate.orders() {
                let (ticket, starts) = match order {
                    GateOrder::Start(ticket, _) => (ticket, true),
                    GateOrder::Refuse(ticket, _) => (ticket, false),
                    GateOrder::Blocked(_) => continue,
                };
                let at = waiting.iter().position(|t| *t == ticket);
                prop_assert!(at.is_some(), "answered twice, or after it left");
                waiting.retain(|t| *t != ticket);
                if starts {
                    running.push(ticket);
                }
            }
            // One probe may be sent where no slot is free.
            prop_assert!(world.gate.running() <= slots + 1);
            prop_assert_eq!(world.gate.running(), running.len());
            prop_assert_eq!(world.gate.queued(), waiting.len());
        }
        world.after(11_000);
        let answered = world.gate.orders().len();
        prop_assert!(answered >= waiting.len(), "{} of {}", answered, waiting.len());
    }
}
