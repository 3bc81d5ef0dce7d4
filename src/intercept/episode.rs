//! An episode: a time in which scans of one engine are slow. The learner looks for keys that the slow scans have and the
//! other scans have not (RESILIENCE M6). Discriminative mining in small: Bailis et al., MacroBase, SIGMOD 2017; surprise by
//! volume: Bhagwan et al., Adtributor, NSDI 2014.
//!
//! If all scans are slow, no key has a risk ratio, and the learner concludes nothing. So no message is blamed for an
//! engine's fault.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::baseline::Baseline;
use super::key::Likeness;
use super::{Key, Settings};
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, MessageId};

/// An episode ends after 30 s without a new slow scan: slow scans with shorter pauses belong to the same episode.
const EPISODE_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Scans older than 60 s are no evidence about the present. Some messages are always slow. If they come more often than
/// every [`EPISODE_IDLE_TIMEOUT`], the episode has no end, and all earlier slow scans would outweigh a flood that has just
/// begun.
const EPISODE_WINDOW: Duration = Duration::from_secs(60);
/// Slow scans remembered for each engine. This limit and the next two bound memory, and the time that [`Episode::explain`]
/// takes.
const SLOW_SCANS_MAX: usize = 512;
/// Fast scans remembered for each engine.
const FAST_SCANS_MAX: usize = 4096;
/// Arrivals remembered, of all engines together.
const ARRIVALS_MAX: usize = 2048;
/// Age up to which arrivals (for bursts) and fast scans (of an engine that copes with other mail) count as recent.
const RECENT_WINDOW: Duration = Duration::from_secs(10);
/// Before the first episode of an engine, fast scans are remembered for 10 s: an episode begins with the start of its first
/// slow scan, and by default a scan is called slow after 5 s at most.
const PRE_EPISODE_WINDOW: Duration = Duration::from_secs(10);

/// Expensive failures remembered for each engine.
const FAILURES_MAX: usize = 64;
/// Age up to which failures are compared with each other.
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Scans with a key must be slow at least 10 times as often as the other scans (risk ratio).
const RISK_RATIO_MIN: f64 = 10.0;
/// At least 10 % of all slow scans must have the key (recall).
const RECALL_MIN: f64 = 0.1;
/// A key that more than 0.1 % of good messages have is too usual to hold messages for. Other keys are narrow.
pub(super) const NARROW_SHARE_MAX: f64 = 0.001;
/// A key that more than 2 % of good messages have is too usual to park messages for: only a bypass of the engine is left.
pub(super) const BROAD_SHARE_MAX: f64 = 0.02;
/// A burst has at least 5 times as many arrivals as the baseline predicts (surprise).
const BURST_RATIO_MIN: f64 = 5.0;
/// Arrivals within [`RECENT_WINDOW`] that a burst needs in [`Arrivals::is_burst`]. From as many arrivals on, two slow scans
/// ([`Settings::min_slow_scans`]) are enough for the learner to park messages with a new key.
const BURST_ARRIVALS_MIN: usize = 10;
/// Time for which a usual key must be slow before the engine is bypassed for it: 10 s, because a shorter slowdown passes
/// without a remedy.
const BYPASS_DELAY: Duration = Duration::from_secs(10);

/// A scan that became slow.
#[derive(Debug, Clone)]
struct Slow {
    at: Instant,
    message: MessageId,
    fingerprint: Arc<Fingerprint>,
    timed_out: bool,
}

/// The observed scans of one engine.
#[derive(Debug, Default)]
pub(super) struct Episode {
    began: Option<Instant>,
    last: Option<Instant>,
    slow: VecDeque<Slow>,
    fast: VecDeque<(Instant, Arc<Fingerprint>)>,
    failed: VecDeque<Failed>,
}

/// A scan that failed expensively: it ran into its timeout, or the engine went away on this message alone.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) at: Instant,
    pub(super) message: MessageId,
    pub(super) fingerprint: Arc<Fingerprint>,
}

/// The messages that arrived, whatever happened to them afterwards.
#[derive(Debug, Default)]
pub(super) struct Arrivals(VecDeque<(Instant, Arc<Fingerprint>)>);

impl Arrivals {
    pub(super) fn add(&mut self, now: Instant, fingerprint: Arc<Fingerprint>) {
        if self.0.len() >= ARRIVALS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, fingerprint));
    }

    /// Whether messages of that likeness arrive in a burst: at least ten in 10 s, and five times as many as usual. `share`
    /// is the share of good messages that are alike.
    pub(super) fn is_burst(&self, now: Instant, like: &Likeness, share: f64) -> bool {
        let begin = now.checked_sub(RECENT_WINDOW).unwrap_or(now);
        let (mut with, mut all) = (0, 0);
        for fingerprint in self.since(begin) {
            all += 1;
            with += usize::from(like.matches(fingerprint));
        }
        let usual = 1.0 + share * f64::from(all);
        with >= BURST_ARRIVALS_MIN && with as f64 >= BURST_RATIO_MIN * usual
    }

    fn since(&self, begin: Instant) -> impl Iterator<Item = &Fingerprint> {
        let recent = self.0.iter().rev().take_while(move |(at, _)| *at >= begin);
        recent.map(|(_, fingerprint)| &**fingerprint)
    }
}

/// The remedy for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Messages with this key come in a burst, and are slow: the messages are at fault.
    Park,
    /// Messages with this key are usual here, and became slow all at once: the engine has changed.
    Bypass,
}

/// A key that slow scans have and other scans have not, with its remedy and the evidence.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Correlation {
    pub(super) like: Likeness,
    pub(super) remedy: Remedy,
    /// Whether good mail hardly ever has the key: [`NARROW_SHARE_MAX`] of it at most.
    pub(super) narrow: bool,
    /// Number of slow scans with the key, of fast scans with the key, and of recent arrivals with the key.
    pub(super) slow: usize,
    pub(super) fast: usize,
    pub(super) arrivals: usize,
    /// Share of good mail that has the key.
    pub(super) share: f64,
    /// See [`Settings::min_precision`] and [`RISK_RATIO_MIN`].
    pub(super) precision: f64,
    pub(super) risk: f64,
    /// The first five of the slow messages with the key.
    pub(super) messages: Vec<MessageId>,
}

/// What [`Episode::explain`] needs beside the episode.
pub(super) struct Context<'a> {
    pub(super) baseline: &'a Baseline,
    pub(super) arrivals: &'a Arrivals,
    /// Likenesses that have an interceptor already.
    pub(super) explained: &'a [Likeness],
    /// Content that a trial has cleared.
    pub(super) cleared: &'a HashSet<Key>,
    /// Whether other engines suffice to judge mail without this engine.
    pub(super) covered: bool,
    /// Messages for which the engine must not be bypassed.
    pub(super) missed: &'a [&'a Fingerprint],
    /// Whether a slow scan has run into its timeout.
    pub(super) timeouts: bool,
    pub(super) settings: &'a Settings,
}

/// The messages in which [`Episode::explain`] looks for correlations.
struct Sample<'a> {
    /// Slow scans that no interceptor explains.
    slow: &'a [&'a Slow],
    /// Recent arrivals that no interceptor explains.
    new: Vec<&'a Fingerprint>,
    /// Number of all recent arrivals.
    arrivals: usize,
}

impl Episode {
    /// A scan ended before it was slow.
    pub(super) fn fast(&mut self, now: Instant, fingerprint: Arc<Fingerprint>) {
        let age = match self.began {
            None => PRE_EPISODE_WINDOW,
            Some(_) => EPISODE_WINDOW,
        };
        while self.fast.len() >= FAST_SCANS_MAX
            || self.fast.front().is_some_and(|(at, _)| now >= *at + age)
        {
            self.fast.pop_front();
        }
        self.fast.push_back((now, fingerprint));
    }

    /// A scan that began at `started` has become slow.
    pub(super) fn slow(
        &mut self,
        now: Instant,
        started: Instant,
        message: MessageId,
        fingerprint: Arc<Fingerprint>,
    ) {
        if self
            .last
            .is_none_or(|last| now >= last + EPISODE_IDLE_TIMEOUT)
        {
            self.slow.clear();
            self.began = Some(started);
            self.fast.retain(|(at, _)| *at >= started);
        }
        self.last = Some(now);
        while self.slow.len() >= SLOW_SCANS_MAX
            || self
                .slow
                .front()
                .is_some_and(|s| now >= s.at + EPISODE_WINDOW)
        {
            self.slow.pop_front();
        }
        self.slow.push_back(Slow {
            at: now,
            message,
            fingerprint,
            timed_out: false,
        });
    }

    /// A slow scan has run into its timeout.
    pub(super) fn timed_out(&mut self, message: MessageId) {
        if let Some(slow) = self.slow.iter_mut().find(|s| s.message == message) {
            slow.timed_out = true;
        }
    }

    /// A scan has failed expensively.
    pub(super) fn failed(
        &mut self,
        at: Instant,
        message: MessageId,
        fingerprint: Arc<Fingerprint>,
    ) {
        if self.failed.len() >= FAILURES_MAX {
            self.failed.pop_front();
        }
        self.failed.push_back(Failed {
            at,
            message,
            fingerprint,
        });
    }

    /// The last failure of a message with the key, at most [`FAILURE_WINDOW`] ago.
    pub(super) fn last_failed(&self, now: Instant, key: Key) -> Option<&Failed> {
        let mut failed = self.failed.iter().rev();
        failed.find(|f| now < f.at + FAILURE_WINDOW && key.matches(&f.fingerprint))
    }

    /// The messages of the remembered failures.
    pub(super) fn failed_ones(&self) -> impl Iterator<Item = (MessageId, &Fingerprint)> {
        self.failed.iter().map(|f| (f.message, &*f.fingerprint))
    }

    /// Number of different messages of that likeness among the remembered failures.
    pub(super) fn failures(&self, like: &Likeness) -> usize {
        let failed = self.failed.iter().filter(|f| like.matches(&f.fingerprint));
        failed.map(|f| f.message).collect::<HashSet<_>>().len()
    }

    /// Whether the engine copes with messages that are not of that likeness. Only then can that likeness be to blame, and not
    /// the engine. The engine copes if it scanned an unlike message fast within [`RECENT_WINDOW`], or if at least half of the
    /// failures within [`FAILURE_WINDOW`] are of that likeness.
    pub(super) fn is_fine_without(&self, now: Instant, like: &Likeness) -> bool {
        let recent = |at: &Instant, age| now < *at + age;
        let mut fast = self.fast.iter().rev();
        if fast.any(|(at, f)| recent(at, RECENT_WINDOW) && !like.matches(f)) {
            return true;
        }
        let failed = self.failed.iter().filter(|f| recent(&f.at, FAILURE_WINDOW));
        let (with, without): (Vec<_>, Vec<_>) = failed.partition(|f| like.matches(&f.fingerprint));
        with.len() >= without.len()
    }

    /// Whether a remembered fast scan was of a message of that likeness.
    pub(super) fn has_fast(&self, like: &Likeness) -> bool {
        self.fast.iter().any(|(_, f)| like.matches(f))
    }

    /// Whether a remembered slow scan has run into its timeout.
    pub(super) fn has_timeouts(&self) -> bool {
        self.slow.iter().any(|s| s.timed_out)
    }

    /// The key that explains most of the slow scans; `None` if no key explains them.
    pub(super) fn explain(&self, now: Instant, context: &Context<'_>) -> Option<Correlation> {
        let began = self.began?;
        if self
            .last
            .is_none_or(|last| now >= last + EPISODE_IDLE_TIMEOUT)
        {
            return None;
        }
        let is_explained = |f: &Fingerprint| context.explained.iter().any(|like| like.matches(f));
        let slow: Vec<&Slow> = self
            .slow
            .iter()
            .filter(|s| now < s.at + EPISODE_WINDOW && !is_explained(&s.fingerprint))
            .collect();
        let counts = self.count_keys(&slow, context);
        let recent = began.max(now.checked_sub(RECENT_WINDOW).unwrap_or(began));
        let arrivals: Vec<&Fingerprint> = context.arrivals.since(recent).collect();
        let new = arrivals.iter().filter(|f| !is_explained(f)).copied();
        let observed = Sample {
            slow: &slow,
            new: new.collect(),
            arrivals: arrivals.len(),
        };
        let candidates = counts
            .into_iter()
            .filter_map(|(key, counts)| self.candidate(now, key, counts, &observed, context));
        candidates.max_by(|a, b| {
            let rank = |f: &Correlation| (f.remedy == Remedy::Park, f.narrow, f.arrivals, f.slow);
            // Of keys that explain the same, content is the better name. After that the smaller key wins, so that the result
            // does not depend on chance.
            rank(a).cmp(&rank(b)).then_with(|| {
                let name =
                    |f: &Correlation| (f.like.key.is_content(), std::cmp::Reverse(f.like.key));
                name(a).cmp(&name(b))
            })
        })
    }

    /// For each key that enough slow scans have in common: how many slow and how many fast scans have the key.
    fn count_keys(&self, slow: &[&Slow], context: &Context<'_>) -> HashMap<Key, (usize, usize)> {
        let mut counts: HashMap<Key, (usize, usize)> = HashMap::new();
        for one in slow {
            let keys: HashSet<Key> = Key::all(&one.fingerprint).collect();
            keys.into_iter()
                .filter(|key| !context.cleared.contains(key))
                .for_each(|key| counts.entry(key).or_default().0 += 1);
        }
        counts.retain(|_, (p, _)| {
            *p >= context.settings.min_slow_scans && *p as f64 >= RECALL_MIN * slow.len() as f64
        });
        if counts.is_empty() {
            return counts;
        }
        for (_, fingerprint) in &self.fast {
            for key in Key::all(fingerprint) {
                if let Some((_, n)) = counts.get_mut(&key) {
                    *n += 1;
                }
            }
        }
        counts
    }

    /// The correlation of a key with slow scans; `None` if the key does not set slow scans apart, or if there is no remedy.
    fn candidate(
        &self,
        now: Instant,
        key: Key,
        (p, n): (usize, usize),
        sample: &Sample<'_>,
        context: &Context<'_>,
    ) -> Option<Correlation> {
        let total = (sample.slow.len(), self.fast.len());
        if !is_apart((p, n), total, context.settings) {
            return None;
        }
        let first = sample.slow.iter().find(|s| key.matches(&s.fingerprint))?;
        let like = Likeness::of(key, &first.fingerprint);
        let with = sample.slow.iter().filter(|s| like.matches(&s.fingerprint));
        let with: Vec<&&Slow> = with.collect();
        // One band matches by accident, so only messages that are nearly the same count.
        let p = with.len();
        let n = match key.0.aspect {
            Aspect::Near => self.fast.iter().filter(|(_, f)| like.matches(f)).count(),
            _ => n,
        };
        if !is_apart((p, n), total, context.settings) {
            return None;
        }
        let with_key = sample.new.iter().filter(|f| like.matches(f)).count();
        let share = context.baseline.share(like.key);
        let since = with.first().map_or(now, |first| first.at);
        let support = (p, with_key, sample.arrivals);
        let remedy = remedy(now - since, &like, support, share, context)?;
        let (precision, risk) = weight((p, n), total);
        Some(Correlation {
            like,
            remedy,
            narrow: share <= NARROW_SHARE_MAX,
            slow: p,
            fast: n,
            arrivals: with_key,
            share,
            precision,
            risk,
            messages: with.iter().map(|s| s.message).take(5).collect(),
        })
    }
}

/// Precision and risk ratio of a key. `p` slow and `n` fast scans have the key; `total` are the slow and the fast scans of
/// all messages.
fn weight((p, n): (usize, usize), total: (usize, usize)) -> (f64, f64) {
    let precision = p as f64 / (p + n) as f64;
    let rest = (total.0 - p) as f64 + 0.5;
    let rest = rest / ((total.0 + total.1 - p - n) as f64 + 1.0);
    (precision, precision / rest)
}

/// Whether these counts set the messages apart from all others.
fn is_apart(counts: (usize, usize), total: (usize, usize), settings: &Settings) -> bool {
    let (precision, risk) = weight(counts, total);
    counts.0 > 0 && precision >= settings.min_precision && risk >= RISK_RATIO_MIN
}

/// The remedy for a key that sets slow scans apart. `None` if the key has too little support, or if too many good messages
/// have it.
fn remedy(
    since: Duration,
    like: &Likeness,
    (slow, with_key, arrivals): (usize, usize, usize),
    share: f64,
    context: &Context<'_>,
) -> Option<Remedy> {
    // While the baseline has few messages, every key but content looks new, so novelty means nothing.
    if !context.baseline.is_meaningful() && !like.key.is_content() {
        return None;
    }
    let expected = 1.0 + share * arrivals as f64;
    let burst = with_key >= 3 && with_key as f64 / expected >= BURST_RATIO_MIN;
    let more = match burst {
        true if share <= NARROW_SHARE_MAX / 10.0 && with_key >= BURST_ARRIVALS_MIN => 0,
        true if share <= NARROW_SHARE_MAX / 10.0 => 1,
        _ => 3,
    };
    if slow < context.settings.min_slow_scans + more {
        return None;
    }
    match burst {
        true if share <= NARROW_SHARE_MAX => Some(Remedy::Park),
        true if share <= BROAD_SHARE_MAX && context.timeouts => Some(Remedy::Park),
        false if share > NARROW_SHARE_MAX && since >= BYPASS_DELAY && context.covered => {
            let is_missed = context.missed.iter().any(|bad| like.matches(bad));
            (!is_missed).then_some(Remedy::Bypass)
        }
        _ => None,
    }
}
