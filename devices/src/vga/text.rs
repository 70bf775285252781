//! The text screen as people read it.

use super::memory::Memory;
use super::registers::Registers;

/// Characters 128 to 255 of code page 437.
const UPPER: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ";
/// Largest screen that is shown.
const MOST_COLUMNS: usize = 256;
const MOST_ROWS: usize = 128;

fn shown(code: u8) -> char {
    match code {
        0x20..=0x7e => code.into(),
        0x80.. => UPPER.chars().nth(usize::from(code - 0x80)).unwrap_or(' '),
        _ => ' ',
    }
}

/// The lines of the screen without spaces at their ends; none while it shows graphics.
pub fn lines(registers: &Registers, memory: &Memory) -> Option<Vec<String>> {
    // Graphics controller, miscellaneous: not alphanumeric. Sequencer, clocking mode: the screen is off.
    if registers.graphics(6) & 1 != 0 || registers.sequencer(1) & 0x20 != 0 {
        return None;
    }
    let overflow = usize::from(registers.crt(7));
    let end = usize::from(registers.crt(0x12)) | (overflow & 2) << 7 | (overflow & 0x40) << 3;
    let rows = (end + 1) / (usize::from(registers.crt(9) & 0x1f) + 1);
    let columns = usize::from(registers.crt(1)) + 1;
    let start = usize::from(registers.crt(0x0c)) << 8 | usize::from(registers.crt(0x0d));
    let pitch = 2 * usize::from(registers.crt(0x13));
    let line = |row: usize| -> String {
        let mut cells = vec![0; columns.min(MOST_COLUMNS) * 4];
        memory.bytes.read((start + row * pitch) as u64 * 4, &mut cells);
        let text: String = cells.chunks(4).filter_map(|cell| cell.first()).map(|code| shown(*code)).collect();
        text.trim_end().to_owned()
    };
    Some((0..rows.min(MOST_ROWS)).map(line).collect())
}
