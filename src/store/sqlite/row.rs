//! A record as a row: the values that the writer binds and that search compares. The caller encodes the row, so that the one
//! writer thread does not spend its time on JSON.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, params};

use crate::message::party::network;
use crate::message::{Mailbox, SenderReputation, canonical, header};
use crate::store::{Cause, Lane, Record, StoreError};
use crate::verdict::Answer;

/// The columns of `message` that are derived from the record.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: String,
    lane: i64,
    due_at: i64,
    lease_until: i64,
    received_at: i64,
    expires_at: i64,
    sender: String,
    recipients: String,
    subject: String,
    rule: String,
    reason: String,
    engines: String,
    findings: String,
    record: String,
    cause: String,
    known: bool,
    next_hop: Arc<str>,
    client: String,
    domain: String,
    overhead: u64,
}

const INSERT_MESSAGE: &str = "INSERT INTO message (id, lane, due_at, lease_until, received_at, expires_at, sender, recipients, \
     subject, rule, reason, engines, findings, record, cause, known, next_hop, client, domain, overhead, size, \
     file) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";

const UPDATE_MESSAGE: &str = "UPDATE message SET lane = ?2, due_at = ?3, lease_until = ?4, received_at = ?5, expires_at = ?6, \
     sender = ?7, recipients = ?8, subject = ?9, rule = ?10, reason = ?11, engines = ?12, findings = ?13, record = ?14, \
     cause = ?15, known = ?16, next_hop = ?17, client = ?18, domain = ?19, overhead = ?20 \
     WHERE id = ?1 AND damaged IS NULL AND lane BETWEEN ?21 AND ?22";

impl Row {
    /// Encodes a record; `lease` is the end of its lease.
    pub(super) fn encode(mut record: Record, lease: Option<Timestamp>) -> Result<Self, StoreError> {
        make_finite(&mut record);
        let json = serde_json::to_string(&record).map_err(|error| {
            StoreError::Damaged(record.id, format!("it cannot be encoded: {error}"))
        })?;
        let decision = record.decision.as_ref();
        let lower = |text: &str| text.to_lowercase();
        let mut recipients = String::new();
        for recipient in &record.envelope.recipients {
            address_lines(&mut recipients, recipient.mailbox.as_str());
        }
        let (mut engines, mut findings) = (String::new(), String::new());
        for report in &record.reports {
            if report.missing().is_some() || !report.findings().is_empty() {
                line(&mut engines, &report.engine);
            }
            for finding in report.findings() {
                line(&mut findings, &finding.name);
            }
        }
        let reverse_path = &record.envelope.reverse_path;
        let mut sender = String::new();
        if let Some(mailbox) = reverse_path.mailbox() {
            address_lines(&mut sender, mailbox.as_str());
        }
        let mut row = Self {
            id: record.id.to_string(),
            lane: lane_number(record.lane),
            due_at: record.due_at.as_microsecond(),
            lease_until: lease.map_or(0, Timestamp::as_microsecond),
            received_at: record.received_at.as_microsecond(),
            expires_at: record.expires_at.as_microsecond(),
            sender,
            recipients,
            subject: lower(&record.subject),
            rule: decision.map_or_else(String::new, |decision| lower(&decision.rule)),
            reason: decision.map_or_else(String::new, |decision| lower(&decision.reason)),
            engines,
            findings,
            record: json,
            cause: cause_key(record.cause.as_ref()),
            known: record.reputation == Some(SenderReputation::Known),
            client: format!("client {}", network(record.envelope.origin.client)),
            domain: format!(
                "sender {}",
                canonical::domain(reverse_path.mailbox().map_or("<>", Mailbox::domain))
            ),
            next_hop: record.next_hop,
            overhead: 0,
        };
        row.overhead = row.octets();
        Ok(row)
    }

    /// Octets of the metadata: the record, the columns for search, and the copy of these columns in the index.
    fn octets(&self) -> u64 {
        let columns = [
            &self.sender,
            &self.recipients,
            &self.subject,
            &self.rule,
            &self.reason,
            &self.engines,
            &self.findings,
        ];
        let columns: usize = columns.iter().map(|column| column.len()).sum();
        (self.record.len() + 2 * columns) as u64 + Self::FIXED_OCTETS
    }

    /// Estimated octets of the columns with a fixed length and of all other indexes.
    const FIXED_OCTETS: u64 = 512;

    /// Whether the row is in quarantine.
    pub(super) fn is_held(&self) -> bool {
        self.lane == lane_number(Lane::Held)
    }

    /// The parties that the mail counts for while it is in quarantine: client and sender domain.
    pub(super) fn parties(&self) -> [&str; 2] {
        [&self.client, &self.domain]
    }

    /// Octets that the row needs in addition to its content.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Whether the row is in the rescan lane, where other rows may have to make room for it.
    pub(super) fn is_rescan(&self) -> bool {
        self.lane == lane_number(Lane::Rescan)
    }

    /// Inserts the row and returns its number.
    pub(super) fn insert(&self, db: &Connection, size: i64, file: bool) -> rusqlite::Result<i64> {
        let mut statement = db.prepare_cached(INSERT_MESSAGE)?;
        self.run(&mut statement, size, i64::from(file))?;
        Ok(db.last_insert_rowid())
    }

    /// Replaces the row if it is in `lane` (in any lane if `None`); returns false if no row was replaced.
    pub(super) fn update(&self, db: &Connection, lane: Option<Lane>) -> rusqlite::Result<bool> {
        let (first, last) = lanes(lane);
        let mut statement = db.prepare_cached(UPDATE_MESSAGE)?;
        Ok(self.run(&mut statement, first, last)? == 1)
    }

    /// Binds the parameters in the order that both statements share. The last two parameters differ in meaning.
    fn run(
        &self,
        statement: &mut CachedStatement<'_>,
        last_but_one: i64,
        last: i64,
    ) -> rusqlite::Result<usize> {
        statement.execute(params![
            self.id,
            self.lane,
            self.due_at,
            self.lease_until,
            self.received_at,
            self.expires_at,
            self.sender,
            self.recipients,
            self.subject,
            self.rule,
            self.reason,
            self.engines,
            self.findings,
            self.record,
            self.cause,
            self.known,
            self.next_hop,
            self.client,
            self.domain,
            i64::try_from(self.overhead).unwrap_or(i64::MAX),
            last_but_one,
            last,
        ])
    }
}

/// Decodes a record; the error text describes the problem.
pub(super) fn decode(id: &str, json: &str) -> Result<Record, String> {
    let mut record: Record = serde_json::from_str(json)
        .map_err(|error| format!("its record cannot be read: {error}"))?;
    // Earlier versions stored subjects as they came. Decoded text stays the same, unless its sender wrote an encoded word
    // inside an encoded word.
    if let Cow::Owned(decoded) = header::decoded(&record.subject) {
        record.subject = decoded;
    }
    if record.id.to_string() != id {
        return Err(format!("its record belongs to {}", record.id));
    }
    Ok(record)
}

/// The range of lane numbers for a condition on the lane.
pub(super) fn lanes(lane: Option<Lane>) -> (i64, i64) {
    lane.map_or((0, 3), |lane| (lane_number(lane), lane_number(lane)))
}

/// The number of the lane in the database.
pub(super) fn lane_number(lane: Lane) -> i64 {
    match lane {
        Lane::Scan => 0,
        Lane::Delivery => 1,
        Lane::Held => 2,
        Lane::Rescan => 3,
    }
}

/// The cause in the database; empty if there is none.
pub(super) fn cause_key(cause: Option<&Cause>) -> String {
    cause.map_or_else(String::new, Cause::to_string)
}

/// A text column with any octets replaced that are not UTF-8: damage in one row must not end a query over many rows.
pub(super) fn lossy(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    let value = row.get_ref(column)?;
    let octets = value.as_bytes_or_null().ok().flatten().unwrap_or_default();
    Ok(String::from_utf8_lossy(octets).into_owned())
}

/// Appends a line in lower case. Every value is enclosed in line feeds, so that a search in `engines` can match whole names.
fn line(text: &mut String, value: &str) {
    if text.is_empty() {
        text.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", value.to_lowercase());
}

/// Appends an address as it was received, and in canonical form if that form is another one, so that a search finds both.
fn address_lines(text: &mut String, address: &str) {
    line(text, address);
    let canonical = canonical::mailbox(address);
    if canonical != address.to_lowercase() {
        line(text, &canonical);
    }
}

/// JSON has no infinity: a record with an infinite score could not be read back.
fn make_finite(record: &mut Record) {
    let finite = |score: &mut f64| {
        if !score.is_finite() {
            *score = if score.is_nan() {
                0.0
            } else {
                f64::MAX.copysign(*score)
            };
        }
    };
    if let Some(decision) = &mut record.decision {
        finite(&mut decision.score);
    }
    for report in &mut record.reports {
        let (Answer::Answered(findings) | Answer::None { findings, .. }) = &mut report.answer;
        for finding in findings {
            finite(&mut finding.score);
        }
    }
}
