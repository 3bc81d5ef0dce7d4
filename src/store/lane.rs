//! The lanes: what a stored message waits for, and the counts of each lane.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a stored message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// For a scan and a decision.
    Scan,
    /// For delivery to the next hop; the decision is made.
    Delivery,
    /// In quarantine, for a reviewer or its expiry.
    Held,
    /// Delivered with less than full coverage. The content is kept so that the missing engines can scan it later.
    /// [`Settings::rescan_bytes`](super::Settings::rescan_bytes) bounds the whole lane: if room is needed, the record that
    /// would expire first is removed, even under lease.
    Rescan,
}

/// How long a message of [`Lane::Rescan`] is kept, one day. If an engine is out for longer, people know of the outage, and a
/// finding about mail that was read yesterday comes too late.
pub const RESCAN_RETENTION: Duration = Duration::from_secs(86_400);

impl Lane {
    /// All lanes, in the order of [`Store::stats`](super::Store::stats).
    pub const ALL: [Self; 4] = [Self::Scan, Self::Delivery, Self::Held, Self::Rescan];

    /// The word in output and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scan => "scan",
            Self::Delivery => "delivery",
            Self::Held => "held",
            Self::Rescan => "rescan",
        }
    }
}

/// Counts for `stats`, `/metrics` and admission.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStats {
    /// Number of records.
    pub messages: u64,
    /// Octets of content.
    pub octets: u64,
    /// The earliest end of data.
    pub oldest: Option<Timestamp>,
}
