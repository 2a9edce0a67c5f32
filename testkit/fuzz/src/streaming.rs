//! SPDY as peers send it: frames, and header blocks in their zlib stream.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use keelson_streaming::spdy::{
    Connection, Frame, HeaderDecoder, HeaderEncoder, Headers, decode, encode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a stream may keep of its headers, by the limits of the decoder.
const MAX_HEADER_BYTES: usize = 32 << 10;
/// A connection may not need longer for what is already there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every kind of frame; the header block is stored without compression, so that it can be read.
pub(crate) const WIRES: &[&[u8]] = &[
    b"\x80\x03\0\x01\0\0\0\x35\0\0\0\x01\0\0\0\0\0\0\x78\xbb\xe3\xc6\xa7\xc2\x00\x1b\x00\xe4\xff\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error\0\0\0\xff\xff",
    b"\x80\x03\0\x02\0\0\0\x04\0\0\0\x01\x80\x03\0\x03\0\0\0\x08\0\0\0\x01\0\0\0\x05\x80\x03\0\x06\0\0\0\x04\0\0\0\x01",
    b"\0\0\0\x01\x01\0\0\x05hello\0\0\0\x03\0\0\0\0\x80\x03\0\x07\0\0\0\x08\0\0\0\x01\0\0\0\0",
    b"\x80\x03\0\x04\0\0\0\x0c\0\0\0\x01\0\0\0\x04\0\0\x10\0\x80\x03\0\x08\0\0\0\x04\0\0\0\x01\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\x10\0",
];

pub(crate) fn spdy(data: &[u8]) {
    frames(data);
    block(data);
    connection(data);
}

/// What is written is read again as the same.
fn frames(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    let mut blocks = HeaderDecoder::default();
    while let Ok(Some(frame)) = decode(&mut buffer) {
        if let Frame::SynStream { block, .. }
        | Frame::SynReply { block, .. }
        | Frame::Headers { block, .. } = &frame
            && let Ok(headers) = blocks.decode(block)
        {
            bounded(&headers);
        }
        let mut wire = BytesMut::new();
        if encode(&frame, &mut wire).is_ok() && !matches!(frame, Frame::Unknown { .. }) {
            assert_eq!(decode(&mut wire).ok(), Some(Some(frame)));
        }
    }
}

/// A block of its own, and what it says through our own encoder.
fn block(data: &[u8]) {
    let Ok(headers) = HeaderDecoder::default().decode(data) else {
        return;
    };
    bounded(&headers);
    let encoded = HeaderEncoder::new().and_then(|mut encoder| encoder.encode(&headers));
    let Ok(encoded) = encoded else {
        return;
    };
    if let Ok(again) = HeaderDecoder::default().decode(&encoded) {
        assert_eq!(again, headers);
    }
}

fn bounded(headers: &Headers) {
    let size: usize = headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    // What is no UTF-8 grows threefold when it is replaced.
    assert!(size <= 3 * MAX_HEADER_BYTES, "{size} bytes of headers");
}

/// Either side of a connection takes it all, and ends when the peer does.
fn connection(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    else {
        return;
    };
    for side in [Connection::server, Connection::client] {
        let wire = Bytes::copy_from_slice(data);
        let served = async {
            let (mut peer, ours) = tokio::io::duplex(1 << 12);
            let Ok(mut connection) = side(ours) else {
                return;
            };
            let (mut read, mut write) = tokio::io::split(&mut peer);
            let sending = async {
                // The connection may have had enough.
                let _ = write.write_all(&wire).await;
                let _ = write.shutdown().await;
            };
            let mut answered = Vec::new();
            let reading = async {
                // It ends with an error when the connection breaks off.
                let _ = (&mut read).take(1 << 20).read_to_end(&mut answered).await;
            };
            let accepting = async {
                let mut streams = tokio::task::JoinSet::new();
                while let Some(mut stream) = connection.accept().await {
                    streams.spawn(async move {
                        while stream.reader.recv().await.is_some() {}
                        // The peer may have reset it.
                        let _ = stream.writer.finish().await;
                    });
                }
                streams.join_all().await;
                drop(connection);
            };
            tokio::join!(sending, reading, accepting);
        };
        let finished = runtime.block_on(async { tokio::time::timeout(PATIENCE, served).await });
        assert!(finished.is_ok(), "a connection does not end with its peer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_understood() {
        let mut blocks = HeaderDecoder::default();
        let mut seen = 0;
        for seed in WIRES {
            let mut buffer = BytesMut::from(*seed);
            while let Ok(Some(frame)) = decode(&mut buffer) {
                seen += 1;
                if let Frame::SynStream { block, .. } = frame {
                    let headers = blocks.decode(&block).map_err(|error| error.to_string());
                    let expected = vec![("streamtype".to_owned(), "error".to_owned())];
                    assert_eq!(headers, Ok(expected));
                }
            }
            assert!(buffer.is_empty());
        }
        assert_eq!(seen, 10);
    }
}
