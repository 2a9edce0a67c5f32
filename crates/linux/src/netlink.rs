//! Netlink messages by hand: a builder, a reader of attributes, and a socket that asks and waits.
//!
//! Both halves of the network (links and routes, packet rules) are built on this. The calls block
//! for microseconds and never touch tokio, so they run on any thread, also one that has entered
//! another network namespace: a socket belongs to the namespace it was opened in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket as RawSocket, SocketAddr};

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
/// Attributes of a batch may add up to megabytes; the kernel wants them in one write.
const SEND_BUFFER_BYTES: usize = 64 << 20;
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// One or more messages under construction, back to back.
#[derive(Default)]
pub(crate) struct Builder {
    buf: Vec<u8>,
    /// Where the current message began.
    start: usize,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Builder::default()
    }

    /// Begins a message; what follows belongs to it until [`Self::end`].
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32) {
        self.start = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&sequence.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
    }

    pub(crate) fn end(&mut self) {
        let length = u32::try_from(self.buf.len() - self.start).unwrap_or(u32::MAX);
        self.buf[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buf.extend_from_slice(&length.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// A string with the zero byte that the kernel wants.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest<T>(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> T) -> T {
        let start = self.buf.len();
        self.attr(kind | NESTED, &[]);
        let result = fill(self);
        let length = u16::try_from(self.buf.len() - start).unwrap_or(u16::MAX);
        self.buf[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        result
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }
}

/// Kind and value of each attribute in `bytes`; a malformed rest ends the walk.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// A message that came back.
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    /// What follows the message's header.
    pub(crate) payload: Vec<u8>,
}

impl Reply {
    /// The error of an acknowledgement; `Ok` is a plain one.
    pub(crate) fn error(&self) -> Option<io::Result<()>> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        let code = self
            .payload
            .get(..4)?
            .try_into()
            .map(i32::from_ne_bytes)
            .ok()?;
        Some(if code == 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(-code))
        })
    }
}

pub(crate) struct Socket {
    raw: RawSocket,
    sequence: u32,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = RawSocket::new(protocol)?;
        raw.bind(&SocketAddr::new(0, 0))?;
        raw.connect(&SocketAddr::new(0, 0))?;
        raw.set_cap_ack(true)?;
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&raw, SEND_BUFFER_BYTES);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&raw, RECEIVE_BUFFER_BYTES);
        Ok(Socket { raw, sequence: 1 })
    }

    /// Hears what is multicast to these groups; never blocks.
    pub(crate) fn subscribe(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut raw = RawSocket::new(protocol)?;
        raw.bind(&SocketAddr::new(0, groups))?;
        raw.set_non_blocking(true)?;
        Ok(Socket { raw, sequence: 0 })
    }

    /// Sends one message and waits for the kernel's verdict.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Builder),
    ) -> io::Result<()> {
        let sequence = self.send_one(kind, flags | NLM_F_REQUEST | NLM_F_ACK, fill)?;
        loop {
            for reply in self.receive()? {
                if let Some(result) = reply.error().filter(|_| reply.sequence == sequence) {
                    return result;
                }
            }
        }
    }

    /// Asks for one object or, with [`NLM_F_DUMP`], for all.
    pub(crate) fn query(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Builder),
    ) -> io::Result<Vec<Reply>> {
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let ack = if dump { 0 } else { NLM_F_ACK };
        let sequence = self.send_one(kind, flags | NLM_F_REQUEST | ack, fill)?;
        let mut replies = Vec::new();
        loop {
            for reply in self
                .receive()?
                .into_iter()
                .filter(|r| r.sequence == sequence)
            {
                match reply.error() {
                    Some(Ok(())) => return Ok(replies),
                    Some(Err(e)) => return Err(e),
                    None if reply.kind == NLMSG_DONE => return Ok(replies),
                    None => replies.push(reply),
                }
            }
        }
    }

    fn send_one(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Builder),
    ) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Builder::new();
        message.begin(kind, flags, self.sequence);
        fill(&mut message);
        message.end();
        self.send(message.bytes())?;
        Ok(self.sequence)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.raw.send(bytes, 0)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::other("the kernel took a part of a message"))
        }
    }

    /// The messages of one datagram.
    pub(crate) fn receive(&self) -> io::Result<Vec<Reply>> {
        let (bytes, _) = self.raw.recv_from_full()?;
        let mut replies = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some(header) = rest.get(..HEADER_BYTES) {
            let word = |at: usize| {
                u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            let length = word(0) as usize;
            let Some(payload) = rest.get(HEADER_BYTES..length) else {
                break;
            };
            replies.push(Reply {
                kind: u16::from_ne_bytes([header[4], header[5]]),
                sequence: word(8),
                payload: payload.to_vec(),
            });
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(replies)
    }

    pub(crate) fn set_non_blocking(&self, on: bool) -> io::Result<()> {
        self.raw.set_non_blocking(on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_round_trip() {
        let mut b = Builder::new();
        b.begin(1, 2, 3);
        b.string(5, "abc");
        b.nest(6, |b| b.u32(7, 9));
        b.end();
        let body = &b.bytes()[HEADER_BYTES..];
        assert_eq!(attribute(body, 5), Some(&b"abc\0"[..]));
        let nested = attribute(body, 6).map(<[u8]>::to_vec).unwrap_or_default();
        assert_eq!(attribute(&nested, 7), Some(&9u32.to_ne_bytes()[..]));
        assert_eq!(
            attributes(&body[..7]).count(),
            0,
            "a cut attribute is no attribute"
        );
    }
}
