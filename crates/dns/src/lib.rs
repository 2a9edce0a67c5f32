//! Cluster DNS: names of Services, endpoints and pods, as the specification of Kubernetes DNS
//! (`kubernetes/dns`, schema version 1.1.0) gives them; everything else is forwarded to the host's
//! resolvers.
//!
//! [`records`] answers a name purely from a [`records::Source`]; `server` speaks UDP and TCP,
//! `forward` asks the host's resolvers.

mod cache;
mod forward;
pub mod records;
mod server;
mod source;

pub use server::{DnsConfig, DnsServer, upstream_resolvers};
pub use source::InformerSource;
