//! File descriptors for sessions.
//!
//! A process without a free descriptor cannot accept connections, open files, or answer status requests. The relay therefore
//! raises its limit as far as the system allows, and sessions get only the descriptors that remain after a reserve.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Smallest reserve of descriptors: 64 for the store, the admin sockets and the log.
const RESERVED_DESCRIPTORS_MIN: u64 = 64;
/// At least one in 4 descriptors is reserved: for these files, for next hops and for engines.
const RESERVED_DIVISOR: u64 = 4;

/// Largest number of concurrent sessions, at most `wanted`, for which there are enough descriptors. Raises the soft limit of
/// the process to the hard limit.
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
            wanted,
            "too few file descriptors for limits.sessions: raise the limit (LimitNOFILE= of the service, ulimit -Hn), or lower limits.sessions"
        );
    }
    wanted.min(most)
}

/// Number of sessions that this number of descriptors allows.
fn most(descriptors: u64) -> usize {
    let left =
        descriptors.saturating_sub(RESERVED_DESCRIPTORS_MIN.max(descriptors / RESERVED_DIVISOR));
    usize::try_from(left).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sessions never use the reserved descriptors.
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
