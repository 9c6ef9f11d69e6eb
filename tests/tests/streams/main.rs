//! What a connection through both daemons must be like: as a TCP connection to the server itself.

mod ends;
mod load;
mod peers;
mod tunnels;

use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
