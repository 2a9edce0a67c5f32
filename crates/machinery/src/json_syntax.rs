//! What Go's JSON decoder says of text that is no JSON. Clients of the API see these words, so a
//! body that our parser refuses is looked through once more to find them.

/// Deeper nesting is refused by Go's decoder.
const MAX_DEPTH: usize = 10_000;

/// The message, or nothing where Go would have decoded the text.
pub fn error(text: &[u8]) -> Option<String> {
    let mut scan = Scan { text, at: 0 };
    scan.document().err()
}

struct Scan<'t> {
    text: &'t [u8],
    at: usize,
}

type Step = Result<(), String>;

impl Scan<'_> {
    fn document(&mut self) -> Step {
        // `true` for an object, `false` for an array.
        let mut open: Vec<bool> = Vec::new();
        let mut expect_value = true;
        loop {
            self.space();
            if expect_value {
                match self.peek()? {
                    b'{' => {
                        self.enter(&mut open, true)?;
                        if self.next_is(b'}') {
                            open.pop();
                        } else {
                            self.key()?;
                            continue;
                        }
                    }
                    b'[' => {
                        self.enter(&mut open, false)?;
                        if self.next_is(b']') {
                            open.pop();
                        } else {
                            continue;
                        }
                    }
                    _ => self.scalar()?,
                }
                expect_value = false;
                continue;
            }
            let Some(object) = open.last().copied() else {
                return match self.text.get(self.at) {
                    None => Ok(()),
                    Some(_) => self.refuse("after top-level value"),
                };
            };
            match (self.peek()?, object) {
                (b',', true) => {
                    self.at += 1;
                    self.space();
                    self.key()?;
                    expect_value = true;
                }
                (b',', false) => {
                    self.at += 1;
                    expect_value = true;
                }
                (b'}', true) | (b']', false) => {
                    self.at += 1;
                    open.pop();
                }
                (_, true) => return self.refuse("after object key:value pair"),
                (_, false) => return self.refuse("after array element"),
            }
        }
    }

    fn enter(&mut self, open: &mut Vec<bool>, object: bool) -> Step {
        open.push(object);
        if open.len() > MAX_DEPTH {
            return self.refuse("exceeded max depth");
        }
        self.at += 1;
        self.space();
        self.peek().map(|_| ())
    }

    fn key(&mut self) -> Step {
        if self.peek()? != b'"' {
            return self.refuse("looking for beginning of object key string");
        }
        self.string()?;
        self.space();
        if self.peek()? != b':' {
            return self.refuse("after object key");
        }
        self.at += 1;
        Ok(())
    }

    fn scalar(&mut self) -> Step {
        match self.peek()? {
            b'"' => self.string(),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.refuse("looking for beginning of value"),
        }
    }

    fn literal(&mut self, word: &str) -> Step {
        for (index, expected) in word.bytes().enumerate() {
            if self.peek()? != expected {
                debug_assert!(index > 0, "the first letter led here");
                return self.refuse(&format!(
                    "in literal {word} (expecting {})",
                    quote(expected)
                ));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Step {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    self.at += 1;
                    match self.peek()? {
                        b'u' => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek()?.is_ascii_hexdigit() {
                                    return self.refuse("in \\u hexadecimal character escape");
                                }
                                self.at += 1;
                            }
                        }
                        b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.at += 1,
                        _ => return self.refuse("in string escape code"),
                    }
                }
                0..=0x1f => return self.refuse("in string literal"),
                _ => self.at += 1,
            }
        }
    }

    fn number(&mut self) -> Step {
        if self.next_is(b'-') && !self.peek()?.is_ascii_digit() {
            return self.refuse("in numeric literal");
        }
        if !self.next_is(b'0') {
            self.digits();
        }
        if self.next_is(b'.') {
            if !self.peek()?.is_ascii_digit() {
                return self.refuse("after decimal point in numeric literal");
            }
            self.digits();
        }
        if self.next_is(b'e') || self.next_is(b'E') {
            let _ = self.next_is(b'+') || self.next_is(b'-');
            if !self.peek()?.is_ascii_digit() {
                return self.refuse("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, String> {
        self.text
            .get(self.at)
            .copied()
            .ok_or_else(|| "unexpected end of JSON input".to_owned())
    }

    fn next_is(&mut self, byte: u8) -> bool {
        let is = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(is);
        is
    }

    fn refuse(&self, place: &str) -> Step {
        let byte = self.text.get(self.at).copied().unwrap_or_default();
        Err(format!("invalid character {} {place}", quote(byte)))
    }
}

/// A byte as Go's decoder quotes it: taken for a code point of its own.
fn quote(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            let quoted = crate::go::quote(char::from(byte).encode_utf8(&mut [0; 4]));
            format!("'{}'", quoted.trim_matches('"'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_go() {
        // Taken from the answers of a v1.36 API server.
        for (text, message) in [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("x", "invalid character 'x' looking for beginning of value"),
            (r#"{"a"}"#, "invalid character '}' after object key"),
            (
                r#"{"a":}"#,
                "invalid character '}' looking for beginning of value",
            ),
            (
                r#"{"a":1,}"#,
                "invalid character '}' looking for beginning of object key string",
            ),
            (
                r#"{"a":tru}"#,
                "invalid character '}' in literal true (expecting 'e')",
            ),
            (
                "{\"a\":\"\u{1}\"}",
                r"invalid character '\x01' in string literal",
            ),
            (
                r#"{"a":"\q"}"#,
                "invalid character 'q' in string escape code",
            ),
            ("1 2", "invalid character '2' after top-level value"),
            (
                r#"{"a":01}"#,
                "invalid character '1' after object key:value pair",
            ),
            (
                r#"{"a":1.}"#,
                "invalid character '}' after decimal point in numeric literal",
            ),
            (
                r#"{"a":1e}"#,
                "invalid character '}' in exponent of numeric literal",
            ),
            ("[1 2]", "invalid character '2' after array element"),
        ] {
            assert_eq!(error(text.as_bytes()).as_deref(), Some(message), "{text}");
        }
        let deep = "[".repeat(20_000);
        assert_eq!(
            error(deep.as_bytes()).as_deref(),
            Some("invalid character '[' exceeded max depth")
        );
    }

    #[test]
    fn json_has_no_error() {
        for text in [
            "{}",
            " [ ] ",
            r#"{"a":[1,-2.5e+3,{"b":null}],"c":"\u00e9\n"} "#,
            "true",
            "0",
        ] {
            assert_eq!(error(text.as_bytes()), None, "{text}");
        }
    }
}
