//! The workers' part of a pod: they carry its connections, and answer its DNS queries.

use std::{sync::Arc, time::Duration};

use redirect_common::ports;

use super::{Captured, PodError, Pods};
use crate::{
    dns,
    proxy::{PodContext, Workers, site::SiteId},
};

impl Pods {
    /// Has the workers carry the pod's connections: in place of what was `before`, whose connections drain. Returns the sockets
    /// of its DNS, if it `asks` there.
    pub(super) async fn join(
        &mut self,
        context: &Arc<PodContext>,
        site: SiteId,
        asks: bool,
        before: Option<Captured>,
        workers: &Workers,
    ) -> Result<Option<dns::Sockets>, PodError> {
        let (uid, drain) = (&context.pod.uid, self.shared.proxy.drain);
        let mut served = None;
        match before {
            Some(before) if before.asks_as(&context.pod) && before.site == site => {
                workers.rejoin(site, context, drain).await?;
                served = before.dns;
            }
            Some(before) => {
                workers.leave(before.site, uid, drain).await?;
                workers.join(site, context).await?;
            }
            None => workers.join(site, context).await?,
        }
        let serves = match (served, asks) {
            (None, true) => self.serve_dns(context, workers).await.map(Some),
            (Some(_), false) => workers
                .end_dns(uid)
                .await
                .map(|()| None)
                .map_err(Into::into),
            (served, _) => Ok(served),
        };
        if serves.is_err() {
            workers.leave(site, uid, Duration::ZERO).await?;
        }
        serves
    }

    /// Answers the pod's queries; returns the sockets.
    async fn serve_dns(
        &mut self,
        context: &Arc<PodContext>,
        workers: &Workers,
    ) -> Result<dns::Sockets, PodError> {
        let steered = self.capture.steers();
        let (sockets, is_shared) = match self.inherited.dns.remove(&context.pod.uid) {
            Some(inherited) => (inherited.inherit(&context.netns, steered), true),
            None => (dns::Sockets::open(&context.netns, steered), false),
        };
        let listen = |source| PodError::Listen {
            port: ports::DNS,
            netns: context.netns.path(),
            source,
        };
        let sockets = sockets.map_err(listen)?;
        let served = sockets.try_clone().map_err(listen)?;
        match is_shared {
            true => self.dns_later.push((context.clone(), served)),
            false => workers.serve_dns(context, served).await?,
        }
        Ok(sockets)
    }
}
