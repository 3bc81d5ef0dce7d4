//! How the learner blocks a key, and how a trial clears a key. To block a key is to make a learned interceptor for the
//! messages that have the key; the interceptor holds them, parks them, or bypasses the engine for them. There are two reasons:
//!
//! - expensive failures: scans that ran into their timeout, or messages on which alone the engine went away. Each is a strike
//!   against the exact traits and the bands of its message ([`Interception::strike`]);
//! - what slow scans have in common (a [`Correlation`]).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::episode::{Correlation, NARROW_SHARE_MAX};
use super::interception::{Interception, interceptor_incident, percent};
use super::key::Likeness;
use super::learned::{Active, Learned};
use super::strikes::TRAITS_WITH_STRIKES_MAX;
use super::{Act, Action, Interceptor, Key, Mode, Origin};
use crate::ablation::{Mechanism, without};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Fingerprint, MessageId, SenderReputation};
use crate::observation::{Evidence, Observed};

/// Learned interceptors in force at once: few, so that what the learner does stays bounded (I13).
pub(super) const LEARNED_INTERCEPTORS_MAX: usize = 20;
/// An interceptor for a key that was blocked before lasts twice as long as the one before, with 4 doublings at most: from 10
/// min to 160 min by default.
pub(super) const EXPIRY_DOUBLINGS_MAX: u32 = 4;

/// What [`Interception::block`] makes an interceptor from.
pub(super) struct BlockCase {
    pub(super) like: Likeness,
    /// Whether good mail hardly ever matches: [`NARROW_SHARE_MAX`] of it at most.
    pub(super) narrow: bool,
    pub(super) action: Action,
    /// Labels and values for people.
    pub(super) evidence: Vec<(Cow<'static, str>, String)>,
}

impl Interception {
    /// Counts an expensive failure as a strike against each exact trait and each band of the message: unrelated mail does not
    /// share these ([`Fingerprint::canary_keys`]). Blocks the most suspected of these traits once any of them has enough
    /// strikes. Returns the incidents that follow; none if an interceptor covers the message already.
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
        if self
            .traits_with_enough_strikes(now, engine, fingerprint)
            .is_empty()
        {
            return vec![strike_incident(engine, evidence)];
        }
        let incident = self.block_most_suspected(now, engine, evidence.message, fingerprint);
        incident.into_iter().collect()
    }

    /// The traits of a message that have enough strikes to be blocked, each with its number of strikes: [`Settings::strikes`],
    /// or one for a trait that was blocked before. A trait comes as the likeness that an interceptor would compare.
    fn traits_with_enough_strikes(
        &self,
        now: Instant,
        engine: &Arc<str>,
        fingerprint: &Fingerprint,
    ) -> Vec<(Likeness, u32)> {
        let mut enough = Vec::new();
        for one in fingerprint.canary_keys() {
            let like = Likeness::of(Key(one, None), fingerprint);
            let needed = match self.times_blocked.contains_key(&like.key) {
                true => 1,
                false => self.settings.strikes,
            };
            let count = self.strikes.of(now, engine, one);
            if count >= needed {
                enough.push((like, count));
            }
        }
        enough
    }

    /// Blocks with a hold (or with a park, if [`Act::Park`] allows no hold) the key that good mail has least, of the traits of the message that have enough strikes. So an
    /// attachment that most mail has does not shield the one beside it. `None` if no trait is narrow and suspected enough.
    fn block_most_suspected(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        fingerprint: &Fingerprint,
    ) -> Option<Incident> {
        let episode = self.episodes.get(engine)?;
        let cleared = self.trials.cleared(now, engine);
        let enough = self.traits_with_enough_strikes(now, engine, fingerprint);
        let suspects = enough.into_iter().filter_map(|(like, count)| {
            let share = self.baseline.share(like.key);
            // One shared band may be chance. So require one of: the key is exact; it was blocked before; two failed messages
            // (`strikes`) are alike in it; mail like it comes in a burst.
            //
            // The burst is needed because of the gate. Of a flood of nearly the same content, the gate lets only messages in
            // that share few bands with the slow scans in the engine. So the messages that fail are hardly alike.
            let is_more_than_chance = like.key.is_exact()
                || self.times_blocked.contains_key(&like.key)
                || episode.failures(&like) >= self.settings.strikes as usize
                || self.arrivals.is_burst(now, &like, share);
            let suspected = share <= NARROW_SHARE_MAX
                && is_more_than_chance
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
        // Replace weaker interceptors for this key.
        let is_same = |a: &Active| a.learned.as_ref().is_some_and(|l| l.like.key == like.key);
        self.active.retain(|_, active| !is_same(active));
        let case = BlockCase {
            like,
            narrow: true,
            action: match self.settings.act {
                Act::Hold => Action::Hold,
                Act::Park => Action::Park {
                    engine: engine.to_string(),
                },
            },
            evidence,
        };
        self.block(now, engine, case)
    }

    /// Whether an interceptor for content holds such messages already, parks them if [`Act::Park`] allows no hold, or bypasses the
    /// engine for them. Then a further failure
    /// is expected and counts as no strike: scans that began before the hold may still fail, and during a bypass the engine gets
    /// samples, which may run into their timeout.
    fn is_settled(&self, engine: &Arc<str>, fingerprint: &Fingerprint) -> bool {
        let settles = |active: &Active| {
            let is_like = |l: &Learned| l.like.key.is_content() && l.like.matches(fingerprint);
            active.learned.as_ref().is_some_and(is_like)
                && match &active.interceptor.action {
                    Action::Hold => true,
                    Action::Bypass { engine: of } => **of == **engine,
                    Action::Park { engine: of } => {
                        self.settings.act == Act::Park && **of == **engine
                    }
                }
        };
        self.active.values().any(settles)
    }

    /// Blocks a key: makes an interceptor for it, and returns the incident that reports the interceptor. `None` if the learner
    /// is off, or has [`LEARNED_INTERCEPTORS_MAX`] in force.
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
        // At the bound all counts go. The loss is small: a key that is blocked again needs two strikes and begins with the
        // shortest expiry, as a new key does. To drop the oldest counts, the map would have to keep an order.
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

    /// Updates the trials with one observation of a scan. A trial that becomes slow confirms the suspicion against its keys: the
    /// interceptors for them are for known senders' mail too. If the trial then ends in time, the confirmation is withdrawn. A
    /// quick trial clears its keys. When a trial has ended, the next message with these keys may be a trial. Of other scans,
    /// only the slow ones are remembered. Returns the incidents that follow.
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
                let suspected = self.active.values().filter_map(Active::suspects);
                let suspected = suspected
                    .filter(|(of, _)| **of == *engine)
                    .map(|(_, like)| like);
                let of = (&evidence.fingerprint, is_known);
                let confirmed = self.trials.became_slow(now, engine, message, of, suspected);
                confirmed.map_or(Vec::new(), |confirmed| {
                    self.suspicion_incidents(engine, message, &confirmed)
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
                // Messages that wait for this trial may go on, or one of them is the next trial. Recovery watches these two
                // counters and scans such messages again.
                self.version += 1;
                self.recovery_chances += 1;
                self.clear(now, engine, message, &cleared)
            }
        }
    }

    /// The ids of the learned interceptors that hold or park messages with any of these keys, because of scans of this engine.
    fn interceptors_for(&self, engine: &str, keys: &BTreeSet<Key>) -> Vec<String> {
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

    /// The incidents after a slow trial. If the trial had one suspected key, that key alone is confirmed, and each interceptor
    /// for the key is for known senders' mail too. With several suspected keys, no single key is confirmed.
    fn suspicion_incidents(
        &self,
        engine: &str,
        message: MessageId,
        suspects: &BTreeSet<Key>,
    ) -> Vec<Incident> {
        let alone = Some(suspects).filter(|suspects| suspects.len() == 1);
        let ids = alone.map(|suspects| self.interceptors_for(engine, suspects));
        let ids = ids.into_iter().flatten();
        let incident = ids.filter_map(|id| {
            let what =
                "is for known senders' mail too: a message with nothing else suspected was slow";
            let interceptor = &self.active.get(&id)?.interceptor;
            Some(interceptor_incident(Kind::InterceptorChanged, interceptor, what).about(message))
        });
        incident.collect()
    }

    /// A message with these suspected keys was scanned quickly. The interceptors for exact keys end: the same content is
    /// harmless whoever sends it, so no sender's messages are held for it. All other keys, bands of nearly the same content
    /// included, are cleared for known senders only, because unknown senders may imitate their mail. The last failure with the
    /// cleared content had another cause, so another trait of that message may be blocked.
    fn clear(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        cleared: &BTreeSet<Key>,
    ) -> Vec<Incident> {
        let mut incidents = Vec::new();
        for id in self.interceptors_for(engine, cleared) {
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
        .with(Incident::ENGINE, engine)
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

/// The evidence of a correlation: labels and values for people, in the order in which a person should read them.
pub(super) fn display_evidence(correlation: &Correlation) -> Vec<(Cow<'static, str>, String)> {
    let messages: Vec<String> = correlation
        .messages
        .iter()
        .map(MessageId::to_string)
        .collect();
    vec![
        ("slow scans with it".into(), correlation.slow.to_string()),
        ("fast scans with it".into(), correlation.fast.to_string()),
        ("precision".into(), percent(correlation.precision)),
        (
            "slower than others by a factor of".into(),
            format!("{:.0}", correlation.risk),
        ),
        ("arrivals lately".into(), correlation.arrivals.to_string()),
        ("share of good mail".into(), percent(correlation.share)),
        ("messages".into(), messages.join(", ")),
    ]
}
