//! What a testbed's killed maker leaves. Its mount is now and then gone with it, so only what certainly stays is asked for; nothing may
//! be there after the sweep.

use redirect_tests::{Testbed, leftovers};

#[test]
fn what_a_killed_process_left_is_found_and_swept() {
    // This process sweeps once, at its first testbed: let that be over.
    drop(Testbed::new());
    let mut maker = std::process::Command::new(redirect_tests::app_binary())
        .args(["leave-a-testbed"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start rdt-app");
    let mut line = String::new();
    let mut output = std::io::BufReader::new(maker.stdout.take().expect("piped"));
    std::io::BufRead::read_line(&mut output, &mut line).expect("the maker names its testbed");
    let id = line.trim();
    assert!(
        !leftovers::stale().iter().any(|found| found.contains(id)),
        "its maker still lives"
    );
    maker.kill().expect("our own child");
    maker.wait().expect("our own child");
    let found = leftovers::stale();
    for kind in ["network namespace", "directory"] {
        assert!(
            found
                .iter()
                .any(|line| line.starts_with(kind) && line.contains(id)),
            "no {kind} in {found:#?}"
        );
    }
    leftovers::sweep();
    assert!(
        !leftovers::stale().iter().any(|found| found.contains(id)),
        "still there"
    );
}
