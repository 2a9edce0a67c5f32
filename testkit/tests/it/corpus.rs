//! This server answers as the reference did when the corpus was recorded.

use std::path::Path;

use keelson_testkit::Cluster;
use keelson_testkit::differential::{
    Expected, Runner, Side, all_versions_directory, corpora, differences, directory,
    dual_stack_directory, known_differences,
};

/// A case that gives the server time to notice something is tried this often on a busy machine.
const BUSY_TRIES: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn corpus() {
    compare(Cluster::start().await, &directory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corpus_of_both_families() {
    compare(Cluster::start_dual_stack().await, &dual_stack_directory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn corpus_of_all_versions() {
    let cluster = Cluster::start_all_versions().await;
    compare(cluster, &all_versions_directory()).await;
}

async fn compare(cluster: Cluster, directory: &Path) {
    let side = Side::new(cluster.admin());
    side.prepare().await.unwrap();
    let mut complaints = Vec::new();
    for corpus in corpora(directory).unwrap() {
        let expected = Expected::read(&corpus).unwrap();
        let mut known = known_differences(&corpus);
        let runner = Runner::new(&side, &corpus);
        runner.set_up().await.unwrap();
        for case in &corpus.cases {
            let name = format!("{}: {}", corpus.name, case.name);
            let mut ours = runner.run(case).await.unwrap();
            let Some(theirs) = expected.answers(case) else {
                complaints.push(format!("{name}: record it"));
                continue;
            };
            for _ in 0..BUSY_TRIES {
                if ours == theirs || known.contains(&case.name) {
                    break;
                }
                let Some(later) = runner.run_again(case).await.unwrap() else {
                    break;
                };
                ours = later;
            }
            match (ours == theirs, known.remove(&case.name)) {
                (true, true) => complaints.push(format!("{name} does not differ any more")),
                (true, false) | (false, true) => {}
                (false, false) => {
                    complaints.push(name);
                    for (theirs, ours) in theirs.iter().zip(&ours) {
                        for d in differences(&theirs.value(), &ours.value()) {
                            complaints.push(format!("  {}: {:?} | {:?}", d.at, d.left, d.right));
                        }
                    }
                }
            }
        }
        runner.tear_down().await.unwrap();
        complaints.extend(known.iter().map(|case| format!("{case}: no such case")));
    }
    cluster.stop().await;
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
