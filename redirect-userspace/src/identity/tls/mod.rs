//! TLS configurations: TLS 1.3 only, mutual, ALPN `h2`, no server name, no resumption.
//!
//! A session ticket would let a certificate outlive its check, so both sides do without.

mod verify;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

pub use verify::{Peer, PeerError, check_own_chain, handshake_reason, peer};

use super::{Identity, IdentityError, IdentityStore, Roots, clock::TlsTime};

const ALPN: &[u8] = b"h2";
/// Accepted sets come and go with workloads: the cache starts over rather than grow past this.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Makes and caches TLS configurations. They read the current certificate at each handshake, and are made anew when the
/// roots change.
pub struct TlsConfigs {
    store: Arc<IdentityStore>,
    trust_domain: Arc<str>,
    cache: Mutex<Cache>,
}

/// Who connects, and whom it accepts.
type ClientKey = (Identity, Arc<[Arc<str>]>);

#[derive(Default)]
struct Cache {
    roots: [u8; 32],
    servers: HashMap<Identity, Arc<ServerConfig>>,
    clients: HashMap<ClientKey, Arc<ClientConfig>>,
}

impl TlsConfigs {
    /// Clients of another trust domain than this are refused.
    pub fn new(store: Arc<IdentityStore>, trust_domain: &str) -> Self {
        Self {
            store,
            trust_domain: trust_domain.into(),
            cache: Mutex::default(),
        }
    }

    /// For the inbound side of a pod. Ask for each handshake: it is a look-up.
    pub fn server(&self, identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
        self.store.get(identity)?;
        let roots = self.store.roots();
        if let Some(config) = self.with_cache(&roots, |cache| cache.servers.get(identity).cloned())
        {
            return Ok(config);
        }
        let made = self
            .make_server(identity, &roots)
            .map_err(|source| tls_error(identity, source))?;
        self.with_cache(&roots, |cache| {
            cache.servers.insert(identity.clone(), made.clone())
        });
        Ok(made)
    }

    /// For a tunnel from `identity` to a server that must prove to be one of `accepted` (SPIFFE URIs, compared exactly).
    pub fn client(
        &self,
        identity: &Identity,
        accepted: &Arc<[Arc<str>]>,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        self.store.get(identity)?;
        let roots = self.store.roots();
        let key = (identity.clone(), accepted.clone());
        if let Some(config) = self.with_cache(&roots, |cache| cache.clients.get(&key).cloned()) {
            return Ok(config);
        }
        let made = self
            .make_client(identity, accepted, &roots)
            .map_err(|source| tls_error(identity, source))?;
        self.with_cache(&roots, |cache| {
            if cache.clients.len() >= MAX_CLIENT_CONFIGS {
                cache.clients.clear();
            }
            cache.clients.insert(key, made.clone());
        });
        Ok(made)
    }

    /// What rustls wants as the server's name: an address, which is never sent. The verifier does not look at it.
    pub fn server_name() -> ServerName<'static> {
        ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
    }

    fn make_server(
        &self,
        identity: &Identity,
        roots: &Arc<Roots>,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let verifier = verify::ClientVerifier {
            chain,
            trust_domain: self.trust_domain.clone(),
        };
        let time = Arc::new(TlsTime(self.store.clock()));
        let mut config = ServerConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Current {
                store: self.store.clone(),
                identity: identity.clone(),
            }));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // The record layer is ours.
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }

    fn make_client(
        &self,
        identity: &Identity,
        accepted: &Arc<[Arc<str>]>,
        roots: &Arc<Roots>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let time = Arc::new(TlsTime(self.store.clock()));
        let verifier = verify::ServerVerifier {
            roots: roots.clone(),
            accepted: accepted.clone(),
        };
        let mut config = ClientConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Current {
                store: self.store.clone(),
                identity: identity.clone(),
            }));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }

    fn with_cache<T>(&self, roots: &Roots, f: impl FnOnce(&mut Cache) -> T) -> T {
        // Nothing panics while it is held.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.roots != roots.fingerprint {
            *cache = Cache {
                roots: roots.fingerprint,
                ..Cache::default()
            };
        }
        f(&mut cache)
    }
}

fn tls_error(identity: &Identity, source: rustls::Error) -> IdentityError {
    IdentityError::Tls {
        identity: identity.clone(),
        source,
    }
}

/// aws-lc-rs, with the two AES-GCM suites of TLS 1.3 only.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            Arc::new(CryptoProvider {
                cipher_suites: vec![
                    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                ],
                ..aws_lc_rs::default_provider()
            })
        })
        .clone()
}

/// Presents the certificate that the store holds at the moment of the handshake.
struct Current {
    store: Arc<IdentityStore>,
    identity: Identity,
}

impl Current {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        // Without one the handshake fails, which the caller reports.
        self.store
            .get(&self.identity)
            .ok()
            .map(|certificate| certificate.certified.clone())
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Whether the roots still vouch for a peer's chain: for tunnels that were made before the roots changed.
pub fn still_trusted(chain: &[CertificateDer<'_>], roots: &Roots, now: SystemTime) -> bool {
    verify::check_chain(chain, roots, now).is_ok()
}
