//! What an inbound CONNECT asks for: a pure check of its `:authority`.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::StatusCode;

use super::ports;
use crate::{pod::Pod, workload::Workloads};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority is not HOST:PORT")]
    Malformed,
    #[error("the authority has no port")]
    NoPort,
    #[error("the authority names an address that is not the pod's")]
    WrongAddress,
    #[error("the authority names a loopback address")]
    Loopback,
    #[error("the authority names a port of the proxy itself")]
    OwnPort,
    #[error("the authority names an address and port that the workload does not serve")]
    NotServed,
    #[error("the authority names a host that is no service of the pod")]
    UnknownHost,
    #[error("the authority names a port that the service does not have")]
    UnknownServicePort,
    #[error("the authority names a host, and no workload data is loaded yet")]
    NoWorkloads,
}

impl AuthorityError {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed
            | Self::NoPort
            | Self::WrongAddress
            | Self::Loopback
            | Self::OwnPort
            | Self::NotServed => StatusCode::BAD_REQUEST,
            Self::UnknownHost | Self::UnknownServicePort | Self::NoWorkloads => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// For counters and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed_authority",
            Self::NoPort => "authority_without_port",
            Self::WrongAddress => "wrong_address",
            Self::Loopback => "loopback",
            Self::OwnPort => "own_port",
            Self::NotServed => "not_served",
            Self::UnknownHost => "unknown_host",
            Self::UnknownServicePort => "unknown_service_port",
            Self::NoWorkloads => "no_workloads",
        }
    }
}

/// The address of the app that the authority of a CONNECT to this pod stands for.
pub fn inbound_target(
    workloads: Option<&Workloads>,
    pod: &Pod,
    authority: &str,
) -> Result<SocketAddr, AuthorityError> {
    let (host, port) = split(authority)?;
    let target = match host {
        Host::Ip(ip) => {
            let ip = ip.to_canonical();
            if ip.is_loopback() {
                return Err(AuthorityError::Loopback);
            }
            if !pod.ips.contains(&ip) {
                return Err(AuthorityError::WrongAddress);
            }
            SocketAddr::new(ip, port)
        }
        Host::Name(name) => by_name(
            workloads.ok_or(AuthorityError::NoWorkloads)?,
            pod,
            name,
            port,
        )?,
    };
    if ports::is_own(target.port()) {
        return Err(AuthorityError::OwnPort);
    }
    // What else is at an address that it shares is not the workload's.
    match &pod.cgroup_only {
        Some(services) if !services.inbound.contains(&target) => Err(AuthorityError::NotServed),
        _ => Ok(target),
    }
}

/// The service of that name that has the pod as an endpoint; one in the pod's own namespace first.
fn by_name(
    workloads: &Workloads,
    pod: &Pod,
    name: &str,
    port: u16,
) -> Result<SocketAddr, AuthorityError> {
    let name = name.to_ascii_lowercase();
    let selecting = workloads
        .services_named(&name)
        .iter()
        .filter_map(|service| {
            let endpoint = service.endpoint_of(&pod.namespace, &pod.name, &pod.ips)?;
            Some((*service.namespace != *pod.namespace, service, endpoint))
        });
    let (_, service, endpoint) = selecting
        .min_by_key(|(foreign, ..)| *foreign)
        .ok_or(AuthorityError::UnknownHost)?;
    if !service.ports.contains_key(&port) {
        return Err(AuthorityError::UnknownServicePort);
    }
    let port = service
        .target_port(endpoint, port)
        .ok_or(AuthorityError::UnknownServicePort)?;
    let ip = pod.ips.first().ok_or(AuthorityError::UnknownHost)?;
    Ok(SocketAddr::new(*ip, port))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host<'a> {
    Ip(IpAddr),
    Name(&'a str),
}

/// `host ":" port` of RFC 3986, section 3.2, without userinfo; an IPv6 address in brackets and without a zone.
fn split(authority: &str) -> Result<(Host<'_>, u16), AuthorityError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (ip, after) = rest.split_once(']').ok_or(AuthorityError::Malformed)?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| AuthorityError::Malformed)?;
            let port = match after.strip_prefix(':') {
                Some(port) => port,
                None if after.is_empty() => return Err(AuthorityError::NoPort),
                None => return Err(AuthorityError::Malformed),
            };
            (Host::Ip(ip.into()), port)
        }
        None => {
            let (host, port) = match authority.rsplit_once(':') {
                Some(parts) => parts,
                None if is_name(authority) => return Err(AuthorityError::NoPort),
                None => return Err(AuthorityError::Malformed),
            };
            (bare_host(host)?, port)
        }
    };
    if port.is_empty() {
        return Err(AuthorityError::NoPort);
    }
    // `parse` alone would take `+80`.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(AuthorityError::Malformed);
    }
    match port.parse() {
        Ok(0) | Err(_) => Err(AuthorityError::Malformed),
        Ok(port) => Ok((host, port)),
    }
}

fn bare_host(host: &str) -> Result<Host<'_>, AuthorityError> {
    if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    // All digits and dots, but no address (such as 10.0.0.300 or 0x7f.1): some resolver might make one of it.
    let last = host
        .trim_end_matches('.')
        .rsplit('.')
        .next()
        .unwrap_or_default();
    let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    if is_name(host) && !numeric {
        Ok(Host::Name(host))
    } else {
        Err(AuthorityError::Malformed)
    }
}

fn is_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !host.is_empty() && host.len() <= 253 && host.bytes().all(allowed)
}
