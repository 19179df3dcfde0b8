//! Ctrl-C: ends the program, except while a chat is answering, where it ends the answer.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;

/// Whether Ctrl-C is wanted as a flag.
static CAUGHT: AtomicBool = AtomicBool::new(false);
static PRESSED: AtomicBool = AtomicBool::new(false);

/// What a shell reports for a program that Ctrl-C ended.
const EXIT_CODE: i32 = 130;

pub fn install() -> anyhow::Result<()> {
    let handler = || {
        let again = PRESSED.swap(true, Ordering::SeqCst);
        if !CAUGHT.load(Ordering::SeqCst) || again {
            process::exit(EXIT_CODE);
        }
    };
    ctrlc::set_handler(handler).context("cannot handle Ctrl-C")
}

/// While this lives, the first Ctrl-C only sets a flag.
pub struct Catch(());

impl Catch {
    pub fn new() -> Self {
        PRESSED.store(false, Ordering::SeqCst);
        CAUGHT.store(true, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Catch {
    fn drop(&mut self) {
        CAUGHT.store(false, Ordering::SeqCst);
        PRESSED.store(false, Ordering::SeqCst);
    }
}

/// Whether Ctrl-C was pressed since the last [`Catch::new`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}
