//! The program: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    spillway::cli::main(std::env::args_os()).into()
}
