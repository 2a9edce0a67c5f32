//! Header blocks: name-value pairs in a zlib stream that lasts as long as the connection and starts
//! from a dictionary which both sides know.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// A header block may not be larger, compressed or not: a stream keeps its headers, and there are
/// many streams. Those of exec and port-forward are some hundred bytes.
const MAX_BLOCK_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// Words of the SPDY/3 dictionary that stand in it with their length in front (section 2.6.10.1 of
/// the protocol's third draft).
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows the words, without lengths.
const TAIL: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Una",
    "uthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service",
    " UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, ",
    "Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,applicat",
    "ion/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf",
    "-8charset=iso-8859-1,utf-,*,enq=0.",
);

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.extend_from_slice(&(word.len() as u32).to_be_bytes());
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
}

/// Header names are lower case; a name stands once, several values are separated by NUL.
pub type Headers = Vec<(String, String)>;

pub struct HeaderEncoder {
    zlib: Compress,
}

impl HeaderEncoder {
    pub fn new() -> Result<Self, SpdyError> {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary())
            .map_err(|error| SpdyError::Compression(error.to_string()))?;
        Ok(Self { zlib })
    }

    pub fn encode(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        plain.extend_from_slice(&length(headers.len())?);
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&length(text.len())?);
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut output = Vec::with_capacity(plain.len() + 64);
        let start = self.zlib.total_in();
        loop {
            let consumed = usize::try_from(self.zlib.total_in() - start)
                .unwrap_or(usize::MAX)
                .min(plain.len());
            output.reserve(256);
            self.zlib
                .compress_vec(&plain[consumed..], &mut output, FlushCompress::Sync)
                .map_err(|error| SpdyError::Compression(error.to_string()))?;
            let all_in = self.zlib.total_in() - start >= plain.len() as u64;
            // Room left over means that the flush is complete.
            if all_in && output.len() < output.capacity() {
                return Ok(output);
            }
        }
    }
}

fn length(length: usize) -> Result<[u8; 4], SpdyError> {
    u32::try_from(length)
        .map(u32::to_be_bytes)
        .map_err(|_| SpdyError::TooLarge)
}

pub struct HeaderDecoder {
    zlib: Decompress,
}

impl Default for HeaderDecoder {
    fn default() -> Self {
        Self {
            zlib: Decompress::new(true),
        }
    }
}

impl HeaderDecoder {
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        if block.len() > MAX_BLOCK_BYTES {
            return Err(SpdyError::TooLarge);
        }
        let plain = self.inflate(block)?;
        let mut rest = plain.as_slice();
        let count = take_length(&mut rest)?;
        if count > MAX_HEADERS {
            return Err(SpdyError::TooLarge);
        }
        let mut headers = Headers::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut rest)?;
            let value = take_text(&mut rest)?;
            headers.push((name, value));
        }
        Ok(headers)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut output = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            if output.len() > MAX_BLOCK_BYTES {
                return Err(SpdyError::TooLarge);
            }
            output.reserve(1024);
            let (before_in, before_out) = (self.zlib.total_in(), output.len());
            match self
                .zlib
                .decompress_vec(rest, &mut output, FlushDecompress::Sync)
            {
                Ok(status) => {
                    let consumed =
                        usize::try_from(self.zlib.total_in() - before_in).unwrap_or(usize::MAX);
                    rest = &rest[consumed.min(rest.len())..];
                    let stalled = consumed == 0 && output.len() == before_out;
                    if (rest.is_empty() && output.len() < output.capacity())
                        || status == Status::StreamEnd
                        || stalled
                    {
                        return Ok(output);
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    let consumed =
                        usize::try_from(self.zlib.total_in() - before_in).unwrap_or(usize::MAX);
                    rest = &rest[consumed.min(rest.len())..];
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|error| SpdyError::Compression(error.to_string()))?;
                }
                Err(error) => return Err(SpdyError::Compression(error.to_string())),
            }
        }
    }
}

fn take_length(rest: &mut &[u8]) -> Result<usize, SpdyError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(SpdyError::Truncated)?;
    *rest = tail;
    usize::try_from(u32::from_be_bytes(*head)).map_err(|_| SpdyError::TooLarge)
}

fn take_text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_length(rest)?;
    if length > rest.len() {
        return Err(SpdyError::Truncated);
    }
    let (text, tail) = rest.split_at(length);
    *rest = tail;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // The Adler-32 sum that peers send in front of their first block.
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_share_one_stream() {
        let mut encoder = HeaderEncoder::new().unwrap();
        let mut decoder = HeaderDecoder::default();
        let headers = |n: usize| -> Headers {
            (0..n)
                .map(|i| (format!("name-{i}"), "v".repeat(i * 37)))
                .collect()
        };
        for n in [0, 1, 3, 40, 2] {
            let block = encoder.encode(&headers(n)).unwrap();
            assert_eq!(decoder.decode(&block).unwrap(), headers(n));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(HeaderDecoder::default().decode(b"nonsense").is_err());
        assert!(HeaderDecoder::default().decode(&[]).is_err());
    }
}
