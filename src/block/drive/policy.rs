//! What a drive does of itself: on discards, on zeroes, and on errors.

use crate::block::{BlockError, Result};

/// `discard=`: what becomes of space the guest needs no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiscardMode {
    /// It stays taken.
    #[default]
    Ignore,
    /// It is given back to the host.
    Unmap,
}

impl DiscardMode {
    /// The mode with the name that `discard=` takes.
    pub fn from_name(name: &str) -> Result<DiscardMode> {
        match name {
            "ignore" | "off" => Ok(DiscardMode::Ignore),
            "unmap" | "on" => Ok(DiscardMode::Unmap),
            _ => Err(BlockError::Invalid { what: format!("discard={name}: there are ignore (off) and unmap (on)") }),
        }
    }
}

/// `detect-zeroes=`: what becomes of writes that are all zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DetectZeroes {
    /// They are written.
    #[default]
    Off,
    /// The image notes that there are zeroes.
    On,
    /// As `On`, and space is given back; needs `discard=unmap`.
    Unmap,
}

impl DetectZeroes {
    /// The name that `detect-zeroes=` takes.
    pub fn name(self) -> &'static str {
        match self {
            DetectZeroes::Off => "off",
            DetectZeroes::On => "on",
            DetectZeroes::Unmap => "unmap",
        }
    }

    /// The mode with the name that `detect-zeroes=` takes.
    pub fn from_name(name: &str) -> Result<DetectZeroes> {
        match name {
            "off" => Ok(DetectZeroes::Off),
            "on" => Ok(DetectZeroes::On),
            "unmap" => Ok(DetectZeroes::Unmap),
            _ => Err(BlockError::Invalid { what: format!("detect-zeroes={name}: there are off, on and unmap") }),
        }
    }
}

/// `werror=` and `rerror=`: what becomes of a request that the host failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorAction {
    /// The guest is told.
    Report,
    /// The guest is told that all went well.
    Ignore,
    /// The machine stops, and the request is made again when it goes on.
    Stop,
    /// `Stop` if the host has no space left, else `Report`; for writes only.
    Enospc,
}

/// What a device does with a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Tell the guest of the error.
    Report,
    /// Complete the request as if nothing had happened.
    Ignore,
    /// Keep the request, stop the machine, and submit it anew when the machine goes on.
    Stop,
}

impl ErrorAction {
    /// The action with the name that `werror=` takes.
    pub fn for_writes(name: &str) -> Result<ErrorAction> {
        match name {
            "report" => Ok(ErrorAction::Report),
            "ignore" => Ok(ErrorAction::Ignore),
            "stop" => Ok(ErrorAction::Stop),
            "enospc" => Ok(ErrorAction::Enospc),
            _ => Err(BlockError::Invalid { what: format!("werror={name}: there are report, ignore, stop and enospc") }),
        }
    }

    /// The action with the name that `rerror=` takes.
    pub fn for_reads(name: &str) -> Result<ErrorAction> {
        match name {
            "report" | "ignore" | "stop" => ErrorAction::for_writes(name),
            _ => Err(BlockError::Invalid { what: format!("rerror={name}: there are report, ignore and stop") }),
        }
    }

    /// What becomes of a request that failed so. Errors that are the guest's own, as a request
    /// beyond the end, are always reported: trying again would not help.
    pub fn verdict(self, error: &BlockError) -> Verdict {
        match self {
            _ if matches!(error, BlockError::OutOfRange { .. } | BlockError::ReadOnly { .. }) => Verdict::Report,
            ErrorAction::Report => Verdict::Report,
            ErrorAction::Ignore => Verdict::Ignore,
            ErrorAction::Stop => Verdict::Stop,
            ErrorAction::Enospc if error.is_no_space() => Verdict::Stop,
            ErrorAction::Enospc => Verdict::Report,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn names_are_known_and_others_told() {
        assert_eq!(DiscardMode::from_name("on").unwrap(), DiscardMode::Unmap);
        assert_eq!(DetectZeroes::from_name("unmap").unwrap(), DetectZeroes::Unmap);
        assert_eq!(ErrorAction::for_writes("enospc").unwrap(), ErrorAction::Enospc);
        assert!(ErrorAction::for_reads("enospc").unwrap_err().to_string().contains("there are report"));
        assert!(DiscardMode::from_name("yes").is_err() && DetectZeroes::from_name("yes").is_err());
    }

    #[test]
    fn errors_get_the_verdict_that_was_asked_for() {
        let io = |errno| BlockError::Io {
            name: "disk".into(),
            action: "cannot write".into(),
            source: io::Error::from_raw_os_error(errno),
        };
        let verdicts = |action: ErrorAction| {
            let beyond = BlockError::OutOfRange { offset: 0, len: 1, size: 0 };
            [io(libc::ENOSPC), io(libc::EDQUOT), io(libc::EIO), beyond].map(|e| action.verdict(&e))
        };
        use Verdict::{Ignore, Report, Stop};
        assert_eq!(verdicts(ErrorAction::Enospc), [Stop, Stop, Report, Report]);
        assert_eq!(verdicts(ErrorAction::Stop), [Stop, Stop, Stop, Report]);
        assert_eq!(verdicts(ErrorAction::Ignore), [Ignore, Ignore, Ignore, Report]);
        assert_eq!(verdicts(ErrorAction::Report), [Report; 4]);
    }
}
