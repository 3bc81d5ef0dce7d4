//! The statements that lease rows to a worker.

use jiff::Timestamp;
use rusqlite::{Connection, Params, params};

use super::row::{cause_key, lane_number, lossy};
use super::work::{ClaimTerms, Output};
use crate::store::{Cause, Lane, SweepPosition, Times};

/// Rows in a range of due times. One range has the rows that are due; the other has rows with a due time beyond the longest
/// wait, which come from a clock that was set back.
const SELECT_DUE: &str = "SELECT seq, id, record FROM message INDEXED BY work \
     WHERE damaged IS NULL AND lane = ?3 \
     AND due_at BETWEEN ?4 AND ?5 AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY due_at";

const SELECT_DUE_FOR_NEXT_HOP: &str = "SELECT seq, id, record FROM message INDEXED BY outgoing \
     WHERE damaged IS NULL AND lane = 1 \
     AND next_hop = ?3 AND due_at BETWEEN ?4 AND ?5 AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY due_at";

const SELECT_GIVEN_UP: &str = "SELECT seq, id, record FROM message INDEXED BY given_up \
     WHERE damaged IS NULL AND lane = 1 \
     AND expires_at <= ?3 AND (lease_until <= ?1 OR lease_until > ?2) ORDER BY expires_at";

const SELECT_FOR_RECOVERY: &str = "SELECT seq, id, record FROM message INDEXED BY recovery \
     WHERE damaged IS NULL AND cause <> '' \
     AND lane = ?3 AND cause = ?4 AND (lease_until <= ?1 OR lease_until > ?2) AND known = ?5 \
     AND received_at >= ?6 AND (received_at > ?6 OR id > ?7) ORDER BY received_at, id";

/// Claims records of a lane that are due.
pub(super) fn claim(db: &Connection, lane: Lane, terms: &ClaimTerms) -> rusqlite::Result<Output> {
    let ((now, until), lane) = (terms.free(), lane_number(lane));
    let mut leased = Leased::new(terms);
    for (first, last) in terms.due() {
        leased.select(db, SELECT_DUE, params![now, until, lane, first, last])?;
    }
    leased.lease(db)
}

/// Claims deliveries that are due for a next hop.
pub(super) fn claim_to(
    db: &Connection,
    next_hop: &str,
    terms: &ClaimTerms,
) -> rusqlite::Result<Output> {
    let (now, until) = terms.free();
    let mut leased = Leased::new(terms);
    for (first, last) in terms.due() {
        leased.select(
            db,
            SELECT_DUE_FOR_NEXT_HOP,
            params![now, until, next_hop, first, last],
        )?;
    }
    leased.lease(db)
}

/// Claims deliveries to give up: those that expire by this time.
pub(super) fn claim_given_up(
    db: &Connection,
    by: Timestamp,
    terms: &ClaimTerms,
) -> rusqlite::Result<Output> {
    let (now, until) = terms.free();
    let mut leased = Leased::new(terms);
    leased.select(
        db,
        SELECT_GIVEN_UP,
        params![now, until, by.as_microsecond()],
    )?;
    leased.lease(db)
}

/// Claims records that wait for a cause. Known senders and other senders are separate ranges of the index, so that the rows
/// before the place cost nothing.
pub(super) fn recover(
    db: &Connection,
    (lane, cause): (Lane, &Cause),
    after: Option<SweepPosition>,
    terms: &ClaimTerms,
) -> rusqlite::Result<Output> {
    let ((now, until), lane, cause) = (terms.free(), lane_number(lane), cause_key(Some(cause)));
    let mut leased = Leased::new(terms);
    for known in [true, false] {
        let (received, id) = match after {
            Some(place) if place.known == known => {
                (place.received_at.as_microsecond(), place.id.to_string())
            }
            Some(place) if known && !place.known => continue,
            Some(_) | None => (i64::MIN, String::new()),
        };
        leased.select(
            db,
            SELECT_FOR_RECOVERY,
            params![now, until, lane, cause, known, received, id],
        )?;
    }
    leased.lease(db)
}

impl ClaimTerms {
    /// The limits of leases in force: a lease that ends by the first or after the second is not in force.
    fn free(&self) -> (i64, i64) {
        let Times { now, until, .. } = self.times;
        (now.as_microsecond(), until.as_microsecond())
    }

    /// The ranges of due times that are due.
    fn due(&self) -> [(i64, i64); 2] {
        let Times { now, latest, .. } = self.times;
        let beyond = latest.max(now).as_microsecond().saturating_add(1);
        [(i64::MIN, now.as_microsecond()), (beyond, i64::MAX)]
    }
}

/// Rows to lease.
struct Leased<'a> {
    terms: &'a ClaimTerms,
    seqs: Vec<i64>,
    rows: Vec<(String, String)>,
}

impl<'a> Leased<'a> {
    fn new(terms: &'a ClaimTerms) -> Self {
        Self {
            terms,
            seqs: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Takes the first rows of a statement that no worker of this process has.
    fn select(
        &mut self,
        db: &Connection,
        statement: &str,
        parameters: impl Params,
    ) -> rusqlite::Result<()> {
        if self.rows.len() >= self.terms.limit {
            return Ok(());
        }
        let mut statement = db.prepare_cached(statement)?;
        let mut rows = statement.query(parameters)?;
        while self.rows.len() < self.terms.limit
            && let Some(row) = rows.next()?
        {
            let id = lossy(row, 1)?;
            let is_at_work = id.parse().is_ok_and(|id| self.terms.at_work.has(id));
            if !is_at_work {
                self.seqs.push(row.get(0)?);
                self.rows.push((id, lossy(row, 2)?));
            }
        }
        Ok(())
    }

    fn lease(self, db: &Connection) -> rusqlite::Result<Output> {
        let until = self.terms.times.until.as_microsecond();
        let mut statement =
            db.prepare_cached("UPDATE message SET lease_until = ?2 WHERE seq = ?1")?;
        for seq in self.seqs {
            statement.execute(params![seq, until])?;
        }
        Ok(Output::Claimed(self.rows))
    }
}
