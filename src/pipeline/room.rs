//! Room in the store: whether it takes one more message, and a watch that writes an incident when quarantine fills up or the
//! store accepts no mail, so that the incident log explains refused mail.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Mode, Pipeline};
use crate::deadline::Deadline;
use crate::incident::{Condition, Incident, Kind, Subject};
use crate::store::{Held, StoreError};

/// Interval between checks of the store: 1 s. Both queries are cheap enough for that (see `Store::held`).
const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of the query for held mail: 5 s. A disk that is gone may never answer.
const STORE_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Part of the quarantine limit from which on an incident says that quarantine fills.
const FILLING_THRESHOLD: f64 = 0.8;
/// Part of the limit below which an incident says that quarantine has room again. The gap between the two thresholds prevents an
/// incident for every message that arrives or leaves.
const ROOMY_THRESHOLD: f64 = 0.7;

/// The state that the incident log already has.
#[derive(Debug, Default)]
pub(super) struct Reported {
    filling: bool,
    trouble: Option<Discriminant<StoreError>>,
}

impl Pipeline {
    /// Whether new mail with `recipients` recipients may get one more. A store without room allows only cut-through mail for one
    /// recipient, which may need no storage: of two recipients the next hop may defer one, and that one needs storage.
    pub fn has_room(&self, mode: Mode, recipients: usize) -> bool {
        let has_room = match self.store.accepts() {
            Ok(()) => true,
            Err(StoreError::Full(_)) => mode == Mode::CutThrough && recipients == 0,
            Err(_) => false,
        };
        if !has_room {
            self.incidents.refused(&Condition::StoreTrouble, 1);
        }
        has_room
    }

    /// Watches the store until `closing` is cancelled.
    ///
    /// Cancel safety: safe.
    pub async fn watch_store(self: Arc<Self>, closing: CancellationToken) {
        let mut reported = Reported::default();
        let looks = async {
            loop {
                self.look_at_store(&mut reported).await;
                Deadline::after(STORE_CHECK_INTERVAL).wait().await;
            }
        };
        closing.run_until_cancelled(looks).await;
    }

    /// One check of the store.
    pub(super) async fn look_at_store(&self, reported: &mut Reported) {
        if let Some(incident) = reported.trouble(self.store.accepts()) {
            self.incidents.record(incident);
        }
        let quarantine = self.generation().quarantine;
        // A failed query is not reported here: a store failure has an incident of its own.
        let held = Deadline::after(STORE_ANSWER_TIMEOUT).run(self.store.held(quarantine));
        if let Ok(Ok(held)) = held.await
            && let Some(incident) = reported.filling(&held)
        {
            self.incidents.record(incident);
        }
    }
}

impl Reported {
    fn trouble(&mut self, accepts: Result<(), StoreError>) -> Option<Incident> {
        let before = self.trouble;
        self.trouble = accepts.as_ref().err().map(discriminant);
        if self.trouble == before {
            return None;
        }
        let (kind, summary) = match accepts {
            Err(error) => (Kind::StoreTrouble, format!("new mail is not kept: {error}")),
            Ok(()) => (Kind::StoreWell, "new mail is kept again".to_owned()),
        };
        Some(Incident::new(kind, Subject::Relay, summary))
    }

    fn filling(&mut self, held: &Held) -> Option<Incident> {
        let part = held.part();
        let (kind, summary) = match self.filling {
            false if part >= FILLING_THRESHOLD => (
                Kind::QuarantineFilling,
                "quarantine is nearly full: new mail that would be held will be refused",
            ),
            true if part < ROOMY_THRESHOLD => (Kind::QuarantineRoomy, "quarantine has room again"),
            _ => return None,
        };
        self.filling = kind == Kind::QuarantineFilling;
        let incident = Incident::new(kind, Subject::Relay, summary)
            .with("held", format!("{} octets", held.octets))
            .with("limit", format!("{} octets", held.limit));
        Some(match &held.largest {
            Some(holder) => incident.with(
                "most",
                format!("{} octets of {}", holder.octets, holder.name),
            ),
            None => incident,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Holder;

    fn held(octets: u64) -> Held {
        Held {
            octets,
            limit: 1000,
            largest: Some(Holder {
                name: "sender a.test".to_owned(),
                octets: octets / 4,
            }),
        }
    }

    /// One incident says that quarantine fills, before it is full and with the largest holder. One incident says that there is
    /// room again, and not at the first message that leaves.
    #[test]
    fn a_quarantine_that_fills_is_told_before_it_is_full() {
        let mut reported = Reported::default();
        assert_eq!(reported.filling(&held(790)), None);
        let incident = reported.filling(&held(810)).expect("it fills");
        assert_eq!(incident.kind, Kind::QuarantineFilling);
        let most = ("most".into(), "202 octets of sender a.test".to_owned());
        assert!(incident.evidence.contains(&most), "{incident:?}");
        for octets in [1000, 790, 710] {
            assert_eq!(reported.filling(&held(octets)), None);
        }
        let over = reported.filling(&held(690)).expect("room again");
        assert_eq!(over.kind, Kind::QuarantineRoomy);
        assert_eq!(reported.filling(&held(690)), None);
    }

    /// One incident for a store that accepts no mail, one for each other reason, and one when the store works again.
    #[test]
    fn trouble_of_the_store_is_told() {
        let mut reported = Reported::default();
        let full = || Err(StoreError::Full("0 octets are free".to_owned()));
        let gone = || Err(StoreError::Broken("spillway.db is gone".to_owned()));
        assert_eq!(reported.trouble(Ok(())), None);
        let incident = reported.trouble(full()).expect("no room");
        assert_eq!(incident.kind, Kind::StoreTrouble);
        assert_eq!(reported.trouble(full()), None);
        let incident = reported.trouble(gone()).expect("worse");
        assert!(
            incident.summary.contains("spillway.db is gone"),
            "{incident:?}"
        );
        let incident = reported.trouble(Ok(())).expect("over");
        assert_eq!(incident.kind, Kind::StoreWell);
    }
}
