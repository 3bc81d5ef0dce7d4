//! Mail that is late while its sender still waits for the reply. No store knows it, so a status asks here.
//!
//! Only mail that has waited in its session for [`LATE_AFTER`] comes here: with the default `budget.session` no mail does, and
//! other mail costs nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::{Generation, Pipeline, SoFar};
use crate::deadline::Deadline;
use crate::message::{Message, MessageId};
use crate::store::{LATE_AFTER, Lane, LateMail};

/// The late mail; at most one message for each session.
#[derive(Debug, Default)]
pub(super) struct InSession(Mutex<BTreeMap<MessageId, Late>>);

#[derive(Debug)]
struct Late {
    received_at: Timestamp,
    /// The next hop of the first recipient; empty if there is none.
    next_hop: Arc<str>,
    so_far: Arc<SoFar>,
}

/// A place among the late mail, until it is dropped.
struct Place<'a> {
    of: &'a InSession,
    id: MessageId,
}

impl InSession {
    /// Waits until `deadline`, the end of `budget.session`. From [`LATE_AFTER`] on the message counts as late.
    ///
    /// Cancel safety: safe; a dropped call ends the counting.
    pub(super) async fn wait(
        &self,
        generation: &Generation,
        message: &Message,
        so_far: &Arc<SoFar>,
        deadline: Deadline,
    ) {
        if generation.budget.session <= LATE_AFTER {
            return deadline.wait().await;
        }
        Deadline::after(LATE_AFTER).wait().await;
        let first = message.envelope.recipients.first();
        let route = first.and_then(|to| generation.delivery.route(to.mailbox.domain()));
        let late = Late {
            received_at: message.received_at,
            next_hop: route.map_or_else(|| "".into(), |settings| settings.name.clone()),
            so_far: so_far.clone(),
        };
        let (of, id) = (self, message.id);
        self.lock().insert(id, late);
        let _place = Place { of, id };
        deadline.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MessageId, Late>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.lock().remove(&self.id);
    }
}

impl Pipeline {
    /// The late mail whose senders wait for the reply, by what it waits for.
    pub fn late_in_session(&self) -> Vec<LateMail> {
        let mut late: BTreeMap<Arc<str>, LateMail> = BTreeMap::new();
        for one in self.in_session.lock().values() {
            // Without a decision it is being scanned, for all next hops alike.
            let (lane, next_hop) = match one.so_far.judged.get() {
                Some(_) => (Lane::Delivery, one.next_hop.clone()),
                None => (Lane::Scan, "".into()),
            };
            let key = match lane {
                Lane::Delivery => format!("delivery {next_hop}").into(),
                _ => "scan".into(),
            };
            let mail = late.entry(key).or_insert_with(|| LateMail {
                lane,
                next_hop,
                cause: None,
                in_work: true,
                in_session: true,
                failing: None,
                example: None,
                next_try: None,
                messages: 0,
                more: false,
                oldest: one.received_at,
            });
            mail.messages += 1;
            mail.oldest = mail.oldest.min(one.received_at);
        }
        late.into_values().collect()
    }
}
