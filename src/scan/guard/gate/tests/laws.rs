//! Checks laws 1 to 4 (RESILIENCE section 2, "Levels of trust") after each step of random worlds. The checks are independent
//! of the code of the gate: they look at messages that wait although a slot is free, and at the reasons of refusals.

use super::*;

/// Most slots of a random world.
const SLOTS_MAX: usize = 13;

/// A random action.
#[derive(Debug, Clone)]
enum Step {
    Enter {
        reputation: SenderReputation,
        /// One of four attachments; `None` for a text that no other message has.
        attachment: Option<u64>,
        party: u64,
        scan_reason: ScanReason,
        timed_out_before: bool,
        large: bool,
    },
    Leave(usize),
    End(usize),
    /// The engine answers all running scans.
    Answers,
    Wait(u64),
}

impl Step {
    /// The laws hold after each answer, and not only after the last of many at once.
    fn singly(self) -> Vec<Self> {
        match self {
            Self::Answers => vec![Self::End(0); SLOTS_MAX],
            other => vec![other],
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let reputation = prop_oneof![
        Just(SenderReputation::Known),
        Just(SenderReputation::Unknown)
    ];
    let attachment = prop_oneof![2 => Just(None), 1 => (0_u64..4).prop_map(Some)];
    let scan_reason = prop_oneof![3 => Just(ScanReason::Fresh), 1 => Just(ScanReason::Again)];
    let (timed_out_before, large) = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let enter = (
        reputation,
        attachment,
        0_u64..8,
        scan_reason,
        (timed_out_before, large),
    );
    prop_oneof![
        12 => enter.prop_map(|(reputation, attachment, party, scan_reason, (timed_out_before, large))| Step::Enter {
            reputation,
            attachment,
            party,
            scan_reason,
            timed_out_before,
            large,
        }),
        1 => any::<usize>().prop_map(Step::Leave),
        4 => any::<usize>().prop_map(Step::End),
        1 => Just(Step::Answers),
        4 => (0_u64..900).prop_map(Step::Wait),
    ]
}

impl World {
    /// The law that is broken if a slot is free while a message waits that could be scanned; `None` if no law is broken.
    fn idles(&self, known_mail_came: bool) -> Option<&'static str> {
        let gate = &self.gate;
        if gate.free() == 0 || self.breaker() != BreakerState::Closed {
            return None;
        }
        let scans = || gate.scans.values().filter(|scan| !scan.is_probe);
        let of_strangers = scans().filter(|scan| scan.level == Level::Unknown);
        let slow = scans().filter(|scan| scan.is_slow).count();
        let strangers_most = gate.slots - (gate.slots / 3).max(1);
        let paused = gate.pauses.iter().filter(|end| self.now < **end).count();
        let stranger_has_room = of_strangers.count() + paused < strangers_most.max(1);
        let is_alone = |waiting: &Waiting| {
            let counts =
                |scan: &&Scan| waiting.level == Level::Unknown || scan.level != Level::Unknown;
            let of_same_reputation =
                |scan: &&Scan| (scan.level == Level::Unknown) == (waiting.level == Level::Unknown);
            let mut others = scans().filter(of_same_reputation);
            let slow = scans().filter(counts).filter(|scan| scan.is_slow).count();
            others.all(|scan| !scan.request.timed_out_before) && 2 * slow <= gate.slots
        };
        let half = (strangers_most / 2).max(1);
        for waiting in gate.waiting.values().filter(|waiting| !waiting.parked) {
            let request = &waiting.request;
            if request.timed_out_before && !is_alone(waiting) {
                continue;
            }
            let same = || {
                scans().filter(|scan| scan.request.fairness_key.party == request.fairness_key.party)
            };
            if same().any(|scan| scan.is_slow) {
                continue;
            }
            let better = |scan: &&Scan| scan.request.large && scan.level <= waiting.level;
            let has_enough = scans().filter(better).count() >= half;
            if request.large && has_enough && scans().filter(better).any(|scan| scan.is_slow) {
                continue;
            }
            let mut large = scans().filter(|scan| scan.request.large);
            if request.large && request.timed_out_before && large.any(|scan| scan.is_slow) {
                continue;
            }
            match waiting.level {
                Level::Proven => {
                    return Some("laws 2 and 4: better-known mail waits beside a free slot");
                }
                Level::Unknown if stranger_has_room => {
                    return Some(
                        "law 2: a stranger waits though a third of the slots is left to others",
                    );
                }
                Level::Unknown if !known_mail_came && slow == 0 => {
                    return Some("law 1: a slot is kept for known mail where there is none");
                }
                Level::Unproven | Level::Unknown => {}
            }
        }
        None
    }

    /// Whether there is a reason to blame a refused message: the message timed out before, the same content is being scanned
    /// slowly, or the sender is unknown and mail of unknown senders hangs.
    fn is_blamed_rightly(&self, request: &GateRequest) -> bool {
        let scans = || self.gate.scans.values();
        let shares = |scan: &Scan| {
            let fingerprint = request.fingerprint.as_ref();
            let other = scan.request.fingerprint.as_ref();
            fingerprint
                .zip(other)
                .is_some_and(|(one, other)| one.exact == other.exact)
        };
        // Also until the next scans in the slots of ended ones would be slow.
        let until = self.gate.suspected_until;
        let strangers_hang = until.is_some_and(|until| self.now < until)
            || scans().any(|scan| scan.level == Level::Unknown && scan.is_slow);
        let is_stranger = request.reputation == SenderReputation::Unknown;
        let hangs = scans().any(|scan| shares(scan) && scan.is_slow);
        request.timed_out_before || hangs || is_stranger && strangers_hang
    }
}

proptest! {
    /// Law 1: a slot stays idle only for more trusted mail, and only after such mail has come. Law 2: zombies of unknown
    /// senders take slots only from unknown senders. Law 3: a message that only waits is refused as `busy`. Law 4: messages
    /// that timed out before are scanned one at a time, of known and of unknown senders each, and do not block the messages
    /// behind them.
    #[test]
    fn the_laws_hold_after_every_step(steps in prop::collection::vec(step(), 1..200), slots in 3..=SLOTS_MAX) {
        let mut world = World::new(slots);
        let mut waiting: HashMap<Ticket, GateRequest> = HashMap::new();
        let mut running: Vec<Ticket> = Vec::new();
        let mut known_mail_came = false;
        for step in steps.into_iter().flat_map(Step::singly) {
            match step {
                Step::Enter { reputation, attachment, party, scan_reason, timed_out_before, large } => {
                    let content = attachment.unwrap_or_else(|| {
                        world.next += 1;
                        world.next
                    });
                    let fairness_key = fairness_key(party);
                    let one = GateRequest { scan_reason, timed_out_before, large, fairness_key, ..gate_request(world.now, content, reputation) };
                    waiting.insert(world.gate.enter(world.now, one.clone()), one);
                }
                Step::Leave(at) => {
                    if let Some(ticket) = waiting.keys().copied().nth(at % (waiting.len() + 1)) {
                        waiting.remove(&ticket);
                        world.gate.leave(ticket);
                    }
                }
                Step::End(at) if !running.is_empty() => {
                    let ticket = running.swap_remove(at % running.len());
                    world.answered(ticket);
                }
                Step::Wait(time) => world.after(time),
                Step::End(_) | Step::Answers => {}
            }
            for order in world.gate.orders() {
                match order {
                    GateOrder::Start(ticket, _) => {
                        let request = waiting.remove(&ticket);
                        known_mail_came |= request.is_some_and(|e| e.reputation == SenderReputation::Known);
                        running.push(ticket);
                    }
                    GateOrder::Refuse(ticket, refusal) => {
                        let Some(request) = waiting.remove(&ticket) else {
                            continue;
                        };
                        let is_blamed = matches!(refusal, GateRefusal::Parked(_) | GateRefusal::Suspect(_));
                        prop_assert!(
                            !is_blamed || world.is_blamed_rightly(&request),
                            "law 3: {refusal:?} for {request:?}"
                        );
                    }
                    GateOrder::Blocked(_) => {}
                }
            }
            prop_assert_eq!(world.idles(known_mail_came), None);
            for of_unknown in [false, true] {
                let again = world.gate.scans.values().filter(|scan| {
                    scan.request.timed_out_before && (scan.level == Level::Unknown) == of_unknown
                });
                prop_assert!(again.count() <= 1, "law 4: two that hung once are scanned at once");
            }
        }
    }
}
