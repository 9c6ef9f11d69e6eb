//! What is in `deploy`: the chart as helm renders it, compared with files, and what the daemon says of its configuration.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use redirect_tests::{Testbed, redirect_binary};

/// Rendered with these settings; the files are beside this one. `UPDATE_GOLDEN=1` writes them anew.
const CASES: [(&str, &[&str]); 5] = [
    ("default", &[]),
    (
        "small",
        &[
            "--set",
            "identity.source=devCa,capture.backend=nftables,appArmor=field,workloadsFromKubernetes=false,config.dns.enabled=false,updateStrategy.rollingUpdate=null",
        ],
    ),
    ("openshift", &["--values", "platforms/openshift.yaml"]),
    (
        "gke",
        &[
            "--values",
            "platforms/gke.yaml",
            "--set",
            "podMonitor.enabled=true",
        ],
    ),
    ("uninstall", &["--set", "uninstall=true"]),
];

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("below the workspace").to_owned()
}

fn helm(args: &[&str]) -> Output {
    let program = env::var_os("RDT_HELM").unwrap_or_else(|| "helm".into());
    let mut command = Command::new(&program);
    command
        .current_dir(repository().join("deploy/helm/redirect"))
        .args(args);
    let output = command.output();
    output.unwrap_or_else(|error| {
        panic!("{program:?}: {error}; `cargo xtask test` fetches helm and sets RDT_HELM")
    })
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn render(settings: &[&str]) -> String {
    let mut args = vec![
        "template",
        "redirect",
        ".",
        "--namespace",
        "redirect-system",
    ];
    args.extend(settings);
    succeeds(&helm(&args))
}

#[test]
fn the_chart_has_no_mistakes() {
    succeeds(&helm(&["lint", ".", "--strict"]));
    for platform in
        fs::read_dir(repository().join("deploy/helm/redirect/platforms")).expect("a folder")
    {
        let file = platform.expect("an entry").path();
        succeeds(&helm(&[
            "lint",
            ".",
            "--strict",
            "--values",
            &file.display().to_string(),
        ]));
    }
}

#[test]
fn the_chart_renders_as_before() {
    for (name, settings) in CASES {
        let golden = repository().join(format!("tests/tests/deploy/{name}.yaml"));
        let rendered = render(settings);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &rendered).expect("write a golden file");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(
            rendered, expected,
            "{name}: look at what changed; UPDATE_GOLDEN=1 takes it over"
        );
    }
}

/// What the chart makes of its values is a configuration without mistakes.
#[test]
fn the_daemon_takes_the_charts_configuration() {
    let bed = Testbed::new();
    for (name, settings) in CASES {
        let rendered = render(&[settings, &["--show-only", "templates/configmap.yaml"]].concat());
        let file = bed.directory().join(format!("{name}.yaml"));
        fs::write(&file, configuration(&rendered)).expect("write a file");
        let mut command = Command::new(redirect_binary());
        command.args(["config", "check"]).arg(&file);
        let output = command.output().expect("run redirect");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {said}\n{rendered}");
    }
}

/// The text of the entry `config.yaml`, without the blanks that make it one.
fn configuration(rendered: &str) -> String {
    let (_, entry) = rendered.split_once("config.yaml: |\n").expect("the entry");
    let lines = entry
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn values_that_do_not_exist_or_fit_are_refused() {
    for (setting, mistake) in [
        ("nonsense=1", "nonsense"),
        ("cni.binDir=relative", "/cni/binDir"),
        ("capture.backend=magic", "/capture/backend"),
        ("cni.ownConflist=a/b", "/cni/ownConflist"),
    ] {
        let output = helm(&["template", "redirect", ".", "--set", setting]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(mistake),
            "{setting}: {errors}"
        );
    }
}
