//! Admission at work: the ledger behind its lock, each message's share of it, and the watch that tells it how far the
//! path is behind.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::admission::{Ledger, Party, Refusal};
use crate::deadline::Deadline;
use crate::message::{self, MemoryBudget, Standing};
use crate::pipeline::Pipeline;
use crate::smtp::Reply;
use crate::store::incidents::Incidents;

/// How often the engines are asked how many messages wait for them.
const TICK: Duration = Duration::from_millis(250);
/// The store is asked every so many ticks how many messages are not judged yet.
const TICKS: u32 = 4;

/// Who may bring more mail; shared by all sessions.
pub struct Admission {
    ledger: Mutex<Ledger>,
    memory: MemoryBudget,
    limits: ArcSwap<Limits>,
}

/// How admission stands, for the status.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// How much of what may be held and waited for is: 1 is all.
    pub part: f64,
    /// Transactions refused since it began to refuse; none while it refuses nobody.
    pub refusing: Option<u64>,
}

impl Admission {
    /// To this memory, within these limits.
    pub fn new(memory: MemoryBudget, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self {
            ledger: Mutex::new(Ledger::new(Instant::now(), memory.total())),
            memory,
            limits: ArcSwap::new(limits),
        })
    }

    /// Uses other limits from now on.
    pub fn apply(&self, limits: Arc<Limits>) {
        self.limits.store(limits);
    }

    /// How it stands.
    pub fn load(&self) -> Load {
        let free = self.memory.available();
        let ledger = self.ledger();
        Load {
            part: ledger.load(free),
            refusing: ledger.refusing(),
        }
    }

    /// Tells the ledger how far the path is behind, and the incident log what the ledger did, until `closing` is
    /// cancelled.
    pub async fn watch(
        self: Arc<Self>,
        pipeline: Arc<Pipeline>,
        incidents: Arc<Incidents>,
        closing: CancellationToken,
    ) {
        let mut unjudged = 0;
        for tick in (0..TICKS).cycle() {
            if tick == 0 {
                // A store that cannot be read refuses mail by itself; the last count serves until then.
                unjudged = pipeline.store().unjudged().await.unwrap_or(unjudged);
            }
            let pressure = pipeline.pressure(unjudged, self.limits.load().backlog);
            let told = {
                let mut ledger = self.ledger();
                ledger.pulse(Instant::now(), pressure, self.memory.available());
                ledger.take_incidents()
            };
            for incident in told {
                incidents.record(incident);
            }
            let turn = Deadline::after(TICK);
            if closing.run_until_cancelled(turn.wait()).await.is_none() {
                return;
            }
        }
    }

    /// Whose mail it is that a client brings for `sender`.
    pub(super) fn party(
        &self,
        client: IpAddr,
        sender: &message::Party,
        standing: Standing,
    ) -> Party {
        self.ledger().party(client, sender, standing)
    }

    /// Whether a message that takes so many octets of memory would be taken now. Nothing is kept for it.
    pub(super) fn ask(&self, party: &Party, octets: usize) -> Result<(), Reply> {
        let free = self.memory.available();
        let asked = self
            .ledger()
            .ask(Instant::now(), party, octets as u64, free);
        asked.map_err(refused)
    }

    /// The share of a message that begins to come in.
    pub(super) fn enter(self: &Arc<Self>, party: Party, octets: usize) -> Result<Share, Reply> {
        let free = self.memory.available();
        let entered = self
            .ledger()
            .enter(Instant::now(), &party, octets as u64, free);
        entered.map_err(refused)?;
        Ok(Share {
            admission: self.clone(),
            party,
            octets: octets as u64,
            complete: false,
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(refusal: Refusal) -> Reply {
    metrics::counter!("spillway_admission_refused_total", "why" => refusal.as_str()).increment(1);
    match refusal {
        Refusal::MemoryShare | Refusal::Memory => Reply::no_room(),
        Refusal::WorkShare => Reply::over_share(),
        Refusal::Work => Reply::too_busy(),
    }
}

/// What one message holds in the ledger; given back on drop.
pub(super) struct Share {
    admission: Arc<Admission>,
    party: Party,
    octets: u64,
    complete: bool,
}

impl Share {
    /// It is to hold so many octets of memory now; false if its client may not hold so much.
    #[must_use]
    pub(super) fn grow_to(&mut self, octets: usize) -> bool {
        let more = (octets as u64).saturating_sub(self.octets);
        if more == 0 {
            return true;
        }
        let free = self.admission.memory.available();
        let grown = self
            .admission
            .ledger()
            .grow(Instant::now(), &self.party, more, free);
        match grown {
            true => self.octets += more,
            false => drop(refused(Refusal::MemoryShare)),
        }
        grown
    }

    /// Its end of data has been read.
    pub(super) fn complete(&mut self) {
        if !self.complete {
            self.complete = true;
            self.admission
                .ledger()
                .complete(Instant::now(), &self.party);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut ledger = self.admission.ledger();
        ledger.leave(Instant::now(), &self.party, self.octets, self.complete);
    }
}
