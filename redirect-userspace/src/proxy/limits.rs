//! What peers may use of a pod's listener for tunnels at a time.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
};

/// What peers use now, on one worker.
#[derive(Default)]
pub struct Limits {
    tunnels: Cell<usize>,
    handshakes: RefCell<HashMap<IpAddr, usize>>,
}

/// One tunnel's share of the limits.
pub struct Share {
    limits: Rc<Limits>,
    source: IpAddr,
    shaking: bool,
}

impl Share {
    pub fn ask(
        limits: &Rc<Limits>,
        source: IpAddr,
        max_tunnels: usize,
        max_handshakes: usize,
    ) -> Result<Self, &'static str> {
        if limits.tunnels.get() >= max_tunnels {
            return Err("tunnel_limit");
        }
        let mut handshakes = limits.handshakes.borrow_mut();
        let shaking = handshakes.entry(source).or_default();
        if *shaking >= max_handshakes {
            return Err("handshake_limit");
        }
        *shaking += 1;
        limits.tunnels.set(limits.tunnels.get() + 1);
        drop(handshakes);
        Ok(Self {
            limits: limits.clone(),
            source,
            shaking: true,
        })
    }

    pub fn shook_hands(&mut self) {
        if std::mem::take(&mut self.shaking) {
            let mut handshakes = self.limits.handshakes.borrow_mut();
            if let Some(count) = handshakes.get_mut(&self.source) {
                *count -= 1;
                if *count == 0 {
                    handshakes.remove(&self.source);
                }
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shook_hands();
        self.limits.tunnels.set(self.limits.tunnels.get() - 1);
    }
}
