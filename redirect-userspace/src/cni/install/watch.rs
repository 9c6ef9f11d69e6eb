//! Keeps an installation as it should be: whatever changes in its folders, it is made right again.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{InstallError, Installation, Report};
use crate::sys::inotify::Changes;

/// After a change, others often follow; they are taken together.
const SETTLE: Duration = Duration::from_millis(50);
/// Looked at this often also if nothing was reported: a folder may have been replaced as a whole.
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// Installs now and after each change of the folders, telling `tell` of each try that did or found something. Never ends.
pub async fn watch(
    installation: &Installation,
    mut tell: impl FnMut(Result<Report, InstallError>),
) -> std::convert::Infallible {
    let mut last_problem = String::new();
    loop {
        // Before looking: a change that comes after the look wakes us.
        let changes = Changes::of([installation.net_dir.as_path(), &installation.bin_dir]);
        let result = installation.install();
        let problem = match &result {
            Ok(report) => report.problems.join("; "),
            Err(error) => error.to_string(),
        };
        let did_something = result.as_ref().is_ok_and(|report| !report.done.is_empty());
        // A problem that stays is told once.
        if did_something || problem != last_problem {
            tell(result);
        }
        last_problem = problem;
        match changes {
            Ok(changes) => _ = timeout(AT_LEAST_EVERY, changes.next()).await,
            // A limit of inotify was reached: looking now and then has to do.
            Err(_) => sleep(AT_LEAST_EVERY).await,
        }
        sleep(SETTLE).await;
    }
}
