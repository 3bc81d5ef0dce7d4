//! The conditions of a search for records.

use std::ops::Range;

use jiff::Timestamp;

use super::{Cause, Lane};

/// Which records a search returns; every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// Only records in these lanes; all lanes if empty.
    pub lanes: Vec<Lane>,
    /// Beginning of the id, in upper case.
    pub id_prefix: Option<String>,
    /// Name of the rule that decided, or part of its reason, ignoring case.
    pub reason: Option<String>,
    /// Name of an engine that found something or did not answer.
    pub engine: Option<String>,
    /// Part of the name of a finding, ignoring case.
    pub finding: Option<String>,
    /// Part of the reverse-path, ignoring case.
    pub sender: Option<String>,
    /// Part of a recipient, ignoring case.
    pub recipient: Option<String>,
    /// Part of the decoded subject, ignoring case.
    pub subject: Option<String>,
    /// The cause for which the record is kept.
    pub cause: Option<Cause>,
    /// Received before this instant.
    pub before: Option<Timestamp>,
    /// Received at or after this instant.
    pub after: Option<Timestamp>,
    /// Size in octets.
    pub size: Option<Range<u64>>,
    /// Records with [`Record::expires_at`](super::Record::expires_at) before or at this instant. The search then returns the
    /// longest expired first.
    pub expired: Option<Timestamp>,
    /// Maximum number of records, the newest first.
    pub limit: usize,
    /// Number of records to skip.
    pub offset: usize,
}
