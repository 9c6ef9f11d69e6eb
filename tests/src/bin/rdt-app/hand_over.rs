//! `hand-over PORT`: makes a listener and gives it to whoever holds the other end of standard input, a Unix socket.
//!
//! A socket belongs to the cgroup of the process that made it, for good: so a test gets a listener that belongs to another
//! cgroup than its own.

use std::{
    io::{self, IoSlice},
    os::fd::AsRawFd,
};

use anyhow::Context;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use redirect::sys::{netns::Netns, socket};

#[derive(clap::Args)]
pub struct Args {
    port: u16,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let listener =
        socket::listen(&Netns::current()?, args.port, Default::default()).context("listen")?;
    let descriptors = [listener.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let to = io::stdin().as_raw_fd();
    sendmsg::<()>(to, &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None)
        .context("send the listener")?;
    Ok(())
}
