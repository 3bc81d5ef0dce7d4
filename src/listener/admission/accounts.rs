//! Admission control: accounts of how much memory and waiting work each party holds, and the rule that decides which
//! party may bring more mail. A pure state machine: time is an argument, and nothing here waits.
//!
//! Two resources are bounded:
//!
//! - *Memory*: the part of `limits.in_flight_bytes` that messages hold. A message holds memory from the start of its
//!   content (DATA, or the first chunk) until the relay has answered or stored it. The amount grows while the content
//!   arrives, and is known exactly.
//! - *Work*: what waits for the engines. It is the larger of two fractions: the wait for a slot of the busiest engine,
//!   compared with the longest wait there, and the backlog (accepted mail that is not judged yet), compared with its
//!   limit (`limits.backlog`). The pipeline measures both ([`Pressure`]) and reports them four times a second. A party's part of the work is
//!   estimated: its messages in flight and its recent messages, compared with those of all parties.
//!
//! The rule: no party may hold more than a fixed multiple of the free amount (Choudhury and Hahne, "Dynamic Queue
//! Length Thresholds in a Shared-Memory Packet Switch", IEEE/ACM Transactions on Networking 6(2), 1998). A party that
//! is alone can fill `multiple / (multiple + 1)` of the total before it is refused: with the multiple 1, it is refused
//! when it holds as much as is free, which is at a load of 50 %. This gives three levels of back pressure:
//!
//! | who holds | unknown sender: limit, and load from which it is refused if it is alone | known sender |
//! |---|---|---|
//! | one sender ([`message::Party`]) | 1 times the free amount, 50 % | 4 times the free amount, 80 % |
//! | a client network, all its senders together | 4 times the free amount, 80 % | 16 times the free amount, 94 % |
//! | all parties | nothing free, 100 % | nothing free, 100 % |
//!
//! Consequences, all tested: with enough free capacity no party is limited; a refused party holds more than any
//! admitted party of the same reputation; a party that holds nothing is refused only if nothing is free; and any number
//! of greedy parties leave room for one more. There are no queues to schedule fairly and no list of shares to maintain:
//! a client that brought little yesterday has no larger claim today.

mod refusals;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::ablation::{Mechanism, without};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{self, SenderReputation, party};
use crate::pipeline::{Pressure, Shortage};
use refusals::Refusing;

/// Multiple of the free amount that one unknown sender may hold: 1, so a sender alone gets half of everything.
const SENDER_SHARE_MULTIPLE: u64 = 1;
/// Multiple of the free amount that the client network of an unknown sender may hold: 4, so a network alone gets 80 %.
const CLIENT_SHARE_MULTIPLE: u64 = 4;
/// Factor on both multiples for a known sender: 4, so that unknown senders are refused first.
const KNOWN_SENDER_FACTOR: u64 = 4;
/// Half-life of the count of recently brought messages. A message counts for a while after its end, because a message
/// that is answered immediately still caused work that waits.
const RECENT_HALF_LIFE: Duration = Duration::from_secs(10);
/// Smallest total, in messages, against which a party's part of the work is computed. With a smaller total the parts
/// mean nothing: one of three messages does not make a party greedy.
const WORK_SHARE_TOTAL_MIN: f64 = 50.0;
/// Largest number of accounts of each kind. Beyond it, new parties get no account: among so many parties each new one
/// brings little.
const ACCOUNTS_MAX: usize = 16_384;
/// Recent count, in messages, below which an account that holds nothing is deleted.
const IDLE_RECENT_MAX: f64 = 0.1;
/// A period of refusals ends after this time without a refusal, if the load is below [`CALM_LOAD`] as well.
const CALM_PERIOD: Duration = Duration::from_secs(10);
/// Load below which a period of refusals may end. It is below the 50 % from which the first refusals occur, so that the
/// state does not alternate.
const CALM_LOAD: f64 = 0.4;
/// The accounts that a message is charged to: that of its client network, and that of its sender. The sender is a
/// [`message::Party`], the owner of the mail. The reputation decides which multiples apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::listener) struct AdmissionParty {
    network: IpAddr,
    /// Hash of the [`message::Party`].
    sender: u64,
    reputation: SenderReputation,
}

/// Why mail is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdmissionRefusal {
    /// The party holds more memory than its share.
    MemoryShare,
    /// The party brought more than its share of the work that waits.
    WorkShare,
    /// Too little memory is free, for any party.
    Memory,
    /// The work is at its limit, for any party. Only the backlog can reach it: the wait for engines counts for 90 % at
    /// most.
    Work,
}

impl AdmissionRefusal {
    /// Name of the reason in metrics and incidents.
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
    /// Memory of its messages in octets, from the start of their content.
    octets: u64,
    /// Messages in flight: from end of data until the relay has finished with them or has stored them.
    messages: u64,
    /// Messages brought recently, with exponential decay.
    recent: f64,
    /// Time up to which the decay has been applied to `recent`.
    decayed_at: Instant,
}

impl Account {
    fn new(now: Instant) -> Self {
        Self {
            octets: 0,
            messages: 0,
            recent: 0.0,
            decayed_at: now,
        }
    }

    /// Applies the decay to `recent` up to `now`.
    fn decay(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.decayed_at);
        self.recent *= (-passed.div_duration_f64(RECENT_HALF_LIFE)).exp2();
        self.decayed_at = now;
    }

    /// The party's weight in the work that waits, in messages.
    fn weight(&self) -> f64 {
        self.messages as f64 + self.recent
    }

    /// Whether the account says nothing that a new one would not say.
    fn is_idle(&self) -> bool {
        self.octets == 0 && self.messages == 0 && self.recent < IDLE_RECENT_MAX
    }
}

/// The accounts of all parties and the state of admission.
#[derive(Debug)]
pub(super) struct AdmissionAccounts {
    /// Memory limit in octets.
    memory: u64,
    /// Work as a fraction of its limit; at 1 the limit is reached. It falls more slowly than the measurements.
    work: f64,
    /// The measurement that the work comes from: the last one, or an earlier one from which the work still falls.
    pressure: Pressure,
    /// Account of all parties together.
    all: Account,
    networks: HashMap<IpAddr, Account>,
    /// Accounts of senders, by [`AdmissionParty::sender`].
    senders: HashMap<u64, Account>,
    hasher: RandomState,
    refusing: Option<Refusing>,
    /// Incidents until the next fetch, each with the measurement that explains it.
    incidents: Vec<(Incident, Pressure)>,
}

impl AdmissionAccounts {
    /// Accounts for a memory limit of `memory` octets.
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

    /// The accounts to charge for mail that a client brings from `sender`.
    pub(super) fn party(
        &self,
        client: IpAddr,
        sender: &message::Party,
        reputation: SenderReputation,
    ) -> AdmissionParty {
        AdmissionParty {
            network: party::network(client),
            sender: self.hasher.hash_one(sender),
            reputation,
        }
    }

    /// Whether the party may bring a message that takes `octets` of memory, of which `free` octets are available. Fails
    /// with the reason, and counts the refusal. Called at MAIL, so that a client that is refused has not sent its content
    /// yet.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        octets: u64,
        free: u64,
    ) -> Result<(), AdmissionRefusal> {
        let refusal = self.refusal(now, party, octets, free);
        let Some(refusal) = refusal else {
            return Ok(());
        };
        self.refused(now, party, refusal, free);
        Err(refusal)
    }

    /// As [`Self::ask`], and charges the message to the accounts. Called at DATA or at the first chunk, when the content
    /// begins: much may have changed since MAIL.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        octets: u64,
        free: u64,
    ) -> Result<(), AdmissionRefusal> {
        self.ask(now, party, octets, free)?;
        self.update_accounts(now, party, |account| {
            account.octets += octets;
            account.recent += 1.0;
        });
        Ok(())
    }

    /// Charges `octets` more memory to a message whose content is arriving; false if its client network may not hold
    /// that much. Called again and again, because the size of a message is known only after its end.
    ///
    /// The sender's own limit does not apply here. With it, a sender alone could fill only half of the memory. If the
    /// memory is just large enough for the largest allowed message, that message would never fit.
    pub(super) fn grow(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        octets: u64,
        free: u64,
    ) -> bool {
        let held = self.networks.get(&party.network).map_or(0, |a| a.octets);
        if held.saturating_add(octets)
            > free.saturating_mul(CLIENT_SHARE_MULTIPLE * reputation_factor(party.reputation))
        {
            self.refused(now, party, AdmissionRefusal::MemoryShare, free);
            return false;
        }
        self.update_accounts(now, party, |account| account.octets += octets);
        true
    }

    /// Records that the end of data of a message has been read: the message is in flight.
    pub(super) fn complete(&mut self, now: Instant, party: &AdmissionParty) {
        self.update_accounts(now, party, |account| account.messages += 1);
    }

    /// Records that a message has left memory. `complete`: its end of data had been read.
    pub(super) fn leave(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        octets: u64,
        complete: bool,
    ) {
        self.update_accounts(now, party, |account| {
            account.octets = account.octets.saturating_sub(octets);
            account.messages = account.messages.saturating_sub(u64::from(complete));
        });
    }

    /// Processes a new measurement of the work: updates the load, deletes idle accounts, and ends the period of refusals
    /// if the load is low again.
    pub(super) fn update_load(&mut self, now: Instant, pressure: Pressure, free: u64) {
        // A rise takes effect immediately and a fall by halves, so that admission does not oscillate.
        let load = pressure.load();
        self.work = load.max((self.work + load) / 2.0);
        if load >= self.work / 2.0 || self.work < CALM_LOAD {
            self.pressure = pressure;
        }
        self.all.decay(now);
        delete_idle(&mut self.networks, now);
        delete_idle(&mut self.senders, now);
        let Some(refusing) = &self.refusing else {
            return;
        };
        let calm = now.saturating_duration_since(refusing.last) >= CALM_PERIOD;
        if calm && self.load(free) < CALM_LOAD {
            let refused = refusing.refused;
            let lasted = refusing
                .last
                .saturating_duration_since(refusing.since)
                .as_secs();
            self.refusing = None;
            let incident = Incident::new(
                Kind::AdmissionAccepts,
                Subject::Relay,
                "the relay accepts new mail from all clients again",
            );
            self.add_incident(
                incident
                    .with("transactions refused", refused)
                    .with("from first to last", format!("{lasted} s")),
            );
        }
    }

    /// Incidents since the last call, each with the measurement that explains it.
    pub(super) fn take_incidents(&mut self) -> Vec<(Incident, Pressure)> {
        std::mem::take(&mut self.incidents)
    }

    /// Used fraction of memory or of the limit of the work, the larger of the two; 1 is the limit.
    pub(super) fn load(&self, free: u64) -> f64 {
        let held = self.memory.saturating_sub(free) as f64 / self.memory.max(1) as f64;
        held.max(self.work)
    }

    /// Transactions refused in the current period of refusals; `None` outside such a period.
    pub(super) fn refusing(&self) -> Option<u64> {
        self.refusing.as_ref().map(|refusing| refusing.refused)
    }

    /// What was short at the last refusal of the current period; `None` outside such a period.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        self.refusing
            .as_ref()
            .map(|refusing| refusing.shortage.clone())
    }
}

/// The admission rule.
impl AdmissionAccounts {
    /// Why the party may not bring `octets` now; `None` if it may. Memory and work are checked with the same multiples,
    /// first for the client network and then for the sender.
    fn refusal(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        octets: u64,
        free: u64,
    ) -> Option<AdmissionRefusal> {
        if octets > free {
            return Some(AdmissionRefusal::Memory);
        }
        if without(Mechanism::Admission) {
            return None;
        }
        if self.work >= 1.0 {
            return Some(AdmissionRefusal::Work);
        }
        self.all.decay(now);
        let everything = self.all.weight();
        let free_work = 1.0 - self.work;
        let (network, sender) = (
            self.networks.get_mut(&party.network),
            self.senders.get_mut(&party.sender),
        );
        for (account, multiple) in [
            (network, CLIENT_SHARE_MULTIPLE),
            (sender, SENDER_SHARE_MULTIPLE),
        ] {
            let Some(account) = account else { continue };
            account.decay(now);
            let multiple = multiple * reputation_factor(party.reputation);
            if account.octets.saturating_add(octets) > free.saturating_mul(multiple) {
                return Some(AdmissionRefusal::MemoryShare);
            }
            let part = account.weight() / everything.max(WORK_SHARE_TOTAL_MIN);
            if part * self.work > free_work * multiple as f64 {
                return Some(AdmissionRefusal::WorkShare);
            }
        }
        None
    }

    /// Applies `change` to the accounts of all parties, of the client network and of the sender.
    fn update_accounts(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        change: impl Fn(&mut Account),
    ) {
        let apply = |account: &mut Account| {
            account.decay(now);
            change(account);
        };
        apply(&mut self.all);
        if let Some(account) = account_of(&mut self.networks, party.network, now) {
            apply(account);
        }
        if let Some(account) = account_of(&mut self.senders, party.sender, now) {
            apply(account);
        }
    }
}

/// Factor on the multiples for a sender of this reputation.
fn reputation_factor(reputation: SenderReputation) -> u64 {
    match reputation {
        SenderReputation::Known => KNOWN_SENDER_FACTOR,
        SenderReputation::Unknown => 1,
    }
}

/// The account with this key, new if it is missing; `None` if there are too many accounts for a new one.
fn account_of<K: Eq + std::hash::Hash>(
    accounts: &mut HashMap<K, Account>,
    key: K,
    now: Instant,
) -> Option<&mut Account> {
    if accounts.len() >= ACCOUNTS_MAX {
        return accounts.get_mut(&key);
    }
    Some(accounts.entry(key).or_insert_with(|| Account::new(now)))
}

/// Deletes the accounts that hold nothing and whose recent messages have decayed.
fn delete_idle<K: Eq + std::hash::Hash>(accounts: &mut HashMap<K, Account>, now: Instant) {
    accounts.retain(|_, account| {
        account.decay(now);
        !account.is_idle()
    });
}
