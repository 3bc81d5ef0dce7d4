//! How mail is convicted, by expensive failures and by what slow scans have in common, and how a trial clears it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::episode::{Finding, NARROW};
use super::interception::{Evidence, Interception, Seen, percent, told};
use super::key::Likeness;
use super::learned::{Active, Learned};
use super::strikes::STRUCK;
use super::{Action, Interceptor, Key, Mode, Origin};
use crate::ablation::{Mechanism, without};
use crate::incident::{Incident, Kind, Subject};
use crate::message::{Fingerprint, MessageId, Standing};

/// Interceptors of the learner at once.
pub(super) const ACTIVE: usize = 20;
/// Expensive failures of one fingerprint before it is held; one is enough for one that was held before.
pub(super) const STRIKES: u32 = 2;
/// A conviction of what was convicted before holds twice as long, up to so many times.
pub(super) const DOUBLED: u32 = 4;

/// What an interceptor is made with.
pub(super) struct Charge {
    pub(super) like: Likeness,
    /// Good mail hardly ever matches.
    pub(super) narrow: bool,
    pub(super) action: Action,
    pub(super) evidence: Vec<(Cow<'static, str>, String)>,
}

impl Interception {
    /// Counts an expensive failure, and holds what has too many.
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
        if self.struck(now, engine, fingerprint).is_empty() {
            return vec![stricken(engine, evidence)];
        }
        let accused = self.accuse(now, engine, evidence.message, fingerprint);
        accused.into_iter().collect()
    }

    /// What of a message has been struck often enough, and how often.
    fn struck(
        &self,
        now: Instant,
        engine: &Arc<str>,
        fingerprint: &Fingerprint,
    ) -> Vec<(Likeness, u32)> {
        let mut struck = Vec::new();
        for one in fingerprint.canary_keys() {
            let like = Likeness::of(Key(one, None), fingerprint);
            let needed = match self.convictions.contains_key(&like.key) {
                true => 1,
                false => STRIKES,
            };
            let count = self.strikes.of(now, engine, one);
            if count >= needed {
                struck.push((like, count));
            }
        }
        struck
    }

    /// Holds, of all that the message has in common with others that failed, what good mail has least. An attachment that
    /// everybody has must not shield the one beside it.
    fn accuse(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        message: MessageId,
        fingerprint: &Fingerprint,
    ) -> Option<Incident> {
        let episode = self.episodes.get(engine)?;
        let cleared = self.trials.cleared(now, engine);
        let struck = self.struck(now, engine, fingerprint).into_iter();
        let suspects = struck.filter_map(|(like, count)| {
            let share = self.baseline.share(like.key);
            // One band is in common by accident now and then: the messages that failed must be nearly the same, or one of them and
            // a burst of mail. Of what is nearly the same the gate lets in what has few bands in common with what is slow there.
            let is_common = like.key.is_exact()
                || self.convictions.contains_key(&like.key)
                || episode.failures(&like) >= STRIKES as usize
                || self.arrivals.is_burst(now, &like, share);
            let guilty = share <= NARROW
                && is_common
                && !cleared.contains(&like.key)
                && !episode.has_fast(&like)
                && episode.is_fine_without(now, &like);
            guilty.then_some((like, count, share))
        });
        // Of several that good mail has as little the one that was struck most often, then the first.
        let worst = suspects.min_by(|a, b| a.2.total_cmp(&b.2).then(b.1.cmp(&a.1)));
        let (like, count, share) = worst?;
        let evidence = vec![
            ("strikes".into(), count.to_string()),
            ("share of good mail".into(), percent(share)),
            ("message".into(), message.to_string()),
        ];
        // What it did by halves before, it does wholly now.
        let is_same = |a: &Active| a.learned.as_ref().is_some_and(|l| l.like.key == like.key);
        self.active.retain(|_, active| !is_same(active));
        let charge = Charge {
            like,
            narrow: true,
            action: Action::Hold,
            evidence,
        };
        self.convict(now, engine, charge)
    }

    /// Such mail is held already, or the engine is spared it: then its shadow copies are late, which is known.
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

    /// Makes an interceptor.
    pub(super) fn convict(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        charge: Charge,
    ) -> Option<Incident> {
        let learned = self.active.values().filter(|a| a.learned.is_some()).count();
        if self.settings.mode == Mode::Off || without(Mechanism::Interceptors) || learned >= ACTIVE
        {
            return None;
        }
        if self.convictions.len() >= STRUCK {
            self.convictions.clear();
        }
        let before = self.convictions.entry(charge.like.key).or_default();
        let lasts = self
            .settings
            .expiry
            .saturating_mul(1 << (*before).min(DOUBLED));
        *before += 1;
        let wall = crate::deadline::wall_clock();
        let interceptor = Interceptor {
            id: ulid::Ulid::generate().to_string(),
            pattern: charge.like.pattern(),
            action: charge.action,
            origin: Origin::Learned {
                evidence: charge.evidence.clone(),
                engine: engine.to_string(),
                narrow: charge.narrow,
                bad: false,
            },
            made: wall,
            expires: wall.checked_add(lasts).ok(),
            dry_run: self.settings.mode == Mode::Shadow,
            hits: 0,
            samples: Vec::new(),
        };
        let mut incident = told(
            Kind::InterceptorMade,
            &interceptor,
            &format!("made: {} for {}", interceptor.action, interceptor.pattern),
        )
        .with("engine", engine)
        .with("ends after", format!("{} min", lasts.as_secs() / 60));
        incident.evidence.extend(charge.evidence);
        if interceptor.dry_run {
            incident = incident.with("mode", "shadow: it only counts");
        }
        let learned = Learned {
            engine: engine.clone(),
            like: charge.like,
            narrow: charge.narrow,
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

    /// What a scan says about what is suspected.
    pub(super) fn weigh_trial(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        evidence: &Evidence,
    ) -> Vec<Incident> {
        let message = evidence.message;
        match evidence.seen {
            Seen::Slow => {
                let is_known = self.standing(&evidence.fingerprint) == Standing::Known;
                let rules = self.active.values().filter_map(Active::suspects);
                let rules = rules
                    .filter(|(of, _)| **of == *engine)
                    .map(|(_, like)| like);
                let of = (&evidence.fingerprint, is_known);
                let shown = self.trials.became_slow(now, engine, message, of, rules);
                shown.map_or(Vec::new(), |shown| self.tell_shown(engine, message, &shown))
            }
            Seen::TimedOut => {
                self.trials.timed_out(engine, message);
                Vec::new()
            }
            Seen::Fast | Seen::InTime | Seen::Late | Seen::Broken | Seen::Lost => {
                if evidence.seen == Seen::InTime {
                    self.trials.withdraw(engine, message);
                }
                let is_quick = evidence.seen == Seen::Fast;
                let Some(cleared) = self.trials.ended(now, engine, message, is_quick) else {
                    return Vec::new();
                };
                // What waits for it may go on, or is the next trial: recovery looks at what changes here.
                self.version += 1;
                self.chances += 1;
                self.clear(now, engine, message, &cleared)
            }
        }
    }

    /// The interceptors for that, of one engine.
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

    fn tell_shown(
        &self,
        engine: &str,
        message: MessageId,
        suspects: &BTreeSet<Key>,
    ) -> Vec<Incident> {
        let alone = Some(suspects).filter(|suspects| suspects.len() == 1);
        let rules = alone.map(|suspects| self.rules_for(engine, suspects));
        let rules = rules.into_iter().flatten();
        let told = rules.filter_map(|id| {
            let what =
                "is for known senders' mail too: a message with nothing else suspected was slow";
            let interceptor = &self.active.get(&id)?.interceptor;
            Some(told(Kind::InterceptorChanged, interceptor, what).about(message))
        });
        told.collect()
    }

    /// A message with these suspected traits was scanned quickly: content is held for nobody any more; other mail that is
    /// alike not for known senders, as what strangers send may well be made to look like theirs. What failed with it failed
    /// for something else.
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
                active.map(|active| told(Kind::InterceptorChanged, &active.interceptor, what))
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
            incidents.extend(self.accuse(now, engine, failed.message, &failed.fingerprint));
        }
        incidents
    }
}

/// A message failed that is like none that failed before.
fn stricken(engine: &Arc<str>, evidence: &Evidence) -> Incident {
    let subject = Subject::Engine {
        name: engine.to_string(),
        replica: None,
    };
    let what = match evidence.seen {
        Seen::TimedOut => "ran into its timeout",
        _ => "made the engine fail",
    };
    let summary = format!("{subject}: a message {what}: a strike against what it is like");
    Incident::new(Kind::Strike, subject, summary).about(evidence.message)
}

/// What a finding rests on, for people.
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
