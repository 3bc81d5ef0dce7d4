//! Log lines on standard error or to syslog, and metrics in memory.
//!
//! Both sinks are global to a process, because `tracing` and `metrics` work so. A second installation does nothing. Rooms use
//! the macros of those crates directly, or an `events` file of their own if one event is both a log line and a metric. This
//! module escapes text from mail on its way out, so rooms need not do this.

pub mod duration;
pub mod escape;
pub mod log;
pub mod metrics;
mod process;
mod syslog;
