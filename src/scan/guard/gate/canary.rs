//! Canaries: at most two copies of unproven content (`canaries`) are in the engine at once. Each copy that is answered in time doubles that
//! limit. This is slow start for each fingerprint, and the "canary requests" of The Tail at Scale (Dean, Barroso, CACM 2013).

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use super::{GateRequest, Scan, ScanEnd, Ticket};
use crate::ablation::{Mechanism, without};
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, Trait};

/// Largest number of doublings: by default `2 << 6` = 128 copies, more than the slots of an engine.
const CANARY_DOUBLINGS_MAX: u32 = 6;
/// Lifetime of a generation of proofs. A proof holds for 30 to 60 minutes while proofs keep coming in: the next proof after 30
/// minutes, or after [`PROOF_KEYS_MAX`] keys, begins a new generation.
const PROOF_GENERATION_TIME: Duration = Duration::from_secs(1800);
/// Keys in one generation of proofs, to bound the memory.
const PROOF_KEYS_MAX: usize = 50_000;
/// At most two failures of one fingerprint in 10 s count against the engine. Further failures are the fault of the
/// fingerprint.
const FINGERPRINT_FAILURES_MAX: u32 = 2;
const FINGERPRINT_FAILURES_WINDOW: Duration = Duration::from_secs(10);
/// Exact traits whose failures are counted, to bound the memory. Beyond that, each failure counts against the engine.
const FAILURE_KEYS_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Canaries {
    /// Copies of unproven content that may be in the engine at once.
    copies: u32,
    inflight: HashMap<Trait, u32>,
    parked: HashMap<Trait, VecDeque<Ticket>>,
    /// Proofs by key, in a new and an old generation: the old generation is dropped as a whole, without a search for old
    /// proofs.
    proofs: [HashMap<Trait, u32>; 2],
    turned: Instant,
    failures: HashMap<Trait, (Instant, u32)>,
}

impl Canaries {
    pub(super) fn new(now: Instant, copies: u32) -> Self {
        Self {
            copies,
            inflight: HashMap::new(),
            parked: HashMap::new(),
            proofs: Default::default(),
            turned: now,
            failures: HashMap::new(),
        }
    }

    /// Takes out the running scans and parked tickets, without the proofs and failures.
    pub(super) fn without_proofs(&mut self, now: Instant) -> Self {
        Self {
            inflight: std::mem::take(&mut self.inflight),
            parked: std::mem::take(&mut self.parked),
            ..Self::new(now, self.copies)
        }
    }

    /// Allows another number of copies from now on. Copies that are in the engine stay there.
    pub(super) fn retune(&mut self, copies: u32) {
        self.copies = copies;
    }

    /// A key of the message that already has as many copies in the engine as allowed, if there is one.
    pub(super) fn blocking(&self, request: &GateRequest) -> Option<Trait> {
        if without(Mechanism::Canaries) {
            return None;
        }
        let mut keys = request.fingerprint.as_deref()?.canary_keys();
        keys.find(|key| {
            let inflight = self.inflight.get(key).copied().unwrap_or(0);
            inflight >= self.copies
                && inflight >= self.copies << self.proofs_of(*key).min(CANARY_DOUBLINGS_MAX)
        })
    }

    pub(super) fn begin(&mut self, request: &GateRequest) {
        for key in keys(request) {
            *self.inflight.entry(key).or_default() += 1;
        }
    }

    /// Ends a scan. Returns the tickets that were parked behind copies of the message; the caller queues them again.
    pub(super) fn end(
        &mut self,
        now: Instant,
        request: &GateRequest,
        end: ScanEnd,
        in_time: bool,
    ) -> Vec<Ticket> {
        let proves = in_time && matches!(end, ScanEnd::Answered { .. });
        let mut parked = Vec::new();
        for key in keys(request) {
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

    /// Whether each attachment has been scanned in time before. This is so for a message without attachments.
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

    /// Takes out the tickets that are parked behind the key.
    pub(super) fn parked(&mut self, key: Trait) -> VecDeque<Ticket> {
        self.parked.remove(&key).unwrap_or_default()
    }

    /// Whether a failure counts against the engine, and counts the failure. An engine is at fault only if many unrelated
    /// messages fail. So three kinds of failure do not count: failures that an interceptor explains, failures of a message
    /// that timed out before, and failures of a fingerprint that has just failed [`FINGERPRINT_FAILURES_MAX`] times.
    pub(super) fn is_news(&mut self, now: Instant, scan: &Scan) -> bool {
        if scan.is_explained || scan.request.timed_out_before {
            return false;
        }
        let Some(fingerprint) = &scan.request.fingerprint else {
            return true;
        };
        if self.failures.len() >= FAILURE_KEYS_MAX {
            self.failures
                .retain(|_, (at, _)| now < *at + FINGERPRINT_FAILURES_WINDOW);
        }
        if self.failures.len() >= FAILURE_KEYS_MAX {
            return true;
        }
        let mut news = true;
        for key in &fingerprint.exact {
            let (at, n) = self.failures.entry(*key).or_insert((now, 0));
            if now >= *at + FINGERPRINT_FAILURES_WINDOW {
                (*at, *n) = (now, 0);
            }
            *n += 1;
            news &= *n <= FINGERPRINT_FAILURES_MAX;
        }
        news
    }

    fn proofs_of(&self, key: Trait) -> u32 {
        let [new, old] = &self.proofs;
        new.get(&key).or(old.get(&key)).copied().unwrap_or(0)
    }

    fn prove(&mut self, now: Instant, key: Trait) {
        if now >= self.turned + PROOF_GENERATION_TIME || self.proofs[0].len() >= PROOF_KEYS_MAX {
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

fn keys(request: &GateRequest) -> impl Iterator<Item = Trait> {
    let fingerprint = request.fingerprint.as_deref();
    fingerprint.into_iter().flat_map(Fingerprint::canary_keys)
}
