//! Errors: why an engine has no answer, and why an engine cannot be built.

use std::path::PathBuf;
use std::time::Duration;

use crate::verdict::Reason;

/// Whether another call for the same message can succeed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Another call may succeed at once.
    Transient,
    /// Another call would fail again, or would do harm.
    Permanent,
}

/// Why a call of an engine ended without an answer. The text is shown to people, in reports and in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The content is larger than `max_size` of the engine.
    #[error("the message has {size} octets, and max_size of the engine is {max}")]
    TooLarge {
        /// Size of the content in octets.
        size: u64,
        /// `max_size` in octets.
        max: u64,
    },
    /// The engine refused the content because of a size limit of its own. The text is the engine's.
    #[error("refuses a message of this size: {0}")]
    Refused(String),
    /// The deadline passed before the engine was asked.
    #[error("the deadline passed before the engine was asked")]
    BudgetSpent,
    /// No slot became free in time.
    #[error("no slot became free before the deadline")]
    Busy,
    /// The caller stopped waiting after the timeout. The engine still works on the message.
    #[error("no answer within {} ms", .0.as_millis())]
    Overdue(Duration),
    /// The engine did not end the scan within its own limit.
    #[error("the engine did not end the scan within its own limit, {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The breakers of all replicas are open, or an interceptor bypasses the engine. The text is the reason.
    #[error("{0}")]
    BreakerOpen(String),
    /// An administrator has drained the engine.
    #[error("not asked: the engine is drained (end with: spillway engine resume)")]
    Drained,
    /// The message is to be scanned later, for example because the same or similar content is slow now. The text is the reason.
    #[error("not asked now: {0}")]
    Parked(String),
    /// An interceptor has blocked the same or similar content, or the engine crashed on this message. The text is the reason.
    #[error("not asked: {0}")]
    Suspect(String),
    /// A finding of another engine has already decided about the message.
    #[error("not waited for: a finding of another engine had already decided")]
    Unneeded,
    /// The deadline passed while the engine worked.
    #[error("the deadline passed while the engine worked")]
    DeadlinePassed,
    /// The relay could not reach the engine.
    #[error("the engine is unreachable: {0}")]
    Unreachable(String),
    /// The connection ended before the answer was complete. The text is the error of the socket, or what was missing.
    #[error("ended the connection: {0}")]
    Disconnected(String),
    /// The answer does not follow the protocol. The text is the beginning of the answer, or the error in it.
    #[error("gave an invalid answer: {0}")]
    Garbage(String),
    /// The engine itself reports an error. The text is the engine's.
    #[error("reports an error: {0}")]
    Engine(String),
    /// The engine refuses this request, and would refuse it again. The text is the engine's.
    #[error("refuses the request: {0}")]
    Declined(String),
    /// The engine asks for a pause of this length (RFC 6585 section 4).
    #[error("asks for a pause of {} s", .0.as_secs())]
    Throttled(Duration),
    /// All replicas that could take mail have asked for a pause.
    #[error("not asked: the engine has asked for a pause")]
    Resting,
    /// The engine accepts no further connection. The number is the limit of connections that the engine has announced.
    #[error("accepts {0} connections at once and all are in use: lower slots")]
    Full(usize),
    /// The engine's code panicked.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    /// The relay stops, and has ended the call.
    #[error("the relay is stopping")]
    Stopping,
    /// An error whose text needs the name of the replica as its subject; see [`Self::of`].
    #[error("{replica} {error}")]
    Of {
        /// Name of the replica.
        replica: String,
        /// The error without the name.
        error: Box<Self>,
    },
}

impl ScanError {
    /// The reason that policy decides by.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } | Self::Refused(_) => Reason::TooLarge,
            Self::BudgetSpent => Reason::BudgetSpent,
            Self::Busy | Self::Throttled(_) | Self::Resting | Self::Full(_) => Reason::Busy,
            Self::Overdue(_) | Self::NoAnswer(_) | Self::DeadlinePassed => Reason::Timeout,
            Self::BreakerOpen(_) => Reason::BreakerOpen,
            Self::Drained => Reason::Drained,
            Self::Parked(_) => Reason::Parked,
            Self::Suspect(_) => Reason::Suspect,
            Self::Unneeded => Reason::Unneeded,
            Self::Unreachable(_) => Reason::Unreachable,
            Self::Disconnected(_) => Reason::Disconnected,
            Self::Garbage(_) => Reason::Garbage,
            Self::Engine(_) | Self::Declined(_) | Self::Stopping => Reason::EngineError,
            Self::Panicked(_) => Reason::Panicked,
            Self::Of { error, .. } => error.reason(),
        }
    }

    /// Whether the guard may call the engine again. A timeout is permanent: the engine probably still works on this message, and
    /// a second call would occupy a second worker. In this way, one slow message once caused a backlog of eight hours.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable(_)
            | Self::Disconnected(_)
            | Self::Garbage(_)
            | Self::Full(_)
            // Another replica may answer.
            | Self::Throttled(_)
            | Self::Engine(_) => Class::Transient,
            Self::TooLarge { .. }
            | Self::Refused(_)
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
            | Self::Declined(_)
            | Self::Resting
            | Self::Panicked(_)
            | Self::Stopping => Class::Permanent,
            Self::Of { error, .. } => error.class(),
        }
    }

    /// Names the replica, if the text of the error needs that name as its subject. Engines leave this to the guard.
    #[must_use]
    pub(in crate::scan) fn of(self, replica: &str) -> Self {
        match self {
            Self::Refused(_)
            | Self::Disconnected(_)
            | Self::Garbage(_)
            | Self::Engine(_)
            | Self::Declined(_)
            | Self::Throttled(_)
            | Self::Full(_) => Self::Of {
                replica: replica.to_owned(),
                error: Box::new(self),
            },
            error => error,
        }
    }

    /// The replica that failed, if the error names it.
    pub(in crate::scan) fn replica(&self) -> Option<&str> {
        match self {
            Self::Of { replica, .. } => Some(replica),
            _ => None,
        }
    }

    /// The error for a task that ended without a result: a panic, or the end of the relay.
    pub fn from_task(failed: tokio::task::JoinError) -> Self {
        let Ok(panic) = failed.try_into_panic() else {
            return Self::Stopping;
        };
        Self::panicked(&*panic)
    }

    /// The error for a panic, with its message.
    pub fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panicked(text.unwrap_or_else(|| "without a message".to_owned()))
    }
}

/// Why no engine can be made from its settings. The text is shown to the administrator, after the name of the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A number that must not be 0, by its key: slots or attempts.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// No address.
    #[error("address: at least one is needed")]
    NoAddress,
    /// An address without a port.
    #[error("address \"{0}\" has no port: write it as \"host:port\"")]
    NoPort(String),
    /// An address without the host name that TLS needs.
    #[error(
        "address \"{0}\" has no host name for the certificate: write \"host:port\", or use no TLS"
    )]
    NoNameToVerify(String),
    /// The certificate authorities cannot be loaded.
    #[error(transparent)]
    Trust(#[from] crate::trust::NoTrust),
    /// The configuration of the resolver cannot be used.
    #[error("resolver: {0}")]
    Resolver(String),
    /// A zone that is not a domain name.
    #[error(
        "zone: {0:?} is not a domain name: write the zone of the list, as in \"zen.spamhaus.org\""
    )]
    Zone(String),
    /// A token file that cannot be used.
    #[error("token_file: {path}: {cause}", path = .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        cause: String,
    },
    /// A command without a program.
    #[error("command: is empty: begin with the absolute path of a program")]
    NoProgram,
    /// A user that is not in `/etc/passwd`.
    #[error("user: \"{0}\" is not in /etc/passwd: name a user of this machine")]
    NoUser(String),
    /// A regular expression that cannot be used.
    #[error("pattern: {0}")]
    Pattern(String),
    /// Neither the built-in rules nor other rules.
    #[error("builtin = false and no paths: set builtin = true, or name files in paths")]
    NoRules,
    /// A folder without rules.
    #[error("paths: the folder {0} holds no file that ends in .yar or .yara")]
    EmptyFolder(PathBuf),
    /// A file or folder that cannot be read.
    #[error("paths: cannot read {path}: {cause}")]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        cause: String,
    },
    /// A rule that does not compile. The text begins with file, line and column.
    #[error("{0}")]
    Rule(String),
    /// A rule that compiles, but has unusable metadata.
    #[error("rule {rule}: {problem}")]
    Metadata {
        /// Name of the rule.
        rule: String,
        /// What is wrong with the metadata.
        problem: String,
    },
}
