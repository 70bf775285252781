//! What the monitor needs from the machine to work on images that are in use.

use super::fault::Fault;
use crate::cli::config::SocketAddress;
use brolga::block::Preallocation;
use brolga::block::qcow2::CreateOptions;

/// A change of images that takes effect with others at one moment, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageChange {
    /// A new image over a disk's present one.
    Overlay {
        /// The drive or image.
        device: String,
        /// The new image's file.
        file: String,
        /// It is there already.
        existing: bool,
        /// Its name among images.
        node: Option<String>,
    },
    /// A node that is open already goes over a disk's present image.
    Over {
        /// The drive or image.
        device: String,
        /// The node.
        overlay: String,
    },
    /// A snapshot in the image itself.
    Internal {
        /// The drive or image.
        device: String,
        /// The snapshot's name.
        name: String,
    },
    /// A copy of what a disk is at that moment.
    Backup(BlockJob),
    /// Nothing of it is to happen.
    Abort,
}

/// What a block job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockTask {
    /// Copies what the disk is now.
    Backup,
    /// Copies the disk and follows it.
    Mirror,
    /// Takes over what the image has from below.
    Stream,
    /// Writes what the image has to the one below, which takes its place.
    Commit,
}

impl BlockTask {
    /// As QMP names it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Mirror => "mirror",
            Self::Stream => "stream",
            Self::Commit => "commit",
        }
    }
}

/// A block job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// What it does.
    pub task: BlockTask,
    /// Its name; the drive's if none.
    pub id: Option<String>,
    /// The drive or image.
    pub device: String,
    /// The file to copy to, or the node.
    pub target: String,
    /// It is a node that is open already.
    pub to_node: bool,
    /// Its format.
    pub format: String,
    /// It is there already.
    pub existing: bool,
    /// Only what the image itself holds is copied, not what is below it.
    pub top: bool,
    /// The image of the chain that stays below, or that is written to: by its file. The deepest one, or none, if none.
    pub base: Option<String>,
    /// The image of the chain whose content is written to the base: by its file. The disk's own if none.
    pub from: Option<String>,
    /// `base` and `from` are names of nodes.
    pub by_nodes: bool,
    /// How the image above the base is to name it, if not by its path.
    pub backing: Option<String>,
    /// The copy's name among images.
    pub node: Option<String>,
    /// Bytes a second; 0: no limit.
    pub speed: u64,
    /// It does not wait for `job-finalize`.
    pub auto_finalize: bool,
    /// It is forgotten when it is over.
    pub auto_dismiss: bool,
}

/// An image to be made.
#[derive(Clone, Debug)]
pub enum NewImage {
    /// A file of the host's.
    File {
        /// Where.
        path: String,
        /// Bytes.
        size: u64,
        /// What is reserved.
        preallocation: Preallocation,
    },
    /// A qcow2 image in a node that is open.
    Qcow2 {
        /// The node.
        node: String,
        /// What it is like.
        options: Box<CreateOptions>,
    },
}

/// A disk that is offered to others by NBD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What users call it.
    pub id: String,
    /// The drive or node.
    pub device: String,
    /// What clients ask for.
    pub name: String,
    /// What people are told of it.
    pub description: Option<String>,
    /// Clients may write.
    pub writable: bool,
}

/// The machine as those see it who work on its images. One that says nothing else has none.
pub trait BlockWork: Send + Sync {
    /// Makes changes at one moment, or none of them.
    fn change_images(&self, _changes: &[ImageChange]) -> Result<(), Fault> {
        Err(Fault::new("this machine has no drives"))
    }

    /// Deletes a snapshot in a drive's image, by its id, its name, or both; what it was.
    fn delete_internal(
        &self,
        _device: &str,
        _id: Option<&str>,
        _name: Option<&str>,
    ) -> Result<serde_json::Value, Fault> {
        Err(Fault::new("this machine has no drives"))
    }

    /// Starts the job `id` that makes an image.
    fn create_image(&self, _id: &str, _image: NewImage) -> Result<(), Fault> {
        Err(Fault::new("this machine has no drives"))
    }

    /// Writes what the image of a drive, or of every drive (`all`), holds into the one below it.
    fn commit(&self, device: &str) -> Result<(), Fault> {
        Err(Fault::new(format!("Device '{device}' not found")))
    }

    /// Starts to listen for NBD clients.
    fn start_nbd(&self, _address: &SocketAddress) -> Result<(), Fault> {
        Err(Fault::new("this machine has no drives"))
    }

    /// Ends that, and all offers.
    fn stop_nbd(&self) -> Result<(), Fault> {
        Err(Fault::new("NBD server not running"))
    }

    /// Offers a disk.
    fn offer(&self, _offer: Offer) -> Result<(), Fault> {
        Err(Fault::new("NBD server not running"))
    }

    /// Ends an offer by its id, with clients that use it only if `hard`.
    fn withdraw(&self, id: &str, _hard: bool) -> Result<(), Fault> {
        Err(Fault::new(format!("Export '{id}' is not found")))
    }

    /// All offers; `device` is the node's name.
    fn offers(&self) -> Vec<Offer> {
        Vec::new()
    }

    /// Starts a block job.
    fn start_block_job(&self, _job: BlockJob) -> Result<(), Fault> {
        Err(Fault::new("this machine has no drives"))
    }
}
