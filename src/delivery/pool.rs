//! A bounded pool of connections that keeps idle connections for the next message.
//!
//! A delivery takes a permit first. There are as many permits as allowed connections, and the pool issues them in the
//! order of the requests. A new connection is made only if no connection is idle, so open connections never outnumber
//! permits. A connection returns to the pool only through [`Lease::give_back`], after a complete transaction. A
//! connection that is dropped during a transaction, for example at a deadline, is closed and its permit is free again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connection::Connection;
use crate::deadline::Deadline;

/// The connections of one next hop.
pub struct Pool {
    permits: Semaphore,
    idle: Arc<Mutex<IdleConnections>>,
    keep: Duration,
}

/// Idle connections, the one that has been idle longest first.
#[derive(Default)]
struct IdleConnections {
    connections: VecDeque<(Connection, Deadline)>,
    /// Whether a task runs that closes connections whose idle time has passed.
    has_closer: bool,
}

/// The right to use one connection.
pub struct Lease<'a> {
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    /// Allows at most `connections` connections at a time, and keeps idle ones for `keep`.
    pub fn new(connections: usize, keep: Duration) -> Self {
        Self {
            permits: Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)),
            idle: Arc::default(),
            keep,
        }
    }

    /// Waits for the right to use a connection, in the order of the requests; `None` at the deadline.
    ///
    /// Cancel safety: safe, but the place in the queue is lost.
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

    fn idle(&self) -> MutexGuard<'_, IdleConnections> {
        lock(&self.idle)
    }
}

impl Lease<'_> {
    /// Returns an idle connection that still looks usable: the most recently used one, because its server is least
    /// likely to have closed it.
    pub fn idle(&self) -> Option<Connection> {
        loop {
            let (mut connection, until) = self.pool.idle().connections.pop_back()?;
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
        let mut idle = self.pool.idle();
        idle.connections
            .push_back((connection, Deadline::after(keep)));
        if !idle.has_closer {
            idle.has_closer = true;
            tokio::spawn(close_expired(Arc::downgrade(&self.pool.idle)));
        }
    }
}

fn lock(idle: &Mutex<IdleConnections>) -> MutexGuard<'_, IdleConnections> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes connections whose idle time has passed. Ends when no connection is idle or the pool is dropped.
async fn close_expired(idle: std::sync::Weak<Mutex<IdleConnections>>) {
    loop {
        let (expired, next) = {
            let Some(idle) = idle.upgrade() else { return };
            let mut idle = lock(&idle);
            match idle.connections.front() {
                Some((_, until)) if until.passed() => (idle.connections.pop_front(), None),
                Some((_, until)) => (None, Some(*until)),
                None => {
                    idle.has_closer = false;
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
