//! Tests of the whole crate from outside: one module for each topic.

mod bad_configs;
mod cli;
