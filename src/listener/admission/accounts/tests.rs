//! The laws of the admission rule, with seeded randomness and time as an argument.

use proptest::prelude::*;

use super::*;
use crate::message::Mailbox;

const MEMORY_OCTETS: u64 = 1000;

/// Accounts together with a simulated memory.
struct Memory {
    accounts: AdmissionAccounts,
    now: Instant,
    free: u64,
}

impl Memory {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            accounts: AdmissionAccounts::new(now, MEMORY_OCTETS),
            now,
            free: MEMORY_OCTETS,
        }
    }

    fn stranger(&self, number: u8) -> AdmissionParty {
        self.party(number, SenderReputation::Unknown)
    }

    fn party(&self, number: u8, reputation: SenderReputation) -> AdmissionParty {
        let client = IpAddr::from([192, 0, 2, number]);
        party(&self.accounts, client, "a@a.test", reputation)
    }

    fn enter(&mut self, party: &AdmissionParty, octets: u64) -> Result<(), AdmissionRefusal> {
        self.accounts.enter(self.now, party, octets, self.free)?;
        self.free -= octets;
        Ok(())
    }

    fn leave(&mut self, party: &AdmissionParty, octets: u64) {
        self.accounts.leave(self.now, party, octets, false);
        self.free += octets;
    }

    /// Enters messages of one octet until the party is refused; returns the octets entered.
    fn fill(&mut self, party: &AdmissionParty) -> u64 {
        let before = self.free;
        while self.enter(party, 1).is_ok() {}
        before - self.free
    }

    fn update_load(&mut self, waiting: u64) {
        let pressure = Pressure {
            waiting,
            bound: 100,
            ..Pressure::NONE
        };
        self.accounts.update_load(self.now, pressure, self.free);
    }
}

/// The party of mail that a client brings with this reverse-path.
fn party(
    accounts: &AdmissionAccounts,
    client: IpAddr,
    from: &str,
    reputation: SenderReputation,
) -> AdmissionParty {
    let from = Mailbox::parse(from).expect("a mailbox");
    let sender = message::Party::new(client, None, &from.into(), None);
    accounts.party(client, &sender, reputation)
}

/// The three levels: an unknown sender alone gets half of the memory and a known one four fifths; a client network with
/// many senders gets four fifths, and with known senders 94 %.
#[test]
fn a_party_alone_is_refused_from_its_level_on() {
    let alone = |reputation| {
        let mut memory = Memory::new();
        let party = memory.party(1, reputation);
        memory.fill(&party)
    };
    assert_eq!(alone(SenderReputation::Unknown), MEMORY_OCTETS / 2);
    assert_eq!(alone(SenderReputation::Known), MEMORY_OCTETS / 5 * 4);
    let many = |reputation| {
        let mut memory = Memory::new();
        let client = IpAddr::from([192, 0, 2, 1]);
        let admitted = (0..2000).filter(|n| {
            let party = party(&memory.accounts, client, &format!("{n}@a.test"), reputation);
            memory.enter(&party, 1).is_ok()
        });
        admitted.count() as u64
    };
    assert_eq!(many(SenderReputation::Unknown), MEMORY_OCTETS / 5 * 4);
    assert_eq!(many(SenderReputation::Known), MEMORY_OCTETS * 16 / 17 + 1);
}

/// Any number of greedy parties, one after the other, leave room for one more.
#[test]
fn greedy_parties_leave_room_for_one_more() {
    let mut memory = Memory::new();
    for number in 0..8 {
        let greedy = memory.stranger(number);
        assert!(memory.fill(&greedy) > 0);
    }
    let modest = memory.stranger(100);
    assert_eq!(memory.enter(&modest, 1), Ok(()));
}

/// All addresses of one client share one account. For IPv6 this is a whole /64; otherwise its owner could act as a
/// million clients.
#[test]
fn an_ipv6_network_is_one_client() {
    let accounts = AdmissionAccounts::new(Instant::now(), MEMORY_OCTETS);
    let network = |address: &str| {
        let address = address.parse().expect("an address");
        party(&accounts, address, "a@a.test", SenderReputation::Unknown).network
    };
    assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::9"));
    assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
}

/// Law 9: behind one mail server all mail has one client address and possibly one domain. A greedy sender is refused,
/// and another sender behind the same server is not, neither for memory nor for work that waits.
#[test]
fn one_sender_leaves_room_for_others_behind_one_mail_server() {
    let mut memory = Memory::new();
    let server = IpAddr::from([192, 0, 2, 1]);
    let sender =
        |memory: &Memory, from| party(&memory.accounts, server, from, SenderReputation::Unknown);
    let greedy = sender(&memory, "greedy@a.test");
    assert_eq!(memory.fill(&greedy), MEMORY_OCTETS / 2);
    let neighbour = sender(&memory, "neighbour@a.test");
    assert_eq!(memory.enter(&neighbour, 10), Ok(()));

    let mut memory = Memory::new();
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    memory.update_load(70);
    assert_eq!(memory.enter(&greedy, 0), Err(AdmissionRefusal::WorkShare));
    assert_eq!(memory.enter(&neighbour, 0), Ok(()));
}

/// A rise of the backlog takes effect immediately and a fall by halves with each update_load. A single update_load without a
/// backlog does not admit a party that was refused.
#[test]
fn a_fall_of_the_pressure_takes_effect_by_halves() {
    let mut memory = Memory::new();
    let greedy = memory.stranger(1);
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    memory.update_load(100);
    assert_eq!(memory.accounts.load(memory.free), 1.0);
    memory.update_load(0);
    assert_eq!(memory.accounts.load(memory.free), 0.5);
    memory.update_load(30);
    assert_eq!(memory.accounts.load(memory.free), 0.4);
    memory.update_load(100);
    assert_eq!(memory.accounts.load(memory.free), 1.0);
    memory.update_load(40);
    assert_eq!(memory.enter(&greedy, 0), Err(AdmissionRefusal::WorkShare));
}

/// Incoming content is limited to the client's share while it grows, because sizes are not known in advance and
/// declared sizes are not trusted.
#[test]
fn incoming_content_grows_up_to_the_share_of_its_client() {
    for (reputation, share) in [
        (SenderReputation::Unknown, MEMORY_OCTETS / 5 * 4),
        (SenderReputation::Known, MEMORY_OCTETS * 16 / 17),
    ] {
        let mut memory = Memory::new();
        let party = memory.party(1, reputation);
        memory.enter(&party, 0).expect("nothing is held");
        while memory.accounts.grow(memory.now, &party, 1, memory.free) {
            memory.free -= 1;
            assert!(memory.free > 0, "without bound");
        }
        let held = MEMORY_OCTETS - memory.free;
        assert!((share..=share + 1).contains(&held), "{held}");
        assert_eq!(memory.accounts.refusing(), Some(1));
        let other = memory.stranger(2);
        assert_eq!(memory.enter(&other, 10), Ok(()), "there is room for others");
    }
}

/// A message that has left counts only as recently brought mail, and that count decays: a client is not refused forever
/// for earlier mail.
#[test]
fn messages_leave_the_account() {
    let mut memory = Memory::new();
    let party = memory.stranger(1);
    for _ in 0..500 {
        memory.enter(&party, 1).expect("there is room");
        memory.accounts.complete(memory.now, &party);
        memory.accounts.leave(memory.now, &party, 1, true);
        memory.free += 1;
    }
    assert_eq!(
        (memory.accounts.all.messages, memory.accounts.all.octets),
        (0, 0)
    );
    memory.now += RECENT_HALF_LIFE * 20;
    memory.update_load(90);
    assert!(memory.accounts.networks.is_empty() && memory.accounts.senders.is_empty());
    assert_eq!(memory.enter(&party, 1), Ok(()));
}

/// Work that waits counts against the parties that brought it recently, and no party is admitted at the backlog limit.
#[test]
fn parties_with_much_waiting_work_are_refused_first() {
    let mut memory = Memory::new();
    let (greedy, modest) = (memory.stranger(1), memory.stranger(2));
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    for _ in 0..10 {
        memory.enter(&modest, 0).expect("nothing waits");
    }
    memory.update_load(49);
    assert_eq!(memory.enter(&greedy, 0), Ok(()), "not half full");
    memory.update_load(60);
    assert_eq!(memory.enter(&greedy, 0), Err(AdmissionRefusal::WorkShare));
    assert_eq!(memory.enter(&modest, 0), Ok(()));
    memory.update_load(100);
    assert_eq!(memory.enter(&modest, 0), Err(AdmissionRefusal::Work));
    for _ in 0..8 {
        memory.update_load(60);
    }
    assert_eq!(memory.enter(&greedy, 0), Err(AdmissionRefusal::WorkShare));
    memory.now += RECENT_HALF_LIFE * 10;
    for _ in 0..3 {
        memory.enter(&modest, 0).expect("a little");
    }
    assert_eq!(memory.enter(&greedy, 0), Ok(()), "ten half-lives ago");
    for _ in 0..30 {
        memory.enter(&modest, 0).expect("alone, but no crowd");
    }
}

/// Why mail is refused is told by the measurement from which the work comes, even if the engine has caught up since: the engine
/// by its name. What is short is told as of the last refusal.
#[test]
fn a_refusal_names_what_is_short() {
    let wait = |seconds| Pressure {
        engine: Some("clamd".into()),
        wait: Duration::from_secs(seconds),
        patience: Duration::from_secs(10),
        ..Pressure::NONE
    };
    let clamd = || Shortage::Wait {
        engine: "clamd".into(),
    };
    let mut memory = Memory::new();
    let greedy = memory.stranger(1);
    for _ in 0..90 {
        memory.enter(&greedy, 0).expect("nothing waits");
    }
    assert_eq!(memory.accounts.shortage(), None);
    let mut told = Vec::new();
    // The wait falls by halves: 2 s are less than half of what the work still is.
    for seconds in [20, 20, 2] {
        memory
            .accounts
            .update_load(memory.now, wait(seconds), memory.free);
        assert_eq!(memory.enter(&greedy, 0), Err(AdmissionRefusal::WorkShare));
        assert_eq!(memory.accounts.shortage(), Some(clamd()));
        told.extend(memory.accounts.take_incidents());
    }
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1, wait(20), "what explains the incident");
    assert_eq!(memory.accounts.pressure, wait(20), "the work comes from it");
    memory
        .accounts
        .update_load(memory.now, wait(0), memory.free);
    memory
        .accounts
        .update_load(memory.now, wait(0), memory.free);
    assert_eq!(memory.accounts.pressure, wait(0), "nothing waits any more");
    memory.update_load(90);
    assert_eq!(memory.enter(&greedy, 0), Err(AdmissionRefusal::WorkShare));
    assert_eq!(memory.accounts.shortage(), Some(Shortage::Backlog));
    memory.update_load(0);
    for _ in 0..4 {
        memory.update_load(0);
    }
    assert_eq!(memory.enter(&greedy, 2000), Err(AdmissionRefusal::Memory));
    assert_eq!(memory.accounts.shortage(), Some(Shortage::Memory));
}

/// A known sender is refused later than an unknown sender that holds as much.
#[test]
fn known_senders_are_refused_later() {
    let mut memory = Memory::new();
    let stranger = memory.stranger(1);
    memory.fill(&stranger);
    let known = memory.party(1, SenderReputation::Known);
    assert_eq!(
        memory.enter(&stranger, 1),
        Err(AdmissionRefusal::MemoryShare)
    );
    assert_eq!(memory.enter(&known, 1), Ok(()));
}

/// The largest allowed message fits into a memory that is just large enough for it (four thirds of its size), for every
/// sender. Otherwise the sender would retry forever.
#[test]
fn the_largest_message_of_an_unknown_sender_fits() {
    let mut memory = Memory::new();
    let party = memory.stranger(1);
    memory.enter(&party, 10).expect("nothing is held");
    for _ in 0..74 {
        let free = memory.free;
        assert!(memory.accounts.grow(memory.now, &party, 10, free));
        memory.free -= 10;
    }
}

/// A period of refusals is one incident at its beginning and one at its end, independent of the number of refusals. The
/// period ends after a time without refusals and with enough free capacity, not with the first admitted message.
#[test]
fn a_period_of_refusals_is_reported_at_its_beginning_and_its_end() {
    let mut memory = Memory::new();
    let pressure = Pressure {
        wait: Duration::from_micros(902_414),
        patience: Duration::from_secs(10),
        bound: 100,
        ..Pressure::NONE
    };
    memory
        .accounts
        .update_load(memory.now, pressure, memory.free);
    let party = memory.stranger(1);
    let held = memory.fill(&party);
    assert!(memory.enter(&party, 1).is_err());
    let told = memory.accounts.take_incidents();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0.kind, Kind::AdmissionRefuses);
    let evidence: Vec<&str> = told[0].0.evidence.iter().map(|(_, v)| &**v).collect();
    for wanted in ["192.0.2.1", "902ms of 10s"] {
        assert!(evidence.contains(&wanted), "{wanted}: {evidence:?}");
    }

    memory.now += CALM_PERIOD;
    memory.update_load(0);
    assert!(memory.accounts.take_incidents().is_empty(), "half is held");
    memory.leave(&party, held);
    memory.enter(&party, 1).expect("there is plenty");
    memory.update_load(0);
    let told = memory.accounts.take_incidents();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0.kind, Kind::AdmissionAccepts);
    assert_eq!(told[0].0.evidence[0].1, "2");
    memory.now += CALM_PERIOD;
    memory.update_load(0);
    assert!(memory.accounts.take_incidents().is_empty());
    assert_eq!(memory.accounts.refusing(), None);
}

/// A flood from ever new addresses cannot fill the tables, even if the flood is faster than their cleanup. Accounts
/// without recent mail are deleted.
#[test]
fn the_tables_are_bounded() {
    let mut memory = Memory::new();
    for number in 0..30_000_u32 {
        let client = IpAddr::from((10 << 24 | number).to_be_bytes());
        let party = party(
            &memory.accounts,
            client,
            "a@a.test",
            SenderReputation::Unknown,
        );
        memory.enter(&party, 0).expect("nothing waits");
    }
    assert_eq!(memory.accounts.networks.len(), ACCOUNTS_MAX);
    assert_eq!(memory.accounts.senders.len(), ACCOUNTS_MAX);
    memory.now += RECENT_HALF_LIFE * 4;
    memory.update_load(0);
    assert!(memory.accounts.networks.is_empty() && memory.accounts.senders.is_empty());
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Act {
    Enter(u8, bool, u64),
    Leave(usize),
    Pass(u64),
    UpdateLoad(u64),
}

fn history() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..6u8, any::<bool>(), 0..120u64).prop_map(|(c, k, o)| Act::Enter(c, k, o)),
        3 => any::<usize>().prop_map(Act::Leave),
        1 => (0..30u64).prop_map(Act::Pass),
        1 => (0..140u64).prop_map(Act::UpdateLoad),
    ];
    proptest::collection::vec(act, 1..200)
}

/// The octets and the weight of each of the six parties, and whether a message of ten octets would be admitted.
fn asked(memory: &mut Memory) -> Vec<(u64, f64, bool)> {
    let (now, free) = (memory.now, memory.free);
    let ask = |number| {
        let party = memory.stranger(number);
        let admitted = memory.accounts.ask(now, &party, 10, free).is_ok();
        let account = memory.accounts.networks.get(&party.network);
        let mut account = account.copied().unwrap_or(Account::new(now));
        account.decay(now);
        (account.octets, account.weight(), admitted)
    };
    (0..6).map(ask).collect()
}

proptest! {
    /// After any history: the parties hold no more than the memory; no party is refused while less than half is used;
    /// and no party is refused that holds less than an admitted party of the same reputation. So no party below its fair
    /// share, whatever that share is, is refused while a party above it is admitted.
    #[test]
    fn no_refused_party_holds_less_than_an_admitted_one(history in history()) {
        let mut memory = Memory::new();
        let mut held: Vec<(AdmissionParty, u64)> = Vec::new();
        for act in history {
            match act {
                Act::Enter(number, known, octets) => {
                    let reputation = if known { SenderReputation::Known } else { SenderReputation::Unknown };
                    let party = memory.party(number, reputation);
                    let taken = MEMORY_OCTETS - memory.free;
                    match memory.enter(&party, octets) {
                        Ok(()) => held.push((party, octets)),
                        Err(_) => prop_assert!(
                            taken + octets > MEMORY_OCTETS / 2 || memory.accounts.work > 0.5,
                            "refused with {taken} taken and work {}", memory.accounts.work
                        ),
                    }
                }
                Act::Leave(_) if held.is_empty() => {}
                Act::Leave(nth) => {
                    let (party, octets) = held.swap_remove(nth % held.len());
                    memory.leave(&party, octets);
                }
                Act::Pass(seconds) => memory.now += Duration::from_secs(seconds),
                Act::UpdateLoad(waiting) => memory.update_load(waiting),
            }
            let sum: u64 = held.iter().map(|(_, octets)| octets).sum();
            prop_assert!(sum <= MEMORY_OCTETS);
            prop_assert_eq!(memory.accounts.all.octets, sum);
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
