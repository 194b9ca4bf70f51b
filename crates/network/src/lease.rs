//! Which addresses are taken, and by whom nothing is said: the pod's record holds its lease.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::lock;
use crate::subnet::{Gateway, Subnet4, Subnets};

/// How long an exhausted subnet is watched for a namespace that is being destroyed. cleanup_net takes 40 ms, 30 pods
/// together 48 ms.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);

/// The addresses of one pod. Part of the pod's record, and all that is needed to adopt them after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// In the configured subnet.
    pub v4: Ipv4Addr,
    /// Absent where IPv6 is off.
    pub v6: Option<Ipv6Addr>,
}

impl Lease {
    /// The pod's MAC: 0a:58 (locally administered) and the IPv4 address, so that it is unique where the address is
    /// and neighbours' caches stay right when the address moves on.
    #[must_use]
    pub fn mac(&self) -> Mac {
        Mac::of(self.v4)
    }

    /// Name of the pod's veth on the node.
    #[must_use]
    pub fn host_veth(&self) -> String {
        format!("veth{:08x}", self.v4.to_bits())
    }

    /// IPv4 first, as CRI's primary address.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6)).collect()
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Of all of ours.
    pub(crate) const PREFIX: [u8; 2] = [0x0a, 0x58];

    pub(crate) fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        let [first, second] = Self::PREFIX;
        Self([first, second, a, b, c, d])
    }

    /// In the order they are sent.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a pod gets no addresses.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// Every address of the subnet is in use.
    #[error(
        "no free address in {subnet}: {leased} are held by pods and {lingering} by namespaces not yet destroyed; \
         remove pods or configure a larger network.subnet4"
    )]
    Exhausted {
        /// As configured.
        subnet: Subnet4,
        /// Addresses of pods that exist.
        leased: usize,
        /// Addresses of pods removed, whose veth still exists.
        lingering: usize,
    },
    /// The node's links could not be looked up.
    #[error("look up link {link}")]
    Link {
        /// Its name.
        link: String,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
}

/// Why a lease from before the restart cannot be kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// The configuration changed since.
    #[error("{address} is no pod address of {subnet}: the subnet was changed while pods were running")]
    Outside {
        /// Of the lease.
        address: Ipv4Addr,
        /// As configured now.
        subnet: Subnet4,
    },
    /// Two records hold the same address.
    #[error("{address} is leased already")]
    Leased {
        /// Of the lease.
        address: Ipv4Addr,
    },
}

#[derive(Debug)]
pub(crate) struct Leases {
    subnets: Subnets,
    /// Of subnets that new pods no longer get addresses from.
    earlier: Vec<Gateway>,
    /// The pods of an earlier daemon are known.
    settled: bool,
    taken: HashMap<Ipv4Addr, Option<Ipv6Addr>>,
    next: u32,
}

impl Leases {
    pub(crate) fn new(subnets: Subnets, earlier: Vec<Gateway>) -> Self {
        Self { subnets, earlier, settled: false, taken: HashMap::new(), next: 2 }
    }

    /// All pods of an earlier daemon were adopted.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
    }

    pub(crate) fn subnets(&self) -> Subnets {
        self.subnets
    }

    /// New pods get their addresses from `subnets` from now on.
    pub(crate) fn renumber(&mut self, subnets: Subnets) {
        let gateways = self.gateways();
        self.earlier = gateways.into_iter().filter(|gateway| !subnets.gateways().contains(gateway)).collect();
        (self.subnets, self.next) = (subnets, 2);
    }

    /// The bridge's addresses, those of earlier subnets last.
    pub(crate) fn gateways(&self) -> Vec<Gateway> {
        self.subnets.gateways().into_iter().chain(self.earlier.iter().copied()).collect()
    }

    /// Those of the lease's addresses, in their order.
    pub(crate) fn gateways_of(&self, lease: &Lease) -> Vec<Gateway> {
        let all = self.gateways();
        let of = |address| all.iter().find(|gateway| gateway.contains(address)).copied();
        lease.addresses().into_iter().filter_map(of).collect()
    }

    /// Forgets the earlier subnets without a pod, and answers their gateways; none before [`Leases::settle`].
    pub(crate) fn forget_unused(&mut self) -> Vec<Gateway> {
        if !self.settled {
            return Vec::new();
        }
        let taken = |gateway: &Gateway| {
            let mut all = self.taken.iter().map(|(v4, v6)| Lease { v4: *v4, v6: *v6 });
            all.any(|lease| lease.addresses().into_iter().any(|address| gateway.contains(address)))
        };
        let (used, unused) = self.earlier.iter().partition(|gateway| taken(gateway));
        self.earlier = used;
        unused
    }

    pub(crate) fn adopt(&mut self, lease: &Lease) -> Result<(), AdoptError> {
        let (address, subnet) = (lease.v4, self.subnets.v4);
        let offset = subnet.pod_offset(address);
        if offset.is_none() && !self.earlier.iter().any(|gateway| gateway.contains(address.into())) {
            return Err(AdoptError::Outside { address, subnet });
        }
        if self.taken.contains_key(&address) {
            return Err(AdoptError::Leased { address });
        }
        self.taken.insert(address, lease.v6);
        if let Some(offset) = offset.filter(|offset| *offset >= self.next) {
            self.next = self.after(offset);
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, lease: &Lease) {
        self.taken.remove(&lease.v4);
    }

    /// Takes the next free address whose veth, by `exists`, is gone. Exhausted: the number of veths that linger.
    fn take(
        &mut self,
        mut exists: impl FnMut(&str) -> io::Result<bool>,
    ) -> Result<Result<Lease, usize>, AllocateError> {
        let mut lingering = 0;
        for _ in 2..=self.subnets.v4.last_offset() {
            let lease = self.lease(self.next);
            self.next = self.after(self.next);
            if self.taken.contains_key(&lease.v4) {
                continue;
            }
            let link = lease.host_veth();
            match exists(&link) {
                Ok(true) => lingering += 1,
                Ok(false) => {
                    self.taken.insert(lease.v4, lease.v6);
                    return Ok(Ok(lease));
                }
                Err(source) => return Err(AllocateError::Link { link, source }),
            }
        }
        Ok(Err(lingering))
    }

    fn after(&self, offset: u32) -> u32 {
        if offset < self.subnets.v4.last_offset() { offset + 1 } else { 2 }
    }

    fn lease(&self, offset: u32) -> Lease {
        let Subnets { v4, v6 } = self.subnets;
        Lease { v4: v4.address(offset), v6: v6.map(|subnet| subnet.address(offset)) }
    }

    /// Number of leases in the subnet of new pods.
    fn held(&self) -> usize {
        self.taken.keys().filter(|address| self.subnets.v4.contains(**address)).count()
    }
}

pub(crate) fn allocate(
    leases: &Mutex<Leases>,
    mut exists: impl FnMut(&str) -> io::Result<bool>,
) -> Result<Lease, AllocateError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut leases = lock(leases);
        match leases.take(&mut exists)? {
            Ok(lease) => return Ok(lease),
            Err(lingering) if lingering == 0 || Instant::now() >= deadline => {
                return Err(AllocateError::Exhausted {
                    subnet: leases.subnets.v4,
                    leased: leases.held(),
                    lingering,
                });
            }
            Err(_) => drop(leases),
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases() -> Mutex<Leases> {
        Mutex::new(Leases::new(subnets("10.9.0.0/29", "fd00:9::/64"), Vec::new()))
    }

    fn subnets(v4: &str, v6: &str) -> Subnets {
        Subnets { v4: v4.parse().unwrap(), v6: Some(v6.parse().unwrap()) }
    }

    #[test]
    fn addresses_rest_as_long_as_the_subnet_allows() {
        let leases = leases();
        let mut seen = Vec::new();
        for _ in 0..7 {
            let lease = allocate(&leases, |_| Ok(false)).unwrap();
            seen.push(lease.v4.octets()[3]);
            lock(&leases).release(&lease);
        }
        assert_eq!(seen, [2, 3, 4, 5, 6, 2, 3]);
    }

    #[test]
    fn an_exhausted_subnet_says_who_holds_it() {
        let leases = leases();
        for _ in 0..4 {
            allocate(&leases, |_| Ok(false)).unwrap();
        }
        let error = allocate(&leases, |_| Ok(true)).unwrap_err().to_string();
        assert!(
            error.starts_with("no free address in 10.9.0.0/29: 4 are held by pods and 1 by namespaces"),
            "{error}"
        );
    }

    #[test]
    fn a_namespace_in_destruction_is_waited_for() {
        let leases = leases();
        let mut polls = 0;
        let lease = allocate(&leases, |_| {
            polls += 1;
            Ok(polls < 20)
        });
        assert!(lease.is_ok());
    }

    #[test]
    fn adopted_leases_are_not_handed_out() {
        let leases = leases();
        let lease = Lease { v4: [10, 9, 0, 3].into(), v6: None };
        lock(&leases).adopt(&lease).unwrap();
        assert_eq!(lock(&leases).adopt(&lease), Err(AdoptError::Leased { address: lease.v4 }));
        let outside = Lease { v4: [10, 9, 0, 7].into(), v6: None };
        assert!(matches!(lock(&leases).adopt(&outside), Err(AdoptError::Outside { .. })));
        let others: Vec<_> =
            (0..4).map(|_| allocate(&leases, |_| Ok(false)).unwrap().v4.octets()[3]).collect();
        assert_eq!(others, [4, 5, 6, 2]);
    }

    #[test]
    fn pods_of_an_earlier_subnet_keep_its_gateways() {
        let leases = leases();
        let old = allocate(&leases, |_| Ok(false)).unwrap();
        lock(&leases).renumber(subnets("10.10.0.0/24", "fd00:9::/64"));
        let new = allocate(&leases, |_| Ok(false)).unwrap();
        let mut leases = lock(&leases);
        let gateways = |leases: &Leases, lease| -> Vec<String> {
            leases.gateways_of(lease).iter().map(ToString::to_string).collect()
        };
        assert_eq!(gateways(&leases, &new), ["10.10.0.1/24", "fd00:9::1/64"]);
        assert_eq!(gateways(&leases, &old), ["10.9.0.1/29", "fd00:9::1/64"]);
        leases.settle();
        assert!(leases.forget_unused().is_empty());
        leases.release(&old);
        let unused: Vec<_> = leases.forget_unused().iter().map(ToString::to_string).collect();
        assert_eq!(unused, ["10.9.0.1/29"]);
        assert_eq!(leases.gateways().len(), 2);
    }

    #[test]
    fn names_follow_from_the_address() {
        let lease = Lease { v4: [10, 88, 1, 2].into(), v6: None };
        assert_eq!(lease.host_veth(), "veth0a580102");
        assert_eq!(lease.mac().to_string(), "0a:58:0a:58:01:02");
    }
}
