//! The program `spillway`: passes its arguments to the command line, and returns the exit code.

use std::process::ExitCode;

use rustix::io::Errno;
use rustix::thread::clear_ambient_capability_set;

fn main() -> ExitCode {
    // Ambient capabilities (capabilities(7)) let a relay without root listen on port 25 under systemd. Every program that the
    // relay starts would inherit them, also a program that runs as another user. So the relay gives up the ambient set here,
    // and keeps its own capabilities. Each thread has a set of its own, and here the process has only one thread. A system
    // that does not know ambient capabilities (EINVAL) has none.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => spillway::cli::main(std::env::args_os()).into(),
        Err(cause) => {
            eprintln!("spillway: cannot give up ambient capabilities: {cause}");
            ExitCode::FAILURE
        }
    }
}
