//! The watch over the store: that quarantine fills, and that the store takes nothing, is told in the incident log before
//! somebody asks why mail is refused.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Pipeline;
use crate::deadline::Deadline;
use crate::incident::{Incident, Kind, Subject};
use crate::store::{Held, StoreError};

/// How often.
const TICK: Duration = Duration::from_secs(1);
/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// From this part on it is told that quarantine fills, below the other that it has room again.
const FILLING: f64 = 0.8;
const ROOMY: f64 = 0.7;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Told {
    filling: bool,
    trouble: Option<Discriminant<StoreError>>,
}

impl Pipeline {
    /// Watches until `closing` is cancelled.
    pub async fn watch_store(self: Arc<Self>, closing: CancellationToken) {
        let mut told = Told::default();
        let looks = async {
            loop {
                self.look_at_store(&mut told).await;
                Deadline::after(TICK).wait().await;
            }
        };
        closing.run_until_cancelled(looks).await;
    }

    /// One look. A disk that is gone may leave the store without an answer for ever.
    pub(super) async fn look_at_store(&self, told: &mut Told) {
        if let Some(incident) = told.trouble(self.store.accepts()) {
            self.incidents.record(incident);
        }
        let quarantine = self.generation().quarantine;
        // What cannot be read is told of as trouble of the store.
        let held = Deadline::after(PATIENCE).run(self.store.held(quarantine));
        if let Ok(Ok(held)) = held.await
            && let Some(incident) = told.filling(&held)
        {
            self.incidents.record(incident);
        }
    }
}

impl Told {
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
            false if part >= FILLING => (
                Kind::QuarantineFilling,
                "quarantine is nearly full: new mail that would be held will be refused",
            ),
            true if part < ROOMY => (Kind::QuarantineRoomy, "quarantine has room again"),
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

    /// That it fills is told once, before it is full, with whose mail it is; and once that there is room again, not at the
    /// first message that leaves.
    #[test]
    fn a_quarantine_that_fills_is_told_before_it_is_full() {
        let mut told = Told::default();
        assert_eq!(told.filling(&held(790)), None);
        let incident = told.filling(&held(810)).expect("it fills");
        assert_eq!(incident.kind, Kind::QuarantineFilling);
        let most = ("most".into(), "202 octets of sender a.test".to_owned());
        assert!(incident.evidence.contains(&most), "{incident:?}");
        for octets in [1000, 790, 710] {
            assert_eq!(told.filling(&held(octets)), None);
        }
        let over = told.filling(&held(690)).expect("room again");
        assert_eq!(over.kind, Kind::QuarantineRoomy);
        assert_eq!(told.filling(&held(690)), None);
    }

    /// A store that takes no mail is told once, a worse reason again, and that it works again.
    #[test]
    fn trouble_of_the_store_is_told() {
        let mut told = Told::default();
        let full = || Err(StoreError::Full("0 octets are free".to_owned()));
        let gone = || Err(StoreError::Broken("spillway.db is gone".to_owned()));
        assert_eq!(told.trouble(Ok(())), None);
        let incident = told.trouble(full()).expect("no room");
        assert_eq!(incident.kind, Kind::StoreTrouble);
        assert_eq!(told.trouble(full()), None);
        let incident = told.trouble(gone()).expect("worse");
        assert!(
            incident.summary.contains("spillway.db is gone"),
            "{incident:?}"
        );
        let incident = told.trouble(Ok(())).expect("over");
        assert_eq!(incident.kind, Kind::StoreWell);
    }
}
