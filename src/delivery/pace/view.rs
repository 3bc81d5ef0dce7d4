//! What people see of the pace of a next hop.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Current state and limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Free, paced or dead.
    pub state: PaceState,
    /// Rate limit in messages a second; `None` without a limit.
    pub rate: Option<f64>,
    /// Limit of concurrent deliveries in addition to the connection limit; `None` without one.
    pub window: Option<usize>,
    /// Time before which nothing goes out.
    pub until: Option<Instant>,
    /// The hop is dead because it refuses our login.
    pub login_refused: bool,
    /// Time from which the hop is dead; `None` while it is not.
    pub dead_since: Option<Instant>,
    /// Whether a probe of a dead hop is under way.
    pub probing: bool,
}

/// Name of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PaceState {
    /// Everything goes out.
    Free,
    /// Mail goes out within a rate and a window.
    Paced,
    /// One probe at a time goes out.
    Dead,
}
