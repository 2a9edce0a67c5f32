//! Calls to a key management service: `v2.KeyManagementService` over a unix socket.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// Far more than any message of this API needs.
const MESSAGE_BYTES: usize = 1 << 20;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatusResponse {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(string, tag = "2")]
    pub(super) healthz: String,
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    #[prost(string, tag = "3")]
    pub(super) key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub(super) annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(super) annotations: BTreeMap<String, Vec<u8>>,
}

pub(super) struct Client {
    channel: Channel,
    timeout: Duration,
}

impl Client {
    /// `unix:///path`, or `unix:///@name` for a socket without a file. Nothing is called yet.
    pub(super) fn new(endpoint: &str, timeout: Duration) -> Result<Self, String> {
        let path = parse_endpoint(endpoint)?;
        // The authority is what grpc servers expect of a socket that has none.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector_lazy(Connector { path });
        Ok(Self { channel, timeout })
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, String> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {})
            .await
    }

    pub(super) async fn encrypt(&self, request: EncryptRequest) -> Result<EncryptResponse, String> {
        self.call("/v2.KeyManagementService/Encrypt", request).await
    }

    pub(super) async fn decrypt(&self, request: DecryptRequest) -> Result<DecryptResponse, String> {
        self.call("/v2.KeyManagementService/Decrypt", request).await
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, String>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let call = async {
            let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(
                Request::new(message),
                PathAndQuery::from_static(path),
                ProstCodec::<Q, A>::default(),
            )
            .await
        };
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(format!(
                "rpc error: code = {:?} desc = {}",
                status.code(),
                status.message()
            )),
            Err(_) => Err(
                "rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned(),
            ),
        }
    }
}

/// The path of the socket.
fn parse_endpoint(endpoint: &str) -> Result<String, String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
    if scheme != "unix" {
        return Err(format!(
            "unsupported scheme {scheme:?} for remote KMS provider"
        ));
    }
    // A host would be in front of the first slash; sockets have none.
    let path = rest.find('/').map_or("", |at| &rest[at..]);
    Ok(match path.strip_prefix("/@") {
        Some(name) => format!("@{name}"),
        None => path.to_owned(),
    })
}

#[derive(Clone)]
struct Connector {
    path: String,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.path.clone();
        Box::pin(async move {
            let stream = match path.strip_prefix('@') {
                None => UnixStream::connect(&path).await?,
                Some(name) => {
                    let address = SocketAddr::from_abstract_name(name)?;
                    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream)?
                }
            };
            Ok(TokioIo::new(stream))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_sockets() {
        for (endpoint, path) in [
            ("unix:///run/kms.sock", Ok("/run/kms.sock")),
            ("unix:///@kms", Ok("@kms")),
            (
                "http://h/x",
                Err("unsupported scheme \"http\" for remote KMS provider"),
            ),
        ] {
            let expected = path.map(ToOwned::to_owned).map_err(ToOwned::to_owned);
            assert_eq!(parse_endpoint(endpoint), expected);
        }
    }
}
