//! Laws that hold for every kind the table knows, checked on objects made up from its schema.
//! Each object comes from a seed; a failure names it.

#![allow(clippy::unwrap_used)]

mod generate;
mod laws;
mod speed;
