//! What the card shows, as a picture: text with its font, sixteen and 256 colours, and pixels in a row.

use super::dispi::Dispi;
use super::memory::{Memory, SIZE};
use super::registers::Registers;

/// Largest picture of the VGA modes.
const MOST: usize = 2048;
/// A text cursor's bit in the font's rows: it blinks, and is shown.
const CURSOR_OFF: u8 = 0x20;

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue of each pixel, row by row from the top left corner.
    pub rgb: Vec<u8>,
}

impl Picture {
    fn new(width: usize, height: usize, mut row: impl FnMut(usize, &mut Vec<u8>)) -> Self {
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            row(y, &mut rgb);
            rgb.resize((y + 1) * width * 3, 0);
        }
        Self { width, height, rgb }
    }
}

/// What is shown now; none while the screen is off.
pub fn of(registers: &Registers, dispi: &Dispi, memory: &Memory) -> Option<Picture> {
    if dispi.enabled() && dispi.mode().2 > 4 {
        return in_a_row(registers, dispi, memory);
    }
    // Sequencer, clocking mode: the screen is off.
    if registers.sequencer(1) & 0x20 != 0 {
        return None;
    }
    let crt = Crt::of(registers)?;
    match registers.graphics(6) & 1 {
        0 => text(registers, &crt, memory),
        _ => Some(graphics(registers, &crt, memory)),
    }
}

/// What the CRT controller says of the picture.
struct Crt {
    /// Characters of eight pixels in a row, and rows of pixels.
    columns: usize,
    rows: usize,
    /// Rows that show the same.
    repeat: usize,
    /// Rows shown twice, whatever `repeat` says.
    doubled: bool,
    start: usize,
    pitch: usize,
}

impl Crt {
    fn of(registers: &Registers) -> Option<Self> {
        let crt = |index| usize::from(registers.crt(index));
        let (overflow, rows) = (crt(7), crt(0x12) + 1);
        let rows = rows + ((overflow & 2) << 7 | (overflow & 0x40) << 3);
        let this = Self {
            columns: crt(1) + 1,
            rows,
            repeat: (crt(9) & 0x1f) + 1,
            doubled: crt(9) & 0x80 != 0,
            start: crt(0x0c) << 8 | crt(0x0d),
            pitch: 2 * crt(0x13),
        };
        // As long as nobody has set a mode there is nothing to see.
        (this.rows > 1 && this.rows <= MOST && this.columns > 1).then_some(this)
    }
}

/// Red, green and blue of a colour of the palette, whose parts have six bits.
fn colour(registers: &Registers, index: u8) -> [u8; 3] {
    registers.colour(index).map(|part| part << 2 | part >> 4)
}

/// The palette's colour for one of sixteen.
fn of_sixteen(registers: &Registers, index: u8) -> [u8; 3] {
    let (low, select) = (registers.attribute(usize::from(index & 15)) & 0x3f, registers.attribute(0x14));
    let index = match registers.attribute(0x10) & 0x80 {
        0 => (select & 0x0c) << 4 | low,
        _ => (select & 0x0f) << 4 | low & 0x0f,
    };
    colour(registers, index)
}

fn text(registers: &Registers, crt: &Crt, memory: &Memory) -> Option<Picture> {
    let (wide, columns) = (if registers.sequencer(1) & 1 != 0 { 8 } else { 9 }, crt.columns);
    let colours: Vec<[u8; 3]> = (0..16).map(|index| of_sixteen(registers, index)).collect();
    let colour = |index: u8| colours.get(usize::from(index)).copied().unwrap_or_default();
    let mode = registers.attribute(0x10);
    let cursor = Cursor::of(registers);
    // Sequencer, character map select: two of eight fonts of 8 KiB each.
    let select = registers.sequencer(3);
    let font = |high: u8, low: u8| usize::from(select >> high & 1) << 13 | usize::from(select >> low & 3) << 14;
    let fonts = [font(5, 2), font(4, 0)];
    let rows = crt.rows / crt.repeat;
    (rows > 0).then(|| {
        let mut cells = vec![0; columns * 4];
        Picture::new(columns * wide, rows * crt.repeat, |y, rgb| {
            let (row, line) = (y / crt.repeat, y % crt.repeat);
            let first = crt.start + row * crt.pitch;
            if line == 0 {
                memory.bytes.read((first * 4 % SIZE) as u64, &mut cells);
            }
            for (column, cell) in cells.chunks(4).enumerate() {
                let [code, attribute, ..] = *cell else { continue };
                // With two fonts the attribute's bit 3 chooses.
                let font = fonts[usize::from(attribute & 8 == 0)];
                let mut byte = [0];
                memory.bytes.read(((font + usize::from(code) * 32 + line) * 4 + 2) as u64, &mut byte);
                let mut bits = u16::from(byte[0]) << 1;
                // Lines and boxes reach into the ninth column.
                bits |= u16::from(mode & 4 != 0 && (0xc0..0xe0).contains(&code)) & bits >> 1;
                if cursor.as_ref().is_some_and(|c| c.at == first + column && (c.first..=c.last).contains(&line)) {
                    bits = 0x1ff;
                }
                // The highest bit blinks, or is one of the background's colour.
                let back = attribute >> 4 & if mode & 8 != 0 { 7 } else { 15 };
                let (fore, back) = (colour(attribute & 15), colour(back));
                (0..wide).for_each(|x| rgb.extend(if bits >> (8 - x) & 1 != 0 { fore } else { back }));
            }
        })
    })
}

struct Cursor {
    at: usize,
    first: usize,
    last: usize,
}

impl Cursor {
    fn of(registers: &Registers) -> Option<Self> {
        let crt = |index| usize::from(registers.crt(index));
        let shown = registers.crt(0x0a) & CURSOR_OFF == 0;
        let (first, last) = (crt(0x0a) & 0x1f, crt(0x0b) & 0x1f);
        (shown && first <= last).then_some(Self { at: crt(0x0e) << 8 | crt(0x0f), first, last })
    }
}

/// Modes with sixteen or 256 colours.
fn graphics(registers: &Registers, crt: &Crt, memory: &Memory) -> Picture {
    let (width, wide) = (crt.columns * 8, registers.graphics(5) & 0x40 != 0);
    let repeat = crt.repeat * if crt.doubled { 2 } else { 1 };
    // Half as many pixels, each twice as wide: 256 colours take two clocks, and the clock may be halved.
    let half = usize::from(wide || registers.sequencer(1) & 8 != 0);
    let palette: Vec<[u8; 3]> = match wide {
        true => (0..=255).map(|index| colour(registers, index)).collect(),
        false => (0..16).map(|index| of_sixteen(registers, index)).collect(),
    };
    let enabled = registers.attribute(0x12) & 15;
    let bytes = if wide { width >> half } else { (width >> half).div_ceil(8) * 4 };
    let mut line = vec![0; bytes];
    let row = |y: usize, rgb: &mut Vec<u8>| {
        let first = (crt.start + y / repeat * crt.pitch) * 4;
        memory.bytes.read((first % SIZE) as u64, &mut line);
        for x in 0..width {
            let x = x >> half;
            let index = match wide {
                true => line.get(x).copied().unwrap_or(0),
                false => {
                    let planes = line.get(x / 8 * 4..).unwrap_or_default().iter().take(4).enumerate();
                    planes.fold(0, |index, (plane, byte)| index | (byte >> (7 - x % 8) & 1) << plane) & enabled
                }
            };
            rgb.extend(palette.get(usize::from(index)).copied().unwrap_or_default());
        }
    };
    Picture::new(width, crt.rows, row)
}

/// Modes of the display interface.
fn in_a_row(registers: &Registers, dispi: &Dispi, memory: &Memory) -> Option<Picture> {
    let (width, height, depth) = dispi.mode();
    let (width, bytes) = (usize::from(width), usize::from(depth).div_ceil(8));
    let (pitch, first) = dispi.place();
    // What is beyond its memory is not shown.
    let height = usize::from(height).min(SIZE.saturating_sub(first) / pitch.max(1));
    if width == 0 || height == 0 {
        return None;
    }
    let mut line = vec![0; width * bytes];
    Some(Picture::new(width, height, |y, rgb| {
        memory.bytes.read((first + y * pitch) as u64, &mut line);
        for pixel in line.chunks(bytes) {
            let value = pixel.iter().rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
            // Parts with so many bits, stretched to eight.
            let part = |at: u32, bits: u32| {
                let part = value >> at & ((1 << bits) - 1);
                (part << (8 - bits) | part >> (2 * bits - 8)) as u8
            };
            rgb.extend(match depth {
                8 => colour(registers, value as u8),
                15 => [part(10, 5), part(5, 5), part(0, 5)],
                16 => [part(11, 5), part(5, 6), part(0, 5)],
                _ => [part(16, 8), part(8, 8), part(0, 8)],
            });
        }
    }))
}
