//! Names of what the programs did: hook, verdict and reason, and the place of each in the per-CPU counters.

/// Defines an enum of small numbers with names for metrics and events.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant),* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];
            pub const COUNT: usize = Self::ALL.len();

            /// As metrics and events show it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// From a number that came out of the kernel.
            pub fn from_number(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }
    };
}

named! {
    /// Where in the kernel something was decided.
    Hook {
        Connect4 = "connect4",
        Connect6 = "connect6",
        Getpeername4 = "getpeername4",
        Getpeername6 = "getpeername6",
        /// Socket events of captured pods.
        PodSocket = "pod_socket",
        /// Socket events of the proxy.
        ProxySocket = "proxy_socket",
        Getsockopt = "getsockopt",
        /// A process in a captured pod takes a port.
        Bind4 = "bind4",
        Bind6 = "bind6",
        Setsockopt = "setsockopt",
        /// UDP in captured pods.
        Sendmsg4 = "sendmsg4",
        Sendmsg6 = "sendmsg6",
        Recvmsg4 = "recvmsg4",
        Recvmsg6 = "recvmsg6",
        /// A connection arrives in a captured pod.
        SkLookup = "sk_lookup",
        /// Socket events of whoever probes the pods.
        Prober = "prober",
        /// A packet leaves a captured pod's interface.
        Guard = "guard",
        /// A packet goes to or comes from a captured pod, on the node's side of its interface.
        NodeSide = "node_side",
    }
}

named! {
    /// What the program did.
    Verdict {
        /// Left the connection as it was.
        Pass = "pass",
        /// Steered it to the proxy, or did a later step of that.
        Redirect = "redirect",
        /// Made sure that it fails.
        Refuse = "refuse",
    }
}

named! {
    /// Why.
    Reason {
        /// Nothing stood against capture.
        Captured = "captured",
        /// Not TCP: only its original destination is our business.
        NotTcp = "not_tcp",
        /// 127.0.0.0/8 or ::1.
        Loopback = "loopback",
        /// 0.0.0.0 or ::, which the kernel turns into loopback.
        Unspecified = "unspecified",
        Multicast = "multicast",
        Broadcast = "broadcast",
        /// fe80::/10: BPF does not see the scope.
        LinkLocal = "link_local",
        /// 169.254.169.254, unless the pod captures it.
        Metadata = "metadata",
        /// The pod's own address.
        OwnAddress = "own_address",
        /// The caller is in the cgroup of none of the workloads that share its namespace.
        UnknownCaller = "unknown_caller",
        /// At an address that workloads share, but nothing that one of them serves.
        NotServed = "not_served",
        /// The caller is in a network namespace in which we do not listen.
        ForeignNetns = "foreign_netns",
        ExcludedPort = "excluded_port",
        ExcludedNet = "excluded_net",
        /// The pod names what is captured, and this is not among it.
        NotIncluded = "not_included",
        ExemptCgroup = "exempt_cgroup",
        /// Bound to an address that is not the pod's (IP_TRANSPARENT or the like).
        ForeignSource = "foreign_source",
        /// Bound to a device, but the pod has no address of this family through which the proxy could be reached.
        NoAddress = "no_address",
        /// A DNS query from a socket that is bound to a device, which hides the proxy from it.
        BoundDevice = "bound_device",
        /// The pod asks more DNS servers at a time than can be told apart.
        DnsServersFull = "dns_servers_full",
        /// No memory for the socket's storage.
        NoStorage = "no_storage",
        /// The pod has too many connections under way.
        FlowLimit = "flow_limit",
        /// The table of connections under way is full.
        FlowsFull = "flows_full",
        /// The original destination was published for the proxy.
        Published = "published",
        /// A connect ended before the proxy had accepted it.
        Abandoned = "abandoned",
        /// The original destination was moved to the accepted socket.
        Accepted = "accepted",
        /// A connection that no captured socket of this namespace made.
        NoFlow = "no_flow",
        /// An original destination was told to the asker.
        Answered = "answered",
        /// Asked with a buffer that is too small.
        BadLength = "bad_length",
        /// To a port of ours from outside of the pod, or a process of the pod wants such a port.
        OwnPort = "own_port",
        /// HBONE, which the proxy's listener takes by itself.
        Hbone = "hbone",
        /// To the proxy's own metrics or readiness.
        Admin = "admin",
        /// The proxy's connection to an app.
        FromProxy = "from_proxy",
        /// A probe.
        Probe = "probe",
        /// The prober connects to a port that the pod does not declare for probes.
        NoProbePort = "no_probe_port",
        /// The pod does not want inbound capture.
        Bypassed = "bypassed",
        /// Inside a captured pod's namespace, to an address that nobody said is the pod's.
        UnknownAddress = "unknown_address",
        /// Nobody listens where the connection should go.
        NoListener = "no_listener",
        /// A connection was registered to pass, so that the next step knows it.
        Registered = "registered",
        /// A process of the pod wants a packet mark that is ours.
        OwnMark = "own_mark",
        /// The proxy's own packet.
        Proxy = "proxy",
        /// Of a connection that capture let pass.
        Known = "known",
        /// A segment without data that opens nothing: the kernel answers for a connection that is not there.
        Control = "control",
        /// Received on another interface of the pod.
        Forwarded = "forwarded",
        /// TCP of a socket that capture did not see: older than it, or made in another cgroup.
        Uncaptured = "uncaptured",
        /// TCP that a process made by itself, on a raw or packet socket.
        RawSocket = "raw_socket",
        /// TCP of no socket at all.
        NoSocket = "no_socket",
        /// A tunnel's packet or a tagged frame, in which TCP could hide.
        Encapsulated = "encapsulated",
        /// A packet that is cut off or contradicts itself.
        Malformed = "malformed",
        /// UDP, which the pod's options refuse.
        Udp = "udp",
        /// SCTP, which the pod's options refuse.
        Sctp = "sctp",
        /// A socket that would send past the interface's queue, and so past the guard.
        AroundGuard = "around_guard",
    }
}

/// How many counters there are for each CPU.
pub const COUNTERS: u32 = (Hook::COUNT * Verdict::COUNT * Reason::COUNT) as u32;

/// The place of a counter.
#[inline(always)]
pub const fn index(hook: Hook, verdict: Verdict, reason: Reason) -> u32 {
    (hook as u32 * Verdict::COUNT as u32 + verdict as u32) * Reason::COUNT as u32 + reason as u32
}

/// The counter at a place: [`index`] the other way round.
pub fn at(index: u32) -> Option<(Hook, Verdict, Reason)> {
    let index = index as usize;
    let (rest, reason) = (index / Reason::COUNT, index % Reason::COUNT);
    let (hook, verdict) = (rest / Verdict::COUNT, rest % Verdict::COUNT);
    Some((
        *Hook::ALL.get(hook)?,
        *Verdict::ALL.get(verdict)?,
        *Reason::ALL.get(reason)?,
    ))
}
