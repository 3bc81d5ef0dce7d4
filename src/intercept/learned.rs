//! An interceptor in force, and what is known of one that was learned: enough of it is in the interceptor itself, which is
//! kept, for its scans to be weighed after a restart as before.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::key::Likeness;
use super::{Action, Evidence, Interceptor, Origin, Seen};

/// One in force.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) interceptor: Interceptor,
    /// For those of the learner.
    pub(super) learned: Option<Learned>,
}

#[derive(Debug)]
pub(super) struct Learned {
    pub(super) engine: Arc<str>,
    pub(super) like: Likeness,
    pub(super) narrow: bool,
    pub(super) made: Instant,
    pub(super) expires: Instant,
    pub(super) timeouts: u32,
    pub(super) in_time: u32,
    pub(super) late_clean: u32,
    /// In such mail something was found, however late.
    pub(super) is_bad: bool,
}

impl Active {
    /// One that was in force before a restart, or that a person made. No wall clock makes one that was learned last longer
    /// than `longest`.
    pub(super) fn restored(now: Instant, interceptor: Interceptor, longest: Duration) -> Self {
        let learned = learned(now, &interceptor, longest);
        Self {
            interceptor,
            learned,
        }
    }

    /// What it suspects, and in which engine: something that holds mail, and was learned.
    pub(super) fn suspects(&self) -> Option<(&Arc<str>, &Likeness)> {
        let learned = self.learned.as_ref()?;
        let holds = match self.interceptor.action {
            Action::Park { .. } | Action::Hold => !self.interceptor.dry_run,
            Action::Bypass { .. } => false,
        };
        holds.then_some((&learned.engine, &learned.like))
    }

    /// Counts a scan of such mail.
    pub(super) fn count(&mut self, evidence: &Evidence) {
        let Some(learned) = &mut self.learned else {
            return;
        };
        match evidence.seen {
            Seen::TimedOut => learned.timeouts += 1,
            Seen::Fast | Seen::InTime if evidence.started >= learned.made => learned.in_time += 1,
            Seen::Late if !evidence.found => learned.late_clean += 1,
            _ => {}
        }
        // What is found at once in a class of usual mail says nothing about what is slow in it.
        learned.is_bad |= evidence.found && (learned.narrow || evidence.seen != Seen::Fast);
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

/// Mail in which something was found that took its engine long, or that the engine was spared.
#[derive(Debug)]
pub(super) struct Exposed {
    pub(super) at: Instant,
    pub(super) engine: Arc<str>,
    pub(super) fingerprint: Arc<crate::message::Fingerprint>,
}
