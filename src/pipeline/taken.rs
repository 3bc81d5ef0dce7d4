//! What a next hop said becomes durable when it says it, also where it answers for each recipient and takes its time.
//!
//! For stored mail with several recipients: those who have the message are struck off its record while others are still
//! waited for, under the lease that the work has anyway. The delivery itself does not wait for that, and the settlement at its
//! end is the same with and without it: it writes the whole record. Where all answers come at once there is nothing to do here.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::outbound::outbound;
use super::{Generation, Judged, Pipeline, SoFar, events, lanes, settle};
use crate::deadline::{Deadline, wall_clock};
use crate::delivery::{Outcome, Taken, Told, Turn};
use crate::message::Message;
use crate::policy::Group;
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::store::{Change, Record, StoreError};

/// Answers that come within this time are written together.
const GATHER: Duration = Duration::from_millis(100);

/// One delivery, as far as it has come.
struct Striking<'a> {
    generation: &'a Generation,
    message: &'a Message,
    judged: &'a Judged,
    group: &'a Group,
    so_far: &'a SoFar,
    /// Who has it, struck off or not.
    taken: Vec<Taken>,
    /// So many of them are struck off, and are in the history.
    struck: usize,
}

impl Pipeline {
    /// Delivers to a group of recipients. Returns an outcome for each, and the positions of those of whom it is in the history
    /// already that they have the message.
    pub(super) async fn deliver(
        &self,
        generation: &Arc<Generation>,
        message: &Message,
        (judged, group): (&Judged, &Group),
        turn: Option<Turn>,
        so_far: &SoFar,
    ) -> (Vec<Outcome>, Vec<usize>) {
        let mut outbound = outbound(generation, message, judged, group).await;
        // The lease of a stored message ends soon after it, and somebody else takes the message up.
        let deadline = Deadline::after(lanes::DELIVERY);
        let delivery = &generation.delivery;
        // A second look that is owed is kept with the settlement: nobody is struck off without it.
        if group.1.len() < 2 || settle::has_stand_in(&judged.reports) {
            let outcomes = delivery.deliver_in_turn(&outbound, turn, deadline);
            return (outcomes.await, Vec::new());
        }
        let (told, hear) = Told::of(group.1.len());
        outbound.told = told;
        let ended = CancellationToken::new();
        let delivering = async {
            let outcomes = delivery.deliver_in_turn(&outbound, turn, deadline).await;
            ended.cancel();
            outcomes
        };
        let striking = Striking {
            generation,
            message,
            judged,
            group,
            so_far,
            taken: Vec::new(),
            struck: 0,
        };
        tokio::join!(delivering, self.strike_off(striking, hear, &ended))
    }

    /// Until the delivery has ended, and the write that is under way then: the settlement comes after it.
    async fn strike_off(
        &self,
        mut striking: Striking<'_>,
        mut hear: Receiver<Taken>,
        ended: &CancellationToken,
    ) -> Vec<usize> {
        let mut next = Deadline::after(GATHER);
        loop {
            let waits = striking.taken.len() > striking.struck;
            tokio::select! {
                biased;
                () = ended.cancelled() => return striking.positions(),
                Some(taken) = hear.recv() => {
                    if !waits {
                        next = Deadline::after(GATHER);
                    }
                    if let Some(at) = striking.position(&taken) {
                        striking.so_far.has_it(at);
                    }
                    striking.taken.push(taken);
                }
                () = next.wait(), if waits => {
                    next = Deadline::after(GATHER);
                    // Nothing is to be struck off while its sender answers for it, or when the last one has it.
                    let Some(rest) = striking.rest() else {
                        continue;
                    };
                    match self.strike(&mut striking, rest).await {
                        Ok(()) => {}
                        // Somebody has taken the record away: the settlement finds that out too.
                        Err(StoreError::NotFound(_)) => return striking.positions(),
                        Err(_) => next = Deadline::after(lanes::AGAIN),
                    }
                }
            }
        }
    }

    /// Puts the record with the rest in the place of the stored one.
    async fn strike(&self, striking: &mut Striking<'_>, rest: Record) -> Result<(), StoreError> {
        let (lane, id) = (rest.lane, rest.id);
        let until = wall_clock() + lanes::lease(&striking.generation.budget);
        let change = Change::Take(Box::new(rest), until);
        self.store.change_in(lane, id, change, None).await?;
        let reply = Reply::accepted(striking.message.id);
        for entry in striking.tell() {
            events::settled(&entry, &reply);
            self.history.record(entry);
        }
        Ok(())
    }
}

impl SoFar {
    /// A record of this message without those who have it; none if nobody is left in it.
    pub(super) fn rest(&self, mut record: Record, message: &Message) -> Option<Record> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.is_empty() {
            let all = message.envelope.recipients.iter().enumerate();
            let rest = all.filter(|(at, _)| !taken.contains(at));
            record.envelope.recipients = rest.map(|(_, recipient)| recipient.clone()).collect();
        }
        (!record.envelope.recipients.is_empty()).then_some(record)
    }

    fn has_it(&self, at: usize) {
        let taken = self.taken.lock();
        taken.unwrap_or_else(PoisonError::into_inner).push(at);
    }
}

impl Striking<'_> {
    /// Positions in the message's envelope of those that are struck off.
    fn positions(&self) -> Vec<usize> {
        let struck = self.taken.iter().take(self.struck);
        struck.filter_map(|taken| self.position(taken)).collect()
    }

    fn position(&self, taken: &Taken) -> Option<usize> {
        self.group.1.get(taken.at).copied()
    }

    /// The record without those who have it; none if there is no record, or nobody is left in it.
    fn rest(&self) -> Option<Record> {
        let stored = self.so_far.stored.get()?.clone();
        self.so_far.rest(stored, self.message)
    }

    /// What the history is to say of those who are struck off now.
    fn tell(&mut self) -> Vec<HistoryEntry> {
        let now = &self.taken[self.struck..];
        let entry = |taken: &Taken| {
            let those = [self.position(taken)?];
            let told = ("delivered", &self.group.0, taken.text.clone());
            let judged = Some(self.judged);
            Some(settle::entry(self.message, judged, &those, told))
        };
        let entries = now.iter().filter_map(entry).collect();
        self.struck = self.taken.len();
        entries
    }
}
