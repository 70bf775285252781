//! What telnet clients need (RFC 854, 856 to 858): a server that echoes, suppresses go-ahead and is 8-bit clean.

const IAC: u8 = 255;
const DO: u8 = 253;
const WILL: u8 = 251;
/// From here on commands take an option.
const OPTIONED: std::ops::RangeInclusive<u8> = WILL..=254;
const SB: u8 = 250;
const SE: u8 = 240;
const BREAK: u8 = 243;
const BINARY: u8 = 0;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;
/// Ctrl-C, for a client's break key.
const INTERRUPT: u8 = 3;

/// What the server says first.
pub const GREETING: [u8; 12] = [IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY];

/// Takes telnet's commands out of what a client sends.
#[derive(Default)]
pub struct Decoder {
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Data,
    Command,
    Option,
    /// Between SB and SE; after an IAC there.
    Sub(bool),
    /// A carriage return came; a NUL or line feed behind it is telnet's.
    Return,
}

impl Decoder {
    /// Adds the data in `bytes` to `data`.
    pub fn decode(&mut self, bytes: &[u8], data: &mut Vec<u8>) {
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (State::Data | State::Return, IAC) => State::Command,
                (State::Return, 0 | b'\n') => State::Data,
                (State::Data | State::Return, b) => {
                    data.push(b);
                    if b == b'\r' { State::Return } else { State::Data }
                }
                (State::Command, IAC) => {
                    data.push(IAC);
                    State::Data
                }
                (State::Command, BREAK) => {
                    data.push(INTERRUPT);
                    State::Data
                }
                (State::Command, SB) => State::Sub(false),
                (State::Command, b) if OPTIONED.contains(&b) => State::Option,
                (State::Command | State::Option, _) | (State::Sub(true), SE) => State::Data,
                (State::Sub(_), b) => State::Sub(b == IAC),
            };
        }
    }
}

/// Data on its way to a client.
pub fn encode(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|&b| std::iter::repeat_n(b, if b == IAC { 2 } else { 1 })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_go_and_data_stays_however_it_is_cut() {
        let sent = b"a\xff\xfb\x01b\xff\xff\xff\xfa\x18\xff\xff\x00\xff\xf0c\r\0d\r\ne\rf\xff\xf3";
        let expected = b"ab\xffc\rd\re\rf\x03";
        for cut in 0..sent.len() {
            let (mut decoder, mut data) = (Decoder::default(), Vec::new());
            decoder.decode(&sent[..cut], &mut data);
            decoder.decode(&sent[cut..], &mut data);
            assert_eq!(data, expected, "cut at {cut}");
        }
        assert_eq!(encode(b"x\xffy"), b"x\xff\xffy");
    }
}
