use super::*;

fn read(annotations: &[(&str, &str)]) -> (PodOptions, Vec<String>) {
    let annotations = annotations
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    options(&annotations.collect())
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

#[test]
fn each_annotation_sets_its_option_and_no_other() {
    let d = PodOptions::default();
    #[rustfmt::skip]
    let cases: Vec<(&str, &str, PodOptions)> = vec![
        ("redirect.dev/exclude-outbound-ports", "22, 443,22", PodOptions { exclude_outbound_ports: vec![22, 443], ..d.clone() }),
        ("redirect.dev/exclude-outbound-cidrs", "10.0.0.0/8,192.0.2.1,fd00::/8", PodOptions { exclude_outbound_cidrs: nets(&["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]), ..d.clone() }),
        ("redirect.dev/include-outbound-ports", "80", PodOptions { include_outbound_ports: vec![80], ..d.clone() }),
        ("redirect.dev/include-outbound-cidrs", "10.0.0.0/8", PodOptions { include_outbound_cidrs: nets(&["10.0.0.0/8"]), ..d.clone() }),
        ("redirect.dev/exclude-inbound-ports", "9090", PodOptions { exclude_inbound_ports: vec![9090], ..d.clone() }),
        ("redirect.dev/exclude-inbound-cidrs", "10.0.0.0/8", PodOptions { exclude_inbound_cidrs: nets(&["10.0.0.0/8"]), ..d.clone() }),
        ("redirect.dev/include-inbound-ports", "80", PodOptions { include_inbound_ports: vec![80], ..d.clone() }),
        ("redirect.dev/include-inbound-cidrs", "10.0.0.0/8", PodOptions { include_inbound_cidrs: nets(&["10.0.0.0/8"]), ..d.clone() }),
        ("redirect.dev/bypass-inbound", "true", PodOptions { bypass_inbound: true, ..d.clone() }),
        ("redirect.dev/capture-dns", "false", PodOptions { capture_dns: false, ..d.clone() }),
        ("redirect.dev/preserve-client-ip", "false", PodOptions { preserve_client_ip: false, ..d.clone() }),
        ("redirect.dev/refuse-udp", "true", PodOptions { refuse_udp: true, ..d.clone() }),
        ("ambient.istio.io/bypass-inbound-capture", "true", PodOptions { bypass_inbound: true, ..d.clone() }),
        ("ambient.istio.io/dns-capture", "false", PodOptions { capture_dns: false, ..d.clone() }),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "22", PodOptions { exclude_outbound_ports: vec![22], ..d.clone() }),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/8", PodOptions { exclude_outbound_cidrs: nets(&["10.0.0.0/8"]), ..d.clone() }),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/8", PodOptions { include_outbound_cidrs: nets(&["10.0.0.0/8"]), ..d.clone() }),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*", d.clone()),
        // All networks are in there, so that ports add nothing.
        ("traffic.sidecar.istio.io/includeOutboundPorts", "80", d.clone()),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "9090", PodOptions { exclude_inbound_ports: vec![9090], ..d.clone() }),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80", PodOptions { include_inbound_ports: vec![80], ..d.clone() }),
        ("traffic.sidecar.istio.io/includeInboundPorts", "*", d.clone()),
        ("somebody.example/else", "x", d.clone()),
        (REDIRECTION, ENABLED, d.clone()),
    ];
    for (name, text, expected) in cases {
        assert_eq!(
            read(&[(name, text)]),
            (expected, Vec::new()),
            "{name}: {text}"
        );
    }
}

#[test]
fn ours_come_before_istios() {
    let (options, complaints) = read(&[
        ("redirect.dev/exclude-outbound-ports", "1"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "2"),
        ("redirect.dev/capture-dns", "true"),
        ("ambient.istio.io/dns-capture", "false"),
        ("redirect.dev/include-outbound-ports", "3"),
        (
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "10.0.0.0/8",
        ),
    ]);
    let expected = PodOptions {
        exclude_outbound_ports: vec![1],
        include_outbound_ports: vec![3],
        ..PodOptions::default()
    };
    assert_eq!((options, complaints), (expected, Vec::new()));
    let (options, _) = read(&[
        (
            "traffic.sidecar.istio.io/includeOutboundIPRanges",
            "10.0.0.0/8",
        ),
        ("traffic.sidecar.istio.io/includeOutboundPorts", "80"),
    ]);
    assert_eq!(options.include_outbound_ports, [80]);
    assert_eq!(options.include_outbound_cidrs, nets(&["10.0.0.0/8"]));
}

#[test]
fn what_is_malformed_is_complained_of_and_lets_nothing_through() {
    let lists = [
        "exclude-outbound-",
        "include-outbound-",
        "exclude-inbound-",
        "include-inbound-",
    ];
    let mut cases = Vec::new();
    for list in lists {
        for bad in ["", "0", "65536", "80,", "80;81", "http", "-1", "80-90"] {
            cases.push((format!("{OURS}{list}ports"), bad));
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/8,x",
            "fd00::/129",
        ] {
            cases.push((format!("{OURS}{list}cidrs"), bad));
        }
    }
    // Everything may not be excluded by a sign; a network of all is a deliberate act.
    cases.push((format!("{OURS}exclude-outbound-cidrs"), "*"));
    cases.push((
        "traffic.sidecar.istio.io/includeInboundPorts".to_owned(),
        "",
    ));
    for name in ["bypass-inbound", "capture-dns", "preserve-client-ip"] {
        cases.push((format!("{OURS}{name}"), "yes"));
    }
    cases.push((
        "ambient.istio.io/bypass-inbound-capture".to_owned(),
        "TRUE ",
    ));
    for (name, text) in cases {
        let (options, complaints) = read(&[(&name, text)]);
        assert_eq!(options, PodOptions::default(), "{name}: {text:?}");
        assert_eq!(complaints.len(), 1, "{name}: {text:?}: {complaints:?}");
        assert!(complaints[0].contains(&name), "{complaints:?}");
    }
}

#[test]
fn a_slip_in_a_name_is_seen() {
    let (options, complaints) = read(&[("redirect.dev/exclude-outbound-port", "80")]);
    assert_eq!(options, PodOptions::default());
    assert!(complaints[0].contains("redirect.dev/exclude-outbound-port:"));
}

#[test]
fn the_table_of_names_is_the_list_of_what_is_read() {
    for name in NAMES {
        let (_, complaints) = read(&[(&format!("{OURS}{name}"), "no such value")]);
        assert_eq!(complaints.len(), 1, "{name} is not read: {complaints:?}");
        assert!(complaints[0].contains("is not heeded"), "{complaints:?}");
    }
}
