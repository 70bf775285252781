//! What a unit says it is: INQUIRY with its pages of vital product data (SPC-4 6.4 and 7.8; SBC-3 6.5).

use super::{Cdb, Sense};

/// What carries commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// An IDE channel.
    Atapi,
    /// A SCSI bus.
    Scsi,
}

/// Names of a unit, and what it is. Text is ASCII; what is too long is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A CD drive; otherwise a disk.
    pub cd: bool,
    /// What carries commands.
    pub carrier: Carrier,
    /// Who made it, 8 characters.
    pub vendor: String,
    /// Model, 16 characters.
    pub product: String,
    /// Firmware version, 4 characters.
    pub revision: String,
    /// Serial number, up to 36 characters.
    pub serial: String,
    /// A name by which the host knows it, up to 255 characters; empty if there is none.
    pub id: String,
    /// World-wide name.
    pub wwn: Option<u64>,
}

/// Blocks that one command may move, unmap or fill with one content, and stretches of one UNMAP.
pub const MAX_TRANSFER: u32 = 1 << 17;
/// See [`MAX_TRANSFER`].
pub const MAX_UNMAP: u32 = 1 << 22;
/// See [`MAX_TRANSFER`].
pub const MAX_UNMAP_ENTRIES: u32 = 255;
/// Blocks that host file systems give back together: 4 KiB.
const UNMAP_GRANULARITY: u32 = 8;

/// `text` in a field of `len` characters.
fn field(text: &str, len: usize) -> Vec<u8> {
    text.bytes().chain(std::iter::repeat(b' ')).take(len).collect()
}

impl Identity {
    /// Peripheral device type.
    pub fn kind(&self) -> u8 {
        if self.cd { 0x05 } else { 0x00 }
    }

    /// INQUIRY.
    pub(crate) fn inquiry(&self, p: Cdb) -> Result<Vec<u8>, Sense> {
        match (p.byte(1) & 1 != 0, p.byte(2)) {
            (false, 0) => Ok(self.standard()),
            (true, page) => self.page(page).ok_or(Sense::BAD_FIELD),
            (false, _) => Err(Sense::BAD_FIELD),
        }
    }

    fn standard(&self) -> Vec<u8> {
        let removable = if self.cd { 0x80 } else { 0 };
        let mut out = match self.carrier {
            // ATAPI says no version, and its own response format (INF-8020i 10.8.4).
            Carrier::Atapi => vec![self.kind(), removable, 0x00, 0x21, 31, 0, 0, 0],
            // SPC-3, hierarchical numbers of units, commands are queued.
            Carrier::Scsi => vec![self.kind(), removable, 0x05, 0x12, 31, 0, 0, 0x02],
        };
        out.extend(field(&self.vendor, 8));
        out.extend(field(&self.product, 16));
        out.extend(field(&self.revision, 4));
        out
    }

    fn pages(&self) -> Vec<u8> {
        let mut pages = vec![0x00, 0x80, 0x83];
        if !self.cd {
            pages.extend([0xb0, 0xb1, 0xb2]);
        }
        pages
    }

    fn page(&self, page: u8) -> Option<Vec<u8>> {
        let body = match page {
            _ if !self.pages().contains(&page) => return None,
            0x00 => self.pages(),
            0x80 => self.serial.bytes().take(36).collect(),
            0x83 => self.designators(),
            0xb0 => limits(),
            // Nothing turns.
            0xb1 => [vec![0, 1], vec![0; 58]].concat(),
            // UNMAP and WRITE SAME give space back, thin provisioning.
            _ => vec![0, 0xe0, 2, 0],
        };
        let mut out = vec![self.kind(), page];
        out.extend((body.len() as u16).to_be_bytes());
        out.extend(body);
        Some(out)
    }

    /// Names that tell the unit from all others (SPC-4 7.8.6).
    fn designators(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let id: Vec<u8> = self.id.bytes().take(255).collect();
        if !id.is_empty() {
            out.extend([2, 0, 0, id.len() as u8]);
            out.extend(id);
        }
        if let Some(wwn) = self.wwn {
            out.extend([1, 3, 0, 8]);
            out.extend(wwn.to_be_bytes());
        }
        out
    }
}

/// Block limits (SBC-3 6.5.3).
fn limits() -> Vec<u8> {
    let mut out = vec![0; 60];
    let mut put = |at: usize, value: u32| {
        out.iter_mut().skip(at - 4).zip(value.to_be_bytes()).for_each(|(to, from)| *to = from);
    };
    put(8, MAX_TRANSFER);
    put(20, MAX_UNMAP);
    put(24, MAX_UNMAP_ENTRIES);
    put(28, UNMAP_GRANULARITY);
    put(40, MAX_UNMAP);
    // WRITE SAME of no blocks at all is not taken for the whole disk.
    out[0] = 1;
    out
}
