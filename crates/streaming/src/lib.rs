//! What exec, attach and port-forward travel in: SPDY/3.1 and WebSocket, as the API server and
//! the kubelet speak them. Knows bytes, streams and channels; neither pods nor containers.

pub mod idle;
pub mod spdy;
pub mod websocket;
