//! Runs the checks, some ways at once, and prints what `cargo test` prints, and the table.

use std::{
    any::Any,
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{
    checks::{self, Check},
    matrix::{Family, Outcome, Table, Way, exception},
    stage::{Phase, Stage},
};

/// Those of libtest that mean something here.
pub struct Args {
    filters: Vec<String>,
    threads: usize,
    list: bool,
}

impl Args {
    pub fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut parsed = Self {
            filters: Vec::new(),
            threads: thread::available_parallelism().map_or(2, usize::from),
            list: false,
        };
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
            match name {
                "--list" => parsed.list = true,
                "--test-threads" => {
                    let value = match value {
                        "" => args.next().unwrap_or_default(),
                        value => value.to_owned(),
                    };
                    parsed.threads = value.parse().unwrap_or(parsed.threads);
                }
                // How to show things, mostly.
                flag if flag.starts_with('-') => {}
                filter => parsed.filters.push(filter.to_owned()),
            }
        }
        parsed
    }

    fn wants(&self, way: Way, family: Family, check: &Check) -> bool {
        let name = name(way, family, check);
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}

fn name(way: Way, family: Family, check: &Check) -> String {
    format!("{way}/{}/{}", family.name(), check.name)
}

pub fn run(args: &Args) -> ExitCode {
    let wanted = |way: &Way| {
        let checks = || checks::ALL.iter();
        let mut families = Family::ALL.into_iter();
        families.any(|family| checks().any(|check| args.wants(*way, family, check)))
    };
    let ways: Vec<Way> = Way::all().filter(wanted).collect();
    if args.list {
        let each = ways
            .iter()
            .flat_map(|way| Family::ALL.map(|family| (*way, family)));
        for (way, family) in each {
            let names = checks::ALL
                .iter()
                .filter(|check| args.wants(way, family, check));
            names.for_each(|check| println!("{}: test", name(way, family, check)));
        }
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    keep_messages_of_panics();
    println!("\nrunning the contract of {} ways of capture", ways.len());
    let report = Report::default();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..args.threads.min(ways.len()) {
            scope.spawn(|| {
                while let Some(way) = ways.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run_way(*way, args, &report);
                }
            });
        }
    });
    report.end(began)
}

/// All checks of one way, on one stage.
fn run_way(way: Way, args: &Args, report: &Report) {
    let wanted = |family: Family, check: &Check| {
        if !args.wants(way, family, check) {
            return false;
        }
        let why = exception(way, family, check.name);
        if let Some(why) = why {
            report.tell(way, family, check, Outcome::Not(why), "");
        }
        why.is_none()
    };
    let mut left: Vec<(&Check, Family)> = Vec::new();
    for phase in Phase::ALL {
        for family in Family::ALL {
            let checks = checks::ALL.iter().filter(|check| check.phase == phase);
            let checks = checks.filter(|check| wanted(family, check));
            left.extend(checks.map(|check| (check, family)));
        }
    }
    let Some(last) = left.last().map(|(check, _)| check.phase) else {
        return;
    };
    let failed = |left: &[(&Check, Family)], why: &str| {
        for (number, (check, family)) in left.iter().enumerate() {
            let why = if number == 0 {
                why
            } else {
                "as the one before"
            };
            report.tell(way, *family, check, Outcome::Failed, why);
        }
    };
    let mut stage = match attempt(|| Stage::start(way)) {
        Ok(stage) => stage,
        Err(why) => return failed(&left, &why),
    };
    for phase in Phase::ALL.into_iter().filter(|phase| *phase <= last) {
        let of_phase = left
            .iter()
            .take_while(|(check, _)| check.phase == phase)
            .count();
        if let Err(why) = attempt(|| stage.enter(phase)) {
            return failed(&left, &why);
        }
        for (check, family) in left.drain(..of_phase) {
            let from = stage.mesh.daemon_a.process().line_count();
            match attempt(|| (check.run)(&stage, family)) {
                Ok(()) => report.tell(way, family, check, Outcome::Passed, ""),
                Err(why) => {
                    let log = stage.mesh.daemon_a.log().split_off(0);
                    let log: Vec<_> = log
                        .iter()
                        .skip(from.min(log.len()))
                        .map(|line| format!("  | {line}\n"))
                        .collect();
                    let why = format!(
                        "{why}\n  the client's daemon said meanwhile:\n{}",
                        log.concat()
                    );
                    report.tell(way, family, check, Outcome::Failed, &why);
                }
            }
        }
    }
    if let Err(why) = attempt(|| drop(stage)) {
        eprintln!("{way}: cleaning up: {why}");
    }
}

#[derive(Default)]
struct Report {
    table: Mutex<Table>,
    failures: Mutex<Vec<String>>,
}

impl Report {
    fn tell(&self, way: Way, family: Family, check: &Check, outcome: Outcome, why: &str) {
        let name = name(way, family, check);
        match &outcome {
            Outcome::Passed => println!("test {name} ... ok"),
            Outcome::Not(why) => println!("test {name} ... ignored, {why}"),
            Outcome::Failed => {
                println!("test {name} ... FAILED");
                lock(&self.failures).push(format!("---- {name} ----\n{why}\n"));
            }
        }
        let number = checks::ALL
            .iter()
            .position(|other| other.name == check.name);
        let number = number.expect("it is one of them");
        lock(&self.table).insert(way, number, family, outcome);
    }

    fn end(&self, began: Instant) -> ExitCode {
        let failures = lock(&self.failures);
        if !failures.is_empty() {
            println!("\nfailures:\n\n{}", failures.join("\n"));
        }
        let table = lock(&self.table);
        let names: Vec<_> = checks::ALL.iter().map(|check| check.name).collect();
        println!("{}", table.render(&names));
        let passed = table.count(|outcome| *outcome == Outcome::Passed);
        let failed = table.count(|outcome| *outcome == Outcome::Failed);
        let ignored = table.count(|outcome| matches!(outcome, Outcome::Not(_)));
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "test result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; \
             finished in {:.2}s\n",
            began.elapsed().as_secs_f64()
        );
        ExitCode::from(u8::from(failed != 0) * 101)
    }
}

thread_local!(static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) });

/// So that a panic is told where its check is, and not in between.
fn keep_messages_of_panics() {
    panic::set_hook(Box::new(|info| {
        let place = info
            .location()
            .map(|at| format!(" ({}:{})", at.file(), at.line()));
        let text = format!("{}{}", payload(info.payload()), place.unwrap_or_default());
        MESSAGE.set(Some(text));
    }));
}

/// What `f` gives, or the message of its panic.
fn attempt<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let message = MESSAGE.take();
        message.unwrap_or_else(|| payload(panic.as_ref()).to_owned())
    })
}

fn payload(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
