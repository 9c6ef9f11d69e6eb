//! The cluster's certificates and kubeconfigs: one authority, and a leaf for everybody who speaks to the API server.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::program::output;

pub struct Certs {
    folder: PathBuf,
    server: String,
}

impl Certs {
    /// A new authority, the key of service accounts and the certificate of the API server at `address`.
    pub fn create(folder: &Path, address: &str, service: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let certs = Self {
            folder: folder.to_owned(),
            server: format!("https://{address}:443"),
        };
        certs.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=rdt-k8s",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ])?;
        certs.openssl(&["genrsa", "-out", "service-accounts.key", "2048"])?;
        let names = format!(
            "subjectAltName=IP:{address},IP:{service},IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,\
             DNS:kubernetes.default.svc"
        );
        certs.leaf("apiserver", "/CN=kube-apiserver", Some(&names))?;
        certs.leaf("kubelet-client", "/O=system:masters/CN=apiserver", None)?;
        Ok(certs)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A kubeconfig of the user that `subject` names, in the folder as `NAME.kubeconfig`.
    pub fn kubeconfig(&self, name: &str, subject: &str) -> Result<PathBuf> {
        self.leaf(name, subject, None)?;
        let cluster =
            json!({ "server": self.server, "certificate-authority": self.path("ca.crt") });
        let user = json!({
            "client-certificate": self.path(&format!("{name}.crt")),
            "client-key": self.path(&format!("{name}.key")),
        });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "rdt", "cluster": cluster }],
            "users": [{ "name": name, "user": user }],
            "contexts": [{ "name": "rdt", "context": { "cluster": "rdt", "user": name } }],
            "current-context": "rdt",
        });
        let path = self.path(&format!("{name}.kubeconfig"));
        fs::write(&path, config.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn leaf(&self, name: &str, subject: &str, names: Option<&str>) -> Result<()> {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        let mut args = vec![
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ];
        if let Some(names) = names {
            args.extend(["-addext", names]);
        }
        self.openssl(&args)
    }

    fn openssl(&self, args: &[&str]) -> Result<()> {
        output(Command::new("openssl").current_dir(&self.folder).args(args)).map(|_| ())
    }
}
