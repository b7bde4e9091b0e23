//! Which hosts and addresses may be called. Names are judged once they are resolved, by the addresses that are then connected to.

use crate::config::Loopback;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Link-local to the provider though it does not look so: metadata services of Amazon (by IPv6), Alibaba, Azure and Oracle.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Where webhooks may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Host names and addresses, or `*.example.com` for all names below it; empty: all.
    pub hosts: Vec<String>,
    pub loopback: Loopback,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 and fc00::/7.
    pub private: bool,
    /// 169.254.0.0/16, fe80::/10 and what clouds keep beside them.
    pub link_local: bool,
}

impl Default for Reach {
    fn default() -> Reach {
        Reach { hosts: Vec::new(), loopback: Loopback::Named, private: true, link_local: false }
    }
}

impl Reach {
    /// Whether the host of an address may be named at all.
    pub fn host(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let fits = |pattern: &String| match pattern.strip_prefix("*.") {
            Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1),
            None => host == *pattern,
        };
        self.hosts.is_empty() || self.hosts.iter().any(fits)
    }

    /// Whether `host`, which is this address or has been resolved to it, may be called there; else the reason.
    pub fn address(&self, host: &str, address: IpAddr) -> Result<(), &'static str> {
        let address = wrapped(address);
        if address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
            return Err("no host has this address");
        }
        if !self.link_local && (is_link_local(address) || METADATA.contains(&address)) {
            return Err("the address is link-local, where clouds keep their metadata");
        }
        if address.is_loopback() {
            return match self.loopback {
                Loopback::Always => Ok(()),
                Loopback::Named if says_loopback(host) => Ok(()),
                Loopback::Named => Err("the name leads to loopback and does not say so"),
                Loopback::Never => Err("loopback must not be called"),
            };
        }
        // A metadata service that is allowed is not forbidden as private.
        if !self.private && is_private(address) && !METADATA.contains(&address) {
            return Err("private addresses must not be called");
        }
        Ok(())
    }
}

fn says_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

/// The address of IPv4 that one of IPv6 stands for: mapped, compatible, or behind NAT64 or 6to4.
fn wrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let part = |from: usize| {
        let o = v6.octets();
        IpAddr::V4(Ipv4Addr::new(o[from], o[from + 1], o[from + 2], o[from + 3]))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] if !v6.is_loopback() && !v6.is_unspecified() => part(12),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => part(12),
        [0x2002, ..] => part(2),
        _ => address,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// 0.0.0.0/8, which means this machine on many systems, is with those that no host has.
fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(reach: &Reach, host: &str, address: &str) -> bool {
        reach.address(host, address.parse().unwrap()).is_ok()
    }

    #[test]
    fn metadata_and_impossible_addresses_are_out_of_reach_in_every_dress() {
        let (reach, near) = (Reach::default(), Reach { link_local: true, private: false, ..Reach::default() });
        let metadata =
            ["169.254.169.254", "::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fe80::1"];
        for address in metadata.into_iter().chain(["fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"]) {
            assert!(!allowed(&reach, "flags.example", address), "{address}");
            assert!(allowed(&near, "flags.example", address), "{address}");
        }
        for address in ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1"] {
            assert!(!allowed(&Reach { loopback: Loopback::Always, ..near.clone() }, "flags.example", address), "{address}");
        }
    }

    #[test]
    fn no_name_but_its_own_leads_to_loopback() {
        let reach = Reach::default();
        for (host, address) in [("127.0.0.1", "127.0.0.1"), ("localhost", "::1"), ("LocalHost.", "127.0.0.1"), ("[::1]", "::1")] {
            assert!(allowed(&reach, host, address), "{host}");
            assert!(!allowed(&Reach { loopback: Loopback::Never, ..reach.clone() }, host, address), "{host}");
        }
        for address in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"] {
            assert!(!allowed(&reach, "rebound.example", address), "{address}");
            assert!(allowed(&Reach { loopback: Loopback::Always, ..reach.clone() }, "rebound.example", address), "{address}");
        }
    }

    #[test]
    fn private_addresses_are_a_choice_and_public_ones_are_not() {
        let (open, closed) = (Reach::default(), Reach { private: false, ..Reach::default() });
        for address in ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1"] {
            assert!(allowed(&open, "flags.svc", address) && !allowed(&closed, "flags.svc", address), "{address}");
        }
        for address in ["93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:2800::1"] {
            assert!(allowed(&closed, "flags.example", address), "{address}");
        }
    }

    #[test]
    fn hosts_are_exact_or_below_a_domain() {
        let reach = Reach { hosts: vec!["flags.example".into(), "*.corp.example".into(), "10.0.0.7".into()], ..Reach::default() };
        for host in ["flags.example", "FLAGS.example.", "a.corp.example", "a.b.corp.example", "10.0.0.7"] {
            assert!(reach.host(host), "{host}");
        }
        for host in ["corp.example", "evilcorp.example", "x.flags.example", "flags.example.evil", "10.0.0.8", ""] {
            assert!(!reach.host(host), "{host}");
        }
        assert!(Reach::default().host("anything.example"));
    }
}
