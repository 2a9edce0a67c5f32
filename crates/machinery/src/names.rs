//! Random suffixes, generated names, uids.

use rand::Rng;

/// No vowels, so that no words appear, and no characters that look alike.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Generated names fit a DNS label: the base is cut to leave room for the suffix.
const MAX_NAME: usize = 63;
const SUFFIX: usize = 5;

/// `n` random characters that may stand in a name.
pub fn random_suffix(n: usize) -> String {
    let mut rng = rand::rng();
    (0..n)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

/// A name from `metadata.generateName`.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_NAME - SUFFIX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], random_suffix(SUFFIX))
}

/// A fresh `metadata.uid`.
pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Maps a hash's digits to the alphabet of random suffixes.
pub fn safe_encode(s: &str) -> String {
    s.bytes()
        .map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        let n = generate_name("web-");
        assert!(n.starts_with("web-") && n.len() == 9);
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
        assert_ne!(generate_name("a"), generate_name("a"));
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }
}
