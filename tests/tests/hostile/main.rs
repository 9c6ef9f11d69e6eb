//! Peers and pods that mean harm, or are broken: each is refused, counted, and stops nobody else.

mod certificates;
mod floods;
mod ports;
mod requests;
mod stage;

use std::time::Duration;

use stage::Stage;

const SOON: Duration = Duration::from_secs(10);
