//! Behaviour of the language, proven against upstream's.

mod schemas;
