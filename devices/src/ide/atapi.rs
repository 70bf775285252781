//! How a CD drive takes packet commands over an IDE channel (ATA/ATAPI-7 volume 2, 11.8 and 11.9).

use super::drive::{CHUNK, Drive, Outcome, Task};
use super::{error, identify, reason, status};
use crate::scsi::optical::{BLOCK, Facts};
use crate::scsi::{Answer, Carrier, Identity, Sense};
use crate::services::{DiskBuffer, DiskRequest};
use crate::unimp;

/// Bytes of a packet.
const PACKET: usize = 12;

impl Drive {
    /// A write to the command register of a CD drive.
    pub fn atapi_command(&mut self, command: u8) -> Outcome {
        self.forget();
        self.state.regs.error = 0;
        match command {
            0xa0 => {
                let dma = self.state.regs.feature & 1 != 0;
                self.state.task = Task::Packet { dma };
                (self.state.buffer, self.state.end) = (vec![0; PACKET], PACKET);
                self.state.regs.count = reason::COD;
                self.state.regs.status = status::IDLE | status::DRQ;
                Outcome::NONE
            }
            0xa1 => {
                let words = identify::packet(self);
                self.offer(words)
            }
            0x08 => {
                self.sign();
                Outcome::NONE
            }
            0xef if self.state.regs.feature == 0x03 => {
                self.state.mode = self.state.regs.count;
                self.done()
            }
            0xef => match self.state.regs.feature {
                0x05 | 0x85 | 0x55 | 0xaa | 0x66 | 0xcc => self.done(),
                _ => self.fail(error::ABRT),
            },
            0xe0..=0xe3 | 0xe6 | 0x94..=0x97 | 0x99 => self.done(),
            0x98 | 0xe5 => {
                self.state.regs.count = 0xff;
                self.done()
            }
            // What is for disks only leaves the signature, so that the host sees what this is.
            0x20 | 0xec => {
                self.sign();
                self.fail(error::ABRT)
            }
            _ => {
                if command != 0 {
                    unimp!("ATA command {command:#04x} to a CD drive");
                }
                self.fail(error::ABRT)
            }
        }
    }

    /// Blocks of the medium.
    fn blocks(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.len() / BLOCK)
    }

    /// The packet is complete.
    pub fn packet(&mut self, dma: bool) -> Outcome {
        let limit = u16::from(self.state.regs.high) << 8 | u16::from(self.state.regs.mid);
        let packet = std::mem::take(&mut self.state.buffer);
        let (blocks, identity) = (self.blocks(), self.identity());
        match self.state.optical.command(&packet, &Facts { blocks, identity: &identity }) {
            Answer::Done => self.packet_done(),
            Answer::Check(sense) => self.packet_failed(sense),
            // The blocks exist, and the host's file is readable as long as reads find it so.
            Answer::Verify { .. } => self.packet_done(),
            Answer::Data(bytes) if dma => {
                (self.state.task, self.state.buffer) = (Task::PacketDmaData, bytes);
                self.wait_for_master()
            }
            Answer::Data(bytes) => {
                (self.state.task, self.state.buffer, self.state.at) = (Task::PacketData { limit }, bytes, 0);
                self.packet_block(limit)
            }
            Answer::Read { first, count } if dma => {
                self.state.task = Task::PacketDma { next: first, count };
                self.wait_for_master()
            }
            Answer::Read { first, count } => {
                self.state.task = Task::PacketRead { next: first, left: count, limit };
                let request = self.packet_request(first, count);
                self.submit(request)
            }
            // Nothing goes to a CD drive over a channel.
            _ => self.packet_failed(Sense::BAD_COMMAND),
        }
    }

    /// What the drive answers to INQUIRY.
    fn identity(&self) -> Identity {
        Identity {
            cd: true,
            carrier: Carrier::Atapi,
            vendor: "BROLGA".to_owned(),
            product: self.model.clone(),
            revision: self.version.clone(),
            serial: self.serial.clone(),
            id: String::new(),
            wwn: None,
        }
    }

    /// Data goes to memory as soon as the bus master starts.
    fn wait_for_master(&mut self) -> Outcome {
        self.state.regs.count = reason::IO;
        self.state.regs.status = status::IDLE | status::DRQ;
        Outcome::DMA
    }

    /// The next read of `left` blocks from `next` on, as much as goes through the buffer at once.
    pub fn packet_request(&self, next: u64, left: u64) -> DiskRequest {
        let len = left.min(CHUNK / BLOCK) * BLOCK;
        DiskRequest::Read { offset: next * BLOCK, buffer: DiskBuffer::Own(vec![0; len as usize]) }
    }

    /// Offers the next block of what is in the buffer: at most `limit` bytes, which is even unless the block is the last.
    pub fn packet_block(&mut self, limit: u16) -> Outcome {
        // No limit is a mistake of the host's; the largest there is serves it.
        let limit = if limit == 0 || limit == u16::MAX { 0xfffe } else { limit };
        let s = &mut self.state;
        let rest = s.buffer.len().saturating_sub(s.at);
        let even = usize::from(limit) & !1;
        let len = if rest > limit.into() { even.max(2).min(rest) } else { rest };
        s.end = s.at + len;
        s.regs.mid = len as u8;
        s.regs.high = (len >> 8) as u8;
        s.regs.count = reason::IO;
        s.regs.status = status::IDLE | status::DRQ;
        Outcome::INTERRUPT
    }

    /// The command ends well.
    pub fn packet_done(&mut self) -> Outcome {
        let outcome = self.done();
        self.packet_reason();
        outcome
    }

    /// The command ends with a sense for the host to ask for.
    pub fn packet_failed(&mut self, sense: Sense) -> Outcome {
        self.state.optical.failed(sense);
        let outcome = self.fail(sense.key << 4 | error::ABRT);
        self.packet_reason();
        outcome
    }
}
