//! A captured pod, and listeners in its network namespace that stand for the proxy.

use std::{
    fs,
    io::{self, IoSliceMut, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, Shutdown as How, recvmsg, shutdown};
use redirect::{
    capture::{Applied, Capture, CaptureError, Sockets, VerdictCount, ebpf::EbpfCapture},
    config::{Backend, CaptureConfig, IptablesVariant, Mode, Part, ProberCgroups},
    identity::Identity,
    orig_dst::OrigDstResolver,
    pod::{Pod, PodOptions, PodUid},
    sys::{cgroup::Cgroup, netns::Netns, socket},
};
use redirect_common::ports;
use redirect_tests::{App, Event, Testbed, app_binary, wait_until};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// One node with a captured pod `client` and a pod `peer` that is not captured.
pub struct Fixture {
    pub capture: Option<EbpfCapture>,
    pub client: redirect_tests::Pod,
    pub peer: redirect_tests::Pod,
    pub options: PodOptions,
    pub bpffs: PathBuf,
    pub proxy_cgroup: PathBuf,
    proxies: Option<Proxies>,
    // Last: it removes the namespaces, cgroups and the bpffs.
    _bed: Testbed,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(|_, _| PodOptions::default())
    }

    /// Captures the client with options that depend on the two pods.
    pub fn with(
        options: impl FnOnce(&redirect_tests::Pod, &redirect_tests::Pod) -> PodOptions,
    ) -> Self {
        let bed = Testbed::new();
        let node = bed.node("a");
        let (client, peer) = (node.pod("client"), node.pod("peer"));
        let daemon = node.daemon();
        daemon.mount_bpffs();
        let bpffs = daemon.bpffs();
        let proxy_cgroup = node.cgroup().join("proxy");
        fs::create_dir_all(&proxy_cgroup).expect("make the proxy's cgroup");
        let options = options(&client, &peer);
        let capture = load(&bpffs, &proxy_cgroup);
        let mut fixture = Self {
            capture: Some(capture),
            client,
            peer,
            options,
            bpffs,
            proxy_cgroup,
            proxies: None,
            _bed: bed,
        };
        fixture.listen();
        assert_eq!(fixture.apply(), Applied::Attached);
        fixture
    }

    pub fn capture(&mut self) -> &mut EbpfCapture {
        self.capture.as_mut().expect("the test did not drop it")
    }

    pub fn apply(&mut self) -> Applied {
        let pod = self.spec();
        self.apply_as(&pod).expect("capture the pod")
    }

    /// Captures the client's namespace for what `pod` says.
    pub fn apply_as(&mut self, pod: &Pod) -> Result<Applied, CaptureError> {
        let netns = self.client.netns().clone();
        let capture = self.capture.as_mut().expect("the test did not drop it");
        match &self.proxies {
            Some(proxies) => capture.apply(pod, &netns, &proxies.sockets()),
            None => apply(capture, pod, &netns),
        }
    }

    /// Starts the stand-ins for the proxy. What arrives for the pod comes to them when the pod is applied.
    pub fn listen(&mut self) {
        let resolver = self.capture().resolver();
        let start = |port| Proxy::start(&self.client, &self.proxy_cgroup, port, resolver.clone());
        self.proxies = Some(Proxies {
            outbound: start(ports::OUTBOUND),
            inbound_plaintext: start(ports::INBOUND_PLAINTEXT),
            hbone: start(ports::INBOUND_HBONE),
        });
    }

    /// Stops them: nobody listens on their ports any more.
    pub fn stop_listening(&mut self) {
        self.proxies = None;
    }

    pub fn uid(&self) -> PodUid {
        PodUid::new("default/client")
    }

    pub fn spec(&self) -> Pod {
        Pod {
            uid: self.uid(),
            name: "client".into(),
            namespace: "default".into(),
            identity: Identity {
                trust_domain: "cluster.local".into(),
                namespace: "default".into(),
                service_account: "client".into(),
            },
            netns: self.client.netns().path(),
            cgroup: self.client.cgroup(),
            ips: vec![self.client.ipv4(), self.client.ipv6()],
            cgroup_only: None,
            options: self.options.clone(),
        }
    }

    /// Connects in the pod to `addr` with `args` and asks the stand-in what it knows: that, and how the app sees it.
    #[track_caller]
    pub fn connect(&self, addr: SocketAddr, args: &[&str]) -> (Answer, Event) {
        let app = self.start(addr, args, &["recv-line"]);
        let connected = app.event("connected");
        (Answer::parse(app.event("received").text()), connected)
    }

    pub fn start(&self, addr: SocketAddr, options: &[&str], steps: &[&str]) -> App {
        let addr = addr.to_string();
        self.client.app(
            ["connect"]
                .iter()
                .chain(options)
                .copied()
                .chain([addr.as_str()])
                .chain(steps.iter().copied()),
        )
    }

    /// The sum of the counters with this reason, whatever the hook and verdict.
    pub fn count(&self, reason: &str) -> u64 {
        self.count_at("", reason)
    }

    /// The same for hooks whose names begin with `hook`.
    pub fn count_at(&self, hook: &str, reason: &str) -> u64 {
        let counters = self.capture.as_ref().expect("loaded").counters()();
        counters
            .iter()
            .filter(|counter| counter.reason == reason && counter.hook.starts_with(hook))
            .map(|counter: &VerdictCount| counter.count)
            .sum()
    }

    /// Connects that are between `connect()` and accept.
    pub fn flows(&self) -> usize {
        self.entries("rdr_flows")
    }

    /// How many entries a map has.
    pub fn entries(&self, map: &str) -> usize {
        let map = pins(&self.bpffs).join("maps").join(map);
        let dump = Command::new("/usr/sbin/bpftool")
            .args(["-j", "map", "dump", "pinned"])
            .arg(map)
            .output();
        let dump = dump.expect("run bpftool");
        assert!(dump.status.success(), "{dump:?}");
        let entries: serde_json::Value = serde_json::from_slice(&dump.stdout).expect("JSON");
        entries.as_array().expect("a list").len()
    }

    #[track_caller]
    pub fn expect_no_flows(&self) {
        assert!(
            wait_until(PATIENCE, || self.flows() == 0),
            "{} flows stay",
            self.flows()
        );
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.proxies = None;
        self.capture = None;
        if let Err(error) = redirect::capture::uninstall(&self.bpffs)
            && !thread::panicking()
        {
            panic!("uninstall: {error}");
        }
    }
}

/// Captures `pod` for listeners that nobody accepts on, for tests in which nothing comes to them.
pub fn apply(capture: &mut EbpfCapture, pod: &Pod, netns: &Netns) -> Result<Applied, CaptureError> {
    let listener = netns
        .run(|| TcpListener::bind("127.0.0.1:0"))
        .and_then(|listener| listener)
        .expect("listen");
    let sockets = Sockets {
        outbound: listener.as_fd(),
        inbound_plaintext: listener.as_fd(),
        hbone: listener.as_fd(),
        dns: None,
    };
    capture.apply(pod, netns, &sockets)
}

pub fn load(bpffs: &Path, cgroup: &Path) -> EbpfCapture {
    load_with(bpffs, cgroup, Vec::new())
}

/// With programs on the cgroups of probers.
pub fn load_with(bpffs: &Path, cgroup: &Path, probers: Vec<PathBuf>) -> EbpfCapture {
    let config = CaptureConfig {
        part: Part::Whole,
        backend: Backend::Ebpf,
        mode: Mode::Shared,
        iptables: IptablesVariant::Auto,
        // It has tests of its own.
        leak_guard: false,
        probers: ProberCgroups::Paths(probers),
        bpffs: bpffs.to_owned(),
        mount_bpffs: false,
        cgroup: None,
        exempt_uid: None,
        events: false,
        detach_on_exit: false,
        verify_interval: std::time::Duration::from_secs(10),
        abi: redirect_common::ABI_VERSION,
    };
    EbpfCapture::load(&config, cgroup).expect("load the programs")
}

/// What the stand-in said of a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `None`: it was told of no original destination.
    pub original: Option<SocketAddr>,
    pub cgroup: Option<u64>,
    /// Its own end.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// From getsockopt(SO_ORIGINAL_DST) or its IPv6 twin: an address, or the name of the error.
    pub sockopt: String,
}

impl Answer {
    fn text(&self) -> String {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
        let (original, cgroup) = (
            self.original.map(|a| a.to_string()),
            self.cgroup.map(|id| id.to_string()),
        );
        format!(
            "{} {} {} {} {}\n",
            or_none(original),
            or_none(cgroup),
            self.local,
            self.peer,
            self.sockopt
        )
    }

    #[track_caller]
    pub fn parse(line: &str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let [original, cgroup, local, peer, sockopt] = words[..] else {
            panic!("no answer of the stand-in: {line}")
        };
        let parse = |text: &str| {
            text.parse()
                .unwrap_or_else(|_| panic!("no address: {text}"))
        };
        Self {
            original: original.parse().ok(),
            cgroup: cgroup.parse().ok(),
            local: parse(local),
            peer: parse(peer),
            sockopt: sockopt.to_owned(),
        }
    }
}

struct Proxies {
    outbound: Proxy,
    inbound_plaintext: Proxy,
    hbone: Proxy,
}

impl Proxies {
    fn sockets(&self) -> Sockets<'_> {
        Sockets {
            outbound: self.outbound.listener.as_fd(),
            inbound_plaintext: self.inbound_plaintext.listener.as_fd(),
            hbone: self.hbone.listener.as_fd(),
            dns: None,
        }
    }
}

struct Proxy {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start(
        pod: &redirect_tests::Pod,
        cgroup: &Path,
        port: u16,
        resolver: Arc<dyn OrigDstResolver>,
    ) -> Self {
        let listener = listener(pod, cgroup, port);
        listener
            .set_nonblocking(false)
            .expect("a blocking listener");
        let listener = Arc::new(listener);
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let thread = thread::spawn({
            let (listener, open) = (listener.clone(), open.clone());
            move || {
                while let Ok((stream, peer)) = listener.accept() {
                    open.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(stream.try_clone().expect("dup"));
                    let answer = answer(&stream, peer, &*resolver);
                    thread::spawn(move || _ = echo(stream, &answer.text()));
                }
            }
        });
        Self {
            listener,
            thread: Some(thread),
            open,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Wakes `accept`.
        _ = shutdown(self.listener.as_raw_fd(), How::Both);
        _ = self.thread.take().map(JoinHandle::join);
        for stream in self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn answer(stream: &TcpStream, peer: SocketAddr, resolver: &dyn OrigDstResolver) -> Answer {
    let original = resolver
        .resolve(stream.as_fd())
        .expect("ask for the original destination");
    let local = socket::canonical(stream.local_addr().expect("a local address"));
    let socket = socket2::SockRef::from(stream);
    let sockopt = match local.is_ipv4() {
        true => socket.original_dst_v4(),
        false => socket.original_dst_v6(),
    };
    Answer {
        original: original.as_ref().map(|original| original.addr),
        cgroup: original.and_then(|original| original.cgroup_id),
        local,
        peer: socket::canonical(peer),
        sockopt: match sockopt {
            Ok(addr) => addr.as_socket().expect("an IP address").to_string(),
            Err(error) => error_name(&error),
        },
    }
}

fn echo(mut stream: TcpStream, greeting: &str) -> io::Result<()> {
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            // The list of open connections holds a duplicate.
            0 => return stream.shutdown(Shutdown::Write),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

pub fn error_name(error: &io::Error) -> String {
    format!(
        "{:?}",
        nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0))
    )
}

/// A listener in the pod's network namespace that belongs to `cgroup`, as the real proxy's does: made there by another
/// process, since to move this one would move what other tests are starting, too.
pub fn listener(pod: &redirect_tests::Pod, cgroup: &Path, port: u16) -> TcpListener {
    let (ours, theirs) = UnixStream::pair().expect("make a pair of sockets");
    let mut command = Command::new(app_binary());
    command.arg("enter").arg(cgroup).arg(pod.netns().path());
    command
        .arg(app_binary())
        .args(["hand-over", &port.to_string()]);
    let output = command
        .stdin(OwnedFd::from(theirs))
        .output()
        .expect("start rdt-app");
    assert!(output.status.success(), "{output:?}");
    let mut byte = [0];
    let mut space = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        ours.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let message = message.expect("receive the listener");
    let descriptor = message.cmsgs().expect("whole").find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    redirect_tests::sys::own(descriptor.expect("a descriptor")).into()
}

pub fn cgroup_id(path: &Path) -> u64 {
    Cgroup::open(path).expect("a cgroup").id
}

/// Where daemons of this version pin.
pub fn pins(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("redirect/v{}", redirect_common::ABI_VERSION))
}
