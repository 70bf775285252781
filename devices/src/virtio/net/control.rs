//! The control queue (5.1.6.5): which frames the driver wants, its address, and how many pairs of queues it uses.

use super::feature;
use crate::services::{Reception, Wanted};
use serde::{Deserialize, Serialize};

type Mac = [u8; 6];

/// Addresses of each kind that are compared one by one; a driver with more gets all of that kind.
const ADDRESSES: usize = 64;
/// Words of the VLAN table.
const VLANS: usize = 128;

/// Classes.
const RX: u8 = 0;
const MAC: u8 = 1;
const VLAN: u8 = 2;
const MQ: u8 = 4;
/// Commands of class MAC.
const TABLE_SET: u8 = 0;
const ADDR_SET: u8 = 1;

/// What the driver wants to receive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    mac: Mac,
    /// Receive modes by command: everything, all groups, all stations, no groups, no stations, no broadcasts.
    modes: [bool; 6],
    stations: Vec<Mac>,
    groups: Vec<Mac>,
    /// A table was longer than is kept: everything of its kind is received.
    stations_overflow: bool,
    groups_overflow: bool,
    vlans: Vec<u32>,
}

/// Receive modes (commands of class RX).
mod mode {
    pub const PROMISCUOUS: usize = 0;
    pub const ALL_GROUPS: usize = 1;
    pub const ALL_STATIONS: usize = 2;
    pub const NO_GROUPS: usize = 3;
    pub const NO_STATIONS: usize = 4;
    pub const NO_BROADCASTS: usize = 5;
}

/// A list of addresses: its length, then as many.
fn list(data: &[u8]) -> Option<(Vec<Mac>, bool, &[u8])> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let (bytes, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let macs = bytes.as_chunks::<6>().0;
    Some((macs.iter().take(ADDRESSES).copied().collect(), count > ADDRESSES, rest))
}

impl Filter {
    /// After reset: everything is received until the driver says otherwise.
    pub fn new(mac: Mac) -> Self {
        let mut modes = [false; 6];
        modes[mode::PROMISCUOUS] = true;
        Self {
            mac,
            modes,
            stations: Vec::new(),
            groups: Vec::new(),
            stations_overflow: false,
            groups_overflow: false,
            vlans: vec![0; VLANS],
        }
    }

    /// The station's address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Bytes of the address as legacy drivers write them.
    pub fn set_mac_bytes(&mut self, offset: usize, bytes: &[u8]) {
        self.mac.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Whether a state of it has the right lengths.
    pub fn is_sound(&self) -> bool {
        self.vlans.len() == VLANS && self.stations.len() <= ADDRESSES && self.groups.len() <= ADDRESSES
    }

    /// What the driver wants, for people.
    pub fn reception(&self, features: u64) -> Reception {
        let filtered = features & feature::CTRL_RX != 0;
        let kind = |none: usize, all: usize| match (self.modes[none], self.modes[all]) {
            (true, _) => Wanted::None,
            (false, true) => Wanted::All,
            (false, false) => Wanted::Listed,
        };
        let vlan = |id: &u16| self.vlans.get(usize::from(id >> 5)).is_some_and(|word| word >> (id & 31) & 1 != 0);
        Reception {
            mac: self.mac,
            promiscuous: !filtered || self.modes[mode::PROMISCUOUS],
            stations: kind(mode::NO_STATIONS, mode::ALL_STATIONS),
            groups: kind(mode::NO_GROUPS, mode::ALL_GROUPS),
            vlans: if features & feature::CTRL_VLAN != 0 { Wanted::Listed } else { Wanted::All },
            broadcasts: !self.modes[mode::NO_BROADCASTS],
            station_table: self.stations.clone(),
            group_table: self.groups.clone(),
            vlan_table: (0..4096).filter(vlan).collect(),
            stations_overflow: self.stations_overflow,
            groups_overflow: self.groups_overflow,
        }
    }

    /// Whether the driver wants `frame`.
    pub fn accepts(&self, features: u64, frame: &[u8]) -> bool {
        let Some(to) = frame.first_chunk::<6>() else { return false };
        if features & feature::CTRL_VLAN != 0
            && frame.get(12..14) == Some(&[0x81, 0])
            && let Some(tag) = crate::offload::be16(frame, 14)
        {
            let id = tag & 0xfff;
            if self.vlans.get(usize::from(id >> 5)).is_none_or(|word| word >> (id & 31) & 1 == 0) {
                return false;
            }
        }
        if features & feature::CTRL_RX == 0 || self.modes[mode::PROMISCUOUS] {
            return true;
        }
        match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => !self.modes[mode::NO_BROADCASTS],
            [first, ..] if first & 1 != 0 => {
                let all = self.modes[mode::ALL_GROUPS] || self.groups_overflow;
                !self.modes[mode::NO_GROUPS] && (all || self.groups.contains(to))
            }
            _ => {
                let all = self.modes[mode::ALL_STATIONS] || self.stations_overflow;
                !self.modes[mode::NO_STATIONS] && (all || *to == self.mac || self.stations.contains(to))
            }
        }
    }

    /// Does a command about receiving or queues; `pairs` is how many pairs of queues are used, at most `most`. `false`: it is refused.
    pub fn command(&mut self, features: u64, bytes: &[u8], pairs: &mut usize, most: usize) -> bool {
        let Some(([class, command], data)) = bytes.split_first_chunk::<2>() else { return false };
        self.carry_out(features, (*class, *command), data, pairs, most).is_some()
    }

    fn carry_out(
        &mut self,
        features: u64,
        command: (u8, u8),
        data: &[u8],
        pairs: &mut usize,
        most: usize,
    ) -> Option<()> {
        let has = |bit: u64| (features & bit != 0).then_some(());
        let word = || data.first_chunk::<2>().map(|b| u16::from_le_bytes(*b));
        match command {
            (RX, which) => {
                has(if which < 2 { feature::CTRL_RX } else { feature::CTRL_RX_EXTRA })?;
                *self.modes.get_mut(usize::from(which))? = *data.first()? != 0;
            }
            (MAC, TABLE_SET) => {
                has(feature::CTRL_RX)?;
                let (stations, stations_overflow, rest) = list(data)?;
                let (groups, groups_overflow, _) = list(rest)?;
                (self.stations, self.stations_overflow) = (stations, stations_overflow);
                (self.groups, self.groups_overflow) = (groups, groups_overflow);
            }
            (MAC, ADDR_SET) => {
                has(feature::CTRL_MAC_ADDR)?;
                self.mac = *data.first_chunk()?;
            }
            (VLAN, add @ (0 | 1)) => {
                has(feature::CTRL_VLAN)?;
                let id = word().filter(|id| *id < 4096)?;
                let table = self.vlans.get_mut(usize::from(id >> 5))?;
                match add {
                    0 => *table |= 1 << (id & 31),
                    _ => *table &= !(1 << (id & 31)),
                }
            }
            (MQ, 0) => {
                has(feature::MQ)?;
                *pairs = usize::from(word()?).max(1).min(most + 1);
                if *pairs > most {
                    *pairs = most;
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }
}
