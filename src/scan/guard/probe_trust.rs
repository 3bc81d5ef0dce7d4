//! Whether the answers of an engine can be trusted, by the probes of its replicas.

use tokio::time::Instant;

/// The trust in each replica's answers, and the instant since which answers are untrusted.
#[derive(Debug)]
pub(super) struct ProbeTrust {
    /// For each replica, the start of the last probe pair with right answers.
    good: Vec<Instant>,
    /// For each replica, whether it has answered a probe wrongly since then. A missing answer does not reset this.
    answered_wrongly: Vec<bool>,
    /// Start of the answers that are untrusted and not yet taken by [`ProbeTrust::take_doubted`].
    doubted: Option<Instant>,
}

impl ProbeTrust {
    /// Every replica is trusted from `now` on.
    pub(super) fn new(now: Instant, replicas: usize) -> Self {
        Self {
            good: vec![now; replicas],
            answered_wrongly: vec![false; replicas],
            doubted: None,
        }
    }

    /// A replica has answered rightly a probe pair that started at `began`.
    pub(super) fn trust_from(&mut self, replica: usize, began: Instant) {
        self.good[replica] = began;
        self.answered_wrongly[replica] = false;
    }

    /// A replica has answered a probe wrongly.
    pub(super) fn answered_wrongly(&mut self, replica: usize) {
        self.answered_wrongly[replica] = true;
    }

    /// Whether a replica has answered a probe wrongly since its last right pair.
    pub(super) fn has_wrong_answers(&self) -> bool {
        self.answered_wrongly.contains(&true)
    }

    /// Distrusts the answers of a replica since its last right pair, if the replica has answered a probe wrongly since then.
    /// Returns whether it has.
    pub(super) fn doubt(&mut self, replica: usize) -> bool {
        if self.answered_wrongly[replica] {
            let since = self.good[replica];
            self.doubted = self.doubted.into_iter().chain([since]).min();
        }
        self.answered_wrongly[replica]
    }

    /// The instant since which answers are untrusted; each is returned once.
    pub(super) fn take_doubted(&mut self) -> Option<Instant> {
        self.doubted.take()
    }
}
