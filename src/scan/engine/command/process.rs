//! A process from its start to the certain end of its whole group.
//!
//! **Its limits are in force before it runs.** Between fork and exec only unsafe code could set them, and setting them from
//! here afterwards (prlimit(2)) leaves a moment without, and needs CAP_SYS_RESOURCE where it runs as another user, which
//! containers do not have. So a shell sets them for itself and becomes the program (`exec`). Its script is the constant
//! [`LIMITED`]; limits, program and arguments are its parameters, which no shell ever reads as anything but text. If a
//! limit cannot be set, or the program cannot be run, its exit code is [`NOT_RUN`], which no program may use.
//!
//! **Nobody else is ever killed.** The number of a process, and so of its group, is free for others once it has been
//! waited for. So its end is learnt without waiting for it (waitid(2), WNOWAIT), the group is killed while the number is still
//! ours, and only then it is waited for.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{self, SignalKind};

use super::Limits;
use crate::deadline::Deadline;

/// Octets of what it prints; more is not an answer.
const OUTPUT_OCTETS_MAX: usize = 1 << 20;
/// Octets of its complaints that are kept; the rest is read and forgotten, so that it does not wait for us.
const STDERR_OCTETS_KEPT: usize = 4096;
/// What has been printed before the end is there at once; only a process that has left the group can hold a pipe longer.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// The signal at the end of the allowed processor time.
pub(super) const OUT_OF_CPU: i32 = Signal::XCPU.as_raw();

/// Sets limits for itself, and becomes the program. Sizes of files are told in units of 512 octets, of memory in units of
/// 1024. Processor time has two limits: the first one is a signal that tells why, the second one cannot be ignored.
const LIMITED: &str = "ulimit -c 0 && ulimit -f \"$1\" && ulimit -S -t \"$2\" && ulimit -H -t \"$3\" && ulimit -v \"$4\" \
                       || exit 126; shift 4; exec \"$@\"";
/// Exit codes of a program that could not be run (POSIX, `exec`).
pub const NOT_RUN: [u8; 2] = [126, 127];

/// A command that runs `program` within limits.
pub(super) fn limited(limits: Limits, program: &str) -> Command {
    let seconds = limits.cpu.as_secs().max(1);
    let numbers = [
        limits.file_size / 512,
        seconds,
        seconds + 1,
        limits.memory / 1024,
    ];
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LIMITED, "sh"]);
    command.args(numbers.map(|number| number.to_string()));
    command.arg(program);
    command
}

/// What is written to standard input.
pub(super) enum Input {
    /// These octets.
    Octets(Bytes),
    /// It is empty.
    Nothing,
}

/// How a program has ended, and what it has said.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code, unless a signal ended it.
    pub(super) code: Option<u8>,
    /// The signal that ended it.
    pub(super) signal: Option<i32>,
    pub(super) output: Vec<u8>,
    pub(super) complaints: Vec<u8>,
}

/// Why there is no end that means anything.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It prints more than that.
    Talkative(usize),
    /// It has ended, and a process outside its group holds its output.
    LeftBehind,
    /// The system has failed us.
    System(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(cause: io::Error) -> Self {
        Self::System(cause)
    }
}

/// A process that leads a group. Dropping it kills the group.
pub(super) struct Running {
    child: Child,
    group: Pid,
    /// Wakes whenever some process of ours has ended.
    ends: unix::Signal,
    /// It has been waited for: the number is not ours any more.
    gone: bool,
}

impl Running {
    /// Starts it. Starting takes as long as the system needs to run another program, about a millisecond.
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        // Before there is one that could end unheard.
        let ends = unix::signal(SignalKind::child())?;
        let child = command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        // Not waited for yet, so it has a number.
        let Some(group) = group else {
            return Err(io::ErrorKind::NotFound.into());
        };
        Ok(Self {
            child,
            group,
            ends,
            gone: false,
        })
    }

    /// Gives it its input, takes what it says, and sees to its end.
    ///
    /// Cancel safety: dropping it kills the whole group.
    pub(super) async fn end(mut self, input: Input) -> Result<Ended, Trouble> {
        let (stdin, stdout, stderr) = (
            self.child.stdin.take(),
            self.child.stdout.take(),
            self.child.stderr.take(),
        );
        let mut talk = std::pin::pin!(talk(input, stdin, stdout, stderr));
        // Once all pipes are closed it may still work; once it has ended its pipes say no more.
        let said = tokio::select! {
            biased;
            said = &mut talk => Some(said?),
            ended = ended(self.group, &mut self.ends) => {
                ended?;
                None
            }
        };
        ended(self.group, &mut self.ends).await?;
        self.kill();
        let (output, complaints) = match said {
            Some(said) => said,
            None => match Deadline::after(PIPE_DRAIN_TIMEOUT).run(talk).await {
                Ok(said) => said?,
                Err(_) => return Err(Trouble::LeftBehind),
            },
        };
        let status = self.child.wait().await?;
        self.gone = true;
        Ok(Ended {
            code: status.code().and_then(|code| u8::try_from(code).ok()),
            signal: status.signal(),
            output,
            complaints,
        })
    }

    fn kill(&self) {
        // That there is nobody left is what is wanted.
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.gone {
            self.kill();
        }
    }
}

/// Resolves when the process has ended, and does not take its number away.
async fn ended(process: Pid, ends: &mut unix::Signal) -> io::Result<()> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(process), look)?.is_none() {
        ends.recv().await;
    }
    Ok(())
}

/// Everything that goes through the pipes, until all of them are closed.
async fn talk(
    input: Input,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
) -> Result<(Vec<u8>, Vec<u8>), Trouble> {
    let give = async {
        if let (Some(mut stdin), Input::Octets(octets)) = (stdin, input) {
            // A program may know enough before it has read everything, and close. What that is worth its exit code says.
            let _ = stdin.write_all(&octets).await;
        }
        Ok(())
    };
    let (_, output, complaints) = tokio::try_join!(give, output(stdout), complaints(stderr))?;
    Ok((output, complaints))
}

async fn output(from: Option<ChildStdout>) -> Result<Vec<u8>, Trouble> {
    let mut all = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_OCTETS_MAX as u64 + 1)
            .read_to_end(&mut all)
            .await?;
    }
    match all.len() > OUTPUT_OCTETS_MAX {
        true => Err(Trouble::Talkative(OUTPUT_OCTETS_MAX)),
        false => Ok(all),
    }
}

async fn complaints(from: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, Trouble> {
    let mut kept = Vec::new();
    let Some(mut from) = from else {
        return Ok(kept);
    };
    let mut piece = [0; 4096];
    loop {
        match from.read(&mut piece).await? {
            0 => return Ok(kept),
            read => {
                let room = STDERR_OCTETS_KEPT - kept.len();
                kept.extend_from_slice(&piece[..read.min(room)]);
            }
        }
    }
}
