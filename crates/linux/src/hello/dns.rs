//! A stub resolver that does what `/etc/resolv.conf` says, and nothing that libc would add.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::{Outcome, commands, want};

const TYPES: [(&str, u16); 6] = [
    ("A", 1),
    ("CNAME", 5),
    ("PTR", 12),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
];
const A: u16 = 1;
const AAAA: u16 = 28;
const NAME_ERROR: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Config {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout: Duration,
    attempts: usize,
}

impl Config {
    fn parse(text: &str) -> Self {
        let mut config = Config {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => config
                    .servers
                    .extend(words.next().and_then(|w| w.parse::<IpAddr>().ok())),
                Some("search" | "domain") => config.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|option| config.option(option)),
                _ => {}
            }
        }
        if config.servers.is_empty() {
            config.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        config
    }

    fn option(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else {
            return;
        };
        let Ok(value) = value.parse::<usize>() else {
            return;
        };
        match name {
            "ndots" => self.ndots = value.min(15),
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30) as u64),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The names to try for what the user wrote, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<String> = self
            .search
            .iter()
            .map(|s| format!("{name}.{}", s.trim_end_matches('.')))
            .collect();
        let position = if name.matches('.').count() >= self.ndots {
            0
        } else {
            names.len()
        };
        names.insert(position, name.to_owned());
        names
    }
}

/// `lookup NAME [TYPE]` prints a line per record.
pub(super) fn lookup_command(arguments: &[String]) -> Outcome {
    let [name] = want(arguments, "lookup NAME [A|AAAA|SRV|PTR|TXT|CNAME]")?;
    let lines: Vec<String> = match arguments.get(1) {
        None => resolve(&name)?.iter().map(ToString::to_string).collect(),
        Some(wanted) => {
            let wanted = wanted.to_ascii_uppercase();
            let kind = TYPES
                .iter()
                .find(|(n, _)| *n == wanted)
                .ok_or_else(|| format!("{wanted} is unknown"))?
                .1;
            let name = match name.parse::<IpAddr>() {
                Ok(ip) if wanted == "PTR" => reverse(ip),
                _ => name.clone(),
            };
            query_all(&config()?, &name, &[kind])?
        }
    };
    if lines.is_empty() {
        return Err(format!("{name}: no such record"));
    }
    commands::print_all(format!("{}\n", lines.join("\n")).as_bytes())
}

/// The addresses of a host, IPv4 first.
pub(super) fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse() {
        return Ok(vec![ip]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let known = in_hosts(&hosts, host);
    if !known.is_empty() {
        return Ok(known);
    }
    if host == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    let lines = query_all(&config()?, host, &[A, AAAA])?;
    let found: Vec<IpAddr> = lines.iter().filter_map(|l| l.parse().ok()).collect();
    if found.is_empty() {
        Err(format!("{host}: no such name"))
    } else {
        Ok(found)
    }
}

fn config() -> Result<Config, String> {
    let text = std::fs::read_to_string("/etc/resolv.conf")
        .map_err(|e| format!("/etc/resolv.conf: {e}"))?;
    Ok(Config::parse(&text))
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let line = |line: &str| -> Option<IpAddr> {
        let mut words = line.split('#').next()?.split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|w| w.eq_ignore_ascii_case(name)).then_some(ip)
    };
    hosts.lines().filter_map(line).collect()
}

fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(ip) => {
            let mut name = String::new();
            for byte in ip.octets().iter().rev() {
                let _ = write!(name, "{:x}.{:x}.", byte & 15, byte >> 4);
            }
            name + "ip6.arpa."
        }
    }
}

/// The first candidate that exists gives the answer, of all the types asked for.
fn query_all(config: &Config, name: &str, kinds: &[u16]) -> Result<Vec<String>, String> {
    let mut failure = format!("{name}: no such name");
    for candidate in config.candidates(name) {
        let mut found = Vec::new();
        for kind in kinds {
            match query(config, &candidate, *kind) {
                Ok((_, records)) => found.extend(records),
                Err(e) => failure = e,
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(failure)
}

fn query(config: &Config, name: &str, kind: u16) -> Result<(u8, Vec<String>), String> {
    let id = rand::random::<u16>();
    let question = encode(id, name, kind)?;
    let mut failure = String::new();
    for _ in 0..config.attempts {
        for server in &config.servers {
            let server = SocketAddr::new(*server, 53);
            let answer = ask_udp(server, &question, config.timeout).and_then(|answer| {
                let truncated = answer.get(2).is_some_and(|flags| flags & 2 != 0);
                if truncated {
                    ask_tcp(server, &question, config.timeout)
                } else {
                    Ok(answer)
                }
            });
            match answer {
                Ok(answer) => match decode(&answer, id, kind) {
                    Some((code, records)) if code == 0 || code == NAME_ERROR => {
                        return Ok((code, records));
                    }
                    Some((code, _)) => {
                        failure = format!("{name}: the server {server} answers with error {code}")
                    }
                    None => failure = format!("{name}: the server {server} answers nonsense"),
                },
                Err(e) => failure = format!("{name}: the server {server} does not answer: {e}"),
            }
        }
    }
    Err(failure)
}

fn ask_udp(server: SocketAddr, question: &[u8], timeout: Duration) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(question)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_tcp(server: SocketAddr, question: &[u8], timeout: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn encode(id: u16, name: &str, kind: u16) -> Result<Vec<u8>, String> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|l| (1..=63).contains(l));
        out.push(length.ok_or_else(|| format!("{name:?} is no name"))?);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    Ok(out)
}

/// The response code and the records of the wanted type.
fn decode(answer: &[u8], id: u16, kind: u16) -> Option<(u8, Vec<String>)> {
    let word = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if word(0)? != id || answer.get(2)? & 0x80 == 0 {
        return None;
    }
    let (code, questions, answers) = (answer.get(3)? & 15, word(4)?, word(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = name_at(answer, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..answers {
        at = name_at(answer, at)?.1;
        let (found, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        if found == kind {
            records.extend(render(answer, at + 10, data, kind));
        }
        at += 10 + length;
    }
    Some((code, records))
}

fn render(answer: &[u8], at: usize, data: &[u8], kind: u16) -> Option<String> {
    let word = |i: usize| Some(u16::from_be_bytes(data.get(i..i + 2)?.try_into().ok()?));
    Some(match kind {
        A => <[u8; 4]>::try_from(data)
            .map(Ipv4Addr::from)
            .ok()?
            .to_string(),
        AAAA => <[u8; 16]>::try_from(data)
            .map(Ipv6Addr::from)
            .ok()?
            .to_string(),
        33 => format!(
            "{} {} {} {}",
            word(0)?,
            word(2)?,
            word(4)?,
            name_at(answer, at + 6)?.0
        ),
        16 => {
            let length = usize::from(*data.first()?);
            String::from_utf8_lossy(data.get(1..1 + length)?).into_owned()
        }
        _ => name_at(answer, at)?.0,
    })
}

/// A possibly compressed name and where what follows it begins.
fn name_at(answer: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut name, mut end, mut hops) = (String::new(), None, 0);
    loop {
        match usize::from(*answer.get(at)?) {
            0 => return Some((name, end.unwrap_or(at + 1))),
            pointer if pointer >= 0xc0 => {
                end.get_or_insert(at + 2);
                at = (pointer & 0x3f) << 8 | usize::from(*answer.get(at + 1)?);
                hops += 1;
                if hops > 32 {
                    return None;
                }
            }
            length => {
                name.push_str(&String::from_utf8_lossy(
                    answer.get(at + 1..at + 1 + length)?,
                ));
                name.push('.');
                at += 1 + length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_as_ndots_says() {
        let config =
            Config::parse("nameserver 10.96.0.10\nsearch a.svc b\noptions ndots:5 timeout:1\n");
        assert_eq!(config.candidates("web"), ["web.a.svc", "web.b", "web"]);
        assert_eq!(
            config.candidates("a.b.c.d.e.f"),
            ["a.b.c.d.e.f", "a.b.c.d.e.f.a.svc", "a.b.c.d.e.f.b"]
        );
        assert_eq!(config.candidates("web."), ["web"]);
        assert_eq!(
            config.servers,
            ["10.96.0.10".parse::<IpAddr>().ok()].map(|ip| ip.unwrap())
        );
    }

    #[test]
    fn answers_are_decoded_and_loops_are_not() {
        let mut answer = encode(7, "web.a", A).unwrap();
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 9]);
        assert_eq!(
            decode(&answer, 7, A),
            Some((0, vec!["10.0.0.9".to_owned()]))
        );
        assert_eq!(decode(&answer, 8, A), None, "somebody else's answer");
        assert_eq!(name_at(&[0xc0, 0], 0), None);
    }
}
