//! What must not leave a captured pod, although no connect hook sees it.

mod forged;
mod frames;
mod lifecycle;
mod sockets;
mod stage;
