//! The number of sessions, limited in total and for each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts sessions, or the sessions that do something expensive. Limits their number in total and for each client.
#[derive(Debug)]
pub struct Sessions {
    all: Arc<Semaphore>,
    limit: usize,
    by_client: Mutex<HashMap<IpAddr, usize>>,
}

impl Sessions {
    /// Allows at most `limit` sessions at a time.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            all: Arc::new(Semaphore::new(limit)),
            limit,
            by_client: Mutex::new(HashMap::new()),
        })
    }

    /// Current number of sessions.
    pub fn open(&self) -> usize {
        self.limit - self.all.available_permits()
    }

    /// Sessions that one client may have, as a multiple of the free sessions: 4, so that a client alone gets 80 % and
    /// leaves room for others (the rule of [`super::admission`]).
    const CLIENT_SHARE_MULTIPLE: usize = 4;

    /// A place for one more session of `client`; `None` if this client or all clients together have too many.
    pub(super) fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        per_client: usize,
    ) -> Option<SessionPlace> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        self.enter(client, per_client).then(|| SessionPlace {
            sessions: self.clone(),
            client,
            _permit: permit,
        })
    }

    /// Counts a session that already has its permit. The rule counts that permit as free.
    fn enter(&self, client: IpAddr, per_client: usize) -> bool {
        let free = self.all.available_permits() + 1;
        let per_client = per_client.min(free.saturating_mul(Self::CLIENT_SHARE_MULTIPLE));
        let mut clients = self.clients();
        let count = clients.get(&client).copied().unwrap_or_default();
        let admitted = count < per_client;
        if admitted {
            clients.insert(client, count + 1);
        }
        admitted
    }

    fn leave(&self, client: IpAddr) {
        let mut clients = self.clients();
        match clients.get_mut(&client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                clients.remove(&client);
            }
        }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one session, freed on drop.
pub(super) struct SessionPlace {
    sessions: Arc<Sessions>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl SessionPlace {
    /// Counts the session for the client that the peer has named; false if that client already has too many sessions.
    pub(super) fn pass_to(&mut self, client: IpAddr, per_client: usize) -> bool {
        let admitted = client == self.client || self.sessions.enter(client, per_client);
        if admitted && client != self.client {
            self.sessions.leave(self.client);
            self.client = client;
        }
        admitted
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        self.sessions.leave(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that opens as many sessions as it can leaves a fifth of them to others, and so does each further client.
    #[test]
    fn no_client_takes_all_sessions() {
        let sessions = Sessions::new(100);
        let open = |number: u8, wanted: usize| -> Vec<SessionPlace> {
            let client = IpAddr::from([192, 0, 2, number]);
            let places = (0..wanted).map_while(|_| sessions.admit(client, 1000));
            places.collect()
        };
        let (first, second) = (open(1, 1000), open(2, 1000));
        assert_eq!((first.len(), second.len()), (80, 16));
        assert_eq!(open(3, 1).len(), 1);
        drop(first);
        assert_eq!(open(3, 50).len(), 50);
    }

    /// A session that a proxy passes on counts for the client behind the proxy.
    #[test]
    fn a_proxied_session_counts_for_its_client() {
        let sessions = Sessions::new(10);
        let (proxy, client) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let passed = || {
            let mut place = sessions.admit(proxy, 1000)?;
            place.pass_to(client, 1000).then_some(place)
        };
        let places: Vec<SessionPlace> = (0..20).map_while(|_| passed()).collect();
        assert_eq!(places.len(), 8);
    }
}
