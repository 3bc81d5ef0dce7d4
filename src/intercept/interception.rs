//! The interceptors in force, strikes, and the learner that makes and lifts interceptors. A pure state machine; time is an
//! argument. Everything in it is bounded and expires, and dropping all of it loses no mail (I13).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::baseline::Baseline;
use super::blocking::{BlockCase, EXPIRY_DOUBLINGS_MAX, display_evidence};
use super::crash::Crashes;
use super::episode::{Arrivals, Context, Correlation, Episode, Remedy};
use super::key::Likeness;
use super::learned::{Active, Missed};
use super::strikes::Strikes;
use super::trial::{Exemption, Ruling, Trials};
use super::{Action, Interceptor, Key, Settings};
use crate::incident::{Incident, Kind, Subject};
use crate::message::pattern::Facts;
use crate::message::{Fingerprint, MessageId, SenderReputation};
use crate::observation::{Evidence, Observed};

/// New learned interceptors for one engine in one tick: 8 bound the time of a tick, because each costs a pass over the
/// episode.
const NEW_INTERCEPTORS_PER_TICK: usize = 8;
/// Ended interceptors remembered, so that recovery finds the messages that they held.
const ENDED_MAX: usize = 1000;

/// The state of one engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineState<'a> {
    /// The engine's name.
    pub name: &'a str,
    /// The engine gets no mail, so its failures say nothing about messages.
    pub is_out: bool,
    /// Whether other engines suffice to judge mail without this engine.
    pub covered: bool,
    /// The engine's workers, as far as this relay uses them.
    pub slots: usize,
}

/// The interceptors of one relay, and what the learner knows.
#[derive(Debug)]
pub struct Interception {
    pub(super) settings: Settings,
    pub(super) active: BTreeMap<String, Active>,
    pub(super) episodes: HashMap<Arc<str>, Episode>,
    pub(super) baseline: Baseline,
    pub(super) arrivals: Arrivals,
    pub(super) trials: Trials,
    pub(super) crashes: Crashes,
    /// Engines whose loss of workers has been reported.
    pub(super) losing: HashSet<Arc<str>>,
    pub(super) strikes: Strikes,
    /// How often each key was blocked so far: such a key needs one strike only, and its interceptor lasts longer each time.
    pub(super) times_blocked: HashMap<Key, u32>,
    pub(super) missed: VecDeque<Missed>,
    ended: VecDeque<String>,
    /// Engines without which mail could be judged at the last tick.
    pub(super) covered: HashSet<Arc<str>>,
    /// Grows with every change of what gates have to know.
    pub(super) version: u64,
    /// Counts the ends of interceptors and of trials. Each is a chance for recovery: messages that were kept from an engine
    /// need not be kept from it any more.
    pub(super) recovery_chances: u64,
}

impl Interception {
    /// A state without interceptors and without knowledge of mail.
    pub fn new(now: Instant, settings: Settings) -> Self {
        Self {
            settings,
            active: BTreeMap::new(),
            episodes: HashMap::new(),
            baseline: Baseline::new(now),
            arrivals: Arrivals::default(),
            trials: Trials::default(),
            crashes: Crashes::default(),
            losing: HashSet::new(),
            strikes: Strikes::default(),
            times_blocked: HashMap::new(),
            missed: VecDeque::new(),
            ended: VecDeque::new(),
            covered: HashSet::new(),
            version: 0,
            recovery_chances: 0,
        }
    }

    /// Replaces the settings. Interceptors in force stay as they are.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Decides which learned interceptors do not hold a message, and which fingerprint gates may see of it. Call this once in
    /// each pass, before the message is scanned and before [`arrived`](Self::arrived) or [`holds`](Self::holds), which need
    /// the exemption. It may change state: a known sender's message may become a trial.
    pub fn judge(
        &mut self,
        now: Instant,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
    ) -> Ruling {
        let reputation = self.reputation(fingerprint);
        let suspected = self.active.values().filter_map(Active::suspects);
        match reputation {
            SenderReputation::Known => self.trials.judge(now, message, fingerprint, suspected),
            SenderReputation::Unknown => {
                let shown = self.trials.shown(now, message, fingerprint, suspected);
                self.exempt_shape(message, fingerprint, shown)
            }
        }
    }

    /// Exempts an unknown sender's message from interceptors for a shape. Condition: the slow messages of that shape are
    /// alike in their content as well, and this message has none of that content. Valid mail has shapes too.
    fn exempt_shape(
        &mut self,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
        shown: Arc<Fingerprint>,
    ) -> Ruling {
        let suspected = self.active.values().filter_map(Active::suspects);
        let of_shape = suspected.filter(|(_, like)| !like.key.is_content());
        let mut alike = of_shape
            .filter(|(_, like)| like.matches(fingerprint))
            .peekable();
        if alike.peek().is_none() {
            let exemption = Exemption::None;
            return Ruling { exemption, shown };
        }
        let mut hidden = Vec::new();
        for (engine, like) in alike {
            if !self.is_alike_in_content(engine, like, fingerprint) {
                let exemption = Exemption::None;
                return Ruling { exemption, shown };
            }
            hidden.extend(like.traits());
        }
        self.trials.remember(message, fingerprint);
        Ruling {
            exemption: Exemption::Shape,
            shown: Arc::new(shown.without(&hidden)),
        }
    }

    /// Whether each slow message of that shape shares content with another one, and none shares content with `other`.
    fn is_alike_in_content(&self, engine: &str, like: &Likeness, other: &Fingerprint) -> bool {
        let failed = self
            .episodes
            .get(engine)
            .into_iter()
            .flat_map(Episode::failed_ones);
        let slow = self.trials.hanging(engine).chain(failed);
        let slow: HashMap<MessageId, &Fingerprint> =
            slow.filter(|(_, f)| like.matches(f)).collect();
        let shares = |one: &Fingerprint, with: &Fingerprint| {
            one.canary_keys().any(|content| with.has(content))
        };
        let has_company = |(message, one): (&MessageId, &&Fingerprint)| {
            let mut others = slow.iter().filter(|(other, _)| *other != message);
            others.any(|(_, with)| shares(one, with))
        };
        // Most messages checked here belong to the flood. They share content with it, so this test comes first.
        !slow.is_empty()
            && slow.values().all(|one| !shares(other, one))
            && slow.iter().all(has_company)
    }

    /// Counts a new message, as an arrival and for each interceptor that matches. Call this once for each message, in its
    /// first pass. Returns the id of the first interceptor that holds the message, and the reason in one line; `None` if no
    /// interceptor holds the message.
    pub fn arrived(
        &mut self,
        now: Instant,
        message: MessageId,
        facts: &Facts<'_>,
        fingerprint: &Arc<Fingerprint>,
        exemption: Exemption,
    ) -> Option<(String, String)> {
        self.arrivals.add(now, fingerprint.clone());
        let mut held = None;
        for active in self.active.values_mut() {
            let interceptor = &mut active.interceptor;
            if !interceptor.pattern.matches(facts) {
                continue;
            }
            interceptor.hits += 1;
            if interceptor.samples.len() < Interceptor::SAMPLES_MAX {
                interceptor.samples.push(message);
            }
            if holds(interceptor, exemption) && held.is_none() {
                held = Some(held_by(interceptor));
            }
        }
        held
    }

    /// Returns the same as [`arrived`](Self::arrived) and counts nothing. Call this in each later pass of a deferred message
    /// ([`ScanReason::Again`](crate::observation::ScanReason::Again)).
    pub fn holds(&self, facts: &Facts<'_>, exemption: Exemption) -> Option<(String, String)> {
        self.holder(facts, |interceptor| holds(interceptor, exemption))
    }

    /// Like [`holds`](Self::holds), but only interceptors that a person made can hold the message. Call this for a held message
    /// that is scanned to find out whether its cause is gone ([`ScanReason::Redrive`](crate::observation::ScanReason::Redrive)):
    /// learned interceptors must not hold it, because the scan tests them.
    pub fn person_holds(&self, facts: &Facts<'_>) -> Option<(String, String)> {
        self.holder(facts, |interceptor| holds(interceptor, Exemption::All))
    }

    /// The first interceptor that holds the message in the sense of `holds`: its id, and the reason in one line.
    fn holder(
        &self,
        facts: &Facts<'_>,
        holds: impl Fn(&Interceptor) -> bool,
    ) -> Option<(String, String)> {
        let mut all = self.list();
        let holder = all.find(|i| holds(i) && i.pattern.matches(facts))?;
        Some(held_by(holder))
    }

    /// Whether the message's sender is known.
    pub fn reputation(&self, fingerprint: &Fingerprint) -> SenderReputation {
        self.baseline.reputation(fingerprint)
    }

    /// The baseline: known senders, and what usual mail is like.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Replaces the baseline by one from before a restart.
    pub fn take_up(&mut self, baseline: Baseline) {
        self.baseline = baseline;
    }

    /// Adds a message to the baseline. Call this when all engines have scanned the message and found it clean.
    pub fn scanned_well(&mut self, now: Instant, fingerprint: &Fingerprint) {
        self.baseline.add(now, fingerprint);
    }

    /// Learns from one observation of a scan. Returns the incidents that follow.
    pub fn observe(
        &mut self,
        now: Instant,
        engine: &Arc<str>,
        evidence: &Evidence,
    ) -> Vec<Incident> {
        let whole = self.trials.whole(evidence.message).cloned();
        let evidence = &Evidence {
            fingerprint: whole.unwrap_or_else(|| evidence.fingerprint.clone()),
            ..evidence.clone()
        };
        let episode = self.episodes.entry(engine.clone()).or_default();
        let fingerprint = &evidence.fingerprint;
        match evidence.what {
            Observed::Fast { .. } if evidence.is_fresh() => episode.fast(now, fingerprint.clone()),
            Observed::Slow if evidence.is_fresh() => {
                episode.slow(now, evidence.started, evidence.message, fingerprint.clone());
            }
            Observed::TimedOut => {
                episode.timed_out(evidence.message);
                episode.failed(now, evidence.message, fingerprint.clone());
            }
            Observed::Broken => episode.failed(now, evidence.message, fingerprint.clone()),
            _ => {}
        }
        let ended_well = matches!(
            evidence.what,
            Observed::Fast { .. } | Observed::Ended { .. } | Observed::Late { .. }
        );
        if ended_well && self.crashes.ended_well(now, engine, evidence.message) {
            self.version += 1;
        }
        let mut incidents = self.weigh_trial(now, engine, evidence);
        incidents.extend(self.weigh(now, engine, evidence));
        if matches!(evidence.what, Observed::TimedOut | Observed::Broken) {
            incidents.extend(self.strike(now, engine, evidence));
        }
        incidents
    }

    /// Ends an interceptor. Returns the incident that reports the end; `None` if there is no interceptor of that id.
    pub(super) fn end(&mut self, id: &str, why: &str) -> Option<Incident> {
        let active = self.active.remove(id)?;
        self.version += 1;
        self.recovery_chances += 1;
        // Only a person releases what a person has held.
        if active.interceptor.is_learned() {
            self.remember(id);
        }
        let incident = interceptor_incident(Kind::InterceptorLifted, &active.interceptor, why);
        Some(incident.with("messages matched", active.interceptor.hits))
    }

    fn remember(&mut self, ended: &str) {
        if self.ended.iter().any(|known| known == ended) {
            return;
        }
        if self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(ended.to_owned());
    }

    /// Makes interceptors where slow scans have something in common, and ends interceptors that have expired. Call this a
    /// few times a second. Returns the incidents that follow.
    pub fn tick(&mut self, now: Instant, engines: &[EngineState<'_>]) -> Vec<Incident> {
        let mut incidents = Vec::new();
        let covered = engines.iter().filter(|engine| engine.covered);
        self.covered = covered.map(|engine| engine.name.into()).collect();
        let over = self
            .active
            .iter()
            .filter(|(_, active)| match &active.learned {
                Some(learned) => now >= learned.expires,
                None => {
                    let made = active.interceptor.made;
                    let now = crate::deadline::steady_clock(made);
                    active.interceptor.has_expired(now)
                }
            });
        for id in over.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            incidents.extend(self.end(&id, "its time is over"));
        }
        self.version += u64::from(self.crashes.tick(now));
        for engine in engines.iter().filter(|engine| !engine.is_out) {
            incidents.extend(self.loss_incident(engine));
            for _ in 0..NEW_INTERCEPTORS_PER_TICK {
                let Some((name, correlation)) = self.explain(now, engine) else {
                    break;
                };
                let action = match correlation.remedy {
                    Remedy::Park => Action::Park {
                        engine: name.to_string(),
                    },
                    Remedy::Bypass => Action::Bypass {
                        engine: name.to_string(),
                    },
                };
                let case = BlockCase {
                    narrow: correlation.narrow,
                    action,
                    evidence: display_evidence(&correlation),
                    like: correlation.like,
                };
                let made = self.block(now, &name, case);
                if made.is_none() {
                    break;
                }
                incidents.extend(made);
            }
        }
        incidents
    }

    /// The engine's name and the key that explains most of its slow scans, of those that no interceptor explains.
    fn explain(&self, now: Instant, engine: &EngineState<'_>) -> Option<(Arc<str>, Correlation)> {
        let (name, episode) = self.episodes.get_key_value(engine.name)?;
        let learned = self.active.values().filter_map(|a| a.learned.as_ref());
        let explained: Vec<Likeness> = learned
            .filter(|l| *l.engine == *engine.name)
            .map(|l| l.like.clone())
            .collect();
        let context = Context {
            baseline: &self.baseline,
            arrivals: &self.arrivals,
            explained: &explained,
            cleared: &self.trials.cleared(now, engine.name),
            covered: engine.covered,
            missed: &self.missed_by(now, engine.name).collect::<Vec<_>>(),
            timeouts: episode.has_timeouts(),
            settings: &self.settings,
        };
        let correlation = episode.explain(now, &context)?;
        Some((name.clone(), correlation))
    }

    /// The interceptors in force, in the order of their ids.
    pub fn list(&self) -> impl Iterator<Item = &Interceptor> {
        self.active.values().map(|active| &active.interceptor)
    }

    /// Grows with every change of what gates have to know: the interceptors in force, ends of trials, and crashes.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Counts the chances for recovery: grows, together with [`version`](Self::version), when messages that an interceptor or
    /// a trial kept from an engine need not be kept from it any more.
    pub fn recovery_chances(&self) -> u64 {
        self.recovery_chances
    }

    /// Puts an interceptor in force that a person made, or that was in force before a restart. It replaces an interceptor of
    /// the same id. A learned interceptor that has expired is only remembered, because the messages that it held wait for
    /// its end.
    pub fn add(&mut self, now: Instant, interceptor: Interceptor) {
        self.version += 1;
        if interceptor.is_learned() && interceptor.has_expired(crate::deadline::wall_clock()) {
            self.remember(&interceptor.id);
            return;
        }
        let longest = self
            .settings
            .expiry
            .saturating_mul(1 << EXPIRY_DOUBLINGS_MAX);
        let active = Active::restored(now, interceptor, longest);
        if let Some(learned) = &active.learned {
            self.times_blocked.entry(learned.like.key).or_insert(1);
        }
        self.active.insert(active.interceptor.id.clone(), active);
    }

    /// Ends an interceptor that a person removed; `None` if there is no interceptor of that id.
    pub fn remove(&mut self, id: &str) -> Option<Incident> {
        self.end(id, "removed by a person")
    }

    /// The ids of interceptors whose messages may be scanned again. First: learned interceptors that have ended, or that
    /// bypass the engine instead of holding. Second: learned interceptors that still hold.
    pub fn recoverable(&self) -> (Vec<String>, Vec<String>) {
        let learned = self.active.values().filter(|a| a.learned.is_some());
        let learned = learned.map(|a| &a.interceptor);
        let ids = |wanted: fn(&Action) -> bool| {
            let these = learned.clone().filter(move |i| wanted(&i.action));
            these.map(|i| i.id.clone())
        };
        let ended = self.ended.iter().cloned();
        let gone = ended.chain(ids(|action| matches!(action, Action::Bypass { .. })));
        (
            gone.collect(),
            ids(|action| *action == Action::Hold).collect(),
        )
    }
}

pub(super) fn interceptor_incident(kind: Kind, interceptor: &Interceptor, what: &str) -> Incident {
    let subject = Subject::Interceptor(interceptor.id.clone());
    let summary = format!("{subject} {what}");
    Incident::new(kind, subject, summary)
}

/// The interceptor's id, and the reason to report for messages that it holds.
fn held_by(interceptor: &Interceptor) -> (String, String) {
    let (id, pattern) = (&interceptor.id, &interceptor.pattern);
    (id.clone(), format!("interceptor {id} holds {pattern}"))
}

/// Whether the interceptor holds a message with this exemption. No message is exempt from what a person made.
fn holds(interceptor: &Interceptor, exemption: Exemption) -> bool {
    let is_exempt = match exemption {
        Exemption::None => false,
        Exemption::Shape => interceptor.is_of_shape(),
        Exemption::Near => interceptor.is_near(),
        Exemption::All => interceptor.is_learned(),
    };
    interceptor.action == Action::Hold && !interceptor.dry_run && !is_exempt
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
