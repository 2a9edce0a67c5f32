//! Resource quantities: `100m`, `1.5Gi`, `2e3`.
//!
//! A quantity is held in units of 10⁻⁹, the smallest upstream represents; finer values round away
//! from zero as they do there.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Nothing is held beyond this; sums saturate. Round, so that its text is read back as itself.
const LIMIT: i128 = 40_000_000_000_000_000_000_000_000_000_000_000_000;
/// Digits past this are dropped: as many are kept as anything below [`LIMIT`] is written with.
const MANTISSA_LIMIT: i128 = 1_000_000_000_000_000_000_000_000_000_000_000_000;
/// The same before a binary suffix; multiplying by 2⁶⁰ must still fit.
const BINARY_MANTISSA_LIMIT: i128 = 1_000_000_000_000_000_000;
/// Longer texts are refused before they are looked at.
const MAX_TEXT: usize = 128;

/// Which family of suffixes the text had; kept so that it prints in the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

fn suffix_of(text: &str) -> Option<(Scale, Format)> {
    Some(match text {
        "" => (Scale::Ten(0), Format::DecimalSi),
        "n" => (Scale::Ten(-9), Format::DecimalSi),
        "u" => (Scale::Ten(-6), Format::DecimalSi),
        "m" => (Scale::Ten(-3), Format::DecimalSi),
        "k" => (Scale::Ten(3), Format::DecimalSi),
        "M" => (Scale::Ten(6), Format::DecimalSi),
        "G" => (Scale::Ten(9), Format::DecimalSi),
        "T" => (Scale::Ten(12), Format::DecimalSi),
        "P" => (Scale::Ten(15), Format::DecimalSi),
        "E" => (Scale::Ten(18), Format::DecimalSi),
        "Ki" => (Scale::Two(10), Format::BinarySi),
        "Mi" => (Scale::Two(20), Format::BinarySi),
        "Gi" => (Scale::Two(30), Format::BinarySi),
        "Ti" => (Scale::Two(40), Format::BinarySi),
        "Pi" => (Scale::Two(50), Format::BinarySi),
        "Ei" => (Scale::Two(60), Format::BinarySi),
        _ => {
            let digits = text.strip_prefix(['e', 'E'])?;
            let n: i32 = digits.parse().ok()?;
            (Scale::Ten(n), Format::DecimalExponent)
        }
    })
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

impl Quantity {
    pub fn parse(s: &str) -> Result<Quantity, QuantityError> {
        if s.is_empty() || s.len() > MAX_TEXT {
            return Err(QuantityError::Format);
        }
        let (negative, rest) = match s.as_bytes()[0] {
            b'-' => (true, &s[1..]),
            b'+' => (false, &s[1..]),
            _ => (false, s),
        };
        let split = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        // Letters of suffixes, a sign, digits: anything else is no suffix at all.
        let after = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
        let digits = after.strip_prefix(['-', '+']).unwrap_or(after);
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(QuantityError::Format);
        }
        let (scale, mut format) = suffix_of(suffix).ok_or(QuantityError::Suffix)?;
        let mut nanos = scaled(whole, fraction, scale);
        if format == Format::BinarySi {
            nanos = nanos.min(i128::from(i64::MAX) * NANO);
            if nanos < NANO && nanos > 0 {
                format = Format::DecimalSi;
            }
        }
        Ok(Quantity {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    pub fn from_value(v: i64) -> Quantity {
        Quantity {
            nanos: i128::from(v) * NANO,
            format: Format::DecimalSi,
        }
    }

    pub fn from_milli(v: i64) -> Quantity {
        Quantity {
            nanos: i128::from(v) * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// A number of bytes that prints with `Ki`, `Mi`, ….
    pub fn from_bytes(v: i64) -> Quantity {
        Quantity {
            nanos: i128::from(v) * NANO,
            format: Format::BinarySi,
        }
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        saturate(div_away(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        saturate(div_away(self.nanos, NANO / 1000))
    }

    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The text every server prints for this quantity, whatever way it was written.
    pub fn canonical(s: &str) -> Result<String, QuantityError> {
        Quantity::parse(s).map(|q| q.to_string())
    }
}

fn saturate(v: i128) -> i64 {
    v.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn div_away(v: i128, by: i128) -> i128 {
    let q = v / by;
    if v % by == 0 { q } else { q + v.signum() }
}

/// The magnitude in nanos, rounded up, saturating at [`LIMIT`].
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let mut mantissa: i128 = 0;
    // Digits beyond what fits shift the exponent; what they held can only round.
    let mut exponent: i64 = 0;
    let mut lost = false;
    let mut seen_point = false;
    let limit = match scale {
        Scale::Ten(_) => MANTISSA_LIMIT,
        Scale::Two(_) => BINARY_MANTISSA_LIMIT,
    };
    for b in whole.bytes().chain([b'.']).chain(fraction.bytes()) {
        if b == b'.' {
            seen_point = true;
            continue;
        }
        let digit = i128::from(b - b'0');
        if mantissa < limit {
            mantissa = mantissa * 10 + digit;
            if seen_point {
                exponent -= 1;
            }
        } else {
            lost |= digit != 0;
            if !seen_point {
                exponent += 1;
            }
        }
    }
    if mantissa == 0 && !lost {
        return 0;
    }
    let ten = match scale {
        Scale::Ten(n) => exponent + i64::from(n) + 9,
        Scale::Two(bits) => {
            mantissa = match mantissa.checked_mul(1i128 << bits) {
                Some(m) => m,
                None => return LIMIT,
            };
            exponent + 9
        }
    };
    let mut value = mantissa;
    if ten >= 0 {
        for _ in 0..ten {
            value = match value.checked_mul(10) {
                Some(v) if v < LIMIT => v,
                _ => return LIMIT,
            };
        }
    } else {
        for _ in 0..-ten {
            lost |= value % 10 != 0;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        if lost {
            value += 1;
        }
    }
    value.min(LIMIT)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let below_kibi = self.nanos.abs() < 1024 * NANO;
        // A fraction has no binary suffix; it is shown in decimal rather than rounded.
        if self.format == Format::BinarySi && !below_kibi && self.nanos % NANO == 0 {
            let mut v = self.nanos / NANO;
            let mut step = 0;
            while step < 6 && v % 1024 == 0 {
                v /= 1024;
                step += 1;
            }
            return write!(f, "{v}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let mut v = self.nanos;
        let mut exponent = -9i32;
        while v % 1000 == 0 && (self.format == Format::DecimalExponent || exponent < 18) {
            v /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            if exponent == 0 {
                return write!(f, "{v}");
            }
            return write!(f, "{v}e{exponent}");
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{v}{suffix}")
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(s)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: (self.nanos + other.nanos).clamp(-LIMIT, LIMIT),
            format,
        }
    }
}

impl Neg for Quantity {
    type Output = Quantity;
    fn neg(self) -> Quantity {
        Quantity {
            nanos: -self.nanos,
            format: self.format,
        }
    }
}

impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        self + -other
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Quantity) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::default(), Add::add)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Quantity, D::Error> {
        let s = String::deserialize(d)?;
        Quantity::parse(&s).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_digits_are_read_back_as_they_were_written() {
        let text = Quantity::canonical("9999999999.01999999Ki").unwrap();
        assert_eq!(text, "10239999998996479989760n");
        assert_eq!(Quantity::canonical(&text).unwrap(), text);
    }

    #[test]
    fn canonical_forms() {
        for (input, want) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("0.1", "100m"),
            ("10000", "10k"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1023Ki", "1023Ki"),
            ("1Gi", "1Gi"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("1.2e6", "1200e3"),
            ("1e-3", "1e-3"),
            ("123456789", "123456789"),
            ("-100m", "-100m"),
            ("+5", "5"),
            ("0.0000000001", "1n"),
            ("100Ei", "9223372036854775807"),
            (".5", "500m"),
            ("5.", "5"),
            ("2E", "2E"),
            ("1n", "1n"),
            ("1000E", "1000E"),
        ] {
            assert_eq!(Quantity::canonical(input).as_deref(), Ok(want), "{input}");
            let again = Quantity::parse(want).unwrap();
            assert_eq!(
                again,
                Quantity::parse(input).unwrap(),
                "{input} keeps its value"
            );
            assert_eq!(again.to_string(), want, "canonical is a fixed point");
        }
        for bad in [
            "", "a", "1 Gi", "1.2.3", ".", "1gi", "1i", "e3", "1Kii", "1e", "--1", "1e1.5",
        ] {
            assert!(Quantity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arithmetic_and_rounding() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert_eq!((q("100m") + q("1")).to_string(), "1100m");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("1u").milli_value(), 1);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
        assert_eq!(q("1e400").value(), i64::MAX);
        assert_eq!(q("1e-400").to_string(), "1n".replace('n', "e-9"));
    }
}
