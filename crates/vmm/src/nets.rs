//! A VM's network devices, from their links to the machine's mailbox.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use base::Frame;
use host::Wake;
use host::link::{Link, LinkAddr, LinkError};

use crate::announce::{Mac, rarp};
use crate::mailbox::Mailbox;

/// The network devices of one VM.
#[derive(Debug, Default)]
pub(crate) struct Nets {
    ports: Vec<Port>,
    /// Before this is set, what arrives is dropped: the machine lives elsewhere.
    live: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Port {
    link: Arc<Link>,
    mac: Mac,
    wake: Arc<Wake>,
    /// The link's end was told.
    broken: AtomicBool,
}

impl Nets {
    /// Opens all links and reads from them, dropping what comes until [`Nets::go_live`].
    pub(crate) fn open(
        specs: &[(LinkAddr, Mac)],
        mailbox: &Arc<Mailbox>,
    ) -> Result<Nets, LinkError> {
        let mut nets = Nets::default();
        for (index, (addr, mac)) in specs.iter().enumerate() {
            let link = Arc::new(Link::open(addr)?);
            let wake = Arc::new(
                Wake::new()
                    .map_err(|source| LinkError::Packet { name: format!("{addr:?}"), source })?,
            );
            let reader = Reader {
                nic: index as u8,
                link: link.clone(),
                wake: wake.clone(),
                mailbox: mailbox.clone(),
                live: nets.live.clone(),
                stop: nets.stop.clone(),
            };
            let thread = thread::Builder::new().name(format!("net{index}"));
            thread.spawn(move || reader.run()).expect("the host has room for one more thread");
            nets.ports.push(Port { link, mac: *mac, wake, broken: AtomicBool::new(false) });
        }
        Ok(nets)
    }

    /// From now on the guest gets what arrives.
    pub(crate) fn go_live(&self) {
        self.live.store(true, Ordering::SeqCst);
    }

    pub(crate) fn send(&self, nic: u8, frames: &[Frame]) {
        let Some(port) = self.ports.get(usize::from(nic)) else { return };
        for frame in frames {
            if let Err(error) = port.link.send(frame) {
                port.tell(&error);
            }
        }
    }

    /// Tells the switches where the guest's addresses are now.
    pub(crate) fn announce(&self) {
        for (nic, port) in self.ports.iter().enumerate() {
            self.send(nic as u8, &[rarp(port.mac).into()]);
        }
    }
}

impl Port {
    fn tell(&self, error: &io::Error) {
        if !self.broken.swap(true, Ordering::Relaxed) {
            log::error!("a network link of the guest is gone: {error}");
        }
    }
}

impl Drop for Nets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.ports.iter().for_each(|port| port.wake.ring());
    }
}

struct Reader {
    nic: u8,
    link: Arc<Link>,
    wake: Arc<Wake>,
    mailbox: Arc<Mailbox>,
    live: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn run(self) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut frames = Vec::new();
            if let Err(error) = self.link.receive(&self.wake, &mut frames) {
                log::error!("network device {} receives no more: {error}", self.nic);
                return;
            }
            if !frames.is_empty() && self.live.load(Ordering::SeqCst) {
                self.mailbox.frames(self.nic, frames);
            }
        }
    }
}
