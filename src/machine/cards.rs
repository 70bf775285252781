//! Network cards as the user sees them: their cables, and what their guests want to receive.

use super::Machine;
use super::nics::Plugged;
use crate::cli::config::network::{NetdevKind, NicSpec};
use crate::net::Netdev;
use brolga_devices::services::{NetFrontend, Reception};
use serde_json::json;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

/// A card in its place.
pub struct Card {
    /// Its number.
    pub index: usize,
    spec: NicSpec,
    card: Weak<dyn NetFrontend>,
    /// Its guest wants other frames than when it was last asked for, which was told.
    told: AtomicBool,
}

impl Card {
    fn name(&self) -> String {
        self.spec.id.clone().unwrap_or_else(|| format!("nic{}", self.index))
    }
}

/// All cards of a machine.
#[derive(Default)]
pub struct Cards(RwLock<Vec<Arc<Card>>>);

impl Cards {
    /// Those that are there.
    pub fn all(&self) -> Vec<Arc<Card>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds those that were plugged in, whose descriptions `spec` finds; the new ones.
    pub fn add(&self, plugged: &Plugged, spec: impl Fn(usize) -> Option<NicSpec>) -> Vec<Arc<Card>> {
        let card = |(index, card): &(usize, Weak<dyn NetFrontend>)| {
            let told = AtomicBool::new(true);
            Some(Arc::new(Card { index: *index, spec: spec(*index)?, card: card.clone(), told }))
        };
        let new: Vec<_> = plugged.cards.iter().filter_map(card).collect();
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(new.iter().cloned());
        new
    }

    /// One is gone.
    pub fn remove(&self, index: usize) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|card| card.index != index);
    }
}

impl Machine {
    /// Has changes of what guests want to receive by `cards` told as events.
    pub(super) fn watch_cards(&self, cards: &[Arc<Card>]) {
        for card in cards {
            let Some(frontend) = card.card.upgrade() else { continue };
            let (machine, weak) = (self.this.get().cloned().unwrap_or_default(), Arc::downgrade(card));
            frontend.on_reception(Box::new(move |()| {
                let (Some(machine), Some(card)) = (machine.upgrade(), weak.upgrade()) else { return };
                if !card.told.swap(true, Ordering::SeqCst) {
                    let mut data = json!({ "path": format!("/machine/peripheral/{}", card.name()) });
                    if let Some(name) = &card.spec.id {
                        data["name"] = name.as_str().into();
                    }
                    machine.events.emit("NIC_RX_FILTER_CHANGED", data);
                }
            }));
        }
    }

    /// What the guest wants to receive by each card; changes are told of once from now on.
    pub(super) fn card_receptions(&self) -> Vec<(String, &'static str, Option<Reception>)> {
        let one = |card: &Arc<Card>| {
            card.told.store(false, Ordering::SeqCst);
            (card.name(), card.spec.model.name(), card.card.upgrade().and_then(|card| card.reception()))
        };
        self.cards.all().iter().map(one).collect()
    }

    /// Plugs the cable of a card in or pulls it out; the card, or its host end, by its id.
    pub(super) fn move_cable(&self, name: &str, up: bool) -> Result<(), String> {
        let netdevs = self.parts.netdevs.all();
        let of_netdev = |card: &Arc<Card>| {
            netdevs.iter().any(|(number, netdev)| card.spec.netdev == Some(*number) && netdev.id == name)
        };
        let card = self.cards.all().into_iter().find(|card| card.name() == name || of_netdev(card));
        let card = card.and_then(|card| card.card.upgrade());
        let card = card.ok_or_else(|| format!("there is no card or host end {name}; info network lists them"))?;
        // Frames move on the I/O thread.
        self.io.post(move || card.set_link(up));
        Ok(())
    }

    /// Cards with their host ends, and host ends without a card.
    pub(super) fn network(&self) -> String {
        let mut text = String::new();
        let (cards, netdevs) = (self.cards.all(), self.parts.netdevs.all());
        let show =
            |netdev: &Netdev| format!("{}: index=0,type={}{}", netdev.id, netdev.kind, summary(&netdev.spec.kind));
        for card in &cards {
            let [a, b, c, d, e, f] = card.spec.mac;
            let (name, model) = (card.name(), card.spec.model.name());
            let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
            let _ = writeln!(text, "{name}: index=0,type=nic,model={model},macaddr={mac}");
            if let Some((_, netdev)) = netdevs.iter().find(|(number, _)| card.spec.netdev == Some(*number)) {
                let _ = writeln!(text, " \\ {}", show(netdev));
            }
        }
        let alone = |number: usize| cards.iter().all(|card| card.spec.netdev != Some(number));
        for (_, netdev) in netdevs.iter().filter(|(number, _)| alone(*number)) {
            let _ = writeln!(text, "{}", show(netdev));
        }
        text
    }
}

/// What a host end is besides its kind.
fn summary(kind: &NetdevKind) -> String {
    match kind {
        NetdevKind::User(config) => {
            format!(",net={},restrict={}", config.net, if config.restrict { "on" } else { "off" })
        }
        _ => String::new(),
    }
}
