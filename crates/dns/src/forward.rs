//! Asks the host's resolvers what the cluster does not know.
//!
//! The first resolver that is up is asked first. One that is slow gets company after [`Timing::hedge`],
//! and is asked for the root's name servers, which every living resolver knows at once: no reply to
//! that either and it is down, so that a name waits long only for a resolver that lives. Those that
//! are down are left out until they answer again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

use crate::cache::Cache;

/// Queries under way at once; beyond it clients get SERVFAIL and ask again.
const MAX_OUTSTANDING: usize = 1000;
const MAX_UDP_REPLY_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// For a reply of a resolver that lives.
    pub(crate) patience: Duration,
    /// Before the next resolver is asked too.
    pub(crate) hedge: Duration,
    /// For the reply to a probe, and between two of them. Short, because names fail meanwhile;
    /// probing ends when nobody asks.
    pub(crate) probe: Duration,
    /// Probing ends this long after the last query.
    pub(crate) idle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            patience: Duration::from_secs(2),
            hedge: Duration::from_millis(200),
            probe: Duration::from_millis(400),
            idle: Duration::from_secs(10),
        }
    }
}

pub(crate) struct Forwarder {
    resolvers: Vec<Arc<Resolver>>,
    timing: Timing,
    outstanding: Semaphore,
    cache: Mutex<Cache>,
}

struct Resolver {
    address: SocketAddr,
    is_up: watch::Sender<bool>,
    probing: Mutex<Probing>,
}

#[derive(Default)]
struct Probing {
    is_running: bool,
    last_asked: Option<Instant>,
}

/// A reply, in the bytes that came.
struct Reply {
    bytes: Vec<u8>,
    message: Message,
}

impl Reply {
    /// Another resolver may know better.
    fn is_failure(&self) -> bool {
        matches!(
            self.message.metadata.response_code,
            ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
        )
    }
}

impl Forwarder {
    pub(crate) fn new(resolvers: &[SocketAddr], timing: Timing) -> Self {
        let resolver = |address: &SocketAddr| {
            Arc::new(Resolver {
                address: *address,
                is_up: watch::Sender::new(true),
                probing: Mutex::default(),
            })
        };
        Forwarder {
            resolvers: resolvers.iter().map(resolver).collect(),
            timing,
            outstanding: Semaphore::new(MAX_OUTSTANDING),
            cache: Mutex::default(),
        }
    }

    /// A kept answer to this query.
    pub(crate) fn cached(&self, query: &Message) -> Option<Message> {
        self.cache().get(query, Instant::now())
    }

    /// The reply of a resolver as it came; `None` when no resolver gave one.
    pub(crate) async fn ask(&self, query: &Message, bytes: &[u8], stream: bool) -> Option<Vec<u8>> {
        let _permit = self.outstanding.try_acquire().ok()?;
        let mut next = self.resolvers.iter().filter(|resolver| resolver.noted());
        let mut asked = FuturesUnordered::new();
        let mut failure = None;
        loop {
            if asked.is_empty() {
                match next.next() {
                    Some(resolver) => asked.push(resolver.ask(query, bytes, stream, &self.timing)),
                    None => break,
                }
            }
            tokio::select! {
                Some(reply) = asked.next() => match reply {
                    Some(reply) if !reply.is_failure() => {
                        self.cache().put(query, &reply.message, Instant::now());
                        return Some(reply.bytes);
                    }
                    reply => failure = reply.or(failure),
                },
                () = tokio::time::sleep(self.timing.hedge) => {
                    if let Some(resolver) = next.next() {
                        asked.push(resolver.ask(query, bytes, stream, &self.timing));
                    }
                }
            }
        }
        let failure = failure?;
        self.cache().put(query, &failure.message, Instant::now());
        Some(failure.bytes)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    /// Whether it is up; somebody wants to know.
    fn noted(&self) -> bool {
        self.probing().last_asked = Some(Instant::now());
        *self.is_up.borrow()
    }

    async fn ask(
        self: &Arc<Self>,
        query: &Message,
        bytes: &[u8],
        stream: bool,
        timing: &Timing,
    ) -> Option<Reply> {
        let mut is_up = self.is_up.subscribe();
        let exchange = async {
            if stream {
                over_tcp(self.address, query, bytes).await
            } else {
                over_udp(self.address, query, bytes).await
            }
        };
        tokio::pin!(exchange);
        let slow = tokio::time::timeout(timing.hedge, &mut exchange).await;
        let result = match slow {
            Ok(result) => result,
            Err(_) => {
                self.probe(*timing);
                tokio::select! {
                    result = &mut exchange => result,
                    _ = is_up.wait_for(|is_up| !is_up) => Err(io::ErrorKind::HostUnreachable.into()),
                    () = tokio::time::sleep(timing.patience) => Err(io::ErrorKind::TimedOut.into()),
                }
            }
        };
        result
            .inspect_err(|error| {
                tracing::debug!(resolver = %self.address, %error, "a resolver did not answer")
            })
            .ok()
    }

    /// Finds out whether the resolver lives, and while it does not, when it does again.
    fn probe(self: &Arc<Self>, timing: Timing) {
        if std::mem::replace(&mut self.probing().is_running, true) {
            return;
        }
        let resolver = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let answers = tokio::time::timeout(timing.probe, resolver.lives()).await;
                let answers = answers.unwrap_or(false);
                resolver.set_up(answers);
                if answers {
                    break;
                }
                tokio::time::sleep(timing.probe).await;
                let mut probing = resolver.probing();
                if probing
                    .last_asked
                    .is_none_or(|at| at.elapsed() > timing.idle)
                {
                    // The next query finds out anew.
                    probing.is_running = false;
                    drop(probing);
                    resolver.set_up(true);
                    return;
                }
            }
            resolver.probing().is_running = false;
        });
    }

    fn set_up(&self, up: bool) {
        let changed = self
            .is_up
            .send_if_modified(|is_up| std::mem::replace(is_up, up) != up);
        if changed && !up {
            tracing::warn!(resolver = %self.address, "a resolver of this host does not answer; names outside of the cluster fail when no other one does");
        }
    }

    async fn lives(&self) -> bool {
        let mut probe = Message::query();
        probe.metadata.recursion_desired = true;
        probe.add_query(Query::query(Name::root(), RecordType::NS));
        match probe.to_vec() {
            Ok(bytes) => over_udp(self.address, &probe, &bytes).await.is_ok(),
            Err(_) => false,
        }
    }

    fn probing(&self) -> MutexGuard<'_, Probing> {
        self.probing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` unless it is a reply to this very query.
fn reply_to(query: &Message, bytes: &[u8]) -> Option<Reply> {
    let message = Message::from_vec(bytes).ok()?;
    let fits = message.metadata.id == query.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == query.queries;
    fits.then(|| Reply {
        bytes: bytes.to_vec(),
        message,
    })
}

async fn over_udp(resolver: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Reply> {
    let any: IpAddr = if resolver.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0_u8; MAX_UDP_REPLY_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(reply) = reply_to(query, &buffer[..length]) {
            return Ok(reply);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(resolver).await?;
    stream
        .write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?)
        .await?;
    stream.write_all(bytes).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0_u8; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    reply_to(query, &reply).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests;
