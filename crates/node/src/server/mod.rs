pub mod spdy {}
use std::sync::Arc;
pub(crate) async fn start(_a: Arc<crate::agent::Agent>, _s: &crate::ServerConfig, s: tokio_util::sync::CancellationToken) -> crate::Result<(u16, impl Future<Output=()> + Send + use<>)> { Ok((0, async move { s.cancelled().await })) }
