//! What joins containers and pods that run: signals, attached clients, connections.

use std::os::fd::{AsFd, OwnedFd};

use super::super::container::{self, Attached, Sink};
use super::super::protocol::Reply;
use super::{Connecting, Server};
use crate::sys;

impl Server {
    pub(super) fn signal(&mut self, id: &str, signal: i32, all: bool) -> Result<Reply, String> {
        let container = self
            .container(id)
            .ok_or_else(|| format!("container {id} is not known to the shim"))?;
        if let (true, Some(pid)) = (container.is_running(), container.state.pid) {
            let _ = sys::kill(pid, signal);
        }
        if all {
            container.kill_group();
        }
        Ok(Reply::Done)
    }

    pub(super) fn attach(
        &mut self,
        client: u64,
        id: &str,
        wanted: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, String> {
        let container = self.container(id).ok_or("container is not running")?;
        if !container.is_running() {
            return Err("container is not running".to_owned());
        }
        let mut given = fds.into_iter();
        let mut stream = |wanted: bool| match wanted {
            true => given
                .next()
                .map(Some)
                .ok_or("a stream is missing from the request"),
            false => Ok(None),
        };
        let (stdin, stdout, stderr) = (stream(wanted[0])?, stream(wanted[1])?, stream(wanted[2])?);
        if let Some(stdin) = &stdin {
            container::set_nonblocking(stdin.as_fd());
        }
        // Without a standard input there is nothing to write to; the client's is left unread.
        let stdin = stdin.filter(|_| container.input.is_some());
        container.attached.push(Attached {
            client,
            stdin,
            sinks: [stdout.map(Sink::new), stderr.map(Sink::new)],
        });
        Ok(Reply::Done)
    }

    pub(super) fn connect(&mut self, client: u64, port: u16, second: bool) -> Result<(), String> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType};
        use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
        let (family, address): (_, SocketAddr) = if second {
            (AddressFamily::INET6, (Ipv6Addr::LOCALHOST, port).into())
        } else {
            (AddressFamily::INET, (Ipv4Addr::LOCALHOST, port).into())
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let refused =
            |error: rustix::io::Errno| format!("connecting to port {port} in the pod: {error}");
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(refused)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {
                self.connecting.push(Connecting {
                    socket,
                    client,
                    port,
                    second,
                });
                Ok(())
            }
            Err(_) if !second => self.connect(client, port, true),
            Err(error) => Err(refused(error)),
        }
    }

    pub(super) fn finish_connecting(&mut self, client: u64) {
        let Some(at) = self
            .connecting
            .iter()
            .position(|connecting| connecting.client == client)
        else {
            return;
        };
        let connecting = self.connecting.swap_remove(at);
        let result = match rustix::net::sockopt::socket_error(&connecting.socket) {
            Ok(Ok(())) => {
                self.reply(client, &Reply::Done, Some(connecting.socket.as_fd()));
                return;
            }
            Ok(Err(_)) if !connecting.second => self.connect(client, connecting.port, true),
            Ok(Err(error)) | Err(error) => Err(format!(
                "connecting to port {} in the pod: {error}",
                connecting.port
            )),
        };
        if let Err(message) = result {
            self.reply(client, &Reply::Failed(message), None);
        }
    }
}
