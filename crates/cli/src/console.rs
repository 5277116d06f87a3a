//! `lockstep console`: a VM's console from anywhere, across failovers.
//!
//! Console bytes are numbered from power-on, alike on both hosts. When the process goes away, the
//! client looks for the VM's new owner and asks for the bytes after the last one it has printed.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use host::Wake;
use host::terminal::{RawTerminal, Typed, read_stdin};
use vmm::control::{Client, Heard, Request};
use vmm::terminal::Escapes;

use crate::exit::Exit;
use crate::find::{FindArgs, Finder, Found};

/// Between two looks for a VM that has no owner at the moment.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// The VM.
    vm: String,
    /// The virtio console (hvc0) in the place of the serial port (ttyS0).
    #[arg(long)]
    virtio: bool,
    /// Begin with the output since power-on that is still known.
    #[arg(long)]
    history: bool,
    /// Give up when the VM has had no owner for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
    #[command(flatten)]
    find: FindArgs,
}

/// Bytes that were typed and not sent yet, and whether the user wants to leave.
#[derive(Default)]
struct Keyboard {
    typed: Mutex<Vec<u8>>,
    leave: AtomicBool,
}

pub(crate) fn run(args: &ConsoleArgs) -> Result<Exit> {
    let mut finder = Finder::new(&args.find)?;
    let mut owner = finder.owner(&args.vm)?;
    let wake = Arc::new(Wake::new()?);
    let keyboard = Arc::new(Keyboard::default());
    let raw = RawTerminal::enter()?;
    log::info!("connected to VM {} on {}; Ctrl-A x leaves", args.vm, owner.place);
    read_keyboard(&keyboard, &wake)?;
    let signalled = (keyboard.clone(), wake.clone());
    host::signals::on_end_signal(move |_| {
        signalled.0.leave.store(true, Ordering::SeqCst);
        signalled.1.ring();
    })?;

    // With no history wanted, the console begins at its present end.
    let mut from = if args.history { 0 } else { u64::MAX };
    let exit = loop {
        match follow(&finder, args, &owner, &keyboard, &wake, &mut from) {
            Ok(exit) => break exit,
            Err(error) => log::warn!("{}: {error:#}; looking for the VM", owner.place),
        }
        finder.add_peers(&owner.status.peers);
        match look_again(&finder, args, &keyboard) {
            Ok(Some(found)) => owner = found,
            Ok(None) => break Exit::Done,
            Err(error) => return Err(error),
        }
        log::info!("connected to VM {} on {}", args.vm, owner.place);
    };
    drop(raw);
    Ok(exit)
}

/// Waits until somebody owns the VM; `None` if the user leaves.
fn look_again(finder: &Finder, args: &ConsoleArgs, keyboard: &Keyboard) -> Result<Option<Found>> {
    let give_up = Instant::now() + Duration::from_secs(args.patience);
    loop {
        if keyboard.leave.load(Ordering::SeqCst) {
            return Ok(None);
        }
        match finder.owner(&args.vm) {
            Err(error) if Instant::now() >= give_up => return Err(error),
            Err(_) => thread::sleep(LOOK_AGAIN),
            Ok(found) => return Ok(Some(found)),
        }
    }
}

/// Is the console of one process, until it goes away (an error) or the user or the VM ends it.
fn follow(
    finder: &Finder,
    args: &ConsoleArgs,
    owner: &Found,
    keyboard: &Keyboard,
    wake: &Arc<Wake>,
    from: &mut u64,
) -> Result<Exit> {
    let mut client: Client = finder.connect(&owner.place, Some(&args.vm), wake.clone())?;
    client.ask(&Request::Console { from: *from, virtio: args.virtio })?;
    loop {
        if keyboard.leave.load(Ordering::SeqCst) {
            return Ok(Exit::Done);
        }
        let typed =
            std::mem::take(&mut *keyboard.typed.lock().unwrap_or_else(PoisonError::into_inner));
        if !typed.is_empty() {
            client.type_bytes(&typed)?;
        }
        for heard in client.hear()? {
            match heard {
                Heard::End => return Ok(Exit::Done),
                Heard::Bytes(first, bytes) => {
                    if *from != u64::MAX && first > *from {
                        log::warn!("{} bytes of output are no longer known", first - *from);
                    }
                    let mut out = io::stdout().lock();
                    out.write_all(&bytes)?;
                    out.flush()?;
                    *from = first + bytes.len() as u64;
                }
            }
        }
    }
}

fn read_keyboard(keyboard: &Arc<Keyboard>, wake: &Arc<Wake>) -> Result<()> {
    let (keyboard, wake) = (keyboard.clone(), wake.clone());
    let never = Wake::new()?;
    thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
        let mut escapes = Escapes::default();
        while let Typed::Bytes(typed) = read_stdin(&never) {
            let (bytes, leave) = escapes.handle_typed(&typed);
            keyboard.typed.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
            if leave {
                keyboard.leave.store(true, Ordering::SeqCst);
            }
            wake.ring();
        }
    })?;
    Ok(())
}
