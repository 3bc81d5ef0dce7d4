//! Tests of laws that hold for every kind of engine that has a connection.

mod certificates;
mod faults;
#[path = "../../../tests/it/name_server.rs"]
pub(super) mod name_server;
mod noise;
mod subjects;
