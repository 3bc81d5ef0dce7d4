//! Canaries: of content that has not been scanned well yet, only two copies are in the engine at once; each that ends in
//! time doubles that. This is slow start for each fingerprint, and the "canary requests" of The Tail at Scale (Dean,
//! Barroso, CACM 2013).

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::{GateRequest, Scan, ScanEnd, Ticket};
use crate::ablation::{Mechanism, without};
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Trait};

/// Copies of unproven content at once.
const FIRST: u32 = 2;
/// Doublings; 2^7 copies are more than engines have slots.
const DOUBLINGS: u32 = 6;
/// A proof holds between one and two of these.
const PROOF: Duration = Duration::from_secs(1800);
/// Keys remembered in each generation of proofs.
const PROOFS: usize = 50_000;
/// Failures of one fingerprint that count against the engine, in so long; what comes after is the fingerprint's fault.
const NEWS: u32 = 2;
const NEWS_AGE: Duration = Duration::from_secs(10);
/// Fingerprints whose failures are remembered.
const FAILURES: usize = 1024;

#[derive(Debug)]
pub(super) struct Canaries {
    inflight: HashMap<Trait, u32>,
    parked: HashMap<Trait, VecDeque<Ticket>>,
    /// Two generations, so that old ones go all at once and nobody has to look for them.
    proofs: [HashMap<Trait, u32>; 2],
    turned: Instant,
    failures: HashMap<Trait, (Instant, u32)>,
}

impl Canaries {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            inflight: HashMap::new(),
            parked: HashMap::new(),
            proofs: Default::default(),
            turned: now,
            failures: HashMap::new(),
        }
    }

    /// The same scans under way, and nothing proven.
    pub(super) fn without_proofs(&mut self, now: Instant) -> Self {
        Self {
            inflight: std::mem::take(&mut self.inflight),
            parked: std::mem::take(&mut self.parked),
            ..Self::new(now)
        }
    }

    /// The key of which no more copies may be sent now, if there is one.
    pub(super) fn blocking(&self, entrant: &GateRequest) -> Option<Trait> {
        if without(Mechanism::Canaries) {
            return None;
        }
        let mut keys = entrant.fingerprint.as_deref()?.canary_keys();
        keys.find(|key| {
            let inflight = self.inflight.get(key).copied().unwrap_or(0);
            inflight >= FIRST && inflight >= FIRST << self.proofs_of(*key).min(DOUBLINGS)
        })
    }

    pub(super) fn begin(&mut self, entrant: &GateRequest) {
        for key in keys(entrant) {
            *self.inflight.entry(key).or_default() += 1;
        }
    }

    /// A scan ended; takes out the copies that were parked behind it, to be offered again.
    pub(super) fn end(
        &mut self,
        now: Instant,
        entrant: &GateRequest,
        end: ScanEnd,
        in_time: bool,
    ) -> Vec<Ticket> {
        let proves = in_time && matches!(end, ScanEnd::Answered { .. });
        let mut parked = Vec::new();
        for key in keys(entrant) {
            if let Entry::Occupied(mut inflight) = self.inflight.entry(key) {
                *inflight.get_mut() -= 1;
                if *inflight.get() == 0 {
                    inflight.remove();
                }
            }
            if proves {
                self.prove(now, key);
            }
            if self.has_parked(key) {
                parked.extend(self.parked(key));
            }
        }
        parked
    }

    /// Whether every attachment has been scanned in time before.
    pub(super) fn are_proven(&self, fingerprint: &Fingerprint) -> bool {
        let mut attachments = fingerprint
            .exact
            .iter()
            .filter(|key| key.aspect == Aspect::Attachment);
        attachments.all(|key| self.proofs_of(*key) > 0)
    }

    pub(super) fn park(&mut self, key: Trait, ticket: Ticket) {
        self.parked.entry(key).or_default().push_back(ticket);
    }

    pub(super) fn has_parked(&self, key: Trait) -> bool {
        self.parked.contains_key(&key)
    }

    /// Takes out those who wait behind that key.
    pub(super) fn parked(&mut self, key: Trait) -> VecDeque<Ticket> {
        self.parked.remove(&key).unwrap_or_default()
    }

    /// Whether a failure says something about the engine. What an interceptor explains does not, nor does a message that hung
    /// before, nor do further copies of what has failed before: an engine is at fault if it fails on many unrelated messages.
    pub(super) fn is_news(&mut self, now: Instant, scan: &Scan) -> bool {
        if scan.is_explained || scan.entrant.struck {
            return false;
        }
        let Some(fingerprint) = &scan.entrant.fingerprint else {
            return true;
        };
        if self.failures.len() >= FAILURES {
            self.failures.retain(|_, (at, _)| now < *at + NEWS_AGE);
        }
        if self.failures.len() >= FAILURES {
            return true;
        }
        let mut news = true;
        for key in &fingerprint.exact {
            let (at, n) = self.failures.entry(*key).or_insert((now, 0));
            if now >= *at + NEWS_AGE {
                (*at, *n) = (now, 0);
            }
            *n += 1;
            news &= *n <= NEWS;
        }
        news
    }

    fn proofs_of(&self, key: Trait) -> u32 {
        let [new, old] = &self.proofs;
        new.get(&key).or(old.get(&key)).copied().unwrap_or(0)
    }

    fn prove(&mut self, now: Instant, key: Trait) {
        if now >= self.turned + PROOF || self.proofs[0].len() >= PROOFS {
            self.turned = now;
            self.proofs.swap(0, 1);
            self.proofs[0].clear();
        }
        let [new, old] = &mut self.proofs;
        let before = || old.get(&key).copied().unwrap_or(0);
        let proofs = new.entry(key).or_insert_with(before);
        *proofs = proofs.saturating_add(1);
    }
}

fn keys(entrant: &GateRequest) -> impl Iterator<Item = Trait> {
    let fingerprint = entrant.fingerprint.as_deref();
    fingerprint.into_iter().flat_map(Fingerprint::canary_keys)
}
