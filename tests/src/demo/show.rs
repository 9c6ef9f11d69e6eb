//! What the demo prints: colours and alignment on a terminal, plain text in a pipe.

use std::{
    any::Any,
    cell::RefCell,
    env,
    io::{self, IsTerminal},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use super::Lines;

#[derive(Debug)]
pub struct Show {
    colours: bool,
    passed: usize,
    failed: usize,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";

impl Show {
    pub fn new() -> Self {
        let colours = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        Self {
            colours,
            passed: 0,
            failed: 0,
        }
    }

    pub fn title(&self, text: &str) {
        println!("{}\n", self.paint(BOLD, text));
    }

    pub fn passed(&mut self, title: &str, lines: &Lines) {
        self.passed += 1;
        self.step(title, GREEN, "ok");
        let width = lines
            .iter()
            .map(|(label, _)| label.chars().count())
            .max()
            .unwrap_or(0);
        for (label, text) in lines {
            let padding = " ".repeat(width - label.chars().count());
            println!("      {}{padding}  {text}", self.paint(DIM, label));
        }
        println!();
    }

    pub fn failed(&mut self, title: &str, why: &str) {
        self.failed += 1;
        self.step(title, RED, "FAILED");
        why.lines()
            .take(30)
            .for_each(|line| println!("      {line}"));
        println!();
    }

    pub fn log(&self, name: &str, text: &str) {
        println!(
            "      {}",
            self.paint(DIM, &format!("last lines of {name}:"))
        );
        println!("{text}");
    }

    /// The last line, and the exit status that goes with it.
    pub fn end(&self, interrupted: bool) -> ExitCode {
        if interrupted {
            println!("interrupted, everything is removed");
        }
        let colour = if self.failed == 0 && !interrupted {
            GREEN
        } else {
            RED
        };
        println!(
            "{}",
            self.paint(
                colour,
                &format!("demo: {} passed, {} failed", self.passed, self.failed)
            )
        );
        match (interrupted, self.failed) {
            (true, _) => ExitCode::from(130),
            (false, 0) if self.passed > 0 => ExitCode::SUCCESS,
            (false, _) => ExitCode::FAILURE,
        }
    }

    fn step(&self, title: &str, colour: &str, word: &str) {
        let number = self.passed + self.failed;
        let dots = ".".repeat(92_usize.saturating_sub(title.chars().count()));
        println!(
            "{number:>3}  {} {} {}",
            self.paint(BOLD, title),
            self.paint(DIM, &dots),
            self.paint(colour, word)
        );
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

thread_local!(static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) });

/// Keeps the message of a panic for [`attempt`], which shows it in its place.
pub fn quiet_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map(|at| format!(" ({}:{})", at.file(), at.line()))
            .unwrap_or_default();
        let text = format!("{}{place}", payload(info.payload()));
        MESSAGE.with_borrow_mut(|message| *message = Some(text));
    }));
}

/// What `f` gives, or the message of its panic.
pub fn attempt<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        MESSAGE
            .take()
            .unwrap_or_else(|| payload(panic.as_ref()).to_owned())
    })
}

fn payload(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic")
}
