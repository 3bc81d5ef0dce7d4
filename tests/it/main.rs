//! Tests of the whole crate from outside: one module for each topic.

mod admission;
mod bad_configs;
mod bombs;
mod certificates;
mod cli;
mod client;
mod crash;
mod demo;
mod dialogue;
mod docs;
mod edits;
mod engines;
mod faults;
mod fuzz;
mod guard;
mod metrics;
mod milters;
mod postfix;
mod programs;
mod relay;
mod samples;
mod servers;
mod session;
mod sink;
mod tidy;
