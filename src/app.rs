//! The composition root: builds a running relay from a configuration, and applies another configuration to a running relay.
//!
//! Order of start: store (recovery first), path, lanes, listeners, admin, so that the relay accepts no mail before it can keep
//! mail. Order of stop: listeners and idle sessions, transactions in flight, work after 250, lanes, store. Mail that is not
//! finished within `relay.drain_timeout` is durable already, or its sender has had no reply. No code here waits for a file on
//! the runtime's threads or without a deadline, so the relay can end while a file hangs.

mod reload;
mod signals;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Fuse, FusedFuture as _, join3};
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{
    self, AdminError, Control, EngineAsked, ListenerStatus, Status, Stored, Tested,
};
use crate::config::{self, Config};
use crate::deadline::Deadline;
use crate::delivery::Delivery;
use crate::incident::{self, Incident, Subject};
use crate::listener::{self, Admission, Listener, ListenerError, Prepared, Sessions, Shared};
use crate::pipeline::{Generation, Keeper, Lanes, Pipeline, Watch};
use crate::policy::Policy;
use crate::scan::{Guarded, Health, Passed, Scanner, engine};
use crate::store::history::{self, History};
use crate::store::incidents::{self, Incidents};
use crate::store::sqlite::{Role, SqliteStore};
use crate::store::{Recovery, Store, StoreError};
pub use reload::RELOAD_DURATION_MAX;
use reload::{Files, Next, Readings};
use signals::{Asked, Signals};

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
    config: Mutex<Config>,
    store: Arc<SqliteStore>,
    history: Arc<History>,
    incidents: Arc<Incidents>,
    pipeline: Arc<Pipeline>,
    keeper: Arc<Keeper>,
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
    let (config, built) = blocking(move || {
        let built = generation(&config, None).map_err(StartError::Parts);
        let built = built.and_then(|generation| Ok((generation, prepare(&config)?)));
        (config, built)
    })
    .await?;
    let (generation, prepared) = built?;
    generation.scanner.watch();
    let (store, recovery) = SqliteStore::open(&config.store, Role::Relay)
        .await
        .map_err(StartError::Store)?;
    let (history, incidents) = open_logs(config.store.clone()).await?;
    let in_flight = config.limits.in_flight_bytes;
    let pipeline = Pipeline::new(
        generation,
        store.clone(),
        (history.clone(), incidents.clone()),
        config.intercept.clone(),
        in_flight,
    );
    let (kept, path_of_store) = (pipeline.clone(), config.store.path.clone());
    let keeper = blocking(move || Keeper::open(kept, &path_of_store)).await?;

    let shared = shared(&config, &pipeline);
    let closing = shared.closing.clone();
    let lanes = start_tasks(&shared, &keeper, &incidents).await;
    let started = start_listeners(prepared, &shared)?;
    let admin_settings = config.admin.clone();
    let core = Arc::new(Core {
        path,
        config: Mutex::new(config),
        store,
        history,
        incidents,
        pipeline,
        keeper,
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
    keeper: &Arc<Keeper>,
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

/// Runs work that waits for files on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| StartError::Parts(vec![error.to_string()]))
}

/// The problems that would prevent a start with a configuration without syntax errors, for example rule files that do not
/// compile or certificates that cannot be used. Does not bind addresses and does not open the store. Blocks on the disk.
pub fn check(config: &Config) -> Vec<String> {
    let mut problems = generation(config, None).err().unwrap_or_default();
    if let Err(error) = prepare(config) {
        problems.push(error.to_string());
    }
    problems
}

/// Advice about settings that are valid, but do not fit the configuration of the engines on this machine. Blocks on the disk.
pub fn advice(config: &Config) -> Vec<String> {
    config.engines.iter().flat_map(engine::advice).collect()
}

/// Reads the certificates and users of all listeners.
fn prepare(config: &Config) -> Result<Vec<Prepared>, ListenerError> {
    let limits = Arc::new(config.limits.clone());
    let hostname: Arc<str> = config.relay.hostname.as_str().into();
    let listeners = config.listeners.iter().cloned();
    let prepared = listeners.map(|l| Listener::prepare(l, limits.clone(), hostname.clone()));
    prepared.collect()
}

/// Builds the generation of a configuration, with the knowledge of the guards of the generation before. Returns all problems
/// at once.
fn generation(config: &Config, before: Option<&Generation>) -> Result<Generation, Vec<String>> {
    let mut problems = Vec::new();
    let scanner = Scanner::new(config.engines.clone(), before.map(|g| &g.scanner))
        .map_err(|errors| problems.extend(errors.iter().map(ToString::to_string)));
    let delivery = Delivery::new(config.next_hops.clone(), before.map(|g| &g.delivery))
        .map_err(|error| problems.push(error.to_string()));
    match (scanner, delivery) {
        (Ok(scanner), Ok(delivery)) => Ok(Generation {
            config: config.version.clone(),
            hostname: config.relay.hostname.as_str().into(),
            scanner,
            policy: Policy::new(config.policy.clone(), config.version.clone()),
            delivery,
            budget: config.budget.clone(),
            retention: config.quarantine.retention,
            quarantine: config.quarantine.max_bytes,
        }),
        _ => Err(problems),
    }
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
        self.core.reload().await
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
        let (history, incidents) = (self.core.history.close(), self.core.incidents.close());
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
        tracing::info!(sessions, work, lanes, stores, "drained");
        sessions && work && lanes && stores
    }
}

impl Core {
    fn lock(&self) -> std::sync::MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, next: Next) -> Result<Vec<String>, Vec<String>> {
        let mut config = self.lock();
        let restart = config::settings_that_need_restart(&config, &next.config);
        if !restart.is_empty() {
            let needs = |line: &String| format!("{line} (needs a restart)");
            return Err(restart.iter().map(needs).collect());
        }
        let difference = config::diff(&config, &next.config);
        next.generation.scanner.watch();
        self.pipeline
            .replace(next.generation, next.config.intercept.clone());
        for (listener, prepared) in self.listeners.iter().zip(next.listeners) {
            listener.apply(prepared);
        }
        self.admission.apply(Arc::new(next.config.limits.clone()));
        *config = next.config;
        Ok(difference)
    }
}

impl Control for Core {
    async fn status(&self) -> Status {
        let config = self.lock().clone();
        let held = self.store.held(config.quarantine.max_bytes);
        let stored = Stored::from(self.store.stats(), held).await;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: config.relay.hostname.to_string(),
            config: config.version.to_string(),
            config_file: self.path.clone(),
            started: self.started,
            draining: self.closing.is_cancelled(),
            not_ready: self.ready().err(),
            listeners: config
                .listeners
                .iter()
                .zip(&self.listeners)
                .map(|(settings, listener)| ListenerStatus {
                    name: settings.name.to_string(),
                    addresses: listener.addresses().to_vec(),
                })
                .collect(),
            sessions: self.sessions.open() as u64,
            memory_available: self.pipeline.memory().available(),
            stored,
            engines: self.engines(),
            next_hops: self.pipeline.generation().delivery.status(),
            recovery: self.recovery.clone(),
        }
    }

    fn engines(&self) -> Vec<Health> {
        let generation = self.pipeline.generation();
        let engines = generation.scanner.engines().iter();
        engines.map(Guarded::health).collect()
    }

    fn drain_engine(&self, asked: &EngineAsked, drained: bool) -> Result<(), String> {
        let generation = self.pipeline.generation();
        let engine = named(&generation, asked)?;
        match engine.drain(asked.replica.as_deref(), drained) {
            Some(true) => {}
            Some(false) if drained => return Ok(()),
            Some(false) => return Err(not_drained(&engine.health())),
            None => {
                let replica = asked.replica.as_deref().unwrap_or_default();
                return Err(format!(
                    "engine {} has no replica {replica}; see: spillway engine show NAME",
                    asked.engine
                ));
            }
        }
        let subject = Subject::Engine {
            name: asked.engine.clone(),
            replica: asked.replica.clone(),
        };
        let (kind, what) = match drained {
            true => (incident::Kind::Drained, "was drained"),
            false => (incident::Kind::Resumed, "was resumed"),
        };
        let summary = format!("{subject} {what} by {}: {}", asked.who, asked.reason);
        self.incidents.record(Incident::new(kind, subject, summary));
        Ok(())
    }

    async fn test_engine(&self, asked: &EngineAsked) -> Result<Vec<Tested>, String> {
        let generation = self.pipeline.generation();
        let shown = named(&generation, asked)?.test().await;
        let tested = |(replica, result)| {
            let (wrong, answered) = match result {
                Ok(Passed::Pair) => (None, None),
                Ok(Passed::Answered(names)) => (None, Some(names)),
                Err(wrong) => (Some(wrong), None),
            };
            Tested {
                replica,
                wrong,
                answered,
            }
        };
        Ok(shown.into_iter().map(tested).collect())
    }

    fn ready(&self) -> Result<(), String> {
        if self.closing.is_cancelled() {
            return Err("draining".to_owned());
        }
        self.store.accepts().map_err(|error| error.to_string())
    }

    async fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        let before = self.pipeline.generation();
        let build = move |files| Next::build(files, &before);
        let next = self.readings.read(self.path.clone(), Files::read, build);
        let next = next.await;
        let applied = next.and_then(|next| self.apply(next));
        match &applied {
            Ok(difference) => tracing::info!(?difference, "reloaded"),
            Err(problems) => tracing::error!(?problems, "reload refused, nothing changed"),
        }
        applied
    }

    fn drain(&self) {
        self.drain.cancel();
    }

    fn wake(&self) {
        self.pipeline.wake();
    }
}

fn named<'a>(generation: &'a Generation, asked: &EngineAsked) -> Result<&'a Guarded, String> {
    let mut engines = generation.scanner.engines().iter();
    let named = engines.find(|engine| *engine.settings().name == *asked.engine);
    named.ok_or_else(|| {
        format!(
            "there is no engine {:?}; see: spillway engine list",
            asked.engine
        )
    })
}

/// Runs a relay until a signal or a drain request ends it: SIGTERM, SIGINT and SIGQUIT drain, SIGHUP reloads. Notifies systemd
/// of its state. Returns whether all mail in flight has finished. Threads that hang at files may be left, so end the process
/// without waiting for them.
pub async fn run(config: Config, path: Option<PathBuf>) -> Result<bool, StartError> {
    let signals = Signals::new();
    let mut signals = signals.map_err(|error| {
        StartError::Parts(vec![format!("cannot install signal handlers: {error}")])
    })?;
    let mut starting = pin!(start(config, path));
    let running = loop {
        tokio::select! {
            running = &mut starting => break running?,
            asked = signals.next() => match asked {
                Asked::Reload => tracing::warn!("SIGHUP ignored: the relay is still starting"),
                Asked::Stop => {
                    tracing::info!("a signal ended the relay before it had started");
                    return Ok(true);
                }
            },
        }
    };
    tell_systemd(&[NotifyState::Ready]);
    until_stopped(&running, &mut signals).await;
    tell_systemd(&[NotifyState::Stopping]);
    Ok(running.drain().await)
}

/// Returns when a signal or a command asks the relay to end, also during a reload.
async fn until_stopped(running: &Running, signals: &mut Signals) {
    let mut reload = pin!(Fuse::terminated());
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return,
                Asked::Reload if reload.is_terminated() => reload.set(told_reload(running).fuse()),
                Asked::Reload => tracing::warn!("SIGHUP ignored: a reload is under way"),
            },
            () = &mut reload => {}
            () = running.drain_requested() => return,
        }
    }
}

/// Reloads, and notifies systemd. The result is logged; with a problem nothing changes.
async fn told_reload(running: &Running) {
    let reloading = NotifyState::monotonic_usec_now().map(|now| [NotifyState::Reloading, now]);
    tell_systemd(reloading.as_ref().map_or(&[], |states| states));
    let _ = running.reload().await;
    tell_systemd(&[NotifyState::Ready]);
}

/// The error for a resume of an engine that is not drained: its state, and what the administrator can do.
fn not_drained(health: &Health) -> String {
    let (engine, states) = (&health.engine, health.states());
    let why = match health.is_well() {
        true => "it gets all its mail".to_owned(),
        false => format!(
            "its state is {states}. The relay tries it again by itself, and its mail comes back step by step (ramp) once it \
             works; `spillway engine test {engine}` shows what is wrong"
        ),
    };
    format!("engine {engine} is not drained; {why}")
}

/// Notifies systemd; does nothing if no service manager listens.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
