//! The program: arguments in, exit code out.

use std::process::ExitCode;

/// Mail is many small allocations on many threads; this allocator keeps them apart and gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    spillway::cli::main(std::env::args_os()).into()
}
