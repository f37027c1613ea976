//! Where requests may go. A connector file is written by people who integrate, not by those who run the network, and a target's name can come to
//! mean another address at any time; so what is not public is reached only where the file says so.
//!
//! The decision is taken on the address a connection is about to be made to: names are resolved by [`Guard`], which hands the client permitted
//! addresses only, and addresses in URLs are looked at when the file is read. Proxies of the environment are not used, since they would resolve
//! names by themselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde_json::Value;

use crate::block::{Block, problem};
use crate::registry::Problem;

/// Addresses under which clouds hand out credentials to whoever asks: <https://169.254.169.254> of most, Azure's wire server, Alibaba's, and EC2's
/// in IPv6. `allow_private: true` does not open them; naming the network does.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What the file permits beside public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Egress {
    private: bool,
    networks: Vec<IpNet>,
}

/// A name resolved to nothing that may be reached.
#[derive(Debug, thiserror::Error)]
#[error("the host has no address that this connector may reach")]
pub(crate) struct Refused;

const KEY: &str = "allow_private";

impl Egress {
    /// Reads `allow_private`: true, or a list of networks.
    pub(crate) fn read(block: &Block<'_>, problems: &mut Vec<Problem>) -> Egress {
        let Some(Value::Array(networks)) = block.get(KEY) else {
            return Egress { private: block.flag(KEY, false, problems), networks: Vec::new() };
        };
        let mut egress = Egress::default();
        for (n, network) in networks.iter().enumerate() {
            let text = network.as_str().unwrap_or_default();
            match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
                Ok(network) => egress.networks.push(network),
                Err(_) => {
                    let help = "write as 10.1.0.0/16, or true for every private network".to_owned();
                    problems.push(problem(&format!("{}.{n}", block.path(KEY)), "is no network", Some(help)));
                }
            }
        }
        egress
    }

    /// Whether a connection may be made to it.
    pub(crate) fn permits(&self, address: IpAddr) -> bool {
        let address = plain(address);
        if self.networks.iter().any(|network| network.contains(&address)) {
            return true;
        }
        !METADATA.contains(&address) && (self.private || is_public(address))
    }

    /// Says so when a URL names an address that may not be reached. Names are looked at when they are resolved.
    pub(crate) fn check(&self, url: &Url, path: &str, problems: &mut Vec<Problem>) {
        let address = url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        if address.is_some_and(|address| !self.permits(address)) {
            let help = "if it is meant, write `allow_private: true`, or the network as `allow_private: [10.1.0.0/16]`".to_owned();
            problems.push(problem(path, "names an address that is not public", Some(help)));
        }
    }
}

/// The address that packets go to, when it is written within another one (IPv4 in IPv6: mapped, NAT64, 6to4).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let within = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => within(high, low),
        // IPv4-compatible, without :: and ::1 which are what they are.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => within(high, low),
        [0x2002, high, low, ..] => within(high, low),
        _ => address,
    }
}

/// Whether anybody on the internet could be meant (IANA's special-purpose registries, both of them).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let protocol = (a, b, c) == (192, 0, 0) || (a, b, c) == (192, 88, 99);
            let benchmark = a == 198 && (18..20).contains(&b);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_documentation())
                && !(a == 0 || a >= 224 || shared || protocol || benchmark)
        }
        // Global unicast is 2000::/3 alone; of it the first /23 is for protocols (Teredo among them), 2001:db8:: and 3fff:: for documentation.
        IpAddr::V6(v6) => {
            let s = v6.segments();
            (0x2000..0x4000).contains(&s[0]) && !(s[0] == 0x2001 && (s[1] < 0x200 || s[1] == 0xdb8)) && !(s[0] == 0x3fff && s[1] < 0x1000)
        }
    }
}

/// Resolves names to permitted addresses.
pub(crate) struct Guard(pub(crate) Arc<Egress>);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = self.0.clone();
        Box::pin(async move {
            // The client puts in the port.
            let all: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let permitted: Vec<SocketAddr> = all.iter().copied().filter(|address| egress.permits(address.ip())).collect();
            if permitted.is_empty() && !all.is_empty() {
                return Err(Refused.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(allow: Value) -> Egress {
        let mut problems = Vec::new();
        let block = json!({ KEY: allow });
        let egress = Egress::read(&Block::new(&block, "", &[KEY], &mut problems).expect("a block"), &mut problems);
        assert_eq!(problems, []);
        egress
    }

    const PRIVATE: [&str; 26] = [
        "127.0.0.1",
        "127.8.9.1",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "192.0.0.8",
        "198.18.0.1",
        "203.0.113.9",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:7f00:1::",
    ];

    #[test]
    fn what_is_not_public_is_refused_unless_the_file_says_so() {
        let (none, private) = (Egress::default(), read(json!(true)));
        for address in PRIVATE {
            let address: IpAddr = address.parse().expect("an address");
            assert!(!none.permits(address), "{address}");
            assert!(private.permits(address), "{address}");
        }
        for address in ["93.184.216.34", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"] {
            assert!(none.permits(address.parse().expect("an address")), "{address}");
        }
        assert_eq!(read(json!(false)), none);
    }

    #[test]
    fn credentials_of_clouds_want_their_network_named() {
        for address in ["169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254"] {
            let address: IpAddr = address.parse().expect("an address");
            assert!(!Egress::default().permits(address) && !read(json!(true)).permits(address), "{address}");
        }
        assert!(read(json!(["169.254.0.0/16"])).permits(METADATA[0]));
    }

    #[test]
    fn networks_open_themselves_alone() {
        let egress = read(json!(["10.1.0.0/16", "::1", "192.168.7.7"]));
        for (address, permitted) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("::1", true),
            ("127.0.0.1", false),
            ("192.168.7.8", false),
        ] {
            assert_eq!(egress.permits(address.parse().expect("an address")), permitted, "{address}");
        }
    }

    #[test]
    fn an_address_in_a_url_is_seen_however_it_is_written() {
        for url in
            ["http://127.0.0.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]:8080/", "https://[::ffff:a00:1]/x", "http://0/"]
        {
            let mut problems = Vec::new();
            Egress::default().check(&url.parse().expect("a URL"), "url", &mut problems);
            assert_eq!(problems.len(), 1, "{url}");
        }
        let mut problems = Vec::new();
        Egress::default().check(&"https://api.example/".parse().expect("a URL"), "url", &mut problems);
        Egress::read(&Block::new(&json!({KEY: ["10.0.0.0/99"]}), "", &[KEY], &mut problems).expect("a block"), &mut problems);
        assert_eq!(problems.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["allow_private.0"]);
    }
}
