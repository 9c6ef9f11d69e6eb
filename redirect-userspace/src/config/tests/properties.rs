//! What holds for any configuration, and for any text.

use proptest::prelude::*;

use super::*;

/// Writes what [`parse`] reads.
fn render(config: &Config) -> String {
    let ms = |duration: Duration| format!("{}ms", duration.as_millis());
    let (capture, proxy, hbone) = (&config.capture, &config.proxy, &config.hbone);
    let address = |address: Option<SocketAddr>| {
        address.map_or("null".to_owned(), |address| format!("\"{address}\""))
    };
    let mut text = format!(
        "node: {:?}\ntrustDomain: {:?}\nclusterId: {:?}\nnetwork: {:?}\nworkers: {}\nstateDir: {:?}\nworkloads: {:?}\n",
        config.node,
        config.trust_domain,
        config.cluster_id,
        config.network,
        config.workers,
        config.state_dir,
        config.workloads.as_ref().expect("a file"),
    );
    text += &format!(
        "capture: {{backend: {}, bpffs: {:?}, cgroup: {}, events: {}, detachOnExit: {}}}\n",
        if capture.backend == Backend::Ebpf {
            "ebpf"
        } else {
            "none"
        },
        capture.bpffs,
        capture
            .cgroup
            .as_ref()
            .map_or("null".to_owned(), |path| format!("{path:?}")),
        capture.events,
        capture.detach_on_exit,
    );
    text += &format!(
        "proxy: {{hold: {}, connectTimeout: {}, drain: {}, maxConnectionsPerPod: {}}}\n",
        ms(proxy.hold),
        ms(proxy.connect_timeout),
        ms(proxy.drain),
        proxy.max_connections_per_pod,
    );
    text += &format!(
        "hbone: {{streamWindow: {}, maxStreamsPerTunnel: {}, handshakeTimeout: {}, idleTimeout: {}}}\n",
        hbone.stream_window,
        hbone.max_streams_per_tunnel,
        ms(hbone.handshake_timeout),
        ms(hbone.idle_timeout),
    );
    text += &match &config.identity {
        IdentityConfig::DevCa { dir, ttl } => format!(
            "identity: {{source: devCa, dir: {dir:?}, ttl: {}}}\n",
            ms(*ttl)
        ),
        IdentityConfig::Files { dir } => format!("identity: {{source: files, dir: {dir:?}}}\n"),
    };
    text += &format!(
        "admin: {{metrics: {}, readiness: {}}}\n",
        address(config.admin.metrics),
        address(config.admin.readiness),
    );
    text
}

prop_compose! {
    fn any_config()(
        node in "[a-z0-9]{1,8}(-[a-z0-9]{1,8})?",
        trust_domain in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}",
        (cluster_id, network) in ("[a-zA-Z0-9-]{0,10}", "[a-z0-9.-]{0,10}"),
        workers in 1usize..=1024,
        (state_dir, workloads, bpffs, dir) in (path(), path(), path(), path()),
        (cgroup, events, detach_on_exit, ebpf) in (prop::option::of(path()), any::<bool>(), any::<bool>(), any::<bool>()),
        (hold, connect, drain, ttl) in (0u64..1 << 30, 1u64..1 << 30, 0u64..1 << 30, prop::option::of(1000u64..1 << 30)),
        max_connections_per_pod in 1usize..=1_000_000,
        (window, streams) in (65_535u32..1 << 24, 1u32..=127),
        metrics in prop::option::of(any::<std::net::SocketAddrV4>().prop_map(SocketAddr::V4)),
    ) -> Config {
        let ms = Duration::from_millis;
        let socket = Path::new(&state_dir).join("agent.sock");
        Config {
            node, trust_domain, cluster_id, network, state_dir, workloads: Some(workloads),
            workers: NonZeroUsize::new(workers).unwrap(),
            capture: CaptureConfig {
                part: Part::Whole,
                backend: if ebpf { Backend::Ebpf } else { Backend::None },
                mode: Mode::Shared, iptables: IptablesVariant::Auto, leak_guard: true,
                probers: ProberCgroups::Auto, bpffs, mount_bpffs: true, abi: redirect_common::ABI_VERSION, cgroup, exempt_uid: None, events, detach_on_exit,
                verify_interval: ms(10_000),
            },
            proxy: ProxyConfig { hold: ms(hold), connect_timeout: ms(connect), drain: ms(drain), max_connections_per_pod },
            hbone: HboneConfig {
                stream_window: window, max_streams_per_tunnel: streams,
                handshake_timeout: ms(connect), idle_timeout: ms(hold + 1),
                ..parse(LEAST).unwrap().hbone
            },
            dns: parse(LEAST).unwrap().dns,
            identity: match ttl {
                Some(ttl) => IdentityConfig::DevCa { dir, ttl: ms(ttl) },
                None => IdentityConfig::Files { dir },
            },
            admin: AdminConfig { metrics, readiness: None },
            log: LogConfig { filter: "info".into(), format: LogFormat::Text },
            agent: super::agent::without_settings(Some(socket)),
            pods: Vec::new(),
        }
    }
}

fn path() -> impl Strategy<Value = PathBuf> {
    "(/[a-zA-Z0-9_. -]{1,6}[a-z]){1,4}".prop_map(PathBuf::from)
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(config in any_config()) {
        let text = render(&config);
        prop_assert_eq!(parse(&text).map_err(|e| format!("{e}\n{text}")), Ok(config));
    }

    #[test]
    fn rubbish_is_refused_without_a_panic(text in "\\PC*") {
        prop_assert!(parse(&text).is_err());
        prop_assert!(Config::parse(Path::new("x"), &text, Format::Toml, &host(), &flags()).is_err());
    }

    /// Valid text with one piece replaced: an answer, whichever.
    #[test]
    fn damaged_files_do_not_panic(start in 0usize..EVERYTHING.len(), len in 0usize..40, with in "[-\\[\\]{}:,a0.\n \"]{0,6}") {
        let end = (start + len).min(EVERYTHING.len());
        let text = format!("{}{with}{}", &EVERYTHING[..start], &EVERYTHING[end..]);
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
