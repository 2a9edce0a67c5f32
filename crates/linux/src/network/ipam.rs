//! Which address each sandbox has. One small JSON file that survives the process but, living
//! under the run directory, not the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use keelson_ports::HostPort;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attachment {
    pub(super) ips: Vec<IpAddr>,
    /// The host's end of the veth pair.
    pub(super) link: String,
    #[serde(default)]
    pub(super) host_ports: Vec<HostPort>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    #[serde(default, with = "as_text")]
    pub(super) pod_cidrs: Vec<IpNet>,
    #[serde(default, with = "as_text")]
    pub(super) cluster_cidrs: Vec<IpNet>,
    /// Ranges of other nodes that this instance made routes to.
    #[serde(default, with = "as_text")]
    pub(super) routes: Vec<IpNet>,
    #[serde(default)]
    pub(super) attachments: BTreeMap<String, Attachment>,
    /// The address given last in each range: an address rests as long as possible before it is
    /// given again, so that nobody's old connections reach a new pod.
    #[serde(default)]
    last: BTreeMap<String, IpAddr>,
    /// Values of kernel settings before this instance changed them.
    #[serde(default)]
    pub(super) sysctls: BTreeMap<String, String>,
}

/// Ranges as they are written, `10.42.0.0/24`.
mod as_text {
    use ipnet::IpNet;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(nets: &[IpNet], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(nets.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpNet>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        texts
            .iter()
            .map(|t| t.parse().map_err(D::Error::custom))
            .collect()
    }
}

pub(super) struct Ipam {
    path: PathBuf,
    pub(super) facts: Facts,
}

/// The bridge's own address in a range: the first one that is not the range's name.
pub(super) fn gateway(range: &IpNet) -> Option<IpAddr> {
    nth(range, 1)
}

fn nth(range: &IpNet, n: u128) -> Option<IpAddr> {
    let size = range_size(range);
    if n >= size {
        return None;
    }
    Some(match range.network() {
        IpAddr::V4(ip) => {
            IpAddr::from((u32::from(ip).checked_add(u32::try_from(n).ok()?)?).to_be_bytes())
        }
        IpAddr::V6(ip) => IpAddr::from(u128::from(ip).checked_add(n)?.to_be_bytes()),
    })
}

fn range_size(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    if bits >= 127 { u128::MAX } else { 1 << bits }
}

fn offset(range: &IpNet, ip: IpAddr) -> Option<u128> {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    range
        .contains(&ip)
        .then(|| number(ip) - number(range.network()))
}

impl Ipam {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let facts = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Facts::default(),
            Err(e) => return Err(e),
        };
        Ok(Ipam { path, facts })
    }

    /// Replaces the file at once; a run directory is memory, so nothing is synced.
    pub(super) fn save(&self) -> io::Result<()> {
        let tmp = self.path.with_extension("tmp");
        fs::write(
            &tmp,
            serde_json::to_vec(&self.facts).map_err(io::Error::other)?,
        )?;
        fs::rename(tmp, &self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// One free address of each range.
    pub(super) fn allocate(&mut self) -> io::Result<Vec<IpAddr>> {
        let used: BTreeSet<IpAddr> = self
            .facts
            .attachments
            .values()
            .flat_map(|a| a.ips.iter().copied())
            .collect();
        let mut ips = Vec::new();
        for range in &self.facts.pod_cidrs {
            let key = range.to_string();
            let start = self
                .facts
                .last
                .get(&key)
                .and_then(|ip| offset(range, *ip))
                .unwrap_or(1);
            let ip = next_free(range, start, &used).ok_or_else(|| {
                io::Error::other(format!("no free address in the node's pod range {range}"))
            })?;
            self.facts.last.insert(key, ip);
            ips.push(ip);
        }
        Ok(ips)
    }
}

/// Neither the range's name, its gateway nor, for IPv4, its broadcast address.
fn next_free(range: &IpNet, after: u128, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let size = range_size(range);
    let last = if matches!(range, IpNet::V4(_)) {
        size.checked_sub(2)?
    } else {
        size - 1
    };
    let usable = last.checked_sub(1)?;
    let mut at = after;
    for _ in 0..usable.min(used.len() as u128 + 1) {
        at = if at >= last || at < 1 { 2 } else { at + 1 };
        let ip = nth(range, at)?;
        if !used.contains(&ip) {
            return Some(ip);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_rest_before_they_are_given_again_and_run_out() {
        let mut ipam = Ipam {
            path: PathBuf::new(),
            facts: Facts::default(),
        };
        ipam.facts.pod_cidrs = vec!["10.1.0.0/29".parse().unwrap()];
        let mut given = Vec::new();
        for n in 0..5 {
            let ips = ipam.allocate().unwrap();
            given.push(ips[0].to_string());
            ipam.facts.attachments.insert(
                n.to_string(),
                Attachment {
                    ips,
                    ..Attachment::default()
                },
            );
        }
        assert_eq!(
            given,
            ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
        );
        assert!(ipam.allocate().is_err());
        ipam.facts.attachments.remove("1");
        assert_eq!(ipam.allocate().unwrap()[0].to_string(), "10.1.0.3");
    }

    #[test]
    fn a_freed_address_is_not_the_next_one_given() {
        let mut ipam = Ipam {
            path: PathBuf::new(),
            facts: Facts::default(),
        };
        ipam.facts.pod_cidrs = vec!["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let first = ipam.allocate().unwrap();
        assert_eq!(
            first,
            [
                "10.1.0.2".parse::<IpAddr>().unwrap(),
                "fd00::2".parse().unwrap()
            ]
        );
        assert_eq!(ipam.allocate().unwrap()[0].to_string(), "10.1.0.3");
    }
}
