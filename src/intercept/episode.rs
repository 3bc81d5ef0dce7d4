//! An episode: a time in which scans of one engine are slow, and what the slow ones have in common that the others have
//! not (RESILIENCE M6). Discriminative mining in small: Bailis et al., MacroBase, SIGMOD 2017; surprise by volume: Bhagwan
//! et al., Adtributor, NSDI 2014.
//!
//! If everything is slow, nothing sets the slow ones apart, no key has a risk ratio, and nothing is concluded: that is how
//! an engine's fault stays an engine's fault.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Key;
use super::baseline::Baseline;
use super::key::Likeness;
use crate::message::fingerprint::Aspect;
use crate::message::{Fingerprint, MessageId};

/// An episode is over when nothing has been slow for so long.
const QUIET: Duration = Duration::from_secs(30);
/// What was seen longer ago says nothing of now. Some mail is always slow: where it comes more often than [`QUIET`] an
/// episode has no end, and all that was ever slow in it would outweigh a flood that has just begun.
const WINDOW: Duration = Duration::from_secs(60);
/// Slow scans, fast scans and arrivals that are remembered.
const SLOW: usize = 512;
const FAST: usize = 4096;
const ARRIVALS: usize = 2048;
/// Arrivals are counted over this time at most.
const RECENT: Duration = Duration::from_secs(10);
/// Fast scans are remembered for so long before an episode begins, as it begins with the start of its first slow scan.
const BEFORE: Duration = Duration::from_secs(10);

/// Failures that are remembered, and over which time they are compared.
const FAILED: usize = 64;
const MINUTE: Duration = Duration::from_secs(60);
/// Of the scans with the key so many are slow at least.
const PRECISION: f64 = 0.9;
/// They are slow so much more often than the others.
const RISK: f64 = 10.0;
/// And they are so much of all that is slow.
const RECALL: f64 = 0.1;
/// A key that good mail has more often than this is too usual to hold mail for.
pub(super) const NARROW: f64 = 0.001;
/// And one above this is too usual for anything but sparing the engine.
pub(super) const BROAD: f64 = 0.02;
/// Arrivals beyond what the baseline expects.
const SURPRISE: f64 = 5.0;
/// Arrivals in [`RECENT`] below which nothing is a burst by itself.
const BURST: usize = 10;
/// How long usual mail must be slow before the engine is spared it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A scan that was slow.
#[derive(Debug, Clone)]
struct Slow {
    at: Instant,
    message: MessageId,
    fingerprint: Arc<Fingerprint>,
    timed_out: bool,
}

/// What was seen of one engine.
#[derive(Debug, Default)]
pub(super) struct Episode {
    began: Option<Instant>,
    last: Option<Instant>,
    slow: VecDeque<Slow>,
    fast: VecDeque<(Instant, Arc<Fingerprint>)>,
    failed: VecDeque<Failed>,
}

/// A scan that has failed expensively.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) at: Instant,
    pub(super) message: MessageId,
    pub(super) fingerprint: Arc<Fingerprint>,
}

/// Mail that came in, whatever became of it.
#[derive(Debug, Default)]
pub(super) struct Arrivals(VecDeque<(Instant, Arc<Fingerprint>)>);

impl Arrivals {
    pub(super) fn add(&mut self, now: Instant, fingerprint: Arc<Fingerprint>) {
        if self.0.len() >= ARRIVALS {
            self.0.pop_front();
        }
        self.0.push_back((now, fingerprint));
    }

    /// Whether mail of that likeness, of which good mail has that share, has come in a burst: ten messages at least in ten seconds,
    /// and five times what is usual.
    pub(super) fn is_burst(&self, now: Instant, like: &Likeness, share: f64) -> bool {
        let begin = now.checked_sub(RECENT).unwrap_or(now);
        let (mut with, mut all) = (0, 0);
        for fingerprint in self.since(begin) {
            all += 1;
            with += usize::from(like.matches(fingerprint));
        }
        let usual = 1.0 + share * f64::from(all);
        with >= BURST && with as f64 >= SURPRISE * usual
    }

    fn since(&self, begin: Instant) -> impl Iterator<Item = &Fingerprint> {
        let recent = self.0.iter().rev().take_while(move |(at, _)| *at >= begin);
        recent.map(|(_, fingerprint)| &**fingerprint)
    }
}

/// What is to be done about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Mail like this is new here, and slow.
    Park,
    /// Mail like this is usual here, and slow all at once: it is the engine that has changed.
    Bypass,
}

/// A key that explains slow scans, and the evidence.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) like: Likeness,
    pub(super) remedy: Remedy,
    /// Whether good mail hardly ever has it.
    pub(super) narrow: bool,
    pub(super) slow: usize,
    pub(super) fast: usize,
    pub(super) arrivals: usize,
    pub(super) share: f64,
    pub(super) precision: f64,
    pub(super) risk: f64,
    pub(super) messages: Vec<MessageId>,
}

/// What is known beside the episode itself.
pub(super) struct Context<'a> {
    pub(super) baseline: &'a Baseline,
    pub(super) arrivals: &'a Arrivals,
    /// Keys that interceptors are there for already.
    pub(super) explained: &'a [Likeness],
    /// Content that a trial has cleared.
    pub(super) cleared: &'a HashSet<Key>,
    /// Whether mail can be judged without this engine.
    pub(super) covered: bool,
    /// Mail that the engine is not to be spared.
    pub(super) exposed: &'a [&'a Fingerprint],
    /// The engine's timeout has passed since the episode began.
    pub(super) timeouts: bool,
}

impl Episode {
    /// A scan ended before it was slow.
    pub(super) fn fast(&mut self, now: Instant, fingerprint: Arc<Fingerprint>) {
        let age = match self.began {
            None => BEFORE,
            Some(_) => WINDOW,
        };
        while self.fast.len() >= FAST || self.fast.front().is_some_and(|(at, _)| now >= *at + age) {
            self.fast.pop_front();
        }
        self.fast.push_back((now, fingerprint));
    }

    /// A scan that began then has become slow.
    pub(super) fn slow(
        &mut self,
        now: Instant,
        started: Instant,
        message: MessageId,
        fingerprint: Arc<Fingerprint>,
    ) {
        if self.last.is_none_or(|last| now >= last + QUIET) {
            self.slow.clear();
            self.began = Some(started);
            self.fast.retain(|(at, _)| *at >= started);
        }
        self.last = Some(now);
        while self.slow.len() >= SLOW || self.slow.front().is_some_and(|s| now >= s.at + WINDOW) {
            self.slow.pop_front();
        }
        self.slow.push_back(Slow {
            at: now,
            message,
            fingerprint,
            timed_out: false,
        });
    }

    /// A scan that was slow has run into its timeout.
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
        if self.failed.len() >= FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back(Failed {
            at,
            message,
            fingerprint,
        });
    }

    /// The last of such mail that has failed.
    pub(super) fn last_failed(&self, now: Instant, key: Key) -> Option<&Failed> {
        let mut failed = self.failed.iter().rev();
        failed.find(|f| now < f.at + MINUTE && key.matches(&f.fingerprint))
    }

    /// Those that are remembered because they failed.
    pub(super) fn failed_ones(&self) -> impl Iterator<Item = (MessageId, &Fingerprint)> {
        self.failed.iter().map(|f| (f.message, &*f.fingerprint))
    }

    /// How many different messages of such mail have failed, of those that are remembered.
    pub(super) fn failures(&self, like: &Likeness) -> usize {
        let failed = self.failed.iter().filter(|f| like.matches(&f.fingerprint));
        failed.map(|f| f.message).collect::<HashSet<_>>().len()
    }

    /// Whether the engine is well with other mail than that: it has just scanned some, or most of what it failed on lately
    /// is like it.
    pub(super) fn is_fine_without(&self, now: Instant, like: &Likeness) -> bool {
        let recent = |at: &Instant, age| now < *at + age;
        let mut fast = self.fast.iter().rev();
        if fast.any(|(at, f)| recent(at, RECENT) && !like.matches(f)) {
            return true;
        }
        let failed = self.failed.iter().filter(|f| recent(&f.at, MINUTE));
        let (with, without): (Vec<_>, Vec<_>) = failed.partition(|f| like.matches(&f.fingerprint));
        with.len() >= without.len()
    }

    /// Whether fast scans of such mail were seen since it began.
    pub(super) fn has_fast(&self, like: &Likeness) -> bool {
        self.fast.iter().any(|(_, f)| like.matches(f))
    }

    /// Whether any of its scans has run into its timeout.
    pub(super) fn has_timeouts(&self) -> bool {
        self.slow.iter().any(|s| s.timed_out)
    }

    /// The key that explains most, if one explains anything.
    pub(super) fn explain(&self, now: Instant, context: &Context<'_>) -> Option<Finding> {
        let began = self.began?;
        if self.last.is_none_or(|last| now >= last + QUIET) {
            return None;
        }
        let is_explained = |f: &Fingerprint| context.explained.iter().any(|like| like.matches(f));
        let slow: Vec<&Slow> = self
            .slow
            .iter()
            .filter(|s| now < s.at + WINDOW && !is_explained(&s.fingerprint))
            .collect();
        let mut counts: HashMap<Key, (usize, usize)> = HashMap::new();
        for one in &slow {
            let keys: HashSet<Key> = Key::all(&one.fingerprint).collect();
            keys.into_iter()
                .filter(|key| !context.cleared.contains(key))
                .for_each(|key| counts.entry(key).or_default().0 += 1);
        }
        counts.retain(|_, (p, _)| *p >= 2 && *p as f64 >= RECALL * slow.len() as f64);
        if counts.is_empty() {
            return None;
        }
        for (_, fingerprint) in &self.fast {
            for key in Key::all(fingerprint) {
                if let Some((_, n)) = counts.get_mut(&key) {
                    *n += 1;
                }
            }
        }
        let recent = began.max(now.checked_sub(RECENT).unwrap_or(began));
        let arrivals: Vec<&Fingerprint> = context.arrivals.since(recent).collect();
        let new = arrivals.iter().filter(|f| !is_explained(f));
        let new: Vec<&Fingerprint> = new.copied().collect();
        let candidates = counts.into_iter().filter_map(|(key, (p, n))| {
            let total = (slow.len(), self.fast.len());
            if !is_apart((p, n), total) {
                return None;
            }
            let first = slow.iter().find(|s| key.matches(&s.fingerprint))?;
            let like = Likeness::of(key, &first.fingerprint);
            let with: Vec<&&Slow> = slow
                .iter()
                .filter(|s| like.matches(&s.fingerprint))
                .collect();
            // One band brings mail together by accident: what counts is what is nearly the same.
            let p = with.len();
            let n = match key.0.aspect {
                Aspect::Near => self.fast.iter().filter(|(_, f)| like.matches(f)).count(),
                _ => n,
            };
            if !is_apart((p, n), total) {
                return None;
            }
            let with_key = new.iter().filter(|f| like.matches(f)).count();
            let share = context.baseline.share(like.key);
            let since = with.first().map_or(now, |first| first.at);
            let remedy = remedy(
                now - since,
                &like,
                (p, with_key, arrivals.len()),
                share,
                context,
            )?;
            let (precision, risk) = weight((p, n), total);
            Some(Finding {
                like,
                remedy,
                narrow: share <= NARROW,
                slow: p,
                fast: n,
                arrivals: with_key,
                share,
                precision,
                risk,
                messages: with.iter().map(|s| s.message).take(5).collect(),
            })
        });
        candidates.max_by(|a, b| {
            let rank = |f: &Finding| (f.remedy == Remedy::Park, f.narrow, f.arrivals, f.slow);
            // Of what explains the same the content itself is the better name, and then the smaller key, so that chance
            // decides nothing.
            rank(a).cmp(&rank(b)).then_with(|| {
                let name = |f: &Finding| (f.like.key.is_content(), std::cmp::Reverse(f.like.key));
                name(a).cmp(&name(b))
            })
        })
    }
}

/// Of so many slow and fast scans of such mail, and of all mail: the share that is slow, and how much more often that is than
/// among the others.
fn weight((p, n): (usize, usize), total: (usize, usize)) -> (f64, f64) {
    let precision = p as f64 / (p + n) as f64;
    let rest = (total.0 - p) as f64 + 0.5;
    let rest = rest / ((total.0 + total.1 - p - n) as f64 + 1.0);
    (precision, precision / rest)
}

/// Whether that sets such mail apart.
fn is_apart(counts: (usize, usize), total: (usize, usize)) -> bool {
    let (precision, risk) = weight(counts, total);
    counts.0 > 0 && precision >= PRECISION && risk >= RISK
}

/// What to do about a key that sets slow scans apart; nothing if there is not enough support, or if the mail of this
/// relay's users has it too.
fn remedy(
    since: Duration,
    like: &Likeness,
    (slow, with_key, arrivals): (usize, usize, usize),
    share: f64,
    context: &Context<'_>,
) -> Option<Remedy> {
    // While there is hardly a baseline, everything but the content itself is new, and means nothing.
    if !context.baseline.is_meaningful() && !like.key.is_content() {
        return None;
    }
    let expected = 1.0 + share * arrivals as f64;
    let burst = with_key >= 3 && with_key as f64 / expected >= SURPRISE;
    let support = match burst {
        true if share <= NARROW / 10.0 && with_key >= BURST => 2,
        true if share <= NARROW / 10.0 => 3,
        _ => 5,
    };
    if slow < support {
        return None;
    }
    match burst {
        true if share <= NARROW => Some(Remedy::Park),
        true if share <= BROAD && context.timeouts => Some(Remedy::Park),
        false if share > NARROW && since >= PATIENCE && context.covered => {
            let is_exposed = context.exposed.iter().any(|bad| like.matches(bad));
            (!is_exposed).then_some(Remedy::Bypass)
        }
        _ => None,
    }
}
