//! Makes the answers of a next hop durable as they arrive, where a slow next hop answers for each recipient (LMTP, Maildir).
//!
//! For stored mail with several recipients: recipients who have the message are removed from the record during the delivery,
//! under the lease that the delivery has anyway. The delivery does not wait for these writes. The settlement at its end is the
//! same with and without them, because the settlement writes the whole record. If all answers arrive together, nothing is
//! removed before the settlement.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::outbound::outbound;
use super::{Generation, Judgement, Pipeline, SoFar, counts, events, lanes, settle};
use crate::deadline::{Deadline, wall_clock};
use crate::delivery::{DeliveredRecipient, DeliveredSender, DeliveryPermit, Outcome};
use crate::message::Message;
use crate::policy::Group;
use crate::smtp::Reply;
use crate::store::history::HistoryEntry;
use crate::store::{Change, Record, StoreError};

/// Answers that arrive within this time are written together, in one durable write: 100 ms.
const ANSWER_GATHER_TIME: Duration = Duration::from_millis(100);

/// The progress of one delivery.
struct Removing<'a> {
    generation: &'a Generation,
    message: &'a Message,
    judged: &'a Judgement,
    group: &'a Group,
    so_far: &'a SoFar,
    /// Answers for recipients who have the message, removed or not.
    taken: Vec<DeliveredRecipient>,
    /// Number of the first of these that are removed from the record and are in the history.
    removed: usize,
}

impl Pipeline {
    /// Delivers to a group of recipients. Returns an outcome for each recipient, and the positions of the recipients whose
    /// delivery is in the history already.
    pub(super) async fn deliver(
        &self,
        generation: &Arc<Generation>,
        message: &Message,
        (judged, group): (&Judgement, &Group),
        turn: Option<DeliveryPermit>,
        so_far: &SoFar,
    ) -> (Vec<Outcome>, Vec<usize>) {
        let outcomes = self.deliver_now(generation, message, (judged, group), turn, so_far);
        let (outcomes, told) = outcomes.await;
        if outcomes
            .iter()
            .any(|end| matches!(end, Outcome::Delivered(_)))
        {
            let what = (judged, &group.0);
            let (stored, delays) = (so_far.stored.get(), self.measures.delays());
            counts::delivered(message, what, stored, so_far.arrived, delays);
        }
        (outcomes, told)
    }

    async fn deliver_now(
        &self,
        generation: &Arc<Generation>,
        message: &Message,
        (judged, group): (&Judgement, &Group),
        turn: Option<DeliveryPermit>,
        so_far: &SoFar,
    ) -> (Vec<Outcome>, Vec<usize>) {
        let mut outbound = outbound(generation, message, judged, group).await;
        // The lease of a stored message ends soon after this deadline, and another worker may then claim the message.
        let deadline = Deadline::after(lanes::DELIVERY_TIME_MAX);
        let delivery = &generation.delivery;
        // If an answer stood in, the settlement also stores the scan that is owed: no recipient is removed before.
        if group.1.len() < 2 || settle::has_stand_in(&judged.reports) {
            let outcomes = delivery.deliver_in_turn(&outbound, turn, deadline);
            return (outcomes.await, Vec::new());
        }
        let (sender, receiver) = DeliveredSender::channel(group.1.len());
        outbound.delivered = sender;
        let ended = CancellationToken::new();
        let delivering = async {
            let outcomes = delivery.deliver_in_turn(&outbound, turn, deadline).await;
            ended.cancel();
            outcomes
        };
        let removing = Removing {
            generation,
            message,
            judged,
            group,
            so_far,
            taken: Vec::new(),
            removed: 0,
        };
        tokio::join!(
            delivering,
            self.remove_delivered(removing, receiver, &ended)
        )
    }

    /// Strikes off recipients until the delivery has ended. A write under way at that time ends first, because the settlement
    /// must be the last write.
    async fn remove_delivered(
        &self,
        mut removing: Removing<'_>,
        mut receiver: Receiver<DeliveredRecipient>,
        ended: &CancellationToken,
    ) -> Vec<usize> {
        let mut next = Deadline::after(ANSWER_GATHER_TIME);
        loop {
            let waits = removing.taken.len() > removing.removed;
            tokio::select! {
                biased;
                () = ended.cancelled() => return removing.positions(),
                Some(taken) = receiver.recv() => {
                    if !waits {
                        next = Deadline::after(ANSWER_GATHER_TIME);
                    }
                    if let Some(at) = removing.position(&taken) {
                        removing.so_far.has_it(at);
                    }
                    removing.taken.push(taken);
                }
                () = next.wait(), if waits => {
                    next = Deadline::after(ANSWER_GATHER_TIME);
                    // Nothing to write: the sender is still responsible, or the last recipient has the message.
                    let Some(rest) = removing.rest() else {
                        continue;
                    };
                    match self.remove_now(&mut removing, rest).await {
                        Ok(()) => {}
                        // The record was removed or moved meanwhile, as the settlement will find out.
                        Err(StoreError::NotFound(_)) => return removing.positions(),
                        Err(_) => next = Deadline::after(lanes::PERSIST_RETRY_PAUSE),
                    }
                }
            }
        }
    }

    /// Replaces the stored record by one with the remaining recipients, and writes log and history.
    async fn remove_now(
        &self,
        removing: &mut Removing<'_>,
        rest: Record,
    ) -> Result<(), StoreError> {
        let (lane, id) = (rest.lane, rest.id);
        let until = wall_clock() + lanes::lease(&removing.generation.budget);
        let facts = events::PassFacts::taken(settle::first_hop(removing.generation, &rest));
        let change = Change::Take(Box::new(rest), until);
        self.store.change_in(lane, id, change, None).await?;
        let reply = Reply::accepted(removing.message.id);
        let entries = removing.tell();
        events::message(removing.message, &entries, &facts, &reply);
        for entry in entries {
            counts::recipients(&entry, false);
            events::settled(&entry);
            self.history.record(entry);
        }
        Ok(())
    }
}

impl SoFar {
    /// The record without recipients who have the message; `None` if no recipient is left.
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

impl Removing<'_> {
    /// Positions in the message's envelope of the recipients that are removed.
    fn positions(&self) -> Vec<usize> {
        let removed = self.taken.iter().take(self.removed);
        removed.filter_map(|taken| self.position(taken)).collect()
    }

    fn position(&self, taken: &DeliveredRecipient) -> Option<usize> {
        self.group.1.get(taken.at).copied()
    }

    /// The record without recipients who have the message; `None` if there is no record, or no recipient is left.
    fn rest(&self) -> Option<Record> {
        let stored = self.so_far.stored.get()?.clone();
        self.so_far.rest(stored, self.message)
    }

    /// History entries for the recipients that are removed now.
    fn tell(&mut self) -> Vec<HistoryEntry> {
        let now = &self.taken[self.removed..];
        let entry = |taken: &DeliveredRecipient| {
            let those = [self.position(taken)?];
            let told = ("delivered", &self.group.0, taken.text.clone());
            let judged = Some(self.judged);
            Some(settle::entry(self.message, judged, &those, told))
        };
        let entries = now.iter().filter_map(entry).collect();
        self.removed = self.taken.len();
        entries
    }
}
