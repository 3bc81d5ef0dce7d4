//! The exit codes of the program, and the errors that lead to them.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::app::StartError;
use crate::config::Problems;
use crate::listener::users::UsersError;
use crate::store::StoreError;
use crate::telemetry::escape::Escaped;

/// Exit codes. Scripts rely on them, so they never change. The codes from 64 are those of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// The command succeeded; `scan` found nothing.
    Done = 0,
    /// `scan` found something, a named object does not exist, or a part of the request failed.
    Found = 1,
    /// Too few engines answered for a verdict (`scan`).
    Undetermined = 2,
    /// Wrong arguments, a wrong configuration, or a file that cannot be used.
    Usage = 64,
    /// No relay listens on the control socket.
    NotRunning = 69,
    /// An error in the program itself.
    Internal = 70,
    /// The store or the relay failed, and a later try may succeed. `status` exits with it while the relay accepts no new mail.
    Temporary = 75,
}

/// Text at the end of every help page.
pub(super) const HELP: &str = "\
Exit codes:
   0  success; `scan` found nothing
   1  `scan` found something, an object does not exist, or a part of the request failed
   2  `scan` has no verdict: too few engines answered
  64  wrong arguments or configuration, or a file that cannot be used
  69  no relay is running
  70  internal error
  75  temporary failure, or the relay accepts no new mail: try again later";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The error with which a command ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The arguments contradict each other, or one is missing.
    #[error("{0}")]
    Usage(String),
    /// No object has the given name or id.
    #[error("{0}")]
    NotFound(String),
    /// No process listens on the control socket, or the user may not connect to it.
    #[error(
        "no relay answers on {}: {}; start the relay, or run this as its user or root, or name its socket with --socket",
        .0.display(), .1
    )]
    NotRunning(PathBuf, #[source] io::Error),
    /// A relay takes connections on the control socket and does not answer in time. The text names its process and the fix.
    #[error("{0}")]
    Silent(String),
    /// The relay gave an answer that is not in the protocol.
    #[error("no usable answer from the relay on {}: {}", .0.display(), .1)]
    Relay(PathBuf, String),
    /// The relay cannot start.
    #[error("{0}")]
    Start(#[from] StartError),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The users file cannot be read or changed.
    #[error("{0}")]
    Users(#[from] UsersError),
    /// A file cannot be read or written.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, #[source] io::Error),
    /// The result cannot be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// An error in the program itself.
    #[error("{0}")]
    Internal(String),
}

impl CliError {
    /// The exit code for this error.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::File(..) => Exit::Usage,
            Self::NotFound(_) | Self::Store(StoreError::NotFound(_)) => Exit::Found,
            Self::NotRunning(..) => Exit::NotRunning,
            Self::Store(_) | Self::Relay(..) | Self::Silent(_) => Exit::Temporary,
            Self::Start(StartError::Parts(_)) => Exit::Usage,
            Self::Start(_) => Exit::Temporary,
            Self::Users(UsersError::Busy | UsersError::Check(_)) => Exit::Temporary,
            Self::Users(_) => Exit::Usage,
            // The reader of the output has closed the pipe (`spillway … | head`): this is no failure.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Output(_) => Exit::Temporary,
            Self::Internal(_) => Exit::Internal,
        }
    }

    /// The error as lines for the terminal, with unsafe characters escaped; none if the exit code is [`Exit::Done`].
    pub(super) fn lines(&self) -> Vec<String> {
        if self.exit() == Exit::Done {
            return Vec::new();
        }
        let text = self.to_string();
        let lines = text.lines();
        lines.map(|line| Escaped(line).to_string()).collect()
    }
}

/// The result of a command.
pub(super) type Outcome = Result<Exit, CliError>;
