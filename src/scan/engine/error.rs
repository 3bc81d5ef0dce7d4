//! Why an engine has no answer, and why it cannot be built.

use std::path::PathBuf;
use std::time::Duration;

use crate::verdict::Reason;

/// Whether calling the engine again now, for the same message, can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It may well succeed at once.
    Transient,
    /// It will not, or it would make things worse.
    Permanent,
}

/// A call that ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// More octets than the engine is given.
    #[error("{size} octets; at most {max} are scanned (max_size)")]
    TooLarge {
        /// Octets of content.
        size: u64,
        /// What is allowed.
        max: u64,
    },
    /// The engine refused the size by a limit of its own.
    #[error("{replica} takes less: {message}")]
    Refused {
        /// Which one.
        replica: String,
        /// Its words.
        message: String,
    },
    /// The deadline passed before the engine was asked.
    #[error("the deadline passed before the engine was asked")]
    BudgetSpent,
    /// No slot became free in time.
    #[error("no slot became free before the deadline")]
    Busy,
    /// The caller's patience ran out; the engine still works on it.
    #[error("no answer within {} ms", .0.as_millis())]
    Overdue(Duration),
    /// The engine did not end the scan within its own limit.
    #[error("the engine did not end the scan within its own limit, {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// No replica may be asked.
    #[error("{0}")]
    BreakerOpen(String),
    /// A person has taken the engine out.
    #[error("not asked: the engine is drained")]
    Drained,
    /// The same or similar content is being scanned, and slow.
    #[error("not asked now: {0}")]
    Parked(String),
    /// The same or similar content was convicted.
    #[error("not asked: {0}")]
    Suspect(String),
    /// Another engine has found enough.
    #[error("not waited for: another engine's finding had decided")]
    Unneeded,
    /// The deadline passed while the engine worked.
    #[error("the deadline passed while the engine worked")]
    DeadlinePassed,
    /// No connection to any replica.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The connection ended before the answer did.
    #[error("{replica} ended the connection: {cause}")]
    Disconnected {
        /// Which one.
        replica: String,
        /// What the socket said.
        cause: String,
    },
    /// An answer that is not in the protocol.
    #[error("{replica} answered outside its protocol: {answer}")]
    Garbage {
        /// Which one.
        replica: String,
        /// The beginning of it.
        answer: String,
    },
    /// The engine itself reports an error.
    #[error("{replica} reports an error: {message}")]
    Engine {
        /// Which one.
        replica: String,
        /// Its words.
        message: String,
    },
    /// The engine does not want to be asked so, and would say the same again.
    #[error("{replica} declines: {message}")]
    Declined {
        /// Which one.
        replica: String,
        /// Its words.
        message: String,
    },
    /// The engine asks to be left alone for a while (RFC 6585 4).
    #[error("{replica} takes nothing for another {} s", .pause.as_secs())]
    Throttled {
        /// Which one.
        replica: String,
        /// How long.
        pause: Duration,
    },
    /// All replicas have asked to be left alone.
    #[error("not asked: the engine has asked to be left alone for now")]
    Resting,
    /// The engine takes no further connection.
    #[error("{replica} takes {most} connections at once and all are in use: lower slots")]
    Full {
        /// Which one.
        replica: String,
        /// What it has told us to be its limit.
        most: usize,
    },
    /// The engine's code panicked.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    /// The relay is going down and took the call with it.
    #[error("the relay is stopping")]
    Stopping,
}

impl ScanError {
    /// What policy makes of it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } | Self::Refused { .. } => Reason::TooLarge,
            Self::BudgetSpent => Reason::BudgetSpent,
            Self::Busy | Self::Throttled { .. } | Self::Resting | Self::Full { .. } => Reason::Busy,
            Self::Overdue(_) | Self::NoAnswer(_) | Self::DeadlinePassed => Reason::Timeout,
            Self::BreakerOpen(_) => Reason::BreakerOpen,
            Self::Drained => Reason::Drained,
            Self::Parked(_) => Reason::Parked,
            Self::Suspect(_) => Reason::Suspect,
            Self::Unneeded => Reason::Unneeded,
            Self::Unreachable(_) => Reason::Unreachable,
            Self::Disconnected { .. } => Reason::Disconnected,
            Self::Garbage { .. } => Reason::Garbage,
            Self::Engine { .. } | Self::Declined { .. } | Self::Stopping => Reason::EngineError,
            Self::Panicked(_) => Reason::Panicked,
        }
    }

    /// Whether the guard may call again. Not after a timeout: the engine most likely still works on this message, a
    /// second call takes a second worker for it, and that is how one slow message became an eight hour backlog.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_)
            | Self::Disconnected { .. }
            | Self::Garbage { .. }
            | Self::Full { .. }
            // Of another replica.
            | Self::Throttled { .. }
            | Self::Engine { .. } => Class::Transient,
            Self::TooLarge { .. }
            | Self::Refused { .. }
            | Self::BudgetSpent
            | Self::Busy
            | Self::Overdue(_)
            | Self::NoAnswer(_)
            | Self::BreakerOpen(_)
            | Self::Drained
            | Self::Parked(_)
            | Self::Suspect(_)
            | Self::Unneeded
            | Self::DeadlinePassed
            | Self::Declined { .. }
            | Self::Resting
            | Self::Panicked(_)
            | Self::Stopping => Class::Permanent,
        }
    }

    /// The replica that failed, where it is known.
    pub fn replica(&self) -> Option<&str> {
        match self {
            Self::Refused { replica, .. }
            | Self::Disconnected { replica, .. }
            | Self::Garbage { replica, .. }
            | Self::Engine { replica, .. }
            | Self::Declined { replica, .. }
            | Self::Throttled { replica, .. }
            | Self::Full { replica, .. } => Some(replica),
            Self::TooLarge { .. }
            | Self::BudgetSpent
            | Self::Busy
            | Self::Overdue(_)
            | Self::NoAnswer(_)
            | Self::BreakerOpen(_)
            | Self::Drained
            | Self::Resting
            | Self::Parked(_)
            | Self::Suspect(_)
            | Self::Unneeded
            | Self::DeadlinePassed
            | Self::Unreachable(_)
            | Self::Panicked(_)
            | Self::Stopping => None,
        }
    }

    /// What became of a task that ended without a result.
    pub fn from_task(failed: tokio::task::JoinError) -> Self {
        let Ok(panic) = failed.try_into_panic() else {
            return Self::Stopping;
        };
        Self::panicked(&*panic)
    }

    /// What a panic said.
    pub fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panicked(text.unwrap_or_else(|| "without a message".to_owned()))
    }
}

/// Settings from which no engine can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// No slot, or no attempt.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// An engine that is nowhere.
    #[error("address: at least one is needed")]
    NoAddress,
    /// An address without port.
    #[error("address \"{0}\" has no port: write it as \"host:port\"")]
    NoPort(String),
    /// TLS needs a name.
    #[error("address \"{0}\" has no host name that a certificate could be checked against")]
    NoNameToVerify(String),
    /// No certificate can be checked.
    #[error(transparent)]
    Trust(#[from] crate::trust::NoTrust),
    /// No name servers to ask.
    #[error("resolver: {0}")]
    Resolver(String),
    /// A zone that cannot be asked.
    #[error("zone: {0:?} is no domain that could be asked")]
    Zone(String),
    /// A file with a token that cannot be used.
    #[error("token_file: {path}: {cause}", path = .path.display())]
    Token {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A command without a program.
    #[error("command: it must begin with the path of a program")]
    NoProgram,
    /// A user that this machine does not have.
    #[error("user: there is no \"{0}\" in /etc/passwd")]
    NoUser(String),
    /// A regular expression that cannot be used.
    #[error("pattern: {0}")]
    Pattern(String),
    /// Neither rules of ours nor others.
    #[error("builtin = false and no paths: there would be no rules")]
    NoRules,
    /// A folder without rules.
    #[error("paths: the folder {0} holds no file that ends in .yar or .yara")]
    EmptyFolder(PathBuf),
    /// A file or folder that cannot be read.
    #[error("paths: cannot read {path}: {cause}")]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// A rule that does not compile; begins with file, line and column.
    #[error("{0}")]
    Rule(String),
    /// A rule that compiles, but whose metadata we cannot use.
    #[error("rule {rule}: {problem}")]
    Metadata {
        /// Its name.
        rule: String,
        /// What is wrong with it.
        problem: String,
    },
}
