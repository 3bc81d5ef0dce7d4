//! What the program exits with, and the errors that lead there.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::app::StartError;
use crate::config::Problems;
use crate::listener::users::UsersError;
use crate::store::StoreError;
use crate::telemetry::escape::Escaped;

/// Exit codes; scripts rely on them. The large ones are those of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Something was found (`scan`), or some of what was asked could not be done.
    Found = 1,
    /// Too few engines answered to say (`scan`).
    Undetermined = 2,
    /// Wrong arguments, or a wrong configuration.
    Usage = 64,
    /// No relay runs.
    NotRunning = 69,
    /// The program is at fault.
    Internal = 70,
    /// It may work later: the store or the relay had trouble.
    Temporary = 75,
}

/// At the end of every help page.
pub(super) const HELP: &str = "\
Exit codes:
   0  done; nothing found
   1  something found, or some of what was asked was not done
   2  undetermined: too few engines answered
  64  wrong arguments or configuration
  69  no relay is running
  70  internal error
  75  temporary trouble: try again";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The arguments do not fit together.
    #[error("{0}")]
    Usage(String),
    /// Nothing was found under that name.
    #[error("{0}")]
    NotFound(String),
    /// Nobody listens on the control socket.
    #[error("no relay answers on {}: {}", .0.display(), .1)]
    NotRunning(PathBuf, #[source] io::Error),
    /// The relay answered something that is not in the protocol, or too late.
    #[error("the relay on {}: {}", .0.display(), .1)]
    Relay(PathBuf, String),
    /// The relay does not start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The store does not work.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The users file does not work.
    #[error("{0}")]
    Users(#[from] UsersError),
    /// A file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, #[source] io::Error),
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// The program is at fault.
    #[error("{0}")]
    Internal(String),
}

impl CliError {
    /// What the program exits with.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::File(..) => Exit::Usage,
            Self::NotFound(_) | Self::Store(StoreError::NotFound(_)) => Exit::Found,
            Self::NotRunning(..) => Exit::NotRunning,
            Self::Store(_) | Self::Relay(..) => Exit::Temporary,
            Self::Start(StartError::Parts(_)) => Exit::Usage,
            Self::Start(_) => Exit::Temporary,
            Self::Users(UsersError::Busy | UsersError::Check(_)) => Exit::Temporary,
            Self::Users(_) => Exit::Usage,
            // Whoever reads our output has seen enough of it: `spillway … | head`.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Output(_) => Exit::Temporary,
            Self::Internal(_) => Exit::Internal,
        }
    }

    /// For the terminal, safe; none where there is nothing to say.
    pub(super) fn lines(&self) -> Vec<String> {
        if self.exit() == Exit::Done {
            return Vec::new();
        }
        let text = self.to_string();
        let lines = text.lines();
        lines.map(|line| Escaped(line).to_string()).collect()
    }
}

/// What a command comes to.
pub(super) type Outcome = Result<Exit, CliError>;
