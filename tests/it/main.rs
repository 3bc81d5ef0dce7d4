//! Tests of the whole crate from outside: one module for each topic.

mod admission;
mod alerts;
mod auth;
mod bad_configs;
mod bombs;
mod certificates;
mod cli;
mod client;
mod crash;
mod demo;
mod dialogue;
mod docs;
mod drains;
mod edits;
mod engines;
mod faults;
mod fuzz;
mod guard;
mod large;
mod late;
mod logs;
mod metrics;
mod milters;
#[expect(
    dead_code,
    reason = "the unit tests have this file, too, and use the rest of it"
)]
mod name_server;
mod notify;
mod postfix;
mod power;
mod programs;
mod relay;
mod restart;
mod samples;
mod servers;
mod session;
mod sink;
mod tidy;
mod unrecorded;
