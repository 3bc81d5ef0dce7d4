//! Exchange of interceptors between the relay and the store. With the command line, people add and remove interceptors in the
//! store, and list there the learned interceptors and how often each interceptor has matched.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Pipeline, events};
use crate::deadline::wall_clock;
use crate::incident::{Incident, Kind, Subject};
use crate::intercept::{Interceptor, Origin};
use crate::store::{Cause, Filter, Interceptors, Lane, StoreError, StoredInterceptor};

/// Minimum interval between writes of hit counts: 5 s. Each write is durable, and hits may be frequent.
const HITS_WRITE_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum time that an ended learned interceptor stays stored: 60 s, in which mail on its way into quarantine arrives there.
/// After that the interceptor stays as long as mail waits for it.
const ENDED_RETENTION_MIN: Duration = Duration::from_secs(60);
/// Maximum number of ended learned interceptors in the store; the oldest are removed first.
const ENDED_INTERCEPTORS_MAX: usize = 500;

/// The state of the store's interceptors as the relay last read or wrote it.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// The store's version at the last read.
    known: Option<u64>,
    /// The version and content of each interceptor, by id.
    stored: HashMap<String, (u64, Interceptor)>,
    written: Option<Instant>,
    /// The ended interceptor that was checked last for waiting mail.
    looked_after: String,
}

impl Pipeline {
    /// Loads changes from the store, then writes changes of the relay.
    pub(super) async fn exchange_interceptors(&self, exchange: &mut Exchange) {
        let done = async {
            if let Some(read) = self.store.interceptors(exchange.known).await? {
                self.take_up(exchange, read);
            }
            self.write_down(exchange).await
        };
        if let Err(error) = done.await {
            events::lane_failed("interceptors", &error);
        }
    }

    fn take_up(&self, exchange: &mut Exchange, read: Interceptors) {
        exchange.known = Some(read.version);
        let mut before = std::mem::take(&mut exchange.stored);
        for stored in read.all {
            let Ok(interceptor) = serde_json::from_str::<Interceptor>(&stored.body) else {
                tracing::error!(
                    id = stored.id,
                    "a stored interceptor cannot be read; remove it"
                );
                continue;
            };
            let known = before.remove(&stored.id);
            // An unchanged interceptor that is no longer in force has ended since, and its end is not written yet.
            let is_new = known.is_none_or(|(version, _)| version != stored.version);
            let mut interception = self.interception.lock();
            let is_here = interception.list().any(|i| i.id == stored.id);
            if is_new && !is_here {
                interception.add(Instant::now(), interceptor.clone());
            }
            drop(interception);
            if is_new && !is_here && !has_ended(&interceptor) {
                self.incidents.record(made(&interceptor));
            }
            exchange
                .stored
                .insert(stored.id, (stored.version, interceptor));
        }
        // A person has removed the interceptors that are no longer in the store.
        for (id, (_, was)) in before {
            if let Some(incident) = self.interception.lock().remove(&id) {
                self.incidents.record(incident);
                // The end is written, so that the held mail is released also after a restart.
                if was.is_learned() {
                    exchange.stored.insert(id, (0, was));
                }
            }
        }
    }

    async fn write_down(&self, exchange: &mut Exchange) -> Result<(), StoreError> {
        let now = Instant::now();
        let counts = exchange
            .written
            .is_none_or(|at| now >= at + HITS_WRITE_INTERVAL);
        let here: Vec<Interceptor> = self.interception.lock().list().cloned().collect();
        let mut gone = exchange.stored.keys().cloned().collect::<Vec<_>>();
        gone.retain(|id| here.iter().all(|i| i.id != *id));
        self.write_ends(exchange, gone, counts).await?;
        for interceptor in here {
            let stored = exchange.stored.get(&interceptor.id);
            let version = stored.map_or(0, |(version, _)| *version);
            let changed = stored.is_none_or(|(_, was)| {
                was.action != interceptor.action || was.origin != interceptor.origin
            });
            let counted = stored.is_some_and(|(_, was)| was.hits != interceptor.hits);
            if !(changed || counts && counted) {
                continue;
            }
            self.write_one(exchange, version, interceptor).await?;
        }
        if counts {
            exchange.written = Some(now);
        }
        Ok(())
    }

    async fn write_one(
        &self,
        exchange: &mut Exchange,
        version: u64,
        interceptor: Interceptor,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_string(&interceptor)
            .map_err(|error| StoreError::Broken(error.to_string()))?;
        let id = interceptor.id.clone();
        let kept = self
            .store
            .keep_interceptor(StoredInterceptor { id, version, body }, None);
        // `None`: a person changed the interceptor first; the next read returns that change.
        if let Some(version) = kept.await? {
            let id = interceptor.id.clone();
            exchange.stored.insert(id, (version, interceptor));
        }
        Ok(())
    }

    /// Removes interceptors that are no longer in force from the store. A learned one is first marked as ended, and stays while
    /// mail waits for it; otherwise, after a restart, its held mail would stay in quarantine.
    async fn write_ends(
        &self,
        exchange: &mut Exchange,
        mut gone: Vec<String>,
        look: bool,
    ) -> Result<(), StoreError> {
        gone.sort_unstable();
        let mut ended = Vec::new();
        for id in gone {
            match exchange.stored.get(&id).cloned() {
                Some((_, was)) if has_ended(&was) => ended.push(id),
                Some((version, was)) if was.is_learned() => {
                    let expires = Some(wall_clock());
                    let now = Interceptor { expires, ..was };
                    self.write_one(exchange, version, now).await?;
                }
                _ => self.forget(exchange, id).await?,
            }
        }
        // An id begins with the time of creation, so the oldest come first.
        let surplus = ended.len().saturating_sub(ENDED_INTERCEPTORS_MAX);
        for id in ended.drain(..surplus) {
            self.forget(exchange, id).await?;
        }
        let next = ended.iter().find(|id| **id > exchange.looked_after);
        let Some(id) = next.or(ended.first()).filter(|_| look).cloned() else {
            return Ok(());
        };
        exchange.looked_after.clone_from(&id);
        let is_left =
            |(_, was): &(u64, Interceptor)| was.has_expired(wall_clock() - ENDED_RETENTION_MIN);
        if exchange.stored.get(&id).is_some_and(is_left) && !self.keeps_waiting(&id).await? {
            self.forget(exchange, id).await?;
        }
        Ok(())
    }

    async fn forget(&self, exchange: &mut Exchange, id: String) -> Result<(), StoreError> {
        exchange.stored.remove(&id);
        self.store.drop_interceptor(id, None).await?;
        Ok(())
    }

    /// Whether mail waits for the interceptor to end.
    async fn keeps_waiting(&self, id: &str) -> Result<bool, StoreError> {
        for lane in [Lane::Held, Lane::Scan, Lane::Rescan] {
            let waiting = Filter {
                lanes: vec![lane],
                cause: Some(Cause::Interceptor(id.to_owned())),
                limit: 1,
                ..Filter::default()
            };
            if !self.store.search(waiting).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the interceptor was learned and has ended, so that its held mail may be released.
fn has_ended(interceptor: &Interceptor) -> bool {
    interceptor.is_learned() && interceptor.has_expired(wall_clock())
}

fn made(interceptor: &Interceptor) -> Incident {
    let subject = Subject::Interceptor(interceptor.id.clone());
    let by = match &interceptor.origin {
        Origin::Person { who, .. } => who.as_str(),
        Origin::Learned { .. } => "the learner, before a restart",
    };
    let (action, pattern) = (&interceptor.action, &interceptor.pattern);
    let summary = format!("{subject} made by {by}: {action} for {pattern}");
    let incident = Incident::new(Kind::InterceptorMade, subject, summary);
    let incident = match &interceptor.origin {
        Origin::Learned { engine, .. } if !engine.is_empty() => {
            incident.with(Incident::ENGINE, engine)
        }
        Origin::Learned { .. } | Origin::Person { .. } => incident,
    };
    match interceptor.dry_run {
        true => incident.with("mode", "shadow: it only counts"),
        false => incident,
    }
}
