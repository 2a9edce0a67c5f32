//! gRPC probes: the standard health service, its two messages written by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Outcome, tcp};

const MAX_BODY_BYTES: usize = 64 << 10;
const SERVING: u64 = 1;

pub(super) async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = format!("{host}:{port}");
    match tokio::time::timeout(timeout, check(host, port, service, timeout)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!(
            "timeout: failed to connect service \"{address}\" within {timeout:?}: context deadline exceeded"
        )),
    }
}

async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let failed =
        |error: String| Outcome::Failure(format!("error: health rpc probe failed: {error}"));
    let stream = match tcp::connect(host, port, timeout).await {
        Ok(stream) => stream,
        Err(error) => return failed(error),
    };
    let (mut sender, connection) =
        match hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
        {
            Ok(pair) => pair,
            Err(error) => return failed(error.to_string()),
        };
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(request_frame(service)));
    let outcome = match request {
        Ok(request) => match sender.send_request(request).await {
            Ok(response) => judge(response).await,
            Err(error) => failed(error.to_string()),
        },
        Err(error) => failed(error.to_string()),
    };
    connection.abort();
    outcome
}

/// `HealthCheckRequest { service }` in a gRPC frame.
fn request_frame(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

async fn judge(response: http::Response<hyper::body::Incoming>) -> Outcome {
    let header_status = grpc_status(response.headers());
    let collected = match Limited::new(response.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
    {
        Ok(collected) => collected,
        Err(error) => return Outcome::Failure(format!("error: health rpc probe failed: {error}")),
    };
    let status = collected.trailers().and_then(grpc_status).or(header_status);
    match status {
        Some((0, _)) | None => {}
        Some((12, _)) => return Outcome::Failure("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned()),
        Some((code, message)) => {
            return Outcome::Failure(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"));
        }
    }
    match serving_status(&collected.to_bytes()) {
        SERVING => Outcome::Success,
        other => {
            let name = match other {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Outcome::Failure(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

fn grpc_status(headers: &http::HeaderMap) -> Option<(u32, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers
        .get("grpc-message")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    Some((code, message.to_owned()))
}

/// Field 1 of `HealthCheckResponse`, 0 when absent.
fn serving_status(frame: &[u8]) -> u64 {
    let Some(message) = frame.get(5..) else {
        return 0;
    };
    match message {
        [0x08, rest @ ..] => {
            let mut value = 0_u64;
            for (index, byte) in rest.iter().take(10).enumerate() {
                value |= u64::from(byte & 0x7f) << (7 * index.min(9));
                if byte & 0x80 == 0 {
                    break;
                }
            }
            value
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(&request_frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(
            &request_frame("ab")[..],
            [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']
        );
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 1]), 1);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 2]), 2);
        assert_eq!(serving_status(&[]), 0);
    }
}
