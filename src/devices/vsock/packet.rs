//! The header of a packet (section 5.10.6).

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 44;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`: the one type that we offer.
pub(super) const STREAM: u16 = 1;

/// Operations.
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a shutdown: the sender will receive no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// The sender will send no more.
pub(super) const NO_SEND: u32 = 2;
/// Both.
pub(super) const NO_MORE: u32 = NO_RECEIVE | NO_SEND;

/// A header, with the names of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

fn next<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let Some((first, rest)) = bytes.split_first_chunk() else { return [0; N] };
    *bytes = rest;
    *first
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        let rest = &mut rest;
        Self {
            src_cid: u64::from_le_bytes(next(rest)),
            dst_cid: u64::from_le_bytes(next(rest)),
            src_port: u32::from_le_bytes(next(rest)),
            dst_port: u32::from_le_bytes(next(rest)),
            len: u32::from_le_bytes(next(rest)),
            kind: u16::from_le_bytes(next(rest)),
            op: u16::from_le_bytes(next(rest)),
            flags: u32::from_le_bytes(next(rest)),
            buf_alloc: u32::from_le_bytes(next(rest)),
            fwd_cnt: u32::from_le_bytes(next(rest)),
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// The packet that tells the sender of this one that there is no such connection.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_laid_out_as_specified() {
        let mut bytes = [0; HEADER_LEN];
        bytes.iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!((header.kind, header.op), (0x1e1d, 0x201f));
        assert_eq!(header.fwd_cnt, 0x2c2b_2a29);
        assert_eq!(header.bytes(), bytes);
        let reset = header.reset();
        assert_eq!((reset.src_cid, reset.dst_port, reset.op), (header.dst_cid, header.src_port, op::RST));
    }
}
