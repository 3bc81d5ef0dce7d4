//! Descriptors for sessions.
//!
//! A process that has none left cannot accept, open a file, or answer who asks how it is. So the limit is raised as far as the
//! system lets us, and sessions get what is left when everything else has its share.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for the store, the admin sockets and the log, where there are few.
const RESERVE: u64 = 64;
/// The share of all that is for these, next hops and engines.
const SHARE: u64 = 4;

/// How many of so many sessions there may be at once. Raises the process's own limit to what the system allows.
pub fn sessions(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    let Some(limit) = limit else {
        return wanted;
    };
    let most = most(limit);
    if most < wanted {
        tracing::warn!(
            descriptors = limit,
            sessions = most,
            "there are too few file descriptors for limits.sessions = {wanted}: raise the limit (LimitNOFILE= of the service, ulimit -Hn), or lower limits.sessions"
        );
    }
    wanted.min(most)
}

/// The sessions that so many descriptors allow.
fn most(descriptors: u64) -> usize {
    let left = descriptors.saturating_sub(RESERVE.max(descriptors / SHARE));
    usize::try_from(left).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions never take the descriptors that everything else needs.
    #[test]
    fn sessions_leave_descriptors_for_the_rest() {
        for (descriptors, sessions) in [(0, 1), (64, 1), (120, 56), (1024, 768), (524_288, 393_216)]
        {
            assert_eq!(most(descriptors), sessions, "{descriptors}");
        }
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(super::sessions(1), 1);
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, limit.maximum);
    }
}
