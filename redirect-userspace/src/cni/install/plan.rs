//! What has to change in a folder of network configurations: pure.
//!
//! A container runtime takes the first valid file in the order of their names (libcni's `ConfFiles`); that one is the primary.

use super::super::conflist::{self, ConflistError, Entry};

/// Added to the name of a single configuration that a list stands for now. No runtime reads files of this ending.
pub const SAVED: &str = ".redirect-saved";
/// A member of lists that are wholly ours.
const OWNED: &str = "\"redirectOwned\": true";

/// A file of the folder, with a name that a runtime reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub text: String,
}

/// One change; each leaves the folder valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Write { name: String, text: String },
    Rename { from: String, to: String },
    Remove { name: String },
}

/// The changes, and what was found that cannot be helped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub problems: Vec<String>,
    /// The file that holds our entry when the steps are done; `None` if there is no network to be chained to.
    pub primary: Option<String>,
}

/// Whether a runtime reads files of this name.
pub fn is_configuration(name: &str) -> bool {
    [".conf", ".conflist", ".json"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Puts `entry` into the primary configuration, or into a list of ours by the name of `own` that stands before it. `files` are
/// in the order of their names.
pub fn install(files: &[Found], entry: &Entry, own: Option<&str>) -> Plan {
    let mut plan = Plan::default();
    let Some((primary, list)) = first_valid(files, own, &mut plan.problems) else {
        return plan;
    };
    let installed = conflist::insert(&list, entry);
    let text = match installed {
        Ok(text) => text,
        Err(error) => {
            plan.problems.push(format!("{}: {error}", primary.name));
            return plan;
        }
    };
    match own {
        Some(own) => {
            if *own > *primary.name {
                plan.problems.push(format!(
                    "{own} would not be read: {} comes before it; choose a name that comes first",
                    primary.name
                ));
                return plan;
            }
            let text = owned(&text.unwrap_or(list));
            if !files
                .iter()
                .any(|file| file.name == own && file.text == text)
            {
                let name = own.to_owned();
                plan.steps.push(Step::Write { name, text });
            }
            plan.primary = Some(own.to_owned());
        }
        None => {
            let name = list_name(&primary.name);
            let taken = |file: &&Found| file.name == name && !conflist::has_ours(&file.text);
            if name != primary.name && files.iter().any(|file| taken(&file)) {
                plan.problems.push(format!(
                    "{} cannot become {name}, which is there already and not ours",
                    primary.name
                ));
                return plan;
            }
            if let Some(text) = text {
                let name = name.clone();
                plan.steps.push(Step::Write { name, text });
            }
            if name != primary.name {
                plan.steps.push(Step::Rename {
                    from: primary.name.clone(),
                    to: format!("{}{SAVED}", primary.name),
                });
            }
            plan.primary = Some(name);
        }
    }
    plan
}

/// Takes out all that is ours. `saved` are the single configurations that were put aside, by their names without the ending.
pub fn uninstall(files: &[Found], saved: &[Found]) -> Plan {
    let mut plan = Plan::default();
    for file in files {
        if file.text.contains(OWNED) && conflist::has_ours(&file.text) {
            let name = file.name.clone();
            plan.steps.push(Step::Remove { name });
            continue;
        }
        if !conflist::has_ours(&file.text) {
            if file.text.contains(conflist::PLUGIN) {
                let error = conflist::check(&file.text).err();
                let error = error.map_or_else(String::new, |error| format!(": {error}"));
                plan.problems.push(format!(
                    "{} names {} and cannot be edited{error}",
                    file.name,
                    conflist::PLUGIN
                ));
            }
            continue;
        }
        let original = saved
            .iter()
            .find(|original| list_name(&original.name) == file.name);
        if let Some(original) = original {
            if is_only_ours(file, original) {
                plan.steps.push(Step::Rename {
                    from: format!("{}{SAVED}", original.name),
                    to: original.name.clone(),
                });
                let name = file.name.clone();
                plan.steps.push(Step::Remove { name });
                continue;
            }
            // The saved one would come before the list, and undo what they did.
            plan.problems.push(format!(
                "{} was changed by others since it stands for {}, which stays saved as {}{SAVED}",
                file.name, original.name, original.name
            ));
        }
        match conflist::remove(&file.text) {
            Ok(Some(text)) => {
                let name = file.name.clone();
                plan.steps.push(Step::Write { name, text });
            }
            Ok(None) => {}
            // The network that we were chained to is gone from it: nothing is left that a runtime could use.
            Err(ConflistError::Alone(_)) => plan.steps.push(Step::Remove {
                name: file.name.clone(),
            }),
            Err(error) => plan.problems.push(format!("{}: {error}", file.name)),
        }
    }
    plan
}

/// Whether a list is what we made of a single configuration, and nothing else.
fn is_only_ours(list: &Found, original: &Found) -> bool {
    let without = conflist::remove(&list.text).ok().flatten();
    without.is_some() && without == conflist::from_single(&original.text).ok()
}

/// The first file that a runtime can use, as a list; those before it that are broken are problems.
fn first_valid<'a>(
    files: &'a [Found],
    own: Option<&str>,
    problems: &mut Vec<String>,
) -> Option<(&'a Found, String)> {
    for file in files {
        if own == Some(&file.name) || file.text.contains(OWNED) {
            continue;
        }
        match as_list(file) {
            Ok(list) => return Some((file, list)),
            Err(error) => problems.push(format!("{}: {error}", file.name)),
        }
    }
    None
}

fn as_list(file: &Found) -> Result<String, ConflistError> {
    if is_list(&file.name) {
        conflist::check(&file.text)?;
        return Ok(file.text.clone());
    }
    conflist::from_single(&file.text)
}

/// Files named `.conflist` hold lists, all others one plugin (libcni).
fn is_list(name: &str) -> bool {
    name.ends_with(".conflist")
}

/// The name of the list that stands for a file.
fn list_name(name: &str) -> String {
    if is_list(name) {
        return name.to_owned();
    }
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    format!("{stem}.conflist")
}

fn owned(list: &str) -> String {
    list.replacen('{', &format!("{{\n  {OWNED},"), 1)
}

#[cfg(test)]
mod tests;
