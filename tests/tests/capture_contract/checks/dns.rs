//! Names: the mesh's own are answered by the proxy, others by the server that the app asked.

use redirect_tests::{App, Event, eventually};

use crate::{
    matrix::Family,
    stage::{SERVICE, SERVICE_VIP, Stage},
    talk::{SOON, canonical},
};

/// Asks the outsider's server from the client.
fn ask(stage: &Stage, family: Family, name: &str, options: &[&str]) -> App {
    let server = family.on_wire(&stage.mesh.outsider, 53).to_string();
    let mut args = vec!["dns-ask", "--timeout", "3", "--server", &server];
    if family == Family::Mapped {
        args.push("--mapped");
    }
    args.extend(options);
    args.push(name);
    stage.mesh.client.app(args)
}

/// The addresses in the answer, which must come from the server that was asked.
#[track_caller]
fn addresses(stage: &Stage, family: Family, app: &App) -> Vec<String> {
    let answer = app.event("answer");
    let asked = family.at(&stage.mesh.outsider, 53);
    assert_eq!(answer.addr("from"), asked, "who answered");
    let data = answer.json()["data"].as_array().expect("a list");
    let addresses = data.iter().filter_map(|data| data.as_str());
    addresses.map(str::to_owned).collect()
}

/// What the server was asked of this name.
fn seen(stage: &Stage, name: &str) -> Vec<Event> {
    let upstream = stage.upstream.as_ref();
    let mut events = upstream.expect("it runs for this check").events("query");
    events.retain(|event| event.str("name").contains(name));
    events
}

/// The server's own word that it was asked this once: it comes a moment after the answer.
#[track_caller]
fn asked_once(stage: &Stage, name: &str) -> Event {
    eventually("the server was asked once", SOON, || {
        let seen = seen(stage, name);
        match &seen[..] {
            [once] => Ok(once.clone()),
            _ => Err(format!("{seen:?}")),
        }
    })
}

pub fn of_the_mesh(stage: &Stage, family: Family) {
    for options in [&[][..], &["--connected"]] {
        let app = ask(stage, family, SERVICE, options);
        assert_eq!(addresses(stage, family, &app), [SERVICE_VIP]);
        for connected in app.events("connected") {
            let asked = family.at(&stage.mesh.outsider, 53);
            assert_eq!(connected.addr("peername"), asked, "getpeername");
        }
    }
    assert_eq!(seen(stage, SERVICE), [], "the server was asked");
}

pub fn forwarded(stage: &Stage, family: Family) {
    let name = format!("other-{}.test", family.name());
    let app = ask(stage, family, &name, &[]);
    assert_eq!(addresses(stage, family, &app), ["192.0.2.1"]);
    let seen = asked_once(stage, &name);
    let client = family.on_wire(&stage.mesh.client, 0).ip();
    let asked_by = canonical(seen.addr("from")).ip();
    assert_eq!(asked_by, client, "who asked the server");
    // What it was asked earlier it has told by now, too.
    assert_eq!(self::seen(stage, SERVICE), [], "the server was asked");
}

pub fn over_tcp(stage: &Stage, family: Family) {
    // Here the address says which socket it is.
    let server = family.at(&stage.mesh.outsider, 53).to_string();
    let args = ["dns-ask", "--pipelined", "1", "--server", &server, SERVICE];
    let app = stage.mesh.client.app(args);
    assert_eq!(addresses(stage, family, &app), [SERVICE_VIP]);
    assert_eq!(seen(stage, SERVICE), [], "the server was asked");
}

pub fn unanswered(stage: &Stage, family: Family) {
    let name = format!("dead-{}.test", family.name());
    ask(stage, family, &name, &[]).event("error");
    assert_eq!(seen(stage, &name), [], "the server was asked");
}

pub fn direct(stage: &Stage, family: Family) {
    let name = format!("direct-{}.test", family.name());
    let app = ask(stage, family, &name, &[]);
    assert_eq!(addresses(stage, family, &app), ["192.0.2.1"]);
    asked_once(stage, &name);
}
