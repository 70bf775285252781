//! Host ends that come, go and change while the machine runs.

use super::{Chardevs, End, HostEnd};
use crate::cli::config::{CharId, CharSpec};
use crate::monitor::Fault;

impl Chardevs {
    /// Opens one more host end; the name of the pseudo-terminal, if it is one.
    pub fn add(&self, id: CharId, spec: &CharSpec) -> Result<Option<String>, Fault> {
        let mut end = self.open_one(spec).map_err(|error| refused(spec, &error))?;
        if let Some(quit) = self.quit.get() {
            let begun = end.way.begin(end.host.sink(quit), end.host.changed());
            begun.map_err(|error| refused(spec, &error))?;
        }
        let pty = end.way.pty.clone();
        self.put(id, end);
        Ok(pty)
    }

    /// Closes a host end that nobody uses.
    pub fn remove(&self, id: CharId) {
        let end = self.all_mut().get_mut(id.0).and_then(Option::take);
        end.iter().for_each(|end| end.way.end(&end.spec));
    }

    /// Whether who uses a host end can do with another.
    pub fn can_change(&self, id: CharId) -> Result<(), Fault> {
        match self.all().get(id.0) {
            Some(Some(End { host: HostEnd::Mux(_), .. })) => Err("Mux device hotswap not supported yet".into()),
            Some(Some(End { used: true, host: HostEnd::Plain(plain), .. })) if !plain.swaps() => {
                Err("Chardev user does not support chardev hotswap".into())
            }
            _ => Ok(()),
        }
    }

    /// Opens another host end in the place of one; who uses that one uses the new one from now on.
    pub fn change(&self, id: CharId, spec: &CharSpec) -> Result<Option<String>, Fault> {
        let new = self.open_one(spec).map_err(|error| Fault::new(format!("{error:#}")))?;
        let pty = new.way.pty.clone();
        let (old, plain, outlet, waker) = {
            let mut all = self.all_mut();
            let Some(Some(end)) = all.get_mut(id.0) else {
                return Err(Fault::new(format!("Chardev '{}' does not exist", spec.label)));
            };
            let mut new = new;
            let mut plain = None;
            // Who uses it holds on to this.
            if let (true, HostEnd::Plain(held)) = (end.used, &end.host) {
                (new.host, new.used) = (HostEnd::Plain(held.clone()), true);
                plain = Some(held.clone());
            }
            let (outlet, waker) = (new.way.outlet.clone(), new.way.waker.clone());
            (std::mem::replace(end, new), plain, outlet, waker)
        };
        plain.iter().for_each(|plain| plain.lead(outlet.clone(), waker.clone()));
        old.way.end(&old.spec);
        if let (Some(Some(end)), Some(quit)) = (self.all_mut().get_mut(id.0), self.quit.get()) {
            let begun = end.way.begin(end.host.sink(quit), end.host.changed());
            begun.map_err(|error| Fault::new(format!("{error:#}")))?;
        }
        Ok(pty)
    }

    /// A device is gone: nobody uses those any more that `used` does not know of.
    pub fn release_unused(&self, used: impl Fn(CharId) -> bool) {
        for (i, end) in self.all_mut().iter_mut().enumerate() {
            let Some(end) = end.as_mut().filter(|end| end.used && !used(CharId(i))) else { continue };
            end.used = false;
            if let HostEnd::Plain(plain) = &end.host {
                plain.disconnect();
            }
        }
    }

    /// Sends a break to who has the input.
    pub fn send_break(&self, id: CharId) {
        // Not locked while the device takes it.
        let send: Box<dyn FnOnce()> = match self.all().get(id.0) {
            Some(Some(End { host: HostEnd::Plain(plain), .. })) => {
                let plain = plain.clone();
                Box::new(move || plain.send_break())
            }
            Some(Some(End { host: HostEnd::Mux(mux), .. })) => {
                let mux = mux.clone();
                Box::new(move || mux.send_break())
            }
            _ => return,
        };
        send();
    }
}

fn refused(spec: &CharSpec, error: &anyhow::Error) -> Fault {
    Fault::new(format!("Failed to add chardev '{}': {error:#}", spec.label))
}
