//! One daemon takes over from another that runs (`redirect run --take-over`): nothing is refused, and nothing is lost that the
//! drain limit does not cut.

mod faults;
mod stage;
mod under_load;
mod versions;
