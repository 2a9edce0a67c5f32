//! Flags of what Services are given.

use std::ops::RangeInclusive;

use clap::Args;
use ipnet::IpNet;
use keelson_apiserver::ServiceConfig;

#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceArgs {
    /// Addresses of Services; the first is the API server's, the tenth the DNS server's. A second
    /// range, of the other family, makes Services dual-stack.
    #[arg(
        long,
        alias = "service-cluster-ip-range",
        value_name = "CIDR[,CIDR]",
        value_delimiter = ',',
        default_value = "10.96.0.0/16",
        env = "KEELSON_SERVICE_CIDR"
    )]
    pub(crate) service_cidr: Vec<IpNet>,
    /// Ports of the nodes that Services are given.
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value = "30000-32767",
        value_parser = port_range,
        env = "KEELSON_SERVICE_NODE_PORT_RANGE"
    )]
    pub(crate) service_node_port_range: RangeInclusive<u16>,
}

impl ServiceArgs {
    pub(crate) fn config(&self) -> Result<ServiceConfig, String> {
        let Self {
            service_cidr,
            service_node_port_range,
        } = self;
        let refused = |reason: &str| Err(format!("--service-cidr: {reason}"));
        match service_cidr.as_slice() {
            [_] => {}
            [one, two] if one.addr().is_ipv4() != two.addr().is_ipv4() => {}
            [_, _] => return refused("the two ranges must be of different families"),
            _ => return refused("give one range, or two"),
        }
        if service_cidr
            .iter()
            .any(|cidr| cidr.addr().is_ipv6() && cidr.prefix_len() < 64)
        {
            return refused("a range of IPv6 addresses is a /64 or smaller");
        }
        Ok(ServiceConfig {
            node_ports: service_node_port_range.clone(),
            ..ServiceConfig::new(service_cidr)
        })
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    });
    range.ok_or_else(|| "write it as 30000-32767".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_one_or_one_of_each_family() {
        let config = |cidrs: &[&str]| {
            let args = ServiceArgs {
                service_cidr: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                service_node_port_range: 30000..=30100,
            };
            args.config().map(|config| config.cidrs.len())
        };
        assert_eq!(config(&["10.0.0.0/16"]), Ok(1));
        assert_eq!(config(&["fd00::/108", "10.0.0.0/16"]), Ok(2));
        assert!(config(&["10.0.0.0/16", "10.1.0.0/16"]).is_err());
        assert!(config(&["fd00::/48"]).is_err());
        assert_eq!(port_range("30000-30010"), Ok(30000..=30010));
        for bad in ["", "1", "5-4", "0-9", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }
}
