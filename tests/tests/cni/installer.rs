//! `redirect cni install|uninstall|watch` on real folders.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use redirect_tests::{Process, Testbed, cni_binary, redirect_binary};

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"a\",\n  \"plugins\": [\n    {\"type\":   \"bridge\", \"x\": 1.50}\n  ]\n}\n";
const SINGLE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"s\",\t\"type\": \"ptp\"}\n\n";

/// A node's folders.
struct Folders {
    net_dir: PathBuf,
    bin_dir: PathBuf,
    _bed: Testbed,
}

impl Folders {
    fn with(files: &[(&str, &str)]) -> Self {
        let bed = Testbed::new();
        let (net_dir, bin_dir) = (bed.directory().join("net.d"), bed.directory().join("bin"));
        fs::create_dir_all(&net_dir).unwrap();
        for (name, text) in files {
            fs::write(net_dir.join(name), text).unwrap();
        }
        Self {
            net_dir,
            bin_dir,
            _bed: bed,
        }
    }

    fn command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(redirect_binary());
        command.args(["cni", verb, "--net-dir"]).arg(&self.net_dir);
        command.arg("--bin-dir").arg(&self.bin_dir).args(more);
        if verb != "uninstall" {
            command.arg("--binary").arg(cni_binary());
        }
        command
    }

    fn run(&self, verb: &str, more: &[&str]) -> Output {
        self.command(verb, more).output().expect("start redirect")
    }

    #[track_caller]
    fn succeed(&self, verb: &str, more: &[&str]) -> String {
        let output = self.run(verb, more);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn net(&self) -> BTreeMap<String, String> {
        names(&self.net_dir)
            .into_iter()
            .map(|name| {
                let text = fs::read_to_string(self.net_dir.join(&name)).unwrap();
                (name, text)
            })
            .collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.net_dir.join(name)).unwrap_or_default()
    }

    fn plugin(&self) -> PathBuf {
        self.bin_dir.join("redirect-cni")
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_installed_is_taken_away_to_the_byte() {
    for (files, own, primary) in [
        (
            vec![("10-a.conflist", LIST), ("20-b.conflist", LIST)],
            None,
            "10-a.conflist",
        ),
        (
            vec![("10-s.conf", SINGLE), ("README", "x")],
            None,
            "10-s.conflist",
        ),
        (
            vec![("10-a.conflist", LIST)],
            Some("00-redirect.conflist"),
            "00-redirect.conflist",
        ),
        (
            vec![("10-s.conf", SINGLE)],
            Some("00-redirect.conflist"),
            "00-redirect.conflist",
        ),
    ] {
        let node = Folders::with(&files);
        let before = node.net();
        let own: Vec<&str> = own
            .into_iter()
            .flat_map(|own| ["--own-conflist", own])
            .collect();
        let said = node.succeed("install", &own);
        assert!(said.contains(primary) && said.contains("copied"), "{said}");
        assert!(node.read(primary).contains("redirect-cni"), "{files:?}");
        let mode = fs::metadata(node.plugin()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(
            fs::read(node.plugin()).unwrap(),
            fs::read(cni_binary()).unwrap()
        );
        // The second time nothing is touched.
        let installed = node.net();
        let inodes = || {
            names(&node.net_dir)
                .iter()
                .map(|n| fs::metadata(node.net_dir.join(n)).unwrap().ino())
                .collect::<Vec<_>>()
        };
        let (files_before, plugin_before) = (inodes(), fs::metadata(node.plugin()).unwrap().ino());
        let said = node.succeed("install", &own);
        assert!(
            !said.contains("wrote") && !said.contains("copied"),
            "{said}"
        );
        assert_eq!((node.net(), inodes()), (installed, files_before));
        assert_eq!(fs::metadata(node.plugin()).unwrap().ino(), plugin_before);

        node.succeed("uninstall", &[]);
        assert_eq!(node.net(), before);
        assert_eq!(names(&node.bin_dir), Vec::<String>::new());
        // Nothing is left to do.
        assert_eq!(node.succeed("uninstall", &[]), "");
    }
}

#[test]
fn another_option_replaces_the_entry() {
    let node = Folders::with(&[("10-a.conflist", LIST)]);
    node.succeed("install", &["--socket", "/run/one.sock"]);
    node.succeed("install", &["--socket", "/run/two.sock"]);
    let list = node.read("10-a.conflist");
    assert!(
        list.contains("two.sock") && !list.contains("one.sock"),
        "{list}"
    );
    assert_eq!(list.matches("redirect-cni").count(), 1);
}

#[test]
fn what_is_broken_is_left_alone_and_named() {
    let node = Folders::with(&[
        ("05-x.conflist", "{\"plugins\": ["),
        ("10-a.conflist", LIST),
    ]);
    let output = node.run("install", &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("left alone: 05-x.conflist"), "{said}");
    assert_eq!(node.read("05-x.conflist"), "{\"plugins\": [");
    // A runtime takes the next one, and so do we.
    assert!(node.read("10-a.conflist").contains("redirect-cni"));

    // Broken after it was installed: what still names the plugin must find it.
    let broken = node.read("10-a.conflist").replace(']', "");
    fs::write(node.net_dir.join("10-a.conflist"), &broken).unwrap();
    let output = node.run("uninstall", &[]);
    assert!(!output.status.success());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("left alone: 10-a.conflist")
    );
    assert_eq!(node.read("10-a.conflist"), broken);
    assert!(node.plugin().exists());
}

#[test]
fn nothing_to_be_chained_to() {
    for files in [
        vec![],
        vec![(
            "10-a.conflist",
            "{\"cniVersion\":\"0.2.0\",\"plugins\":[{\"type\":\"bridge\"}]}",
        )],
    ] {
        let node = Folders::with(&files);
        let before = node.net();
        let output = node.run("install", &[]);
        assert!(!output.status.success(), "{files:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no network configuration"));
        assert_eq!(node.net(), before);
    }
}

#[test]
fn a_watch_mends_what_others_change_until_it_is_told_to_end() {
    let node = Folders::with(&[]);
    let mut watch = Process::spawn("cni watch", node.command("watch", &[]));
    let mut seen = 0;
    let mut wait = |watch: &Process, what: &str| {
        let limit = std::time::Duration::from_secs(20);
        let found = |line: &str| line.contains(what).then_some(());
        seen = watch.wait_line_from(seen, what, limit, found).0 + 1;
    };
    wait(&watch, "copied");
    let list = node.net_dir.join("10-a.conflist");
    // The network comes after us.
    fs::write(&list, LIST).unwrap();
    wait(&watch, "pods start through");
    assert!(node.read("10-a.conflist").contains("redirect-cni"));
    // Its own installer writes its file again.
    fs::write(&list, LIST.replace("bridge", "macvlan")).unwrap();
    wait(&watch, "pods start through");
    let text = node.read("10-a.conflist");
    assert!(
        text.contains("redirect-cni") && text.contains("macvlan"),
        "{text}"
    );
    fs::remove_file(node.plugin()).unwrap();
    wait(&watch, "copied");
    assert!(node.plugin().exists());
    fs::write(&list, "{").unwrap();
    wait(&watch, "left alone: 10-a.conflist");
    assert_eq!(node.read("10-a.conflist"), "{");
    fs::write(&list, LIST).unwrap();
    wait(&watch, "pods start through");
    watch.signal(nix::sys::signal::Signal::SIGTERM);
    let status = watch.wait_for(std::time::Duration::from_secs(20));
    assert!(status.success(), "{status}");
    assert!(
        node.read("10-a.conflist").contains("redirect-cni"),
        "it stays for the next boot"
    );
}
