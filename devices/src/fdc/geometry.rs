//! Formats of diskettes, by the size of their image.

/// A diskette's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Tracks of a side.
    pub cylinders: u8,
    /// Sides.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
    /// Data rate as controllers number them: 500, 300, 250 kb/s and 1 Mb/s.
    pub rate: u8,
    /// The drive for it.
    pub drive: DriveType,
}

/// Kinds of drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveType {
    /// 5.25 inches, 1.2 MB.
    Large1200,
    /// 3.5 inches, 1.44 MB.
    Small1440,
    /// 3.5 inches, 2.88 MB.
    Small2880,
}

impl DriveType {
    /// What CMOS says for it.
    pub fn cmos(self) -> u8 {
        match self {
            DriveType::Large1200 => 2,
            DriveType::Small1440 => 4,
            DriveType::Small2880 => 5,
        }
    }
}

const fn format(cylinders: u8, heads: u8, sectors: u8, rate: u8, drive: DriveType) -> Geometry {
    Geometry { cylinders, heads, sectors, rate, drive }
}

use DriveType::{Large1200, Small1440, Small2880};

/// The usual format first among those of a size.
const FORMATS: &[Geometry] = &[
    format(80, 2, 18, 0, Small1440),
    format(80, 2, 36, 3, Small2880),
    format(80, 2, 9, 2, Small1440),
    format(80, 2, 15, 0, Large1200),
    format(40, 2, 9, 1, Large1200),
    format(40, 2, 8, 1, Large1200),
    format(40, 1, 9, 1, Large1200),
    format(40, 1, 8, 1, Large1200),
    format(80, 2, 8, 2, Small1440),
    format(80, 2, 10, 2, Small1440),
    format(80, 2, 20, 0, Small1440),
    format(80, 2, 21, 0, Small1440),
    format(82, 2, 21, 0, Small1440),
    format(83, 2, 21, 0, Small1440),
    format(80, 2, 22, 0, Small1440),
    format(80, 2, 23, 0, Small1440),
    format(80, 2, 24, 0, Small1440),
    format(80, 2, 39, 3, Small2880),
    format(80, 2, 40, 3, Small2880),
    format(80, 2, 44, 3, Small2880),
    format(80, 2, 48, 3, Small2880),
];

impl Geometry {
    /// Sectors of 512 bytes in all.
    pub fn total(&self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The format of an image of `sectors` sectors; one of no usual size is taken for the beginning of a 1.44 MB
    /// diskette, or of a 2.88 MB one.
    pub fn of(sectors: u64) -> Self {
        let found = FORMATS.iter().find(|format| format.total() == sectors);
        *found.unwrap_or(if sectors <= FORMATS[0].total() { &FORMATS[0] } else { &FORMATS[1] })
    }

    /// The sector's number from the start of the diskette; its own number counts from 1.
    pub fn sector(&self, cylinder: u8, head: u8, sector: u8) -> Option<u64> {
        let there = cylinder < self.cylinders && head < self.heads && (1..=self.sectors).contains(&sector);
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        there.then(|| track * u64::from(self.sectors) + u64::from(sector) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_tell_formats() {
        let shape = |kib: u64| {
            let g = Geometry::of(kib * 2);
            (g.cylinders, g.heads, g.sectors, g.rate, g.drive.cmos())
        };
        assert_eq!(shape(1440), (80, 2, 18, 0, 4));
        assert_eq!(shape(2880), (80, 2, 36, 3, 5));
        assert_eq!(shape(720), (80, 2, 9, 2, 4));
        assert_eq!(shape(1200), (80, 2, 15, 0, 2));
        assert_eq!(shape(360), (40, 2, 9, 1, 2));
        assert_eq!((shape(5), shape(2000)), (shape(1440), shape(2880)));
        let g = Geometry::of(2880);
        assert_eq!((g.sector(0, 0, 1), g.sector(79, 1, 18), g.sector(1, 0, 1)), (Some(0), Some(2879), Some(36)));
        assert_eq!(
            (g.sector(80, 0, 1), g.sector(0, 2, 1), g.sector(0, 0, 0), g.sector(0, 0, 19)),
            (None, None, None, None)
        );
    }
}
