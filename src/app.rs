//! The composition root: a configuration becomes a running relay, and a running relay another configuration's.
//!
//! Order of start: store (recovery first), path, lanes, listeners, admin, so that nothing is accepted before it can be
//! kept. Order of stop: listeners and idle sessions, transactions in flight, work after 250, lanes, store. Whatever does
//! not end within `relay.drain_timeout` is durable already, or its sender has not been answered. Nothing here waits for a
//! file on the runtime's threads or without a deadline, so that the relay can be told to end whatever hangs.

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
pub use reload::LONGEST_RELOAD;
use reload::{Files, Next, Readings};
use signals::{Asked, Signals};

/// What is queued for the disk at the end is written, and the stores are closed, for so long; a disk that has not taken it
/// by then hangs. Nothing that was answered 250 is among it.
const CLOSING: Duration = Duration::from_secs(10);

/// Why the relay does not start.
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

/// What the admin surface and the signal handlers work on.
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
    /// Stop accepting; idle sessions end.
    closing: CancellationToken,
    /// Somebody asked for a drain.
    drain: CancellationToken,
}

/// Starts a relay. `path` is the file that `config` was read from, read again by a reload.
///
/// Cancel safety: what has begun by then goes on until the runtime ends; nothing is answered 250 that is not kept.
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

/// What all listeners share.
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
        let history = History::open(&settings.path.join(history::FILE), settings.history)?;
        let incidents = settings.path.join(incidents::FILE);
        Ok((history, Incidents::open(&incidents, settings.incidents)?))
    });
    logs.await?.map_err(StartError::Store)
}

/// Starts the tasks that work beside the listeners. Stored interceptors are in force before the first of them.
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

/// Starts all listeners. If one of them cannot listen, all tasks are told to end.
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

/// Runs what waits for files on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| StartError::Parts(vec![error.to_string()]))
}

/// Everything that would keep a configuration that reads well from starting, short of binding its addresses and opening
/// its store: rule files that do not compile, certificates that cannot be used. Blocks on the disk.
pub fn check(config: &Config) -> Vec<String> {
    let mut problems = generation(config, None).err().unwrap_or_default();
    if let Err(error) = prepare(config) {
        problems.push(error.to_string());
    }
    problems
}

/// What is not wrong, but does not fit what can be learnt about the engines on this machine. Blocks on the disk.
pub fn advice(config: &Config) -> Vec<String> {
    config.engines.iter().flat_map(engine::advice).collect()
}

/// The settings of all listeners, with their certificates and users read.
fn prepare(config: &Config) -> Result<Vec<Prepared>, ListenerError> {
    let limits = Arc::new(config.limits.clone());
    let hostname: Arc<str> = config.relay.hostname.as_str().into();
    let listeners = config.listeners.iter().cloned();
    let prepared = listeners.map(|l| Listener::prepare(l, limits.clone(), hostname.clone()));
    prepared.collect()
}

/// Builds what one configuration decides, with what the guards of the one before know; all problems at once.
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
    /// The addresses it listens on, ports resolved, in the order of the configuration.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.core
            .listeners
            .iter()
            .flat_map(|l| l.addresses().to_vec())
            .collect()
    }

    /// What the start-up found in the store.
    pub fn recovery(&self) -> &Recovery {
        &self.core.recovery
    }

    /// Resolves when somebody asked for a drain over the control socket.
    ///
    /// Cancel safety: safe.
    pub async fn drain_requested(&self) {
        self.core.drain.cancelled().await;
    }

    /// Reads the configuration again; the difference, or every problem. A bad file changes nothing.
    pub async fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        self.core.reload().await
    }

    /// The path, for work beside the listeners.
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.core.pipeline
    }

    /// Accepts nothing new, lets what is in flight finish, at most `relay.drain_timeout`, and closes the stores; true if
    /// all did.
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
        // While the store is still ours.
        let store = async {
            self.core.keeper.write().await;
            self.core.store.close().await;
        };
        let closed = join3(history, incidents, store);
        let stores = Deadline::after(CLOSING).run(closed).await.is_ok();
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
                return Err(format!("engine {} has no replica {replica}", asked.engine));
            }
        }
        let subject = Subject::Engine {
            name: asked.engine.clone(),
            replica: asked.replica.clone(),
        };
        let (kind, what) = match drained {
            true => (incident::Kind::Drained, "was taken out"),
            false => (incident::Kind::Resumed, "was put back"),
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

/// Runs a relay until a signal or a drain request ends it: SIGTERM, SIGINT and SIGQUIT drain, SIGHUP reloads. Tells
/// systemd. Returns whether everything in flight has finished. Threads that hang at files may be left: end the process
/// without waiting for them.
pub async fn run(config: Config, path: Option<PathBuf>) -> Result<bool, StartError> {
    let signals = Signals::new();
    let mut signals = signals
        .map_err(|error| StartError::Parts(vec![format!("signals cannot be handled: {error}")]))?;
    let mut starting = pin!(start(config, path));
    let running = loop {
        tokio::select! {
            running = &mut starting => break running?,
            asked = signals.next() => match asked {
                Asked::Reload => tracing::warn!("SIGHUP while the relay starts: nothing is read again"),
                Asked::Stop => {
                    tracing::info!("told to end before it had started");
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

/// Returns when the relay is to end, also while a reload is under way.
async fn until_stopped(running: &Running, signals: &mut Signals) {
    let mut reload = pin!(Fuse::terminated());
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return,
                Asked::Reload if reload.is_terminated() => reload.set(told_reload(running).fuse()),
                Asked::Reload => tracing::warn!("SIGHUP while a reload is under way: nothing more is read"),
            },
            () = &mut reload => {}
            () = running.drain_requested() => return,
        }
    }
}

/// A reload that systemd is told about. Its result is logged; a bad file changes nothing.
async fn told_reload(running: &Running) {
    let reloading = NotifyState::monotonic_usec_now().map(|now| [NotifyState::Reloading, now]);
    tell_systemd(reloading.as_ref().map_or(&[], |states| states));
    let _ = running.reload().await;
    tell_systemd(&[NotifyState::Ready]);
}

/// What is told to who resumes an engine that nobody has taken out.
fn not_drained(health: &Health) -> String {
    let (engine, states) = (&health.engine, health.states());
    let why = match health.is_well() {
        true => "it gets all its mail".to_owned(),
        false => format!(
            "it is {states}: it is probed every second and gets mail as soon as a probe passes; `spillway engine test {engine}` tells \
             what is wrong"
        ),
    };
    format!("engine {engine} is not drained; {why}")
}

/// Does nothing where no supervisor listens.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
