//! Laws that hold for every kind of engine that is reached over a connection.

mod certificates;
mod faults;
#[path = "../../../tests/it/name_server.rs"]
pub(super) mod name_server;
mod noise;
mod subjects;
