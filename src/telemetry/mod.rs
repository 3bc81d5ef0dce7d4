//! What the relay tells about itself: log lines on standard error and metrics in memory.
//!
//! Both sinks are global to a process (that is how `tracing` and `metrics` work), so installing them twice is harmless:
//! the first call wins. Rooms use the macros of those crates directly, or an `events` file of their own where one event
//! is both a log line and a metric. What comes from mail is escaped here, on its way out, so that no room has to
//! remember it.

pub mod escape;
pub mod log;
pub mod metrics;
