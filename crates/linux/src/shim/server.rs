//! The shim's loop: one poll over everything that may happen.

mod join;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::container::{self, Container};
use super::log::Stream;
use super::protocol::{
    self, MAX_MESSAGE_BYTES, Phase, PidNamespace, Reply, Request, RunState, StartRequest,
};
use crate::launcher::{self, Streams};
use crate::spec::Report;
use crate::sys::{self, Ended, Pid};

/// More connections than this wait in the listener's queue.
const MAX_CLIENTS: usize = 512;
const MAX_CONTAINERS: usize = 256;
const BUFFER_BYTES: usize = 32 << 10;
/// How long output may still come after a container's first process died.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// While something is being drained or a reader is behind.
const BUSY_POLL: Duration = Duration::from_millis(20);

struct Client {
    id: u64,
    socket: OwnedFd,
    subscribed: bool,
}

/// A cloned process that is not its program yet.
struct Launch {
    pid: Pid,
    channel: OwnedFd,
    client: u64,
    /// `None` for a command in a container.
    container: Option<String>,
    terminal: Option<OwnedFd>,
    error: Option<String>,
}

struct Command {
    pid: Pid,
    client: u64,
}

struct Connecting {
    socket: OwnedFd,
    client: u64,
    port: u16,
    second: bool,
}

pub(super) struct Server {
    socket: PathBuf,
    listener: OwnedFd,
    signals: OwnedFd,
    own_pids: OwnedFd,
    pod_pids: Option<(Pid, OwnedFd)>,
    clients: Vec<Client>,
    next_client: u64,
    containers: Vec<Container>,
    launches: Vec<Launch>,
    commands: Vec<Command>,
    connecting: Vec<Connecting>,
    /// Who asked for the end, and until when the containers may take to die.
    stopping: Option<(u64, Instant)>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Source {
    Signals,
    Listener,
    Client(u64),
    Launch(Pid),
    Output(String, Stream),
    Input(String),
    Typed(String, u64),
    Sinks(String),
    Connecting(u64),
}

impl Server {
    pub(super) fn new(
        socket: PathBuf,
        listener: OwnedFd,
        signals: OwnedFd,
        own_pids: OwnedFd,
        pod_pids: Option<(Pid, OwnedFd)>,
    ) -> Server {
        Server {
            socket,
            listener,
            signals,
            own_pids,
            pod_pids,
            clients: Vec::new(),
            next_client: 1,
            containers: Vec::new(),
            launches: Vec::new(),
            commands: Vec::new(),
            connecting: Vec::new(),
            stopping: None,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    pub(super) fn run(&mut self) {
        loop {
            for source in self.wait() {
                self.handle(source);
            }
            self.settle();
            if let Some((client, deadline)) = self.stopping
                && (self
                    .containers
                    .iter()
                    .all(|container| container.state.phase == Phase::Exited)
                    || Instant::now() > deadline)
            {
                let _ = std::fs::remove_file(&self.socket);
                self.reply(client, &Reply::Done, None);
                return;
            }
        }
    }

    fn wait(&self) -> Vec<Source> {
        let mut sources: Vec<Source> = Vec::new();
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        let mut watch = |fd, flags, source| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            sources.push(source);
        };
        watch(self.signals.as_fd(), PollFlags::IN, Source::Signals);
        if self.clients.len() < MAX_CLIENTS {
            watch(self.listener.as_fd(), PollFlags::IN, Source::Listener);
        }
        for client in &self.clients {
            watch(
                client.socket.as_fd(),
                PollFlags::IN,
                Source::Client(client.id),
            );
        }
        for launch in &self.launches {
            watch(
                launch.channel.as_fd(),
                PollFlags::IN,
                Source::Launch(launch.pid),
            );
        }
        for connecting in &self.connecting {
            watch(
                connecting.socket.as_fd(),
                PollFlags::OUT,
                Source::Connecting(connecting.client),
            );
        }
        let mut busy = self.stopping.is_some();
        for container in &self.containers {
            busy |= container.ended.is_some() && container.state.phase != Phase::Exited;
            let id = || container.id.clone();
            let congested = container.is_congested();
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let (Some(fd), false) = (&container.outputs[stream.index()], congested) {
                    watch(fd.as_fd(), PollFlags::IN, Source::Output(id(), stream));
                }
            }
            if let (Some(fd), false) = (&container.input, container.input_pending.is_empty()) {
                watch(fd.as_fd(), PollFlags::OUT, Source::Input(id()));
            }
            for attached in &container.attached {
                if let (Some(fd), true) = (&attached.stdin, container.input_pending.is_empty()) {
                    watch(
                        fd.as_fd(),
                        PollFlags::IN,
                        Source::Typed(id(), attached.client),
                    );
                }
                for sink in attached
                    .sinks
                    .iter()
                    .flatten()
                    .filter(|sink| !sink.pending.is_empty())
                {
                    busy = true;
                    watch(sink.fd.as_fd(), PollFlags::OUT, Source::Sinks(id()));
                }
            }
        }
        let timeout = busy.then(|| Timespec {
            tv_sec: 0,
            tv_nsec: BUSY_POLL.as_nanos() as _,
        });
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        ready
            .zip(sources)
            .filter(|(ready, _)| *ready)
            .map(|(_, source)| source)
            .collect()
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Signals => self.reap(),
            Source::Listener => self.accept(),
            Source::Client(id) => self.read_client(id),
            Source::Launch(pid) => self.read_launch(pid),
            Source::Connecting(client) => self.finish_connecting(client),
            Source::Output(id, stream) => {
                let mut buffer = std::mem::take(&mut self.buffer);
                if let Some(container) = self.container(&id) {
                    container.read_output(stream, &mut buffer);
                }
                self.buffer = buffer;
            }
            Source::Typed(id, client) => {
                let mut buffer = std::mem::take(&mut self.buffer);
                if let Some(container) = self.container(&id) {
                    container.read_attached(client, &mut buffer);
                }
                self.buffer = buffer;
            }
            Source::Input(id) => {
                if let Some(container) = self.container(&id) {
                    container.write_input();
                }
            }
            Source::Sinks(id) => {
                if let Some(container) = self.container(&id) {
                    container.flush_sinks();
                }
            }
        }
    }

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| container.id == id)
    }

    fn accept(&mut self) {
        use rustix::net::SocketFlags;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            self.clients.push(Client {
                id: self.next_client,
                socket,
                subscribed: false,
            });
            self.next_client += 1;
        }
    }

    fn reply(&mut self, client: u64, reply: &Reply, fd: Option<BorrowedFd<'_>>) {
        let Some(at) = self.clients.iter().position(|known| known.id == client) else {
            return;
        };
        let sent = match serde_json::to_vec(reply) {
            Ok(bytes) => protocol::send(self.clients[at].socket.as_fd(), &bytes, fd.as_slice()),
            Err(error) => Err(io::Error::other(error)),
        };
        if sent.is_err() {
            // Behind or gone. A subscriber that is behind comes back and asks for everything.
            self.drop_client(client);
        }
    }

    fn drop_client(&mut self, client: u64) {
        self.clients.retain(|known| known.id != client);
        self.connecting
            .retain(|connecting| connecting.client != client);
        for container in &mut self.containers {
            container
                .attached
                .retain(|attached| attached.client != client);
        }
    }

    fn read_client(&mut self, id: u64) {
        let Some(client) = self.clients.iter().find(|client| client.id == id) else {
            return;
        };
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match protocol::receive(client.socket.as_fd(), &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) | Ok(None) => self.drop_client(id),
            Ok(Some((count, fds))) => {
                match serde_json::from_slice(&buffer[..count.min(MAX_MESSAGE_BYTES)]) {
                    Ok(request) => self.answer(id, request, fds),
                    Err(error) => {
                        self.reply(id, &Reply::Failed(format!("not a request: {error}")), None)
                    }
                }
            }
        }
    }

    fn answer(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        let result = match request {
            Request::Start(request) => self.start(client, request).map(|()| None),
            Request::Exec {
                container,
                arguments,
                terminal,
                streams,
            } => self
                .exec(client, &container, arguments, terminal, streams, fds)
                .map(|()| None),
            Request::KillExec => {
                for command in self
                    .commands
                    .iter()
                    .filter(|command| command.client == client)
                {
                    let _ = sys::kill(command.pid, libc::SIGKILL);
                }
                return;
            }
            Request::Signal {
                container,
                signal,
                all,
            } => self.signal(&container, signal, all).map(Some),
            Request::Attach { container, streams } => {
                self.attach(client, &container, streams, fds).map(Some)
            }
            Request::Resize {
                container,
                columns,
                rows,
            } => {
                if let Some(container) = self.container(&container)
                    && container.terminal
                    && let Some(master) = &container.input
                {
                    let _ = sys::set_terminal_size(master.as_fd(), columns, rows);
                }
                Ok(Some(Reply::Done))
            }
            Request::ReopenLog { container } => match self.container(&container) {
                Some(container) => container
                    .log
                    .reopen()
                    .map(|()| Some(Reply::Done))
                    .map_err(|error| format!("opening the log: {error}")),
                None => Err(format!("container {container} is not known to the shim")),
            },
            Request::Connect { port } => self.connect(client, port, false).map(|()| None),
            Request::Subscribe => {
                if let Some(client) = self.clients.iter_mut().find(|known| known.id == client) {
                    client.subscribed = true;
                }
                Ok(Some(Reply::Snapshot(
                    self.containers
                        .iter()
                        .map(|container| container.state.clone())
                        .collect(),
                )))
            }
            Request::Forget { container } => {
                self.containers
                    .retain(|known| known.id != container || known.state.phase != Phase::Exited);
                Ok(Some(Reply::Done))
            }
            Request::Shutdown => {
                for container in &self.containers {
                    let _ = container.state.pid.map(|pid| sys::kill(pid, libc::SIGKILL));
                    container.kill_group();
                }
                self.stopping = Some((client, Instant::now() + SHUTDOWN_TIMEOUT));
                return;
            }
        };
        match result {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(client, &reply, None),
            Err(message) => self.reply(client, &Reply::Failed(message), None),
        }
    }

    /// Clones into another PID namespace when one is given.
    fn clone_into(
        &self,
        namespaces: libc::c_int,
        pids: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Pid>, String> {
        let Some(pids) = pids else {
            return sys::clone_process(namespaces).map_err(|error| format!("cloning: {error}"));
        };
        // Only children are affected; going back to the own namespace is always allowed.
        sys::set_namespace(pids, libc::CLONE_NEWPID)
            .map_err(|error| format!("joining the PID namespace: {error}"))?;
        let cloned = sys::clone_process(namespaces);
        if let Ok(None) = cloned {
            return Ok(None);
        }
        sys::set_namespace(self.own_pids.as_fd(), libc::CLONE_NEWPID)
            .map_err(|error| format!("leaving the PID namespace: {error}"))?;
        cloned.map_err(|error| match error.raw_os_error() {
            // The namespace's first process is gone.
            Some(libc::ENOMEM) => "container is not running".to_owned(),
            _ => format!("cloning: {error}"),
        })
    }

    fn start(&mut self, client: u64, request: StartRequest) -> Result<(), String> {
        if self.stopping.is_some() {
            return Err("the sandbox is being stopped".to_owned());
        }
        if self
            .containers
            .iter()
            .any(|known| known.id == request.container)
        {
            return Err(format!(
                "container {} was started before",
                request.container
            ));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err("the sandbox has too many containers".to_owned());
        }
        let text = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        let (terminal, wants_stdin) = (request.terminal, request.stdin);
        let mut container = Container::new(request).map_err(text("opening the log"))?;
        let (channel, child_channel) =
            container::packet_pair().map_err(text("making a channel"))?;
        let streams = if terminal {
            Streams::Terminal
        } else {
            let (out_read, out_write) = container::pipe().map_err(text("making a pipe"))?;
            let (err_read, err_write) = container::pipe().map_err(text("making a pipe"))?;
            container::set_nonblocking(out_read.as_fd());
            container::set_nonblocking(err_read.as_fd());
            container.outputs = [Some(out_read), Some(err_read)];
            let stdin = if wants_stdin {
                let (read, write) = container::pipe().map_err(text("making a pipe"))?;
                container::set_nonblocking(write.as_fd());
                container.input = Some(write);
                read
            } else {
                container::dev_null().map_err(text("opening /dev/null"))?
            };
            Streams::Files {
                stdin,
                stdout: out_write,
                stderr: err_write,
            }
        };
        let (own, namespace) = match &container.pid_namespace {
            PidNamespace::Own => (libc::CLONE_NEWPID, None),
            PidNamespace::Host => (0, None),
            PidNamespace::Pod => {
                let (_, namespace) = self
                    .pod_pids
                    .as_ref()
                    .ok_or("the pod has no PID namespace of its own")?;
                (
                    0,
                    Some(
                        namespace
                            .try_clone()
                            .map_err(text("opening the PID namespace"))?,
                    ),
                )
            }
            PidNamespace::Container(target) => (0, Some(self.pids_of(target)?)),
        };
        let spec = container.spec_path();
        let pid =
            match self.clone_into(libc::CLONE_NEWNS | own, namespace.as_ref().map(AsFd::as_fd))? {
                None => {
                    drop(channel);
                    if launcher::wait_for_go(&child_channel) {
                        launcher::run_container(&spec, streams, &child_channel);
                    }
                    sys::exit_now(1)
                }
                Some(pid) => pid,
            };
        drop((streams, child_channel));
        container.state.pid = Some(pid);
        container.state.start_time = sys::start_time(pid);
        let joined = container::join_group(&container.procs, pid);
        let launch = Launch {
            pid,
            channel,
            client,
            container: Some(container.id.clone()),
            terminal: None,
            error: joined.err(),
        };
        self.containers.push(container);
        self.go(launch);
        Ok(())
    }

    /// Lets a cloned process run, or lets it die when it could not be placed: it ends when its
    /// channel closes, and reading that end reports the error.
    fn go(&mut self, launch: Launch) {
        if launch.error.is_some() {
            let _ = sys::kill(launch.pid, libc::SIGKILL);
        } else {
            let _ = protocol::send(launch.channel.as_fd(), b"!", &[]);
        }
        self.launches.push(launch);
    }

    fn pids_of(&self, id: &str) -> Result<OwnedFd, String> {
        let found = self
            .containers
            .iter()
            .find(|container| container.id == id && container.is_running());
        let pid = found
            .and_then(|container| container.state.pid)
            .ok_or("container is not running")?;
        super::open_readonly(&format!("/proc/{pid}/ns/pid"))
            .map_err(|_| "container is not running".to_owned())
    }

    fn exec(
        &mut self,
        client: u64,
        id: &str,
        arguments: Vec<String>,
        terminal: bool,
        wanted: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let namespace = self.pids_of(id)?;
        let container = self.container(id).ok_or("container is not running")?;
        let (spec, procs) = (container.spec_path(), container.procs.clone());
        let container_pid = container.state.pid.ok_or("container is not running")?;
        let streams = if terminal {
            Streams::Terminal
        } else {
            let mut given = fds.into_iter();
            let mut stream = |wanted: bool| match wanted {
                true => given
                    .next()
                    .ok_or_else(|| "a stream is missing from the request".to_owned()),
                false => {
                    container::dev_null().map_err(|error| format!("opening /dev/null: {error}"))
                }
            };
            Streams::Files {
                stdin: stream(wanted[0])?,
                stdout: stream(wanted[1])?,
                stderr: stream(wanted[2])?,
            }
        };
        let (channel, child_channel) =
            container::packet_pair().map_err(|error| format!("making a channel: {error}"))?;
        let pid = match self.clone_into(0, Some(namespace.as_fd()))? {
            None => {
                drop(channel);
                if launcher::wait_for_go(&child_channel) {
                    launcher::run_command(&spec, container_pid, arguments, streams, &child_channel);
                }
                sys::exit_now(1)
            }
            Some(pid) => pid,
        };
        drop((streams, child_channel));
        let error = container::join_group(&procs, pid).err();
        self.go(Launch {
            pid,
            channel,
            client,
            container: None,
            terminal: None,
            error,
        });
        Ok(())
    }

    fn read_launch(&mut self, pid: Pid) {
        loop {
            let Some(at) = self.launches.iter().position(|launch| launch.pid == pid) else {
                return;
            };
            let mut buffer = [0u8; 16 << 10];
            let received = protocol::receive(self.launches[at].channel.as_fd(), &mut buffer);
            let (count, fds) = match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(Some(received)) => received,
                Ok(None) | Err(_) => {
                    let launch = self.launches.swap_remove(at);
                    return self.launched(launch);
                }
            };
            let container = self.launches[at].container.clone();
            match serde_json::from_slice(&buffer[..count.min(buffer.len())]) {
                Ok(Report::Error(message)) => self.launches[at].error = Some(message),
                Ok(Report::Terminal) => self.launches[at].terminal = fds.into_iter().next(),
                Ok(Report::User(user)) => {
                    if let Some(container) = container.and_then(|id| self.container(&id)) {
                        container.state.user = Some(user);
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn launched(&mut self, launch: Launch) {
        let Some(id) = launch.container else {
            return match launch.error {
                Some(message) => self.reply(launch.client, &Reply::Failed(message), None),
                None => {
                    self.commands.push(Command {
                        pid: launch.pid,
                        client: launch.client,
                    });
                    self.reply(
                        launch.client,
                        &Reply::ExecStarted,
                        launch.terminal.as_ref().map(AsFd::as_fd),
                    );
                }
            };
        };
        let Some(container) = self.container(&id) else {
            return;
        };
        let reply = match launch.error {
            Some(message) => {
                container.failed_to_start(message.clone());
                Reply::Failed(message)
            }
            None => {
                if let Some(master) = launch.terminal {
                    container::set_nonblocking(master.as_fd());
                    container.outputs[0] = master.try_clone().ok();
                    container.input = Some(master);
                }
                container.started();
                Reply::Started(container.state.clone())
            }
        };
        let state = container.state.clone();
        self.reply(launch.client, &reply, None);
        self.publish(&state);
    }

    fn publish(&mut self, state: &RunState) {
        let subscribers: Vec<u64> = self
            .clients
            .iter()
            .filter(|client| client.subscribed)
            .map(|client| client.id)
            .collect();
        for client in subscribers {
            self.reply(client, &Reply::Changed(state.clone()), None);
        }
    }

    fn reap(&mut self) {
        let mut ignored = [0u8; 128];
        while matches!(rustix::io::read(&self.signals, &mut ignored), Ok(count) if count == ignored.len())
        {
        }
        while let Some((pid, ended)) = sys::reap() {
            // A program can end before the report of its start was read.
            self.read_launch(pid);
            if let Some(at) = self.commands.iter().position(|command| command.pid == pid) {
                let command = self.commands.swap_remove(at);
                self.reply(command.client, &Reply::Exited { code: code(ended) }, None);
            }
            let running = |container: &&mut Container| {
                container.state.pid == Some(pid)
                    && container.state.phase == Phase::Running
                    && container.ended.is_none()
            };
            if let Some(container) = self.containers.iter_mut().find(running) {
                container.ended = Some((ended, Instant::now()));
            }
        }
    }

    /// Finishes containers whose first process died once their output is read.
    fn settle(&mut self) {
        let mut changed = Vec::new();
        let mut exits = Vec::new();
        for container in &mut self.containers {
            if let Some((ended, since)) = container.ended
                && container.state.phase == Phase::Running
            {
                // Processes that share another PID namespace live on, and so might the pipes.
                let left = container.pid_namespace != PidNamespace::Own && container.kill_group();
                let drained = container.outputs.iter().all(Option::is_none);
                if (drained && !left) || since.elapsed() > DRAIN_TIMEOUT {
                    container.finished(ended);
                    changed.push(container.state.clone());
                }
            }
            if container.state.phase == Phase::Exited
                && !container.attached.is_empty()
                && !container.has_pending()
            {
                let code = container.state.exit_code.unwrap_or_default();
                exits.extend(
                    container
                        .attached
                        .drain(..)
                        .map(|attached| (attached.client, code)),
                );
            }
        }
        for (client, code) in exits {
            self.reply(client, &Reply::Exited { code }, None);
        }
        for state in &changed {
            self.publish(state);
        }
    }
}

fn code(ended: Ended) -> i32 {
    match ended {
        Ended::Code(code) => code,
        Ended::Signal(signal) => 128 + signal,
    }
}
