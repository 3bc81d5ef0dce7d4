//! Any program: it gets the message on standard input or as a file, and says with its exit code, and perhaps with what it
//! prints, what it thinks of it.
//!
//! One process for each message, in a process group of its own that is killed as a whole when the program has ended, when
//! it says too much, and when nobody waits for it any more. Arguments are a list that no shell reads, and nothing of a
//! message is ever among them. Facts about the envelope are in the environment, which holds nothing else of ours.
//!
//! **Only what is expected counts.** An exit code that is on neither list, a signal, output that cannot be read, a limit
//! that could not be set: no answer, with a reason, never clean (promise P4).

mod answer;
mod process;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::fchown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tempfile::NamedTempFile;

use super::http::{ProbeWith, Reading};
use super::{BuildError, Engine, EngineAnswer, Probes, Sample, ScanError};
use crate::message::{Envelope, MessageId};
use crate::scan::ScanRequest;
use crate::verdict::{Answer, FindingKind};
use process::{Ended, Input, Running, limited};

pub use answer::{CommandAnswer, Lines, read};
pub use process::NOT_RUN;

/// Stands for the path of the file in an argument.
pub const FILE: &str = "{file}";
/// Octets of one fact in the environment, and of all recipients.
const FACT: usize = 1024;
const RECIPIENTS: usize = 16 * 1024;

/// A program and what is allowed to it.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSettings {
    /// The program, by its absolute path, and its arguments. If one of these has [`FILE`] in it, the message is in a file
    /// of which that is the path, and standard input is empty; else it is on standard input.
    pub command: Vec<String>,
    /// What we call ourselves.
    pub hostname: String,
    /// How its answer is read.
    pub saying: Saying,
    /// A user of this machine as whom it runs; none: the relay's own. Needs capabilities.
    pub user: Option<String>,
    /// What it may use.
    pub limits: Limits,
    /// What it must find to prove that it works.
    pub probe_with: ProbeWith,
}

/// How a program's answer is read.
#[derive(Debug, Clone, PartialEq)]
pub enum Saying {
    /// By its exit code, and by the lines that it prints.
    Exit(Exit),
    /// As JSON, printed with exit code 0.
    Json(Reading),
}

/// What exit codes mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Nothing found.
    pub clean: Vec<u8>,
    /// Something found.
    pub found: Vec<u8>,
    /// A regular expression for lines of its output, with groups called `name` or `score`.
    pub pattern: Option<String>,
    /// What something found is.
    pub bad_kind: FindingKind,
    /// Its score, unless a line tells.
    pub bad_score: f64,
}

/// What a program may use, each of its processes for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Processor time; whole seconds.
    pub cpu: Duration,
    /// Octets of address space.
    pub memory: u64,
    /// Octets of a file that it writes.
    pub file_size: u64,
}

/// One program.
#[derive(Debug)]
pub(super) struct Command {
    program: String,
    arguments: Vec<String>,
    takes_file: bool,
    hostname: String,
    saying: answer::Reader,
    user: Option<(u32, u32)>,
    limits: Limits,
    probe_with: ProbeWith,
}

impl Engine for Command {
    fn scan(
        self: Arc<Self>,
        sample: Sample,
    ) -> BoxFuture<'static, Result<EngineAnswer, ScanError>> {
        Box::pin(async move { self.ask(&sample).await })
    }

    fn replica(&self) -> Option<&str> {
        Some(&self.program)
    }

    fn probes(&self) -> Option<Probes> {
        self.probe_with.probes()
    }
}

impl Command {
    /// The program; nothing is started yet. Reads files: blocks.
    pub(super) fn new(settings: &CommandSettings) -> Result<Self, BuildError> {
        let Some((program, arguments)) = settings.command.split_first() else {
            return Err(BuildError::NoProgram);
        };
        let user = settings.user.as_deref().map(|name| {
            identity(Path::new("/etc/passwd"), name)
                .ok_or_else(|| BuildError::NoUser(name.to_owned()))
        });
        Ok(Self {
            program: program.clone(),
            arguments: arguments.to_vec(),
            hostname: settings.hostname.clone(),
            takes_file: takes_file(arguments),
            saying: answer::Reader::new(&settings.saying).map_err(BuildError::Pattern)?,
            user: user.transpose()?,
            limits: settings.limits,
            probe_with: settings.probe_with,
        })
    }

    async fn ask(self: Arc<Self>, sample: &Sample) -> Result<EngineAnswer, ScanError> {
        let request = sample.request().clone();
        let this = self.clone();
        // Writing a file blocks, and so does starting a program, for about a millisecond.
        let started = tokio::task::spawn_blocking(move || this.start(&request));
        let (running, input, file) = started.await.map_err(ScanError::from_task)??;
        let ended = running.end(input).await;
        drop(file);
        let (answer, signatures) = self.judge(ended)?;
        Ok(EngineAnswer {
            answer,
            replica: Some(self.program.clone()),
            signatures,
            wanted: Vec::new(),
        })
    }

    /// Starts the program. Blocks.
    fn start(
        &self,
        request: &ScanRequest,
    ) -> Result<(Running, Input, Option<NamedTempFile>), ScanError> {
        let cannot =
            |cause: io::Error| ScanError::Unreachable(format!("{}: {cause}", self.program));
        let (input, file) = match self.takes_file {
            false => (Input::Octets(request.content.bytes().clone()), None),
            true => (Input::Nothing, Some(self.file(request).map_err(cannot)?)),
        };
        // The shell that sets the limits would only have an exit code to say it with.
        runnable(Path::new(&self.program))
            .map_err(|wrong| ScanError::Unreachable(format!("{} {wrong}", self.program)))?;
        let mut command = limited(self.limits, &self.program);
        command.args(self.arguments(file.as_ref().map(NamedTempFile::path)));
        command
            .env_clear()
            .envs(facts(&self.hostname, request.id, &request.envelope));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let running = Running::start(command).map_err(cannot)?;
        Ok((running, input, file))
    }

    /// The arguments, with the file's path where it belongs.
    fn arguments(&self, file: Option<&Path>) -> Vec<OsString> {
        let path = file.map(|path| path.to_string_lossy()).unwrap_or_default();
        let filled = self.arguments.iter().map(|text| text.replace(FILE, &path));
        filled.map(OsString::from).collect()
    }

    /// The message as a file that only the program can read; gone when it is dropped.
    fn file(&self, request: &ScanRequest) -> io::Result<NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        let mut file = builder.prefix("spillway-").suffix(".eml").tempfile()?;
        file.write_all(request.content.bytes())?;
        if let Some((uid, gid)) = self.user {
            fchown(file.as_file(), Some(uid), Some(gid))?;
        }
        Ok(file)
    }

    /// What an end means.
    fn judge(
        &self,
        ended: Result<Ended, process::Trouble>,
    ) -> Result<(Answer, Option<String>), ScanError> {
        let replica = || self.program.clone();
        let ended = ended.map_err(|trouble| match trouble {
            process::Trouble::Talkative(most) => ScanError::Garbage {
                replica: replica(),
                answer: format!("it printed more than {most} octets"),
            },
            process::Trouble::LeftBehind => ScanError::Garbage {
                replica: replica(),
                answer: "it left a process behind that holds its output".to_owned(),
            },
            process::Trouble::System(cause) => ScanError::Disconnected {
                replica: replica(),
                cause: cause.to_string(),
            },
        })?;
        if ended.signal == Some(process::OUT_OF_CPU) {
            return Err(ScanError::NoAnswer(self.limits.cpu));
        }
        self.saying.judge(&ended).map_err(|wrong| match wrong {
            answer::Wrong::Failed(message) => ScanError::Engine {
                replica: replica(),
                message,
            },
            answer::Wrong::Garbage(answer) => ScanError::Garbage {
                replica: replica(),
                answer,
            },
        })
    }
}

/// Whether the message is given as a file.
pub fn takes_file(arguments: &[String]) -> bool {
    arguments.iter().any(|text| text.contains(FILE))
}

/// What a program is told about a message beside its content. It starts with no environment of ours.
fn facts(hostname: &str, id: MessageId, envelope: &Envelope) -> Vec<(&'static str, String)> {
    let mut recipients = String::new();
    for recipient in &envelope.recipients {
        let mailbox = recipient.mailbox.qualified(hostname);
        if recipients.len() + mailbox.len() > RECIPIENTS {
            break;
        }
        // A line feed, which no mailbox can have in it.
        if !recipients.is_empty() {
            recipients.push('\n');
        }
        recipients.push_str(&showable(&mailbox));
    }
    let sender = envelope.reverse_path.qualified(hostname);
    let origin = &envelope.origin;
    let mut facts = vec![
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ),
        ("LANG", "C.UTF-8".to_owned()),
        ("SPILLWAY_ID", id.to_string()),
        ("SPILLWAY_SENDER", showable(&sender)),
        ("SPILLWAY_RECIPIENTS", recipients),
    ];
    if origin.protocol != "local" {
        facts.push(("SPILLWAY_CLIENT", origin.client.to_canonical().to_string()));
        facts.push(("SPILLWAY_HELO", showable(&origin.helo)));
    }
    if let Some(name) = &origin.client_name {
        facts.push(("SPILLWAY_CLIENT_NAME", showable(name)));
    }
    if let Some(user) = &origin.user {
        facts.push(("SPILLWAY_USER", showable(user)));
    }
    facts
}

/// The beginning of a text, without control characters.
fn showable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let mut text: String = text.chars().map(clean).collect();
    text.truncate(text.floor_char_boundary(FACT));
    text
}

/// User and group of a name, from a file like passwd(5). Users of directory services are not in it.
fn identity(passwd: &Path, name: &str) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(passwd).ok()?;
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut users = fields.filter(|fields| fields.first() == Some(&name));
    let user = users.next()?;
    Some((user.get(2)?.parse().ok()?, user.get(3)?.parse().ok()?))
}

/// Whether a file is there that can be run; what is wrong if not.
pub fn runnable(program: &Path) -> Result<(), &'static str> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(program) {
        Err(_) => Err("does not exist"),
        Ok(found) if !found.is_file() => Err("is no file"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Err("is not executable"),
        Ok(_) => Ok(()),
    }
}
