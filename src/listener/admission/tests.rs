//! The laws of the rule, with seeded randomness and time as an argument.

use proptest::prelude::*;

use super::*;
use crate::message::Mailbox;

const MEMORY: u64 = 1000;

/// A ledger with the memory it speaks of.
struct Memory {
    ledger: Ledger,
    now: Instant,
    free: u64,
}

impl Memory {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            ledger: Ledger::new(now, MEMORY),
            now,
            free: MEMORY,
        }
    }

    fn stranger(&self, number: u8) -> Party {
        self.party(number, Standing::Unknown)
    }

    fn party(&self, number: u8, standing: Standing) -> Party {
        let client = IpAddr::from([192, 0, 2, number]);
        party(&self.ledger, client, "a@a.test", standing)
    }

    fn enter(&mut self, party: &Party, octets: u64) -> Result<(), Refusal> {
        self.ledger.enter(self.now, party, octets, self.free)?;
        self.free -= octets;
        Ok(())
    }

    fn leave(&mut self, party: &Party, octets: u64) {
        self.ledger.leave(self.now, party, octets, false);
        self.free += octets;
    }

    /// As much as it gets, one octet at a time; how much that is.
    fn fill(&mut self, party: &Party) -> u64 {
        let before = self.free;
        while self.enter(party, 1).is_ok() {}
        before - self.free
    }

    fn pulse(&mut self, waiting: u64) {
        let pressure = Pressure {
            waiting,
            bound: 100,
            ..Pressure::NONE
        };
        self.ledger.pulse(self.now, pressure, self.free);
    }
}

/// Of what a client brings with this reverse-path.
fn party(ledger: &Ledger, client: IpAddr, from: &str, standing: Standing) -> Party {
    let from = Mailbox::parse(from).expect("a mailbox");
    let sender = message::Party::new(client, None, &from.into(), None);
    ledger.party(client, &sender, standing)
}

/// The three levels: a sender alone gets half, a known one four fifths; a client with many senders four fifths, a known
/// one 94 %.
#[test]
fn whoever_is_alone_is_refused_from_its_level_on() {
    let alone = |standing| {
        let mut memory = Memory::new();
        let party = memory.party(1, standing);
        memory.fill(&party)
    };
    assert_eq!(alone(Standing::Unknown), MEMORY / 2);
    assert_eq!(alone(Standing::Known), MEMORY / 5 * 4);
    let many = |standing| {
        let mut memory = Memory::new();
        let client = IpAddr::from([192, 0, 2, 1]);
        let admitted = (0..2000).filter(|n| {
            let party = party(&memory.ledger, client, &format!("{n}@a.test"), standing);
            memory.enter(&party, 1).is_ok()
        });
        admitted.count() as u64
    };
    assert_eq!(many(Standing::Unknown), MEMORY / 5 * 4);
    assert_eq!(many(Standing::Known), MEMORY * 16 / 17 + 1);
}

/// However many are greedy, one after the other, they leave room for one more.
#[test]
fn the_greedy_leave_room_for_one_more() {
    let mut memory = Memory::new();
    for number in 0..8 {
        let greedy = memory.stranger(number);
        assert!(memory.fill(&greedy) > 0);
    }
    let modest = memory.stranger(100);
    assert_eq!(memory.enter(&modest, 1), Ok(()));
}

/// The share of a client is one for all addresses that are his: of IPv6 a whole /64, or its owner would be a million.
#[test]
fn an_ipv6_network_is_one_client() {
    let ledger = Ledger::new(Instant::now(), MEMORY);
    let network = |address: &str| {
        let address = address.parse().expect("an address");
        party(&ledger, address, "a@a.test", Standing::Unknown).network
    };
    assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::9"));
    assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
}

/// Law 9: behind one mail server all mail has one client address, and maybe one domain. A sender who brings all that he can
/// is refused, and his neighbour is not, neither at the memory nor at the work that waits.
#[test]
fn one_sender_leaves_room_for_others_behind_one_mail_server() {
    let mut memory = Memory::new();
    let server = IpAddr::from([192, 0, 2, 1]);
    let sender = |memory: &Memory, from| party(&memory.ledger, server, from, Standing::Unknown);
    let greedy = sender(&memory, "greedy@a.test");
    assert_eq!(memory.fill(&greedy), MEMORY / 2);
    let neighbour = sender(&memory, "neighbour@a.test");
    assert_eq!(memory.enter(&neighbour, 10), Ok(()));

    let mut memory = Memory::new();
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    memory.pulse(70);
    assert_eq!(memory.enter(&greedy, 0), Err(Refusal::WorkShare));
    assert_eq!(memory.enter(&neighbour, 0), Ok(()));
}

/// A rise of what waits is believed at once and a fall by halves, pulse by pulse: who is refused is not let in by a moment in
/// which nothing happened to wait.
#[test]
fn a_fall_of_the_pressure_is_believed_by_halves() {
    let mut memory = Memory::new();
    let greedy = memory.stranger(1);
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    memory.pulse(100);
    assert_eq!(memory.ledger.load(memory.free), 1.0);
    memory.pulse(0);
    assert_eq!(memory.ledger.load(memory.free), 0.5);
    memory.pulse(30);
    assert_eq!(memory.ledger.load(memory.free), 0.4);
    memory.pulse(100);
    assert_eq!(memory.ledger.load(memory.free), 1.0);
    memory.pulse(40);
    assert_eq!(memory.enter(&greedy, 0), Err(Refusal::WorkShare));
}

/// Content that comes in is held to the client's share as it grows: sizes are not known before, and promises are not believed.
#[test]
fn what_comes_in_grows_up_to_the_share_of_its_client() {
    for (standing, share) in [
        (Standing::Unknown, MEMORY / 5 * 4),
        (Standing::Known, MEMORY * 16 / 17),
    ] {
        let mut memory = Memory::new();
        let party = memory.party(1, standing);
        memory.enter(&party, 0).expect("nothing is held");
        while memory.ledger.grow(memory.now, &party, 1, memory.free) {
            memory.free -= 1;
            assert!(memory.free > 0, "without bound");
        }
        let held = MEMORY - memory.free;
        assert!((share..=share + 1).contains(&held), "{held}");
        assert_eq!(memory.ledger.refusing(), Some(1));
        let other = memory.stranger(2);
        assert_eq!(memory.enter(&other, 10), Ok(()), "there is room for others");
    }
}

/// A message that has left counts for nothing any more but for having been brought lately: its client is not refused for ever
/// for what it once sent.
#[test]
fn messages_leave_the_account() {
    let mut memory = Memory::new();
    let party = memory.stranger(1);
    for _ in 0..500 {
        memory.enter(&party, 1).expect("there is room");
        memory.ledger.complete(memory.now, &party);
        memory.ledger.leave(memory.now, &party, 1, true);
        memory.free += 1;
    }
    assert_eq!(
        (memory.ledger.all.messages, memory.ledger.all.octets),
        (0, 0)
    );
    memory.now += HALF_LIFE * 20;
    memory.pulse(90);
    assert!(memory.ledger.networks.is_empty() && memory.ledger.senders.is_empty());
    assert_eq!(memory.enter(&party, 1), Ok(()));
}

/// Work that waits counts against those who brought it lately, and nobody gets in when as much waits as may.
#[test]
fn those_who_brought_the_work_that_waits_are_refused_first() {
    let mut memory = Memory::new();
    let (greedy, modest) = (memory.stranger(1), memory.stranger(2));
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    for _ in 0..10 {
        memory.enter(&modest, 0).expect("nothing waits");
    }
    memory.pulse(49);
    assert_eq!(memory.enter(&greedy, 0), Ok(()), "not half full");
    memory.pulse(60);
    assert_eq!(memory.enter(&greedy, 0), Err(Refusal::WorkShare));
    assert_eq!(memory.enter(&modest, 0), Ok(()));
    memory.pulse(100);
    assert_eq!(memory.enter(&modest, 0), Err(Refusal::Work));
    for _ in 0..8 {
        memory.pulse(60);
    }
    assert_eq!(memory.enter(&greedy, 0), Err(Refusal::WorkShare));
    memory.now += HALF_LIFE * 10;
    for _ in 0..3 {
        memory.enter(&modest, 0).expect("a little");
    }
    assert_eq!(memory.enter(&greedy, 0), Ok(()), "ten half-lives ago");
    for _ in 0..30 {
        memory.enter(&modest, 0).expect("alone, but no crowd");
    }
}

/// Whoever is known is refused later than strangers who hold as much.
#[test]
fn the_known_are_preferred() {
    let mut memory = Memory::new();
    let stranger = memory.stranger(1);
    memory.fill(&stranger);
    let known = memory.party(1, Standing::Known);
    assert_eq!(memory.enter(&stranger, 1), Err(Refusal::MemoryShare));
    assert_eq!(memory.enter(&known, 1), Ok(()));
}

/// The largest allowed message fits a memory that is just large enough for it (four thirds of it), whoever sends it, or
/// it would be told "later" for ever.
#[test]
fn the_largest_message_of_a_stranger_fits() {
    let mut memory = Memory::new();
    let party = memory.stranger(1);
    memory.enter(&party, 10).expect("nothing is held");
    for _ in 0..74 {
        let free = memory.free;
        assert!(memory.ledger.grow(memory.now, &party, 10, free));
        memory.free -= 10;
    }
}

/// A time of refusals is one incident when it begins and one when it ends, however often mail is refused within it. It
/// ends when nobody was refused for a while and there is plenty, not with the first message that gets in.
#[test]
fn a_time_of_refusals_is_told_when_it_begins_and_when_it_ends() {
    let mut memory = Memory::new();
    let party = memory.stranger(1);
    let held = memory.fill(&party);
    assert!(memory.enter(&party, 1).is_err());
    let told = memory.ledger.take_incidents();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind, Kind::AdmissionRefuses);
    let evidence: Vec<&str> = told[0].evidence.iter().map(|(_, v)| &**v).collect();
    assert!(evidence.contains(&"192.0.2.1"), "{evidence:?}");

    memory.now += CALM;
    memory.pulse(0);
    assert!(memory.ledger.take_incidents().is_empty(), "half is held");
    memory.leave(&party, held);
    memory.enter(&party, 1).expect("there is plenty");
    memory.pulse(0);
    let told = memory.ledger.take_incidents();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind, Kind::AdmissionAccepts);
    assert_eq!(told[0].evidence[0].1, "2");
    memory.now += CALM;
    memory.pulse(0);
    assert!(memory.ledger.take_incidents().is_empty());
    assert_eq!(memory.ledger.refusing(), None);
}

/// A flood from ever new addresses cannot fill the tables, not even one that is faster than they are tidied; what was
/// brought long ago leaves nothing behind.
#[test]
fn the_tables_are_bounded() {
    let mut memory = Memory::new();
    for number in 0..30_000_u32 {
        let client = IpAddr::from((10 << 24 | number).to_be_bytes());
        let party = party(&memory.ledger, client, "a@a.test", Standing::Unknown);
        memory.enter(&party, 0).expect("nothing waits");
    }
    assert_eq!(memory.ledger.networks.len(), ACCOUNTS);
    assert_eq!(memory.ledger.senders.len(), ACCOUNTS);
    memory.now += HALF_LIFE * 4;
    memory.pulse(0);
    assert!(memory.ledger.networks.is_empty() && memory.ledger.senders.is_empty());
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Act {
    Enter(u8, bool, u64),
    Leave(usize),
    Pass(u64),
    Pulse(u64),
}

fn history() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..6u8, any::<bool>(), 0..120u64).prop_map(|(c, k, o)| Act::Enter(c, k, o)),
        3 => any::<usize>().prop_map(Act::Leave),
        1 => (0..30u64).prop_map(Act::Pass),
        1 => (0..140u64).prop_map(Act::Pulse),
    ];
    proptest::collection::vec(act, 1..200)
}

/// What the six hold, and whether each would be admitted with a message of ten octets.
fn asked(memory: &mut Memory) -> Vec<(u64, f64, bool)> {
    let (now, free) = (memory.now, memory.free);
    let ask = |number| {
        let party = memory.stranger(number);
        let admitted = memory.ledger.ask(now, &party, 10, free).is_ok();
        let account = memory.ledger.networks.get(&party.network);
        let mut account = account.copied().unwrap_or(Account::new(now));
        account.fade(now);
        (account.octets, account.weight(), admitted)
    };
    (0..6).map(ask).collect()
}

proptest! {
    /// Whatever happened before: no more is held than there is, nobody is refused below half, and nobody is refused who
    /// holds less than somebody of the same standing who is admitted. So nobody below its fair share, whatever that is,
    /// is refused while somebody above it gets in.
    #[test]
    fn nobody_is_refused_who_holds_less_than_one_who_is_admitted(history in history()) {
        let mut memory = Memory::new();
        let mut held: Vec<(Party, u64)> = Vec::new();
        for act in history {
            match act {
                Act::Enter(number, known, octets) => {
                    let standing = if known { Standing::Known } else { Standing::Unknown };
                    let party = memory.party(number, standing);
                    let taken = MEMORY - memory.free;
                    match memory.enter(&party, octets) {
                        Ok(()) => held.push((party, octets)),
                        Err(_) => prop_assert!(
                            taken + octets > MEMORY / 2 || memory.ledger.work > 0.5,
                            "refused with {taken} taken and work {}", memory.ledger.work
                        ),
                    }
                }
                Act::Leave(_) if held.is_empty() => {}
                Act::Leave(nth) => {
                    let (party, octets) = held.swap_remove(nth % held.len());
                    memory.leave(&party, octets);
                }
                Act::Pass(seconds) => memory.now += Duration::from_secs(seconds),
                Act::Pulse(waiting) => memory.pulse(waiting),
            }
            let sum: u64 = held.iter().map(|(_, octets)| octets).sum();
            prop_assert!(sum <= MEMORY);
            prop_assert_eq!(memory.ledger.all.octets, sum);
            let asked = asked(&mut memory);
            for (octets, weight, admitted) in &asked {
                let envied = |(more, heavier, also): &&(u64, f64, bool)| {
                    octets <= more && weight <= heavier && *also
                };
                let envied = asked.iter().find(envied);
                prop_assert!(*admitted || envied.is_none(), "{asked:?}");
            }
        }
    }
}
