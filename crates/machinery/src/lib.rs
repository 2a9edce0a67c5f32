//! What every part of the API shares and none owns: metadata, selectors, quantities, field errors,
//! `Status`, strict decoding, patches, server-side apply, protobuf. Pure: no I/O and no runtime.
//! Everything that walks an object is driven by [`keelson_api::Schema`], so that built-in kinds
//! and custom resources take the same path.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod apply;
pub mod cbor;
pub mod decode;
pub mod default;
pub mod field;
pub mod fields;
pub mod go;
pub mod go_struct;
pub mod hash;
pub mod json_syntax;
pub mod json_text;
pub mod labels;
pub mod meta;
pub mod names;
mod object_meta;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod status;
pub mod time;
pub mod validation;
