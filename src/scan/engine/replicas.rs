//! The number of replicas of an engine.

use super::Kind;

impl Kind {
    /// The number of replicas: addresses, or one for an engine in this process and for a program.
    pub fn replicas(&self) -> usize {
        match self {
            Self::Clamd { addresses, .. }
            | Self::Spamd { addresses, .. }
            | Self::Milter { addresses, .. } => addresses.len(),
            Self::Rspamd { addresses, .. }
            | Self::Http { addresses, .. }
            | Self::Icap { addresses, .. } => addresses.len(),
            Self::Command(_)
            | Self::Rules { .. }
            | Self::Attachment(_)
            | Self::Dns(_)
            | Self::Auth(_) => 1,
        }
    }
}
