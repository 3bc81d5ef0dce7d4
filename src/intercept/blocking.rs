//! How the learner blocks messages, because of expensive failures or of what slow scans have in common, and how a trial
//! clears a key.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::episode::{Finding, NARROW_SHARE_MAX};
use super::interception::{Interception, interceptor_incident, percent};
use super::key::Likeness;
use super::learned::{Active, Learned};
use super::strikes::TRAITS_WITH_STRIKES_MAX;
use super::{Action, Interceptor, Key, Mode, Origin};
use crate::ablation::{Mechanism, without};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Fingerprint, MessageId, SenderReputation};
use crate::observation::{Evidence, Observed};

/// Learned interceptors in force at once: few, so that what the learner does stays bounded (I13).
pub(super) const LEARNED_INTERCEPTORS_MAX: usize = 20;
/// Messages with an expensive failure that block a trait: 2, because one failure may be an accident. One is enough for a key
/// that was blocked before. As many timeouts turn a park into a hold.
pub(super) const STRIKES_TO_BLOCK: u32 = 2;
/// An interceptor for a key that was blocked before lasts twice as long as the one before, with 4 doublings at most: from 10
/// min to 160 min by default.
pub(super) const EXPIRY_DOUBLINGS_MAX: u32 = 4;

/// What [`Interception::block`] makes an interceptor from.
pub(super) struct BlockCase {
    pub(super) like: Likeness,
    /// Whether good mail hardly ever matches.
    pub(super) narrow: bool,
    pub(super) action: Action,
    pub(super) evidence: Vec<(Cow<'static, str>, String)>,
}

impl Interception {
    /// Counts an expensive failure, and holds the most suspected trait once it has enough strikes.
    pub(super) fn strike(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        evidence: &Evidence,
    ) -> Vec<Incident> {
        let fingerprint = &evidence.fingerprint;
        if self.is_settled(engine, fingerprint) {
            return Vec::new();
        }
        for one in fingerprint.canary_keys() {
            self.strikes.count(now, engine, one, evidence.message);
        }
        if self.timed_out_before(now, engine, fingerprint).is_empty() {
            return vec![strike_incident(engine, evidence)];
        }
        let incident = self.block_most_suspected(now, engine, evidence.message, fingerprint);
        incident.into_iter().collect()
    }

    /// The traits of a message that have enough strikes, each with its number of strikes.
    fn timed_out_before(
        &self,
        now: Instant,
        engine: &Arc<str>,
        fingerprint: &Fingerprint,
    ) -> Vec<(Likeness, u32)> {
        let mut timed_out_before = Vec::new();
        for one in fingerprint.canary_keys() {
            let like = Likeness::of(Key(one, None), fingerprint);
            let needed = match self.times_blocked.contains_key(&like.key) {
                true => 1,
                false => STRIKES_TO_BLOCK,
            };
            let count = self.strikes.of(now, engine, one);
            if count >= needed {
                timed_out_before.push((like, count));
            }
        }
        timed_out_before
    }

    /// Holds the key that good mail has least, of all keys that the message shares with other failed messages. An attachment
    /// that is in everybody's mail must not shield the one beside it.
    fn block_most_suspected(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        fingerprint: &Fingerprint,
    ) -> Option<Incident> {
        let episode = self.episodes.get(engine)?;
        let cleared = self.trials.cleared(now, engine);
        let timed_out_before = self.timed_out_before(now, engine, fingerprint).into_iter();
        let suspects = timed_out_before.filter_map(|(like, count)| {
            let share = self.baseline.share(like.key);
            // One band matches by accident now and then. So the failed messages must be nearly the same, or one of them must
            // come with a burst of messages like it: of a flood of nearly the same content the gate lets in the messages
            // that share few bands with the slow scans in the engine.
            let is_common = like.key.is_exact()
                || self.times_blocked.contains_key(&like.key)
                || episode.failures(&like) >= STRIKES_TO_BLOCK as usize
                || self.arrivals.is_burst(now, &like, share);
            let suspected = share <= NARROW_SHARE_MAX
                && is_common
                && !cleared.contains(&like.key)
                && !episode.has_fast(&like)
                && episode.is_fine_without(now, &like);
            suspected.then_some((like, count, share))
        });
        // Of several keys that good mail has equally rarely, the key with the most strikes; then the first one.
        let worst = suspects.min_by(|a, b| a.2.total_cmp(&b.2).then(b.1.cmp(&a.1)));
        let (like, count, share) = worst?;
        let evidence = vec![
            ("strikes".into(), count.to_string()),
            ("share of good mail".into(), percent(share)),
            ("message".into(), message.to_string()),
        ];
        // Replace weaker interceptors for this key by a hold.
        let is_same = |a: &Active| a.learned.as_ref().is_some_and(|l| l.like.key == like.key);
        self.active.retain(|_, active| !is_same(active));
        let case = BlockCase {
            like,
            narrow: true,
            action: Action::Hold,
            evidence,
        };
        self.block(now, engine, case)
    }

    /// Whether an interceptor holds such messages already, or bypasses the engine for them. In a bypass, late shadow copies
    /// are expected.
    fn is_settled(&self, engine: &Arc<str>, fingerprint: &Fingerprint) -> bool {
        let settles = |active: &Active| {
            let is_like = |l: &Learned| l.like.key.is_content() && l.like.matches(fingerprint);
            active.learned.as_ref().is_some_and(is_like)
                && match &active.interceptor.action {
                    Action::Hold => true,
                    Action::Bypass { engine: of } => **of == **engine,
                    Action::Park { .. } => false,
                }
        };
        self.active.values().any(settles)
    }

    /// Makes an interceptor, and returns the incident that reports it. `None` if the learner is off, or has
    /// [`LEARNED_INTERCEPTORS_MAX`] in force.
    pub(super) fn block(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        case: BlockCase,
    ) -> Option<Incident> {
        let learned = self.active.values().filter(|a| a.learned.is_some()).count();
        if self.settings.mode == Mode::Off
            || without(Mechanism::Interceptors)
            || learned >= LEARNED_INTERCEPTORS_MAX
        {
            return None;
        }
        if self.times_blocked.len() >= TRAITS_WITH_STRIKES_MAX {
            self.times_blocked.clear();
        }
        let before = self.times_blocked.entry(case.like.key).or_default();
        let lasts = self
            .settings
            .expiry
            .saturating_mul(1 << (*before).min(EXPIRY_DOUBLINGS_MAX));
        *before += 1;
        let interceptor = self.new_interceptor(engine, &case, lasts);
        let incident = made(&interceptor, engine, &case, lasts);
        let learned = Learned {
            engine: engine.clone(),
            like: case.like,
            narrow: case.narrow,
            made: now,
            expires: now + lasts,
            timeouts: 0,
            in_time: 0,
            late_clean: 0,
            is_bad: false,
        };
        self.version += 1;
        let active = Active {
            interceptor,
            learned: Some(learned),
        };
        self.active.insert(active.interceptor.id.clone(), active);
        Some(incident)
    }

    fn new_interceptor(&self, engine: &Arc<str>, case: &BlockCase, lasts: Duration) -> Interceptor {
        let made = crate::deadline::wall_clock();
        Interceptor {
            id: ulid::Ulid::generate().to_string(),
            pattern: case.like.pattern(),
            action: case.action.clone(),
            origin: Origin::Learned {
                evidence: case.evidence.clone(),
                engine: engine.to_string(),
                narrow: case.narrow,
                bad: false,
            },
            made,
            expires: made.checked_add(lasts).ok(),
            dry_run: self.settings.mode == Mode::Shadow,
            hits: 0,
            samples: Vec::new(),
        }
    }

    /// Updates the trials with what a scan shows about suspected keys.
    pub(super) fn weigh_trial(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        evidence: &Evidence,
    ) -> Vec<Incident> {
        let message = evidence.message;
        match evidence.what {
            Observed::Slow => {
                let is_known = self.reputation(&evidence.fingerprint) == SenderReputation::Known;
                let rules = self.active.values().filter_map(Active::suspects);
                let rules = rules
                    .filter(|(of, _)| **of == *engine)
                    .map(|(_, like)| like);
                let of = (&evidence.fingerprint, is_known);
                let shown = self.trials.became_slow(now, engine, message, of, rules);
                shown.map_or(Vec::new(), |shown| {
                    self.suspicion_incidents(engine, message, &shown)
                })
            }
            Observed::TimedOut => {
                self.trials.timed_out(engine, message);
                Vec::new()
            }
            Observed::Fast { .. }
            | Observed::Ended { .. }
            | Observed::Late { .. }
            | Observed::Broken
            | Observed::Failed
            | Observed::Lost => {
                if matches!(evidence.what, Observed::Ended { .. }) {
                    self.trials.withdraw(engine, message);
                }
                let is_quick = matches!(evidence.what, Observed::Fast { .. });
                let Some(cleared) = self.trials.ended(now, engine, message, is_quick) else {
                    return Vec::new();
                };
                // Messages that wait for this trial may go on, or one of them is the next trial. Recovery watches these
                // counters.
                self.version += 1;
                self.chances += 1;
                self.clear(now, engine, message, &cleared)
            }
        }
    }

    /// The ids of the interceptors of one engine for any of these keys.
    fn rules_for(&self, engine: &str, keys: &BTreeSet<Key>) -> Vec<String> {
        let for_it = |(_, active): &(&String, &Active)| {
            let suspects = active.suspects();
            suspects.is_some_and(|(of, like)| **of == *engine && keys.contains(&like.key))
        };
        self.active
            .iter()
            .filter(for_it)
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn suspicion_incidents(
        &self,
        engine: &str,
        message: MessageId,
        suspects: &BTreeSet<Key>,
    ) -> Vec<Incident> {
        let alone = Some(suspects).filter(|suspects| suspects.len() == 1);
        let rules = alone.map(|suspects| self.rules_for(engine, suspects));
        let rules = rules.into_iter().flatten();
        let incident = rules.filter_map(|id| {
            let what =
                "is for known senders' mail too: a message with nothing else suspected was slow";
            let interceptor = &self.active.get(&id)?.interceptor;
            Some(interceptor_incident(Kind::InterceptorChanged, interceptor, what).about(message))
        });
        incident.collect()
    }

    /// A message with these suspected keys was scanned quickly. The interceptors for content end, so no sender's messages
    /// are held for it. Other keys are cleared for known senders only, because unknown senders may imitate their mail. The
    /// last failure with the cleared content had another cause, so another trait of that message may be blocked.
    fn clear(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        cleared: &BTreeSet<Key>,
    ) -> Vec<Incident> {
        let mut incidents = Vec::new();
        for id in self.rules_for(engine, cleared) {
            let suspects = self.active.get(&id).and_then(Active::suspects);
            let is_exact = suspects.is_some_and(|(_, like)| like.key.is_exact());
            let incident = if is_exact {
                self.end(
                    &id,
                    "cleared: a message with nothing else suspected was scanned at once",
                )
            } else {
                let what = "holds no known senders' mail: such a message was scanned at once";
                let active = self.active.get(&id);
                active.map(|active| {
                    interceptor_incident(Kind::InterceptorChanged, &active.interceptor, what)
                })
            };
            incidents.extend(incident.map(|incident| incident.about(message)));
        }
        let exact = cleared.iter().filter(|key| key.is_exact());
        let failed: Vec<_> = exact
            .filter_map(|key| self.episodes.get(engine)?.last_failed(now, *key).cloned())
            .collect();
        if let Some(failed) = failed.into_iter().max_by_key(|failed| failed.at)
            && !self.is_settled(engine, &failed.fingerprint)
        {
            incidents.extend(self.block_most_suspected(
                now,
                engine,
                failed.message,
                &failed.fingerprint,
            ));
        }
        incidents
    }
}

/// The incident that an interceptor was made, and on what evidence.
fn made(
    interceptor: &Interceptor,
    engine: &Arc<str>,
    case: &BlockCase,
    lasts: Duration,
) -> Incident {
    let what = format!("made: {} for {}", interceptor.action, interceptor.pattern);
    let mut incident = interceptor_incident(Kind::InterceptorMade, interceptor, &what)
        .with("engine", engine)
        .with("ends after", format!("{} min", lasts.as_secs() / 60));
    incident.evidence.extend(case.evidence.iter().cloned());
    match interceptor.dry_run {
        true => incident.with("mode", "shadow: it only counts"),
        false => incident,
    }
}

/// The incident for a failed message that is not like enough other failed messages yet.
fn strike_incident(engine: &Arc<str>, evidence: &Evidence) -> Incident {
    let subject = Subject::Engine {
        name: engine.to_string(),
        replica: None,
    };
    let what = match evidence.what {
        Observed::TimedOut => "ran into its timeout",
        _ => "made the engine fail",
    };
    let summary = format!("{subject}: a message {what}: a strike against what it is like");
    Incident::new(Kind::Strike, subject, summary).about(evidence.message)
}

/// The evidence of a finding, for people.
pub(super) fn proof(finding: &Finding) -> Vec<(Cow<'static, str>, String)> {
    let messages: Vec<String> = finding.messages.iter().map(MessageId::to_string).collect();
    vec![
        ("slow scans with it".into(), finding.slow.to_string()),
        ("fast scans with it".into(), finding.fast.to_string()),
        ("precision".into(), percent(finding.precision)),
        (
            "slower than others by a factor of".into(),
            format!("{:.0}", finding.risk),
        ),
        ("arrivals lately".into(), finding.arrivals.to_string()),
        ("share of good mail".into(), percent(finding.share)),
        ("messages".into(), messages.join(", ")),
    ]
}
