//! The client's way to the server without a socket: the same dispatcher, the caller's identity
//! known from the start.

use std::sync::Arc;

use ::http::Request;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_client::{Error, Transport};

use crate::http::{Caller, RequestBody};
use crate::request::{Response, UserInfo};
use crate::server::Server;

pub(crate) struct InProcess {
    pub(crate) server: Arc<Server>,
    pub(crate) user: Arc<UserInfo>,
}

impl Transport for InProcess {
    fn call(&self, request: Request<Bytes>) -> BoxFuture<'static, Result<Response, Error>> {
        let server = Arc::clone(&self.server);
        let caller = Caller::Known(Arc::clone(&self.user));
        let (parts, body) = request.into_parts();
        async move { Ok(server.handle(parts, RequestBody::Whole(body), caller).await) }.boxed()
    }
}
