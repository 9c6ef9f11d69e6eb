//! The scene: a captured pod whose root means harm, and a counter at the place that it must not reach.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use nix::ifaddrs::getifaddrs;
use redirect::sys::bpf;
use redirect_tests::{
    App, DaemonSpec, Event, Mesh, MeshBuilder, Pod, Process, app_binary, eventually,
    process::PATIENCE,
};

/// What containerd gives a container that asks for nothing.
pub const DEFAULT_CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,\
    +setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// Where attacks go; nobody captured anything about it.
pub const PORT: u16 = 9000;

pub struct Stage {
    pub mesh: Mesh,
}

impl Stage {
    pub fn set() -> Self {
        Self::on(Mesh::builder())
    }

    pub fn on(mesh: MeshBuilder) -> Self {
        Self { mesh: mesh.start() }
    }

    pub fn client(&self) -> &Pod {
        &self.mesh.client
    }

    pub fn outsider(&self) -> &Pod {
        &self.mesh.outsider
    }

    /// How many packets the guard of the client's node gave this verdict for this reason.
    pub fn guarded(&self, verdict: &str, reason: &str) -> u64 {
        self.verdicts("guard", verdict, reason)
    }

    /// The same of any hook.
    pub fn verdicts(&self, hook: &str, verdict: &str, reason: &str) -> u64 {
        let labels = [("hook", hook), ("verdict", verdict), ("reason", reason)];
        let metrics = self.mesh.daemon_a.metrics();
        metrics.sum("redirect_capture_verdicts_total", &labels) as u64
    }

    /// Waits until the guard has dropped `count` packets for this reason.
    #[track_caller]
    pub fn wait_dropped(&self, reason: &str, count: u64) {
        eventually(&format!("{count} dropped: {reason}"), PATIENCE, || {
            let dropped = self.guarded("refuse", reason);
            (dropped >= count)
                .then_some(())
                .ok_or_else(|| self.mesh.daemon_a.metrics().text().to_owned())
        });
    }

    /// `rdt-app attack` in the client pod, with the capabilities of a container. It may be told that its packet was dropped.
    #[track_caller]
    pub fn attack(&self, args: &[&str]) {
        let event = self.attack_event(args);
        let dropped = ["ENOBUFS", "EPERM"];
        assert!(
            event.name() == "sent" || dropped.contains(&event.str("name")),
            "{event:?}"
        );
    }

    #[track_caller]
    pub fn attack_event(&self, args: &[&str]) -> Event {
        let command = as_in_a_container(self.client(), args);
        App::new(Process::spawn("attacker", command)).next_event()
    }

    /// Sends a segment by a raw socket.
    #[track_caller]
    pub fn attack_raw(&self, protocol: u8, dst: IpAddr, bytes: &[u8]) {
        let (protocol, dst) = (protocol.to_string(), dst.to_string());
        self.attack(&["attack", "raw", &protocol, &dst, &hex(bytes)]);
    }

    /// Sends a frame by a packet socket.
    #[track_caller]
    pub fn attack_frame(&self, frame: &[u8]) {
        self.attack(&["attack", "packet", "eth0", &hex(frame)]);
    }

    /// The interfaces on which the kernel has the guard's links of the client, by their index.
    pub fn guarded_interfaces(&self) -> Vec<u32> {
        guarded_interfaces(self.mesh.daemon_a.spec())
    }

    /// Client and outsider in each family.
    pub fn ends(&self) -> [(SocketAddr, SocketAddr); 2] {
        let (client, outsider) = (self.client(), self.outsider());
        [
            (client.at(40_000), outsider.at(PORT)),
            (client.at6(40_000), outsider.at6(PORT)),
        ]
    }

    pub fn macs(&self) -> ([u8; 6], [u8; 6]) {
        (mac(self.client()), mac(self.outsider()))
    }
}

/// A command of `rdt-app` in the pod, as root in a container with the default capabilities.
pub fn as_in_a_container(pod: &Pod, args: &[&str]) -> Command {
    let mut command = with_capabilities(pod, DEFAULT_CAPABILITIES, app_binary());
    command.args(args);
    command
}

/// A command in the pod, as root with these capabilities at most.
pub fn with_capabilities(
    pod: &Pod,
    capabilities: &str,
    program: impl AsRef<std::ffi::OsStr>,
) -> Command {
    let mut command = pod.command("setpriv");
    command.args(["--inh-caps", "-all", "--bounding-set", capabilities]);
    command.arg(program);
    command
}

/// Counts what arrives at a pod and matches an expression of nft(8).
pub struct Counter {
    pod: Pod,
}

impl Counter {
    pub fn of(pod: &Pod, expression: &str) -> Self {
        let counter = Self { pod: pod.clone() };
        counter.nft(&format!(
            "table netdev seen {{
                counter arrived {{ }}
                chain arriving {{
                    type filter hook ingress device eth0 priority 0;
                    {expression} counter name arrived
                }}
            }}"
        ));
        counter
    }

    pub fn packets(&self) -> u64 {
        let listing = self.nft("list counter netdev seen arrived");
        let mut words = listing.split_whitespace().skip_while(|w| *w != "packets");
        let number = words.nth(1).and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("no packet count in {listing}"))
    }

    #[track_caller]
    pub fn wait(&self, count: u64) {
        eventually(&format!("{count} packets"), PATIENCE, || {
            let packets = self.packets();
            (packets >= count).then_some(()).ok_or(packets)
        });
    }

    fn nft(&self, commands: &str) -> String {
        run_in(&self.pod, "nft", &[commands])
    }
}

/// The interfaces on which links of a daemon's guard are pinned and alive. (Debian's bpftool does not know tcx yet.)
pub fn guarded_interfaces(spec: &DaemonSpec) -> Vec<u32> {
    let mut found: Vec<_> = pins(&spec.bpffs())
        .iter()
        .filter(|pin| pin.to_string_lossy().contains("/guard-"))
        .filter_map(|pin| bpf::interface_link(bpf::open_link(pin).ok()?.as_fd()).ok())
        .collect();
    found.sort_unstable();
    found
}

fn pins(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let pins = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => pins(&entry.path()),
        _ => vec![entry.path()],
    });
    pins.collect()
}

/// Runs a program in the pod's namespace, with all rights; it must succeed.
#[track_caller]
pub fn run_in(pod: &Pod, program: &str, args: &[&str]) -> String {
    let run = || Command::new(program).args(args).output();
    let output = pod.netns().run(run).expect("the namespace can be entered");
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn mac(pod: &Pod) -> [u8; 6] {
    let addresses = || -> nix::Result<_> {
        let mut eth0 = getifaddrs()?.filter(|interface| interface.interface_name == "eth0");
        Ok(eth0.find_map(|interface| interface.address?.as_link_addr()?.addr()))
    };
    let found = pod
        .netns()
        .run(addresses)
        .expect("the namespace can be entered");
    found.expect("getifaddrs").expect("eth0 has an address")
}

/// As `rdt-app attack` reads them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
