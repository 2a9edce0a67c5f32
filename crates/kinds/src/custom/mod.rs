//! Objects of custom kinds, and defaults in definitions, against the schema of their definition.

mod embedded;
mod expressions;
mod formats;
mod lists;
mod schema;

pub use embedded::embedded;
pub use expressions::{Expressions, Report};
pub(crate) use formats::is_recognized;
pub use lists::lists;
pub use schema::validate;

use keelson_machinery::field::Path;

/// How messages name a place: the root has no name.
fn named(path: &Path) -> String {
    if path.is_root() {
        String::new()
    } else {
        path.to_string()
    }
}
