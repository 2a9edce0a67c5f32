//! Behaviour of the language, proven against upstream's.

#![allow(clippy::unwrap_used)]

mod bounds;
mod facts;
mod mutations;
mod schemas;
