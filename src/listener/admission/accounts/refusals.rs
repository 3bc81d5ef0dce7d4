//! Periods of refusals: their counts, what is short, and their incidents.

use tokio::time::Instant;

use super::{AdmissionAccounts, AdmissionParty, AdmissionRefusal};
use crate::incident::{Incident, Kind, Subject};
use crate::pipeline::Shortage;
use crate::telemetry::duration::duration;

/// Largest number of incidents kept until the next fetch. The admission state changes much less often than the watch
/// fetches incidents.
const PENDING_INCIDENTS_MAX: usize = 16;

/// A period during which mail is refused.
#[derive(Debug)]
pub(super) struct Refusing {
    /// Time of the first refusal.
    pub(super) since: Instant,
    /// Time of the last refusal.
    pub(super) last: Instant,
    /// Number of refusals.
    pub(super) refused: u64,
    /// What was short at the last refusal.
    pub(super) shortage: Shortage,
}

impl AdmissionAccounts {
    /// Counts a refusal. The first one of a period is an incident.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        party: &AdmissionParty,
        refusal: AdmissionRefusal,
        free: u64,
    ) {
        let shortage = match refusal {
            AdmissionRefusal::MemoryShare | AdmissionRefusal::Memory => Shortage::Memory,
            AdmissionRefusal::WorkShare | AdmissionRefusal::Work => self.pressure.shortage(),
        };
        if let Some(refusing) = &mut self.refusing {
            refusing.shortage = shortage;
            refusing.last = now;
            refusing.refused += 1;
            return;
        }
        self.refusing = Some(Refusing {
            since: now,
            last: now,
            refused: 1,
            shortage,
        });
        self.add_incident(self.refusal_incident(party, refusal, free));
    }

    /// The incident of the first refusal of a period.
    fn refusal_incident(
        &self,
        party: &AdmissionParty,
        refusal: AdmissionRefusal,
        free: u64,
    ) -> Incident {
        let summary = match refusal {
            AdmissionRefusal::MemoryShare => {
                "the relay refuses new mail from clients and senders that hold too much memory"
            }
            AdmissionRefusal::WorkShare => {
                "the relay refuses new mail from clients and senders with too much waiting mail"
            }
            AdmissionRefusal::Memory => "the relay refuses all new mail: no memory is free",
            AdmissionRefusal::Work => "the relay refuses all new mail: limits.backlog is reached",
        };
        let account = self.networks.get(&party.network);
        let messages = account.map_or(0, |a| a.messages);
        let octets = account.map_or(0, |a| a.octets);
        let pressure = &self.pressure;
        Incident::new(Kind::AdmissionRefuses, Subject::Relay, summary)
            .with("why", refusal.as_str())
            .with("memory free", format!("{free} of {} octets", self.memory))
            .with(
                "wait for an engine",
                format!(
                    "{} of {}",
                    duration(pressure.wait),
                    duration(pressure.patience)
                ),
            )
            .with(
                "accepted and not judged",
                format!("{} of {} messages", pressure.waiting, pressure.bound),
            )
            .with("messages in flight", self.all.messages)
            .with("the first client refused", party.network)
            .with(
                "it holds",
                format!("{messages} messages in flight, {octets} octets"),
            )
    }

    /// Keeps an incident for [`Self::take_incidents`].
    pub(super) fn add_incident(&mut self, incident: Incident) {
        if self.incidents.len() < PENDING_INCIDENTS_MAX {
            self.incidents.push((incident, self.pressure.clone()));
        }
    }
}
