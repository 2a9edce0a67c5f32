//! Connections: a small web server, a client for it, and bare TCP and UDP in both directions.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Outcome, commands, dns, want};

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 128;
const MAX_REQUEST_BYTES: usize = 16 << 10;
const STACK_BYTES: usize = 128 << 10;

fn port_of(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text:?} is no port"))
}

fn listen(port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|e| format!("cannot listen on port {port}: {e}"))
}

/// Serves each connection on a small thread of its own, up to a limit.
fn accept_all(listener: &TcpListener, handle: fn(TcpStream) -> io::Result<()>) -> Outcome {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Out of descriptors, say: going on at once would only burn the processor.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let count = Arc::clone(&open);
        let thread = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _ = stream.set_read_timeout(Some(TIMEOUT));
                let _ = handle(stream);
                count.fetch_sub(1, Ordering::Relaxed);
            });
        if thread.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

pub(super) fn serve(arguments: &[String]) -> Outcome {
    let mut port = std::env::var("PORT")
        .ok()
        .and_then(|p| p.parse().ok())
        .unwrap_or(8080);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = match argument.strip_prefix("--port=") {
            Some(value) => Some(value),
            None if argument == "--port" => rest.next().map(String::as_str),
            None => return Err(format!("{argument} is unknown; usage: serve [--port 8080]")),
        };
        port = port_of(value.unwrap_or_default())?;
    }
    let listener = listen(port)?;
    println!("listening on port {port}");
    accept_all(&listener, answer_http)
}

/// Asked so often that the log is better without them.
const HEALTH_PAGES: &[&str] = &["/healthz", "/readyz", "/livez"];

fn answer_http(mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    loop {
        let Some(head) = read_head(&mut stream)? else {
            return Ok(());
        };
        let mut words = head.lines().next().unwrap_or_default().split(' ');
        let (method, target) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or("/"),
        );
        let keep_alive = words.next() == Some("HTTP/1.1")
            && header(&head, "connection").is_none_or(|v| v != "close");
        let (status, body) = page(target, peer);
        if !HEALTH_PAGES.contains(&target) {
            println!("{method} {target} {status}");
        }
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let length = body.len();
        let shown = if method == "HEAD" { "" } else { body.as_str() };
        // In one write: pieces would be packets of their own.
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Connection: {connection}\r\n\r\n{shown}"
        );
        stream.write_all(answer.as_bytes())?;
        // A body would stand where the next request is expected.
        let has_body = header(&head, "content-length").is_some_and(|l| l != "0")
            || header(&head, "transfer-encoding").is_some();
        if !keep_alive || has_body {
            return stream.shutdown(Shutdown::Write);
        }
    }
}

/// The request line and headers; `None` when the client has closed or sent too much.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut byte)?;
        if n == 0 || head.len() > MAX_REQUEST_BYTES {
            return Ok(None);
        }
        head.extend_from_slice(&byte[..n]);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn header(head: &str, wanted: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case(wanted)
            .then(|| value.trim().to_ascii_lowercase())
    })
}

fn page(target: &str, peer: SocketAddr) -> (&'static str, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| {
        let pair = |p: &str| {
            p.split_once('=')
                .filter(|(n, _)| *n == name)
                .map(|(_, v)| v.replace('+', " "))
        };
        query.split('&').find_map(pair)
    };
    let body = match path {
        "/" => greeting(),
        _ if HEALTH_PAGES.contains(&path) => "ok\n".to_owned(),
        "/hostname" => commands::host_name(),
        "/clientip" => SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string(),
        "/echo" => parameter("msg").unwrap_or_default(),
        "/exit" => {
            let code = parameter("code").and_then(|c| c.parse().ok()).unwrap_or(0);
            std::process::exit(code)
        }
        _ => return ("404 Not Found", "there is no such page\n".to_owned()),
    };
    ("200 OK", body)
}

fn greeting() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let pod = variable("POD_NAME").unwrap_or_else(commands::host_name);
    let mut text = format!("Hello from {pod}");
    if let Some(node) = variable("NODE_NAME") {
        text.push_str(&format!(" on {node}"));
    }
    if let Some(version) = variable("VERSION") {
        text.push_str(&format!(", version {version}"));
    }
    text + "\n"
}

fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let mut failure = format!("{host}: no address");
    for ip in dns::resolve(host)? {
        match TcpStream::connect_timeout(&(ip, port).into(), TIMEOUT) {
            Ok(stream) => {
                let _ = stream.set_read_timeout(Some(TIMEOUT));
                return Ok(stream);
            }
            Err(e) => failure = format!("cannot connect to {ip} port {port}: {e}"),
        }
    }
    Err(failure)
}

/// Prints the body; the exit code is not zero when the server does not answer with success.
pub(super) fn get(arguments: &[String]) -> Outcome {
    let [url] = want(arguments, "get URL")?;
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{scheme} is not supported, only http")),
        None => url.as_str(),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port_of(port)?),
        _ => (authority, 80),
    };
    let mut stream = connect(host, port)?;
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {authority}\r\nUser-Agent: hello\r\nAccept: */*\r\n\r\n"
    );
    let mut answer = Vec::new();
    let exchange = stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_to_end(&mut answer));
    exchange.map_err(|e| format!("{url}: {e}"))?;
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or_else(|| format!("{url}: no HTTP answer"))?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    commands::print_all(&answer[end + 4..])?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('2') {
        Ok(0)
    } else {
        Err(format!("{url}: the server answers {status}"))
    }
}

/// Connects and tells so; with a text sends it and prints what comes back until the end.
pub(super) fn tcp(arguments: &[String]) -> Outcome {
    let [host, port] = want(arguments, "tcp HOST PORT [TEXT]")?;
    let mut stream = connect(&host, port_of(&port)?)?;
    let Some(text) = arguments.get(2) else {
        return commands::print_all(b"connected\n");
    };
    let mut answer = Vec::new();
    let exchange = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_end(&mut answer));
    exchange.map_err(|e| format!("{host} port {port}: {e}"))?;
    commands::print_all(&answer)
}

pub(super) fn udp(arguments: &[String]) -> Outcome {
    let [host, port, text] = want(arguments, "udp HOST PORT TEXT")?;
    let port = port_of(&port)?;
    let ip = *dns::resolve(&host)?
        .first()
        .ok_or_else(|| format!("{host}: no address"))?;
    let exchange = || -> io::Result<Vec<u8>> {
        let socket = if ip.is_ipv4() {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?
        } else {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?
        };
        socket.connect((ip, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.send(text.as_bytes())?;
        let mut answer = vec![0; 65_536];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    let answer = exchange().map_err(|e| format!("{ip} port {port}: {e}"))?;
    commands::print_all(&answer)
}

pub(super) fn tcp_serve(arguments: &[String]) -> Outcome {
    let [port] = want(arguments, "tcp-serve PORT")?;
    let listener = listen(port_of(&port)?)?;
    println!("listening on port {port}");
    accept_all(&listener, |mut stream| {
        let peer = stream.peer_addr()?.ip().to_canonical();
        writeln!(stream, "{} {peer}", commands::host_name())?;
        let mut from = stream.try_clone()?;
        io::copy(&mut from, &mut stream)?;
        stream.shutdown(Shutdown::Write)
    })
}

pub(super) fn udp_serve(arguments: &[String]) -> Outcome {
    let [port] = want(arguments, "udp-serve PORT")?;
    let port = port_of(&port)?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
        .map_err(|e| format!("cannot listen on port {port}: {e}"))?;
    println!("listening on port {port}");
    let mut datagram = vec![0; 65_536];
    loop {
        let (length, peer) = socket.recv_from(&mut datagram).map_err(|e| e.to_string())?;
        let mut answer = format!("{} ", commands::host_name()).into_bytes();
        answer.extend_from_slice(&datagram[..length]);
        let _ = socket.send_to(&answer, peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_their_parameters() {
        let peer: SocketAddr = "[::ffff:10.0.0.7]:4000".parse().unwrap();
        assert_eq!(
            page("/echo?a=b&msg=two+words", peer),
            ("200 OK", "two words".to_owned())
        );
        assert_eq!(page("/clientip", peer).1, "10.0.0.7:4000");
        assert!(page("/", peer).1.starts_with("Hello from "));
        assert!(page("/nothing", peer).0.starts_with("404"));
    }

    #[test]
    fn a_connection_serves_several_requests() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || answer_http(listener.accept().unwrap().0));
        let mut stream = TcpStream::connect(address).unwrap();
        let mut answer = [0; 4096];
        for _ in 0..2 {
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            let mut n = 0;
            while !answer[..n].ends_with(b"\r\n\r\nok\n") {
                let more = stream.read(&mut answer[n..]).unwrap();
                assert!(more > 0, "{}", String::from_utf8_lossy(&answer[..n]));
                n += more;
            }
        }
        stream
            .write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("Hello from"));
    }
}
