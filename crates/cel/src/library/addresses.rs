//! IP addresses and networks.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, Opaque, Value, ValueResult};
use keelson_machinery::go::quote;
use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[rustfmt::skip]
pub(super) const IP_ROWS: &[Row] = &[
    Row("ip", "string_to_ip", "(string) -> net.IP", Own(ip)),
    Row("family", "ip_family", "net.IP.() -> int", Own(family)),
    Row("ip.isCanonical", "ip_is_canonical", "(string) -> bool", Own(is_canonical)),
    Row("isUnspecified", "ip_is_unspecified", "net.IP.() -> bool", Own(is_unspecified)),
    Row("isLoopback", "ip_is_loopback", "net.IP.() -> bool", Own(is_loopback)),
    Row("isLinkLocalMulticast", "ip_is_link_local_multicast", "net.IP.() -> bool", Own(is_link_local_multicast)),
    Row("isLinkLocalUnicast", "ip_is_link_local_unicast", "net.IP.() -> bool", Own(is_link_local_unicast)),
    Row("isGlobalUnicast", "ip_is_global_unicast", "net.IP.() -> bool", Own(is_global_unicast)),
    Row("isIP", "is_ip", "(string) -> bool", Own(is_ip)),
    Row("string", "ip_to_string", "(net.IP) -> string", Own(to_string)),
];

#[rustfmt::skip]
pub(super) const CIDR_ROWS: &[Row] = &[
    Row("cidr", "string_to_cidr", "(string) -> net.CIDR", Own(cidr)),
    Row("containsIP", "cidr_contains_ip_string", "net.CIDR.(string) -> bool", Own(contains_ip)),
    Row("containsIP", "cidr_contains_ip_ip", "net.CIDR.(net.IP) -> bool", Own(contains_ip)),
    Row("containsCIDR", "cidr_contains_cidr_string", "net.CIDR.(string) -> bool", Own(contains_cidr)),
    Row("containsCIDR", "cidr_contains_cidr", "net.CIDR.(net.CIDR) -> bool", Own(contains_cidr)),
    Row("ip", "cidr_ip", "net.CIDR.() -> net.IP", Own(cidr_ip)),
    Row("prefixLength", "cidr_prefix_length", "net.CIDR.() -> int", Own(prefix_length)),
    Row("masked", "cidr_masked", "net.CIDR.() -> net.CIDR", Own(masked)),
    Row("isCIDR", "is_cidr", "(string) -> bool", Own(is_cidr)),
    Row("string", "cidr_to_string", "(net.CIDR) -> string", Own(to_string)),
];

#[derive(Debug, Clone, Copy, PartialEq)]
struct Ip(IpAddr);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Opaque for Ip {
    fn type_name(&self) -> &str {
        "net.IP"
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Ip>() == Some(self)
    }

    fn size(&self) -> Option<usize> {
        Some(if self.0.is_ipv4() { 4 } else { 16 })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Opaque for Cidr {
    fn type_name(&self) -> &str {
        "net.CIDR"
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Cidr>() == Some(self)
    }

    fn size(&self) -> Option<usize> {
        Some(usize::from(self.bits).div_ceil(8))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Parses an address without a zone that is not an IPv4 address in IPv6 clothes.
fn parse(s: &str) -> Result<Ip, String> {
    let quoted = quote(s);
    let plain = s.split_once('%').map_or(s, |(address, _)| address);
    let address: IpAddr = match plain.parse() {
        Ok(address) if plain.len() == s.len() || s.contains(':') => address,
        _ => {
            let reason = reason(s);
            return Err(format!(
                "IP Address {quoted} parse error during conversion from string: ParseAddr({quoted}): {reason}"
            ));
        }
    };
    if plain.len() != s.len() {
        return Err(format!(
            "IP address {quoted} with zone value is not allowed"
        ));
    }
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("IPv4-mapped IPv6 address {quoted} is not allowed"));
    }
    Ok(Ip(address))
}

/// Why a text is no address.
fn reason(s: &str) -> String {
    match s.find(['.', ':', '%']).map(|i| s.as_bytes()[i]) {
        Some(b'.') => reason_v4(s).to_owned(),
        Some(b':') => {
            let groups = s.split(':').count();
            if groups < 8 && !s.contains("::") {
                "address string too short".to_owned()
            } else {
                "unable to parse IP".to_owned()
            }
        }
        Some(_) => "missing IPv6 address".to_owned(),
        None => "unable to parse IP".to_owned(),
    }
}

fn reason_v4(s: &str) -> &'static str {
    let fields: Vec<&str> = s.split('.').collect();
    for (i, field) in fields.iter().enumerate() {
        if i >= 4 {
            return "IPv4 address too long";
        }
        if field.is_empty() {
            return "IPv4 field must have at least one digit";
        }
        if !field.bytes().all(|b| b.is_ascii_digit()) {
            return "unexpected character";
        }
        if field.len() > 1 && field.starts_with('0') {
            return "IPv4 field has octet with leading zero";
        }
        if field.parse::<u8>().is_err() {
            return "IPv4 field has value >255";
        }
    }
    "IPv4 address too short"
}

fn parse_cidr(s: &str) -> Result<Cidr, String> {
    let quoted = quote(s);
    let refused = |why: String| {
        format!(
            "network address parse error during conversion from string: netip.ParsePrefix({quoted}): {why}"
        )
    };
    let (address, bits) = s
        .rsplit_once('/')
        .ok_or_else(|| refused("no '/'".to_owned()))?;
    if address.contains('%') {
        return Err(refused(
            "IPv6 zones cannot be present in a prefix".to_owned(),
        ));
    }
    let parsed: IpAddr = address.parse().map_err(|_| {
        let shown = quote(address);
        refused(format!("ParseAddr({shown}): {}", reason(address)))
    })?;
    let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    if !digits || (bits.len() > 1 && bits.starts_with('0')) {
        return Err(refused(format!("bad bits after slash: {}", quote(bits))));
    }
    let most = if parsed.is_ipv4() { 32 } else { 128 };
    let bits = match bits.parse::<u8>() {
        Ok(bits) if bits <= most => bits,
        _ => return Err(refused("prefix length out of range".to_owned())),
    };
    if let IpAddr::V6(v6) = parsed
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("IPv4-mapped IPv6 address {quoted} is not allowed"));
    }
    Ok(Cidr {
        address: parsed,
        bits,
    })
}

impl Cidr {
    fn masked(self) -> Cidr {
        let address = match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
            }
        };
        Cidr {
            address,
            bits: self.bits,
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        let bits = self.bits;
        address.is_ipv4() == self.address.is_ipv4()
            && Cidr { address, bits }.masked() == self.masked()
    }
}

fn text<'a>(v: &'a Value<'_>) -> &'a str {
    v.as_str().unwrap_or_default()
}

fn address(v: &Value<'_>) -> Result<IpAddr, EvalError> {
    match v.downcast::<Ip>() {
        Some(ip) => Ok(ip.0),
        None => Err(EvalError::no_such_overload()),
    }
}

fn network(v: &Value<'_>) -> Result<Cidr, EvalError> {
    v.downcast::<Cidr>()
        .copied()
        .ok_or_else(EvalError::no_such_overload)
}

fn network_of(s: &str) -> Result<Cidr, EvalError> {
    parse_cidr(s).map_err(|e| {
        EvalError::new(format!(
            "network address parse error during conversion from string: {e}"
        ))
    })
}

fn ip<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    parse(text(&args[0]))
        .map(Value::opaque)
        .map_err(EvalError::new)
}

fn is_ip<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(parse(text(&args[0])).is_ok()))
}

fn is_canonical<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let s = text(&args[0]);
    let parsed = parse(s).map_err(EvalError::new)?;
    Ok(Value::Bool(parsed.0.to_string() == s))
}

fn to_string<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(match args[0].downcast::<Cidr>() {
        Some(c) => format!("{}/{}", c.address, c.bits),
        None => address(&args[0])?.to_string(),
    }))
}

fn family<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let v4 = address(&args[0])?.is_ipv4();
    Ok(Value::Int(if v4 { 4 } else { 6 }))
}

fn is_unspecified<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(address(&args[0])?.is_unspecified()))
}

fn is_loopback<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(address(&args[0])?.is_loopback()))
}

fn is_link_local_multicast<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(match address(&args[0])? {
        IpAddr::V4(a) => a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => a.segments()[0] & 0xff0f == 0xff02,
    }))
}

fn link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_link_local_unicast<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(link_local(address(&args[0])?)))
}

fn is_global_unicast<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let a = address(&args[0])?;
    let broadcast = matches!(a, IpAddr::V4(v4) if v4.is_broadcast());
    let special = a.is_unspecified() || a.is_loopback() || a.is_multicast() || link_local(a);
    Ok(Value::Bool(!broadcast && !special))
}

fn cidr<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    network_of(text(&args[0])).map(Value::opaque)
}

fn is_cidr<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(parse_cidr(text(&args[0])).is_ok()))
}

fn contains_ip<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let network = network(&args[0])?;
    let address = match &args[1] {
        // Upstream drops the parser's message here.
        Value::String(s) => parse(s).map_err(|_| EvalError::no_such_overload())?.0,
        v => address(v)?,
    };
    Ok(Value::Bool(network.contains(address)))
}

fn contains_cidr<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let outer = network(&args[0])?;
    let inner = match &args[1] {
        Value::String(s) => network_of(s)?,
        v => network(v)?,
    };
    Ok(Value::Bool(
        outer.bits <= inner.bits && outer.contains(inner.address),
    ))
}

fn cidr_ip<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::opaque(Ip(network(&args[0])?.address)))
}

fn prefix_length<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Int(network(&args[0])?.bits.into()))
}

fn masked<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::opaque(network(&args[0])?.masked()))
}
