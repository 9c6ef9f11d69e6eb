//! A proxy such as ztunnel, as far as capture and ZDS meet it: it listens in each pod that it is told of, marks all of its
//! sockets, asks `SO_ORIGINAL_DST`, and speaks to apps from the client's address. It carries everything in plaintext.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use redirect_tests::{
    eventually,
    process::PATIENCE,
    zds::{ACK, HELLO, ZdsSocket, fields},
};
use socket2::{Domain, SockRef, Socket, Type};

const MARK: u32 = 0x539;
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;

/// Connected to an agent until dropped; then it carries nothing more.
pub struct Proxy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Connects as soon as the agent listens.
    pub fn start(path: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (path.to_owned(), stop.clone());
        let thread = thread::spawn(move || run(path, &stopped));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(panic)) = ended
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

fn run(path: PathBuf, stop: &AtomicBool) {
    let agent = eventually("the agent listens", PATIENCE, || ZdsSocket::connect(&path));
    agent.send(HELLO, &[]).expect("say hello");
    let mut pods = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        if agent.is_quiet(Duration::from_millis(20)) {
            continue;
        }
        // Without its agent it goes on with what it carries.
        let Some((bytes, mut fds)) = agent.receive().ok().filter(|packet| !packet.0.is_empty())
        else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let request = &fields(&bytes)[0];
        match request.0 {
            1 => {
                let uid = fields(&request.1)[0].1.clone();
                assert_eq!(fds.len(), 1);
                pods.insert(uid, Carried::open(fds.remove(0)));
            }
            2 => {
                let uid = fields(&request.1)[0].1.clone();
                pods.remove(&uid);
            }
            _ => {}
        }
        agent.send(ACK, &[]).expect("answer");
    }
}

/// Listeners in a pod, until dropped.
struct Carried {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Carried {
    fn open(netns: OwnedFd) -> Self {
        let netns = Arc::new(File::from(netns));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [OUTBOUND, INBOUND].map(|port| {
            let listener = within(&netns, || listen(port)).expect("listen in the pod");
            let (netns, stop) = (netns.clone(), stop.clone());
            thread::spawn(move || accept(&listener, port, &netns, &stop))
        });
        Self {
            stop,
            threads: threads.into(),
        }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, port: u16, netns: &Arc<File>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((accepted, client)) => {
                accepted.set_nonblocking(false).expect("a blocking socket");
                let netns = netns.clone();
                thread::spawn(move || carry(accepted, client, port, &netns));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Carries one connection to where it wanted to go; without an answer to that, it is closed.
fn carry(accepted: TcpStream, client: SocketAddr, port: u16, netns: &File) {
    let original = {
        let socket = SockRef::from(&accepted);
        let asked = match client.ip().to_canonical().is_ipv4() {
            true => socket.original_dst_v4(),
            false => socket.original_dst_v6(),
        };
        asked.ok().and_then(|address| address.as_socket())
    };
    let Some(original) = original.filter(|original| original.port() != port) else {
        return;
    };
    let source = (port == INBOUND).then(|| SocketAddr::new(client.ip().to_canonical(), 0));
    let Ok(onward) = within(netns, || connect(original, source)) else {
        return;
    };
    let (from, to) = (
        accepted.try_clone().expect("a clone"),
        onward.try_clone().expect("a clone"),
    );
    let there = thread::spawn(move || copy(from, to));
    copy(onward, accepted);
    _ = there.join();
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    _ = io::copy(&mut from, &mut to);
    _ = to.shutdown(Shutdown::Write);
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_mark(MARK)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn connect(to: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_mark(MARK)?;
    if let Some(from) = from {
        socket.set_ip_transparent_v4(true)?;
        socket.bind(&from.into())?;
    }
    socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

/// On a thread of its own in the namespace, which ends with it.
fn within<T: Send>(netns: &File, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            f()
        });
        inside.join().expect("no panic inside")
    })
}
