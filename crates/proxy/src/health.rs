//! Health check node ports: an external load balancer asks each node whether it has endpoints of
//! a service whose traffic must stay on the node that receives it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::plan::HealthCheck;

const MAX_REQUEST_BYTES: usize = 8 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

struct Server {
    state: watch::Sender<(HealthCheck, bool)>,
    task: JoinHandle<()>,
}

/// One small HTTP server per health check node port; dropping it closes them.
#[derive(Default)]
pub(crate) struct HealthServers(BTreeMap<u16, Server>);

impl HealthServers {
    pub(crate) fn serve(&mut self, checks: &[HealthCheck], proxy_healthy: bool) {
        self.0.retain(|port, server| {
            let keep = checks.iter().any(|c| c.port == *port) && !server.task.is_finished();
            if !keep {
                server.task.abort();
            }
            keep
        });
        for check in checks {
            let state = (check.clone(), proxy_healthy);
            match self.0.get(&check.port) {
                Some(server) => drop(server.state.send_replace(state)),
                None => {
                    let (sender, receiver) = watch::channel(state);
                    let task = tokio::spawn(listen(check.port, receiver));
                    self.0.insert(
                        check.port,
                        Server {
                            state: sender,
                            task,
                        },
                    );
                }
            }
        }
    }
}

impl Drop for HealthServers {
    fn drop(&mut self) {
        for server in self.0.values() {
            server.task.abort();
        }
    }
}

async fn listen(port: u16, state: watch::Receiver<(HealthCheck, bool)>) {
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(port, %error, "cannot listen on a health check node port");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer(&state.borrow());
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(REQUEST_TIMEOUT, respond(stream, answer)).await;
                });
            }
            // Out of descriptors, say: going on at once would only burn the processor.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn respond(mut stream: TcpStream, answer: String) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < MAX_REQUEST_BYTES {
        match stream.read(&mut chunk).await? {
            0 => break,
            n => request.extend_from_slice(&chunk[..n]),
        }
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn answer((check, proxy_healthy): &(HealthCheck, bool)) -> String {
    let body = json!({
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    })
    .to_string();
    let status = if check.local_endpoints > 0 && *proxy_healthy {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        check.local_endpoints,
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_local_endpoint_is_unhealthy() {
        let check = |local_endpoints| HealthCheck {
            port: 1,
            namespace: "default".into(),
            name: "web".into(),
            local_endpoints,
        };
        assert!(answer(&(check(0), true)).starts_with("HTTP/1.1 503"));
        assert!(answer(&(check(2), false)).starts_with("HTTP/1.1 503"));
        let healthy = answer(&(check(2), true));
        assert!(healthy.starts_with("HTTP/1.1 200") && healthy.contains("\"localEndpoints\":2"));
    }
}
