//! A SCSI CD drive as the user reaches it, at whatever host adapter.

use super::Unit;
use crate::services::{Disk, MediumDrive};
use std::sync::Arc;

/// A host adapter with logical units at places of type `P`.
pub(crate) trait Units<P>: Send + Sync {
    /// Lets `f` look at or change the unit at `place`, if there is one.
    fn reach(&self, place: P, f: &mut dyn FnMut(&mut Unit));
}

/// The drive at a place of an adapter.
pub(crate) struct Drive<H, P> {
    pub host: Arc<H>,
    pub place: P,
}

impl<H: Units<P>, P: Copy + Send + Sync> Drive<H, P> {
    fn with<R>(&self, f: impl FnOnce(&mut Unit) -> R) -> Option<R> {
        let (mut f, mut result) = (Some(f), None);
        self.host.reach(self.place, &mut |unit| result = f.take().map(|f| f(unit)));
        result
    }
}

impl<H: Units<P>, P: Copy + Send + Sync> MediumDrive for Drive<H, P> {
    fn change(&self, medium: Option<Arc<dyn Disk>>) {
        self.with(|unit| unit.change_medium(medium));
    }

    fn locked(&self) -> bool {
        self.with(|unit| unit.drive().is_some_and(|drive| drive.locked())) == Some(true)
    }

    fn tray_open(&self) -> bool {
        self.with(|unit| unit.drive().is_some_and(|drive| drive.tray_open())) == Some(true)
    }

    fn ask(&self) {
        self.with(|unit| unit.drive().map(|drive| drive.eject_requested()));
    }

    fn set_tray(&self, open: bool) -> bool {
        self.with(|unit| unit.drive().map(|drive| drive.move_tray(open)));
        true
    }
}
