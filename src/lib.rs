//! Spillway: an SMTP filtering and scanning relay in which no engine, message, sender or next hop can make other mail wait.
//!
//! The modules, which docs/ARCHITECTURE.md calls rooms:
//!
//! | room | task |
//! |---|---|
//! | [`message`], [`verdict`], [`deadline`], [`chance`], [`ablation`], [`file`], [`incident`], [`measure`], [`observation`], [`process`] | basic types and helpers |
//! | [`smtp`] | the protocol, without sockets |
//! | [`listener`] | accepts SMTP sessions |
//! | [`pipeline`] | the path of each message: scan, decision, delivery |
//! | [`notify`] | tells people when trouble begins and ends |
//! | [`store`] | keeps messages and other state durable |
//! | [`scan`] | sends each message to all engines at once |
//! | [`intercept`] | diverts floods before an engine sees them |
//! | [`policy`] | turns reports into decisions |
//! | [`delivery`] | delivers to next hops |
//! | [`quarantine`] | keeps held messages for review |
//! | [`config`] | reads the configuration into the settings of each room |
//! | [`app`] | builds and runs the relay |
//! | [`admin`] | status, metrics and control of a running relay |
//! | [`cli`] | the command line |
//! | [`telemetry`] | log and metrics |
//! | [`whatif`] | what another configuration would decide |
//! | [`trust`] | trusted certificates |

#![forbid(unsafe_code)]

pub mod ablation;
pub mod admin;
pub mod app;
pub mod chance;
pub mod cli;
pub mod config;
pub mod deadline;
pub mod delivery;
pub mod file;
pub mod incident;
pub mod intercept;
pub mod listener;
pub mod measure;
pub mod message;
pub mod notify;
pub mod observation;
pub mod pipeline;
pub mod policy;
pub mod process;
pub mod quarantine;
pub mod scan;
pub mod smtp;
pub mod store;
pub mod telemetry;
pub mod trust;
pub mod verdict;
pub mod whatif;
