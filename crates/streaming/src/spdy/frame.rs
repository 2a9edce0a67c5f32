//! Frames: their eight-byte head and their content.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SpdyError;

const VERSION: u16 = 3;
const HEAD_BYTES: usize = 8;
/// Peers send up to 64 KiB at once; the format would allow 16 MiB.
const MAX_FRAME_BYTES: usize = 1 << 20;
/// The most data put into one frame.
pub const MAX_DATA_BYTES: usize = 32 << 10;

const FLAG_FIN: u8 = 1;

/// Header blocks stay compressed here: the zlib stream belongs to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        priority: u8,
        block: Bytes,
    },
    SynReply {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Settings {
        flags: u8,
        payload: Bytes,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_id: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
    /// A control frame of a kind that this version does not know; to be ignored.
    Unknown {
        kind: u16,
    },
}

/// Takes one whole frame off the buffer; `None` when more bytes are needed.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
    if buffer.len() < HEAD_BYTES {
        return Ok(None);
    }
    let length =
        usize::from(buffer[5]) << 16 | usize::from(buffer[6]) << 8 | usize::from(buffer[7]);
    if length > MAX_FRAME_BYTES {
        return Err(SpdyError::TooLarge);
    }
    if buffer.len() < HEAD_BYTES + length {
        buffer.reserve(HEAD_BYTES + length - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(HEAD_BYTES + length).freeze();
    let word = frame.get_u32();
    let flags = frame.get_u8();
    frame.advance(3);
    let fin = flags & FLAG_FIN != 0;
    if word & 0x8000_0000 == 0 {
        return Ok(Some(Frame::Data {
            id: word,
            fin,
            data: frame,
        }));
    }
    let version = (word >> 16) as u16 & 0x7fff;
    if version != VERSION {
        return Err(SpdyError::Version(version));
    }
    control((word & 0xffff) as u16, flags, fin, frame).map(Some)
}

fn control(kind: u16, flags: u8, fin: bool, mut body: Bytes) -> Result<Frame, SpdyError> {
    let word = |body: &mut Bytes| body.try_get_u32().map_err(|_| SpdyError::Truncated);
    let id = |word: u32| word & 0x7fff_ffff;
    Ok(match kind {
        1 => {
            let stream = word(&mut body)?;
            word(&mut body)?;
            let priority = body.try_get_u16().map_err(|_| SpdyError::Truncated)?;
            Frame::SynStream {
                id: id(stream),
                fin,
                priority: (priority >> 13) as u8,
                block: body,
            }
        }
        2 => Frame::SynReply {
            id: id(word(&mut body)?),
            fin,
            block: body,
        },
        3 => Frame::RstStream {
            id: id(word(&mut body)?),
            status: word(&mut body)?,
        },
        4 => Frame::Settings {
            flags,
            payload: body,
        },
        6 => Frame::Ping {
            id: word(&mut body)?,
        },
        7 => Frame::GoAway {
            last_id: id(word(&mut body)?),
            status: word(&mut body)?,
        },
        8 => Frame::Headers {
            id: id(word(&mut body)?),
            fin,
            block: body,
        },
        9 => Frame::WindowUpdate {
            id: id(word(&mut body)?),
            delta: id(word(&mut body)?),
        },
        kind => Frame::Unknown { kind },
    })
}

/// Appends a frame. Unknown frames cannot be sent and append nothing.
pub fn encode(frame: &Frame, output: &mut BytesMut) -> Result<(), SpdyError> {
    let flag = |fin: &bool| if *fin { FLAG_FIN } else { 0 };
    let mut body = BytesMut::new();
    let (kind, flags) = match frame {
        Frame::Data { id, fin, data } => {
            output.put_u32(id & 0x7fff_ffff);
            put_length(output, flag(fin), data.len())?;
            output.put_slice(data);
            return Ok(());
        }
        Frame::SynStream {
            id,
            fin,
            priority,
            block,
        } => {
            body.put_u32(*id);
            body.put_u32(0);
            body.put_u16(u16::from(*priority & 7) << 13);
            body.put_slice(block);
            (1, flag(fin))
        }
        Frame::SynReply { id, fin, block } => {
            body.put_u32(*id);
            body.put_slice(block);
            (2, flag(fin))
        }
        Frame::RstStream { id, status } => {
            body.put_u32(*id);
            body.put_u32(*status);
            (3, 0)
        }
        Frame::Settings { flags, payload } => {
            body.put_slice(payload);
            (4, *flags)
        }
        Frame::Ping { id } => {
            body.put_u32(*id);
            (6, 0)
        }
        Frame::GoAway { last_id, status } => {
            body.put_u32(*last_id);
            body.put_u32(*status);
            (7, 0)
        }
        Frame::Headers { id, fin, block } => {
            body.put_u32(*id);
            body.put_slice(block);
            (8, flag(fin))
        }
        Frame::WindowUpdate { id, delta } => {
            body.put_u32(*id);
            body.put_u32(*delta);
            (9, 0)
        }
        Frame::Unknown { .. } => return Ok(()),
    };
    output.put_u16(0x8000 | VERSION);
    output.put_u16(kind);
    put_length(output, flags, body.len())?;
    output.put_slice(&body);
    Ok(())
}

fn put_length(output: &mut BytesMut, flags: u8, length: usize) -> Result<(), SpdyError> {
    let length = u32::try_from(length)
        .ok()
        .filter(|length| *length < 1 << 24)
        .ok_or(SpdyError::TooLarge)?;
    output.put_u32(u32::from(flags) << 24 | length);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_frame_survives_the_wire() {
        let block = Bytes::from_static(b"block");
        let frames = [
            Frame::SynStream {
                id: 1,
                fin: false,
                priority: 3,
                block: block.clone(),
            },
            Frame::SynReply {
                id: 1,
                fin: true,
                block: block.clone(),
            },
            Frame::RstStream { id: 3, status: 5 },
            Frame::Settings {
                flags: 0,
                payload: Bytes::from_static(&[0, 0, 0, 0]),
            },
            Frame::Ping { id: 7 },
            Frame::GoAway {
                last_id: 9,
                status: 0,
            },
            Frame::Headers {
                id: 1,
                fin: false,
                block,
            },
            Frame::WindowUpdate { id: 1, delta: 100 },
            Frame::Data {
                id: 0x7fff_ffff,
                fin: true,
                data: Bytes::from_static(b"hello"),
            },
            Frame::Data {
                id: 2,
                fin: false,
                data: Bytes::new(),
            },
        ];
        let mut wire = BytesMut::new();
        for frame in &frames {
            encode(frame, &mut wire).unwrap();
        }
        // Byte by byte: a frame appears exactly when its last byte has come.
        let mut buffer = BytesMut::new();
        let mut decoded = Vec::new();
        for byte in wire {
            buffer.put_u8(byte);
            decoded.extend(decode(&mut buffer).unwrap());
        }
        assert_eq!(decoded, frames);
        assert!(buffer.is_empty());
    }

    #[test]
    fn bad_frames_are_refused() {
        let read = |bytes: &[u8]| decode(&mut BytesMut::from(bytes));
        assert!(matches!(
            read(&[0x80, 2, 0, 1, 0, 0, 0, 0]),
            Err(SpdyError::Version(2))
        ));
        assert!(matches!(
            read(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]),
            Err(SpdyError::TooLarge)
        ));
        assert!(matches!(
            read(&[0x80, 3, 0, 3, 0, 0, 0, 1, 0]),
            Err(SpdyError::Truncated)
        ));
        assert_eq!(
            read(&[0x80, 3, 0, 99, 0, 0, 0, 0]).unwrap(),
            Some(Frame::Unknown { kind: 99 })
        );
    }
}
