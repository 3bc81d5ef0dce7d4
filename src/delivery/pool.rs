//! A bounded number of connections, kept for the next message.
//!
//! Whoever wants to deliver takes a permit first; permits are as many as connections are allowed and are given out in
//! the order of asking. A new connection is made only when none is idle, so open connections never outnumber permits.
//! A connection comes back only by [`Lease::give_back`], after a transaction that ended as it should: one that is
//! dropped half-way, by a deadline for example, is closed and its permit is free again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connection::Connection;
use crate::deadline::Deadline;

/// The connections of one next hop.
pub struct Pool {
    permits: Semaphore,
    shelf: Arc<Mutex<Shelf>>,
    keep: Duration,
}

/// Idle connections, the longest idle one in front.
#[derive(Default)]
struct Shelf {
    idle: VecDeque<(Connection, Deadline)>,
    /// A task closes what has been idle for too long.
    tended: bool,
}

/// The right to use one connection.
pub struct Lease<'a> {
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    /// At most `connections` at once, idle ones kept for `keep`.
    pub fn new(connections: usize, keep: Duration) -> Self {
        Self {
            permits: Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)),
            shelf: Arc::default(),
            keep,
        }
    }

    /// Waits for the right to use a connection, in the order of asking; `None` at the deadline.
    ///
    /// Cancel safety: safe, except that the place in the queue is lost.
    pub async fn lease(&self, deadline: Deadline) -> Option<Lease<'_>> {
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            // The semaphore is never closed.
            Err(_) => deadline.run(self.permits.acquire()).await.ok()?.ok()?,
        };
        Some(Lease {
            pool: self,
            _permit: permit,
        })
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        lock(&self.shelf)
    }
}

impl Lease<'_> {
    /// An idle connection that still looks alive: the one used last, whose server has had the least time to close it.
    pub fn idle(&self) -> Option<Connection> {
        loop {
            let (mut connection, until) = self.pool.shelf().idle.pop_back()?;
            if !until.passed() && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps the connection for the next message.
    pub fn give_back(self, connection: Connection) {
        let keep = self.pool.keep;
        if keep.is_zero() {
            return;
        }
        let mut shelf = self.pool.shelf();
        shelf.idle.push_back((connection, Deadline::after(keep)));
        if !shelf.tended {
            shelf.tended = true;
            tokio::spawn(tend(Arc::downgrade(&self.pool.shelf)));
        }
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes connections whose time is up; ends when none is idle, or with the pool.
async fn tend(shelf: std::sync::Weak<Mutex<Shelf>>) {
    loop {
        let (expired, next) = {
            let Some(shelf) = shelf.upgrade() else { return };
            let mut shelf = lock(&shelf);
            match shelf.idle.front() {
                Some((_, until)) if until.passed() => (shelf.idle.pop_front(), None),
                Some((_, until)) => (None, Some(*until)),
                None => {
                    shelf.tended = false;
                    return;
                }
            }
        };
        if let Some((connection, _)) = expired {
            connection.quit().await;
        }
        if let Some(next) = next {
            next.wait().await;
        }
    }
}
