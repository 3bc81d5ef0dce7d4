//! What a scan shows about the interceptors that match its message: an interceptor is disproved, becomes a bypass or a hold, or
//! ends.

use std::sync::Arc;

use tokio::time::Instant;

use super::interception::{Interception, interceptor_incident};
use super::learned::{Learned, Missed};
use super::strikes::STRIKE_AGE;
use super::{Act, Action};
use crate::incident::{Incident, Kind};
use crate::message::{Fingerprint, SenderReputation};
use crate::observation::{Evidence, Observed};

/// Scans in time that disprove a narrow interceptor, and a broad one. A broad interceptor needs more: valid mail matches it
/// too, and scans well. As many late clean answers as disprove a narrow interceptor turn a hold into a bypass.
const SCANS_TO_DISPROVE: [u32; 2] = [2, 20];
/// Scans in time of bypassed messages that end the bypass.
const SCANS_TO_END_BYPASS: u32 = 3;
/// Findings remembered because they took long or would have been missed. For [`STRIKE_AGE`], the engine is not bypassed for
/// messages like these.
const MISSED_MAX: usize = 256;

impl Interception {
    /// Weighs a scan for the interceptors that match the message. A scan in time counts only if it began after the
    /// interceptor was made.
    pub(super) fn weigh(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        evidence: &Evidence,
    ) -> Vec<Incident> {
        let mut incidents = Vec::new();
        let (mut lifted, mut harmless, mut disproved) = (Vec::new(), Vec::new(), Vec::new());
        let is_known = self.reputation(&evidence.fingerprint) == SenderReputation::Known;
        for (id, active) in &mut self.active {
            let about = |l: &Learned| {
                // The interceptor does not hold such messages of known senders, so their scans say nothing about the
                // messages that it holds.
                let is_exempt = is_known && self.trials.is_cleared(now, engine, l.like.key);
                *l.engine == **engine && l.like.matches(&evidence.fingerprint) && !is_exempt
            };
            if !active.learned.as_ref().is_some_and(about) {
                continue;
            }
            active.count(evidence);
            let Some(learned) = &active.learned else {
                continue;
            };
            let action = &mut active.interceptor.action;
            let is_bypass = matches!(action, Action::Bypass { .. });
            if is_bypass && evidence.what.found() {
                disproved.push(id.clone());
            } else if learned.in_time >= scans_to_end(action, learned) {
                lifted.push(id.clone());
            } else if learned.late_clean >= SCANS_TO_DISPROVE[0] && !is_bypass && !learned.is_bad {
                harmless.push(id.clone());
            } else if matches!(action, Action::Park { .. })
                && learned.narrow
                && learned.timeouts >= self.settings.strikes
                && self.settings.act == Act::Hold
            {
                *action = Action::Hold;
                self.version += 1;
                let what = "now holds what it parked";
                let incident =
                    interceptor_incident(Kind::InterceptorChanged, &active.interceptor, what);
                let incident = incident.with("scans past their timeout", learned.timeouts);
                incidents.push(incident.about(evidence.message));
            }
        }
        if evidence.what.found()
            && (!matches!(evidence.what, Observed::Fast { .. }) || !disproved.is_empty())
        {
            self.remember_missed(now, engine, &evidence.fingerprint);
        }
        for id in lifted {
            incidents.extend(self.end(&id, "disproved: such mail scans well"));
        }
        for id in harmless {
            incidents.extend(self.start_bypass(now, &id));
        }
        for id in disproved {
            incidents.extend(self.replace_bypass_by_hold(&id, evidence));
        }
        incidents
    }

    /// Remembers a message. For [`STRIKE_AGE`] the engine must not be bypassed for messages like it.
    fn remember_missed(&mut self, now: Instant, engine: &Arc<str>, fingerprint: &Arc<Fingerprint>) {
        while self.missed.len() >= MISSED_MAX
            || self
                .missed
                .front()
                .is_some_and(|e| now >= e.at + STRIKE_AGE)
        {
            self.missed.pop_front();
        }
        self.missed.push_back(Missed {
            at: now,
            engine: engine.clone(),
            fingerprint: fingerprint.clone(),
        });
    }

    /// The messages that [`remember_missed`](Self::remember_missed) remembers for the engine.
    pub(super) fn missed_by<'a>(
        &'a self,
        now: Instant,
        engine: &'a str,
    ) -> impl Iterator<Item = &'a Fingerprint> {
        let of = self.missed.iter().filter(move |e| *e.engine == *engine);
        of.filter(move |e| now < e.at + STRIKE_AGE)
            .map(|e| &*e.fingerprint)
    }

    /// The engine found something in a message that it was bypassed for. The other engines suffice for a verdict, but may
    /// not know this finding. If the finding was late, the scans cost the engine too much: a narrow interceptor holds such
    /// messages from now on, or parks them if [`Act::Park`] allows no hold. In all other cases the interceptor ends, and the engine gets such messages again.
    fn replace_bypass_by_hold(&mut self, id: &str, evidence: &Evidence) -> Option<Incident> {
        let active = self.active.get_mut(id)?;
        let learned = active.learned.as_ref()?;
        let (is_narrow, engine) = (learned.narrow, learned.engine.to_string());
        if !matches!(evidence.what, Observed::Late { .. }) || !is_narrow {
            let incident = self.end(
                id,
                "disproved: the engine found something in mail that it was spared",
            );
            return incident.map(|incident| incident.about(evidence.message));
        }
        let (action, what) = match self.settings.act {
            Act::Hold => (
                Action::Hold,
                "now holds what it spared the engine: something was found in it",
            ),
            Act::Park => (
                Action::Park { engine },
                "now parks what it spared the engine: something was found in it",
            ),
        };
        active.interceptor.action = action;
        self.version += 1;
        let incident = interceptor_incident(Kind::InterceptorChanged, &active.interceptor, what);
        Some(incident.about(evidence.message))
    }

    /// Such messages take the engine too long and are clean in the end. So the interceptor holds them no longer, and
    /// bypasses the engine instead. If the other engines do not suffice, the interceptor ends. If a remembered finding is in a
    /// message like these, nothing changes.
    fn start_bypass(&mut self, now: Instant, id: &str) -> Option<Incident> {
        let learned = self.active.get(id)?.learned.as_ref()?;
        let mut bad = self.missed_by(now, &learned.engine);
        if bad.any(|fingerprint| learned.like.matches(fingerprint)) {
            return None;
        }
        drop(bad);
        let active = self.active.get_mut(id)?;
        let learned = active.learned.as_mut()?;
        if !self.covered.contains(&learned.engine) {
            return self.end(id, "disproved: such mail is clean, although slow");
        }
        let engine = learned.engine.to_string();
        (learned.made, learned.in_time) = (now, 0);
        active.interceptor.action = Action::Bypass { engine };
        self.version += 1;
        let what = "now spares the engine what it held: it is clean, if slow";
        let incident = interceptor_incident(Kind::InterceptorChanged, &active.interceptor, what);
        Some(incident.with("clean after their timeout", SCANS_TO_DISPROVE[0]))
    }
}

/// Scans in time after which an interceptor ends.
fn scans_to_end(action: &Action, learned: &Learned) -> u32 {
    match action {
        Action::Bypass { .. } => SCANS_TO_END_BYPASS,
        Action::Park { .. } | Action::Hold => SCANS_TO_DISPROVE[usize::from(!learned.narrow)],
    }
}
