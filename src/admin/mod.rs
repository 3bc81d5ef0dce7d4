//! The surfaces of a running relay for its administrators: status, metrics and control.
//!
//! | path | where | answer |
//! |---|---|---|
//! | `GET /` | both | a page for people |
//! | `GET /live` | both | 200 while the process can answer |
//! | `GET /ready` | both | 200 while the relay accepts new mail, else 503 with the reason |
//! | `GET /metrics` | both | Prometheus text |
//! | `GET /status` | socket | [`Status`] as JSON |
//! | `GET /waits` | socket | [`Waits`] as JSON |
//! | `GET /engines` | socket | [`Health`] of each engine as JSON |
//! | `GET /config` | socket | [`InForce`] as JSON |
//! | `GET /shadow` | socket | [`ShadowView`] as JSON; `null` without a shadow |
//! | `POST /control/engine?…` | socket | [`EngineAsked`]: [`EngineActed`] after a drain or resume, [`Tested`] after a test; 404 with one line if the engine or the act is refused |
//! | `POST /control/notify?…` | socket | [`Tested`](notify::Tested) of each way as JSON; 404 with one line for an unknown name |
//! | `POST /control/reload?file=…` | socket | [`Reloaded`] as JSON; 422 when refused |
//! | `POST /control/shadow?file=…` | socket | [`Reloaded`] as JSON; 422 when refused. Without `file`: ends the shadow, and answers as `GET /shadow` |
//! | `POST /control/drain` | socket | 202 |
//! | `POST /control/act?…` | socket | 202; logs an [`Act`] that a command has done in the store, and wakes |
//! | `POST /control/flush` | socket | 202 when the history, the measures and the incident log can be read up to now, with each [`LogTrouble`] as JSON |
//!
//! The TCP address is read-only. A change needs access to the unix socket, which belongs to the relay's user alone (mode
//! 0600). Both surfaces call [`Control`], which the composition root implements.

mod connection;
mod gauges;
mod late;
mod page;
mod routes;
mod socket;
#[cfg(test)]
mod tests;
mod waits;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join4;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::deadline::Deadline;
use crate::delivery::HopStatus;
use crate::measure::DelayComparison;
use crate::notify;
use crate::pipeline::{ShadowView, Shortage};
use crate::scan::{BadTerms, DrainTerms, Health};
use crate::store::{Held, Lane, LaneStats, LateMail, LogTrouble, Recovery, StoreError};
use crate::telemetry;

pub use late::{Late, LateLine};
pub use waits::{Waiting, Waits, WaitsFor, What};

/// Settings of `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The TCP address of the read-only surface; `None` for no such surface.
    pub http: Option<SocketAddr>,
    /// The unix socket through which commands reach the running relay.
    pub socket: PathBuf,
}

/// The functions of the relay that the surfaces call. The composition root implements them.
pub trait Control: Send + Sync + 'static {
    /// The present state of the relay.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// Whether the relay accepts new mail; the error is the reason in one line.
    fn ready(&self) -> Result<(), String>;

    /// What stored mail may wait for. Asks no store, so that it answers at once.
    fn waits(&self) -> Waits;

    /// The state of each engine.
    fn engines(&self) -> Vec<Health>;

    /// Drains an engine or one of its replicas, durably. Returns what the person should know about it, one line each. The error
    /// is the reason in one line.
    fn drain_engine(
        &self,
        asked: &EngineAsked,
    ) -> impl Future<Output = Result<Vec<String>, String>> + Send;

    /// Ends the drain of an engine or of one of its replicas. Returns and fails as [`drain_engine`](Self::drain_engine).
    fn resume_engine(
        &self,
        asked: &EngineAsked,
    ) -> impl Future<Output = Result<Vec<String>, String>> + Send;

    /// Sends each replica of an engine its probe pair, and returns the results.
    fn test_engine(
        &self,
        asked: &EngineAsked,
    ) -> impl Future<Output = Result<Vec<Tested>, String>> + Send;

    /// Sends a test notification over the way with this name, or over all ways.
    fn test_notify(
        &self,
        way: Option<&str>,
    ) -> impl Future<Output = Result<Vec<notify::Tested>, String>> + Send;

    /// Reads the configuration again. Returns the changes, or every problem; with a problem nothing has changed. It is a problem
    /// if the person has `named` another file than the one that the relay reads.
    fn reload(
        &self,
        named: Option<PathBuf>,
    ) -> impl Future<Output = Result<Changes, Vec<String>>> + Send;

    /// The configuration in force.
    fn config(&self) -> InForce;

    /// Has the configuration of a file decide about each new message too, and changes nothing else. Returns its differences to
    /// the configuration in force, or every problem; with a problem, the shadow stays as it is.
    fn begin_shadow(
        &self,
        file: PathBuf,
    ) -> impl Future<Output = Result<Changes, Vec<String>>> + Send;

    /// Ends the shadow, and returns what it has seen; none if there is no shadow.
    fn end_shadow(&self) -> Option<ShadowView>;

    /// What the shadow has seen; none if there is no shadow.
    fn shadow(&self) -> Option<ShadowView>;

    /// Makes the relay accept no new mail, finish the mail in flight, and exit. Returns at once.
    fn drain(&self);

    /// Makes the relay look for new work in the store (a release, a retry) now, before its next check.
    fn wake(&self);

    /// Waits until other processes can read the whole history and incident log. Returns those that record nothing now.
    fn flush(&self) -> impl Future<Output = Vec<LogTrouble>> + Send;
}

/// An act of a person, for the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// The person.
    #[serde(default)]
    pub who: String,
    /// The act: `release`, `delete`, `export`, `retry`, `intercept-add`, `intercept-remove`, `engine-drain`, `engine-resume`,
    /// `engine-test`, `notify-test`, `reload`, `shadow`, `shadow-off`, `drain`.
    pub act: String,
    /// The objects of the act, at most [`Act::OBJECTS_NAMED_MAX`] of them.
    #[serde(default)]
    pub objects: String,
    /// The number of objects on which the act was done.
    #[serde(default)]
    pub done: u64,
    /// The number of objects on which it was not done.
    #[serde(default)]
    pub failed: u64,
    /// The reason that the person gave, or other details.
    #[serde(default)]
    pub detail: String,
}

impl Act {
    /// Most objects that one act names: the ids of ten messages fit into one line.
    pub const OBJECTS_NAMED_MAX: usize = 10;
    /// Longest text of each kind in a line, in characters.
    const TEXT_CHARACTERS_MAX: usize = 500;

    /// Writes the one log line.
    fn tell(&self) {
        let cut = |text: &str| -> Option<String> {
            let text: String = text.chars().take(Self::TEXT_CHARACTERS_MAX).collect();
            (!text.is_empty()).then_some(text)
        };
        tracing::info!(
            who = cut(&self.who),
            act = cut(&self.act),
            objects = cut(&self.objects),
            done = self.done,
            failed = self.failed,
            detail = cut(&self.detail),
            "act"
        );
    }
}

/// The state of a running relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The relay's host name.
    pub hostname: String,
    /// The version of the configuration in force, as in every decision.
    pub config: String,
    /// The file of the configuration; none for the built-in defaults.
    pub config_file: Option<PathBuf>,
    /// The start of the relay.
    pub started: Timestamp,
    /// Whether the relay is draining: it finishes the mail in flight, and then exits.
    pub draining: bool,
    /// The reason why the relay accepts no new mail; none while it accepts mail.
    pub not_ready: Option<String>,
    /// The delays of valid mail: now, in the last hour, and in the same hour a week ago.
    #[serde(default)]
    pub delay: DelayComparison,
    /// Transactions that admission has refused in the current period of refusals; none outside such a period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    /// What was short at the last of these refusals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_for: Option<Shortage>,
    /// The listeners with their addresses.
    pub listeners: Vec<ListenerStatus>,
    /// Open sessions.
    pub sessions: u64,
    /// Free octets of `limits.in_flight_bytes`.
    pub memory_available: u64,
    /// The stored mail; none, and no fields in JSON, while the store does not answer.
    #[serde(flatten)]
    pub stored: Option<Stored>,
    /// The state of each engine.
    pub engines: Vec<Health>,
    /// The state of each next hop.
    #[serde(default)]
    pub next_hops: Vec<HopStatus>,
    /// The logs that record nothing now: the history, the incident log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_recorded: Vec<LogTrouble>,
    /// The findings of the start in the store.
    pub recovery: Recovery,
}

/// The stored mail of a running relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Mail that waits for a scan.
    pub scan: LaneStats,
    /// Mail that waits for delivery.
    pub delivery: LaneStats,
    /// Mail in quarantine.
    pub held: LaneStats,
    /// The room that the quarantine uses, and its limit.
    #[serde(default)]
    pub quarantine: Held,
    /// Mail that was delivered with less than full coverage, and is kept for a later scan.
    pub rescan: LaneStats,
    /// For each next hop for which mail waits, the end of data of the oldest such message.
    #[serde(default)]
    pub oldest_outgoing: BTreeMap<Arc<str>, Timestamp>,
    /// The mail that has waited longer than [`LATE_AFTER`](crate::store::LATE_AFTER), by what it waits for; the oldest first.
    #[serde(default)]
    pub late: Vec<Late>,
}

impl Stored {
    /// The text in place of the numbers while the store does not answer.
    pub const UNKNOWN_TEXT: &str = "not known: the store does not answer";
    /// Time for the answers of the store: 900 ms, so that a status is there within a second. If one answer is missing then, the result is none: a part of the numbers would
    /// look like all of them.
    const STORE_ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

    /// Waits for the statistics of the lanes, of the queues of next hops and of the quarantine, and for the late mail. Returns none
    /// if one fails or takes too long.
    pub async fn from(
        lanes: impl Future<Output = Result<[LaneStats; Lane::ALL.len()], StoreError>>,
        oldest: impl Future<Output = Result<Vec<(Arc<str>, Timestamp)>, StoreError>>,
        quarantine: impl Future<Output = Result<Held, StoreError>>,
        (late, waits): (
            impl Future<Output = Result<Vec<LateMail>, StoreError>>,
            &Waits,
        ),
    ) -> Option<Self> {
        let all = try_join4(lanes, oldest, quarantine, late);
        let all = Deadline::after(Self::STORE_ANSWER_TIMEOUT).run(all).await;
        let all = all.map_err(|late| StoreError::Broken(late.to_string()));
        match all.flatten() {
            Ok(([scan, delivery, held, rescan], oldest, quarantine, late)) => Some(Self {
                scan,
                delivery,
                held,
                quarantine,
                rescan,
                oldest_outgoing: oldest.into_iter().collect(),
                late: Late::all(late, waits),
            }),
            Err(error) => {
                tracing::warn!(%error, "the store does not answer a request for its statistics");
                None
            }
        }
    }
}

/// The configuration in force, as the relay read it; its file may have changed since.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The file that a reload reads; none for the built-in defaults.
    pub file: Option<PathBuf>,
    /// The version, as in every decision.
    pub version: String,
    /// Every key with its value as TOML.
    pub settings: Vec<(String, String)>,
    /// The start of the relay; none for a configuration that no relay runs with.
    #[serde(default)]
    pub started: Option<Timestamp>,
}

/// A request for an act on an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineAsked {
    /// The engine's name.
    pub engine: String,
    /// The act.
    pub act: EngineAct,
    /// The address of one replica; none for all replicas.
    #[serde(default)]
    pub replica: Option<String>,
    /// The person who asks, for the incident log.
    #[serde(default)]
    pub who: String,
    /// The reason, for the incident log.
    #[serde(default)]
    pub reason: String,
    /// For a drain: mail passes without the engine.
    #[serde(default)]
    pub pass: bool,
    /// For a drain: seconds until it ends by itself.
    #[serde(default)]
    pub for_seconds: Option<u64>,
}

impl EngineAsked {
    /// The terms of the drain.
    ///
    /// # Errors
    /// The first of the arguments that is wrong.
    pub fn terms(&self) -> Result<DrainTerms, BadTerms> {
        let term = self.for_seconds.map(Duration::from_secs);
        DrainTerms::new(self.pass, term, &self.reason, &self.who)
    }
}

/// The result of a drain or a resume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineActed {
    /// The state of the engine after the act.
    pub engine: Health,
    /// What the person should know, one line each.
    pub notes: Vec<String>,
}

/// An act on an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineAct {
    /// The engine gets no more mail; running scans continue.
    Drain,
    /// The engine gets mail again.
    Resume,
    /// The engine gets a known-bad and a known-clean message.
    Test,
}

/// The result of a test of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// The replica's address; none for an engine in process.
    pub replica: Option<String>,
    /// The problem with its answers; none if they were right.
    pub wrong: Option<String>,
    /// For an engine without a known-bad message: the names of its findings in a harmless message.
    pub answered: Option<Vec<String>>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The listener's name in the configuration.
    pub name: String,
    /// The listener's addresses with their real ports.
    pub addresses: Vec<SocketAddr>,
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reloaded {
    /// The new configuration is in force.
    Changes(Changes),
    /// Nothing has changed.
    Refused {
        /// The problems of the new configuration.
        problems: Vec<String>,
    },
}

/// The changes from the configuration in force to another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// One line each.
    pub changes: Vec<String>,
    /// What the person should know beside the changes, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The reason why the surfaces cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The relay cannot listen on the TCP address.
    #[error("cannot listen on admin.http {0}: {1}; free the address or change admin.http")]
    Http(SocketAddr, #[source] std::io::Error),
    /// Another process listens on the control socket.
    #[error("another relay listens on {}; stop it, or change store.path or admin.socket", .0.display())]
    InUse(PathBuf),
    /// Another kind of file is in the place of the control socket.
    #[error("{} exists and is not a socket, so the control socket cannot be created; remove it or change admin.socket", .0.display())]
    NoSocket(PathBuf),
    /// The control socket cannot be created.
    #[error("cannot create the control socket {}: {}; correct its folder or change admin.socket", .0.display(), .1)]
    Socket(PathBuf, #[source] std::io::Error),
}

/// Opens both surfaces and serves them on `tasks` until `closing`. Returns the TCP address with its real port.
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

/// Compacts the metrics every 5 s, so that they do not grow while no monitoring reads them.
async fn upkeep(closing: CancellationToken) {
    let turn = || Deadline::after(Duration::from_secs(5));
    while closing.run_until_cancelled(turn().wait()).await.is_some() {
        telemetry::metrics::upkeep();
    }
}
