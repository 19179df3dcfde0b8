//! The binary at a pseudo-terminal, typed at as a person does.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use nix::pty::{OpenptyResult, Winsize, openpty};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";
pub const UP: &str = "\x1b[A";

pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What the program has written and no `expect` has taken
    seen: String,
}

impl Terminal {
    /// Starts the binary with its own terminal; `home` takes its cache and its history.
    pub fn start(args: &[&str], home: &Path) -> Self {
        // Wide, so that no line is wrapped.
        let size = Winsize { ws_row: 50, ws_col: 500, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        // `setsid --ctty` makes it the controlling terminal, whose Ctrl-C is a signal.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_ferrum")]).args(args);
        command.env("XDG_CACHE_HOME", home).env("HF_HOME", home.join("hf")).env_remove("HF_HUB_CACHE").env("TERM", "xterm");
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(Stdio::from(slave));
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().unwrap();
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is the end of the program, as the kernel reports it.
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen, seen: String::new() }
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Written and not taken yet, once there is any of it.
    #[track_caller]
    pub fn glimpse(&mut self) -> &str {
        while self.seen.trim().is_empty() {
            self.read(Instant::now() + PATIENCE, "anything");
        }
        &self.seen
    }

    /// Waits until `text` is written and takes everything up to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            self.read(end, text);
        }
    }

    /// Waits for more output until `end`.
    #[track_caller]
    fn read(&mut self, end: Instant, wanted: &str) {
        match self.screen.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
            Err(RecvTimeoutError::Timeout) => panic!("no {wanted:?} in {:?}", self.seen),
            Err(RecvTimeoutError::Disconnected) => panic!("the program ended before {wanted:?}: {:?}", self.seen),
        }
    }

    /// Types a line at the prompt, and takes what is written up to the next prompt.
    #[track_caller]
    pub fn line(&mut self, line: &str) -> String {
        self.press(&format!("{line}\r"));
        // The editor ends the line it has read before anything else is written.
        self.expect("\n");
        self.expect(PROMPT)
    }

    /// The exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

/// What the editor writes when it waits for a message.
pub const PROMPT: &str = ">>> ";

impl Drop for Terminal {
    fn drop(&mut self) {
        // Only a failed test leaves a running program.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
