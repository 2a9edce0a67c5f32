//! Accepts connections and serves HTTP/2 and HTTP/1.1 on them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::executor::AtOnce;
use super::frames::Frames;
use super::gather::Gather;
use crate::authn::Chain;
use crate::pki::ServingCertificate;
use crate::request::Response;

/// Connections open at once. Beyond it new ones wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 8192;
/// client-go keeps all its watches on one connection.
const MAX_STREAMS: u32 = 2000;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long open requests may take to end once the server shuts down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The certificate chain the client proved to hold the key of.
    pub(crate) chain: Arc<Chain>,
}

pub(crate) trait Serve: Send + Sync + 'static {
    fn serve(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        peer: Peer,
    ) -> impl Future<Output = Response> + Send;
}

/// Serves until `stop`, then lets open requests end for a moment.
pub(crate) async fn listen<S: Serve>(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    certificate: Arc<ServingCertificate>,
    service: Arc<S>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                // Out of descriptors, mostly; waiting lets connections end and free some.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, certificate) = (acceptor.clone(), Arc::clone(&certificate));
        let (service, stop) = (Arc::clone(&service), stop.clone());
        tasks.spawn(async move {
            connection(stream, address, acceptor, certificate, service, stop).await;
            drop(slot);
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await;
}

async fn connection<S: Serve>(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    certificate: Arc<ServingCertificate>,
    service: Arc<S>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    if let Ok(local) = stream.local_addr()
        && let Err(error) = certificate.follow(local.ip())
    {
        tracing::warn!(%error, address = %local.ip(), "the serving certificate cannot follow this address");
    }
    let socket = Gather::new(stream);
    let accepting = acceptor.accept(socket.clone());
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(%error, %address, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = tls
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| chain.to_vec())
        .unwrap_or_default();
    let peer = Peer {
        address,
        chain: Arc::new(Chain::new(certificates)),
    };
    let handler = service_fn(move |request| {
        let (service, peer) = (Arc::clone(&service), peer.clone());
        async move {
            let response = service.serve(request, peer).await;
            Ok::<_, Infallible>(response.map(Frames::new))
        }
    });

    let mut builder = auto::Builder::new(AtOnce);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(1 << 20)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(30));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(tls), handler);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = socket.drive(serving.as_mut()) => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            socket.drive(serving).await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, %address, "connection ended");
    }
}
