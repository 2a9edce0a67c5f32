//! The first pass over what a client sent: whether it is one CBOR item, within bounds.

use super::{CborError, Head, MAX_DEPTH, float, head};

/// Upstream's bounds, which a body of three megabytes meets only by lying about its size.
const MAX_ELEMENTS: u64 = 2_147_483_647;
const MAX_PAIRS: u64 = 2_097_152;

/// Whether this is one item and nothing else.
pub(super) fn check(bytes: &[u8]) -> Result<(), CborError> {
    if bytes.is_empty() {
        return Err(CborError::Malformed("EOF".to_owned()));
    }
    let end = item(bytes, 0, 0)?;
    if end < bytes.len() {
        return malformed(format!(
            "{} bytes of extraneous data starting at index {end}",
            bytes.len() - end
        ));
    }
    Ok(())
}

fn malformed<T>(problem: impl std::fmt::Display) -> Result<T, CborError> {
    Err(CborError::Malformed(format!("cbor: {problem}")))
}

fn truncated() -> CborError {
    CborError::Malformed("unexpected EOF".to_owned())
}

fn not_accepted<T>(head: Head, what: &str) -> Result<T, CborError> {
    malformed(format!(
        "data item of cbor type {} is not accepted by protocol: {what}",
        head.type_name()
    ))
}

/// Where the item that begins here ends; what its head says is checked too.
fn item(bytes: &[u8], mut at: usize, depth: usize) -> Result<usize, CborError> {
    // Tags in tags are no deeper than one.
    let h = loop {
        let h = checked_head(bytes, at)?;
        if h.major != 6 {
            break h;
        }
        if matches!(h.argument, 2 | 3) {
            return not_accepted(h, "bignum");
        }
        at = h.next;
    };
    match h.major {
        2 | 3 if h.is_indefinite() => chunks(bytes, h),
        2 | 3 => skip(bytes, h),
        4 | 5 => container(bytes, h, depth + 1),
        7 => {
            if h.is_break() {
                return malformed("unexpected \"break\" code");
            }
            if matches!(h.info, 25..=27) {
                let value = float(h);
                if value.is_nan() {
                    return not_accepted(h, "floating-point NaN");
                }
                if value.is_infinite() {
                    return not_accepted(h, "floating-point infinity");
                }
            }
            Ok(h.next)
        }
        _ => Ok(h.next),
    }
}

fn checked_head(bytes: &[u8], at: usize) -> Result<Head, CborError> {
    let h = head(bytes, at).ok_or_else(truncated)?;
    let invalid = match h.info {
        28..=30 => true,
        31 => matches!(h.major, 0 | 1 | 6),
        _ => false,
    };
    if invalid {
        return malformed(format!(
            "invalid additional information {} for type {}",
            h.info,
            h.type_name()
        ));
    }
    if h.major == 7 && h.info == 24 && h.argument < 32 {
        return malformed(format!(
            "invalid simple value {} for type primitives",
            h.argument
        ));
    }
    Ok(h)
}

/// The end of a string of known length.
fn skip(bytes: &[u8], h: Head) -> Result<usize, CborError> {
    usize::try_from(h.argument)
        .ok()
        .and_then(|length| h.next.checked_add(length))
        .filter(|end| *end <= bytes.len())
        .ok_or_else(truncated)
}

/// The end of a string that comes in pieces.
fn chunks(bytes: &[u8], whole: Head) -> Result<usize, CborError> {
    let mut at = whole.next;
    loop {
        let h = checked_head(bytes, at)?;
        if h.is_break() {
            return Ok(h.next);
        }
        if h.major != whole.major {
            return malformed(format!(
                "wrong element type {} for indefinite-length {}",
                h.type_name(),
                whole.type_name()
            ));
        }
        if h.is_indefinite() {
            return malformed(format!(
                "indefinite-length {} chunk is not definite-length",
                whole.type_name()
            ));
        }
        at = skip(bytes, h)?;
    }
}

fn container(bytes: &[u8], h: Head, depth: usize) -> Result<usize, CborError> {
    if depth > MAX_DEPTH {
        return malformed(format!("exceeded max nested level {MAX_DEPTH}"));
    }
    let (limit, what, holder, each) = match h.major {
        4 => (MAX_ELEMENTS, "elements", "array", 1),
        _ => (MAX_PAIRS, "key-value pairs", "map", 2),
    };
    let too_many = || {
        malformed(format!(
            "exceeded max number of {what} {limit} for CBOR {holder}"
        ))
    };
    if !h.is_indefinite() && h.argument > limit {
        return too_many();
    }
    let mut at = h.next;
    let mut count = 0;
    loop {
        if h.is_indefinite() {
            if head(bytes, at).is_some_and(Head::is_break) {
                return Ok(at + 1);
            }
            if count == limit {
                return too_many();
            }
        } else if count == h.argument {
            return Ok(at);
        }
        for _ in 0..each {
            at = item(bytes, at, depth)?;
        }
        count += 1;
    }
}
