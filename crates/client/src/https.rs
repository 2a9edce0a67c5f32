//! Requests over HTTPS, multiplexed on HTTP/2 where the server offers it.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::error::causes;
use crate::{Body, ClientConfig, Error, Result, Transport};

pub struct HttpsTransport {
    client: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    server: String,
    authorization: Option<HeaderValue>,
}

impl HttpsTransport {
    pub fn new(config: &ClientConfig) -> Result<Self> {
        let mut connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config.tls()?)
            .https_or_http();
        if let Some(name) = &config.tls_server_name {
            let name = rustls::pki_types::ServerName::try_from(name.clone()).map_err(|_| {
                Error::Config(format!("tls-server-name {name:?} is not a host name"))
            })?;
            connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        // The head and the body of a request are written apart: the body would wait for the
        // other end's delayed acknowledgement of the head.
        tcp.set_nodelay(true);
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            // A dead peer is noticed within a minute, watches included.
            .http2_keep_alive_interval(std::time::Duration::from_secs(30))
            .http2_keep_alive_while_idle(false)
            .build(connector.enable_all_versions().wrap_connector(tcp));
        let authorization = match config.token.trim() {
            "" => None,
            token => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                    Error::Config(
                        "the bearer token holds characters that a header cannot carry".to_owned(),
                    )
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            client,
            server: config.server.trim_end_matches('/').to_owned(),
            authorization,
        })
    }
}

impl Transport for HttpsTransport {
    fn call(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Body>>> {
        let (mut parts, body) = request.into_parts();
        let uri = format!("{}{}", self.server, parts.uri).parse();
        if let Some(value) = &self.authorization {
            parts.headers.insert(AUTHORIZATION, value.clone());
        }
        let client = self.client.clone();
        async move {
            parts.uri = uri.map_err(|error| Error::Transport(format!("{error}")))?;
            let response = client
                .request(http::Request::from_parts(parts, Full::new(body)))
                .await;
            let response = response.map_err(|error| Error::Transport(causes(&error)))?;
            Ok(response.map(|body| body.map_err(|error| error.into()).boxed_unsync()))
        }
        .boxed()
    }
}
