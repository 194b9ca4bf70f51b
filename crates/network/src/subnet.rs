//! Checked forms of what the configuration says: a subnet for pods, a name for a bridge.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

/// Why a text is no subnet for pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubnet {
    /// Not of the form ADDRESS/PREFIX.
    #[error("{text:?} is not a subnet: write ADDRESS/PREFIX, as in {example}")]
    Syntax {
        /// As given.
        text: String,
        /// A right one.
        example: &'static str,
    },
    /// The prefix leaves too few or too many addresses.
    #[error("{text}: prefix must be /{least} to /{most}")]
    Prefix {
        /// As given.
        text: String,
        /// Shortest prefix.
        least: u8,
        /// Longest prefix.
        most: u8,
    },
    /// Bits beyond the prefix are set.
    #[error("{text} names one address in a subnet: the subnet is {subnet}")]
    HostBits {
        /// As given.
        text: String,
        /// With these bits cleared.
        subnet: String,
    },
    /// Addresses that no pod can have.
    #[error(
        "{text} is a loopback, link-local, multicast or unspecified range: choose a private one, as {example}"
    )]
    Reserved {
        /// As given.
        text: String,
        /// A right one.
        example: &'static str,
    },
}

/// An IPv4 subnet of at least two usable addresses: /8 to /30.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Subnet4 {
    base: u32,
    prefix: u8,
}

/// An IPv6 subnet with room for every offset of a [`Subnet4`]: /8 to /96.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Subnet6 {
    base: u128,
    prefix: u8,
}

/// What new pods get their addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnets {
    /// Of their primary addresses.
    pub v4: Subnet4,
    /// Absent: pods have no IPv6 address.
    pub v6: Option<Subnet6>,
}

impl Subnets {
    /// The bridge's addresses.
    pub(crate) fn gateways(self) -> Vec<Gateway> {
        let v4 = Gateway { address: self.v4.gateway().into(), prefix: self.v4.prefix };
        let v6 = self.v6.map(|v6| Gateway { address: v6.gateway().into(), prefix: v6.prefix });
        std::iter::once(v4).chain(v6).collect()
    }
}

/// An address of the bridge, with the subnet around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Gateway {
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
                    & (own.to_bits() ^ other.to_bits())
                    == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
                    & (own.to_bits() ^ other.to_bits())
                    == 0
            }
            _ => false,
        }
    }
}

/// The subnet, as nft reads it: it clears the bits beyond the prefix itself.
impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Subnet4 {
    const EXAMPLE: &'static str = "10.88.0.0/16";

    /// Length of the network part in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address of the bridge: the subnet's first.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address `offset` after the subnet's base.
    pub(crate) fn address(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | offset)
    }

    /// Inverse of [`Self::address`], for pods' addresses only: neither the base, nor the bridge, nor the broadcast.
    pub(crate) fn pod_offset(self, address: Ipv4Addr) -> Option<u32> {
        self.contains(address)
            .then(|| address.to_bits() & !mask4(self.prefix))
            .filter(|offset| (2..=self.last_offset()).contains(offset))
    }

    /// The offset of the last pod address, the one before the broadcast address.
    pub(crate) fn last_offset(self) -> u32 {
        !mask4(self.prefix) - 1
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask4(self.prefix) == self.base
    }
}

impl Subnet6 {
    const EXAMPLE: &'static str = "fd00:88::/64";

    /// Length of the network part in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address of the bridge: the subnet's first.
    #[must_use]
    pub fn gateway(self) -> Ipv6Addr {
        self.address(1)
    }

    pub(crate) fn address(self, offset: u32) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.base | u128::from(offset))
    }
}

/// `prefix` is 8 to 30.
fn mask4(prefix: u8) -> u32 {
    u32::MAX << (32 - prefix)
}

/// `prefix` is 8 to 96.
fn mask6(prefix: u8) -> u128 {
    u128::MAX << (128 - prefix)
}

fn split<A: FromStr>(
    text: &str,
    least: u8,
    most: u8,
    example: &'static str,
) -> Result<(A, u8), InvalidSubnet> {
    let syntax = || InvalidSubnet::Syntax { text: text.chars().take(80).collect(), example };
    let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
    let address = address.parse().map_err(|_| syntax())?;
    let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
    if (least..=most).contains(&prefix) {
        Ok((address, prefix))
    } else {
        Err(InvalidSubnet::Prefix { text: text.to_owned(), least, most })
    }
}

impl FromStr for Subnet4 {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let (address, prefix) = split::<Ipv4Addr>(text, 8, 30, Self::EXAMPLE)?;
        let subnet = Self { base: address.to_bits() & mask4(prefix), prefix };
        let base = Ipv4Addr::from_bits(subnet.base);
        if address.is_loopback()
            || address.is_link_local()
            || address.octets()[0] >= 224
            || address.octets()[0] == 0
        {
            return Err(InvalidSubnet::Reserved { text: text.to_owned(), example: Self::EXAMPLE });
        }
        if address != base {
            return Err(InvalidSubnet::HostBits { text: text.to_owned(), subnet: subnet.to_string() });
        }
        Ok(subnet)
    }
}

impl FromStr for Subnet6 {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let (address, prefix) = split::<Ipv6Addr>(text, 8, 96, Self::EXAMPLE)?;
        let subnet = Self { base: address.to_bits() & mask6(prefix), prefix };
        let base = Ipv6Addr::from_bits(subnet.base);
        if base.is_unicast_link_local() || base.is_multicast() || address.segments()[0] == 0 {
            return Err(InvalidSubnet::Reserved { text: text.to_owned(), example: Self::EXAMPLE });
        }
        if address != base {
            return Err(InvalidSubnet::HostBits { text: text.to_owned(), subnet: subnet.to_string() });
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(0), self.prefix)
    }
}

impl TryFrom<String> for Subnet4 {
    type Error = InvalidSubnet;

    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = InvalidSubnet;

    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

/// Why a text is no name for a bridge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a bridge name: 1 to 15 letters, digits, '-' and '_', and the first is a letter")]
pub struct InvalidBridgeName {
    text: String,
}

/// The name of a link that is also a valid part of an nftables table's name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BridgeName(String);

impl BridgeName {
    /// As `ip link` shows it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BridgeName {
    type Err = InvalidBridgeName;

    fn from_str(text: &str) -> Result<Self, InvalidBridgeName> {
        let of_link = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        // IFNAMSIZ, netdevice(7), counts the closing zero.
        let valid = text.len() <= 15
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.chars().all(of_link);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidBridgeName { text: text.chars().take(80).collect() })
        }
    }
}

impl TryFrom<String> for BridgeName {
    type Error = InvalidBridgeName;

    fn try_from(text: String) -> Result<Self, InvalidBridgeName> {
        text.parse()
    }
}

impl fmt::Display for BridgeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_know_their_pods() {
        let subnet: Subnet4 = "10.88.0.0/29".parse().unwrap();
        let pods: Vec<_> = (0..=255).filter_map(|n| subnet.pod_offset([10, 88, 0, n].into())).collect();
        assert_eq!(pods, [2, 3, 4, 5, 6]);
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(subnet.to_string(), "10.88.0.0/29");
        let subnet: Subnet6 = "fd00:88::/64".parse().unwrap();
        assert_eq!(subnet.address(0x1_0002), "fd00:88::1:2".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_gateway_knows_its_subnet() {
        let subnets =
            Subnets { v4: "10.88.0.0/29".parse().unwrap(), v6: Some("fd00:88::/64".parse().unwrap()) };
        let [v4, v6] = subnets.gateways().try_into().unwrap();
        for (gateway, address, within) in [
            (v4, "10.88.0.7", true),
            (v4, "10.88.0.8", false),
            (v4, "fd00:88::2", false),
            (v6, "fd00:88::ffff:0:0:2", true),
            (v6, "fd00:89::2", false),
            (Gateway { prefix: 0, ..v4 }, "192.0.2.1", true),
            (Gateway { prefix: 128, ..v6 }, "fd00:88::2", false),
        ] {
            assert_eq!(gateway.contains(address.parse().unwrap()), within, "{gateway} {address}");
        }
    }

    #[test]
    fn bad_subnets_are_told_what_is_wrong() {
        let four = |text: &str| text.parse::<Subnet4>().unwrap_err().to_string();
        assert_eq!(
            four("10.88.0.0"),
            "\"10.88.0.0\" is not a subnet: write ADDRESS/PREFIX, as in 10.88.0.0/16"
        );
        assert_eq!(four("10.88.0.0/33"), "10.88.0.0/33: prefix must be /8 to /30");
        assert_eq!(four("10.88.0.0/31"), "10.88.0.0/31: prefix must be /8 to /30");
        assert_eq!(
            four("10.88.3.0/16"),
            "10.88.3.0/16 names one address in a subnet: the subnet is 10.88.0.0/16"
        );
        assert!(four("127.0.0.0/8").contains("loopback"));
        assert!(four("224.0.0.0/16").contains("multicast"));
        assert!(four("fd00::/64").contains("is not a subnet"));
        let six = |text: &str| text.parse::<Subnet6>().unwrap_err().to_string();
        assert_eq!(six("fd00::/112"), "fd00::/112: prefix must be /8 to /96");
        assert_eq!(six("fd00::1/64"), "fd00::1/64 names one address in a subnet: the subnet is fd00::/64");
        assert!(six("fe80::/64").contains("link-local"));
    }

    #[test]
    fn bridge_names_are_link_and_table_names() {
        for good in ["meridian0", "m", "br-a_1"] {
            assert!(good.parse::<BridgeName>().is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "0a", "a b", "sixteen-letters-", "br%d", "a;b", "é"] {
            assert!(bad.parse::<BridgeName>().is_err(), "{bad}");
        }
    }
}
