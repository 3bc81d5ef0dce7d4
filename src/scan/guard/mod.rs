//! What stands between a message and an engine, in one order, with the reason for each place.
//!
//! Every layer is one async function in its own file; [`guard`] is the only place that knows their order.

mod attempt;
mod layer;
mod report;
mod retry;
mod size;
mod slots;
mod time;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Semaphore;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

use crate::scan::Settings;
use crate::scan::engine::{Engine, Sample};
use crate::verdict::Report;
use layer::around;

/// One call of a guarded engine on its way through the layers.
#[derive(Debug, Clone)]
pub struct Call {
    sample: Sample,
    progress: Arc<Progress>,
}

/// How far a call has got, for the report that must be written whatever becomes of the call.
#[derive(Debug, Default)]
struct Progress {
    attempts: AtomicU32,
}

impl Progress {
    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }
}

/// Puts the layers around an engine. From the outside in: what is further out sees everything that happens further in.
pub fn guard(engine: Arc<dyn Engine>, settings: Arc<Settings>) -> Guarded {
    let slots = Arc::new(Semaphore::new(settings.slots.min(Semaphore::MAX_PERMITS)));
    let (max_size, attempts, timeout) = (settings.max_size, settings.attempts, settings.timeout);
    let name = settings.name.clone();
    let service = ServiceBuilder::new()
        // Outermost: whatever happens below, a panic and a call that ignores its deadline included, becomes exactly one
        // report. It runs the rest in a task of its own, so that a caller who goes away takes no slot with him.
        .layer(report::layer(settings.clone()))
        // Before any waiting: what the engine will not be given must not queue for it.
        .layer(around(move |call, next| size::gate(max_size, call, next)))
        // Outside everything that waits: slots, pauses and attempts together end at the deadline.
        .layer(around(time::cap))
        // Outside retry: a call holds its slot from first attempt to last, so that retries add no load to an engine
        // that is in trouble.
        .layer(around(move |call, next| {
            slots::enter(slots.clone(), call, next)
        }))
        // Outside the attempt's timeout: each attempt has its own.
        .layer(around(move |call, next| {
            retry::again(name.clone(), attempts, call, next)
        }))
        // Innermost: counts and bounds the one call that the engine sees.
        .layer(around(move |call, next| attempt::once(timeout, call, next)))
        .service(layer::Innermost::new(engine));
    Guarded {
        settings,
        service: BoxCloneSyncService::new(service),
    }
}

/// An engine behind its guard. Cloning shares it.
#[derive(Clone)]
pub struct Guarded {
    settings: Arc<Settings>,
    service: BoxCloneSyncService<Sample, Report, Infallible>,
}

impl Guarded {
    /// The engine's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The engine's one report about the sample, at the sample's deadline at the latest.
    ///
    /// Cancel safety: safe; the call goes on until its deadline and is then forgotten.
    pub async fn scan(&self, sample: Sample) -> Report {
        match self.service.clone().oneshot(sample).await {
            Ok(report) => report,
            Err(never) => match never {},
        }
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guarded").field(&self.settings).finish()
    }
}
