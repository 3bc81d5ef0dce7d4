//! The composition root: builds a running relay from a configuration, and applies another configuration to a running relay.
//!
//! Order of start: store (recovery first), path, lanes, listeners, admin, so that the relay accepts no mail before it can keep
//! mail. Order of stop: listeners and idle sessions, transactions in flight, work after 250, lanes, store. Mail that is not
//! finished within `relay.drain_timeout` is durable already, or its sender has had no reply. No code here waits for a file on
//! the runtime's threads or without a deadline, so the relay can end while a file hangs.

mod control;
mod parts;
mod reload;
mod service;
mod signals;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join3;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::parts::{advice, check};
use self::parts::{generation, notify_ways, prepare};
use self::reload::Readings;
pub use self::reload::{RELOAD_DURATION_MAX, is_same_file};
pub use self::service::run;
use crate::admin::{self, AdminError, Control as _};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::listener::{self, Admission, Listener, ListenerError, Prepared, Sessions, Shared};
use crate::notify::{Notifier, Prepared as Way};
use crate::pipeline::{Drains, Generation, Keeper, Lanes, Pipeline, Watch};
use crate::store::history::{self, History};
use crate::store::incidents::{self, Incidents};
use crate::store::sqlite::{Role, SqliteStore};
use crate::store::{Recovery, StoreError};
use crate::telemetry::{self, metrics::Names};

/// Time for the last writes and for closing the stores at the end: 10 s. A disk that needs longer hangs. These writes hold no
/// mail that was answered 250: that mail is durable already.
const STORES_CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why the relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error("{0}")]
    Store(#[source] StoreError),
    /// A part cannot be built from its settings.
    #[error("{}", .0.join("\n"))]
    Parts(Vec<String>),
    /// A listener cannot start.
    #[error("{0}")]
    Listener(#[from] ListenerError),
    /// The admin sockets cannot be bound.
    #[error("{0}")]
    Admin(#[from] AdminError),
}

/// A running relay.
pub struct Running {
    core: Arc<Core>,
    listeners: TaskTracker,
    lanes: TaskTracker,
}

/// The state that the admin surfaces and the signal handlers use.
struct Core {
    path: Option<PathBuf>,
    config: Mutex<Arc<Config>>,
    store: Arc<SqliteStore>,
    history: Arc<History>,
    incidents: Arc<Incidents>,
    pipeline: Arc<Pipeline>,
    keeper: Arc<Keeper>,
    drains: Arc<Drains>,
    notifier: Arc<Notifier>,
    sessions: Arc<Sessions>,
    admission: Arc<Admission>,
    listeners: Vec<Listener>,
    recovery: Recovery,
    started: Timestamp,
    readings: Readings,
    /// Cancelled when the relay stops: it accepts no session, and idle sessions end.
    closing: CancellationToken,
    /// Cancelled when a command asks for a drain.
    drain: CancellationToken,
}

/// Starts a relay. `path` is the file of `config`, which a reload reads again.
///
/// Cancel safety: tasks that have begun continue until the runtime ends. No mail is answered 250 that is not kept.
pub async fn start(config: Config, path: Option<PathBuf>) -> Result<Running, StartError> {
    let (built, config) = blocking(move || (build(&config), config)).await?;
    let (generation, ways, prepared) = built?;
    generation.scanner.watch();
    telemetry::metrics::register(&metric_names(&config), &Names::default());
    let (store, recovery) = SqliteStore::open(&config.store, Role::Relay)
        .await
        .map_err(StartError::Store)?;
    let (history, incidents) = open_logs(config.store.clone()).await?;
    let notifier = Notifier::start(ways, &config.relay.hostname, &generation.delivery);
    tell_stories(&incidents, &notifier);
    let in_flight = config.limits.in_flight_bytes;
    let pipeline = Pipeline::new(
        generation,
        store.clone(),
        (history.clone(), incidents.clone()),
        config.intercept.clone(),
        in_flight,
    );
    let (keeper, drains) = open_kept(&pipeline, &config).await?;
    let shared = shared(&config, &pipeline);
    let closing = shared.closing.clone();
    let lanes = start_tasks(&shared, (&keeper, &drains), &incidents).await;
    let started = start_listeners(prepared, &shared)?;
    let admin_settings = config.admin.clone();
    let core = Arc::new(Core {
        // Commands that ask for it have another working folder.
        path: path.map(|path| std::path::absolute(&path).unwrap_or(path)),
        config: Mutex::new(Arc::new(config)),
        store,
        history,
        incidents,
        pipeline,
        keeper,
        drains,
        notifier,
        sessions: shared.sessions,
        admission: shared.admission,
        listeners: started,
        recovery,
        started: Timestamp::now(),
        readings: Readings::default(),
        closing: closing.clone(),
        drain: CancellationToken::new(),
    });
    if let Err(error) = admin::serve(&admin_settings, core.clone(), &lanes, closing.clone()).await {
        closing.cancel();
        return Err(error.into());
    }
    Ok(Running {
        core,
        listeners: shared.tasks,
        lanes,
    })
}

/// Builds the parts that need files. Blocks.
fn build(config: &Config) -> Result<(Generation, Vec<Way>, Vec<Prepared>), StartError> {
    let generation = generation(config, None).map_err(StartError::Parts)?;
    let ways = notify_ways(config).map_err(StartError::Parts)?;
    Ok((generation, ways, prepare(config)?))
}

/// Makes the ways tell of the stories, also of the ends of those that the last process has left open.
fn tell_stories(incidents: &Incidents, notifier: &Arc<Notifier>) {
    notifier.resume(&incidents.open_stories());
    incidents.listen(notifier.clone());
}

/// The parts that all listeners share.
fn shared(config: &Config, pipeline: &Arc<Pipeline>) -> Shared {
    let limits = Arc::new(config.limits.clone());
    Shared {
        pipeline: pipeline.clone(),
        sessions: Sessions::new(listener::descriptors::sessions(config.limits.sessions)),
        admission: Admission::new(pipeline.memory().clone(), limits),
        tasks: TaskTracker::new(),
        closing: CancellationToken::new(),
    }
}

/// Takes up what the last process kept: known senders, and the drains of engines.
async fn open_kept(
    pipeline: &Arc<Pipeline>,
    config: &Config,
) -> Result<(Arc<Keeper>, Arc<Drains>), StartError> {
    let (pipeline, store) = (pipeline.clone(), config.store.path.clone());
    blocking(move || {
        let drains = Drains::open(pipeline.clone(), &store);
        (Keeper::open(pipeline, &store), drains)
    })
    .await
}

async fn open_logs(
    settings: crate::store::Settings,
) -> Result<(Arc<History>, Arc<Incidents>), StartError> {
    let logs = blocking(move || {
        let history = History::open(&settings.path.join(history::FILE_NAME), settings.history)?;
        let incidents = settings.path.join(incidents::FILE_NAME);
        Ok((history, Incidents::open(&incidents, settings.incidents)?))
    });
    logs.await?.map_err(StartError::Store)
}

/// Starts the tasks that work beside the listeners. Stored interceptors are in force before the first task starts.
async fn start_tasks(
    shared: &Shared,
    (keeper, drains): (&Arc<Keeper>, &Arc<Drains>),
    incidents: &Arc<Incidents>,
) -> TaskTracker {
    let Shared {
        pipeline,
        admission,
        closing,
        ..
    } = shared;
    let tasks = TaskTracker::new();
    let watch = Watch::begin(pipeline.clone()).await;
    tasks.spawn(Lanes::new(pipeline.clone()).run(closing.clone()));
    tasks.spawn(watch.run(closing.clone()));
    tasks.spawn(pipeline.clone().watch_store(closing.clone()));
    tasks.spawn(pipeline.clone().recover(closing.clone()));
    tasks.spawn(keeper.clone().keep(closing.clone()));
    tasks.spawn(pipeline.clone().keep_measures(closing.clone()));
    tasks.spawn(drains.clone().keep(closing.clone()));
    let admission = admission.clone();
    tasks.spawn(admission.watch(pipeline.clone(), incidents.clone(), closing.clone()));
    tasks
}

/// Starts all listeners. If one of them cannot listen, all tasks end.
fn start_listeners(prepared: Vec<Prepared>, shared: &Shared) -> Result<Vec<Listener>, StartError> {
    let started = prepared
        .into_iter()
        .map(|prepared| Listener::start(prepared, shared));
    let started: Result<Vec<Listener>, _> = started.collect();
    started.map_err(|error| {
        shared.closing.cancel();
        error.into()
    })
}

/// The names that are values of labels in the metrics.
fn metric_names(config: &Config) -> Names {
    let engines = config.engines.iter().map(|engine| engine.name.to_string());
    let next_hops = config.next_hops.iter().map(|hop| hop.name.to_string());
    let listeners = config.listeners.iter().map(|l| l.name.to_string());
    let ways = config.notify.iter().map(|way| way.name.to_string());
    Names {
        engines: engines.collect(),
        next_hops: next_hops.collect(),
        listeners: listeners.collect(),
        notify_ways: ways.collect(),
    }
}

/// Runs work that waits for files on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| StartError::Parts(vec![error.to_string()]))
}

impl Running {
    /// The addresses of the listeners with their real ports, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.core
            .listeners
            .iter()
            .flat_map(|l| l.addresses().to_vec())
            .collect()
    }

    /// The findings of the start in the store.
    pub fn recovery(&self) -> &Recovery {
        &self.core.recovery
    }

    /// Resolves when a command asks for a drain over the control socket.
    ///
    /// Cancel safety: safe.
    pub async fn drain_requested(&self) {
        self.core.drain.cancelled().await;
    }

    /// Reads the configuration again. Returns the changes, or every problem; with a problem nothing changes.
    pub async fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        let reloaded = self.core.reload(None).await;
        reloaded.map(|reloaded| reloaded.changes)
    }

    /// The pipeline, for work beside the listeners.
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.core.pipeline
    }

    /// Stops accepting mail, waits at most `relay.drain_timeout` for the mail in flight, and closes the stores. Returns whether
    /// all of this ended in time.
    pub async fn drain(self) -> bool {
        let allowance = self.core.lock().relay.drain_timeout;
        let deadline = Deadline::after(allowance);
        tracing::info!(?allowance, "draining");
        self.core.closing.cancel();
        self.listeners.close();
        self.lanes.close();
        let sessions = deadline.run(self.listeners.wait()).await.is_ok();
        let work = self.core.pipeline.drained(deadline).await;
        let lanes = deadline.run(self.lanes.wait()).await.is_ok();
        let history = async {
            self.core.pipeline.look_around().await;
            self.core.pipeline.write_measures().await;
            self.core.history.close().await;
        };
        let incidents = self.core.incidents.close();
        // The keeper writes before the store closes: afterwards another relay may own the folder.
        let store = async {
            self.core.keeper.write().await;
            self.core.store.close().await;
        };
        let closed = join3(history, incidents, store);
        let stores = Deadline::after(STORES_CLOSE_TIMEOUT)
            .run(closed)
            .await
            .is_ok();
        // Last, because stories end when their log closes.
        self.core.notifier.drain().await;
        tracing::info!(sessions, work, lanes, stores, "drained");
        sessions && work && lanes && stores
    }
}

impl Core {
    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Config>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
