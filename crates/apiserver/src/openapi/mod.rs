//! OpenAPI v2 and v3 documents, rendered from the schema table when they are asked for and
//! dropped again: they are large and rarely read.

mod descriptions;
mod general;
mod operation;
mod overlay;
mod parameters;
mod paths;
mod render;
pub(crate) mod v2;
mod v2_protobuf;
pub(crate) mod v3;

use std::collections::HashMap;
use std::sync::Mutex;

/// Fingerprints of documents, by name and the generation of what is served; small enough to keep.
#[derive(Default)]
pub(crate) struct OpenApi {
    hashes: Mutex<HashMap<String, (u64, String)>>,
}

/// Which dialect is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}
