//! The interceptors in force, strikes, and the learner that makes and lifts interceptors. A pure state machine; time is an
//! argument. Everything in it is bounded and expires, and dropping all of it loses no mail (I13).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::baseline::Baseline;
use super::conviction::{Charge, DOUBLED, STRIKES, proof};
use super::crash::Crashes;
use super::episode::{Arrivals, Context, Episode, Finding, Remedy};
use super::key::Likeness;
use super::learned::{Active, Exposed, Learned};
use super::strikes::{STRIKE_AGE, Strikes};
use super::trial::{Mercy, Ruling, Trials};
use super::{Action, Interceptor, Key, Settings};
use crate::incident::{Incident, Kind, Subject};
use crate::message::pattern::Facts;
use crate::message::{Fingerprint, MessageId, Standing};

/// New interceptors of the learner in one round.
const NEW: usize = 8;
/// Scans in time that refute a narrow interceptor, and a broad one.
const REFUTED: [u32; 2] = [2, 20];
/// Fast scans of a bypassed class that end the bypass.
const MENDED: u32 = 3;
/// Findings that are remembered because they took long or would have been missed: no engine is spared such mail for
/// [`STRIKE_AGE`].
const EXPOSED: usize = 256;
/// Ended interceptors that are remembered, for recovery and for the doubling.
const ENDED: usize = 1000;

/// What was seen of a scan.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The message.
    pub message: MessageId,
    /// What it is the same as.
    pub fingerprint: Arc<Fingerprint>,
    /// Whether it was scanned for the first time; a later scan is no evidence of what mail is like now.
    pub fresh: bool,
    /// When the scan began.
    pub started: Instant,
    /// What was seen.
    pub seen: Seen,
    /// The engine answered, and something was found.
    pub found: bool,
}

/// What was seen of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was answered before it was slow.
    Fast,
    /// It has become slow.
    Slow,
    /// It was answered, slowly but in time.
    InTime,
    /// It has run into its timeout.
    TimedOut,
    /// It was answered after its timeout.
    Late,
    /// The engine went away while it looked at it.
    Broken,
    /// It has ended, and says nothing about the mail.
    Lost,
}

/// How an engine is doing.
#[derive(Debug, Clone, Copy)]
pub struct EngineState<'a> {
    /// Its name.
    pub name: &'a str,
    /// No mail goes to it: what fails there says nothing about the mail.
    pub is_out: bool,
    /// Mail can be judged without it.
    pub covered: bool,
    /// Its workers, as far as we use them.
    pub slots: usize,
}

/// The interceptors of one relay.
#[derive(Debug)]
pub struct Interception {
    pub(super) settings: Settings,
    pub(super) active: BTreeMap<String, Active>,
    pub(super) episodes: HashMap<Arc<str>, Episode>,
    pub(super) baseline: Baseline,
    pub(super) arrivals: Arrivals,
    pub(super) trials: Trials,
    pub(super) crashes: Crashes,
    /// Engines of which it was told that they lose their workers.
    pub(super) losing: HashSet<Arc<str>>,
    pub(super) strikes: Strikes,
    /// Convictions so far, by key.
    pub(super) convictions: HashMap<Key, u32>,
    exposed: VecDeque<Exposed>,
    ended: VecDeque<String>,
    /// Engines that mail can be judged without, when it was last looked.
    covered: HashSet<Arc<str>>,
    /// Grows with every change of what is in force.
    pub(super) version: u64,
    /// Grows when mail that was kept from an engine need not be any more.
    pub(super) chances: u64,
}

impl Interception {
    /// None in force, and nothing known.
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
            convictions: HashMap::new(),
            exposed: VecDeque::new(),
            ended: VecDeque::new(),
            covered: HashSet::new(),
            version: 0,
            chances: 0,
        }
    }

    /// Another configuration.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What becomes of a message in which something may be suspected. Asked once before each of its passes.
    pub fn judge(
        &mut self,
        now: Instant,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
    ) -> Ruling {
        let standing = self.standing(fingerprint);
        let rules = self.active.values().filter_map(Active::suspects);
        match standing {
            Standing::Known => self.trials.judge(now, message, fingerprint, rules),
            Standing::Unknown => {
                let shown = self.trials.shown(now, message, fingerprint, rules);
                self.spare_shape(message, fingerprint, shown)
            }
        }
    }

    /// Of a stranger's message: whether it has the shape of what is slow and nothing of its content, where that is alike in its
    /// content too. Valid mail has shapes as well.
    fn spare_shape(
        &mut self,
        message: MessageId,
        fingerprint: &Arc<Fingerprint>,
        shown: Arc<Fingerprint>,
    ) -> Ruling {
        let rules = self.active.values().filter_map(Active::suspects);
        let of_shape = rules.filter(|(_, like)| !like.key.is_content());
        let mut alike = of_shape
            .filter(|(_, like)| like.matches(fingerprint))
            .peekable();
        if alike.peek().is_none() {
            let mercy = Mercy::None;
            return Ruling { mercy, shown };
        }
        let mut hidden = Vec::new();
        for (engine, like) in alike {
            if !self.is_alike_in_content(engine, like, fingerprint) {
                let mercy = Mercy::None;
                return Ruling { mercy, shown };
            }
            hidden.extend(like.traits());
        }
        self.trials.remember(message, fingerprint);
        Ruling {
            mercy: Mercy::Shape,
            shown: Arc::new(shown.without(&hidden)),
        }
    }

    /// Whether all slow mail of that shape has content in common with other slow mail of it, and none with that message.
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
        // Mail of the flood itself, which is most of it, is told by the first look.
        !slow.is_empty()
            && slow.values().all(|one| !shares(other, one))
            && slow.iter().all(has_company)
    }

    /// A message has come in: whether an interceptor holds it, which one, and why, in one line.
    pub fn arrived(
        &mut self,
        now: Instant,
        message: MessageId,
        facts: &Facts<'_>,
        fingerprint: &Arc<Fingerprint>,
        mercy: Mercy,
    ) -> Option<(String, String)> {
        self.arrivals.add(now, fingerprint.clone());
        let mut held = None;
        for active in self.active.values_mut() {
            let interceptor = &mut active.interceptor;
            if !interceptor.pattern.matches(facts) {
                continue;
            }
            interceptor.hits += 1;
            if interceptor.samples.len() < Interceptor::SAMPLES {
                interceptor.samples.push(message);
            }
            if holds(interceptor, mercy) && held.is_none() {
                held = Some(held_by(interceptor));
            }
        }
        held
    }

    /// Whether an interceptor holds a message that came in before; it is not counted again.
    pub fn holds(&self, facts: &Facts<'_>, mercy: Mercy) -> Option<(String, String)> {
        self.holder(facts, |interceptor| holds(interceptor, mercy))
    }

    /// Whether one that a person made does.
    pub fn person_holds(&self, facts: &Facts<'_>) -> Option<(String, String)> {
        self.holder(facts, |interceptor| holds(interceptor, Mercy::All))
    }

    fn holder(
        &self,
        facts: &Facts<'_>,
        holds: impl Fn(&Interceptor) -> bool,
    ) -> Option<(String, String)> {
        let mut all = self.list();
        let holder = all.find(|i| holds(i) && i.pattern.matches(facts))?;
        Some(held_by(holder))
    }

    /// What speaks for a message's sender.
    pub fn standing(&self, fingerprint: &Fingerprint) -> Standing {
        self.baseline.standing(fingerprint)
    }

    /// What is known of senders and of usual mail.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Goes on with what was known before a restart.
    pub fn take_up(&mut self, baseline: Baseline) {
        self.baseline = baseline;
    }

    /// A message was scanned well by everybody.
    pub fn judged_clean(&mut self, now: Instant, fingerprint: &Fingerprint) {
        self.baseline.add(now, fingerprint);
    }

    /// A scan was seen.
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
        match evidence.seen {
            Seen::Fast if evidence.fresh => episode.fast(now, fingerprint.clone()),
            Seen::Slow if evidence.fresh => {
                episode.slow(now, evidence.started, evidence.message, fingerprint.clone());
            }
            Seen::TimedOut => {
                episode.timed_out(evidence.message);
                episode.failed(now, evidence.message, fingerprint.clone());
            }
            Seen::Broken => episode.failed(now, evidence.message, fingerprint.clone()),
            _ => {}
        }
        let ended_well = matches!(evidence.seen, Seen::Fast | Seen::InTime | Seen::Late);
        if ended_well && self.crashes.ended_well(now, engine, evidence.message) {
            self.version += 1;
        }
        let mut incidents = self.weigh_trial(now, engine, evidence);
        incidents.extend(self.weigh(now, engine, evidence));
        if matches!(evidence.seen, Seen::TimedOut | Seen::Broken) {
            incidents.extend(self.strike(now, engine, evidence));
        }
        incidents
    }

    /// What a scan says about the interceptors that match it and were there before it began.
    fn weigh(&mut self, now: Instant, engine: &Arc<str>, evidence: &Evidence) -> Vec<Incident> {
        let mut incidents = Vec::new();
        let (mut lifted, mut harmless, mut refuted) = (Vec::new(), Vec::new(), Vec::new());
        let is_known = self.standing(&evidence.fingerprint) == Standing::Known;
        for (id, active) in &mut self.active {
            let about = |l: &Learned| {
                // Known senders' mail that it does not hold says nothing about the rest.
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
            let enough = match action {
                Action::Bypass { .. } => MENDED,
                Action::Park { .. } | Action::Hold => REFUTED[usize::from(!learned.narrow)],
            };
            let is_bypass = matches!(action, Action::Bypass { .. });
            if is_bypass && evidence.found {
                refuted.push(id.clone());
            } else if learned.in_time >= enough {
                lifted.push(id.clone());
            } else if learned.late_clean >= REFUTED[0] && !is_bypass && !learned.is_bad {
                harmless.push(id.clone());
            } else if matches!(action, Action::Park { .. })
                && learned.narrow
                && learned.timeouts >= STRIKES
            {
                *action = Action::Hold;
                self.version += 1;
                incidents.push(
                    told(
                        Kind::InterceptorChanged,
                        &active.interceptor,
                        "now holds what it parked",
                    )
                    .with("scans past their timeout", learned.timeouts)
                    .about(evidence.message),
                );
            }
        }
        if evidence.found && (evidence.seen != Seen::Fast || !refuted.is_empty()) {
            self.expose(now, engine, &evidence.fingerprint);
        }
        for id in lifted {
            incidents.extend(self.end(&id, "refuted: such mail scans well"));
        }
        for id in harmless {
            incidents.extend(self.spare(now, &id));
        }
        for id in refuted {
            incidents.extend(self.spare_no_more(&id, evidence));
        }
        incidents
    }

    /// Remembers mail that no engine is to be spared for a while.
    fn expose(&mut self, now: Instant, engine: &Arc<str>, fingerprint: &Arc<Fingerprint>) {
        while self.exposed.len() >= EXPOSED
            || self
                .exposed
                .front()
                .is_some_and(|e| now >= e.at + STRIKE_AGE)
        {
            self.exposed.pop_front();
        }
        self.exposed.push_back(Exposed {
            at: now,
            engine: engine.clone(),
            fingerprint: fingerprint.clone(),
        });
    }

    /// What has been exposed of late by the engine.
    fn exposed_by<'a>(
        &'a self,
        now: Instant,
        engine: &'a str,
    ) -> impl Iterator<Item = &'a Fingerprint> {
        let of = self.exposed.iter().filter(move |e| *e.engine == *engine);
        of.filter(move |e| now < e.at + STRIKE_AGE)
            .map(|e| &*e.fingerprint)
    }

    /// What the engine was spared is bad: the others, which suffice, may not know it. It is held if it costs the engine
    /// too much to look for it; otherwise, and if it is too usual to be held, the engine is asked again.
    fn spare_no_more(&mut self, id: &str, evidence: &Evidence) -> Option<Incident> {
        let active = self.active.get_mut(id)?;
        let is_narrow = active.learned.as_ref().is_some_and(|l| l.narrow);
        if evidence.seen != Seen::Late || !is_narrow {
            let incident = self.end(id, "refuted: something was found in what it spared");
            return incident.map(|incident| incident.about(evidence.message));
        }
        active.interceptor.action = Action::Hold;
        self.version += 1;
        let what = "now holds what it spared the engine: something was found in it";
        let incident = told(Kind::InterceptorChanged, &active.interceptor, what);
        Some(incident.about(evidence.message))
    }

    /// Mail that takes the engine too long and is clean in the end: it is not held, and the engine is spared it while the
    /// others suffice.
    fn spare(&mut self, now: Instant, id: &str) -> Option<Incident> {
        let learned = self.active.get(id)?.learned.as_ref()?;
        let mut bad = self.exposed_by(now, &learned.engine);
        if bad.any(|fingerprint| learned.like.matches(fingerprint)) {
            return None;
        }
        drop(bad);
        let active = self.active.get_mut(id)?;
        let learned = active.learned.as_mut()?;
        if !self.covered.contains(&learned.engine) {
            return self.end(id, "refuted: such mail is clean, if slow");
        }
        let engine = learned.engine.to_string();
        (learned.made, learned.in_time) = (now, 0);
        active.interceptor.action = Action::Bypass { engine };
        self.version += 1;
        let what = "now spares the engine what it held: it is clean, if slow";
        let incident = told(Kind::InterceptorChanged, &active.interceptor, what);
        Some(incident.with("clean after their timeout", REFUTED[0]))
    }

    pub(super) fn end(&mut self, id: &str, why: &str) -> Option<Incident> {
        let active = self.active.remove(id)?;
        self.version += 1;
        self.chances += 1;
        // What a person has held is a person's to release.
        if active.interceptor.is_learned() {
            self.remember(id);
        }
        let incident = told(Kind::InterceptorLifted, &active.interceptor, why);
        Some(incident.with("messages matched", active.interceptor.hits))
    }

    fn remember(&mut self, ended: &str) {
        if self.ended.iter().any(|known| known == ended) {
            return;
        }
        if self.ended.len() >= ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(ended.to_owned());
    }

    /// Concludes: makes interceptors where slow scans have something in common, ends those whose time has come. To be
    /// called a few times a second.
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
            incidents.extend(self.tell_loss(engine));
            for _ in 0..NEW {
                let Some((name, finding)) = self.explain(now, engine) else {
                    break;
                };
                let action = match finding.remedy {
                    Remedy::Park => Action::Park {
                        engine: name.to_string(),
                    },
                    Remedy::Bypass => Action::Bypass {
                        engine: name.to_string(),
                    },
                };
                let charge = Charge {
                    narrow: finding.narrow,
                    action,
                    evidence: proof(&finding),
                    like: finding.like,
                };
                let made = self.convict(now, &name, charge);
                if made.is_none() {
                    break;
                }
                incidents.extend(made);
            }
        }
        incidents
    }

    fn explain(&self, now: Instant, engine: &EngineState<'_>) -> Option<(Arc<str>, Finding)> {
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
            exposed: &self.exposed_by(now, engine.name).collect::<Vec<_>>(),
            timeouts: episode.has_timeouts(),
        };
        let finding = episode.explain(now, &context)?;
        Some((name.clone(), finding))
    }

    /// Those in force, by id.
    pub fn list(&self) -> impl Iterator<Item = &Interceptor> {
        self.active.values().map(|active| &active.interceptor)
    }

    /// Grows with every change of what is in force.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Grows, and the version with it, when mail that an interceptor or a trial kept from an engine need not be kept any more.
    pub fn chances(&self) -> u64 {
        self.chances
    }

    /// Puts one in force that a person made, or that was in force before a restart; replaces one of the same id. One that
    /// was learned and has ended is only remembered, as what it has held waits for that.
    pub fn add(&mut self, now: Instant, interceptor: Interceptor) {
        self.version += 1;
        if interceptor.is_learned() && interceptor.has_expired(crate::deadline::wall_clock()) {
            self.remember(&interceptor.id);
            return;
        }
        let longest = self.settings.expiry.saturating_mul(1 << DOUBLED);
        let active = Active::restored(now, interceptor, longest);
        if let Some(learned) = &active.learned {
            self.convictions.entry(learned.like.key).or_insert(1);
        }
        self.active.insert(active.interceptor.id.clone(), active);
    }

    /// Takes one out of force because a person removed it; none if there is none of that id.
    pub fn remove(&mut self, id: &str) -> Option<Incident> {
        self.end(id, "removed by a person")
    }

    /// Interceptors whose mail may be scanned again: those that have ended or do not hold any more, and those of the
    /// learner that hold.
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

pub(super) fn told(kind: Kind, interceptor: &Interceptor, what: &str) -> Incident {
    let subject = Subject::Interceptor(interceptor.id.clone());
    let summary = format!("{subject} {what}");
    Incident::new(kind, subject, summary)
}

/// Its id, and what is told about what it holds.
fn held_by(interceptor: &Interceptor) -> (String, String) {
    let (id, pattern) = (&interceptor.id, &interceptor.pattern);
    (id.clone(), format!("interceptor {id} holds {pattern}"))
}

/// Whether it holds mail to which that mercy is shown. What a person has made is for everybody.
fn holds(interceptor: &Interceptor, mercy: Mercy) -> bool {
    let spares = match mercy {
        Mercy::None => false,
        Mercy::Shape => interceptor.is_of_shape(),
        Mercy::Near => interceptor.is_near(),
        Mercy::All => interceptor.is_learned(),
    };
    interceptor.action == Action::Hold && !interceptor.dry_run && !spares
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
