//! A record as a row: what the writer binds and what search compares. Made by the caller, so that the one writer thread
//! does not spend its time on JSON.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{CachedStatement, Connection, params};

use crate::message::party::network;
use crate::message::{Mailbox, SenderReputation};
use crate::store::{Cause, Lane, Record, StoreError};
use crate::verdict::Answer;

/// The columns of `message` that follow from the record.
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

const INSERT: &str = "INSERT INTO message (id, lane, due_at, lease_until, received_at, expires_at, sender, recipients, \
     subject, rule, reason, engines, findings, record, cause, known, next_hop, client, domain, overhead, size, \
     file) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";

const UPDATE: &str = "UPDATE message SET lane = ?2, due_at = ?3, lease_until = ?4, received_at = ?5, expires_at = ?6, \
     sender = ?7, recipients = ?8, subject = ?9, rule = ?10, reason = ?11, engines = ?12, findings = ?13, record = ?14, \
     cause = ?15, known = ?16, next_hop = ?17, client = ?18, domain = ?19, overhead = ?20 \
     WHERE id = ?1 AND damaged IS NULL AND lane BETWEEN ?21 AND ?22";

impl Row {
    /// Translates a record; `lease` is when a lease on it ends.
    pub(super) fn encode(mut record: Record, lease: Option<Timestamp>) -> Result<Self, StoreError> {
        make_finite(&mut record);
        let json = serde_json::to_string(&record).map_err(|error| {
            StoreError::Damaged(record.id, format!("cannot be written: {error}"))
        })?;
        let decision = record.decision.as_ref();
        let lower = |text: &str| text.to_lowercase();
        let mut recipients = String::new();
        for recipient in &record.envelope.recipients {
            line(&mut recipients, recipient.mailbox.as_str());
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
        let mut row = Self {
            id: record.id.to_string(),
            lane: lane_number(record.lane),
            due_at: record.due_at.as_microsecond(),
            lease_until: lease.map_or(0, Timestamp::as_microsecond),
            received_at: record.received_at.as_microsecond(),
            expires_at: record.expires_at.as_microsecond(),
            sender: lower(record.envelope.reverse_path.as_str()),
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
                lower(reverse_path.mailbox().map_or("<>", Mailbox::domain))
            ),
            next_hop: record.next_hop,
            overhead: 0,
        };
        row.overhead = row.octets();
        Ok(row)
    }

    /// What is known of the message, in octets: the record, the columns for search, and their copy in the index.
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
        (self.record.len() + 2 * columns) as u64 + Self::LEAST
    }

    /// Octets of the columns of fixed length and of all other indexes.
    const LEAST: u64 = 512;

    /// Whether the row is in quarantine.
    pub(super) fn is_held(&self) -> bool {
        self.lane == lane_number(Lane::Held)
    }

    /// Those whose mail it is, as far as it is held.
    pub(super) fn parties(&self) -> [&str; 2] {
        [&self.client, &self.domain]
    }

    /// What it takes beside its content, octets.
    pub(super) fn overhead(&self) -> u64 {
        self.overhead
    }

    /// Whether the row may need others to make room for it.
    pub(super) fn is_rescan(&self) -> bool {
        self.lane == lane_number(Lane::Rescan)
    }

    /// Inserts the row and gives its number.
    pub(super) fn insert(&self, db: &Connection, size: i64, file: bool) -> rusqlite::Result<i64> {
        let mut statement = db.prepare_cached(INSERT)?;
        self.run(&mut statement, size, i64::from(file))?;
        Ok(db.last_insert_rowid())
    }

    /// Replaces the row that is in `lane` (in any if `None`); false if there is none.
    pub(super) fn update(&self, db: &Connection, lane: Option<Lane>) -> rusqlite::Result<bool> {
        let (first, last) = lanes(lane);
        let mut statement = db.prepare_cached(UPDATE)?;
        Ok(self.run(&mut statement, first, last)? == 1)
    }

    /// Binds in the order that both statements share; the two last parameters differ in meaning.
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

/// Reads a record back; the text says what is wrong with it.
pub(super) fn decode(id: &str, json: &str) -> Result<Record, String> {
    let record: Record =
        serde_json::from_str(json).map_err(|error| format!("its record: {error}"))?;
    if record.id.to_string() != id {
        return Err(format!("its record is that of {}", record.id));
    }
    Ok(record)
}

/// The range of lane numbers for a condition on the lane.
pub(super) fn lanes(lane: Option<Lane>) -> (i64, i64) {
    lane.map_or((0, 3), |lane| (lane_number(lane), lane_number(lane)))
}

/// The lane in the database.
pub(super) fn lane_number(lane: Lane) -> i64 {
    match lane {
        Lane::Scan => 0,
        Lane::Delivery => 1,
        Lane::Held => 2,
        Lane::Rescan => 3,
    }
}

/// The cause in the database; empty for none.
pub(super) fn cause_key(cause: Option<&Cause>) -> String {
    cause.map_or_else(String::new, Cause::to_string)
}

/// A text column whatever octets it has: damage in one row must not end a query over many.
pub(super) fn lossy(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    let value = row.get_ref(column)?;
    let octets = value.as_bytes_or_null().ok().flatten().unwrap_or_default();
    Ok(String::from_utf8_lossy(octets).into_owned())
}

/// Appends a lower-cased line. Every value is enclosed in line feeds, so that `engines` can be asked for whole names.
fn line(text: &mut String, value: &str) {
    if text.is_empty() {
        text.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", value.to_lowercase());
}

/// JSON has no infinity: a score that is one would make a record that cannot be read back.
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
