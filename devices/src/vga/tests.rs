//! The card as firmware and systems use it.

use super::*;
use crate::fakes::{FakeDeviceMemory, FakeTime, Random, fuzz, moves_to};

const LINEAR: u64 = 0xe000_0000;
const MMIO: u64 = 0xe100_0000;
const TEXT: u64 = 0xb_8000;

struct Bench {
    bus: Arc<Bus>,
    card: Arc<Vga>,
    memory: Arc<FakeDeviceMemory>,
}

impl Bench {
    fn new() -> Self {
        let bus = Arc::new(Bus::new());
        let memory = FakeDeviceMemory::new(SIZE);
        let card = Vga::new(&bus, None, memory.clone()).unwrap();
        card.config_write(0x10, 4, LINEAR as u32);
        card.config_write(0x18, 4, MMIO as u32);
        card.config_write(4, 2, 3);
        Self { bus, card, memory }
    }

    fn indexed(&self, port: u16, index: u8, value: u8) {
        self.bus.pio_write(port, 2, u32::from(value) << 8 | u32::from(index));
    }

    /// Mode 3, as firmware sets it: 80 by 25.
    fn text() -> Self {
        let b = Self::new();
        b.bus.pio_write(0x3c2, 1, 0x67);
        for (index, value) in [(1, 0), (2, 3), (4, 2)] {
            b.indexed(0x3c4, index, value);
        }
        for (index, value) in [(1, 0x4f), (7, 0x1f), (9, 0x4f), (0x12, 0x8f), (0x13, 0x28), (0x17, 0xa3)] {
            b.indexed(0x3d4, index, value);
        }
        for (index, value) in [(5, 0x10), (6, 0x0e), (8, 0xff)] {
            b.indexed(0x3ce, index, value);
        }
        b
    }

    /// All planes, each by its bits.
    fn planes() -> Self {
        let b = Self::new();
        for (index, value) in [(2, 0x0f), (4, 6)] {
            b.indexed(0x3c4, index, value);
        }
        for (index, value) in [(5, 0), (6, 5), (8, 0xff), (7, 0x0f)] {
            b.indexed(0x3ce, index, value);
        }
        b
    }

    fn plane(&self, plane: u8, at: u64) -> u8 {
        self.indexed(0x3ce, 4, plane);
        self.bus.mmio_read(0xa_0000 + at, 1) as u8
    }
}

#[test]
fn the_text_screen_can_be_read() {
    let b = Bench::text();
    for (i, byte) in (0..).zip("Hello, VGA \u{fe}".bytes().take(10)) {
        b.bus.mmio_write(TEXT + 2 * (80 + 3) + 2 * i, 2, 0x0700 | u64::from(byte));
    }
    b.bus.mmio_write(TEXT, 1, 0xc9);
    let lines = b.card.text().unwrap();
    assert_eq!((lines.len(), lines[0].as_str(), lines[1].as_str()), (25, "╔", "   Hello, VGA"));
    assert_eq!(b.bus.mmio_read(TEXT + 2 * 83, 4), 0x0765_0748);
    // Scrolled by a line.
    b.indexed(0x3d4, 0x0d, 80);
    assert_eq!(b.card.text().unwrap()[0], "   Hello, VGA");
    assert_eq!(b.bus.mmio_read(0xa_0000, 1), 0xff, "the window is elsewhere");
    b.indexed(0x3ce, 6, 5);
    assert!(b.card.text().is_none());
}

#[test]
fn registers_are_where_the_display_kind_says() {
    let b = Bench::new();
    assert_eq!(b.bus.pio_read(0x3d4, 1), 0xff, "monochrome after power-on");
    b.bus.pio_write(0x3b4, 1, 0x0e);
    assert_eq!(b.bus.pio_read(0x3b4, 1), 0x0e);
    b.bus.pio_write(0x3c2, 1, 1);
    assert_eq!((b.bus.pio_read(0x3b4, 1), b.bus.pio_read(0x3d4, 1), b.bus.pio_read(0x3cc, 1)), (0xff, 0x0e, 1));
    // Attributes: index and data by turns, begun anew by the status.
    b.bus.pio_read(0x3da, 1);
    for value in [3, 0x2a, 0x20] {
        b.bus.pio_write(0x3c0, 1, value);
    }
    b.bus.pio_read(0x3da, 1);
    b.bus.pio_write(0x3c0, 1, 3);
    assert_eq!(b.bus.pio_read(0x3c1, 1), 0x2a);
    assert_ne!(b.bus.pio_read(0x3da, 1), b.bus.pio_read(0x3da, 1), "the beam moves");
    // The palette, three bytes a colour.
    b.bus.pio_write(0x3c8, 1, 200);
    (0..6).for_each(|i| b.bus.pio_write(0x3c9, 1, 10 + i));
    b.bus.pio_write(0x3c7, 1, 201);
    assert_eq!([(); 3].map(|()| b.bus.pio_read(0x3c9, 1)), [13, 14, 15]);
    // Protected registers of the CRT controller.
    b.indexed(0x3d4, 0x11, 0x80);
    b.indexed(0x3d4, 1, 99);
    b.indexed(0x3d4, 7, 0xff);
    b.bus.pio_write(0x3d4, 1, 1);
    assert_eq!(b.bus.pio_read(0x3d5, 1), 0);
    b.bus.pio_write(0x3d4, 1, 7);
    assert_eq!(b.bus.pio_read(0x3d5, 1), 0x10);
}

#[test]
fn planes_are_written_in_all_modes() {
    let b = Bench::planes();
    b.bus.mmio_write(0xa_0000, 1, 0x5a);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 0)), [0x5a; 4]);
    // Set/reset for two planes, and a mask of bits with the latch.
    b.indexed(0x3ce, 0, 1);
    b.indexed(0x3ce, 1, 3);
    b.bus.mmio_write(0xa_0001, 1, 0x0f);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 1)), [0xff, 0, 0x0f, 0x0f]);
    b.indexed(0x3ce, 1, 0);
    b.indexed(0x3ce, 8, 0xf0);
    b.bus.mmio_read(0xa_0001, 1);
    b.bus.mmio_write(0xa_0001, 1, 0);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 1)), [0x0f, 0, 0x0f, 0x0f]);
    b.indexed(0x3ce, 8, 0xff);
    // Write mode 1 copies the latch, 2 spreads bits, 3 masks set/reset.
    b.bus.mmio_read(0xa_0000, 1);
    b.indexed(0x3ce, 5, 1);
    b.bus.mmio_write(0xa_0002, 1, 0);
    b.indexed(0x3ce, 5, 2);
    b.bus.mmio_write(0xa_0003, 1, 0b0101);
    b.indexed(0x3ce, 5, 3);
    b.indexed(0x3ce, 0, 2);
    b.bus.mmio_read(0xa_0100, 1);
    b.bus.mmio_write(0xa_0004, 1, 0x3c);
    b.indexed(0x3ce, 5, 0);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 2)), [0x5a; 4]);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 3)), [0xff, 0, 0xff, 0]);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 4)), [0, 0x3c, 0, 0]);
    // Read mode 1 compares colours.
    b.indexed(0x3ce, 5, 8);
    b.indexed(0x3ce, 2, 0b0101);
    assert_eq!(b.bus.mmio_read(0xa_0003, 1), 0xff);
    b.indexed(0x3ce, 2, 0b0111);
    assert_eq!(b.bus.mmio_read(0xa_0003, 1), 0);
    // Planes not in the mask keep what they have.
    b.indexed(0x3ce, 5, 0);
    b.indexed(0x3c4, 2, 4);
    b.bus.mmio_write(0xa_0000, 1, 0x11);
    assert_eq!([0, 1, 2, 3].map(|p| b.plane(p, 0)), [0x5a, 0x5a, 0x11, 0x5a]);
}

#[test]
fn modes_with_all_pixels_in_a_row() {
    let b = Bench::text();
    let set = |index: u16, value: u32| {
        b.bus.pio_write(0x1ce, 2, index.into());
        b.bus.pio_write(0x1cf, 2, value);
    };
    let get = |index: u64| b.bus.mmio_read(MMIO + 0x500 + 2 * index, 2);
    assert_eq!((get(0), get(10)), (0xb0c5, 256));
    b.bus.mmio_write(LINEAR + 5000, 8, u64::MAX);
    set(1, 640);
    set(2, 480);
    set(3, 32);
    set(4, 0x41);
    b.bus.pio_write(0x1ce, 2, 1);
    assert_eq!((b.bus.pio_read(0x1cf, 2), get(1), get(2), get(6), get(7)), (640, 640, 480, 640, 6553));
    assert_eq!(b.bus.mmio_read(LINEAR + 5000, 8), 0, "memory was cleared");
    assert!(b.card.text().is_none());
    set(5, 3);
    b.bus.mmio_write(0xa_0010, 4, 0x1234_5678);
    assert_eq!(b.bus.mmio_read(LINEAR + 0x3_0010, 4), 0x1234_5678, "the window shows a piece of it");
    set(1, 641);
    assert_eq!(get(1), 640);
    b.bus.mmio_write(MMIO + 0x508, 2, 3);
    assert_eq!((get(1), get(3)), (16000, 32));
    b.bus.mmio_write(MMIO + 0x508, 2, 0);
    b.bus.mmio_write(MMIO + 0x402, 1, 0x67);
    assert_eq!(b.bus.pio_read(0x3cc, 1), 0x67);
}

#[test]
fn state_moves_and_goes() {
    let b = Bench::text();
    b.bus.mmio_write(TEXT, 2, 0x0741);
    b.bus.mmio_write(LINEAR + (SIZE as u64 - 8), 8, 77);
    let other = Bench::new();
    moves_to(&*b.card, &*other.card);
    // Memory goes with the machine's.
    assert_eq!(other.card.text().unwrap()[0], "");
    other.bus.mmio_write(TEXT, 2, 0x0741);
    assert_eq!(other.card.text().unwrap()[0], "A");
    b.card.reset();
    let fresh = Vga::new(&Arc::new(Bus::new()), None, FakeDeviceMemory::new(SIZE)).unwrap();
    assert_eq!(b.card.save(), fresh.save());
    // The frame buffer was where its register said, in both, until the reset.
    assert_eq!(*locked(&b.memory.places).last().unwrap(), None);
    assert_eq!(*locked(&other.memory.places).last().unwrap(), Some(LINEAR));
    let mut bad = other.card.save();
    bad["registers"]["palette"] = serde_json::json!([1]);
    other.card.restore(&bad).unwrap_err();
}

#[test]
fn random_accesses() {
    let b = Bench::text();
    let way = |way| Access(Arc::downgrade(&b.card), way);
    let (ports, dispi, window, mmio) = (way(Way::Ports), way(Way::Dispi), way(Way::Window), way(Way::Mmio));
    let blocks: [(&dyn RegisterBlock, u64); 4] =
        [(&ports, PORTS.into()), (&dispi, 3), (&window, WINDOW_LEN), (&mmio, MMIO_SIZE)];
    let mut random = Random::new(71);
    for round in 0..200_000 {
        if round % 500 == 0 {
            b.card.picture();
        }
        let (block, len) = blocks[random.below(4) as usize];
        let (offset, size) = (random.below(len), 1);
        if random.below(2) == 0 {
            block.write(offset, size, random.next());
        } else {
            block.read(offset, size);
        }
        if random.below(5000) == 0 {
            b.card.text();
        }
    }
    fuzz(&*b.card, &blocks, &FakeTime::new(), 73);
}

impl Bench {
    fn attribute(&self, index: u8, value: u8) {
        self.bus.pio_read(0x3da, 1);
        self.bus.pio_write(0x3c0, 1, index.into());
        self.bus.pio_write(0x3c0, 1, value.into());
    }

    fn colour(&self, index: u8, rgb: [u8; 3]) {
        self.bus.pio_write(0x3c8, 1, index.into());
        rgb.into_iter().for_each(|part| self.bus.pio_write(0x3c9, 1, part.into()));
    }

    /// The picture's size, and a function that gives its pixels.
    fn picture(&self) -> (usize, usize, impl Fn(usize, usize) -> [u8; 3]) {
        let Picture { width, height, rgb } = self.card.picture().unwrap();
        assert_eq!(rgb.len(), width * height * 3);
        (width, height, move |x, y| std::array::from_fn(|n| rgb[(y * width + x) * 3 + n]))
    }
}

#[test]
fn the_picture_of_text_has_its_font_colours_and_cursor() {
    let b = Bench::text();
    assert!(Bench::new().card.picture().is_none(), "no mode was set");
    b.colour(7, [42, 42, 42]);
    b.colour(0x3c, [63, 21, 21]);
    b.attribute(7, 7);
    b.attribute(4, 0x3c);
    b.attribute(0x10, 4);
    // Plane 2, by itself: a letter of one dot, and a line that reaches to the right edge.
    for (index, value) in [(2, 4), (4, 6)] {
        b.indexed(0x3c4, index, value);
    }
    b.indexed(0x3ce, 5, 0);
    b.indexed(0x3ce, 6, 4);
    b.bus.mmio_write(0xa_0000 + 0x41 * 32 + 3, 1, 0x80);
    b.bus.mmio_write(0xa_0000 + 0xc4 * 32 + 8, 1, 0xff);
    for (index, value) in [(2, 3), (4, 2)] {
        b.indexed(0x3c4, index, value);
    }
    b.indexed(0x3ce, 5, 0x10);
    b.indexed(0x3ce, 6, 0x0e);
    b.bus.mmio_write(TEXT, 4, 0x47c4_0741);
    // The cursor: two rows of the third character.
    for (index, value) in [(0x0a, 14), (0x0b, 15), (0x0f, 2)] {
        b.indexed(0x3d4, index, value);
    }
    b.bus.mmio_write(TEXT + 4, 2, 0x0720);
    let (width, height, at) = b.picture();
    assert_eq!((width, height), (720, 400));
    let (grey, red) = ([170, 170, 170], [255, 85, 85]);
    assert_eq!([at(0, 3), at(1, 3), at(0, 2)], [grey, [0; 3], [0; 3]]);
    assert_eq!([at(9, 8), at(17, 8), at(9, 7), at(18, 8)], [grey, grey, red, [0; 3]], "nine dots, on red");
    assert_eq!([at(18, 13), at(18, 14), at(26, 15), at(27, 15)], [[0; 3], grey, grey, [0; 3]]);
    b.indexed(0x3c4, 1, 1);
    assert_eq!(b.picture().0, 640);
    b.indexed(0x3c4, 1, 0x21);
    assert!(b.card.picture().is_none(), "the screen is off");
}

#[test]
fn the_picture_of_graphics_has_its_colours() {
    let b = Bench::text();
    b.colour(5, [63, 0, 63]);
    b.attribute(9, 5);
    b.attribute(0x12, 0x0f);
    // 640 by 480 in sixteen colours: the first two pixels have colour 9.
    for (index, value) in [(2, 9), (4, 6)] {
        b.indexed(0x3c4, index, value);
    }
    for (index, value) in [(5, 0), (6, 5)] {
        b.indexed(0x3ce, index, value);
    }
    for (index, value) in [(9, 0x40), (0x12, 0xdf), (7, 0x3e)] {
        b.indexed(0x3d4, index, value);
    }
    b.bus.mmio_write(0xa_0000 + 80, 1, 0xc0);
    let (width, height, at) = b.picture();
    assert_eq!((width, height), (640, 480));
    assert_eq!([at(0, 1), at(1, 1), at(2, 1), at(0, 0)], [[255, 0, 255], [255, 0, 255], [0; 3], [0; 3]]);
    // 256 colours, each pixel twice as wide and as high.
    for (index, value) in [(2, 15), (4, 0x0e)] {
        b.indexed(0x3c4, index, value);
    }
    b.indexed(0x3ce, 5, 0x40);
    b.indexed(0x3d4, 9, 0x41);
    b.bus.mmio_write(LINEAR + 640, 1, 5);
    let (_, _, at) = b.picture();
    assert_eq!([at(0, 4), at(1, 5), at(2, 4), at(0, 3)], [[255, 0, 255], [255, 0, 255], [0; 3], [0; 3]]);
}

#[test]
fn the_picture_of_pixels_in_a_row() {
    let b = Bench::new();
    let set = |index, value| {
        b.bus.pio_write(0x1ce, 2, index);
        b.bus.pio_write(0x1cf, 2, value);
    };
    for (depth, pixel, want) in [
        (32, 0x12_3456_u32, [0x12, 0x34, 0x56]),
        (24, 0xff_0080, [0xff, 0, 0x80]),
        (16, 0xf81f, [255, 0, 255]),
        (15, 0x7c00, [255, 0, 0]),
        (8, 3, [255, 255, 0]),
    ] {
        set(4, 0);
        [(1, 64), (2, 32), (3, depth), (4, 0x41)].into_iter().for_each(|(index, value)| set(index, value));
        b.colour(3, [63, 63, 0]);
        let bytes = u64::from(depth.div_ceil(8));
        b.bus.mmio_write(LINEAR + (64 * 2 + 5) * bytes, bytes.next_power_of_two() as u8, pixel.into());
        let (width, height, at) = b.picture();
        assert_eq!((width, height, at(5, 2), at(4, 2)), (64, 32, want, [0; 3]), "{depth} bits");
    }
    // Larger than memory: what there is.
    set(4, 0);
    [(1, 16000), (2, 12000), (3, 32), (4, 0xc1)].into_iter().for_each(|(index, value)| set(index, value));
    assert_eq!(b.picture().1, SIZE / (16000 * 4));
    set(9, 60000);
    assert!(b.card.picture().is_none());
}
