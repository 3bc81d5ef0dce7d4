//! Interceptors between the relay and the store: people make and remove them there with the command line, and find there
//! what the learner has made and how often each has matched.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Pipeline, events};
use crate::incident::{Incident, Kind, Subject};
use crate::intercept::{Interceptor, Origin};
use crate::store::{Interceptors, StoreError, StoredInterceptor};

/// Hits are written down so often at most.
const HITS: Duration = Duration::from_secs(5);

/// What the relay knows of the store's interceptors.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// The store's version when it was read last.
    known: Option<u64>,
    /// By id: the version of each, and what it was.
    stored: HashMap<String, (u64, Interceptor)>,
    written: Option<Instant>,
}

impl Pipeline {
    /// Takes up what has changed in the store, then writes what has changed here.
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
            let is_new = before.remove(&stored.id).is_none();
            let mut interception = self.suspicion.lock();
            let is_here = interception.list().any(|i| i.id == stored.id);
            if !is_here {
                interception.add(interceptor.clone());
            }
            drop(interception);
            if is_new && !is_here {
                self.incidents.record(made(&interceptor));
            }
            exchange
                .stored
                .insert(stored.id, (stored.version, interceptor));
        }
        // What is not there any more was removed by a person.
        for (id, _) in before {
            if let Some(incident) = self.suspicion.lock().remove(&id) {
                self.incidents.record(incident);
            }
        }
    }

    async fn write_down(&self, exchange: &mut Exchange) -> Result<(), StoreError> {
        let now = Instant::now();
        let counts = exchange.written.is_none_or(|at| now >= at + HITS);
        let here: Vec<Interceptor> = self.suspicion.lock().list().cloned().collect();
        let mut gone = exchange.stored.keys().cloned().collect::<Vec<_>>();
        gone.retain(|id| here.iter().all(|i| i.id != *id));
        for id in gone {
            exchange.stored.remove(&id);
            self.store.drop_interceptor(id, None).await?;
        }
        for interceptor in here {
            let stored = exchange.stored.get(&interceptor.id);
            let version = stored.map_or(0, |(version, _)| *version);
            let changed = stored.is_none_or(|(_, was)| was.action != interceptor.action);
            let counted = stored.is_some_and(|(_, was)| was.hits != interceptor.hits);
            if !(changed || counts && counted) {
                continue;
            }
            let body = serde_json::to_string(&interceptor)
                .map_err(|error| StoreError::Broken(error.to_string()))?;
            let id = interceptor.id.clone();
            let kept = self
                .store
                .keep_interceptor(StoredInterceptor { id, version, body }, None);
            // None: a person was there before; what that did is read the next time.
            if let Some(version) = kept.await? {
                let id = interceptor.id.clone();
                exchange.stored.insert(id, (version, interceptor));
            }
        }
        if counts {
            exchange.written = Some(now);
        }
        Ok(())
    }
}

fn made(interceptor: &Interceptor) -> Incident {
    let subject = Subject::Interceptor(interceptor.id.clone());
    let by = match &interceptor.origin {
        Origin::Person { who, .. } => who.as_str(),
        Origin::Learned { .. } => "the learner, before a restart",
    };
    let (action, pattern) = (&interceptor.action, &interceptor.pattern);
    let summary = format!("{subject} made by {by}: {action} for {pattern}");
    Incident::new(Kind::InterceptorMade, subject, summary)
}
