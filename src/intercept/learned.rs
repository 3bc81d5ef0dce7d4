//! An interceptor in force, and the scan counts of a learned interceptor. The stored interceptor alone is enough to weigh
//! its scans after a restart as before.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::key::Likeness;
use super::{Action, Interceptor, Origin};
use crate::observation::{Evidence, Observed};

/// An interceptor in force.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) interceptor: Interceptor,
    /// Only for interceptors of the learner.
    pub(super) learned: Option<Learned>,
}

/// The learner's data about an interceptor that it made.
#[derive(Debug)]
pub(super) struct Learned {
    /// The engine whose scans were the evidence.
    pub(super) engine: Arc<str>,
    pub(super) like: Likeness,
    /// Whether good mail hardly ever matches (at most 0.1 % of it).
    pub(super) narrow: bool,
    pub(super) made: Instant,
    pub(super) expires: Instant,
    /// Scans of matching messages that ran into their timeout.
    pub(super) timeouts: u32,
    /// Scans of matching messages that began after `made` and ended before their timeout: they disprove the interceptor.
    pub(super) in_time: u32,
    /// Scans of matching messages that ended clean after their timeout: such mail is slow, but does no harm, so a bypass is
    /// enough.
    pub(super) late_clean: u32,
    /// Whether the engine found something in a message that matches. Then a hold never becomes a bypass. A fast finding counts
    /// for a narrow interceptor only.
    pub(super) is_bad: bool,
}

impl Active {
    /// An interceptor that was in force before a restart, or that a person made. A learned interceptor lasts `longest` at
    /// most, so that a wall clock that was set back cannot prolong it.
    pub(super) fn restored(now: Instant, interceptor: Interceptor, longest: Duration) -> Self {
        let learned = learned(now, &interceptor, longest);
        Self {
            interceptor,
            learned,
        }
    }

    /// The engine and the likeness that a learned interceptor suspects. `None` if the interceptor holds or parks no
    /// messages.
    pub(super) fn suspects(&self) -> Option<(&Arc<str>, &Likeness)> {
        let learned = self.learned.as_ref()?;
        let holds = match self.interceptor.action {
            Action::Park { .. } | Action::Hold => !self.interceptor.dry_run,
            Action::Bypass { .. } => false,
        };
        holds.then_some((&learned.engine, &learned.like))
    }

    /// Counts a scan of a message that matches.
    pub(super) fn count(&mut self, evidence: &Evidence) {
        let Some(learned) = &mut self.learned else {
            return;
        };
        match evidence.what {
            Observed::TimedOut => learned.timeouts += 1,
            Observed::Fast { .. } | Observed::Ended { .. } if evidence.started >= learned.made => {
                learned.in_time += 1
            }
            Observed::Late { .. } if !evidence.what.found() => learned.late_clean += 1,
            _ => {}
        }
        // In a class of usual mail a fast finding says nothing about the slow scans of that class.
        learned.is_bad |= evidence.what.found()
            && (learned.narrow || !matches!(evidence.what, Observed::Fast { .. }));
        if let Origin::Learned { bad, .. } = &mut self.interceptor.origin {
            *bad = learned.is_bad;
        }
    }
}

fn learned(now: Instant, interceptor: &Interceptor, longest: Duration) -> Option<Learned> {
    let Origin::Learned {
        engine,
        narrow,
        bad,
        ..
    } = &interceptor.origin
    else {
        return None;
    };
    let left = |end: Timestamp| {
        let left = end.duration_since(crate::deadline::wall_clock());
        Duration::try_from(left).unwrap_or_default()
    };
    Some(Learned {
        engine: engine.as_str().into(),
        like: Likeness::read(&interceptor.pattern)?,
        narrow: *narrow,
        made: now,
        expires: now + interceptor.expires.map_or(longest, left).min(longest),
        timeouts: 0,
        in_time: 0,
        late_clean: 0,
        is_bad: *bad,
    })
}

/// A message with a finding that took the engine long, or that was made although the engine is bypassed for such messages.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) at: Instant,
    pub(super) engine: Arc<str>,
    pub(super) fingerprint: Arc<crate::message::Fingerprint>,
}
