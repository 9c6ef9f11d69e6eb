//! Folders of configurations as tables: what is installed into them, and that uninstalling gives them back.

use std::{collections::BTreeMap, time::Duration};

use super::*;

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"a\",\n  \"plugins\": [\n    {\"type\": \"bridge\"}\n  ]\n}\n";
const SINGLE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"s\", \"type\": \"ptp\"}\n";

fn entry() -> Entry {
    Entry::new("/run/a.sock".into(), Vec::new(), Duration::from_secs(30))
}

/// A folder, as names and texts.
#[derive(Clone, Debug, PartialEq)]
struct Folder(BTreeMap<String, String>);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter();
        Self(
            files
                .map(|(name, text)| (name.to_string(), text.to_string()))
                .collect(),
        )
    }

    fn found(&self) -> Vec<Found> {
        let files = self.0.iter().filter(|(name, _)| is_configuration(name));
        files
            .map(|(name, text)| Found {
                name: name.clone(),
                text: text.clone(),
            })
            .collect()
    }

    fn saved(&self) -> Vec<Found> {
        let files = self.0.iter();
        files
            .filter_map(|(name, text)| {
                Some(Found {
                    name: name.strip_suffix(SAVED)?.to_owned(),
                    text: text.clone(),
                })
            })
            .collect()
    }

    fn take(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Write { name, text } => {
                    self.0.insert(name.clone(), text.clone());
                }
                Step::Rename { from, to } => {
                    let text = self.0.remove(from).expect("the renamed file is there");
                    self.0.insert(to.clone(), text);
                }
                Step::Remove { name } => {
                    self.0.remove(name).expect("the removed file is there");
                }
            }
        }
    }
}

#[test]
fn the_primary_gets_our_entry_and_uninstalling_gives_everything_back() {
    for (case, files, own, primary) in [
        (
            "a list",
            vec![("10-a.conflist", LIST)],
            None,
            "10-a.conflist",
        ),
        (
            "the first of two",
            vec![("05-b.conflist", LIST), ("10-a.conflist", LIST)],
            None,
            "05-b.conflist",
        ),
        (
            "a single",
            vec![("10-s.conf", SINGLE)],
            None,
            "10-s.conflist",
        ),
        (
            "a single in .json",
            vec![("10-s.json", SINGLE), ("20-a.conflist", LIST)],
            None,
            "10-s.conflist",
        ),
        (
            "behind a broken one",
            vec![("05-b.conflist", "{"), ("10-a.conflist", LIST)],
            None,
            "10-a.conflist",
        ),
        (
            "behind one without plugins",
            vec![
                ("05-b.conflist", "{\"plugins\": []}"),
                ("10-a.conflist", LIST),
            ],
            None,
            "10-a.conflist",
        ),
        (
            "beside other files",
            vec![("10-a.conflist", LIST), ("README", "redirect-cni")],
            None,
            "10-a.conflist",
        ),
        (
            "a list of our own",
            vec![("10-a.conflist", LIST)],
            Some("00-redirect.conflist"),
            "00-redirect.conflist",
        ),
        (
            "our own from a single",
            vec![("10-s.conf", SINGLE)],
            Some("00-redirect.conflist"),
            "00-redirect.conflist",
        ),
    ] {
        let before = Folder::of(&files);
        let mut folder = before.clone();
        let plan = install(&folder.found(), &entry(), own);
        assert_eq!(plan.primary.as_deref(), Some(primary), "{case}");
        folder.take(&plan.steps);
        let list = &folder.0[primary];
        assert!(
            conflist::is_installed(list, &entry()).unwrap(),
            "{case}: {list}"
        );
        let first = folder
            .found()
            .into_iter()
            .find(|file| conflist::check(&file.text).is_ok());
        assert_eq!(first.unwrap().name, primary, "{case}: a runtime takes it");

        let again = install(&folder.found(), &entry(), own);
        assert_eq!(again.steps, [], "{case}: nothing the second time");

        let plan = uninstall(&folder.found(), &folder.saved());
        folder.take(&plan.steps);
        assert_eq!(folder, before, "{case}");
        assert_eq!(
            uninstall(&folder.found(), &folder.saved()).steps,
            [],
            "{case}"
        );
    }
}

#[test]
fn drift_is_mended() {
    let mut folder = Folder::of(&[("10-s.conf", SINGLE)]);
    folder.take(&install(&folder.found(), &entry(), None).steps);
    // The network's own installer writes its file again, in a new version.
    let newer = SINGLE.replace("ptp", "bridge");
    folder.0.insert("10-s.conf".into(), newer.clone());
    folder.take(&install(&folder.found(), &entry(), None).steps);
    assert!(folder.0["10-s.conflist"].contains("bridge"));
    assert_eq!(folder.0.get("10-s.conf"), None);
    folder.take(&uninstall(&folder.found(), &folder.saved()).steps);
    assert_eq!(folder, Folder::of(&[("10-s.conf", &newer)]));

    let mut folder = Folder::of(&[("10-a.conflist", LIST)]);
    let own = Some("00-redirect.conflist");
    folder.take(&install(&folder.found(), &entry(), own).steps);
    folder
        .0
        .insert("10-a.conflist".into(), LIST.replace("bridge", "macvlan"));
    folder.take(&install(&folder.found(), &entry(), own).steps);
    assert!(folder.0["00-redirect.conflist"].contains("macvlan"));
}

#[test]
fn what_others_put_into_our_list_stays() {
    let mut folder = Folder::of(&[("10-s.conf", SINGLE)]);
    folder.take(&install(&folder.found(), &entry(), None).steps);
    let list = folder.0.get_mut("10-s.conflist").unwrap();
    *list = list.replace("[\n", "[\n{\"type\": \"tuning\"},");
    let plan = uninstall(&folder.found(), &folder.saved());
    assert!(plan.problems[0].starts_with("10-s.conflist was changed by others"));
    folder.take(&plan.steps);
    let list = &folder.0["10-s.conflist"];
    assert!(
        list.contains("tuning") && !conflist::has_ours(list),
        "{list}"
    );
    assert_eq!(folder.0["10-s.conf.redirect-saved"], SINGLE);
}

#[test]
fn what_cannot_be_helped_is_said_and_left_alone() {
    for (case, files, own, expected) in [
        ("nothing there", vec![], None, vec![]),
        (
            "broken",
            vec![("10-a.conflist", "{\"plugins\":")],
            None,
            vec!["10-a.conflist: not a CNI network configuration"],
        ),
        (
            "no name",
            vec![("10-s.conf", "{\"type\":\"ptp\"}")],
            None,
            vec!["10-s.conf: not a CNI network configuration: missing field `name`"],
        ),
        (
            "a name that comes last",
            vec![("10-a.conflist", LIST)],
            Some("zz.conflist"),
            vec!["zz.conflist would not be read"],
        ),
        (
            "a list by that name",
            vec![("10-s.conf", SINGLE), ("10-s.conflist", LIST)],
            None,
            vec!["10-s.conf cannot become 10-s.conflist"],
        ),
    ] {
        let plan = install(&Folder::of(&files).found(), &entry(), own);
        assert_eq!(
            (plan.steps.as_slice(), plan.primary),
            (&[][..], None),
            "{case}"
        );
        assert_eq!(
            plan.problems.len(),
            expected.len(),
            "{case}: {:?}",
            plan.problems
        );
        for (problem, expected) in plan.problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{case}: {problem}");
        }
    }
    let broken = Folder::of(&[("10-a.conflist", "{\"type\": \"redirect-cni\"")]);
    let plan = uninstall(&broken.found(), &[]);
    assert_eq!(plan.steps, []);
    assert!(plan.problems[0].starts_with("10-a.conflist names redirect-cni and cannot be edited"));
}
