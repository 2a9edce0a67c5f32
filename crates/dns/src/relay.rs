//! Queries about names of other domains, passed on to the host's resolvers as they came.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// Queries under way at once.
const MAX_RELAYED: usize = 1000;
/// A resolver that has answered lately may take this long: it asks others itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where none has answered lately nobody is kept waiting: a pod's program asks several times.
const DOUBT: Duration = Duration::from_millis(600);
const LATELY: Duration = Duration::from_secs(60);
/// The next resolver is asked as well when the one before has not answered by then.
const HEDGE: Duration = Duration::from_millis(150);

pub(crate) struct Relay {
    resolvers: Vec<Resolver>,
    under_way: Semaphore,
}

struct Resolver {
    address: SocketAddr,
    answered_at: Mutex<Option<Instant>>,
}

impl Relay {
    pub(crate) fn new(addresses: &[SocketAddr]) -> Self {
        let resolver = |address: &SocketAddr| Resolver {
            address: *address,
            answered_at: Mutex::new(None),
        };
        Self {
            resolvers: addresses.iter().map(resolver).collect(),
            under_way: Semaphore::new(MAX_RELAYED),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.resolvers.is_empty()
    }

    /// The first reply of any resolver; `None` when all failed, none answered in time, or too many
    /// queries are under way.
    pub(crate) async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let _permit = self.under_way.try_acquire().ok()?;
        let patience = match self.resolvers.iter().any(Resolver::has_answered_lately) {
            true => PATIENCE,
            false => DOUBT,
        };
        let asked = async {
            let mut replies: FuturesUnordered<_> = (0_u32..)
                .zip(&self.resolvers)
                .map(|(turn, resolver)| async move {
                    tokio::time::sleep(HEDGE * turn).await;
                    resolver.ask(query, over_tcp).await
                })
                .collect();
            while let Some(reply) = replies.next().await {
                if reply.is_some() {
                    return reply;
                }
            }
            None
        };
        tokio::time::timeout(patience, asked).await.ok().flatten()
    }
}

impl Resolver {
    fn has_answered_lately(&self) -> bool {
        self.answered_at().is_some_and(|at| at.elapsed() < LATELY)
    }

    fn answered_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.answered_at
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let address = self.address;
        let reply = match over_tcp {
            true => ask_over_tcp(address, query).await,
            false => ask_over_udp(address, query).await,
        };
        match reply {
            Ok(reply) => {
                *self.answered_at() = Some(Instant::now());
                Some(reply)
            }
            Err(error) => {
                tracing::debug!(resolver = %address, %error, "an upstream resolver failed");
                *self.answered_at() = None;
                None
            }
        }
    }
}

async fn ask_over_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if upstream.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(query).await?;
    let mut buffer = vec![0_u8; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else than the reply to this very query is dropped.
        if length >= 12 && buffer[..2] == query[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_over_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream
        .write_u16(u16::try_from(query.len()).map_err(io::Error::other)?)
        .await?;
    stream.write_all(query).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0_u8; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn silent() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    const QUERY: [u8; 12] = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];

    #[tokio::test]
    async fn resolvers_that_are_silent_keep_nobody_waiting() {
        let ((_one, first), (_two, second)) = (silent().await, silent().await);
        let relay = Relay::new(&[first, second]);
        // Far more than it takes, and less than a client of the C library waits for one answer.
        let answer = tokio::time::timeout(Duration::from_secs(4), relay.ask(&QUERY, false));
        assert_eq!(answer.await, Ok(None));
    }

    #[tokio::test]
    async fn the_second_resolver_answers_for_the_first() {
        let ((_one, first), (two, second)) = (silent().await, silent().await);
        let relay = Relay::new(&[first, second]);
        let answering = tokio::spawn(async move {
            let mut buffer = [0_u8; 64];
            let (length, from) = two.recv_from(&mut buffer).await.unwrap();
            two.send_to(&buffer[..length], from).await.unwrap();
        });
        assert_eq!(relay.ask(&QUERY, false).await.as_deref(), Some(&QUERY[..]));
        answering.await.unwrap();
        assert!(relay.resolvers[1].has_answered_lately());
        assert!(!relay.resolvers[0].has_answered_lately());
    }
}
