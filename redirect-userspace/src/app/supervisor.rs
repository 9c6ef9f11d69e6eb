//! What a supervisor such as systemd is told (sd_notify(3)): a datagram of lines `NAME=VALUE` to a socket that it names.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Who started this daemon and wants to know how it is.
#[derive(Debug, Default)]
pub struct Supervisor {
    /// As in NOTIFY_SOCKET: a path, or a name after `@`. `None`: nobody.
    pub socket: Option<OsString>,
}

impl Supervisor {
    /// Pods are captured. The process that says it is the service's main one: it may have taken over from another.
    pub fn ready(&self) {
        self.tell(&format!("READY=1\nMAINPID={}\n", std::process::id()));
    }

    /// Connections drain.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket, state) {
            tracing::warn!(socket = %socket.display(), %error, "the supervisor does not hear of it");
        }
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // Who does not read must not keep us from serving.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_hears_of_it_at_a_path_and_by_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("redirect-notify-{}", std::process::id());
        let abstracted = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, named) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstracted).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            let supervisor = Supervisor {
                socket: Some(named),
            };
            supervisor.ready();
            supervisor.stopping();
            let mut buffer = [0; 100];
            let mut next = || {
                let n = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..n]).into_owned()
            };
            let ready = format!("READY=1\nMAINPID={}\n", std::process::id());
            assert_eq!((next(), next()), (ready, "STOPPING=1\n".to_owned()));
        }
        // Nobody there: that is no reason to end.
        Supervisor::default().ready();
        let socket = Some("/nowhere/notify".into());
        Supervisor { socket }.ready();
    }
}
