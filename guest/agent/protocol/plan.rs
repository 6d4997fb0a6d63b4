//! What the agent shall do before it serves requests. The host writes it to [`PATH`] in the initramfs that it makes.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::wire::{Malformed, Wire};

/// Where the agent finds it.
pub const PATH: &str = "/belljar/plan";
/// First number of its bytes.
const FORMAT: u32 = 0x6e6c_7001;

/// What the agent shall do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Kernel modules to load: files of the initramfs, in this order.
    pub modules: Vec<String>,
    /// How to reach the host.
    pub channel: Channel,
    /// What becomes the guest's root.
    pub root: Root,
    /// Directories of the host, mounted in the root.
    pub mounts: Vec<Mount>,
    /// Name of the guest.
    pub hostname: String,
    /// Network interfaces to configure. The loopback interface always is.
    pub network: Vec<Network>,
    /// The root's own init, with arguments: it becomes process 1, and the agent one of its children.
    pub init: Option<Vec<String>>,
}

/// How to reach the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// Connect to this port of the host, CID 2.
    Vsock {
        /// The port.
        port: u32,
    },
    /// `/dev/virtio-ports/NAME`.
    Port {
        /// The name.
        name: String,
    },
    /// A serial port, such as `/dev/ttyS1`.
    Uart {
        /// Path of its device.
        device: String,
    },
}

/// What may be done to a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    ReadOnly,
    /// Everything.
    ReadWrite,
    /// Everything, but changes stay in the guest's memory.
    Overlay,
}

/// What becomes the guest's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The initramfs itself.
    Initramfs,
    /// A virtio-fs share.
    Fs {
        /// Its tag.
        tag: String,
        /// How to mount it.
        access: Access,
    },
    /// A disk.
    Disk {
        /// Its device, e.g. `/dev/vda`.
        device: String,
        /// Its file system; none: the first that fits.
        fstype: Option<String>,
        /// How to mount it.
        access: Access,
    },
}

/// A virtio-fs share in the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its tag.
    pub tag: String,
    /// Where: an absolute path, made if it is missing and can be made.
    pub path: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address<A> {
    /// The guest's.
    pub address: A,
    /// Bits of the network's part.
    pub prefix: u8,
    /// Where everything else is sent.
    pub gateway: Option<A>,
}

/// An interface to configure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its hardware address, by which it is found.
    pub mac: [u8; 6],
    /// IPv4.
    pub ipv4: Option<Address<Ipv4Addr>>,
    /// IPv6.
    pub ipv6: Option<Address<Ipv6Addr>>,
    /// Name servers, for resolv.conf; none: that is left as it is.
    pub dns: Vec<String>,
}

impl Plan {
    /// A plan that does nothing but open the channel.
    pub fn new(channel: Channel, root: Root) -> Self {
        Self {
            modules: Vec::new(),
            channel,
            root,
            mounts: Vec::new(),
            hostname: "belljar".into(),
            network: Vec::new(),
            init: None,
        }
    }

    /// As bytes, for the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Vec::new();
        FORMAT.put(&mut to);
        self.modules.put(&mut to);
        self.channel.put(&mut to);
        self.root.put(&mut to);
        self.mounts.put(&mut to);
        self.hostname.put(&mut to);
        self.network.put(&mut to);
        self.init.put(&mut to);
        to
    }

    /// Reads the file.
    pub fn from_bytes(mut from: &[u8]) -> Result<Self, Malformed> {
        let from = &mut from;
        if u32::get(from)? != FORMAT {
            return Err(Malformed);
        }
        let plan = Self {
            modules: Vec::get(from)?,
            channel: Channel::get(from)?,
            root: Root::get(from)?,
            mounts: Vec::get(from)?,
            hostname: String::get(from)?,
            network: Vec::get(from)?,
            init: Option::get(from)?,
        };
        if from.is_empty() { Ok(plan) } else { Err(Malformed) }
    }
}

impl Wire for Channel {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Vsock { port } => {
                0u8.put(to);
                port.put(to);
            }
            Self::Port { name } => {
                1u8.put(to);
                name.put(to);
            }
            Self::Uart { device } => {
                2u8.put(to);
                device.put(to);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(Self::Vsock { port: u32::get(from)? }),
            1 => Ok(Self::Port { name: String::get(from)? }),
            2 => Ok(Self::Uart { device: String::get(from)? }),
            _ => Err(Malformed),
        }
    }
}

impl Wire for Access {
    fn put(&self, to: &mut Vec<u8>) {
        (match self {
            Self::ReadOnly => 0u8,
            Self::ReadWrite => 1,
            Self::Overlay => 2,
        })
        .put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(Self::ReadOnly),
            1 => Ok(Self::ReadWrite),
            2 => Ok(Self::Overlay),
            _ => Err(Malformed),
        }
    }
}

impl Wire for Root {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Initramfs => 0u8.put(to),
            Self::Fs { tag, access } => {
                1u8.put(to);
                tag.put(to);
                access.put(to);
            }
            Self::Disk { device, fstype, access } => {
                2u8.put(to);
                device.put(to);
                fstype.put(to);
                access.put(to);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(Self::Initramfs),
            1 => Ok(Self::Fs { tag: String::get(from)?, access: Access::get(from)? }),
            2 => Ok(Self::Disk { device: String::get(from)?, fstype: Option::get(from)?, access: Access::get(from)? }),
            _ => Err(Malformed),
        }
    }
}

impl Wire for Mount {
    fn put(&self, to: &mut Vec<u8>) {
        self.tag.put(to);
        self.path.put(to);
        self.read_only.put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self { tag: String::get(from)?, path: String::get(from)?, read_only: bool::get(from)? })
    }
}

impl Wire for Ipv4Addr {
    fn put(&self, to: &mut Vec<u8>) {
        self.octets().put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        <[u8; 4]>::get(from).map(Self::from)
    }
}

impl Wire for Ipv6Addr {
    fn put(&self, to: &mut Vec<u8>) {
        self.octets().put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        <[u8; 16]>::get(from).map(Self::from)
    }
}

impl<A: Wire> Wire for Address<A> {
    fn put(&self, to: &mut Vec<u8>) {
        self.address.put(to);
        self.prefix.put(to);
        self.gateway.put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self { address: A::get(from)?, prefix: u8::get(from)?, gateway: Option::get(from)? })
    }
}

impl Wire for Network {
    fn put(&self, to: &mut Vec<u8>) {
        self.mac.put(to);
        self.ipv4.put(to);
        self.ipv6.put(to);
        self.dns.put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self {
            mac: <[u8; 6]>::get(from)?,
            ipv4: Option::get(from)?,
            ipv6: Option::get(from)?,
            dns: Vec::get(from)?,
        })
    }
}
