//! Clients of the agent's socket that do not behave.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Command,
    time::Duration,
};

use crate::stage::{Fate, Stage, succeeded};

#[test]
fn nobody_holds_up_the_agent() {
    let stage = Stage::set();
    let connect = || UnixStream::connect(stage.socket()).expect("connects");
    let fds = stage.daemon.fds();
    let silent: Vec<_> = (0..200).map(|_| connect()).collect();
    let mut babbling = connect();
    let babble = vec![b'x'; 1 << 20];
    // It is sent away before it has said all.
    _ = babbling.write_all(&babble);
    let deaf: Vec<_> = (0..20)
        .map(|_| {
            let mut client = connect();
            client
                .write_all(b"{\"request\":\"podList\"}\n")
                .expect("taken");
            client
        })
        .collect();
    // While they are all there.
    stage.add(&stage.client, &[]);
    assert_eq!(stage.fate(), Fate::Captured);
    for mut client in silent {
        client
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    }
    drop((babbling, deaf));
    // The pod's own: listeners and the like.
    redirect_tests::eventually("closed", Duration::from_secs(20), || {
        match stage.daemon.fds() {
            now if now < fds + 30 => Ok(()),
            now => Err(format!("{now} descriptors, {fds} before")),
        }
    });
    succeeded(&stage.pod(&["list"]));
}

#[test]
fn only_root_is_served() {
    let stage = Stage::set();
    let mode = fs::metadata(stage.socket()).expect("there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // Open to all, also on the way there: the daemon asks the kernel who it is.
    let open_up = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
    };
    open_up(&stage.socket(), 0o666);
    for folder in stage.socket().ancestors().skip(1).take(4) {
        open_up(folder, 0o755);
    }
    let script = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!; \
                  print $s \"{\\\"request\\\":\\\"podList\\\"}\\n\"; $s->flush; print <$s>;";
    for (user, expected) in [("0", true), ("65534", false)] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups", "perl", "-e", script]);
        let output = command.arg(stage.socket()).output().expect("start setpriv");
        let answered = String::from_utf8_lossy(&output.stdout).contains("pods");
        assert_eq!(answered, expected, "{user}: {output:?}");
    }
}
