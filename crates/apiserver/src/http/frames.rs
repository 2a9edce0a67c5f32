//! The size of what leaves in one piece.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::request::{Body, BoxError};

/// What a frame of HTTP/2 may hold so that, with its head of nine bytes, it fills one TLS record
/// of 2^14 bytes. A larger one would leave a record of a few bytes behind each full one, which
/// both ends would encrypt, read and take apart on its own.
const FRAME: usize = (16 << 10) - 9;

/// The same body, its data in pieces of at most [`FRAME`] bytes.
pub(super) struct Frames {
    body: Body,
    rest: Bytes,
}

impl Frames {
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            rest: Bytes::new(),
        }
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let size = self.rest.len().min(FRAME);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest + body.lower());
        if let Some(upper) = body.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;
    use crate::request::{empty, full};

    #[tokio::test]
    async fn a_large_body_comes_in_pieces_that_fill_a_record() {
        let text: Vec<u8> = (0..3 * FRAME + 5).map(|at| at as u8).collect();
        let mut body = Frames::new(full(text.clone()));
        assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
        }
        let sizes: Vec<_> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [FRAME, FRAME, FRAME, 5]);
        assert_eq!(pieces.concat(), text);
        assert!(body.is_end_stream());
        assert!(Frames::new(empty()).is_end_stream());
    }
}
