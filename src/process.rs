//! Programs of this machine that the relay runs: from the start to the certain end of the whole process group.
//!
//! **The limits of [`limited`] are in force before the program runs.** Between fork and exec, only unsafe code could set the limits. Setting
//! them from the relay afterwards (prlimit(2)) leaves a moment without limits, and for a program with another user it needs
//! CAP_SYS_RESOURCE, which containers do not have. So a shell sets the limits for itself and then becomes the program (`exec`).
//! The script of the shell is the constant [`LIMITS_SCRIPT`]. Limits, program and arguments are parameters of the script, which
//! the shell only reads as text. If a limit cannot be set, or the program cannot be run, the exit code is one of
//! [`NOT_RUN_EXIT_CODES`], which no program may use.
//!
//! **The relay never kills another process.** As soon as a process has been reaped, the system may reuse its number, which is
//! also the number of its group. So the relay detects the end without reaping (waitid(2), WNOWAIT), kills the group while the
//! number is still reserved, and reaps the process only then.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{self, SignalKind};

use crate::deadline::Deadline;

/// Largest output in octets: 1 MiB. A program that prints more has no answer.
const OUTPUT_OCTETS_MAX: usize = 1 << 20;
/// Octets of standard error that are kept for the report. The relay reads and discards the rest, so that the program does not
/// block on a full pipe.
const STDERR_OCTETS_KEPT: usize = 4096;
/// Time to read the pipes after the end of the program. Its output is in the pipes already; only a process that has left the
/// group can hold a pipe open for longer.
const PIPE_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// The signal that the system sends when the processor time is used up.
pub const CPU_LIMIT_SIGNAL: i32 = Signal::XCPU.as_raw();

/// Script of a shell that sets its own limits and becomes the program. The unit is 512 octets for file sizes and 1024 octets for
/// memory. Processor time has two limits in seconds: the soft limit sends a signal that shows the reason, and the program
/// cannot ignore the hard limit.
const LIMITS_SCRIPT: &str = "ulimit -c 0 && ulimit -f \"$1\" && ulimit -S -t \"$2\" && ulimit -H -t \"$3\" && ulimit -v \"$4\" \
                       || exit 126; shift 4; exec \"$@\"";
/// Exit codes of the shell if it could not run the program (POSIX, `exec`) or not set a limit.
pub const NOT_RUN_EXIT_CODES: [u8; 2] = [126, 127];

/// The search path of programs that the relay runs. They inherit nothing else from its environment.
pub const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Limits on the resources of a program. Each limit holds for each process separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Processor time, in whole seconds, at least 1 s.
    pub cpu: Duration,
    /// Address space in octets.
    pub memory: u64,
    /// Size in octets of each file that the program writes.
    pub file_size: u64,
}

/// A command that runs `program` within the limits.
pub fn limited(limits: Limits, program: &str) -> Command {
    let seconds = limits.cpu.as_secs().max(1);
    let numbers = [
        limits.file_size / 512,
        seconds,
        seconds + 1,
        limits.memory / 1024,
    ];
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LIMITS_SCRIPT, "sh"]);
    command.args(numbers.map(|number| number.to_string()));
    command.arg(program);
    command
}

/// The standard input of the program.
#[derive(Debug)]
pub enum Input {
    /// These octets.
    Octets(Bytes),
    /// Empty standard input.
    Nothing,
}

/// What becomes of the standard output of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The relay reads it, at most [`OUTPUT_OCTETS_MAX`].
    Kept,
    /// It goes nowhere, however much it is.
    Discarded,
}

/// The end of a program, with its output.
#[derive(Debug)]
pub struct Ended {
    /// The exit code, unless a signal ended the program.
    pub code: Option<u8>,
    /// The signal that ended the program.
    pub signal: Option<i32>,
    /// Standard output, at most [`OUTPUT_OCTETS_MAX`].
    pub output: Vec<u8>,
    /// The beginning of standard error.
    pub complaints: Vec<u8>,
}

/// Why the end of a program cannot be interpreted.
#[derive(Debug)]
pub enum Trouble {
    /// The program printed more than this number of octets.
    Talkative(usize),
    /// The program has ended, and a process outside its group holds its output open.
    LeftBehind,
    /// A system call failed.
    System(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(cause: io::Error) -> Self {
        Self::System(cause)
    }
}

/// A process that leads a process group. Dropping the value kills the group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    group: Pid,
    /// Wakes whenever any child process of the relay has ended (SIGCHLD).
    ends: unix::Signal,
    /// The process has been reaped: its number may belong to another process.
    gone: bool,
}

impl Running {
    /// Starts the process in `/`. Blocks until the system has started the program, about 1 ms.
    ///
    /// # Errors
    /// The error of the system, if the process cannot be started.
    pub fn start(mut command: Command, output: Output) -> io::Result<Self> {
        // Before the process starts, so that its end cannot be missed.
        let ends = unix::signal(SignalKind::child())?;
        let child = command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(match output {
                Output::Kept => Stdio::piped(),
                Output::Discarded => Stdio::null(),
            })
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        // The process has a number, because it has not been reaped.
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

    /// Writes the input, reads the output, waits for the end of the program, and kills the rest of its group.
    ///
    /// Cancel safety: dropping the future kills the whole group.
    pub async fn end(mut self, input: Input) -> Result<Ended, Trouble> {
        let (stdin, stdout, stderr) = (
            self.child.stdin.take(),
            self.child.stdout.take(),
            self.child.stderr.take(),
        );
        let mut talk = std::pin::pin!(talk(input, stdin, stdout, stderr));
        // A program may run on after closing all pipes. After the end of the program, the pipes get no more output.
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
        // An error means that the group has no process any more.
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

/// Waits for the end of a process without reaping it.
async fn ended(process: Pid, ends: &mut unix::Signal) -> io::Result<()> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(process), look)?.is_none() {
        ends.recv().await;
    }
    Ok(())
}

/// Transfers everything through the pipes, until all pipes are closed. Returns standard output and standard error.
async fn talk(
    input: Input,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
) -> Result<(Vec<u8>, Vec<u8>), Trouble> {
    let give = async {
        if let (Some(mut stdin), Input::Octets(octets)) = (stdin, input) {
            // A program may decide before it has read the whole input, and close the pipe. Its exit code shows the result.
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

/// Checks that the file exists and is executable.
///
/// # Errors
/// What is wrong, as a text that follows the path.
pub fn runnable(program: &Path) -> Result<(), &'static str> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::metadata(program) {
        Err(_) => Err("does not exist"),
        Ok(found) if !found.is_file() => Err("is not a regular file"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Err("is not executable"),
        Ok(_) => Ok(()),
    }
}
