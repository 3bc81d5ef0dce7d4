//! A tower layer from one async function, so that the code of a layer reads from top to bottom.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tower::Service;
use tower::layer::{Layer, layer_fn};

use super::Call;
use crate::scan::engine::{Engine, EngineAnswer, ScanError};

/// Result of every layer below the report layer.
pub(super) type Outcome = Result<EngineAnswer, ScanError>;

/// The layers between a layer and the engine. This service is always ready: every wait is inside the call, where the deadline
/// bounds it.
pub(super) trait Next:
    Service<Call, Response = EngineAnswer, Error = ScanError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Next for S where
    S: Service<Call, Response = EngineAnswer, Error = ScanError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The layer that runs `work` with the call and the inner layers.
pub(super) fn around<S, F>(work: F) -> impl Layer<S, Service = Around<S, F>> + Clone
where
    F: Clone,
{
    layer_fn(move |next| Around {
        next,
        work: work.clone(),
    })
}

/// The service of [`around`].
#[derive(Clone)]
pub(super) struct Around<S, F> {
    next: S,
    work: F,
}

impl<S, F, Fut> Service<Call> for Around<S, F>
where
    S: Next,
    F: Fn(Call, S) -> Fut,
    Fut: Future<Output = Outcome>,
{
    type Response = EngineAnswer;
    type Error = ScanError;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ScanError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Fut {
        (self.work)(call, self.next.clone())
    }
}

/// The replicas of the engine as a service; the call names the replica.
#[derive(Debug, Clone)]
pub(super) struct Innermost {
    engines: Arc<[Arc<dyn Engine>]>,
}

impl Innermost {
    pub(super) fn new(engines: &[Arc<dyn Engine>]) -> Self {
        Self {
            engines: engines.into(),
        }
    }
}

impl Service<Call> for Innermost {
    type Response = EngineAnswer;
    type Error = ScanError;
    type Future = BoxFuture<'static, Outcome>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ScanError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        match self.engines.get(call.replica) {
            Some(engine) => engine.clone().scan(call.sample),
            None => Box::pin(std::future::ready(Err(ScanError::Stopping))),
        }
    }
}
