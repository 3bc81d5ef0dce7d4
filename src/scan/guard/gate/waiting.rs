//! The queue of the gate: which messages wait, which message starts next, and which messages are refused.

use rand::RngExt as _;
use tokio::time::Instant;

use super::trust::Level;
use super::turns::Class;
use super::{
    BYPASS_TEST_INTERVAL, Gate, GateOrder, GateRefusal, GateRequest, SCANS_PER_REPLICA_TRIAL, Scan,
    Ticket, Waiting,
};
use crate::chance;
use crate::message::Trait;
use crate::observation::{DiversionAct, ScanReason};

impl Gate {
    pub(super) fn ticket(&mut self) -> Ticket {
        self.next += 1;
        self.next
    }

    /// The reason for refusing a message at once; `None` if the message may wait.
    pub(super) fn refusal(&mut self, now: Instant, request: &GateRequest) -> Option<GateRefusal> {
        if let Some(refusal) = self.refuses()
            && !self.awaits(request, &refusal)
        {
            // Mail passes without a drained engine, but a suspect does not: it still is one.
            let suspicion = self.passes().and_then(|_| self.suspicion(now, request));
            let blames =
                |s: &GateRefusal| matches!(s, GateRefusal::Parked(_) | GateRefusal::Suspect(_));
            return suspicion.filter(blames).or(Some(refusal));
        }
        self.suspicion(now, request)
    }

    /// The reason to refuse a message because of what it is or resembles, whether or not the engine takes mail.
    fn suspicion(&mut self, now: Instant, request: &GateRequest) -> Option<GateRefusal> {
        if let Some(refusal) = self.diversion(now, request) {
            return Some(refusal);
        }
        let key = self.canaries.blocking(request)?;
        self.is_suspicious(key).then(|| slow_copies(key))
    }

    /// The refusal by the first diversion that matches the message; `None` if no diversion stops the message now.
    pub(super) fn diversion(&mut self, now: Instant, request: &GateRequest) -> Option<GateRefusal> {
        let diversion = self.diversions.iter().find(|d| d.matches(request))?;
        let id = &diversion.id;
        match diversion.act(request) {
            // Held mail is scanned again as a test of the interceptor.
            DiversionAct::Hold if request.scan_reason == ScanReason::Redrive => None,
            DiversionAct::Hold => Some(GateRefusal::Suspect(format!("interceptor {id}"))),
            DiversionAct::Park => {
                let mut scans = self.scans.values();
                let another = scans.any(|scan| diversion.matches(&scan.request));
                another.then(|| GateRefusal::Parked(format!("interceptor {id}")))
            }
            DiversionAct::Bypass => {
                let last = self.shadowed.get(id);
                // A message that timed out before is not used as a sample: a second timeout would hold the message.
                if !request.timed_out_before
                    && last.is_none_or(|last| now >= *last + BYPASS_TEST_INTERVAL)
                {
                    self.shadowed.insert(id.clone(), now);
                    return None;
                }
                Some(GateRefusal::Open(format!("bypassed by interceptor {id}")))
            }
            DiversionAct::Wait => Some(GateRefusal::Parked(format!(
                "{id}; they are scanned in turn"
            ))),
            DiversionAct::Bar => Some(GateRefusal::Suspect(id.to_string())),
        }
    }

    /// The level of trust of a message: it decides which slots the message may take.
    pub(super) fn level(&self, request: &GateRequest) -> Level {
        let proven = request
            .fingerprint
            .as_deref()
            .is_none_or(|f| self.canaries.are_proven(f));
        Level::of(request.reputation, proven)
    }

    /// The class of a message: it decides when the message has its turn.
    pub(super) fn class(&self, request: &GateRequest) -> Class {
        Class::of(
            request.scan_reason,
            request.reputation,
            request.timed_out_before,
        )
    }

    /// Starts all waiting messages that may start, in turn. If no replica takes mail, refuses all messages for which
    /// [`Gate::awaits`] is false instead.
    pub(super) fn pump(&mut self, now: Instant) {
        if let Some(refusal) = self.refuses() {
            let refused =
                |(_, waiting): &(&Ticket, &Waiting)| !self.awaits(&waiting.request, &refusal);
            let refused = self
                .waiting
                .iter()
                .filter(refused)
                .map(|(ticket, _)| *ticket);
            for ticket in refused.collect::<Vec<_>>() {
                self.refuse(ticket, refusal.clone());
            }
            return;
        }
        while let Some(ticket) = self.next_in_turn(now) {
            self.start_or_park(now, ticket);
        }
    }

    /// Whether a message waits for the return of an engine that takes no mail. Fresh mail does if the breaker is the reason,
    /// as the engine may be back at any moment, and if no other engine makes up for this one. Fresh mail waits as long as for
    /// a slot. Without this wait, mail that arrives just before the return would be queued behind all deferred mail.
    pub(super) fn awaits(&self, request: &GateRequest, refusal: &GateRefusal) -> bool {
        let is_fresh = request.scan_reason == ScanReason::Fresh;
        is_fresh && !self.covered && matches!(refusal, GateRefusal::Open(_))
    }

    /// Scans of mail that may begin now on all replicas together.
    pub(super) fn free(&self) -> usize {
        (0..self.replicas.len()).map(|at| self.free_of(at)).sum()
    }

    /// Scans of mail that may begin now on a replica. In a ramp, only scans that began in the ramp count against its window:
    /// older scans, which the engine may never end, must not keep the window shut.
    pub(super) fn free_of(&self, at: usize) -> usize {
        let replica = &self.replicas[at];
        let slots = self.slots.saturating_sub(replica.running);
        match replica.breaker.ramp_began() {
            Some(began) => {
                let in_ramp = self
                    .scans
                    .values()
                    .filter(|scan| scan.replica == at && scan.started >= began);
                slots.min(
                    replica
                        .allowed()
                        .saturating_sub(in_ramp.filter(|scan| !scan.is_probe).count()),
                )
            }
            None => slots.min(replica.allowed()),
        }
    }

    /// Takes the next message in turn out of the turns, of the messages that may start; `None` if no slot is free or no message
    /// may start. The message stays in `waiting`.
    fn next_in_turn(&mut self, now: Instant) -> Option<Ticket> {
        if self.waiting.is_empty() || self.free() == 0 {
            return None;
        }
        let load = self.load(now);
        let at_limit = self.parties_at_limit(&load);
        let (waiting, slot_use) = (&self.waiting, &self.slot_use);
        let has_room = |class, level| {
            load.admits(now, level, slot_use)
                && (class != Class::TimedOutBefore || load.admits_timed_out_before(level, false))
        };
        let waits = |ticket| waiting.contains_key(&ticket);
        let may_start = |ticket| {
            waiting
                .get(&ticket)
                .is_none_or(|Waiting { request, level, .. }| {
                    !at_limit.contains(&request.fairness_key.party)
                        && (!request.large || load.admits_large(*level))
                        && (!request.timed_out_before
                            || load.admits_timed_out_before(*level, request.large))
                })
        };
        self.turns.pop(has_room, waits, may_start)
    }

    /// Starts the scan of a message that has its turn. If as many copies of its content as allowed are in the engine, parks the
    /// message behind these copies, or refuses the message if all the copies are slow.
    pub(super) fn start_or_park(&mut self, now: Instant, ticket: Ticket) {
        let Some(waiting) = self.waiting.get_mut(&ticket) else {
            return;
        };
        if let Some(key) = self.canaries.blocking(&waiting.request) {
            waiting.parked = true;
            self.canaries.park(key, ticket);
            if self.is_suspicious(key) {
                self.refuse(ticket, slow_copies(key));
            }
            return;
        }
        let Some(replica) = self.freest() else {
            return;
        };
        if let Some(Waiting { request, level, .. }) = self.waiting.remove(&ticket) {
            self.canaries.begin(&request);
            self.slot_use.scan_began(now, level);
            self.replicas[replica].running += 1;
            let scan = Scan {
                request,
                level,
                replica,
                started: now,
                is_probe: false,
                is_slow: false,
                is_overdue: false,
                is_explained: false,
            };
            self.scans.insert(ticket, scan);
            self.orders.push(GateOrder::Start(ticket, replica));
        }
    }

    /// Chooses a replica by the power of two choices (Mitzenmacher, 2001), as there may be many replicas: of two random
    /// replicas the one with more free slots. Replicas whose last outcome was a failure are left out, because a retry would
    /// meet the same replica again. One scan in [`SCANS_PER_REPLICA_TRIAL`] considers them too, to detect recovery where
    /// probes do not.
    fn freest(&self) -> Option<usize> {
        let mut free: Vec<usize> = (0..self.replicas.len())
            .filter(|&at| self.free_of(at) > 0)
            .collect();
        let is_well = |at: &usize| !self.replicas[*at].breaker.failed_last();
        if free.iter().any(is_well) && chance::rng().random_range(0..SCANS_PER_REPLICA_TRIAL) > 0 {
            free.retain(is_well);
        }
        let pick = || {
            free.get(chance::rng().random_range(0..free.len().max(1)))
                .copied()
        };
        let two = pick().into_iter().chain(pick());
        two.max_by_key(|&at| self.free_of(at))
    }

    /// Gives messages that were parked behind copies a turn again, as a copy has ended.
    pub(super) fn offer_again(&mut self, parked: Vec<Ticket>) {
        for ticket in parked {
            if let Some(waiting) = self.waiting.get_mut(&ticket) {
                waiting.parked = false;
                let Waiting { class, level, .. } = *waiting;
                self.turns
                    .push(class, level, waiting.request.fairness_key, ticket);
            }
        }
    }

    /// Removes a waiting message and orders its refusal.
    pub(super) fn refuse(&mut self, ticket: Ticket, refusal: GateRefusal) {
        if self.waiting.remove(&ticket).is_some() {
            self.orders.push(GateOrder::Refuse(ticket, refusal));
        }
    }

    /// Whether all running scans that share the key are slow, at least one: then further copies would be slow too.
    pub(super) fn is_suspicious(&self, key: Trait) -> bool {
        let has = |s: &&Scan| s.request.fingerprint.as_ref().is_some_and(|f| f.has(key));
        let mut same = self.scans.values().filter(has).peekable();
        same.peek().is_some() && same.all(|scan| scan.is_slow)
    }
}

pub(super) fn slow_copies(key: Trait) -> GateRefusal {
    GateRefusal::Parked(format!("copies of it ({key}) are being scanned, all slow"))
}
