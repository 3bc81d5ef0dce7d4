//! Measurements of the whole relay, as ratios against something in the same run on the same machine.
//!
//! ```text
//! cargo bench --bench relay                 everything (about six minutes)
//! cargo bench --bench relay -- passthrough  smtp-source -> relay -> smtp-sink, against Postfix and the bare pair
//! cargo bench --bench relay -- latency      three engines of 5, 10 and 20 ms at 200 messages/s
//! cargo bench --bench relay -- engines      every kind of engine at once, real servers, 40 KiB
//! cargo bench --bench relay -- memory       10,000 idle sessions; 50 MiB messages
//! ```
//!
//! Needs Debian's `postfix` package (for smtp-source, smtp-sink and the comparison) and root for Postfix itself; `engines` needs the
//! packages that `tests/run` installs.
//! Everything runs on loopback, is bounded, and is stopped at the end.

mod engines;
mod latency;
mod memory;
#[path = "../../tests/it/name_server.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod name_server;
mod passthrough;
mod process;
#[path = "../../tests/it/samples.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod samples;
#[path = "../../tests/it/servers.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod servers;

fn main() {
    process::raise_descriptor_limit();
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let all = wanted.is_empty();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let wants = |name: &str| all || wanted.iter().any(|w| w == name);
    if wants("passthrough") {
        passthrough::run();
    }
    if wants("latency") {
        runtime.block_on(latency::run());
    }
    if wants("engines") {
        runtime.block_on(engines::run());
    }
    if wants("memory") {
        runtime.block_on(memory::run());
    }
}
