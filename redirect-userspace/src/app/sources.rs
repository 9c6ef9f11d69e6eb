//! Those that say which pods are wanted: which there are by the configuration, and the socket that some of them speak to.

use std::sync::Arc;

use anyhow::Context as _;

use crate::{
    config::{Config, Mode},
    node::{
        agent::Agent,
        attachments::Attachments,
        by_cni::ByCni,
        kubernetes::{Connected, Settings},
        requests::{Parts, Requests},
        socket::{Limits, Socket},
        source::{Enrolment, Source},
        zds::client,
    },
    pod::PodOptions,
};

/// The sources that will speak, or have spoken already.
pub fn of(config: &Config) -> Vec<Source> {
    let agent = &config.agent;
    let asked = [
        (true, Source::Config),
        (has_socket(config), Source::Command),
        (agent.kubernetes.is_some(), Source::Kubernetes),
        (agent.cni.enroll && agent.kubernetes.is_none(), Source::Cni),
        (agent.zds.connect.is_some(), Source::Zds),
    ];
    let asked = asked.into_iter().filter(|(is_asked, _)| *is_asked);
    asked.map(|(_, source)| source).collect()
}

/// A proxy in a pod has one pod, and nobody to tell it of others.
fn has_socket(config: &Config) -> bool {
    config.agent.socket.is_some() && config.capture.mode != Mode::Dedicated
}

/// The Kubernetes API, if it is to be asked.
pub async fn kubernetes(config: &Config) -> anyhow::Result<Option<Connected>> {
    let Some(settings) = Settings::of(config) else {
        return Ok(None);
    };
    let connected = Connected::new(settings).await.context("agent.kubernetes")?;
    Ok(Some(connected))
}

/// Whom the CNI plugin's requests ask. With the Kubernetes API, the agent is told of its pods from now on.
pub fn enrolment(
    config: &Config,
    kubernetes: Option<Connected>,
    agent: &Agent,
) -> Arc<dyn Enrolment> {
    if let Some(connected) = kubernetes {
        return connected.keep(agent.clone());
    }
    Arc::new(ByCni {
        config: config.agent.cni.clone(),
        trust_domain: config.trust_domain.clone(),
    })
}

/// Serves the CNI plugin and the command line, if there is to be a socket. To be called inside the daemon's runtime.
pub fn serve_socket(
    config: &Config,
    agent: &Agent,
    enrolment: Arc<dyn Enrolment>,
    attachments: Arc<Attachments>,
) -> anyhow::Result<()> {
    let Some(path) = config
        .agent
        .socket
        .as_deref()
        .filter(|_| has_socket(config))
    else {
        return Ok(());
    };
    let requests = Requests::new(Parts {
        agent: agent.clone(),
        enrolment,
        attachments,
        host: config.agent.host.clone(),
        trust_domain: config.trust_domain.clone(),
        mode: config.capture.mode,
    });
    let socket = Socket::bind(path).context("the agent's socket")?;
    tokio::spawn(socket.serve(Limits::default(), move |request| {
        let requests = requests.clone();
        async move { requests.answer(request).await }
    }));
    Ok(())
}

/// Lets another node's agent drive our proxy, if that is wanted. To be called inside the daemon's runtime.
pub fn follow_zds(config: &Config, agent: &Agent) {
    let Some(socket) = config.agent.zds.connect.clone() else {
        return;
    };
    let setting = client::Setting {
        socket,
        trust_domain: config.trust_domain.clone(),
        options: PodOptions {
            capture_dns: config.dns.enabled,
            ..PodOptions::default()
        },
    };
    tokio::spawn(client::run(agent.clone(), setting));
}

/// The sandboxes that an earlier daemon was told of.
pub fn attachments(config: &Config) -> anyhow::Result<Arc<Attachments>> {
    Ok(Arc::new(Attachments::open(&config.state_dir)?))
}
