//! The surfaces of a running relay for its administrators: what it says about itself, and what it can be told to do.
//!
//! | path | where | answer |
//! |---|---|---|
//! | `GET /` | both | a page for people |
//! | `GET /live` | both | 200 as long as the process can answer |
//! | `GET /ready` | both | 200 while new mail is taken, else 503 with the reason |
//! | `GET /metrics` | both | Prometheus text |
//! | `GET /status` | socket | [`Status`] as JSON |
//! | `GET /engines` | socket | [`Health`] of each engine as JSON |
//! | `POST /control/engine?…` | socket | [`EngineAsked`]: drain, resume, test; 404 with one line where there is none of that name |
//! | `POST /control/reload` | socket | [`Reloaded`] as JSON; 422 when refused |
//! | `POST /control/drain` | socket | 202 |
//! | `POST /control/wake` | socket | 202 |
//!
//! The TCP address only tells; whoever may change something needs access to the unix socket, which belongs to the
//! relay's user alone (mode 0600). What happens behind both is [`Control`], which the composition root implements.

mod connection;
mod gauges;
mod page;
mod routes;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deadline::Deadline;
use crate::delivery::HopStatus;
use crate::scan::Health;
use crate::store::{Held, Lane, LaneStats, Recovery, StoreError};
use crate::telemetry;

/// Settings of `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where `/live`, `/ready` and `/metrics` are answered; `None` for nowhere.
    pub http: Option<SocketAddr>,
    /// The socket that commands reach the running relay through.
    pub socket: PathBuf,
}

/// What the relay can tell and be told; implemented by the composition root.
pub trait Control: Send + Sync + 'static {
    /// What it is doing now.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// Whether new mail is taken; otherwise why not, in one line.
    fn ready(&self) -> Result<(), String>;

    /// How the engines are doing.
    fn engines(&self) -> Vec<Health>;

    /// Takes an engine, or one replica of it, out, or puts it back. Why it cannot be done, in one line.
    fn drain_engine(&self, asked: &EngineAsked, drained: bool) -> Result<(), String>;

    /// Sends each replica of an engine its probe pair.
    fn test_engine(
        &self,
        asked: &EngineAsked,
    ) -> impl Future<Output = Result<Vec<Tested>, String>> + Send;

    /// Reads the configuration again: the difference, or every problem with it, in which case nothing has changed.
    fn reload(&self) -> impl Future<Output = Result<Vec<String>, Vec<String>>> + Send;

    /// Stop taking mail, finish what is in flight, and end. Returns at once.
    fn drain(&self);

    /// There is work in the store that was not there before (a release, a retry): look now, not at the next turn.
    fn wake(&self);
}

/// What a running relay says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// What it calls itself.
    pub hostname: String,
    /// The configuration in force, as in every decision.
    pub config: String,
    /// The file it was read from; none for the built-in defaults.
    pub config_file: Option<PathBuf>,
    /// Since when it runs.
    pub started: Timestamp,
    /// Whether it is finishing what is in flight and ends.
    pub draining: bool,
    /// Why no new mail is taken; none while it is.
    pub not_ready: Option<String>,
    /// Where it listens.
    pub listeners: Vec<ListenerStatus>,
    /// Sessions at this moment.
    pub sessions: u64,
    /// Octets of `limits.in_flight_bytes` that no message holds now.
    pub memory_available: u64,
    /// What is stored; none, and no fields, while the store does not answer.
    #[serde(flatten)]
    pub stored: Option<Stored>,
    /// How the engines are doing.
    pub engines: Vec<Health>,
    /// What goes out to each next hop.
    #[serde(default)]
    pub next_hops: Vec<HopStatus>,
    /// What the start found in the store.
    pub recovery: Recovery,
}

/// What a running relay says about its store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// What waits to be scanned.
    pub scan: LaneStats,
    /// What waits to be delivered.
    pub delivery: LaneStats,
    /// What is in quarantine.
    pub held: LaneStats,
    /// What it takes, against what it may.
    #[serde(default)]
    pub quarantine: Held,
    /// What was delivered with less than full coverage and is kept to be scanned again.
    pub rescan: LaneStats,
}

impl Stored {
    /// What is told where nothing is known.
    pub const UNKNOWN: &str = "not known: the store does not answer";
    /// What is known by then, or nothing: half of it would be taken for all.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// From what the store says of its lanes and of quarantine.
    pub async fn from(
        lanes: impl Future<Output = Result<[LaneStats; Lane::ALL.len()], StoreError>>,
        quarantine: impl Future<Output = Result<Held, StoreError>>,
    ) -> Option<Self> {
        let both = Deadline::after(Self::PATIENCE).run(try_join(lanes, quarantine));
        let both = both.await;
        let both = both.map_err(|late| StoreError::Broken(late.to_string()));
        match both.flatten() {
            Ok(([scan, delivery, held, rescan], quarantine)) => Some(Self {
                scan,
                delivery,
                held,
                quarantine,
                rescan,
            }),
            Err(error) => {
                tracing::warn!(%error, "the store tells nothing about itself");
                None
            }
        }
    }
}

/// What is to be done with an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineAsked {
    /// Its name.
    pub engine: String,
    /// What.
    pub act: EngineAct,
    /// One replica, by its address; all of them if there is none.
    #[serde(default)]
    pub replica: Option<String>,
    /// Who asks, for the incident log.
    #[serde(default)]
    pub who: String,
    /// Why, for the incident log.
    #[serde(default)]
    pub reason: String,
}

/// What can be done with an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineAct {
    /// It gets no mail any more; scans under way end.
    Drain,
    /// It gets mail again.
    Resume,
    /// It is asked what it must find and what it must let pass.
    Test,
}

/// What a test of one replica showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// Its address; none for an engine in process.
    pub replica: Option<String>,
    /// What was wrong with its answers; none if they were right.
    pub wrong: Option<String>,
    /// What it found in a harmless message, where nothing says what it must find; else none.
    pub answered: Option<Vec<String>>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its addresses, ports resolved.
    pub addresses: Vec<SocketAddr>,
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reloaded {
    /// In force; what differs from before.
    Changes(Vec<String>),
    /// Refused; nothing has changed.
    Problems(Vec<String>),
}

/// Why the surfaces cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The TCP address cannot be listened on.
    #[error("admin.http {0} cannot be listened on: {1}")]
    Http(SocketAddr, #[source] std::io::Error),
    /// Another process listens on the control socket.
    #[error("another relay listens on {}", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{} is in the way of the control socket: it is no socket; remove it or change admin.socket", .0.display())]
    NoSocket(PathBuf),
    /// The control socket cannot be made.
    #[error("the control socket {} cannot be made: {}", .0.display(), .1)]
    Socket(PathBuf, #[source] std::io::Error),
}

/// Opens both surfaces and serves them on `tasks` until `closing`; returns the TCP address with its port resolved.
///
/// Cancel safety: a dropped call may leave the control socket behind, which the next start replaces.
pub async fn serve<C: Control>(
    settings: &Settings,
    control: Arc<C>,
    tasks: &TaskTracker,
    closing: CancellationToken,
) -> Result<Option<SocketAddr>, AdminError> {
    let http = match settings.http {
        None => None,
        Some(address) => {
            let failed = |error| AdminError::Http(address, error);
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            Some((listener, bound))
        }
    };
    let (listener, file) = socket::claim(settings.socket.clone()).await?;
    let routes = routes::control(control.clone());
    tasks.spawn(connection::serve(listener, routes, closing.clone(), file));
    let address = http.as_ref().map(|(_, address)| *address);
    if let Some((listener, address)) = http {
        tracing::info!(%address, "admin");
        let routes = routes::read_only(control);
        tasks.spawn(connection::serve(listener, routes, closing.clone(), ()));
    }
    tasks.spawn(upkeep(closing));
    Ok(address)
}

/// Keeps the metrics small where nobody scrapes.
async fn upkeep(closing: CancellationToken) {
    let turn = || Deadline::after(Duration::from_secs(5));
    while closing.run_until_cancelled(turn().wait()).await.is_some() {
        telemetry::metrics::upkeep();
    }
}
