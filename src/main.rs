//! The program: arguments in, exit code out.

use std::process::ExitCode;

use rustix::io::Errno;
use rustix::thread::clear_ambient_capability_set;

fn main() -> ExitCode {
    // Ambient capabilities (capabilities(7)), with which systemd lets the relay listen on port 25 without being root, are
    // passed on to every program that it starts, also to one that runs as somebody else. They are given up here, where there
    // is one thread yet, as each has a set of its own; what it may do itself the relay keeps. Systems that do not know them
    // have none.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => spillway::cli::main(std::env::args_os()).into(),
        Err(cause) => {
            eprintln!("spillway: cannot give up ambient capabilities: {cause}");
            ExitCode::FAILURE
        }
    }
}
