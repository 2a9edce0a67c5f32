//! Numbers as upstream prints and reads them.

/// The shortest text that reads back as the number, with an exponent below 10⁻⁴ and from 10⁶
/// on.
pub(crate) fn shortest(d: f64) -> String {
    if !d.is_finite() {
        return special(d);
    }
    let text = format!("{d:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return format!("{d}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// The shortest text without an exponent.
pub(crate) fn plain(d: f64) -> String {
    if d.is_finite() {
        format!("{d}")
    } else {
        special(d)
    }
}

fn special(d: f64) -> String {
    let text = if d.is_nan() {
        "NaN"
    } else if d > 0.0 {
        "+Inf"
    } else {
        "-Inf"
    };
    text.to_owned()
}

/// Reads a double the way upstream does, except for hexadecimal ones.
pub(crate) fn parse_double(s: &str) -> Option<f64> {
    let lower = s.to_ascii_lowercase();
    let unsigned = lower.trim_start_matches(['+', '-']);
    let sign = if lower.starts_with('-') { -1.0 } else { 1.0 };
    match unsigned {
        "inf" | "infinity" if lower.len() <= unsigned.len() + 1 => {
            return Some(sign * f64::INFINITY);
        }
        "nan" if lower.len() == 3 => return Some(f64::NAN),
        _ => {}
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') || unsigned == "." {
        return None;
    }
    let value: f64 = s.parse().ok()?;
    value.is_finite().then_some(value)
}
