//! Spillway: an SMTP filtering and scanning relay in which no engine, message, sender or next hop can make anybody
//! else's mail wait.
//!
//! The map of the crate, in the order in which a message meets it:
//!
//! | room | what it does |
//! |---|---|
//! | [`message`], [`verdict`], [`deadline`], [`chance`], [`ablation`], [`file`], [`incident`] | the nouns |
//! | [`smtp`] | the protocol, without sockets |
//! | [`store`] | durable state |
//! | [`scan`] | asks all engines at once |
//! | [`intercept`] | diverts floods |
//! | [`policy`] | judges |
//! | [`delivery`] | passes on |
//! | [`quarantine`] | holds |
//! | [`config`] | what was written becomes what each room needs |
//! | [`admin`] | a running relay for its administrators |
//! | [`telemetry`] | log and metrics |
//! | [`trust`] | whose certificates are believed |

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
pub mod message;
pub mod pipeline;
pub mod policy;
pub mod quarantine;
pub mod scan;
pub mod smtp;
pub mod store;
pub mod telemetry;
pub mod trust;
pub mod verdict;
