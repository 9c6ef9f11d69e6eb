use std::{fs, os::unix::fs::symlink};

use super::*;

fn text(names: &[&str]) -> String {
    let workload = |(index, name)| {
        format!(
            "- {{namespace: d, name: {name}, workloadIps: [10.0.0.{}]}}\n",
            index + 1
        )
    };
    format!(
        "workloads:\n{}",
        names.iter().enumerate().map(workload).collect::<String>()
    )
}

fn watched(path: &Path) -> WatchedFile {
    WatchedFile::new(
        path.to_owned(),
        Defaults {
            trust_domain: "cluster.local".to_owned(),
        },
    )
}

fn names(store: &WorkloadStore) -> Option<Vec<String>> {
    Some(
        store
            .snapshot()?
            .workloads()
            .iter()
            .map(|workload| workload.name.to_string())
            .collect(),
    )
}

#[test]
fn a_bad_new_file_leaves_the_old_data_and_a_good_one_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.yaml");
    let (store, mut file) = (WorkloadStore::new(), watched(&path));
    file.look(&store);
    assert_eq!(
        (names(&store), store.stats()),
        (
            None,
            StoreStats {
                loads: 0,
                failures: 1
            }
        )
    );
    // Nothing changed: neither read nor counted again.
    file.look(&store);
    assert_eq!(store.stats().failures, 1);

    fs::write(&path, text(&["a"])).unwrap();
    file.look(&store);
    assert_eq!(names(&store).unwrap(), ["a"]);

    fs::write(&path, "workloads: [{nmae: a}]").unwrap();
    file.look(&store);
    assert_eq!(
        (names(&store).unwrap(), store.stats()),
        (
            vec!["a".into()],
            StoreStats {
                loads: 1,
                failures: 2
            }
        )
    );

    fs::remove_file(&path).unwrap();
    file.look(&store);
    assert_eq!(
        (names(&store).unwrap(), store.stats().failures),
        (vec!["a".into()], 3)
    );

    fs::write(&path, text(&["a", "b"])).unwrap();
    file.look(&store);
    assert_eq!(
        (names(&store).unwrap(), store.stats().loads),
        (vec!["a".into(), "b".into()], 2)
    );
}

/// As kubelet does with a config map: the file is a link into `..data`, which is a link that is swapped by a rename.
#[test]
fn a_swapped_link_is_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (folder, name) in [("v1", "a"), ("v2", "b")] {
        fs::create_dir(at(folder)).unwrap();
        fs::write(at(folder).join("w.yaml"), text(&[name])).unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/w.yaml", at("w.yaml")).unwrap();
    let (store, mut file) = (WorkloadStore::new(), watched(&at("w.yaml")));
    file.look(&store);
    assert_eq!(names(&store).unwrap(), ["a"]);
    symlink("v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    file.look(&store);
    assert_eq!(names(&store).unwrap(), ["b"]);
}

#[tokio::test]
async fn waiting_ends_with_the_data_or_the_time() {
    let store = WorkloadStore::new();
    assert!(store.wait_ready(Duration::from_millis(1)).await.is_none());
    let waiting = store.wait_ready(Duration::from_secs(60));
    let loading = async { store.replace(Workloads::default()) };
    let (found, ()) = tokio::join!(waiting, loading);
    assert!(found.is_some());
    assert!(store.wait_ready(Duration::ZERO).await.is_some());
}

#[tokio::test]
async fn the_task_loads_the_file_and_its_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.yaml");
    fs::write(&path, text(&["a"])).unwrap();
    let store = WorkloadStore::new();
    let mut changes = store.subscribe();
    let defaults = Defaults {
        trust_domain: "cluster.local".to_owned(),
    };
    let task = tokio::spawn(store.clone().watch(path.clone(), defaults));
    let long = Duration::from_secs(20);
    tokio::time::timeout(long, changes.wait_for(|loads| *loads == 1))
        .await
        .unwrap()
        .unwrap();
    fs::write(&path, text(&["a", "b"])).unwrap();
    tokio::time::timeout(long, changes.wait_for(|loads| *loads == 2))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(names(&store).unwrap(), ["a", "b"]);
    task.abort();
}
