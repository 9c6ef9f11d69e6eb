//! The names that a queried name may stand for, as Kubernetes' clients make names of short ones: pure.
//!
//! A client appends the search domains of its namespace to a name of few dots, and asks for each: those of services are full
//! names by then. It does so with names from outside of the cluster, too, and asks for `example.com.default.svc.cluster.local`
//! first: where `example.com` is a service of the mesh, that is answered at once, as an alias of it. A client without search
//! domains asks for a short name as it is.

/// A name to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub hostname: String,
    /// It is what is left of the queried name without a search domain: the answer has to say so, by an alias.
    pub is_stripped: bool,
}

/// What `name`, in lower case and without the last dot, may stand for in a namespace, the best first.
pub fn candidates(name: &str, namespace: &str, domain: &str) -> Vec<Candidate> {
    let plain = |hostname: String| Candidate {
        hostname,
        is_stripped: false,
    };
    let mut all = vec![plain(name.to_owned())];
    let services = format!("svc.{domain}");
    let searched = [
        format!("{namespace}.{services}"),
        services.clone(),
        domain.to_owned(),
    ];
    let stripped = searched.iter().filter_map(|suffix| {
        let rest = name.strip_suffix(suffix.as_str())?.strip_suffix('.')?;
        (!rest.is_empty()).then(|| Candidate {
            hostname: rest.to_owned(),
            is_stripped: true,
        })
    });
    all.extend(stripped);
    let labels: Vec<&str> = name.split('.').collect();
    match labels[..] {
        [service] => all.push(plain(format!("{service}.{namespace}.{services}"))),
        [_, _] => all.push(plain(format!("{name}.{services}"))),
        [_, _, "svc"] => all.push(plain(format!("{name}.{domain}"))),
        _ => {}
    }
    all
}

/// The wildcard names that cover `hostname`, the longest first.
pub fn wildcards(hostname: &str) -> impl Iterator<Item = String> + '_ {
    let dots = hostname.match_indices('.').map(|(at, _)| at);
    dots.map(|at| format!("*{}", &hostname[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_what_kubernetes_makes_of_them() {
        let cases: &[(&str, &[&str])] = &[
            (
                "web.shop.svc.cluster.local",
                &["=web.shop.svc.cluster.local", "/web", "/web.shop.svc"],
            ),
            (
                "web.default.svc.cluster.local",
                &[
                    "=web.default.svc.cluster.local",
                    "/web.default",
                    "/web.default.svc",
                ],
            ),
            (
                "example.com.shop.svc.cluster.local",
                &[
                    "=example.com.shop.svc.cluster.local",
                    "/example.com",
                    "/example.com.shop.svc",
                ],
            ),
            (
                "example.com.cluster.local",
                &["=example.com.cluster.local", "/example.com"],
            ),
            ("web", &["=web", "=web.shop.svc.cluster.local"]),
            (
                "web.default",
                &["=web.default", "=web.default.svc.cluster.local"],
            ),
            (
                "web.default.svc",
                &["=web.default.svc", "=web.default.svc.cluster.local"],
            ),
            ("a.b.c", &["=a.b.c"]),
            ("a.b.c.d", &["=a.b.c.d"]),
            (
                "cluster.local",
                &["=cluster.local", "=cluster.local.svc.cluster.local"],
            ),
            (
                "notcluster.local",
                &["=notcluster.local", "=notcluster.local.svc.cluster.local"],
            ),
        ];
        for (name, expected) in cases {
            let found: Vec<_> = candidates(name, "shop", "cluster.local")
                .into_iter()
                .map(|candidate| {
                    let mark = if candidate.is_stripped { '/' } else { '=' };
                    format!("{mark}{}", candidate.hostname)
                })
                .collect();
            // Of a service's own name, two search domains are a part: what is left then is too short to be one, and harmless.
            let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
            let missing: Vec<_> = expected.iter().filter(|e| !found.contains(e)).collect();
            assert!(
                missing.is_empty() && found[0] == expected[0],
                "{name}: {found:?}"
            );
        }
    }

    #[test]
    fn wildcards_from_long_to_short() {
        let all: Vec<_> = wildcards("a.b.example.com").collect();
        assert_eq!(all, ["*.b.example.com", "*.example.com", "*.com"]);
        assert_eq!(wildcards("com").count(), 0);
    }
}
