//! An IP address of either family in one shape: 16 bytes, IPv4 as v4-mapped.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`, as four words in network byte order, as the kernel has them.
///
/// Words rather than bytes, since that is how BPF contexts are read; there is one value for each address, so it can be
/// (part of) a map's key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(not(target_arch = "bpf"), derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Addr(pub [u32; 4]);

/// The third word of a v4-mapped address, in memory order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From an IPv4 address in network byte order, as in `sin_addr`.
    #[inline(always)]
    pub const fn from_v4_be(v4: u32) -> Self {
        Self([0, 0, MAPPED, v4])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The IPv4 address in network byte order. Only meaningful if [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.0[3]
    }

    /// The IPv4 address as a number. Only meaningful if [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn v4(&self) -> u32 {
        u32::from_be(self.0[3])
    }

    /// `::`, `0.0.0.0` or `::ffff:0.0.0.0`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[3] == 0
            && self.0[0] == 0
            && self.0[1] == 0
            && (self.0[2] == 0 || self.0[2] == MAPPED)
    }

    /// `127.0.0.0/8`, also v4-mapped, or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.v4() >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let mut words = [0; 4];
        let mut i = 0;
        while i < 4 {
            words[i] = u32::from_ne_bytes([
                octets[4 * i],
                octets[4 * i + 1],
                octets[4 * i + 2],
                octets[4 * i + 3],
            ]);
            i += 1;
        }
        Self(words)
    }

    pub const fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        let mut i = 0;
        while i < 16 {
            octets[i] = self.0[i / 4].to_ne_bytes()[i % 4];
            i += 1;
        }
        octets
    }

    /// Canonical: a v4-mapped address is given as IPv4.
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            Ipv4Addr::from_bits(self.v4()).into()
        } else {
            Ipv6Addr::from_octets(self.octets()).into()
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_be(ip.to_bits().to_be())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self::from_octets(ip.octets())
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}
