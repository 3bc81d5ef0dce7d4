//! Admission at run time: the accounts behind their lock, the share of each message in them, and the watch that reports
//! the load of the pipeline to them.

mod accounts;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use self::accounts::AdmissionParty;
use self::accounts::{AdmissionAccounts, AdmissionRefusal};
use super::Limits;
use crate::deadline::Deadline;
use crate::incident::{Condition, Incident, Kind};
use crate::message::{self, MemoryBudget, SenderReputation};
use crate::pipeline::{Pipeline, Pressure, Shortage};
use crate::smtp::Reply;
use crate::store::incidents::Incidents;

/// Interval between two measurements of how many messages wait for the engines: a quarter of the 1 s (`wait`) that a
/// message waits for a slot by default.
const PRESSURE_INTERVAL: Duration = Duration::from_millis(250);
/// Measurements per count of the unjudged messages in the store: one count a second, which is cheap for the store.
const PRESSURES_PER_STORE_COUNT: u32 = 4;

/// Admission control, shared by all sessions.
pub struct Admission {
    accounts: Mutex<AdmissionAccounts>,
    memory: MemoryBudget,
    limits: ArcSwap<Limits>,
}

/// Status of admission.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Used fraction of memory or of the limit of the work that waits, the larger of the two; 1 is the limit.
    pub part: f64,
    /// Transactions refused in the current period of refusals; `None` outside such a period.
    pub refusing: Option<u64>,
    /// What was short at the last refusal of that period; `None` outside such a period.
    pub shortage: Option<Shortage>,
}

impl Admission {
    /// Admission for this memory budget and these limits.
    pub fn new(memory: MemoryBudget, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self {
            accounts: Mutex::new(AdmissionAccounts::new(Instant::now(), memory.total())),
            memory,
            limits: ArcSwap::new(limits),
        })
    }

    /// Replaces the limits.
    pub fn apply(&self, limits: Arc<Limits>) {
        self.limits.store(limits);
    }

    /// The current status.
    pub fn load(&self) -> Load {
        let free = self.memory.available();
        let accounts = self.accounts();
        Load {
            part: accounts.load(free),
            refusing: accounts.refusing(),
            shortage: accounts.shortage(),
        }
    }

    /// Reports the load of the pipeline to the accounts, and incidents of the accounts to the incident log, until
    /// `closing` is cancelled.
    pub async fn watch(
        self: Arc<Self>,
        pipeline: Arc<Pipeline>,
        incidents: Arc<Incidents>,
        closing: CancellationToken,
    ) {
        let (mut unjudged, mut counted) = (0, 0);
        for tick in (0..PRESSURES_PER_STORE_COUNT).cycle() {
            if tick == 0 {
                // If the store cannot be read, other checks refuse mail that needs the store; the last count is used
                // until then.
                unjudged = pipeline.store().unjudged().await.unwrap_or(unjudged);
            }
            let pressure = pipeline.pressure(unjudged, self.limits.load().backlog);
            let (pending, refused) = {
                let mut accounts = self.accounts();
                accounts.update_load(Instant::now(), pressure, self.memory.available());
                let refused = accounts.refusing().unwrap_or_default();
                (accounts.take_incidents(), refused)
            };
            for (incident, pressure) in pending {
                incidents.record(named(&pipeline, &pressure, incident).await);
            }
            incidents.refused(&Condition::Refusing, refused.saturating_sub(counted));
            counted = refused;
            let turn = Deadline::after(PRESSURE_INTERVAL);
            if closing.run_until_cancelled(turn.wait()).await.is_none() {
                return;
            }
        }
    }

    /// The accounts to charge for mail that a client brings from `sender`.
    pub(super) fn party(
        &self,
        client: IpAddr,
        sender: &message::Party,
        reputation: SenderReputation,
    ) -> AdmissionParty {
        self.accounts().party(client, sender, reputation)
    }

    /// Whether a message that takes `octets` of memory would be admitted now, asked at MAIL. Charges no account. The error
    /// is the reply to the client.
    pub(super) fn ask(&self, party: &AdmissionParty, octets: usize) -> Result<(), Reply> {
        let free = self.memory.available();
        let asked = self
            .accounts()
            .ask(Instant::now(), party, octets as u64, free);
        asked.map_err(refused)
    }

    /// Charges a message whose content begins to arrive (DATA, or the first chunk) and returns its share. The error is the
    /// reply to the client.
    pub(super) fn enter(
        self: &Arc<Self>,
        party: AdmissionParty,
        octets: usize,
    ) -> Result<Share, Reply> {
        let free = self.memory.available();
        let entered = self
            .accounts()
            .enter(Instant::now(), &party, octets as u64, free);
        entered.map_err(refused)?;
        Ok(Share {
            admission: self.clone(),
            party,
            octets: octets as u64,
            complete: false,
        })
    }

    fn accounts(&self) -> MutexGuard<'_, AdmissionAccounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds to a refusal the engine for which the mail waits, if there is one.
async fn named(pipeline: &Pipeline, pressure: &Pressure, mut incident: Incident) -> Incident {
    if incident.kind != Kind::AdmissionRefuses {
        return incident;
    }
    let Some(engine) = pipeline.waits_for(pressure).await else {
        return incident;
    };
    incident.summary += &format!("; mail waits for engine {engine}");
    incident.with(Incident::ENGINE, engine)
}

fn refused(refusal: AdmissionRefusal) -> Reply {
    metrics::counter!("spillway_admission_refused_total", "why" => refusal.as_str()).increment(1);
    match refusal {
        AdmissionRefusal::MemoryShare | AdmissionRefusal::Memory => Reply::no_room(),
        AdmissionRefusal::WorkShare => Reply::over_share(),
        AdmissionRefusal::Work => Reply::too_busy(),
    }
}

/// The entry of one message in the accounts, removed on drop.
pub(super) struct Share {
    admission: Arc<Admission>,
    party: AdmissionParty,
    octets: u64,
    complete: bool,
}

impl Share {
    /// Records that the message holds `octets` of memory now; false if its client network may not hold that much.
    #[must_use]
    pub(super) fn grow_to(&mut self, octets: usize) -> bool {
        let more = (octets as u64).saturating_sub(self.octets);
        if more == 0 {
            return true;
        }
        let free = self.admission.memory.available();
        let grown = self
            .admission
            .accounts()
            .grow(Instant::now(), &self.party, more, free);
        match grown {
            true => self.octets += more,
            false => drop(refused(AdmissionRefusal::MemoryShare)),
        }
        grown
    }

    /// Records that the end of data has been read.
    pub(super) fn complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.admission
                .accounts()
                .complete(Instant::now(), &self.party);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut accounts = self.admission.accounts();
        accounts.leave(Instant::now(), &self.party, self.octets, self.complete);
    }
}
