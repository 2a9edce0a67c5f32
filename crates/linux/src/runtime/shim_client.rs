//! The runtime's side of a shim's socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use keelson_ports::{Error, Result};
use rustix::mount::OpenTreeFlags;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;

use crate::shim::protocol::{self, MAX_MESSAGE_BYTES, Reply, Request};
use crate::shim::template::Order;
use crate::shim::{READY, SHIM_ARGUMENT};
use crate::sys;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_REPORT_BYTES: u64 = 64 << 10;

pub(super) struct Connection {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// The shim is gone, or never was.
pub(super) fn gone(error: &io::Error) -> Error {
    Error::Failed(format!("the pod's shim does not answer: {error}"))
}

impl Connection {
    pub(super) async fn open(path: &Path) -> io::Result<Connection> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let address = SocketAddrUnix::new(path)?;
        loop {
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => {
                    return Ok(Connection {
                        socket: sys::watch_readiness(socket)?,
                        buffer: vec![0; MAX_MESSAGE_BYTES],
                    });
                }
                // Its queue of connections is full; the shim takes them one by one.
                Err(rustix::io::Errno::AGAIN) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(request)?;
        // Borrowed descriptors do not cross an await, so the attempt is synchronous.
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| protocol::send(socket.as_fd(), &bytes, fds)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// `None`: the shim closed the connection.
    pub(super) async fn receive(&mut self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| protocol::receive(socket.as_fd(), &mut self.buffer)) {
                Ok(Ok(Some((count, fds)))) => {
                    let reply =
                        serde_json::from_slice(self.buffer.get(..count).unwrap_or_default())?;
                    return Ok(Some((reply, fds)));
                }
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// The next answer; a failure that the shim tells is this function's error.
    pub(super) async fn answer(&mut self) -> Result<(Reply, Vec<OwnedFd>)> {
        match self.receive().await {
            Ok(Some((Reply::Failed(message), _))) => Err(Error::Failed(message)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(gone(&io::ErrorKind::ConnectionReset.into())),
            Err(error) => Err(gone(&error)),
        }
    }
}

/// One question, one answer.
pub(super) async fn call(socket: &Path, request: &Request) -> Result<(Reply, Vec<OwnedFd>)> {
    let mut connection = Connection::open(socket)
        .await
        .map_err(|error| gone(&error))?;
    connection
        .send(request, &[])
        .await
        .map_err(|error| gone(&error))?;
    connection.answer().await
}

/// How shims are started: by the template, a process of this binary that clones itself.
pub(super) struct Launcher {
    executable: PathBuf,
    /// Keeps a read-only view of the executable alive that the template is started from.
    _view: Option<OwnedFd>,
    template: tokio::sync::Mutex<Option<Template>>,
}

struct Template {
    orders: AsyncFd<OwnedFd>,
    /// Kept so that its end is collected.
    _process: tokio::process::Child,
}

impl Launcher {
    /// A process of a container can reach the file its shim was started from. Through this
    /// view it can never be opened for writing, not even by root.
    pub(super) fn new(executable: Option<PathBuf>) -> Launcher {
        use std::os::fd::AsRawFd;
        let original = executable.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        let (executable, view) = match readonly_view(&original) {
            Ok(view) => (
                PathBuf::from(format!(
                    "/proc/{}/fd/{}",
                    std::process::id(),
                    view.as_raw_fd()
                )),
                Some(view),
            ),
            Err(error) => {
                tracing::warn!(%error, "shims run from a writable view of this program");
                (original, None)
            }
        };
        Launcher {
            executable,
            _view: view,
            template: tokio::sync::Mutex::new(None),
        }
    }

    /// Starts a shim and gives its pid once it listens.
    pub(super) async fn start(&self, config: &Path, log: &Path) -> Result<i32> {
        let failed = |error: io::Error| Error::Failed(format!("starting the pod's shim: {error}"));
        let order = Order {
            config: config.to_path_buf(),
            log: log.to_path_buf(),
        };
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        self.order(&order, write.as_fd()).await.map_err(failed)?;
        drop(write);
        let mut line = String::new();
        let mut report = tokio::net::unix::pipe::Receiver::from_owned_fd(read)
            .map_err(failed)?
            .take(MAX_REPORT_BYTES);
        match tokio::time::timeout(START_TIMEOUT, report.read_to_string(&mut line)).await {
            Err(_) => {
                return Err(Error::Timeout(
                    "the pod's shim did not start in time".to_owned(),
                ));
            }
            Ok(Err(error)) => return Err(failed(error)),
            Ok(Ok(_)) => {}
        }
        let line = line.trim();
        line.strip_prefix(READY)
            .and_then(|pid| pid.parse().ok())
            .ok_or_else(|| {
                Error::Failed(
                    line.strip_prefix("error ")
                        .unwrap_or("the pod's shim did not start")
                        .to_owned(),
                )
            })
    }

    /// Gives an order to the template, which is started when there is none (any more).
    async fn order(&self, order: &Order, report: BorrowedFd<'_>) -> io::Result<()> {
        let bytes = serde_json::to_vec(order)?;
        let mut slot = self.template.lock().await;
        if let Some(template) = slot.take() {
            match template.send(&bytes, report).await {
                Ok(()) => {
                    *slot = Some(template);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "the shims' template is gone; starting another")
                }
            }
        }
        let template = self.start_template()?;
        template.send(&bytes, report).await?;
        *slot = Some(template);
        Ok(())
    }

    fn start_template(&self) -> io::Result<Template> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType};
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let process = tokio::process::Command::new(&self.executable)
            .arg0("keelson")
            .arg(SHIM_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Template {
            orders: sys::watch_readiness(ours)?,
            _process: process,
        })
    }
}

impl Template {
    async fn send(&self, bytes: &[u8], report: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut ready = self.orders.writable().await?;
            match ready.try_io(|socket| protocol::send(socket.as_fd(), bytes, &[report])) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

fn readonly_view(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = rustix::mount::open_tree(rustix::fs::CWD, path, flags)?;
    sys::set_mount_attributes(view.as_fd(), sys::MOUNT_READONLY, 0, false)?;
    Ok(view)
}
