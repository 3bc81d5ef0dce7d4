//! Who may bring more mail: a ledger of who holds how much of what is bounded. A pure state machine; time is an argument,
//! and nothing here waits.
//!
//! Two things are bounded. *Memory* is what all messages in flight hold of `limits.in_flight_bytes`; it is known exactly.
//! *Work* is how far the relay is behind: messages that wait for an engine's slot, and messages that were accepted and
//! are not judged yet; the path measures it ([`Pressure`]) and tells it a few times a second.
//!
//! The rule is one line: nobody may hold more than a fixed multiple of what is free (Choudhury and Hahne, "Dynamic Queue
//! Length Thresholds in a Shared-Memory Packet Switch", IEEE/ACM Transactions on Networking 6(2), 1998). The multiple
//! decides from when on somebody who holds everything alone is refused, which gives the three levels of back pressure:
//!
//! | who | unknown sender | known sender |
//! |---|---|---|
//! | one sender ([`message::Party`]) | 1 x what is free: from 50 % | 4 x: from 80 % |
//! | a client network, all its senders together | 4 x: from 80 % | 16 x: from 94 % |
//! | everybody | at 100 % | at 100 % |
//!
//! What follows from it, and is tested: while there is plenty nobody is limited; whoever is refused holds more than
//! anybody of the same standing who is not; who holds nothing is refused only when nothing is free; and however many are
//! greedy, they leave room for one more. There are no queues to be fair between and no list of shares to keep: what a
//! client brought less yesterday gives it no claim today.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::ablation::{Mechanism, without};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{self, Standing, party};
use crate::pipeline::Pressure;

/// Multiples of what is free.
const SENDER: u64 = 1;
const CLIENT: u64 = 4;
const KNOWN: u64 = 4;
/// What was brought counts as held for a while: mail that is answered at once still made the work that waits. Half of it
/// is forgotten after each of these.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// The part that somebody brought is reckoned of so many messages at least: one of three is no crowd.
const CROWD: f64 = 50.0;
/// Accounts of each kind at most. Beyond it new ones are not kept apart: whoever comes among so many brings little.
const ACCOUNTS: usize = 16_384;
/// An account that holds nothing is forgotten when less than this is left of what it brought.
const FORGOTTEN: f64 = 0.1;
/// The level is told as over when nobody was refused for so long and this part of everything is free again.
const CALM: Duration = Duration::from_secs(10);
const CALM_LOAD: f64 = 0.4;
/// Incidents not yet taken, at most; the level changes far less often than they are taken.
const UNTAKEN: usize = 16;

/// Whose mail it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Party {
    network: IpAddr,
    /// Stands for the [`message::Party`].
    sender: u64,
    standing: Standing,
}

/// Why mail is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Its party holds more memory than its share.
    MemoryShare,
    /// Its party brought more of the work that waits than its share.
    WorkShare,
    /// There is no memory for it, whoever brings it.
    Memory,
    /// Too much waits already, whoever brings more.
    Work,
}

impl Refusal {
    /// The word in metrics and incidents.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::MemoryShare => "memory-share",
            Self::WorkShare => "work-share",
            Self::Memory => "memory",
            Self::Work => "work",
        }
    }
}

/// What one party holds.
#[derive(Debug, Clone, Copy)]
struct Account {
    octets: u64,
    /// In flight: from end of data until the relay has done with them, or has put them into the store.
    messages: u64,
    /// Brought lately, fading.
    recent: f64,
    faded: Instant,
}

impl Account {
    fn new(now: Instant) -> Self {
        Self {
            octets: 0,
            messages: 0,
            recent: 0.0,
            faded: now,
        }
    }

    fn fade(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.faded);
        self.recent *= (-passed.div_duration_f64(HALF_LIFE)).exp2();
        self.faded = now;
    }

    /// Its weight among all others in the work that waits.
    fn weight(&self) -> f64 {
        self.messages as f64 + self.recent
    }

    fn is_idle(&self) -> bool {
        self.octets == 0 && self.messages == 0 && self.recent < FORGOTTEN
    }
}

/// A time in which mail was refused.
#[derive(Debug, Clone, Copy)]
struct Refusing {
    since: Instant,
    last: Instant,
    refused: u64,
}

/// The ledger.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Octets of memory in all.
    memory: u64,
    /// How far behind the relay is, 1 being as far as it may be.
    work: f64,
    pressure: Pressure,
    all: Account,
    networks: HashMap<IpAddr, Account>,
    senders: HashMap<u64, Account>,
    hasher: RandomState,
    refusing: Option<Refusing>,
    incidents: Vec<Incident>,
}

impl Ledger {
    /// Of so many octets of memory.
    pub(super) fn new(now: Instant, memory: u64) -> Self {
        Self {
            memory,
            work: 0.0,
            pressure: Pressure::NONE,
            all: Account::new(now),
            networks: HashMap::new(),
            senders: HashMap::new(),
            hasher: RandomState::new(),
            refusing: None,
            incidents: Vec::new(),
        }
    }

    /// The party of what a client brings for `sender`.
    pub(super) fn party(
        &self,
        client: IpAddr,
        sender: &message::Party,
        standing: Standing,
    ) -> Party {
        Party {
            network: party::network(client),
            sender: self.hasher.hash_one(sender),
            standing,
        }
    }

    /// Whether the party may bring a message that takes so many octets of memory, of which `free` are.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        party: &Party,
        octets: u64,
        free: u64,
    ) -> Result<(), Refusal> {
        let refusal = self.refusal(now, party, octets, free);
        let Some(refusal) = refusal else {
            return Ok(());
        };
        self.refused(now, party, refusal, free);
        Err(refusal)
    }

    /// The same, and books it.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        party: &Party,
        octets: u64,
        free: u64,
    ) -> Result<(), Refusal> {
        self.ask(now, party, octets, free)?;
        self.book(now, party, |account| {
            account.octets += octets;
            account.recent += 1.0;
        });
        Ok(())
    }

    /// Books more memory of a message that is coming in, if its client may hold so much: the size of a message is known
    /// when it is here. Its sender is not asked about, or the largest message that is allowed would find no room
    /// in a memory that is just large enough for it.
    pub(super) fn grow(&mut self, now: Instant, party: &Party, octets: u64, free: u64) -> bool {
        let held = self.networks.get(&party.network).map_or(0, |a| a.octets);
        if held.saturating_add(octets) > free.saturating_mul(CLIENT * preference(party.standing)) {
            self.refused(now, party, Refusal::MemoryShare, free);
            return false;
        }
        self.book(now, party, |account| account.octets += octets);
        true
    }

    /// Its end of data has been read.
    pub(super) fn complete(&mut self, now: Instant, party: &Party) {
        self.book(now, party, |account| account.messages += 1);
    }

    /// It is not in memory any more.
    pub(super) fn leave(&mut self, now: Instant, party: &Party, octets: u64, complete: bool) {
        self.book(now, party, |account| {
            account.octets = account.octets.saturating_sub(octets);
            account.messages = account.messages.saturating_sub(u64::from(complete));
        });
    }

    /// The path has measured how far behind it is.
    pub(super) fn pulse(&mut self, now: Instant, pressure: Pressure, free: u64) {
        // It is believed at once when it rises and by halves when it falls, so that it does not flutter.
        let load = pressure.load();
        self.work = load.max((self.work + load) / 2.0);
        self.pressure = pressure;
        self.all.fade(now);
        forget(&mut self.networks, now);
        forget(&mut self.senders, now);
        let Some(refusing) = self.refusing else {
            return;
        };
        let calm = now.saturating_duration_since(refusing.last) >= CALM;
        if calm && self.load(free) < CALM_LOAD {
            self.refusing = None;
            let lasted = refusing
                .last
                .saturating_duration_since(refusing.since)
                .as_secs();
            let incident = Incident::new(
                Kind::AdmissionAccepts,
                Subject::Relay,
                "new mail is accepted from everybody again",
            );
            self.tell(
                incident
                    .with("transactions refused", refusing.refused)
                    .with("from first to last", format!("{lasted} s")),
            );
        }
    }

    /// What happened since the last call.
    pub(super) fn take_incidents(&mut self) -> Vec<Incident> {
        std::mem::take(&mut self.incidents)
    }

    /// How much of what may be held and waited for is: 1 is all.
    pub(super) fn load(&self, free: u64) -> f64 {
        let held = self.memory.saturating_sub(free) as f64 / self.memory.max(1) as f64;
        held.max(self.work)
    }

    /// Transactions refused since the level was told as reached; none while nobody is refused.
    pub(super) fn refusing(&self) -> Option<u64> {
        self.refusing.map(|refusing| refusing.refused)
    }
}

/// The rule.
impl Ledger {
    fn refusal(&mut self, now: Instant, party: &Party, octets: u64, free: u64) -> Option<Refusal> {
        if octets > free {
            return Some(Refusal::Memory);
        }
        if without(Mechanism::Admission) {
            return None;
        }
        if self.work >= 1.0 {
            return Some(Refusal::Work);
        }
        self.all.fade(now);
        let everything = self.all.weight();
        let free_work = 1.0 - self.work;
        let (network, sender) = (
            self.networks.get_mut(&party.network),
            self.senders.get_mut(&party.sender),
        );
        for (account, multiple) in [(network, CLIENT), (sender, SENDER)] {
            let Some(account) = account else { continue };
            account.fade(now);
            let multiple = multiple * preference(party.standing);
            if account.octets.saturating_add(octets) > free.saturating_mul(multiple) {
                return Some(Refusal::MemoryShare);
            }
            let part = account.weight() / everything.max(CROWD);
            if part * self.work > free_work * multiple as f64 {
                return Some(Refusal::WorkShare);
            }
        }
        None
    }

    fn book(&mut self, now: Instant, party: &Party, change: impl Fn(&mut Account)) {
        let apply = |account: &mut Account| {
            account.fade(now);
            change(account);
        };
        apply(&mut self.all);
        if let Some(account) = open(&mut self.networks, party.network, now) {
            apply(account);
        }
        if let Some(account) = open(&mut self.senders, party.sender, now) {
            apply(account);
        }
    }

    fn refused(&mut self, now: Instant, party: &Party, refusal: Refusal, free: u64) {
        if let Some(refusing) = &mut self.refusing {
            refusing.last = now;
            refusing.refused += 1;
            return;
        }
        self.refusing = Some(Refusing {
            since: now,
            last: now,
            refused: 1,
        });
        let summary = match refusal {
            Refusal::MemoryShare => "new mail is refused from those who hold much of the memory",
            Refusal::WorkShare => "new mail is refused from those who brought much of what waits",
            Refusal::Memory => "new mail is refused from everybody: the memory is used up",
            Refusal::Work => "new mail is refused from everybody: as much waits as may",
        };
        let account = self.networks.get(&party.network);
        let messages = account.map_or(0, |a| a.messages);
        let octets = account.map_or(0, |a| a.octets);
        let pressure = self.pressure;
        let incident = Incident::new(Kind::AdmissionRefuses, Subject::Relay, summary)
            .with("memory free", format!("{free} of {} octets", self.memory))
            .with(
                "wait for an engine",
                format!("{:?} of {:?}", pressure.wait, pressure.patience),
            )
            .with(
                "accepted and not judged",
                format!("{} of {} messages", pressure.waiting, pressure.bound),
            )
            .with("messages in flight", self.all.messages)
            .with("the first client refused", party.network)
            .with(
                "it holds",
                format!("{messages} messages in flight, {octets} octets"),
            );
        self.tell(incident);
    }

    fn tell(&mut self, incident: Incident) {
        if self.incidents.len() < UNTAKEN {
            self.incidents.push(incident);
        }
    }
}

fn preference(standing: Standing) -> u64 {
    match standing {
        Standing::Known => KNOWN,
        Standing::Unknown => 1,
    }
}

fn open<K: Eq + std::hash::Hash>(
    accounts: &mut HashMap<K, Account>,
    key: K,
    now: Instant,
) -> Option<&mut Account> {
    if accounts.len() >= ACCOUNTS {
        return accounts.get_mut(&key);
    }
    Some(accounts.entry(key).or_insert_with(|| Account::new(now)))
}

fn forget<K: Eq + std::hash::Hash>(accounts: &mut HashMap<K, Account>, now: Instant) {
    accounts.retain(|_, account| {
        account.fade(now);
        !account.is_idle()
    });
}
