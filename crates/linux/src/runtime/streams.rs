//! Commands in containers, attaching, and connections into pods.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use keelson_ports::{AttachRequest, Duplex, Error, ExecOutput, ExecRequest, ExecSession, Result};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use super::shim_client::{self, Connection, gone};
use super::{Container, Inner};
use crate::shim::protocol::{Reply, Request};
use crate::sys;

const MAX_SYNC_OUTPUT_BYTES: usize = 16 << 10;
/// What a command left running may hold its output open; nobody waits for it longer.
const SYNC_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Our and the command's end of each stream that was asked for.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    theirs: Vec<OwnedFd>,
}

fn pipes([stdin, stdout, stderr]: [bool; 3]) -> io::Result<Pipes> {
    let mut theirs = Vec::new();
    let make =
        || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
    let mut out = Pipes {
        stdin: None,
        stdout: None,
        stderr: None,
        theirs: Vec::new(),
    };
    if stdin {
        let (read, write) = make()?;
        theirs.push(read);
        out.stdin = Some(pipe::Sender::from_owned_fd(write)?);
    }
    for (wanted, slot) in [(stdout, &mut out.stdout), (stderr, &mut out.stderr)] {
        if wanted {
            let (read, write) = make()?;
            theirs.push(write);
            *slot = Some(pipe::Receiver::from_owned_fd(read)?);
        }
    }
    out.theirs = theirs;
    Ok(out)
}

fn stream_error(error: io::Error) -> Error {
    Error::Failed(format!("making a stream: {error}"))
}

impl Inner {
    fn running(&self, id: &str) -> Result<Arc<Container>> {
        let container = self.container(id)?;
        if !container.known().is_running() {
            return Err(Error::Conflict(format!("container {id} is not running")));
        }
        Ok(container)
    }

    async fn ask(
        &self,
        container: &Container,
        request: &Request,
        fds: &[OwnedFd],
    ) -> Result<(Connection, Vec<OwnedFd>)> {
        let socket = self.paths.socket(&container.record.sandbox);
        let mut connection = Connection::open(&socket)
            .await
            .map_err(|error| gone(&error))?;
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        connection
            .send(request, &borrowed)
            .await
            .map_err(|error| gone(&error))?;
        let (_, fds) = connection.answer().await?;
        Ok((connection, fds))
    }

    async fn start_command(
        &self,
        id: &str,
        arguments: Vec<String>,
        terminal: bool,
        streams: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<(Connection, Option<OwnedFd>)> {
        let container = self.running(id)?;
        let request = Request::Exec {
            container: id.to_owned(),
            arguments,
            terminal,
            streams,
        };
        let answer = self.ask(&container, &request, &fds).await;
        let (connection, fds) = answer.map_err(|error| match error {
            Error::Failed(message) => {
                Error::Failed(format!("failed to exec in container: {message}"))
            }
            other => other,
        })?;
        Ok((connection, fds.into_iter().next()))
    }

    pub(super) async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let streams = [false, true, true];
        let mut pipes = pipes(streams).map_err(stream_error)?;
        let theirs = std::mem::take(&mut pipes.theirs);
        let (mut connection, _) = self
            .start_command(id, command, false, streams, theirs)
            .await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let exit_code = {
            let read = futures::future::join(
                read_bounded(pipes.stdout.take(), &mut stdout),
                read_bounded(pipes.stderr.take(), &mut stderr),
            );
            let mut read = std::pin::pin!(read.fuse());
            let limit = if timeout.is_zero() {
                Duration::MAX
            } else {
                timeout
            };
            let exit = tokio::time::timeout(limit, async {
                let mut exit = std::pin::pin!(exited(&mut connection).fuse());
                loop {
                    futures::select_biased! {
                        code = exit => return code,
                        _ = read => {}
                    }
                }
            })
            .await;
            match exit {
                Ok(code) => {
                    let code = code?;
                    let _ = tokio::time::timeout(SYNC_DRAIN_TIMEOUT, async {
                        if !futures::future::FusedFuture::is_terminated(&*read) {
                            read.await;
                        }
                    })
                    .await;
                    Some(code)
                }
                Err(_elapsed) => None,
            }
        };
        match exit_code {
            Some(exit_code) => Ok(ExecOutput {
                exit_code,
                stdout,
                stderr,
            }),
            None => {
                connection
                    .send(&Request::KillExec, &[])
                    .await
                    .map_err(|error| gone(&error))?;
                let _ = tokio::time::timeout(SYNC_DRAIN_TIMEOUT, exited(&mut connection)).await;
                Err(Error::Timeout(format!(
                    "command timed out: timeout {timeout:?} exceeded"
                )))
            }
        }
    }

    pub(super) async fn exec(&self, id: &str, request: ExecRequest) -> Result<ExecSession> {
        if request.tty {
            let (mut connection, master) = self
                .start_command(id, request.command, true, [false; 3], Vec::new())
                .await?;
            let master =
                master.ok_or_else(|| Error::Failed("the command has no terminal".to_owned()))?;
            rustix::io::ioctl_fionbio(&master, true).map_err(|error| stream_error(error.into()))?;
            let terminal = Arc::new(sys::watch_readiness(master).map_err(stream_error)?);
            let (resize, mut sizes) = tokio::sync::mpsc::channel::<(u16, u16)>(4);
            let resized = Arc::downgrade(&terminal);
            tokio::spawn(async move {
                while let Some((columns, rows)) = sizes.recv().await {
                    let Some(terminal) = resized.upgrade() else {
                        return;
                    };
                    let _ = sys::set_terminal_size(terminal.as_fd(), columns, rows);
                }
            });
            return Ok(ExecSession {
                stdin: request
                    .stdin
                    .then(|| Box::new(Terminal(Arc::clone(&terminal))) as _),
                stdout: Some(Box::new(Terminal(terminal))),
                stderr: None,
                resize: Some(resize),
                exit: async move { exited(&mut connection).await }.boxed(),
            });
        }
        let streams = [request.stdin, request.stdout, request.stderr];
        let mut pipes = pipes(streams).map_err(stream_error)?;
        let theirs = std::mem::take(&mut pipes.theirs);
        let (mut connection, _) = self
            .start_command(id, request.command, false, streams, theirs)
            .await?;
        Ok(session(
            pipes,
            None,
            async move { exited(&mut connection).await }.boxed(),
        ))
    }

    pub(super) async fn attach(&self, id: &str, request: AttachRequest) -> Result<ExecSession> {
        let container = self.running(id)?;
        let terminal = container.record.config.tty;
        // A terminal has one output.
        let streams = [request.stdin, request.stdout, request.stderr && !terminal];
        let mut pipes = pipes(streams).map_err(stream_error)?;
        let theirs = std::mem::take(&mut pipes.theirs);
        let asked = Request::Attach {
            container: id.to_owned(),
            streams,
        };
        let (mut connection, _) = self.ask(&container, &asked, &theirs).await?;
        drop(theirs);
        let resize = terminal.then(|| {
            let (resize, mut sizes) = tokio::sync::mpsc::channel::<(u16, u16)>(4);
            let (socket, id) = (self.paths.socket(&container.record.sandbox), id.to_owned());
            tokio::spawn(async move {
                while let Some((columns, rows)) = sizes.recv().await {
                    let request = Request::Resize {
                        container: id.clone(),
                        columns,
                        rows,
                    };
                    let _ = shim_client::call(&socket, &request).await;
                }
            });
            resize
        });
        Ok(session(
            pipes,
            resize,
            async move { exited(&mut connection).await }.boxed(),
        ))
    }

    pub(super) async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let owner = self.sandbox(sandbox)?;
        if !owner.is_ready() {
            return Err(Error::Conflict(format!("sandbox {sandbox} is not running")));
        }
        let (_, fds) =
            shim_client::call(&self.paths.socket(sandbox), &Request::Connect { port }).await?;
        let fd = fds
            .into_iter()
            .next()
            .ok_or_else(|| Error::Failed("the shim gave no connection".to_owned()))?;
        let stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(true).map_err(stream_error)?;
        Ok(Box::new(
            tokio::net::TcpStream::from_std(stream).map_err(stream_error)?,
        ))
    }
}

fn session(
    pipes: Pipes,
    resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    exit: futures::future::BoxFuture<'static, Result<i32>>,
) -> ExecSession {
    ExecSession {
        stdin: pipes.stdin.map(|stdin| Box::new(stdin) as _),
        stdout: pipes.stdout.map(|stdout| Box::new(stdout) as _),
        stderr: pipes.stderr.map(|stderr| Box::new(stderr) as _),
        resize,
        exit,
    }
}

async fn exited(connection: &mut Connection) -> Result<i32> {
    loop {
        if let (Reply::Exited { code }, _) = connection.answer().await? {
            return Ok(code);
        }
    }
}

/// Reads to the end, keeping the first part.
async fn read_bounded(from: Option<pipe::Receiver>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = [0u8; 4096];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let room = MAX_SYNC_OUTPUT_BYTES.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..count.min(room)]);
    }
}

/// One side of a pseudo-terminal; both directions share the descriptor.
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| rustix::io::read(fd, &mut *unfilled).map_err(io::Error::from)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Every program closed the other side.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| rustix::io::write(fd, data).map_err(io::Error::from)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
