//! AUTH at one next hop, for all its connections: one login at a time, so that a refused password costs one attempt.
//!
//! Servers lock an account after a few refused logins. When a password is wrong, every delivery under way would be refused
//! once. So a delivery waits for the login before it, and after a refusal it fails with the same reply, without an attempt of
//! its own. The deliveries after that are the affair of the [`pace`](super::pace): it pauses.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::connection::ConnectionError;
use super::endpoint::Endpoint;
use super::{BuildError, SmtpSettings};
use crate::deadline::Deadline;
use crate::file;
use crate::smtp::RemoteReply;
use crate::smtp::dialog::{Credentials, OpeningError, Stage};
use crate::smtp::reply::Class;

/// Longest wait for the login of another connection: as long as for a connection. The message then waits in the store.
const LOGIN_TURN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Largest number of endpoints whose last refusal is in memory.
const REFUSALS_MAX: usize = 32;

/// The logins at one next hop.
pub struct Logins {
    credentials: Option<Credentials>,
    turn: Semaphore,
    refusals: Mutex<Refusals>,
}

#[derive(Default)]
struct Refusals {
    /// Refusals so far.
    count: u64,
    /// For each endpoint the number of its last refusal, and the reply.
    last: Vec<(Endpoint, u64, RemoteReply)>,
}

/// The refusals that had happened when a delivery began. Only later ones tell the delivery that its login would be refused,
/// too: of earlier ones the pace has known.
#[derive(Debug, Clone, Copy)]
pub struct KnownRefusals(u64);

/// The right to log in. Dropping it lets the next connection log in.
pub struct LoginTurn<'a> {
    logins: &'a Logins,
    _permit: SemaphorePermit<'a>,
}

impl Logins {
    /// Reads the password file. No credentials if the settings have none.
    pub fn new(name: &str, settings: &SmtpSettings) -> Result<Self, BuildError> {
        Ok(Self {
            credentials: credentials(name, settings)?,
            turn: Semaphore::new(1),
            refusals: Mutex::default(),
        })
    }

    /// User name and password, if the next hop requires a login.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// The refusals up to now, for a delivery that begins.
    pub fn known(&self) -> KnownRefusals {
        KnownRefusals(self.refusals().count)
    }

    /// Waits until no other connection logs in. The error is the reply to a login at the same endpoint that was refused
    /// meanwhile, or that the wait was too long.
    ///
    /// Cancel safety: safe, but the place in the queue is lost.
    pub async fn turn(
        &self,
        endpoint: &Endpoint,
        known: KnownRefusals,
        deadline: Deadline,
    ) -> Result<LoginTurn<'_>, ConnectionError> {
        let wait = deadline.within(LOGIN_TURN_WAIT_MAX);
        // The semaphore is never closed.
        let Ok(Ok(permit)) = wait.run(self.turn.acquire()).await else {
            return Err(ConnectionError::LoginsBusy);
        };
        let turn = LoginTurn {
            logins: self,
            _permit: permit,
        };
        match self.refusals().since(endpoint, known) {
            Some(reply) => Err(refused(reply)),
            None => Ok(turn),
        }
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusals {
    /// The reply to a login at this endpoint that was refused since then.
    fn since(&self, endpoint: &Endpoint, known: KnownRefusals) -> Option<RemoteReply> {
        let mut last = self.last.iter();
        let later = last.find(|(at, number, _)| at == endpoint && *number > known.0)?;
        Some(later.2.clone())
    }
}

impl LoginTurn<'_> {
    /// Tells the deliveries that wait that this login was refused.
    pub fn refused(&self, endpoint: &Endpoint, reply: &RemoteReply) {
        let mut refusals = self.logins.refusals();
        refusals.count += 1;
        let number = refusals.count;
        refusals.last.retain(|(at, ..)| at != endpoint);
        if refusals.last.len() >= REFUSALS_MAX {
            refusals.last.remove(0);
        }
        refusals
            .last
            .push((endpoint.clone(), number, reply.clone()));
    }
}

fn refused(reply: RemoteReply) -> ConnectionError {
    let stage = Stage::Auth;
    ConnectionError::Opening(OpeningError::Refused { stage, reply })
}

/// Whether the server refused our login, with any reply.
pub fn is_refused_login(error: &ConnectionError) -> bool {
    matches!(
        error,
        ConnectionError::Opening(OpeningError::Refused {
            stage: Stage::Auth,
            ..
        })
    )
}

/// Whether a failed connection forbids a login at another address of the next hop now: the account is refused, which further
/// attempts could lock, or other connections log in. A transient refusal such as 454 is about the one server (RFC 4954 6).
pub fn ends_logins(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::LoginsBusy => true,
        error if is_refused_login(error) => {
            let transient = |reply: &RemoteReply| reply.class() == Class::Transient;
            !error.reply().is_some_and(transient)
        }
        _ => false,
    }
}

fn credentials(name: &str, settings: &SmtpSettings) -> Result<Option<Credentials>, BuildError> {
    let (username, path) = match (&settings.username, &settings.password_file) {
        (Some(username), Some(path)) => (username.clone(), path),
        (None, None) => return Ok(None),
        _ => return Err(BuildError::HalfCredentials(name.to_owned())),
    };
    let broken = |why: String| BuildError::Password(path.clone(), why);
    let read = file::read_text(path, file::CREDENTIAL_FILE_OCTETS_MAX);
    let password = read.map_err(|error| broken(error.to_string()))?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() || password.contains(char::is_control) {
        return Err(broken(
            "the file must hold one line, the password".to_owned(),
        ));
    }
    Ok(Some(Credentials { username, password }))
}
