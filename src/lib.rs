//! What the programs `brolga` and `brolga-img` share: words of the command line and disk images.
#![deny(unsafe_code)]

pub mod block;
pub mod descriptors;
pub mod img;
pub mod words;
