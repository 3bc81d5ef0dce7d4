//! Laws that hold for every kind of engine that is reached over a connection.

mod faults;
mod subjects;
