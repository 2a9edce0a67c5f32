//! Calls to whichever of the endpoints answers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Options;
use super::format::revision;
use super::messages::{Headed, StatusRequest, StatusResponse, WatchRequest, WatchResponse};
use crate::{Error, Result, Revision};

/// How long one endpoint has to answer before the next is asked.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long a call is tried on all of them; an election takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// What etcd's own clients accept: an answer is as large as what was asked for.
const MESSAGE_BYTES: usize = i32::MAX as usize;

pub(crate) struct Client {
    endpoints: Vec<(String, Channel)>,
    /// The one that answered last.
    current: AtomicUsize,
    /// The newest revision seen in any answer.
    newest: AtomicU64,
}

/// Why a call was not answered with a message.
pub(crate) enum Failure {
    /// No endpoint could be asked, or the answer was lost: it may or may not have been carried out.
    Unanswered(String),
    Refused(Status),
}

impl Client {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let fail = |path: &str, reason: String| Error::Open {
            path: path.to_owned(),
            reason,
        };
        if options.endpoints.is_empty() {
            return Err(fail("etcd", "no endpoint is given".to_owned()));
        }
        let mut endpoints = Vec::new();
        for url in &options.endpoints {
            let url = match url.contains("://") {
                true => url.clone(),
                false => format!("http://{url}"),
            };
            let mut endpoint = Endpoint::from_shared(url.clone())
                .map_err(|error| fail(&url, error.to_string()))?
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .tcp_keepalive(Some(Duration::from_secs(30)))
                // A peer that is gone without a word is noticed in fifteen seconds; etcd refuses
                // pings that come more often than every five.
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5))
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20);
            if url.starts_with("https://") {
                endpoint = endpoint
                    .tls_config(tls(options))
                    .map_err(|error| fail(&url, causes(&error)))?;
            }
            endpoints.push((url, endpoint.connect_lazy()));
        }
        Ok(Self {
            endpoints,
            current: AtomicUsize::new(0),
            newest: AtomicU64::new(0),
        })
    }

    pub(crate) fn newest(&self) -> Revision {
        self.newest.load(Ordering::Acquire)
    }

    pub(crate) fn saw(&self, revision: Revision) {
        self.newest.fetch_max(revision, Ordering::AcqRel);
    }

    /// Asks the endpoints in turn until one answers. A call that was lost on the way is repeated:
    /// everything sent through here may be carried out twice without harm.
    pub(crate) async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Headed + Send + Sync + 'static,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let turn = self.current.load(Ordering::Relaxed);
            let (url, channel) = &self.endpoints[turn % self.endpoints.len()];
            let attempt = (Instant::now() + ATTEMPT).min(deadline);
            let answer = timeout_at(attempt, unary(channel.clone(), path, message.clone())).await;
            let reason = match answer {
                Ok(Ok(answer)) => {
                    let answer: A = answer;
                    if let Some(header) = answer.header() {
                        self.saw(revision(header.revision));
                    }
                    return Ok(answer);
                }
                Ok(Err(status)) if is_lost(&status) => causes(&status),
                Ok(Err(status)) => return Err(Failure::Refused(status)),
                Err(_) => "no answer in time".to_owned(),
            };
            self.give_up_on(turn);
            let next = Instant::now() + PAUSE;
            if next >= deadline {
                return Err(Failure::Unanswered(format!("etcd at {url}: {reason}")));
            }
            sleep_until(next).await;
        }
    }

    /// A watch stream on the current endpoint; its number is for [`Client::give_up_on`].
    pub(crate) async fn watch(
        &self,
        requests: impl futures::Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<(usize, Streaming<WatchResponse>), Failure> {
        let turn = self.current.load(Ordering::Relaxed);
        let (url, channel) = &self.endpoints[turn % self.endpoints.len()];
        let failed = |status: Status| {
            self.give_up_on(turn);
            Failure::Unanswered(format!("etcd at {url}: {}", causes(&status)))
        };
        let open = async {
            let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(causes(&error)))?;
            let mut request = Request::new(requests);
            // A member without a leader would go on silently with what it has.
            request.metadata_mut().insert(
                "hasleader",
                tonic::metadata::MetadataValue::from_static("true"),
            );
            grpc.streaming(
                request,
                PathAndQuery::from_static("/etcdserverpb.Watch/Watch"),
                ProstCodec::<WatchRequest, WatchResponse>::default(),
            )
            .await
        };
        match tokio::time::timeout(ATTEMPT, open).await {
            Ok(Ok(response)) => Ok((turn, response.into_inner())),
            Ok(Err(status)) => Err(failed(status)),
            Err(_) => Err(failed(Status::deadline_exceeded("no answer in time"))),
        }
    }

    /// The versions of the endpoints that answer, each as it says it.
    pub(crate) async fn versions(&self) -> Vec<Option<String>> {
        let asked = self.endpoints.iter().map(|(_, channel)| async {
            let answer = unary::<_, StatusResponse>(channel.clone(), STATUS, StatusRequest {});
            match tokio::time::timeout(ATTEMPT, answer).await {
                Ok(Ok(status)) => Some(status.version),
                _ => None,
            }
        });
        futures::future::join_all(asked).await
    }

    /// Lets the next call go to another endpoint, unless somebody saw to that already.
    pub(crate) fn give_up_on(&self, turn: usize) {
        let _ = self.current.compare_exchange(
            turn,
            turn.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }
}

pub(crate) const STATUS: &str = "/etcdserverpb.Maintenance/Status";

fn tls(options: &Options) -> ClientTlsConfig {
    let mut tls = ClientTlsConfig::new();
    if let Some(pem) = &options.ca_pem {
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    if let Some((certificate, key)) = &options.client_pem {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    tls
}

async fn unary<Q, A>(channel: Channel, path: &'static str, message: Q) -> Result<A, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(causes(&error)))?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc
        .unary(
            Request::new(message),
            PathAndQuery::from_static(path),
            codec,
        )
        .await?;
    Ok(answer.into_inner())
}

/// Whether another attempt may fare better.
fn is_lost(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
        // What the transport says when a connection breaks in the middle of an answer.
        Code::Unknown | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unanswered(reason) => Error::Unavailable(reason),
            Failure::Refused(status) if status.message().contains("space exceeded") => {
                Error::Full(format!("etcd: {}", status.message()))
            }
            Failure::Refused(status) => Error::Io(status.message().to_owned()),
        }
    }
}

/// An error with everything that led to it.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
