//! Laws that hold for every kind of engine that is reached over a connection.

mod certificates;
mod faults;
mod noise;
mod subjects;
