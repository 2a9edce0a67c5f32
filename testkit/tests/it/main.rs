#![allow(clippy::unwrap_used)]

mod corpus;
