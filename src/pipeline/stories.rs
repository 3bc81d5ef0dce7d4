//! What the stories of incidents need to know of the present: which conditions are there, and how much mail waits.

use jiff::Timestamp;

use super::{Pipeline, events};
use crate::deadline::wall_clock;
use crate::delivery::{HopStatus, PaceState};
use crate::incident::{Condition, StillWaiting, Subject, WaitedFor};
use crate::scan::{Guarded, Health, Scanner};
use crate::store::{Cause, Lane, LateMail, LateTimes};

impl Pipeline {
    /// Ends the stories whose trouble is over.
    pub(super) fn follow_stories(&self) {
        let generation = self.generation();
        self.incidents.follow(|cause, condition| {
            let interceptor = |id: &str| self.interception.lock().list().any(|i| i.id == id);
            match condition {
                Condition::Out(_)
                | Condition::Drained(_)
                | Condition::Stale(_)
                | Condition::Differing => holds(&generation.scanner, cause, condition),
                Condition::Intercepting(id) => Some(interceptor(id)),
                Condition::HeldBack => {
                    let hops = generation.delivery.status();
                    let is_it = |hop: &HopStatus| *cause == Subject::NextHop(hop.name.to_string());
                    Some(
                        hops.iter()
                            .any(|hop| is_it(hop) && hop.state != PaceState::Free),
                    )
                }
                Condition::Recovering(_)
                | Condition::Refusing
                | Condition::Filling
                | Condition::StoreTrouble => None,
            }
        });
    }

    /// Tells the open stories how much mail waits for their causes; after the end of the trouble, how much of the mail of that time. Reads the store a few times a
    /// minute while there is such a story, with the counts of [`Store::late`](crate::store::Store::late), which are bounded.
    ///
    /// Cancel safety: safe.
    pub(super) async fn look_at_waiting(&self) {
        for story in self.incidents.waited_for() {
            let now = wall_clock();
            let times = LateTimes {
                now,
                before: story.before.unwrap_or(now),
            };
            match self.store.late(times).await {
                Ok(late) => self.incidents.waits(&story, waiting(&story, &late)),
                Err(error) => return events::lane_failed("stories", &error),
            }
        }
    }
}

/// The mail that waits for the cause of a story.
fn waiting(story: &WaitedFor, late: &[LateMail]) -> StillWaiting {
    let waits = |mail: &&LateMail| match (&story.cause, &mail.cause) {
        (Subject::NextHop(name), _) => mail.lane == Lane::Delivery && *mail.next_hop == **name,
        (Subject::Engine { name, .. }, Some(Cause::Engine(of))) => name == of,
        (Subject::Engine { .. }, Some(Cause::Interceptor(of))) => story.interceptors.contains(of),
        (Subject::Interceptor(id), Some(Cause::Interceptor(of))) => id == of,
        _ => false,
    };
    let none = StillWaiting {
        messages: 0,
        more: false,
        oldest: Timestamp::MAX,
    };
    late.iter()
        .filter(waits)
        .fold(none, |all, mail| StillWaiting {
            messages: all.messages + mail.messages,
            more: all.more || mail.more,
            oldest: all.oldest.min(mail.oldest),
        })
}

/// Whether the condition of an engine is there; `None` if that is not known.
fn holds(scanner: &Scanner, cause: &Subject, condition: &Condition) -> Option<bool> {
    let mut engines = scanner.engines().iter();
    let engine = engines.find(|e| *cause == Subject::engine(&*e.settings().name));
    let Some(health) = engine.map(Guarded::health) else {
        return Some(false);
    };
    let oldest = engine.and_then(|engine| engine.settings().signature_age);
    let is_one = |wanted: &Option<String>, of: &Option<String>| wanted.is_none() || wanted == of;
    match condition {
        Condition::Out(wanted) => {
            let mut replicas = health.replicas.iter();
            Some(replicas.any(|r| is_one(wanted, &r.address) && r.breaker != "closed"))
        }
        Condition::Drained(wanted) => {
            let mut replicas = health.replicas.iter();
            Some(replicas.any(|r| is_one(wanted, &r.address) && r.drained))
        }
        Condition::Stale(wanted) => {
            let Some(oldest) = oldest else {
                return Some(false);
            };
            let replicas = health
                .replicas
                .iter()
                .filter(|r| is_one(wanted, &r.address));
            let since = wall_clock().checked_sub(oldest).unwrap_or(Timestamp::MIN);
            let made = replicas.filter_map(|replica| replica.signed).min()?;
            Some(made < since)
        }
        Condition::Differing => Some(are_different(&health)),
        _ => None,
    }
}

/// Whether the replicas have different signatures.
fn are_different(health: &Health) -> bool {
    let mut versions = health.replicas.iter().filter_map(|r| r.signatures.as_ref());
    let first = versions.next();
    versions.any(|version| Some(version) != first)
}
