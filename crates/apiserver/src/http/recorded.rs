//! The end of a request as the audit log sees it.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use keelson_machinery::status::Status;

use super::guarded::guarded;
use crate::audit::{MAX_OBJECT_BYTES, Record};
use crate::registry::codec;
use crate::request::{Body, BoxError, Response, full};

/// Where the record of a request is put once it has begun; what happens afterwards, a time-out or
/// a panic too, is written there.
#[derive(Clone, Default)]
pub(super) struct Recorded(Arc<OnceLock<Option<Arc<Record>>>>);

impl Recorded {
    pub(super) fn set(&self, record: Option<Arc<Record>>) {
        let _ = self.0.set(record);
    }

    pub(super) fn get(&self) -> Option<Ending> {
        self.0.get().cloned().flatten().map(Ending)
    }
}

pub(super) struct Ending(Arc<Record>);

impl Ending {
    pub(super) fn panic(self, response: Response) -> Response {
        self.0.status(response.status().as_u16(), None);
        self.0.panicked();
        response
    }

    /// Writes what is answered; a long-running request is complete when its answer ends.
    pub(super) async fn answer(
        self,
        response: Response,
        refusal: Option<&Status>,
        long_running: bool,
    ) -> Response {
        let record = self.0;
        let code = response.status().as_u16();
        record.status(code, refusal);
        if long_running {
            record.started();
            return response.map(|body| guarded(body, Completion(record)));
        }
        let response = if record.wants_response() || code >= 400 {
            look_into(&record, response).await
        } else {
            response
        };
        record.complete();
        response
    }
}

/// Takes the object out of an answer and puts the same bytes back. What is too large is sent
/// on unrecorded.
async fn look_into(record: &Record, response: Response) -> Response {
    let encoding = response
        .headers()
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| codec::encoding_of(value.split(';').next().unwrap_or_default()));
    let large = http_body::Body::size_hint(response.body()).lower() > MAX_OBJECT_BYTES as u64;
    let Some(encoding) = encoding.filter(|_| !large) else {
        return response;
    };
    let (parts, body) = response.into_parts();
    let (begin, rest) = take(body).await;
    let code = parts.status.as_u16();
    let rest = match rest {
        None => {
            if let Ok(object) = codec::body_value(&begin, encoding) {
                if code >= 400 && object["kind"] == "Status" {
                    record.refused(&object);
                }
                if record.wants_response() {
                    record.response_object(object);
                }
            }
            full(begin)
        }
        Some(rest) => Joined {
            begin: Some(begin),
            rest,
        }
        .boxed_unsync(),
    };
    Response::from_parts(parts, rest)
}

/// The whole body, or its beginning and the rest when it is large or breaks off.
async fn take(mut body: Body) -> (Bytes, Option<Body>) {
    let mut out = Vec::new();
    while out.len() <= MAX_OBJECT_BYTES {
        match body.frame().await {
            None => return (out.into(), None),
            Some(Ok(frame)) => out.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => {
                let broken = futures::stream::once(async move { Err(error) });
                let rest = http_body_util::StreamBody::new(broken);
                return (out.into(), Some(rest.boxed_unsync()));
            }
        }
    }
    (out.into(), Some(body))
}

struct Joined {
    begin: Option<Bytes>,
    rest: Body,
}

impl http_body::Body for Joined {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.begin.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

/// Completes the record when the body ends, however it ends.
struct Completion(Arc<Record>);

impl Drop for Completion {
    fn drop(&mut self) {
        self.0.complete();
    }
}
