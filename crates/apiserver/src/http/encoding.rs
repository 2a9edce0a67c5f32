//! Response headers and compression that apply to every request.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;

use crate::request::{Body, BoxError, RequestInfo, Response, Warnings};

/// Smaller bodies cost more time to compress than to send.
const GZIP_THRESHOLD_BYTES: u64 = 128 * 1024;

pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|value| {
            value.split(',').any(|item| {
                let (coding, quality) = item.split_once(';').unwrap_or((item, ""));
                coding.trim().eq_ignore_ascii_case("gzip") && quality.trim() != "q=0"
            })
        })
}

/// Whether the answer may be compressed: of get and list, to whom accepts it.
pub(super) fn may_compress(info: &RequestInfo, headers: &HeaderMap) -> bool {
    matches!(info.verb.as_str(), "get" | "list") && !info.is_long_running() && accepts_gzip(headers)
}

/// Compresses large JSON and protobuf answers.
pub(super) fn compress(response: Response) -> Response {
    let eligible = response.status() == http::StatusCode::OK
        && !response.headers().contains_key(CONTENT_ENCODING)
        && response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| {
                v.starts_with("application/json") || v.starts_with("application/vnd.kubernetes")
            });
    let large = response
        .body()
        .size_hint()
        .exact()
        .is_none_or(|size| size >= GZIP_THRESHOLD_BYTES);
    if !eligible || !large {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    parts
        .headers
        .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts
        .headers
        .append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let body = Gzip {
        inner: Some(body),
        encoder: Some(GzEncoder::new(Vec::new(), Compression::new(1))),
    };
    Response::from_parts(parts, body.boxed_unsync())
}

/// Compresses frames as they come.
struct Gzip {
    inner: Option<Body>,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn push(&mut self, data: &[u8]) -> std::io::Result<Option<Bytes>> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(None);
        };
        encoder.write_all(data)?;
        let out = encoder.get_mut();
        Ok((out.len() >= 16 * 1024).then(|| Bytes::from(std::mem::take(out))))
    }

    fn finish(&mut self) -> std::io::Result<Option<Bytes>> {
        self.inner = None;
        self.encoder
            .take()
            .map(|encoder| encoder.finish().map(Bytes::from))
            .transpose()
    }
}

impl http_body::Body for Gzip {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let Some(inner) = &mut self.inner else {
                return Poll::Ready(None);
            };
            let out = match std::task::ready!(Pin::new(inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.push(&data),
                    Err(_) => continue,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.finish(),
            };
            match out {
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

/// Adds the headers that every answer carries.
pub(super) fn finish_headers(audit_id: &str, warnings: &Warnings, response: &mut Response) {
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(audit_id) {
        headers.insert("audit-id", value);
    }
    headers
        .entry("cache-control")
        .or_insert(HeaderValue::from_static("no-cache, private"));
    for warning in warnings.take() {
        if let Ok(value) = HeaderValue::from_str(&warning_value(&warning)) {
            headers.append("warning", value);
        }
    }
}

/// RFC 7234 warning with code 299; control characters have no place in a header.
fn warning_value(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 10);
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    format!("299 - \"{quoted}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_warnings_are_escaped() {
        assert_eq!(
            warning_value("unknown field \"a\"\n"),
            "299 - \"unknown field \\\"a\\\" \""
        );
    }

    #[test]
    fn gzip_is_taken_when_offered_and_not_refused() {
        let headers = |v: &str| {
            let mut map = HeaderMap::new();
            map.insert(ACCEPT_ENCODING, HeaderValue::from_str(v).unwrap());
            map
        };
        assert!(accepts_gzip(&headers("deflate, gzip;q=0.5")));
        assert!(!accepts_gzip(&headers("gzip;q=0")));
        assert!(!accepts_gzip(&headers("br")));
    }

    #[tokio::test]
    async fn compressed_frames_unpack_to_what_went_in() {
        use std::io::Read;
        let text = vec![b'x'; 300_000];
        let body = Gzip {
            inner: Some(crate::request::full(text.clone())),
            encoder: Some(GzEncoder::new(Vec::new(), Compression::new(1))),
        };
        let packed = body.collect().await.unwrap().to_bytes();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut unpacked)
            .unwrap();
        assert_eq!(unpacked, text);
    }
}
