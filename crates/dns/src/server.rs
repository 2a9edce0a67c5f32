//! The server: UDP and TCP on one address, answers from [`crate::records`], everything else
//! forwarded to the host's resolvers as it came.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record as WireRecord, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::forward::{Forwarder, Timing};
use crate::records::{Answer, Record, Source, resolve};

/// Upstream's CoreDNS default for cluster records.
const TTL_S: u32 = 30;
const MAX_CONNECTIONS: usize = 256;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a client without EDNS takes over UDP.
const PLAIN_UDP_BYTES: usize = 512;
/// What this server sends over UDP at most: fits a 1,500-byte frame unfragmented.
const MAX_UDP_BYTES: usize = 1232;
/// Following an alias stops after this many steps.
const MAX_ALIASES: usize = 8;

#[derive(Debug, Clone)]
pub struct DnsConfig {
    pub listen: SocketAddr,
    /// `cluster.local`
    pub domain: String,
    /// Where names outside the cluster are asked; without any they are answered SERVFAIL.
    pub upstream: Vec<SocketAddr>,
}

/// The resolvers of a `resolv.conf`, less those that are this server itself.
pub fn upstream_resolvers(resolv_conf: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("nameserver")?
                .trim()
                .parse::<IpAddr>()
                .ok()
        })
        .filter(|ip| !own.contains(ip))
        .map(|ip| SocketAddr::new(ip, 53))
        .take(3)
        .collect()
}

pub struct DnsServer {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    config: DnsConfig,
    source: Arc<dyn Source>,
    forwarder: Forwarder,
}

impl DnsServer {
    /// Binds both sockets, so that a port in use is an error now and not later.
    pub async fn bind(config: DnsConfig, source: Arc<dyn Source>) -> io::Result<Self> {
        let udp = UdpSocket::bind(config.listen).await?;
        let tcp = TcpListener::bind(SocketAddr::new(
            config.listen.ip(),
            udp.local_addr()?.port(),
        ))
        .await?;
        let shared = Shared {
            forwarder: Forwarder::new(&config.upstream, Timing::default()),
            config,
            source,
        };
        Ok(Self {
            udp: Arc::new(udp),
            tcp,
            shared: Arc::new(shared),
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    pub async fn run(self, shutdown: CancellationToken) {
        let Self { udp, tcp, shared } = self;
        let datagrams = serve_datagrams(udp, shared.clone());
        let streams = serve_streams(tcp, shared);
        shutdown
            .run_until_cancelled(futures::future::join(datagrams, streams))
            .await;
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = [0_u8; 4096];
    loop {
        // Errors of a UDP socket are those of single datagrams (ICMP); the next one may be fine.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(query) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        if let Some(answer) = shared.answer(&query) {
            let bytes = encode(&answer, reply_limit(&query, false));
            // A client that went away is its own business.
            let _ = socket.send_to(&bytes, client).await;
            continue;
        }
        let (socket, shared, bytes) = (socket.clone(), shared.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            let reply = shared.forward(&query, &bytes, false).await;
            let _ = socket.send_to(&reply, client).await;
        });
    }
}

async fn serve_streams(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: do not spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = serve_stream(stream, &shared).await;
            drop(permit);
        });
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE_TIMEOUT, stream.read_u16()).await??;
        let mut bytes = vec![0_u8; usize::from(length)];
        tokio::time::timeout(IDLE_TIMEOUT, stream.read_exact(&mut bytes)).await??;
        let Ok(query) = Message::from_vec(&bytes) else {
            return Ok(());
        };
        let reply = match shared.answer(&query) {
            Some(answer) => encode(&answer, reply_limit(&query, true)),
            None => shared.forward(&query, &bytes, true).await,
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&reply).await?;
    }
}

impl Shared {
    /// `None` when the question must be forwarded.
    fn answer(&self, query: &Message) -> Option<Message> {
        let mut answer = reply_to(query);
        let [question] = query.queries.as_slice() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        if query.metadata.message_type != MessageType::Query
            || query.metadata.op_code != OpCode::Query
        {
            answer.metadata.response_code = ResponseCode::NotImp;
            return Some(answer);
        }
        if question.query_class != DNSClass::IN {
            answer.metadata.response_code = ResponseCode::Refused;
            return Some(answer);
        }
        let name = question.name.to_ascii();
        match resolve(&name, &self.config.domain, &*self.source) {
            Answer::Elsewhere => return None,
            Answer::NoSuchName => answer.metadata.response_code = ResponseCode::NXDomain,
            Answer::Records(records) => self.fill(&mut answer, question, records),
        }
        answer.metadata.authoritative = true;
        if answer.answers.is_empty() {
            answer.authorities.extend(self.authority());
        }
        Some(answer)
    }

    fn fill(&self, answer: &mut Message, question: &Query, mut records: Vec<Record>) {
        let wanted = question.query_type;
        for _ in 0..MAX_ALIASES {
            let alias = records.iter().find_map(|record| match record {
                Record::Alias { target, .. } if wanted != RecordType::CNAME => Some(target.clone()),
                _ => None,
            });
            for record in &records {
                if let Some(record) = wire(record, question)
                    && (record.record_type() == wanted
                        || record.record_type() == RecordType::CNAME
                        || wanted == RecordType::ANY)
                {
                    answer.answers.push(record);
                }
            }
            let Some(target) = alias else { break };
            records = match resolve(&target, &self.config.domain, &*self.source) {
                Answer::Records(records) => records,
                Answer::NoSuchName | Answer::Elsewhere => break,
            };
        }
        for server in answer.answers.clone() {
            let RData::SRV(server) = &server.data else {
                continue;
            };
            if let Answer::Records(records) = resolve(
                &server.target.to_ascii(),
                &self.config.domain,
                &*self.source,
            ) {
                answer
                    .additionals
                    .extend(records.iter().filter_map(|record| wire(record, question)));
            }
        }
    }

    fn authority(&self) -> Option<WireRecord> {
        let name = |prefix: &str| Name::from_ascii(format!("{prefix}{}.", self.config.domain)).ok();
        let soa = SOA::new(
            name("ns.dns.")?,
            name("hostmaster.")?,
            1,
            7200,
            1800,
            86400,
            5,
        );
        Some(WireRecord::from_rdata(name("")?, TTL_S, RData::SOA(soa)))
    }

    /// The resolver's reply, or SERVFAIL.
    async fn forward(&self, query: &Message, bytes: &[u8], stream: bool) -> Vec<u8> {
        if let Some(known) = self.forwarder.cached(query) {
            return encode(&known, reply_limit(query, stream));
        }
        match self.forwarder.ask(query, bytes, stream).await {
            Some(reply) => reply,
            None => {
                let mut failure = reply_to(query);
                failure.metadata.response_code = ResponseCode::ServFail;
                encode(&failure, PLAIN_UDP_BYTES)
            }
        }
    }
}

/// How many bytes a client takes.
fn reply_limit(query: &Message, stream: bool) -> usize {
    if stream {
        return usize::from(u16::MAX);
    }
    let edns = query.edns.as_ref();
    edns.map_or(PLAIN_UDP_BYTES, |edns| usize::from(edns.max_payload()))
        .clamp(PLAIN_UDP_BYTES, MAX_UDP_BYTES)
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&query.queries);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(MAX_UDP_BYTES).unwrap_or(u16::MAX));
        reply.set_edns(edns);
    }
    reply
}

/// Cut to `limit` bytes with the truncation flag set, so that the client comes back over TCP.
fn encode(message: &Message, limit: usize) -> Vec<u8> {
    let mut bytes = message.to_vec().unwrap_or_default();
    if bytes.len() > limit {
        bytes = message.truncate().to_vec().unwrap_or_default();
    }
    bytes
}

/// The record as it goes over the wire; the asked name keeps the spelling of the question.
fn wire(record: &Record, question: &Query) -> Option<WireRecord> {
    let absolute = |name: &str| Name::from_ascii(format!("{name}.")).ok();
    let (name, data) = match record {
        Record::Address {
            name,
            ip: IpAddr::V4(ip),
        } => (name, RData::A(A(*ip))),
        Record::Address {
            name,
            ip: IpAddr::V6(ip),
        } => (name, RData::AAAA(AAAA(*ip))),
        Record::Alias { name, target } => (name, RData::CNAME(CNAME(absolute(target)?))),
        Record::Server { name, port, target } => {
            (name, RData::SRV(SRV::new(0, 100, *port, absolute(target)?)))
        }
        Record::Pointer { name, target } => (name, RData::PTR(PTR(absolute(target)?))),
        Record::Text { name, text } => (name, RData::TXT(TXT::new(vec![text.clone()]))),
    };
    let name = absolute(name)?;
    let name = if name == question.name {
        question.name.clone()
    } else {
        name
    };
    Some(WireRecord::from_rdata(name, TTL_S, data))
}
