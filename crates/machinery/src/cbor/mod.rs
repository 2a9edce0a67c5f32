//! JSON ⇄ CBOR (RFC 8949), with upstream's choices: what is written is deterministic (sorted keys,
//! shortest numbers, strings as byte strings, the tag "self-described"), and what is read may be
//! any well-formed item that has a form in JSON.
//!
//! A schema tells apart what JSON does not: bytes in base64 from texts, and structs, whose fields
//! are known, from maps. Custom resources are read and written without one.

mod decode;
mod encode;
mod wellformed;

pub use decode::{decode, decode_map};
pub use encode::{encode, watch_frame};

pub const CONTENT_TYPE: &str = "application/cbor";
/// Items one after the other (RFC 8742): a watch.
pub const SEQUENCE_CONTENT_TYPE: &str = "application/cbor-seq";

/// The head of tag 55799, with which everything written begins.
pub const MAGIC: &[u8; 3] = b"\xd9\xd9\xf7";

/// Deeper items are refused, as JSON that deep is.
const MAX_DEPTH: usize = 120;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// Not CBOR, or nothing that could say its version and kind. Worded as upstream's decoder
    /// words it.
    #[error("{0}")]
    Malformed(String),
    /// CBOR without a form in JSON, or of another type than the schema's.
    #[error("{0}")]
    Value(String),
}

/// The head of an item.
#[derive(Clone, Copy)]
struct Head {
    major: u8,
    /// Additional information: 31 is indefinite length, or a break.
    info: u8,
    argument: u64,
    /// Where what follows the head begins.
    next: usize,
}

impl Head {
    fn is_indefinite(self) -> bool {
        self.info == 31
    }

    fn is_break(self) -> bool {
        self.major == 7 && self.info == 31
    }

    /// The name of the type in upstream's errors.
    fn type_name(self) -> &'static str {
        match self.major {
            0 => "positive integer",
            1 => "negative integer",
            2 => "byte string",
            3 => "UTF-8 text string",
            4 => "array",
            5 => "map",
            6 => "tag",
            _ => "primitives",
        }
    }
}

/// Nothing when the bytes end inside of it.
fn head(bytes: &[u8], at: usize) -> Option<Head> {
    let first = *bytes.get(at)?;
    let (major, info) = (first >> 5, first & 31);
    let length = match info {
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => 0,
    };
    let next = at + 1 + length;
    let argument = match length {
        0 => u64::from(info),
        _ => bytes
            .get(at + 1..next)?
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    Some(Head {
        major,
        info,
        argument,
        next,
    })
}

/// Half precision, the only width that Rust has no type for.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let value = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -value } else { value }
}

/// The value of a number of major type 7.
fn float(head: Head) -> f64 {
    match head.info {
        25 => half(head.argument as u16),
        26 => f64::from(f32::from_bits(head.argument as u32)),
        _ => f64::from_bits(head.argument),
    }
}

#[cfg(test)]
mod tests;
