//! Behaviour of the language, proven against upstream's.

#![allow(clippy::unwrap_used)]

mod activations;
mod bounds;
mod facts;
mod mutations;
mod schemas;
