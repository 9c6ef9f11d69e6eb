//! What nearly every end-to-end test does: a server that greets, a client that wants its greeting and an echo.

use std::{fs, net::SocketAddr, path::Path};

use crate::{
    process::{App, Event, Process},
    testbed::Pod,
};

/// `rdt-app serve --mode MODE` on `[::]:port` of `pod`, listening when this returns.
#[track_caller]
pub fn serve(pod: &Pod, port: u16, mode: &str) -> App {
    let app = pod.app(["serve", "--mode", mode, "--listen", &format!("[::]:{port}")]);
    app.event("listening");
    app
}

/// A server that tells each client whom it sees, and then echoes.
#[track_caller]
pub fn greeter(pod: &Pod, port: u16) -> App {
    serve(pod, port, "greet")
}

/// Connects to a greeter with options of `rdt-app connect`, wants the greeting and an echo; gives the `connected` event.
#[track_caller]
pub fn greeted(client: &Pod, dst: SocketAddr, options: &[&str]) -> Event {
    let dst = dst.to_string();
    let steps = [dst.as_str(), "recv-line", "send:ping\\n", "recv-line"];
    let app = client.app([&["connect"], options, &steps].concat());
    let connected = app.event("connected");
    let greeting = app.event("received");
    assert!(greeting.text().starts_with("hello "), "{greeting:?}");
    assert_eq!(app.event("received").text(), "ping");
    app.event("done");
    connected
}

/// Connects, sends nothing and reads to the end, which must be an error and not a clean end; gives the `error` event.
#[track_caller]
pub fn refused(client: &Pod, dst: SocketAddr) -> Event {
    let app = client.app(["connect", &dst.to_string(), "recv-all"]);
    let error = app.event("error");
    assert!(
        ["ECONNREFUSED", "ECONNRESET"].contains(&error.str("name")),
        "not refused as a real server refuses: {error:?}"
    );
    error
}

/// An nginx that serves `root` on `port` of `pod`, listening when this returns.
#[track_caller]
pub fn nginx(pod: &Pod, port: u16, root: &Path) -> Process {
    let dir = pod.node().directory();
    let config = dir.join(format!("nginx-{}.conf", pod.name()));
    let text = format!(
        "daemon off; user root; worker_processes 1; pid {0}/nginx.pid; error_log stderr notice; events {{}}
         http {{ access_log off; sendfile on;
           client_body_temp_path {0}/t1; proxy_temp_path {0}/t2; fastcgi_temp_path {0}/t3;
           uwsgi_temp_path {0}/t4; scgi_temp_path {0}/t5;
           server {{ listen {port}; listen [::]:{port}; root {1}; }} }}\n",
        dir.display(),
        root.display()
    );
    fs::write(&config, text).expect("write nginx's configuration");
    let mut command = pod.command("nginx");
    command.arg("-c").arg(&config);
    let nginx = Process::spawn("nginx", command);
    // It has made its listeners before it starts workers.
    let started = |line: &str| line.contains("start worker process ").then_some(());
    nginx.wait_line("line that says that workers start", started);
    nginx
}

/// A connection that is held: a greeter on the other side, and each call of [`Held::echo`] goes there and back.
#[derive(Debug)]
pub struct Held {
    app: App,
}

impl Held {
    #[track_caller]
    pub fn open(client: &Pod, dst: SocketAddr) -> Self {
        let app = client.app(["talk", &dst.to_string()]);
        app.event("connected");
        assert!(app.event("received").text().starts_with("hello "));
        Self { app }
    }

    /// Sends a line and wants it back; an error's or end's name if that is what comes.
    #[track_caller]
    pub fn echo(&mut self, text: &str) -> Result<(), String> {
        self.app.write(&format!("{text}\n"));
        let event = self.app.next_event();
        match event.name() {
            "received" if event.text() == text => Ok(()),
            "error" => Err(event.str("name").to_owned()),
            _ => Err(event.json().to_string()),
        }
    }

    /// Closes it from the client's side.
    #[track_caller]
    pub fn close(mut self) {
        self.app.close_stdin();
        self.app.wait();
    }

    pub fn app(&self) -> &App {
        &self.app
    }
}
