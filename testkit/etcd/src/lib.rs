//! Real etcd servers for tests, and the store that a test run is on.
//!
//! A server's files are in memory where the machine has a place for that. It ends, and they go,
//! when its value is dropped and also when the test process dies in any other way: a shell holds
//! the other end of a pipe and cleans up when that closes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keelson_store::{SharedStore, embedded, etcd};

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs etcd until told to stop it (a line) or to end (no more lines), and removes its directory.
const KEEPER: &str = r#"
trap "" TERM INT HUP
dir=$1; shift
start() { "$@" >>"$dir/log" 2>&1 & pid=$!; }
start "$@"; echo started
while read -r order; do
  case $order in
    kill) kill -9 $pid; wait $pid; echo killed ;;
    start) start "$@"; echo started ;;
  esac
done
kill -9 $pid; wait $pid
rm -rf "$dir"
"#;

pub struct EtcdServer {
    keeper: Child,
    answers: BufReader<std::process::ChildStdout>,
    dir: PathBuf,
    url: String,
    address: SocketAddr,
}

/// The program, or nothing with a message for whoever reads the test's output.
fn program() -> Option<PathBuf> {
    let given = std::env::var_os("KEELSON_TEST_ETCD").map(PathBuf::from);
    let found = given.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("etcd"))
            .find(|file| file.is_file())
    });
    if found.is_none() {
        eprintln!("skipped: there is no etcd on this machine (Debian's package is etcd-server)");
    }
    found
}

impl EtcdServer {
    /// A server of its own; nothing when there is no etcd on this machine.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// With more of etcd's flags.
    pub fn start_with(flags: &[&str]) -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let program = program()?;
        let parent = match Path::new("/dev/shm").is_dir() {
            true => PathBuf::from("/dev/shm"),
            false => std::env::temp_dir(),
        };
        // Another program may take a port between choosing and using it.
        for _ in 0..5 {
            let dir = parent.join(format!(
                "keelson-etcd-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
            let (client, peer) = free_ports();
            let server = Self::spawn(&program, dir, client, peer, flags);
            if server.is_ready() {
                return Some(server);
            }
        }
        panic!("etcd does not start: {}", program.display());
    }

    fn spawn(
        program: &Path,
        dir: PathBuf,
        client: SocketAddr,
        peer: SocketAddr,
        flags: &[&str],
    ) -> Self {
        std::fs::create_dir_all(&dir).expect("a directory in memory can be made");
        let scheme = match flags.iter().any(|flag| flag.starts_with("--cert-file")) {
            true => "https",
            false => "http",
        };
        let (url, peer) = (format!("{scheme}://{client}"), format!("http://{peer}"));
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "etcd-keeper"])
            .arg(&dir)
            .arg(program)
            .arg(format!("--data-dir={}", dir.join("data").display()))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let answers = BufReader::new(keeper.stdout.take().expect("it is a pipe"));
        let mut server = Self {
            keeper,
            answers,
            dir,
            url,
            address: client,
        };
        server.answer("started");
        server
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What etcd wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Ends the server without warning; its data stay.
    pub fn kill(&mut self) {
        self.order("kill");
        self.answer("killed");
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        self.order("start");
        self.answer("started");
        assert!(self.is_ready(), "etcd comes back: {}", self.log());
    }

    fn order(&mut self, order: &str) {
        let pipe = self.keeper.stdin.as_mut().expect("it is a pipe");
        writeln!(pipe, "{order}").expect("the keeper reads");
    }

    fn answer(&mut self, expected: &str) {
        let mut line = String::new();
        self.answers
            .read_line(&mut line)
            .expect("the keeper answers");
        assert_eq!(line.trim(), expected);
    }

    /// Waits until clients are accepted, which is once a leader is there.
    fn is_ready(&self) -> bool {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            if self.log().contains("address already in use") {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn free_ports() -> (SocketAddr, SocketAddr) {
    let listen = || TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let (one, two) = (listen(), listen());
    let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
    (address(&one), address(&two))
}

/// Set to `etcd` for a test run whose stores are in etcd.
const ENGINE: &str = "KEELSON_TEST_STORE";

/// A new, empty store of the engine that this test run is on. Those on etcd share one server and
/// its revisions, under prefixes of their own.
pub async fn store() -> SharedStore {
    static SERVER: OnceLock<Option<EtcdServer>> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if std::env::var_os(ENGINE).is_none_or(|engine| engine != "etcd") {
        return embedded::memory();
    }
    let server = SERVER.get_or_init(EtcdServer::start).as_ref();
    let url = server.expect("KEELSON_TEST_STORE says etcd").url();
    let options = etcd::Options {
        prefix: format!("/test-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        compact_every: None,
        ..etcd::Options::new(vec![url.to_owned()])
    };
    etcd::connect(options).await.expect("etcd answers")
}

/// Runs the other tests of this binary again, with their stores in etcd; only those whose names
/// contain `only`. For a test of its own in each binary whose tests use [`store`]; `name` is that
/// test's.
pub fn rerun_on_etcd(name: &str, only: &str) {
    if std::env::var_os(ENGINE).is_some() || program().is_none() {
        return;
    }
    let binary = std::env::current_exe().expect("a test has a file");
    let output = Command::new(binary)
        .env(ENGINE, "etcd")
        .args([only, "--skip", name, "--test-threads=4"])
        .output()
        .expect("a test can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "on etcd:\n{text}");
    assert!(!text.contains("running 0 tests"), "{text}");
}
