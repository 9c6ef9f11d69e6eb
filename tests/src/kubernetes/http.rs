//! Requests and answers of the fake API, in as much HTTP/1.1 as its client speaks.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::PoisonError,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Faults, Shared};

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Until the client closes, or a fault ends the connection.
pub fn serve(shared: &Shared, stream: TcpStream) {
    let Ok(clone) = stream.try_clone() else {
        return;
    };
    let mut reader = BufReader::new(clone);
    let mut writer = stream;
    while let Ok(Some(request)) = read(&mut reader) {
        // An error is the client's going away.
        if !answer(shared, &request, &mut writer).unwrap_or(false) {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.split_whitespace();
    let method = parts.next().unwrap_or_default().to_owned();
    let target = parts.next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (name.to_owned(), unescaped(value)));
    Ok(Some(Request {
        method,
        path: path.to_owned(),
        query: query.collect(),
        body,
    }))
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).expect("a query in UTF-8")
}

/// Whether the connection goes on.
fn answer(shared: &Shared, request: &Request, writer: &mut TcpStream) -> io::Result<bool> {
    let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let faults = {
        let mut state = shared.lock();
        let query = request
            .query
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let query: Vec<_> = query.collect();
        state.requests.push(format!(
            "{} {}?{}",
            request.method,
            request.path,
            query.join("&")
        ));
        shared.changed.notify_all();
        state.faults.clone()
    };
    let faults = match faults.only.is_empty() || parts.contains(&faults.only.as_str()) {
        true => faults,
        false => Faults::default(),
    };
    thread::sleep(faults.slow);
    if faults.down {
        return Ok(false);
    }
    if faults.silent {
        wait_for_end_of_fault(shared);
        return Ok(false);
    }
    if let Some(status) = faults.status {
        return status_answer(writer, status, "by the test's word").map(|()| true);
    }
    let (scope, rest) = match parts.as_slice() {
        ["apis", "discovery.k8s.io"] => {
            let versions = match faults.old {
                true => json!([{"version": "v1beta1"}]),
                false => json!([{"version": "v1"}, {"version": "v1beta1"}]),
            };
            return json_answer(writer, 200, &json!({"versions": versions})).map(|()| true);
        }
        ["apis", "discovery.k8s.io", "v1", ..] if faults.old => {
            return status_answer(writer, 404, "no such version").map(|()| true);
        }
        ["apis", _, _, rest @ ..] | ["api", "v1", rest @ ..] => match rest {
            ["namespaces", namespace, kind, rest @ ..] => (Some((*namespace, *kind)), rest),
            [kind, rest @ ..] => (Some(("", *kind)), rest),
            [] => (None, &[][..]),
        },
        _ => (None, &[][..]),
    };
    let Some((namespace, kind)) = scope else {
        return status_answer(writer, 404, "no such path").map(|()| true);
    };
    match (request.method.as_str(), rest) {
        ("GET", []) if request.query.contains_key("watch") => {
            watch(shared, kind, request, writer).map(|()| false)
        }
        ("GET", []) => list(shared, kind, request, &faults, writer),
        ("GET", [name]) => {
            let object = shared.lock().store.get(kind, namespace, name).cloned();
            match object {
                Some(object) => json_answer(writer, 200, &object)?,
                None => status_answer(writer, 404, "not found")?,
            }
            Ok(true)
        }
        ("PATCH", [name]) => {
            let patch = serde_json::from_slice(&request.body).unwrap_or_default();
            let patched = shared.lock().store.patch(kind, namespace, name, &patch);
            shared.changed.notify_all();
            match patched {
                Ok(object) => json_answer(writer, 200, &object)?,
                Err(status) => status_answer(writer, status, "cannot be patched")?,
            }
            Ok(true)
        }
        ("POST", []) if kind == "events" => {
            let event: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            shared.lock().events.push(event.clone());
            shared.changed.notify_all();
            json_answer(writer, 201, &event).map(|()| true)
        }
        _ => status_answer(writer, 405, "not here").map(|()| true),
    }
}

fn list(
    shared: &Shared,
    kind: &str,
    request: &Request,
    faults: &Faults,
    writer: &mut TcpStream,
) -> io::Result<bool> {
    let number = |name: &str| request.query.get(name).and_then(|text| text.parse().ok());
    let asked: usize = number("limit").unwrap_or(usize::MAX);
    let limit = faults.page.unwrap_or(usize::MAX).min(asked);
    let from: usize = number("continue").unwrap_or(0);
    let body = {
        let state = shared.lock();
        let all = state.store.list(kind, node(request).as_deref());
        let page: Vec<_> = all.iter().skip(from).take(limit).collect();
        let next = match from + page.len() < all.len() {
            true => (from + page.len()).to_string(),
            false => String::new(),
        };
        let version = state.store.version().to_string();
        json!({"metadata": {"resourceVersion": version, "continue": next}, "items": page})
    };
    if faults.broken {
        let text = body.to_string();
        let half = &text[..text.len() / 2];
        head(writer, 200, &format!("Content-Length: {}", text.len()))?;
        writer.write_all(half.as_bytes())?;
        return Ok(false);
    }
    json_answer(writer, 200, &body).map(|()| true)
}

/// Tells what is new until the time is up or the test ends it.
fn watch(shared: &Shared, kind: &str, request: &Request, writer: &mut TcpStream) -> io::Result<()> {
    let number = |name: &str| {
        let text = request.query.get(name)?;
        text.parse::<u64>().ok()
    };
    let mut version = number("resourceVersion").unwrap_or(0);
    let limit = Duration::from_secs(number("timeoutSeconds").unwrap_or(300));
    let deadline = Instant::now() + limit;
    let node = node(request);
    let bookmarks = request.query.contains_key("allowWatchBookmarks");
    let epoch = {
        let state = shared.lock();
        if state.store.is_forgotten(version) {
            drop(state);
            return status_answer(writer, 410, "too old resource version");
        }
        state.epoch
    };
    head(writer, 200, "Transfer-Encoding: chunked")?;
    let mut state = shared.lock();
    loop {
        let news = state
            .store
            .after(version, kind, node.as_deref())
            .into_iter();
        let news = news.filter(|entry| bookmarks || entry.event.name() != "BOOKMARK");
        let lines = news.map(|entry| {
            json!({"type": entry.event.name(), "object": entry.object}).to_string() + "\n"
        });
        let lines: Vec<_> = lines.collect();
        version = state.store.version();
        if !lines.is_empty() {
            drop(state);
            for line in lines {
                write!(writer, "{:x}\r\n{line}\r\n", line.len())?;
            }
            state = shared.lock();
            continue;
        }
        // What it has come for it is told, however soon it ends.
        if state.epoch != epoch || Instant::now() >= deadline {
            break;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = shared.changed.wait_timeout(state, left);
        (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
    drop(state);
    writer.write_all(b"0\r\n\r\n")
}

fn wait_for_end_of_fault(shared: &Shared) {
    let state = shared.lock();
    let waited = shared
        .changed
        .wait_while(state, |state| state.faults.silent && !state.is_over);
    drop(waited);
}

fn node(request: &Request) -> Option<String> {
    let selector = request.query.get("fieldSelector")?;
    selector.strip_prefix("spec.nodeName=").map(str::to_owned)
}

fn json_answer(writer: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    head(writer, status, &format!("Content-Length: {}", body.len()))?;
    writer.write_all(body.as_bytes())
}

fn status_answer(writer: &mut TcpStream, status: u16, message: &str) -> io::Result<()> {
    let reason = match status {
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "Failure",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status,
    });
    json_answer(writer, status, &body)
}

fn head(writer: &mut TcpStream, status: u16, framing: &str) -> io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 {status} As Said\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    )
}
