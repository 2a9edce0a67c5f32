//! The seam between the client and whatever carries its requests.

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

use crate::Error;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response body: whole or an endless stream of watch frames.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Carries one request. The request's URI holds path and query only; credentials and address are
/// the transport's.
pub trait Transport: Send + Sync + 'static {
    fn call(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Error>>;
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
