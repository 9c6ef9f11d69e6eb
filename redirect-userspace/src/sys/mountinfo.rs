//! The table of mounts, /proc/self/mountinfo.

use std::{fs, io};

pub const TABLE: &str = "/proc/self/mountinfo";
/// A node on which mounts never rest: then the last reading has to do.
const MOST_READINGS: usize = 10;

/// The table as it was at one time. It comes in pieces, and one that was read while others mounted or unmounted may lack lines
/// that were there all the time: it is read until two readings agree.
pub fn read() -> io::Result<String> {
    let mut table = fs::read_to_string(TABLE)?;
    for _ in 0..MOST_READINGS {
        let again = fs::read_to_string(TABLE)?;
        if again == table {
            break;
        }
        table = again;
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_is_in_the_table() {
        let table = super::read().unwrap();
        let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
        assert!(points.any(|point| point == "/"), "{table}");
    }
}
