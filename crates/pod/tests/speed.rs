//! How long things take, printed; no bounds but those that only a mistake would break.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod lab;

use std::time::{Duration, Instant};

use lab::{Lab, enter};
use pod::Pods;

fn percentiles(name: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |p: usize| times[(times.len() - 1) * p / 100];
    println!("{name}: p50 {:?} p90 {:?} p99 {:?} (n {})", at(50), at(90), at(99), times.len());
    at(50)
}

async fn up(lab: &Lab, pods: &Pods, name: &str) -> (api::id::PodId, api::id::ContainerId, [Duration; 3]) {
    let begun = Instant::now();
    let pod = pods.run_sandbox(lab.sandbox(name), "").await.unwrap();
    let run = begun.elapsed();
    let id = pods.create_container(&pod, lab.container("c", "sleep 1000")).await.unwrap();
    let create = begun.elapsed() - run;
    pods.start_container(&id).await.unwrap();
    (pod, id, [run, create, begun.elapsed() - run - create])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_fast() {
    if !enter("pods_are_fast") {
        return;
    }
    if std::env::var_os("POD_TEST_TRACE").is_some() {
        trace();
    }
    let lab = Lab::new().await;
    let pods = lab.pods().await;
    let (mut ups, mut runs, mut creates, mut starts) = (vec![], vec![], vec![], vec![]);
    let (mut execs, mut stops, mut removes) = (vec![], vec![], vec![]);
    for n in 0..60 {
        let (pod, id, [run, create, start]) = up(&lab, &pods, &format!("s{n}")).await;
        ups.push(run + create + start);
        runs.push(run);
        creates.push(create);
        starts.push(start);
        for _ in 0..3 {
            let begun = Instant::now();
            pods.exec_sync(&id, vec!["/bin/true".into()], None).await.unwrap();
            execs.push(begun.elapsed());
        }
        let begun = Instant::now();
        pods.stop_sandbox(&pod).await.unwrap();
        stops.push(begun.elapsed());
        let begun = Instant::now();
        pods.remove_sandbox(&pod).await.unwrap();
        removes.push(begun.elapsed());
    }
    percentiles("run", runs);
    percentiles("create", creates);
    percentiles("start", starts);
    assert!(percentiles("pod up", ups) < Duration::from_secs(10));
    percentiles("exec", execs);
    percentiles("stop", stops);
    percentiles("remove", removes);
    concurrent(&lab, &pods).await;
}

async fn concurrent(lab: &Lab, pods: &Pods) {
    let before = rss();
    let begun = Instant::now();
    let ups = (0..10).map(|lane| async move {
        let mut made = Vec::new();
        for n in 0..10 {
            made.push(up(lab, pods, &format!("c{lane}-{n}")).await);
        }
        made
    });
    let made: Vec<_> = futures_util::future::join_all(ups).await.into_iter().flatten().collect();
    let rate = made.len() as f64 / begun.elapsed().as_secs_f64();
    println!("pods a second, 10 at a time: {rate:.0}");
    println!("daemon's growth: {} kB a pod", (rss() - before) / made.len() as u64);
    let ids: Vec<_> = made.iter().take(50).map(|m| m.1.clone()).collect();
    let stats = (0..20).map(|_| ids.clone()).collect::<Vec<_>>();
    let mut times = Vec::new();
    for ids in stats {
        let begun = Instant::now();
        assert_eq!(pods.list_stats(ids).await.len(), 50);
        times.push(begun.elapsed());
    }
    percentiles("stats of 50", times);
    for (pod, ..) in made {
        pods.remove_sandbox(&pod).await.unwrap();
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

/// Resident memory of this process in kB.
fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Prints every span's time to standard error (POD_TEST_TRACE=1).
fn trace() {
    use tracing_subscriber::fmt::format::FmtSpan;
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG);
    subscriber.with_span_events(FmtSpan::CLOSE).with_writer(std::io::stderr).init();
}
